"""Training state on disk: a checkpoint is complete or not there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.atomic import remove_leftovers, replacing_file
from common.errors import UserError

_PATTERN = "step-????????.pt"


class Checkpoints:
    """The newest `keep` checkpoints in a folder. `identity` describes the run; another run's are refused."""

    def __init__(self, folder: Path, identity: str, *, keep: int) -> None:
        self.folder, self.identity, self.keep = folder, identity, keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after `step` steps, then remove the oldest. UserError when the disk will not take it."""
        path = self.folder / f"step-{step:08d}.pt"
        remove_leftovers(self.folder)
        try:
            with replacing_file(path) as temporary:
                torch.save({"step": step, "identity": self.identity, "state": state}, temporary)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise UserError(f"cannot write {path}: {error}; earlier checkpoints are untouched") from error
        for old in self._existing()[: -self.keep]:
            old.unlink()
        return path

    def restore(self, load: Callable[[dict[str, Any]], None]) -> int:
        """Give the newest state to `load` and return its step; 0 when there is none."""
        existing = self._existing()
        if not existing:
            return 0
        path = existing[-1]
        try:
            data = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file makes the unpickler raise
            raise UserError(f"{path} is damaged ({error}); remove it to go on from the one before") from error
        if not isinstance(data, dict) or not {"identity", "state", "step"} <= data.keys():
            raise UserError(f"{path} is no checkpoint of a training run; move it elsewhere or choose another `out`")
        if data["identity"] != self.identity:
            raise UserError(f"{self.folder} holds checkpoints of another recipe or teacher; choose another `out`")
        load(data["state"])
        return int(data["step"])

    def _existing(self) -> list[Path]:
        return sorted(self.folder.glob(_PATTERN))
