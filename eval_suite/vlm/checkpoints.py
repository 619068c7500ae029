"""Where a training stands: what learns, and the optimiser's state. Written to a temporary name, then renamed."""

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.errors import UserError
from eval_suite.vlm.model import Llava

WEIGHTS, OPTIMISER, STATE = "learned.safetensors", "optimiser.pt", "progress.json"


@dataclass(frozen=True)
class Progress:
    """Stage, and how many of its steps are done; "" before the first."""

    stage: str
    step: int


class Checkpoints:
    """The latest checkpoint in a folder; what is being written is never seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.latest = folder / "latest"

    def exists(self) -> bool:
        """Whether there is one."""
        return (self.latest / STATE).is_file()

    def reached(self) -> Progress:
        """Where the latest stands."""
        if not self.exists():
            return Progress("", 0)
        return Progress(**json.loads((self.latest / STATE).read_text(encoding="utf-8")))

    def save(self, model: Llava, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
        """Replace the latest checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".latest.", dir=self.folder))
        try:
            save_learned(model, partial / WEIGHTS)
            torch.save(optimiser.state_dict(), partial / OPTIMISER)
            (partial / STATE).write_text(json.dumps(asdict(progress)), encoding="utf-8")
            old = self.folder / ".old"
            shutil.rmtree(old, ignore_errors=True)
            if self.latest.exists():
                os.replace(self.latest, old)
            os.replace(partial, self.latest)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def load(self, model: Llava, optimiser: torch.optim.Optimizer | None) -> None:
        """Weights, and the optimiser's state where a stage goes on."""
        load_learned(model, self.latest / WEIGHTS)
        if optimiser is not None:
            optimiser.load_state_dict(torch.load(self.latest / OPTIMISER, map_location=model.device, weights_only=True))


def save_learned(model: Llava, path: Path) -> None:
    """What some stage trains, as safetensors."""
    save_file({name: weight.detach().cpu().contiguous() for name, weight in model.learned().items()}, path)


@torch.no_grad()
def load_learned(model: Llava, path: Path) -> None:
    """The inverse of `save_learned`; UserError for a damaged file or one of another recipe."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete its folder and train again") from error
    wanted = model.learned()
    if set(found) != set(wanted) or any(found[name].shape != wanted[name].shape for name in wanted):
        raise UserError(f"{path} holds the weights of another recipe; delete its folder or name another one")
    for name, weight in wanted.items():
        weight.copy_(found[name])
