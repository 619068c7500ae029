"""A whole ablation from recipe to report, with every probe of the suite in its debug size."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARMS = {"flat": ["teachers.coarse.upsampler=bilinear"], "tile": ["teachers.coarse.upsampler=tile"]}


def ablate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "distill/ablate.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_arms_are_trained_probed_compared_and_not_done_twice(write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe(
        arms=ARMS,
        baseline="flat",
        seeds=[0, 1],
        eval={"suite": "recipes/suites/embedded_debug.yaml", "untrained": True},
    )
    first = ablate(recipe)
    assert first.returncode == 0, first.stderr[-3000:]
    folder = recipe.parent / "runs" / "small"
    runs = [folder / f"{arm}-seed{seed}" for arm in ARMS for seed in (0, 1)]
    rows = [*runs, runs[0] / "untrained", *(folder / "teachers").iterdir()]
    assert len(rows) == 7 and all((row / "metrics.json").is_file() for row in rows)
    answer = json.loads((folder / "report" / "delta_m.json").read_text())
    assert answer["baseline"] == "flat" and list(answer["rows"]) == ["flat", "tile"]
    assert "2 runs a row" in first.stdout
    assert "| tile |" in first.stdout and f"report: {folder / 'report' / 'report.html'}" in first.stdout
    stamps = {row: (row / "metrics.json").stat().st_mtime_ns for row in rows}
    second = ablate(recipe)
    assert second.returncode == 0 and second.stdout.count("already trained") == 4
    assert stamps == {row: (row / "metrics.json").stat().st_mtime_ns for row in rows}
    assert second.stdout[second.stdout.index("The answer") :] == first.stdout[first.stdout.index("The answer") :]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [({}, "has no arms"), ({"arms": ARMS, "baseline": "flat"}, "has no eval")],
)
def test_recipes_without_arms_or_suite_are_refused(
    write_recipe: Callable[..., Path], changes: dict[str, object], message: str
) -> None:
    done = ablate(write_recipe(**changes))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
