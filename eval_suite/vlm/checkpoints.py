"""Where a training stands: what learns, and the optimiser's state."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from common.atomic import recover, replacing_folder
from common.errors import UserError
from common.json_files import read_json_object, write_json
from common.tensor_files import write_tensors
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
        return (recover(self.latest) / STATE).is_file()

    def reached(self) -> Progress:
        """Where the latest stands."""
        if not self.exists():
            return Progress("", 0)
        return Progress(**read_json_object(self.latest / STATE))

    def save(self, model: Llava, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
        """Replace the latest checkpoint."""
        with replacing_folder(self.latest) as new:
            write_tensors(new / WEIGHTS, model.learned())
            torch.save(optimiser.state_dict(), new / OPTIMISER)
            write_json(new / STATE, asdict(progress))

    def load(self, model: Llava, optimiser: torch.optim.Optimizer | None) -> None:
        """Weights, and the optimiser's state where a stage goes on."""
        load_learned(model, self.latest / WEIGHTS)
        if optimiser is not None:
            optimiser.load_state_dict(torch.load(self.latest / OPTIMISER, map_location=model.device, weights_only=True))


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
