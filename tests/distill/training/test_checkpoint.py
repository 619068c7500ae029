"""Checkpoints: complete or not there, whatever happens while they are written."""

import json
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from common.errors import UserError
from common.jsonl import Log, read_log
from distill.training.checkpoint import Checkpoints, refuse_difference
from distill.training.engine_state import EngineState, state_of

IDENTITY = {"seed": 0, "optim.lr": 0.1, "processes": 1, "engine": "torch", "precision": "fp32"}


class Place:
    """A stream's position, in the smallest form."""

    def __init__(self, at: int) -> None:
        self.at = at

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


@pytest.fixture
def model() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


@pytest.fixture
def checkpoints(tmp_path: Path, model: torch.nn.Linear) -> Iterator[Checkpoints]:
    accelerator = Accelerator()
    yield Checkpoints(tmp_path / "checkpoints", accelerator, IDENTITY, keep=2)
    accelerator.free_memory()


@pytest.fixture
def engine(checkpoints: Checkpoints, model: torch.nn.Linear) -> EngineState:
    optimiser = torch.optim.AdamW(model.parameters())
    return state_of(checkpoints.accelerator, *checkpoints.accelerator.prepare(model, optimiser))


def saved(checkpoints: Checkpoints, engine: EngineState, step: int, place: Place | None = None) -> Path:
    """A checkpoint that is on the disk."""
    checkpoints.save(step, engine, place or Place(step), TARGETS)
    checkpoints.wait()
    return checkpoints.folders.path(step)


TARGETS = {"a.mean": torch.arange(3.0)}


def test_everything_comes_back(checkpoints: Checkpoints, engine: EngineState, model: torch.nn.Linear) -> None:
    path = saved(checkpoints, engine, 7, Place(70))
    weight, rng_state = model.weight.detach().clone(), torch.rand(2)
    model.weight.data.zero_()
    place = Place(0)
    (path / "rank-1.json").write_text("{}")  # nobody's: there was one process
    assert checkpoints.latest() == path and checkpoints.read_state(path) == 7
    checkpoints.restore(path, engine)
    checkpoints.restore_position(path, place)
    assert torch.equal(model.weight, weight) and place.at == 70
    assert torch.equal(torch.rand(2), rng_state)
    assert torch.equal(checkpoints.read_targets(path)["a.mean"], TARGETS["a.mean"])


def test_in_the_foreground_it_is_on_the_disk_when_training_goes_on(
    checkpoints: Checkpoints, engine: EngineState, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.background = False
    checkpoints.save(1, engine, Place(1), TARGETS)
    assert checkpoints.folders.path(1).is_dir()
    monkeypatch.setattr(checkpoints, "_write", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(UserError, match="no room"):  # now, not when the next one is due
        checkpoints.save(2, engine, Place(2), TARGETS)


def test_what_changes_while_it_is_written_is_not_in_it(
    checkpoints: Checkpoints, engine: EngineState, model: torch.nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on at once; the writer is held up until the weights have moved."""
    weight, moved, write = model.weight.detach().clone(), threading.Event(), Checkpoints._write

    def slow(self: Checkpoints, *arguments: Any) -> None:
        assert moved.wait(timeout=30)
        write(self, *arguments)

    monkeypatch.setattr(Checkpoints, "_write", slow)
    checkpoints.save(1, engine, Place(1), TARGETS)
    model.weight.data.zero_()
    moved.set()
    checkpoints.wait()
    checkpoints.restore(checkpoints.folders.path(1), engine)
    assert torch.equal(model.weight, weight)


def test_what_is_registered_comes_back(checkpoints: Checkpoints, engine: EngineState) -> None:
    """An average of the weights, say: saved beside the rest, put back by `restore`."""
    average = torch.nn.Linear(3, 2)
    checkpoints.register("average", average)
    path = saved(checkpoints, engine, 1)
    before = average.weight.detach().clone()
    average.weight.data.zero_()
    checkpoints.restore(path, engine)
    assert torch.equal(average.weight, before) and (path / "average.safetensors").is_file()
    with pytest.raises(ValueError, match="there is a targets already"):
        checkpoints.register("targets", average)


def test_only_the_last_are_kept(checkpoints: Checkpoints, engine: EngineState) -> None:
    for step in (1, 2, 10):
        saved(checkpoints, engine, step)
    assert [path.name for path in sorted(checkpoints.folder.iterdir())] == ["step-00000002", "step-00000010"]


def test_every_file_of_a_checkpoint_is_guarded(checkpoints: Checkpoints, engine: EngineState) -> None:
    """One flipped bit in any of them, and the checkpoint before is used."""
    older, path = saved(checkpoints, engine, 1), saved(checkpoints, engine, 2)
    names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {"manifest.json"}
    assert names == {
        "state.json",
        "rank-0.json",
        "targets.safetensors",
        "engine/student.pt",
        "engine/optimiser.pt",
        "engine/random-0.pt",
    }
    for name in names:
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 4
        (path / name).write_bytes(content)
        assert checkpoints.latest() == older
        content[len(content) // 2] ^= 4
        (path.with_name(f"damaged-{path.name}") / name).write_bytes(content)
        path.with_name(f"damaged-{path.name}").rename(path)
        assert checkpoints.latest() == path


def test_a_failure_in_the_middle_leaves_the_previous_one(
    checkpoints: Checkpoints, engine: EngineState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told when the next one is due, and nothing of it stays."""
    first = saved(checkpoints, engine, 1)

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distill.training.checkpoint.write_tensors", broken)
    checkpoints.save(2, engine, Place(2), TARGETS)
    with pytest.raises(UserError, match=r"No space left on device.*step-00000001 is complete"):
        checkpoints.save(3, engine, Place(3), TARGETS)
    assert checkpoints.latest() == first and [path.name for path in checkpoints.folder.iterdir()] == [first.name]


def test_a_kill_in_the_middle_leaves_the_previous_one(checkpoints: Checkpoints, engine: EngineState) -> None:
    """What a kill -9 leaves behind: a half-written folder under its temporary name, which the next start removes."""
    first = saved(checkpoints, engine, 1)
    (checkpoints.folder / ".writing-step-00000002" / "engine").mkdir(parents=True)
    (checkpoints.folder / ".writing-step-00000002" / "state.json").write_text("{")
    assert checkpoints.latest() == first
    assert [path.name for path in checkpoints.folder.iterdir()] == [first.name]


def test_a_full_disk_leaves_the_previous_one(write_recipe: Callable[..., Path]) -> None:
    """A real limit on file size, set by the system once the first checkpoint is written."""
    recipe = write_recipe()
    script = f"""
import resource, sys
from distill.training.checkpoint import Checkpoints
whole = Checkpoints.save
def save(self, step, *rest):
    if step > 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    return whole(self, step, *rest)
Checkpoints.save = save
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from small_run import train
from distill.recipe import read
from common.errors import guard
sys.exit(guard(lambda argv: train(read(argv[0])) and None, [{str(recipe)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "cannot write checkpoint" in done.stderr and "step-00000003 is complete" in done.stderr
    folder = recipe.parent / "runs" / "small" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-00000003"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_differences_are_named() -> None:
    refuse_difference(IDENTITY, dict(IDENTITY), "here")
    with pytest.raises(UserError, match=r"here was made by another run: optim.lr: 0.1 -> 0.2; seed: 0 -> 'absent'"):
        refuse_difference({"seed": 0, "optim.lr": 0.1}, {"optim.lr": 0.2}, "here")


def test_a_field_younger_than_the_run_counts_as_its_default() -> None:
    refuse_difference(IDENTITY, IDENTITY | {"loss.beta": 1.0, "student.seed": None, "teachers.a.chunk": 64}, "here")
    with pytest.raises(UserError, match=r"loss.beta: 'absent' -> 2.0"):
        refuse_difference(IDENTITY, IDENTITY | {"loss.beta": 2.0}, "here")
    with pytest.raises(UserError, match=r"digest of teacher b: 'absent' -> 'sha256:1'"):
        refuse_difference(IDENTITY, IDENTITY | {"digest of teacher b": "sha256:1"}, "here")


def test_another_run_may_not_go_on(checkpoints: Checkpoints, engine: EngineState) -> None:
    path = saved(checkpoints, engine, 1)
    checkpoints.identity["digest of teacher clip"] = "sha256:other"
    with pytest.raises(UserError, match="digest of teacher clip"):
        checkpoints.read_state(path)


def test_the_log_is_cut_back_to_a_step(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.truncate(3)
    for step in (1, 2, 3):
        log.write({"step": step})
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')
    log.truncate(2)
    assert read_log(log.path) == [{"step": 1}, {"step": 2}]
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == [{"step": 1}, {"step": 2}]


def test_images_are_compared_by_content_and_of_older_runs_by_place() -> None:
    here, there = {"data.train": "imagefolder:here"}, {"data.train.imagefolder:there": 1.0}
    refuse_difference(here | {"images": "x"}, there | {"images": "x"}, "run")
    refuse_difference(here, here | {"images": "x"}, "run")
    for before, now in ((here | {"images": "x"}, here | {"images": "y"}), (here, there | {"images": "x"})):
        with pytest.raises(UserError, match="run was made by another run"):
            refuse_difference(before, now, "run")
