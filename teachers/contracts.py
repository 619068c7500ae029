"""The contract every backbone meets: teachers, students, sharpened teachers, plain library models.

Shape letters: B batch, S summary width, C spatial width, h w token grid, H W pixels.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError


class Features(NamedTuple):
    """What a backbone says of a batch: `summary` [B, S], None where the model has none, and `spatial` [B, C, h, w]."""

    summary: Tensor | None
    spatial: Tensor


@dataclass(frozen=True)
class BackboneSpec:
    """Facts about a backbone that the rest of the program may rely on; nothing is ever guessed from `name`."""

    name: str  #: e.g. "tiny:clip"; the short form that loads it, where there is one
    library: str  #: entry point that built it: timm, open_clip, transformers, tiny, sharp, run
    patch_size: int  #: pixels per token side
    spatial_dim: int  #: C
    summary_dim: int | None  #: S, None where the model has no summary
    native_size: tuple[int, int]  #: (height, width) in pixels it was made for
    resizable: bool  #: whether forward takes any size that is a multiple of the patch
    mean: tuple[float, ...]  #: normalisation the backbone applies itself, for the record
    std: tuple[float, ...]
    licence: str  #: of the weights; "unknown" when nobody says
    source: str  #: where the weights came from
    digest: str  #: "sha256:..." of the weights
    other_sizes: str = ""  #: how it takes other sizes than the native one, in words; "" where its loader does not say
    #: what of the network `spatial` is, where that is a choice ("level:2"): weights do not tell; None: nobody says
    reads: str | None = None

    @property
    def native_grid(self) -> tuple[int, int]:
        """Token rows and columns at the native size."""
        return self.native_size[0] // self.patch_size, self.native_size[1] // self.patch_size

    def to_dict(self) -> dict[str, Any]:
        """As JSON; without `reads` where a library has nothing to say, so that what is known of it keeps its digest."""
        facts = asdict(self)
        return facts if self.reads is not None else {name: value for name, value in facts.items() if name != "reads"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "BackboneSpec":
        tuples = {key: tuple(data[key]) for key in ("native_size", "mean", "std")}
        return cls(**{**data, **tuples})


class Backbone(nn.Module, ABC):
    """images [B, 3, H, W] in [0, 1] -> Features. It normalises for itself; nobody outside ever does.

    Optional capabilities are plain methods that exist or do not; ask with `capability(backbone, name)`:
      intermediate(images, blocks) -> list of [B, C, h, w], with `num_blocks: int` beside it
      encode_text(list[str]) -> [N, S], in the space of this backbone's summary
      adaptor(name) -> Adaptor, a student's head into one teacher's space
    """

    spec: BackboneSpec
    # Types of the optional ones, for who has asked: without a value, they are no attributes.
    intermediate: Callable[[Tensor, Sequence[int]], list[Tensor]]
    num_blocks: int
    encode_text: Callable[[list[str]], Tensor]
    adaptor: Callable[[str], "Adaptor"]
    node: Any = None  #: what `load_backbone` made it from, as plain data; None where it was made by hand

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """[B, 3, H, W] in [0, 1] -> Features; UserError when the size is one the backbone cannot take."""


def identity_of(backbone: Backbone) -> dict[str, Any]:
    """All that decides what a backbone answers, as plain data: facts, weights, and the options it was made with.

    Two networks of the same weights (another depth is read, other positions, another attention) differ in their node.
    """
    return {"spec": backbone.spec.to_dict(), "node": backbone.node}


class Adaptor(Protocol):
    """A student's head into a teacher's space. `encode_text` may be absent, as on a Backbone."""

    name: str

    def project(self, features: Features) -> Features:
        """Student features [B, S], [B, C, h, w] -> the teacher's summary and spatial features, in its raw units."""
        ...


def capability(thing: object, name: str) -> Callable[..., Any] | None:
    """The optional method `name` of a backbone or adaptor, or None where it has none."""
    method = getattr(thing, name, None)
    return method if callable(method) else None


def check_size(spec: BackboneSpec, images: Tensor) -> None:
    """UserError unless images [B, 3, H, W] have a size the backbone declares it can take."""
    size = (int(images.shape[-2]), int(images.shape[-1]))
    if size == tuple(spec.native_size):  # which need be no multiple of the patch: SigLIP's 384 with 14 is none
        return
    if spec.resizable:
        if size[0] % spec.patch_size or size[1] % spec.patch_size or 0 in size:
            raise UserError(
                f"{spec.name} takes sizes that are multiples of {spec.patch_size} px, got {size[0]}x{size[1]}"
            )
    else:
        how = f" ({spec.other_sizes})" if spec.other_sizes else ""
        raise UserError(
            f"{spec.name} takes {spec.native_size[0]}x{spec.native_size[1]} px only{how}, got {size[0]}x{size[1]}; "
            "resize the images or sharpen the teacher"
        )


def resize_images(images: Tensor, size: tuple[int, int], *, antialias: bool = True) -> Tensor:
    """[B, 3, H, W] -> [B, 3, *size], bilinear and antialiased; as it is when the size already fits."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=antialias)


def fit_images(images: Tensor, spec: BackboneSpec) -> Tensor:
    """Images as the backbone can take them: the native size if it is fixed, else each side rounded to the patch."""
    if not spec.resizable:
        return resize_images(images, spec.native_size)
    patch = spec.patch_size
    height, width = (max(patch, round(side / patch) * patch) for side in images.shape[-2:])
    return resize_images(images, (height, width))


def state_digest(state: Mapping[str, Tensor] | nn.Module) -> str:
    """ "sha256:..." over names, dtypes, shapes and bytes of the tensors, in name order."""
    tensors = state.state_dict() if isinstance(state, nn.Module) else state
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return f"sha256:{digest.hexdigest()}"


def chunked(function: Callable[[Tensor], Features], images: Tensor, chunk: int) -> Features:
    """`function` over `images` [N, 3, H, W] in pieces of at most `chunk`; same result, bounded memory."""
    if len(images) <= chunk:
        return function(images)
    parts: Sequence[Features] = [function(piece) for piece in images.split(chunk)]
    summaries = [part.summary for part in parts if part.summary is not None]
    return Features(torch.cat(summaries) if summaries else None, torch.cat([part.spatial for part in parts]))
