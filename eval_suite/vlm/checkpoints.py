"""Where a training stands: what learns, and the optimiser's state; whole or not used (common/step_folders.py)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from common.atomic import remove
from common.checksums import entry_of, write_checked
from common.errors import UserError
from common.json_files import read_json_object
from common.step_folders import StepFolders
from common.tensor_files import write_tensors
from eval_suite.vlm.model import Llava

WEIGHTS, OPTIMISER, STATE = "learned.safetensors", "optimiser.pt", "progress.json"


@dataclass(frozen=True)
class Progress:
    """Stage, and how many of its steps are done; "" before the first."""

    stage: str
    step: int


class Checkpoints:
    """The newest two checkpoints of a training, and the newest whole one of them, looked for once.

    training: the digest of what decides the weights; a checkpoint of another training is refused.
    before: by stage, the steps of the stages before it, which number the checkpoints; only writers need it.
    """

    def __init__(self, folder: Path, training: str, before: Mapping[str, int] | None = None) -> None:
        self.folders, self.before = StepFolders(folder / "checkpoints", keep=2), before or {}
        self.training = training

    @cached_property
    def newest(self) -> Path | None:
        """The newest whole one, None where there is none; damage is said."""
        return self.folders.newest_whole()

    def reached(self) -> Progress:
        """Where the newest stands. UserError where another training wrote it."""
        if self.newest is None:
            return Progress("", 0)
        state = read_json_object(self.newest / STATE)
        if state.pop("training", self.training) != self.training:  # of before it was written down: only the card says
            raise UserError(f"{self.newest} is of another training; remove it from {self.folders.folder}")
        return Progress(**state)

    def save(self, model: Llava, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
        """Write another one. UserError when the disk will not take it, or a weight is NaN or infinite."""
        learned, number = model.learned(), self.before[progress.stage] + progress.step
        if not all(bool(torch.isfinite(weight).all()) for weight in learned.values()):
            raise UserError(f"vlm {progress.stage}: weights are NaN or infinite after step {progress.step}; not saved")
        new = self.folders.writing(number)
        try:
            text = json.dumps(asdict(progress) | {"training": self.training}).encode()
            entries = {
                STATE: write_checked(new / STATE, lambda file: file.write(text)),
                OPTIMISER: write_checked(new / OPTIMISER, lambda file: torch.save(optimiser.state_dict(), file)),
            }
            write_tensors(new / WEIGHTS, learned)
            entries[WEIGHTS] = entry_of(new / WEIGHTS)
            self.newest = self.folders.commit(number, entries)
        except (OSError, RuntimeError, SafetensorError) as error:
            remove(new)
            raise UserError(
                f"cannot write {self.folders.path(number)}: {error}; the one before is untouched"
            ) from error

    def load(self, model: Llava, optimiser: torch.optim.Optimizer | None) -> None:
        """Weights, and the optimiser's state where a stage goes on."""
        assert self.newest is not None
        load_learned(model, self.newest / WEIGHTS)
        if optimiser is not None:
            state = torch.load(self.newest / OPTIMISER, map_location=model.device, weights_only=True)
            optimiser.load_state_dict(state)


@torch.no_grad()
def load_learned(model: Llava, path: Path) -> None:
    """Read what some stage trained into the model; UserError for a damaged file or one of another recipe."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete its folder and train again") from error
    wanted = model.learned()
    if set(found) != set(wanted) or any(found[name].shape != wanted[name].shape for name in wanted):
        raise UserError(f"{path} holds the weights of another recipe; delete its folder or name another one")
    for name, weight in wanted.items():
        weight.copy_(found[name])
