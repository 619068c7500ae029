"""Two processes and DeepSpeed: the same losses as one process with twice the batch, whatever the ZeRO stage."""

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from launching import ROOT, TOLERANCE, assert_close, command_line, launch, numbers, start
from run_logs import without_time
from safetensors.torch import load_file
from same_state import assert_same_checkpoints
from small_run import small_recipe
from test_resolution import STAGES, staged

from common.jsonl import read_log

#: The flagships' optimiser, which is not separable over elements: AdamW would not notice how ZeRO cuts weights up.
LAMB = {"optim": {"steps": 6, "batch_size": 4, "lr": 0.003, "warmup_steps": 2, "name": "lamb"}}


def test_two_processes_equal_one_with_twice_the_batch(write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe(**LAMB)
    together, plain, alone = launch(recipe), launch(recipe, stage=None), launch(recipe, processes=1, stage=None)
    assert_close(together, alone)
    assert_close(plain, alone)  # without DeepSpeed, Accelerate's own data parallelism
    checkpoint = together / "checkpoints" / "step-00000006"
    assert {"rank-0.json", "rank-1.json"} <= {path.name for path in checkpoint.iterdir()}


@pytest.mark.slow
def test_zero_stages_agree(write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe(**LAMB)
    one, two, three = (launch(recipe, stage=stage) for stage in (1, 2, 3))
    assert_close(one, two)
    assert_close(three, two)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_resume_with_deepspeed_is_equality(write_recipe: Callable[..., Path], stage: int) -> None:
    """Two processes, the last checkpoint and the student taken away: going on gives the same log and weights."""
    recipe = write_recipe(**LAMB)
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


def wide_teachers(**changes: Any) -> dict[str, Any]:
    """Teachers with matrices that DeepSpeed does shard: what is below 100 000 numbers it keeps on every process."""
    teachers = small_recipe(Path("unused"))["teachers"]
    for teacher in teachers.values():
        teacher["backbone"]["model_args"] |= {"embed_dim": 192, "depth": 2}
    return {"teachers": teachers} | changes


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 2, 3])
def test_teachers_in_shares_say_the_same(write_recipe: Callable[..., Path], stage: int | None) -> None:
    """ZeRO-3 teachers beside a student on DDP, ZeRO-2 and ZeRO-3: every logged number as with whole teachers.

    Not to the bit: gathered weights lie at other addresses, and where a matrix begins can move its product's last bit.
    """
    recipe = write_recipe(**wide_teachers())
    whole, shared = (launch(recipe, f"engine.teachers={how}", stage=stage, name=how) for how in ("replicated", "zero3"))
    for ours, theirs in zip(numbers(shared), numbers(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE)


@pytest.mark.slow
def test_the_targets_of_shared_teachers_are_those_of_whole_ones() -> None:
    """By torch.equal on each of two processes, which hold about half of the weights each."""
    start("tests/distill/shared_teachers.py", processes=2, stage=None)


@pytest.mark.slow
def test_zero_3_gathers_large_tokens_and_positions(write_recipe: Callable[..., Path]) -> None:
    """A student whose positions are large enough to be sharded: 729 tokens of width 144."""
    student = {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 144, "depth": 1, "num_heads": 2}
    data = {"train": "scenes:seed=3,count=4,size=216,cache=true", "size": [216, 216]}
    recipe = write_recipe(student=student, data=data)
    short = ["optim.steps=2", "optim.batch_size=2", "normaliser.batches=1"]
    two, three = (numbers(launch(recipe, *short, stage=stage)) for stage in (2, 3))
    for ours, theirs in zip(two, three, strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 2, 3])
@pytest.mark.parametrize("lines", [2, 9])
def test_two_processes_killed_go_on_as_if_nothing_had_been(tmp_path: Path, stage: int | None, lines: int) -> None:
    """kill -9 of the launcher and both processes before and after a stage boundary: every state of the last checkpoint
    (weights, moments, statistics, places in the data, random numbers) is that of a run that was left alone."""
    stages = STAGES | {"one": STAGES["one"] | {"steps": 6}, "two": STAGES["two"] | {"steps": 14}}
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(staged(tmp_path / "runs", stages=stages)), encoding="utf-8")
    settings = ["checkpoint.every=2", "checkpoint.keep=1", "optim.name=lamb"]
    log = tmp_path / "runs" / "killed" / "log.jsonl"
    command, environment = command_line(
        "distill/run.py", str(recipe), "name=killed", *settings, processes=2, stage=stage
    )
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    while not (log.exists() and log.read_text().count("\n") >= lines):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in everyone:  # by name: torch's launcher gives every process a session of its own
        each.kill()
    psutil.wait_procs(everyone)
    process.communicate()
    assert not (log.parent / "student").exists()
    killed, whole = (launch(recipe, *settings, stage=stage, name=name) for name in ("killed", "whole"))
    assert without_time(read_log(log)) == without_time(read_log(whole / "log.jsonl"))
    assert_same_checkpoints(killed, whole)
