"""A backbone that is only ever looked at: frozen, in eval mode, in memory-bounded pieces."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from common.errors import UserError
from teachers.contracts import Adaptor, Backbone, BackboneSpec, Features, capability, chunked

MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class FrozenBackbone(Backbone):
    """`backbone` for ever in eval mode and without gradients; the same features, in float32.

    Args:
        dtype: None, or the type to autocast to; a name of `DTYPES` or the torch dtype. The matrices that autocast
            would turn into it in every forward are held in it, in place: the same bits in half the memory. Norms,
            tokens, positions and what is sensitive stay in float32.
        chunk: images per forward pass at most, so that many tiles need no more memory than `chunk` of them.
        compiled: by torch.compile, in place, on the first images of each size: features differ by rounding.

    It has `intermediate`, `num_blocks`, `encode_text` and `adaptor` if and only if `backbone` has them.
    """

    def __init__(
        self, backbone: Backbone, dtype: torch.dtype | str | None = None, chunk: int = 64, *, compiled: bool = False
    ) -> None:
        super().__init__()
        if chunk < 1:
            raise UserError(f"chunk is a number of images, got {chunk}")
        if isinstance(dtype, str) and dtype not in DTYPES:
            raise UserError(f'dtype is one of {", ".join(DTYPES)} or nothing, got "{dtype}"')
        self.backbone = backbone.requires_grad_(False).eval()
        self.spec = backbone.spec
        self.dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
        self.chunk = chunk
        if self.dtype is not None:
            hold_matrices(getattr(backbone, "image_part", backbone), self.dtype)
        self.node = {"frozen": backbone.node, "dtype": str(self.dtype), "chunk": chunk}
        if compiled:
            backbone.compile(dynamic=False)
            self.node["compiled"] = True
        if capability(backbone, "intermediate"):
            self.intermediate = self._intermediate
            self.num_blocks = backbone.num_blocks
        if capability(backbone, "encode_text"):
            self.encode_text = self._encode_text
        if capability(backbone, "adaptor"):
            self.adaptor = self._adaptor

    def train(self, mode: bool = True) -> "FrozenBackbone":
        """Stays in eval mode whatever is asked."""
        super().train(False)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "FrozenBackbone":
        """Stays without gradients whatever is asked."""
        super().requires_grad_(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """[N, 3, H, W] in [0, 1] -> Features in float32, `chunk` images at a time."""
        with self._casting(images.device):
            features = _float(chunked(self.backbone, images, self.chunk))
        check_widths(self.spec, features)
        return features

    @torch.no_grad()
    def _intermediate(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        with self._casting(images.device):
            parts = [self.backbone.intermediate(piece, blocks) for piece in images.split(self.chunk)]
        return [torch.cat(maps).float() for maps in zip(*parts, strict=True)]

    @torch.no_grad()
    def _encode_text(self, texts: list[str]) -> Tensor:
        device = next(self.backbone.parameters()).device
        with self._casting(device):
            return self.backbone.encode_text(texts).float()

    def _adaptor(self, name: str) -> Adaptor:
        return CastAdaptor(self.backbone.adaptor(name), self)

    @contextmanager
    def _casting(self, device: torch.device) -> Iterator[None]:
        """Autocast to `dtype`. Without torch's fast path for attention, which the CPU takes for bf16 and GPUs never."""
        if self.dtype is None:
            yield
            return
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.autocast(device.type, dtype=self.dtype):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)


def in_dtype(backbone: Backbone, dtype: str, chunk: int) -> Backbone:
    """The backbone as it is for float32, else frozen and in that dtype, `chunk` images at a time."""
    return backbone if dtype == "float32" else FrozenBackbone(backbone, dtype, chunk)


def dtype_of(backbone: Backbone) -> str:
    """What a backbone computes its matrix products in: "float32" unless it is frozen in another dtype."""
    dtype = backbone.dtype if isinstance(backbone, FrozenBackbone) else None
    return str(dtype or torch.float32).removeprefix("torch.")


class CastAdaptor:
    """A frozen backbone's adaptor: computes as the backbone does, answers in float32."""

    def __init__(self, adaptor: Adaptor, frozen: FrozenBackbone) -> None:
        self.name, self._adaptor, self._frozen = adaptor.name, adaptor, frozen
        if capability(adaptor, "encode_text"):  # by a network that is loaded as it is
            self.encode_text = adaptor.encode_text  # type: ignore[attr-defined]  # optional, and it is there

    @torch.no_grad()
    def project(self, features: Features) -> Features:
        """As the adaptor's own."""
        with self._frozen._casting(features.spatial.device):
            return _float(self._adaptor.project(features))


def hold_matrices(module: nn.Module, dtype: torch.dtype) -> None:
    """Round, in place, the weights and biases of linear layers and convolutions, as autocast does at each use of them.

    Only those: a layer that is no matrix product (a norm, a position) computes with its own type under autocast.
    """
    for layer in module.modules():
        names = ("weight", "bias") if isinstance(layer, MATRICES) else ()
        names = ("in_proj_weight", "in_proj_bias") if isinstance(layer, nn.MultiheadAttention) else names
        for parameter in (layer._parameters.get(name) for name in names):
            if parameter is not None and parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(dtype)


def _float(features: Features) -> Features:
    summary = None if features.summary is None else features.summary.float()
    return Features(summary, features.spatial.float())


def count_parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def check_widths(spec: BackboneSpec, features: Features) -> None:
    """UserError where a backbone gives something else than its spec promised to everybody behind it."""
    summary = None if features.summary is None else features.summary.shape[-1]
    given = {"spatial_dim": features.spatial.shape[1], "summary_dim": summary}
    wrong = {name: width for name, width in given.items() if width != getattr(spec, name)}
    if wrong:
        said = ", ".join(f"{name}={getattr(spec, name)} and gives {width}" for name, width in wrong.items())
        raise UserError(f"{spec.name} says {said}; teachers.conformance.check_backbone tries a backbone of one's own")
