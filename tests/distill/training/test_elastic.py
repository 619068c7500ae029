"""Training that goes on with another number of processes, when asked: the losses of a run that was left alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import assert_close, launch

from distill.recipe import read
from distill.training.arms import Arm, run_arm
from distill.training.engine import start
from imagery.sources import open_sources

CHANGES = {
    "optim": {"steps": 6, "batch_size": 4, "lr": 0.003, "warmup_steps": 2, "name": "lamb"},
    "checkpoint": {"every": 2, "keep": 9},
}


def after_two_steps(whole: Path, name: str) -> Path:
    """A copy of a run as it was after two updates."""
    folder = Path(shutil.copytree(whole, whole.with_name(name)))
    for gone in ("checkpoints/step-00000004", "checkpoints/step-00000006", "student"):
        shutil.rmtree(folder / gone)
    return folder


def go_on_alone(path: Path, name: str, *, elastic: bool) -> None:
    """In this process, which is the only one."""
    recipe = read(path, [f"name={name}"])
    arm = Arm(name, recipe, start({name: recipe})[name], elastic)
    run_arm(arm, open_sources(recipe.data.train), export_untrained=False)


@pytest.mark.slow
def test_from_two_processes_to_one_and_back(write_recipe: Callable[..., Path]) -> None:
    """Every loss and norm, and the student, within the tolerance of one process against two; all images counted."""
    path = write_recipe(**CHANGES)
    two = launch(path, stage=None, name="two")
    fewer = after_two_steps(two, "fewer")
    go_on_alone(path, "fewer", elastic=True)
    assert_close(fewer, two)
    one = launch(path, processes=1, stage=None, name="one")
    more = after_two_steps(one, "more")
    launch(path, "--elastic", stage=None, name="more")
    assert_close(more, one)
    read_counts = {json.loads((folder / "data.json").read_text())["read"] for folder in (one, two, fewer, more)}
    assert read_counts == {6 * 4}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 2])
def test_a_finished_run_is_judged_on_any_number_of_processes(
    write_recipe: Callable[..., Path], stage: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without being asked to be elastic: nothing is trained any more. DeepSpeed's too."""
    path = write_recipe(**CHANGES)
    folder = launch(path, stage=stage, name="done")
    log = (folder / "log.jsonl").read_bytes()
    go_on_alone(path, "done", elastic=False)
    assert "already trained" in capsys.readouterr().out
    assert (folder / "log.jsonl").read_bytes() == log
