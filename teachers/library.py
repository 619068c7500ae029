"""What the library loaders share: a library's model as a Backbone, its widths measured on the meta device, not guessed.

Shape letters: B batch, S summary width, C spatial width, h w token grid, H W pixels.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError, unknown
from teachers.contracts import Backbone, BackboneSpec, Features, capability, check_size, state_digest
from teachers.known import licence_of

RANDOM = "random initialisation"
Size = tuple[int, int]
TextEncoder = Callable[[list[str]], Tensor]


class Tower(nn.Module, ABC):
    """A library's model, reduced to what a Backbone needs. Takes pixels that are normalised already."""

    model: Any  #: the library's; what it has and does is its own

    @property
    def image_part(self) -> nn.Module:
        """The part of the model that sees images; all of it where there is nothing else."""
        return self.model

    def drop_text(self) -> None:
        """Let go of the part of the model that reads texts, where there is one."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> Features:
        """[B, 3, H, W] -> Features."""

    @abstractmethod
    def block_maps(self, pixels: Tensor, blocks: Sequence[int] | None) -> list[Tensor]:
        """[B, 3, H, W] -> [B, C, h, w] of each block (None: of all), before the final norm."""


@dataclass(frozen=True)
class Facts:
    """What a loader read from the library's own configuration."""

    name: str
    library: str
    patch_size: int
    native_size: Size
    resizable: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    source: str
    other_sizes: str  #: how the model takes other sizes than its native one, in words
    reads: str  #: which map is the spatial one, and whatever else the weights do not tell


class LibraryBackbone(Backbone):
    """A tower with its normalisation, its facts, and the capabilities it has."""

    mean: Tensor
    std: Tensor

    def __init__(self, tower: Tower, spec: BackboneSpec, num_blocks: int, encode_text: TextEncoder | None) -> None:
        super().__init__()
        self.tower = tower
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)
        # A capability is there or it is not, so these are no methods of the class.
        if num_blocks:
            self.num_blocks = num_blocks
            self.intermediate = self._intermediate
        if encode_text is not None:
            self.encode_text = encode_text

    @property
    def image_part(self) -> nn.Module:
        """The part of the model that sees images."""
        return self.tower.image_part

    def drop_text(self) -> None:
        """Let go of the text tower: who shows it images only needs no room for it. Its facts stay the whole model's."""
        self.tower.drop_text()
        if capability(self, "encode_text"):
            self.encode_text = self._without_text

    def _without_text(self, texts: list[str]) -> Tensor:
        raise RuntimeError(f"the text tower of {self.spec.name} was let go of")

    def forward(self, images: Tensor) -> Features:
        """[B, 3, H, W] in [0, 1] -> Features; UserError for a size this model does not take."""
        check_size(self.spec, images)
        return self.tower((images - self.mean) / self.std)

    def _intermediate(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """[B, 3, H, W] in [0, 1] -> [B, C, h, w] after each of `blocks` (counted from 0), before the final norm."""
        check_size(self.spec, images)
        if any(not 0 <= block < self.num_blocks for block in blocks):
            raise UserError(f"{self.spec.name} has blocks 0..{self.num_blocks - 1}, asked for {list(blocks)}")
        return self.tower.block_maps((images - self.mean) / self.std, blocks)


def assemble(
    facts: Facts,
    build: Callable[[str], Tower],
    text_of: Callable[[Tower], TextEncoder | None],
    device: str,
) -> LibraryBackbone:
    """A Backbone from facts and `build(device)`, which must read weights on "cpu" and none on "meta"."""
    check_choice("device", device, ("cpu", "meta"))
    with without_warnings():
        scout = build("meta").eval()
    shapes = measure(scout, facts)
    tower = scout if device == "meta" else build("cpu").eval()
    with torch.device(device):
        return finish(facts, shapes, tower, text_of(tower))


def finish(facts: Facts, shapes: "Shapes", tower: Tower, encode_text: TextEncoder | None) -> LibraryBackbone:
    """The Backbone of a tower that was measured, its weights digested unless they are on the meta device."""
    meta = next(tower.parameters()).is_meta
    spec = BackboneSpec(
        name=facts.name,
        library=facts.library,
        patch_size=facts.patch_size,
        spatial_dim=shapes.spatial_dim,
        summary_dim=shapes.summary_dim,
        native_size=facts.native_size,
        resizable=facts.resizable,
        mean=facts.mean,
        std=facts.std,
        licence=facts.licence if facts.licence != "unknown" else licence_of(facts.name),
        source=facts.source,
        digest="meta" if meta else state_digest(tower.model),
        other_sizes=facts.other_sizes,
        reads=facts.reads,
    )
    return LibraryBackbone(tower, spec, shapes.num_blocks, encode_text).eval()


@dataclass(frozen=True)
class Shapes:
    spatial_dim: int
    summary_dim: int | None
    num_blocks: int


def measure(scout: Tower, facts: Facts) -> Shapes:
    """Widths and depth from forward passes where the tower is; UserError if its grid is not what the facts promise."""
    height, width = facts.native_size
    patch = facts.patch_size
    try:
        found = _forward(scout, facts.native_size)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"{facts.name} cannot run at {height}x{width} px: {facts.other_sizes}") from error
    grid = (height // patch, width // patch)
    if tuple(found.spatial.shape[-2:]) != grid:
        raise UserError(
            f"{facts.name} gives a {found.spatial.shape[-2]}x{found.spatial.shape[-1]} grid at {height}x{width} px, "
            f"which is no patch of {patch} px; name an image_size that is a multiple of it"
        )
    wider = (grid[0] * patch, (grid[1] + 1) * patch)  # one patch more in width must give one column more
    blocks = _blocks(scout, facts, wider if facts.resizable else facts.native_size)
    if facts.resizable:
        last = _forward(scout, wider).spatial
        if tuple(last.shape[-2:]) != (grid[0], grid[1] + 1):
            raise UserError(f"{facts.name} does not take sizes in steps of {patch} px; say resizable: false")
    summary_dim = None if found.summary is None else int(found.summary.shape[-1])
    return Shapes(int(found.spatial.shape[1]), summary_dim, len(blocks))


def _blocks(scout: Tower, facts: Facts, size: Size) -> list[Tensor]:
    """Every block's map at `size`; UserError where the model cannot run at it."""
    try:
        with torch.no_grad():
            return scout.block_maps(_nothing(scout, size), None)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{facts.name} takes one size only; say resizable: false, or leave it out") from error


def _forward(scout: Tower, size: Size) -> Features:
    with torch.no_grad():
        return scout(_nothing(scout, size))


def _nothing(scout: Tower, size: Size) -> Tensor:
    """Pixels [1, 3, *size] on the scout's device."""
    return torch.zeros(1, 3, *size, device=next(scout.parameters()).device)


def to_map(tokens: Tensor, prefix: int, grid: Size) -> Tensor:
    """Tokens [B, prefix + h*w, C] -> [B, C, h, w]."""
    patches = tokens[:, prefix:]
    return patches.reshape(len(tokens), *grid, -1).permute(0, 3, 1, 2).contiguous()


def as_size(value: Any, option: str = "image_size") -> Size:
    """An int, or [height, width], as a size in pixels."""
    pair = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(pair, Sequence)
        or isinstance(pair, str)
        or len(pair) != 2
        or not all(isinstance(side, int) and side > 0 for side in pair)
    ):
        raise UserError(f"{option} is a number of pixels or [height, width], got {value!r}")
    return (pair[0], pair[1])


def as_channels(value: Any, option: str) -> tuple[float, ...]:
    """Three numbers, as the mean or std of RGB in [0, 1]."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3:
        raise UserError(f"{option} is three numbers, one per RGB channel in [0, 1], got {value!r}")
    return tuple(float(number) for number in value)


def check_choice(option: str, value: str, known: Sequence[str]) -> None:
    """UserError when an option has a value that is not one of `known`."""
    if value not in known:
        raise unknown(f"value of {option}", str(value), known)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Without the libraries' notes about untrained models, which are true of every meta build and say nothing."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
