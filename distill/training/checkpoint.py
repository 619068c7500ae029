"""Checkpoints that are complete and whole or not used, written beside the training, and resume that is equality.

    checkpoints/step-00000500/state.json          step, and the identity of the run
                              targets.safetensors the normalisers
                              rank-0.json         where this rank is in the data
                              engine/             weights, moments, random states (engine_state.py)
                              NAME.safetensors    whatever else was registered under a name
                              manifest.json       size and checksum of every file

Training stops for as long as it takes to copy the state to the host's memory. Each process writes its own files in a
thread, then what it wrote; the first one waits for all of these, and puts the checkpoint in its place
(common/step_folders.py). What a write met is told at the next save: to all processes, who stop together.
"""

import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.atomic import flush_file
from common.background import Background
from common.checksums import Entries, entry_of, read_manifest, write_checked
from common.errors import UserError
from common.step_folders import StepFolders, problem
from common.tensor_files import write_tensors
from distill.recipe import default_of
from distill.training.data import gather_objects, state_of_all
from distill.training.engine_state import EngineState, on_host

STATE, TARGETS = "state.json", "targets.safetensors"
#: What does not decide whether a finished run is the one that is asked for, or whether it may go on with --elastic.
LAYOUT = ("processes", "precision", "engine")
_PART = "part-{}.json"


class DataPosition(Protocol):
    """What a checkpoint needs of the stream of images."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Holder(Protocol):
    """State that is alike on all processes: tensors by name."""

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Any: ...


class Checkpoints:
    """The checkpoints of one run, in a folder all processes can see."""

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        identity: Mapping[str, Any],
        keep: int,
        *,
        background: bool = True,
        patience: float = 600.0,
        elastic: bool = False,
    ) -> None:
        self.folders = StepFolders(folder, keep)
        self.accelerator, self.identity = accelerator, dict(identity)
        self.background, self.patience, self.elastic = background, patience, elastic
        self._holders: dict[str, Holder] = {}
        self._writer = Background("checkpoint")
        self._saved: int | None = None  # the step that is written last, or being written

    @property
    def folder(self) -> Path:
        return self.folders.folder

    def register(self, name: str, holder: Holder) -> None:
        """Save and restore `holder` too, as NAME.safetensors. All processes ask it for its state; the first writes."""
        if name in self._holders or name == "targets":
            raise ValueError(f"there is a {name} already")
        self._holders[name] = holder

    def save(self, step: int, engine: EngineState, stream: DataPosition, targets: Mapping[str, Tensor]) -> None:
        """Copy the state after `step` updates and begin to write it. All processes must call it.

        UserError where the checkpoint before could not be written; the ones before that stay valid.
        """
        self.wait()
        rank, main = self.accelerator.process_index, self.accelerator.is_main_process
        pieces = engine.copy()
        texts = {f"rank-{rank}.json": json.dumps(stream.state_dict())}
        named = {f"{name}.safetensors": holder.state_dict() for name, holder in self._holders.items()}
        tensors = {name: on_host(state) for name, state in named.items()} if main else {}
        if main:
            tensors[TARGETS] = on_host(targets)
            texts[STATE] = json.dumps({"step": step, "identity": self.identity}, indent=1)
        self._saved = step
        self._writer.start(lambda: self._write(step, pieces, tensors, texts))
        if not self.background:
            self.wait()

    def wait(self) -> None:
        """Until what was saved is written, by all processes; all must call it. UserError where one could not."""
        trouble = None
        try:
            self._writer.wait()
        except (OSError, RuntimeError, SafetensorError) as error:
            trouble = str(error)
        told = [each["trouble"] for each in gather_objects({"trouble": trouble}) if each["trouble"] is not None]
        if told:
            if self.accelerator.is_main_process:
                self.folders.tidy()
            whole = self.folders.all()
            kept = f"{whole[-1]} is complete" if whole else "there was none before"
            lost = self.folders.path(self._saved or 0)
            raise UserError(f"cannot write checkpoint {lost}: {told[0]}. {kept}; start again to go on")

    def latest(self) -> Path | None:
        """The newest checkpoint that is whole; all processes must call it. What it passes over is said."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        if self.accelerator.is_main_process:
            self.folders.tidy()
        gather_objects({})  # nobody lists what is being tidied

        def check(path: Path) -> str | None:
            found = [each["found"] for each in gather_objects({"found": problem(path, (rank, world))})]
            return next((reason for reason in found if reason is not None), None)

        path = self.folders.newest_whole(check, main=self.accelerator.is_main_process)
        gather_objects({})
        return path

    def read_state(self, path: Path) -> int:
        """The step of a checkpoint, after checking that it belongs to this very run; UserError names what differs."""
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        now, before = self.identity, state["identity"]
        if self.elastic:
            refuse_other_engine(before, now, path)
            now, before = without_layout(now), without_layout(before)
        elif without_layout(now) == without_layout(before) and before["processes"] != now["processes"]:
            raise UserError(
                f"{path} was made by another run: processes: {before['processes']} -> {now['processes']}. Launch as "
                "many, or add --elastic to go on: the same images in the same order, sums rounded differently"
            )
        refuse_difference(before, now, str(path))
        return int(state["step"])

    def read_targets(self, path: Path) -> dict[str, Tensor]:
        """The normalisers' state, on the CPU."""
        return load_file(path / TARGETS)

    def restore(self, path: Path, engine: EngineState) -> None:
        """Put weights, moments and random states back as they were."""
        engine.restore(path)
        for name, holder in self._holders.items():
            holder.load_state_dict(load_file(path / f"{name}.safetensors"))

    def restore_position(self, path: Path, stream: DataPosition) -> None:
        """Put this process's place in the data back as it was, or as all were where there were more or fewer."""
        # By the manifest: what else lies in the folder is nobody's.
        rank, count = self.accelerator.process_index, sum(name.startswith("rank-") for name in read_manifest(path))
        if count == self.accelerator.num_processes:
            stream.load_state_dict(_read_json(path / f"rank-{rank}.json"))
        else:
            states = [_read_json(path / f"rank-{each}.json") for each in range(count)]
            stream.load_state_dict(state_of_all(states, keeps_counts=rank == 0))

    def _write(
        self,
        step: int,
        pieces: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]],
        texts: Mapping[str, str],
    ) -> None:
        """In the thread: this process's files, then their entries; the first process waits for everyone's."""
        folder, rank = self.folders.writing(step), self.accelerator.process_index
        folder.mkdir(parents=True, exist_ok=True)
        entries: Entries = {}
        for name, content in pieces.items():
            entries[name] = write_checked(folder / name, partial(torch.save, content))
        for name, held in tensors.items():
            write_tensors(folder / name, held)
            entries[name] = entry_of(folder / name)
        for name, text in texts.items():
            entries[name] = write_checked(folder / name, partial(_write_text, text))
        for name in entries:
            flush_file(folder / name)
        if self.accelerator.num_processes > 1:
            part = folder / f".{_PART.format(rank)}"
            part.write_text(json.dumps(entries), encoding="utf-8")
            part.rename(folder / _PART.format(rank))  # complete or not there: the first process looks for it
        if self.accelerator.is_main_process:
            self.folders.commit(step, self._everyones_entries(folder, entries))

    def _everyones_entries(self, folder: Path, own: Entries) -> Entries:
        """What all processes wrote. No messages: the training's own are on their way meanwhile."""
        found, ends = dict(own), time.monotonic() + self.patience
        for rank in range(self.accelerator.num_processes if self.accelerator.num_processes > 1 else 0):
            part = folder / _PART.format(rank)
            while not part.is_file():
                if time.monotonic() > ends:
                    raise TimeoutError(f"process {rank} did not write its part within {self.patience:.0f} s")
                time.sleep(0.02)
            found |= json.loads(part.read_text(encoding="utf-8"))
            part.unlink()
        return found


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def without_layout(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without what says on how many processes, in which precision and on which engine."""
    return {name: value for name, value in identity.items() if name not in LAYOUT}


def refuse_other_engine(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """UserError where a checkpoint cannot be read on another number of processes: DeepSpeed's is in shards."""
    sharded = str(before.get("engine")) != "torch" and before.get("processes") != now["processes"]
    if sharded or before.get("engine") != now["engine"]:
        raise UserError(
            f"{path} is of {before.get('engine')} on {before.get('processes')} processes, this is {now['engine']} on "
            f"{now['processes']}; --elastic goes from one number of processes to another without DeepSpeed alone. "
            f"Launch as before, or begin a new run from its weights: name=... start_from={path}"
        )


def refuse_difference(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """UserError that names the first fields in which two identities differ.

    A recipe field that `before` does not know is younger than that run, which did what is the field's default today.
    """
    # Images are known by content, and may lie elsewhere than they did; of older runs only the place is known.
    place = {name for name in {*before, *now} if name.split(".")[:2] == ["data", "train"]}
    passed_over = place if "images" in before else {"images"}
    known = {name: default_of(name) for name in now} | dict(before)
    changed = [
        f"{name}: {before.get(name, 'absent')!r} -> {now.get(name, 'absent')!r}"
        for name in sorted({*before, *now} - passed_over)
        if known[name] != now.get(name, "absent")
    ]
    if changed:
        more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        raise UserError(
            f"{where} was made by another run: {'; '.join(changed[:3])}{more}. "
            "Put it back, choose another name=..., or delete the folder"
        )


def _write_text(text: str, file: IO[bytes]) -> None:
    file.write(text.encode())
