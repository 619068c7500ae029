"""The debug recipe's first steps are what they were; changing them is a commit of its own, with a reason."""

import json
from pathlib import Path

import pytest
from golden import STEPS, STORED, TOLERANCE, first_steps, machine


def test_the_first_steps_are_the_stored_ones(tmp_path: Path) -> None:
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    steps = first_steps(tmp_path)
    assert len(steps) == len(stored["steps"]) == STEPS
    if stored["machine"] == machine():
        assert steps == stored["steps"]
    for ours, theirs in zip(steps, stored["steps"], strict=True):
        assert ours.pop("losses") == pytest.approx(theirs.pop("losses"), rel=TOLERANCE)
        assert ours == pytest.approx(theirs, rel=TOLERANCE)
