"""Training state on disk: `checkpoints/step-00000500/state.pt`, whole or not used (common/step_folders.py)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.atomic import remove
from common.checksums import write_checked
from common.errors import UserError
from common.step_folders import StepFolders

STATE = "state.pt"


class Checkpoints:
    """The newest `keep` checkpoints in a folder. `identity` describes the run; another run's are refused."""

    def __init__(self, folder: Path, identity: str, *, keep: int) -> None:
        self.folders, self.identity = StepFolders(folder, keep), identity

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after `step` steps, then remove the oldest. UserError when the disk will not take it."""
        content = {"step": step, "identity": self.identity, "state": state}
        temporary = self.folders.writing(step)
        try:
            entry = write_checked(temporary / STATE, lambda file: torch.save(content, file))
            return self.folders.commit(step, {STATE: entry})
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            remove(temporary)
            raise UserError(
                f"cannot write {self.folders.path(step)}: {error}; earlier checkpoints are untouched"
            ) from error

    def restore(self, load: Callable[[dict[str, Any]], None]) -> int:
        """Give the newest whole state to `load` and return its step; 0 when there is none. Damage is said."""
        self.folders.tidy()
        path = self.folders.newest_whole()
        if path is None:
            return 0
        data = torch.load(path / STATE, map_location="cpu", weights_only=True)
        if data["identity"] != self.identity:
            raise UserError(
                f"{self.folders.folder} holds checkpoints of another recipe or teacher, or of other images; choose "
                "another `out`, or delete it"
            )
        load(data["state"])
        return int(data["step"])
