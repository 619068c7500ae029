"""The comparison: one budget for all, and a table that says what was measured."""

import json
from pathlib import Path

import pytest
from conftest import SmallTeacher
from worlds import image_folder, small_recipe

from featsharp_adapter import workshop as workshop_module
from featsharp_adapter.compare import Outcome, compare, mean_and_error, summarise, write_table
from featsharp_adapter.workshop import open_workshop


def test_compare_trains_every_upsampler_on_the_same_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = SmallTeacher()
    monkeypatch.setattr(workshop_module, "load_backbone", lambda node: teacher)
    recipe = small_recipe(image_folder(tmp_path / "images"), optim__steps=2)
    names = ["bilinear", "tile", "featsharp"]
    workshop = open_workshop(recipe, names)
    looked = teacher.seen
    outcomes = compare(recipe, workshop, names, [0, 1])
    assert teacher.seen == looked  # nobody asks the teacher again
    assert [(outcome.upsampler, outcome.seed) for outcome in outcomes] == [(n, s) for s in (0, 1) for n in names]
    bilinear = [outcome for outcome in outcomes if outcome.upsampler == "bilinear"]
    assert bilinear[0].parameters == 0 and bilinear[0].mse_learned != bilinear[1].mse_learned
    table = write_table(outcomes, tmp_path / "tables" / "t")
    assert (tmp_path / "tables" / "t.md").read_text() == table and table.count("\n") == 5
    stored = json.loads((tmp_path / "tables" / "t.json").read_text())
    assert [row["upsampler"] for row in stored["rows"]] == names and len(stored["outcomes"]) == 6


def test_rows_are_means_with_standard_errors() -> None:
    outcomes = [Outcome("t", "tile", seed, mse, 2 * mse, 0, 1.0) for seed, mse in enumerate((0.1, 0.2, 0.3))]
    (row,) = summarise(outcomes)
    assert row.mse_average == pytest.approx((0.2, 0.1 / 3**0.5))
    assert row.mse_learned == pytest.approx((0.4, 0.2 / 3**0.5))
    assert row.fidelity[0] == pytest.approx((5 + 2.5 + 5 / 3) / 3)
    assert mean_and_error([3.0]) == (3.0, None)
