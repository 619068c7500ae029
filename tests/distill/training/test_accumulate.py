"""Gradient accumulation: the same images in the same order, the same losses, whatever the batch is cut into."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from launching import assert_close, launch
from run_logs import without_time
from safetensors.torch import load_file
from small_run import train
from test_resolution import staged

from common.errors import UserError
from common.jsonl import read_log
from distill.recipe import read, read_arms
from distill.training.arms import Arm, run_together
from distill.training.data import micro_batches
from distill.training.engine import start
from imagery.sources import open_source


def test_accumulation_is_the_whole_batch(trained: Path, write_recipe: Callable[..., Path]) -> None:
    """Sums run in another order; nothing else differs."""
    assert_close(train(read(write_recipe(), ["optim.accumulate=2"])), trained)


def test_micro_batches_keep_the_order() -> None:
    images = torch.arange(6)[:, None]
    pieces = micro_batches([("low", images), ("high", images[:3])], 3)
    assert [[piece.flatten().tolist() for _, piece in micro] for micro in pieces] == [
        [[0, 1], [0]],
        [[2, 3], [1]],
        [[4, 5], [2]],
    ]


def test_uneven_micro_batches_are_refused(write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"the 4 images of a process do not divide into optim.accumulate: 3"):
        train(read(write_recipe(), ["optim.accumulate=3"]))


@pytest.mark.slow
def test_accumulating_arms_go_on_through_stages_as_if_alone(tmp_path: Path) -> None:
    """Two partitions, two stages, two arms, stopped at the boundary: equal to the bit to one arm that never stopped."""
    arms = {"flat": ["teachers.coarse.upsampler=bilinear", "student.seed=3"], "tile": []}
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump(staged(tmp_path, arms=arms, baseline="flat")), encoding="utf-8")
    recipes = read_arms(path, ["optim.accumulate=2"])
    alone = train(read_arms(path, ["optim.accumulate=2", f"out={tmp_path / 'alone'}"])["tile"])

    def together() -> None:
        accelerators = start(recipes)
        made = [Arm(name, recipe, accelerators[name]) for name, recipe in recipes.items()]
        run_together(made, open_source(recipes["tile"].data.train), untrained=None)

    together()
    ours = recipes["tile"].folder
    for gone in [*sorted((ours / "checkpoints").iterdir())[3:], ours / "student"]:
        shutil.rmtree(gone)
    together()
    assert without_time(read_log(ours / "log.jsonl")) == without_time(read_log(alone / "log.jsonl"))
    states = [load_file(folder / "student" / "model.safetensors") for folder in (ours, alone)]
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 1, 2, 3])
def test_two_processes_that_accumulate_equal_one_that_does_not(write_recipe: Callable[..., Path], stage: int) -> None:
    """DDP and every ZeRO stage: 2 processes x 2 micro-batches of 1 image against 1 process x 4 images."""
    recipe = write_recipe()
    alone = launch(recipe, processes=1, stage=None)
    assert_close(launch(recipe, "optim.accumulate=2", stage=stage), alone)
