"""Two processes and DeepSpeed: the same losses as one process with twice the batch, whatever the ZeRO stage."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.log import read_log, without_time

ROOT = Path(__file__).parents[2]
#: Sums run in another order over two processes; nothing else may differ. Relative, on losses and gradient norms.
TOLERANCE = 1e-5


def launch(recipe: Path, *overrides: str, processes: int = 2, stage: int | None = 2) -> Path:
    """`accelerate launch` in its own interpreter; returns the run's folder, named after the layout."""
    name = f"world{processes}-zero{stage}"
    start("distill/run.py", str(recipe), f"name={name}", *overrides, processes=processes, stage=stage)
    return recipe.parent / "runs" / name


def start(*arguments: str, processes: int, stage: int | None) -> None:
    """`accelerate launch` of a script with its arguments."""
    flags = [] if stage is None else ["--use_deepspeed", "--zero_stage", str(stage)]
    # torchrun picks a free port, so that runs of other people on this machine do not meet ours.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", str(processes), *flags]
    if processes > 1:
        command += ["--main_process_port", "0"]
    command += arguments
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def numbers(folder: Path) -> list[dict[str, Any]]:
    return [
        {"loss": line["loss"], "grad_norm": line["grad_norm"], **line["losses"]}
        for line in read_log(folder / "log.jsonl")
    ]


def assert_close(one: Path, other: Path) -> None:
    """Every logged loss and norm, and the exported weights, within the tolerance."""
    ours, theirs = numbers(one), numbers(other)
    assert len(ours) == len(theirs) == 6
    for line, reference in zip(ours, theirs, strict=True):
        assert line == pytest.approx(reference, rel=TOLERANCE)
    ours_student = load_file(one / "student" / "model.safetensors")
    for name, tensor in load_file(other / "student" / "model.safetensors").items():
        assert torch.allclose(ours_student[name], tensor, rtol=1e-3, atol=1e-4), name


def test_two_processes_equal_one_with_twice_the_batch(write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe()
    together, alone = launch(recipe), launch(recipe, processes=1, stage=None)
    assert_close(together, alone)
    checkpoint = together / "checkpoints" / "step-00000006"
    assert {"rank-0.json", "rank-1.json"} <= {path.name for path in checkpoint.iterdir()}


@pytest.mark.slow
def test_zero_stages_agree(write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe()
    one, two, three = (launch(recipe, stage=stage) for stage in (1, 2, 3))
    assert_close(one, two)
    assert_close(three, two)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_resume_with_deepspeed_is_equality(write_recipe: Callable[..., Path], stage: int) -> None:
    """Two processes, the last checkpoint and the student taken away: going on gives the same log and weights."""
    recipe = write_recipe()
    folder = launch(recipe, stage=stage)
    log = without_time(read_log(folder / "log.jsonl"))
    student = load_file(folder / "student" / "model.safetensors")
    (folder / "student").rename(folder / "first-student")
    (folder / "checkpoints" / "step-00000006").rename(folder / "first-checkpoint")
    launch(recipe, stage=stage)
    assert without_time(read_log(folder / "log.jsonl")) == log
    again = load_file(folder / "student" / "model.safetensors")
    assert all(torch.equal(student[name], again[name]) for name in student)


@pytest.mark.slow
def test_another_number_of_processes_does_not_resume(write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe()
    launch(recipe, "name=same")
    with pytest.raises(AssertionError, match="processes: 2 -> 1"):
        launch(recipe, "name=same", processes=1)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_arms_side_by_side_on_deepspeed_equal_their_solo_runs(write_recipe: Callable[..., Path], stage: int) -> None:
    """Three engines in each of two processes; every arm's log and student are those of the arm alone."""
    arms = {
        "flat": ["teachers.coarse.upsampler=bilinear"],
        "deep": ["student.drop_path=0.2", "student.depth=3", "optim.clip=0.5"],
        "seed": ["student.seed=3"],
    }
    together = write_recipe(arms=arms, baseline="flat")
    start("tests/distill/side_by_side.py", str(together), processes=2, stage=stage)
    alone = write_recipe(name="alone")
    for arm, overrides in arms.items():
        solo = launch(alone, *overrides, stage=stage)
        ours = solo.parent / "small" / arm
        assert without_time(read_log(ours / "log.jsonl")) == without_time(read_log(solo / "log.jsonl"))
        theirs = load_file(solo / "student" / "model.safetensors")
        found = load_file(ours / "student" / "model.safetensors")
        assert all(torch.equal(found[name], theirs[name]) for name in theirs)
        shutil.rmtree(solo)
