"""A whole run: equal to itself, resumable after a kill, exported so that it loads back, and plain about mistakes."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_logs import without_time
from safetensors.torch import load_file
from same_state import assert_same_checkpoints
from small_run import train

from common.errors import UserError
from common.jsonl import read_log
from common.trackers import TRACKERS
from distill.recipe import read

ROOT = Path(__file__).parents[2]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "distill" / "run.py"), *map(str, arguments)]


def script(*arguments: str | Path) -> int:
    """distill/run.py as a script, but in this process; returns its exit code."""
    argv = sys.argv
    sys.argv = command(*arguments)[1:]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = argv
    raise AssertionError("the script did not end with an exit code")


def student_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """Logs equal but for the clock; students equal to the bit."""
    assert without_time(read_log(one / "log.jsonl")) == without_time(read_log(other / "log.jsonl"))
    ours, theirs = student_of(one), student_of(other)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_a_run_writes(trained: Path) -> None:
    files = {path.name for path in trained.iterdir()}
    assert {"recipe.yaml", "environment.json", "log.jsonl", "checkpoints", "student", "untrained"} <= files
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
    lines = read_log(trained / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert set(lines[0]) == {"step", "loss", "losses", "grad_norm", "lr", "time"}
    assert sum(lines[0]["losses"].values()) == pytest.approx(lines[0]["loss"], rel=1e-6)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert read(trained / "recipe.yaml").name == "small"


def test_the_same_recipe_gives_the_same_run(trained: Path, write_recipe: Callable[..., Path]) -> None:
    assert_same_run(train(read(write_recipe())), trained)


def test_the_seed_matters(trained: Path, write_recipe: Callable[..., Path]) -> None:
    other = train(read(write_recipe(), ["seed=1", "optim.steps=1", "optim.warmup_steps=1"]))
    assert read_log(other / "log.jsonl")[0]["loss"] != read_log(trained / "log.jsonl")[0]["loss"]


def test_a_finished_run_is_not_run_again(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "log.jsonl").read_bytes()
    train(read(trained / "recipe.yaml"))
    assert (trained / "log.jsonl").read_bytes() == before
    assert "already trained" in capsys.readouterr().out


def test_a_changed_recipe_does_not_resume(trained: Path) -> None:
    with pytest.raises(UserError, match=r"optim.lr: 0.003 -> 0.004"):
        train(read(trained / "recipe.yaml", ["optim.lr=0.004"]))


def test_stopping_between_checkpoints_changes_nothing(trained: Path, write_recipe: Callable[..., Path]) -> None:
    """Stopped after step 5 of 6, the run goes back to the checkpoint of step 3 and ends as if nothing had been."""
    path = write_recipe(
        student={"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    )
    folder = train(read(path))
    for gone in ("student", "checkpoints/step-00000006"):
        (folder / gone).rename(folder / f"gone-{Path(gone).name}")
    log = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "log.jsonl").write_text("".join(log[:5]) + '{"step": 6, "lo')
    train(read(path))
    assert_same_run(folder, trained)


@pytest.mark.parametrize("seconds_between", [0.02])
def test_killed_in_the_middle(write_recipe: Callable[..., Path], seconds_between: float) -> None:
    """kill -9 before a stage's end, then start again: log, student and last checkpoint equal an uninterrupted run.

    Stochastic depth draws random numbers.
    """
    changes = {
        "optim": {"batch_size": 4, "lr": 0.003, "warmup_steps": 2},
        "stages": {"one": {"steps": 20}, "two": {"steps": 40, "partitions": {"all": {"sizes": [16]}}}},
        "checkpoint": {"every": 7},
        "student": {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
        | {"drop_path": 0.2},
    }
    path = write_recipe(**changes)
    log = read(path).folder / "log.jsonl"
    process = subprocess.Popen(command(path), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (log.exists() and log.read_text().count("\n") >= 18):
        assert process.poll() is None, f"ended before it could be killed: {process.stderr.read()}"
        time.sleep(seconds_between)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (log.parent / "student").exists()
    subprocess.run(command(path), cwd=ROOT, check=True, capture_output=True)
    whole = train(read(path, ["name=whole"]))
    assert_same_run(log.parent, whole)
    assert_same_checkpoints(log.parent, whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim.stepps=3"], 'unknown field "optim.stepps" (did you mean "steps"?)'),
        (["data.train=imagefolder:nowhere"], "nowhere"),
        (["teachers.coarse.upsampler=featsharp"], "must be trained"),
        (["optim.batch_size=0"], "optim.batch_size"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert script(write_recipe(), *arguments) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_a_diverged_run_stops_before_it_is_saved(write_recipe: Callable[..., Path]) -> None:
    recipe = read(write_recipe(), ["optim.warmup_steps=0", "checkpoint.every=1"])
    wild = recipe.optim.model_copy(update={"lr": 1e30})  # a recipe may not say so; here it saves waiting
    recipe = recipe.model_copy(update={"optim": wild})
    with pytest.raises(UserError, match=r"step \d: loss (nan|inf).*at a lower rate"):
        train(recipe)
    saved = len(list((recipe.folder / "checkpoints").iterdir()))
    assert saved < len(read_log(recipe.folder / "log.jsonl"))


def test_bad_images_are_skipped_and_reported(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 40, 48, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{index:02}.png")
    (tmp_path / "photos" / "05.png").write_bytes((tmp_path / "photos" / "05.png").read_bytes()[:99])
    data = {"train": f"imagefolder:{tmp_path / 'photos'}", "size": [32, 32], "max_bad_share": 0.5}
    folder = train(read(write_recipe(data=data, log={"trackers": ["tensorboard"]})))
    assert len(read_log(folder / "log.jsonl")) == 6
    said = capsys.readouterr().out
    assert "unreadable and replaced" in said and "05.png" in said
    assert list(folder.glob("events.out.tfevents*"))


def test_a_tracker_that_is_not_installed_is_an_error(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", lambda: False)
    with pytest.raises(UserError, match=r"wandb is not installed; pip install"):
        train(read(write_recipe(log={"trackers": ["wandb"]})))


def test_the_plan_counts_views_and_tokens(
    write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(write_recipe(), "--plan") == 0
    said = capsys.readouterr().out
    assert re.search(r"coarse +1 small 2x2 \+ 4 tiles 2x2 2x2 +\S+ +\S+  4x4\n", said)
    assert "stage main: 6 steps of 4 images" in said and "small on 1 x H100 SXM 80 GB" in said
    assert script(write_recipe(), "--plan", "--gpu", "h1000") == 2
    assert "h100, h100-pcie, h200" in capsys.readouterr().err


def test_the_environment_is_recorded(trained: Path) -> None:
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["processes"] == 1 and environment["mfu_against"] == "no peak is known for cpu: mfu is null"
