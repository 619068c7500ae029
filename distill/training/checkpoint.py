"""Checkpoints that are either complete or not there, and resume that is equality.

    checkpoints/step-00000500/state.json          step, and the identity of the run
                              targets.safetensors the normalisers
                              rank-0.json         where this rank is in the data
                              engine/             weights, moments, random states (files of Accelerate or DeepSpeed)
                              NAME.safetensors    whatever else was registered under a name

All is written under another name, flushed to the disk, and only then renamed: a kill or a full disk in the middle
leaves the previous checkpoint as it was.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.atomic import WRITING, exchange_folder, recover_all, remove
from common.errors import UserError
from common.tensor_files import write_tensors
from distill.recipe import default_of

PREFIX = "step-"
REMOVING = ".removing-"


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

    def __init__(self, folder: Path, accelerator: Accelerator, identity: Mapping[str, Any], keep: int) -> None:
        self.folder = folder
        self.accelerator = accelerator
        self.identity = dict(identity)
        self.keep = keep
        self._holders: dict[str, Holder] = {}

    def register(self, name: str, holder: Holder) -> None:
        """Save and restore `holder` too, as NAME.safetensors. All processes ask it for its state; the first writes."""
        if name in self._holders or name == "targets":
            raise ValueError(f"there is a {name} already")
        self._holders[name] = holder

    def save(self, step: int, stream: DataPosition, targets: Mapping[str, Tensor]) -> Path:
        """Write the state after `step` updates. UserError if it cannot be written; the previous one stays valid."""
        final, temporary = self.folder / f"{PREFIX}{step:08d}", self.folder / f"{WRITING}{step:08d}"
        try:
            self._write(temporary, step, stream, targets)
        except (OSError, RuntimeError, SafetensorError) as error:
            remove(temporary)
            latest = self.latest()
            kept = f"{latest} is complete" if latest else "there was none before"
            raise UserError(f"cannot write checkpoint {final}: {error}. {kept}; start again to go on") from error
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            exchange_folder(temporary, final)
            remove(temporary)
            self._prune()
        self.accelerator.wait_for_everyone()
        return final

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        recover_all(self.folder)
        return max(self.folder.glob(f"{PREFIX}*"), default=None)

    def read_state(self, path: Path) -> int:
        """The step of a checkpoint, after checking that it belongs to this very run; UserError names what differs."""
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        refuse_difference(state["identity"], self.identity, str(path))
        return int(state["step"])

    def read_targets(self, path: Path) -> dict[str, Tensor]:
        """The normalisers' state, on the CPU."""
        return load_file(path / "targets.safetensors")

    def restore(self, path: Path) -> None:
        """Put weights, moments and random states back as they were."""
        self.accelerator.load_state(str(path / "engine"))
        for name, holder in self._holders.items():
            holder.load_state_dict(load_file(path / f"{name}.safetensors"))

    def restore_position(self, path: Path, stream: DataPosition) -> None:
        """Put this process's place in the data back as it was."""
        rank = path / f"rank-{self.accelerator.process_index}.json"
        stream.load_state_dict(json.loads(rank.read_text(encoding="utf-8")))

    def _write(self, temporary: Path, step: int, stream: DataPosition, targets: Mapping[str, Tensor]) -> None:
        main = self.accelerator.is_main_process
        if main:
            remove(temporary)
            (temporary / "engine").mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary / "engine"))
        rank = temporary / f"rank-{self.accelerator.process_index}.json"
        rank.write_text(json.dumps(stream.state_dict()), encoding="utf-8")
        named = {"targets": targets} | {name: holder.state_dict() for name, holder in self._holders.items()}
        if main:
            for name, tensors in named.items():
                write_tensors(temporary / f"{name}.safetensors", tensors)
            state = {"step": step, "identity": self.identity}
            (temporary / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")

    def _prune(self) -> None:
        for old in sorted(self.folder.glob(f"{PREFIX}*"))[: -self.keep]:
            # Renamed first: a kill while files disappear must not leave half a checkpoint under its own name.
            doomed = old.rename(self.folder / f"{REMOVING}{old.name}")
            remove(doomed)


def refuse_difference(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """UserError that names the first fields in which two identities differ.

    A recipe field that `before` does not know is younger than that run, which did what is the field's default today.
    """
    known = {name: default_of(name) for name in now} | dict(before)
    changed = [
        f"{name}: {before.get(name, 'absent')!r} -> {now.get(name, 'absent')!r}"
        for name in sorted({*before, *now})
        if known[name] != now.get(name, "absent")
    ]
    if changed:
        more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        raise UserError(
            f"{where} was made by another run: {'; '.join(changed[:3])}{more}. "
            "Put it back, choose another name=..., or delete the folder"
        )
