"""Upsamplers whose code and weights stay with their authors: loaded from a checkout that the user has, when told to.

Nothing is downloaded here and nothing is run without being asked for. What a torch.hub entry point itself does when it
is called, such as fetching its weights, is its own doing.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from common.errors import UserError
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.parts import pool_guidance

#: Consent for adapter folders: what a folder says of itself is never consent, it may come from anywhere.
CONSENT = "ADAPTER_TRUST_REMOTE_CODE"
#: `checkout` that means: where `torch.hub.load` has put the repository.
HUB = "hub"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Largest side of the image, in sides of the target.
CAP = 4


class CheckoutUpsampler(Upsampler):
    """An encoder-agnostic upsampler of others. Their model takes (image, features, size); images as ImageNet's.

    It runs on features as the adapter's normaliser leaves them. Its authors trained it on raw features, so that
    `normaliser: none` is how they use it. It comes with weights, so they are frozen unless `finetune`; they are saved
    with the adapter either way, and only the code is needed again.
    """

    repository: str  #: OWNER/NAME on GitHub
    licence: str
    limits: str = ""  #: what its code cannot do, for messages

    def __init__(
        self,
        *,
        dim: int,
        factor: int,
        grid: tuple[int, int],
        entry: str,
        checkout: str | None,
        trust_remote_code: bool,
        weights: str | None,
        finetune: bool,
    ) -> None:
        super().__init__(dim=dim, factor=factor, grid=grid)
        folder = self._find(checkout)
        if not (trust_remote_code or os.environ.get(CONSENT) == "1"):
            raise UserError(
                f"{folder} holds code of others ({self.repository}, {self.licence}); to run it set "
                f"options.trust_remote_code=true, or {CONSENT}=1 in the environment to load a saved adapter"
            )
        # A recipe is checked on the meta device, where weights cannot be read.
        with torch.device("cpu"):
            self.model = run_entry(folder, entry, pretrained=weights is None)
        if weights is not None:
            load_weights(self.model, Path(weights))
        self.finetune = finetune
        self.model.requires_grad_(finetune)

    def train(self, mode: bool = True) -> "CheckoutUpsampler":
        super().train(mode)
        self.model.train(mode and self.finetune)
        return self

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        size = (low.shape[-2] * self.factor, low.shape[-1] * self.factor)
        mean, std = (guidance.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        pixels = (pool_guidance(guidance, size, CAP) - mean) / std
        try:
            fine = self.model(pixels, low, size)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the code of others may raise anything
            what = f"{low.shape[-2]}x{low.shape[-1]} tokens {self.factor} times"
            raise UserError(f"{self.repository} cannot upsample {what}: {_first_line(error)}{self.limits}") from error
        expected = (*low.shape[:2], *size)
        if tuple(fine.shape) != expected:
            raise UserError(f"{self.repository} gave features {tuple(fine.shape)}, expected {expected}")
        return fine

    def _find(self, checkout: str | None) -> Path:
        """The folder with `hubconf.py`."""
        get = f"git clone https://github.com/{self.repository}, and name its folder in options.checkout"
        if checkout is None:
            raise UserError(f"the code of {self.repository} ({self.licence}) is not part of this package: {get}")
        folder = _hub_folder(self.repository, get) if checkout == HUB else Path(checkout)
        if not (folder / "hubconf.py").is_file():
            raise UserError(f"no checkout of {self.repository} at {folder} (no hubconf.py there): {get}")
        return folder.resolve()


def _hub_folder(repository: str, get: str) -> Path:
    """Where torch.hub keeps OWNER/NAME: OWNER_NAME_BRANCH."""
    found = sorted(Path(torch.hub.get_dir()).glob(f"{repository.replace('/', '_')}_*"))
    if len(found) != 1:
        names = ", ".join(str(path) for path in found) or "none"
        raise UserError(f"one checkout of {repository} was expected in the torch.hub cache, found {names}: {get}")
    return found[0]


def run_entry(folder: Path, entry: str, *, pretrained: bool) -> nn.Module:
    """Call a torch.hub entry point of a local folder; UserError, in one line, for whatever goes wrong in there."""
    try:
        model: Any = torch.hub.load(str(folder), entry, source="local", pretrained=pretrained)
    except Exception as error:  # the code of others may raise anything
        raise UserError(
            f'the entry point "{entry}" of {folder} failed: {_first_line(error)} '
            "(weights that it cannot fetch can be named in options.weights)"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(f'the entry point "{entry}" of {folder} gives a {type(model).__name__}, not a model')
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Read a .safetensors file, or a torch file of plain tensors (no code in it is run)."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror or error}") from error
    except (SafetensorError, UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged, or holds more than tensors: it was not read") from error
    try:
        with torch.device("cpu"):
            model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"the weights {path} do not fit the model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
