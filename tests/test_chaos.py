"""A short part of `python -m tests.chaos`, whose long runs are made by hand (docs/trust.md)."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_run_that_is_killed_and_loses_the_end_of_a_file_ends_in_the_same_bits(tmp_path: Path) -> None:
    """Two trials: kill -9, and a file of the newest checkpoint cut short."""
    command = [sys.executable, "-m", "tests.chaos", "--seed", "9", "--trials", "2", "--worlds", "plain"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "trials 2" in done.stdout and "differing bits 0, tracebacks 0, silent acceptances 0" in done.stdout
