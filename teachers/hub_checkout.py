"""`torch_hub:FOLDER:ENTRY`: a model of a local torch.hub checkout, a clone with a hubconf.py, as DINOv3 and RADIO have.

The checkout's own code runs, so the recipe must say `trust_remote_code: true`, as for code from a hub repository.

    backbone: {spec: torch_hub:~/src/dinov3:dinov3_vitl16, trust_remote_code: true, output: dino, image_size: 512,
               patch_size: 16, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], weights: dinov3_vitl16.pth,
               model_args: {pretrained: false}}
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from teachers.contracts import Features
from teachers.library import (
    Facts,
    LibraryBackbone,
    Tower,
    as_channels,
    as_size,
    check_choice,
    finish,
    measure,
    to_map,
)
from teachers.remote_code import RemoteTower
from teachers.weights import loading, read_state


class DinoTower(Tower):
    """A model with DINOv2's and DINOv3's methods: `forward_features` gives tokens by name, blocks can be asked for."""

    def __init__(self, model: nn.Module, summary: str, spatial: str, patch: int) -> None:
        super().__init__()
        self.model = model
        self.summary = summary
        self.spatial = spatial
        self.patch = patch

    def forward(self, pixels: Tensor) -> Features:
        """[B, 3, H, W] -> Features."""
        found = self.model.forward_features(pixels)
        grid = (pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        tokens = found["x_norm_patchtokens"]
        if self.spatial == "last_block":  # with class token and registers in front
            tokens = found["x_prenorm"][:, -tokens.shape[1] :]
        return Features(None if self.summary == "none" else found["x_norm_clstoken"], to_map(tokens, 0, grid))

    def block_maps(self, pixels: Tensor, blocks: Sequence[int] | None) -> list[Tensor]:
        """[B, 3, H, W] -> [B, C, h, w] after each block, before the final norm."""
        wanted = list(range(self.model.n_blocks)) if blocks is None else sorted(set(blocks))
        maps = self.model.get_intermediate_layers(pixels, n=wanted, reshape=True, norm=False)
        return [maps[wanted.index(block)] for block in (wanted if blocks is None else blocks)]


OUTPUTS: dict[str, tuple[type[Any], tuple[str, ...], tuple[str, ...]]] = {
    "dino": (DinoTower, ("cls", "none"), ("final", "last_block")),
    "pair": (RemoteTower, ("pooled", "none"), ("final",)),
}


def load(
    name: str,
    output: str,
    image_size: int | Sequence[int],
    patch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    trust_remote_code: bool = False,
    weights: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    resizable: bool = True,
    summary: str | None = None,
    spatial: str | None = None,
    licence: str = "unknown",
) -> LibraryBackbone:
    """The model that ENTRY of the checkout's hubconf.py makes.

    Args:
        name: FOLDER:ENTRY.
        output: "dino" (DINOv2's and DINOv3's methods) or "pair" (RADIO: it returns (summary, tokens)).
        image_size, patch_size, mean, std: nothing in a checkout says these.
        weights: a file to load into what ENTRY makes; then `model_args` should keep ENTRY from fetching its own.
        model_args: arguments of ENTRY.
        summary, spatial: "cls" or "pooled", or "none"; "final" or, of "dino", "last_block" (before the final norm).

    Raises UserError without trust_remote_code, for a folder or entry that is not there, for weights that do not fit.
    """
    path, entry = _split(name, trust_remote_code)
    kind, summary, spatial = _outputs(output, summary, spatial)
    warnings.warn(f"running the code of {path}", stacklevel=2)
    model = _make(path, entry, dict(model_args or {}), weights)
    facts = Facts(
        name=f"torch_hub:{name}",
        library="torch_hub",
        patch_size=patch_size,
        native_size=as_size(image_size),
        resizable=resizable,
        mean=as_channels(mean, "mean"),
        std=as_channels(std, "std"),
        licence=licence,
        source=weights or str(path),
        other_sizes="any multiple of the patch, says its recipe" if resizable else "one size only, says its recipe",
        reads=spatial,
    )
    tower = kind(model.eval(), summary, spatial, patch_size)
    return finish(facts, measure(tower, facts), tower, None)


def _split(name: str, trusted: bool) -> tuple[Path, str]:
    """FOLDER:ENTRY -> the checkout's folder and ENTRY; UserError where its code is not there or may not run."""
    folder, _, entry = name.rpartition(":")
    path = Path(folder).expanduser()
    if not folder or not (path / "hubconf.py").is_file():
        raise UserError(f'"{name}" is no FOLDER:ENTRY with a hubconf.py in the folder')
    if not trusted:
        raise UserError(f"{path}/hubconf.py would run its own code; read it, then say trust_remote_code: true")
    return path, entry


def _outputs(output: str, summary: str | None, spatial: str | None) -> tuple[type[Any], str, str]:
    """The tower's class, its summary and its map; the first ones it has where none is named."""
    check_choice("output", output, tuple(OUTPUTS))
    kind, summaries, spatials = OUTPUTS[output]
    summary, spatial = summary or summaries[0], spatial or spatials[0]
    check_choice("summary", summary, summaries)
    check_choice("spatial", spatial, spatials)
    return kind, summary, spatial


def _make(folder: Path, entry: str, arguments: dict[str, Any], weights: str | None) -> nn.Module:
    try:
        with loading(f"{folder}:{entry}", fetch=True):
            model = torch.hub.load(str(folder), entry, source="local", verbose=False, **arguments)
    except UserError as error:
        if "Cannot find callable" in str(error):
            raise UserError(f'{folder}/hubconf.py has no entry "{entry}"') from error
        raise
    if weights is not None:
        with loading(weights):
            model.load_state_dict(read_state(weights))
    return model
