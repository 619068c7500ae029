"""PHI-S that a run has estimated stays when it is killed before its first checkpoint, whole or estimated again."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from run_logs import without_time
from small_run import small_recipe, train

from common.errors import UserError
from common.jsonl import read_log
from common.recipes import validate
from distill.recipe import Recipe
from distill.targets.statistics import FITTED, TARGETS


def recipe(folder: Path, **more: Any) -> Recipe:
    data = small_recipe(folder)
    data["optim"] = data["optim"] | {"steps": 2, "warmup_steps": 1}
    return validate(Recipe, data | more, "test")


def killed_after_fitting(mine: Recipe) -> Path:
    """The folder of a run that was killed once its statistics were on the disk."""
    fitted = mine.folder / FITTED
    child = os.fork()
    if not child:
        train(mine)
        os._exit(0)
    ends = time.monotonic() + 120
    while not fitted.exists() and time.monotonic() < ends:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert fitted.exists() and not list(mine.folder.glob("checkpoints/step-*"))
    return mine.folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)


def test_killed_between_estimating_and_saving(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = train(recipe(tmp_path / "whole"))
    expected = without_time(read_log(whole / "log.jsonl"))

    folder = killed_after_fitting(recipe(tmp_path / "killed"))
    shutil.copytree(folder, tmp_path / "damaged" / folder.name)
    before = (folder / FITTED / TARGETS).stat().st_mtime_ns
    train(recipe(tmp_path / "killed"))
    assert without_time(read_log(folder / "log.jsonl")) == expected
    assert (folder / FITTED / TARGETS).stat().st_mtime_ns == before  # used, not made again

    damaged = tmp_path / "damaged" / folder.name
    flip(damaged / FITTED / TARGETS)
    capsys.readouterr()
    train(recipe(tmp_path / "damaged"))
    assert "targets.safetensors is not as it was written); estimating anew" in capsys.readouterr().err
    assert without_time(read_log(damaged / "log.jsonl")) == expected

    (damaged / "student").rename(tmp_path / "student")  # not finished, and goes on from its last checkpoint
    (damaged / FITTED / TARGETS).unlink()
    train(recipe(tmp_path / "damaged"))
    assert "targets.safetensors is missing); written again from the checkpoint" in capsys.readouterr().err
    assert (damaged / FITTED / TARGETS).read_bytes() == (folder / FITTED / TARGETS).read_bytes()

    flip(damaged / FITTED / TARGETS)
    loading = recipe(tmp_path / "other", normaliser={"load": str(damaged)})
    with pytest.raises(UserError, match="not as it was written"):
        train(loading)
