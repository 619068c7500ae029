"""Linear layers whose weight is scaled (spectral reparametrisation) or shaken (DAMP) on its way to the product.

Spectral: W_eff = W (softplus(s) + 0.05) / (sigma(W) + 1e-6), so that the largest singular value is a parameter of its
own, which decays as a weight does (RADIO trains so in all stages; after sigma-Reparam, arXiv 2303.06296). It starts at
the weight's own sigma, so that nothing changes at the start. sigma comes from power iteration, one step an update.
Query, key and value have a scale each, and so have the halves of a gated layer. What is exported is W_eff.

DAMP (arXiv 2406.16540): a training forward uses W * xi with xi ~ N(1, damp^2) for every number of W, drawn anew for
every forward and process.
"""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from timm.layers import GluMlp
from torch import Tensor, nn

from common.keyed_tensors import normal
from featsharp_adapter.model.spectral import EPSILON, FIRST_ITERATIONS, FLOOR

SCALE, LEFT, RIGHT = "spectral_scale", "spectral_left", "spectral_right"


class ReparametrisedLinear(nn.Linear):
    """A plain linear layer in evaluation (but for its spectral scale), with the names of one in a state dict."""

    spectral_left: Tensor
    spectral_right: Tensor

    def __init__(self, layer: nn.Linear, *, parts: int, spectral: bool, damp: float, index: int) -> None:
        bias = layer.bias is not None
        super().__init__(layer.in_features, layer.out_features, bias=bias, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.parts, self.damp, self.index = parts, damp, index
        self.update = 0  #: told by the student; sigma takes a step when it changes
        self.key: int | None = None  #: of the forward this belongs to
        self._iterated: int | None = None
        self.spectral_scale: nn.Parameter | None = None
        if spectral:
            self._begin_spectral()

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(tokens, self._weight(), self.bias)

    @torch.compiler.disable  # keys and updates change all the time
    def _weight(self) -> Tensor:
        weight = self.weight
        # Autocast would round sigma, a sum over the whole weight, to bf16. (There is none on the meta device.)
        with nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False):
            if self.spectral_scale is not None:
                if self.training and self._iterated != self.update:
                    self._iterate(1)
                    self._iterated = self.update
                weight = effective_weight(
                    weight, self.spectral_scale, self.spectral_left.clone(), self.spectral_right.clone()
                )
            if self.training and self.damp and self.key is not None:
                noise = normal(tuple(weight.shape), weight.device, self.key, self.index)
                weight = weight * (1 + self.damp * noise)
        return weight

    @torch.no_grad()
    def _begin_spectral(self) -> None:
        device = self.weight.device
        pieces = (self.parts, self.out_features // self.parts)
        self.register_buffer(LEFT, F.normalize(torch.ones(pieces, device=device), dim=1))
        self.register_buffer(RIGHT, torch.zeros(self.parts, self.in_features, device=device))
        self._iterate(0 if self.weight.is_meta else FIRST_ITERATIONS)
        sigma = singular_values(self.weight, self.spectral_left, self.spectral_right)
        start = torch.log(torch.expm1((sigma - FLOOR).clamp_min(EPSILON)))  # softplus of this plus FLOOR is sigma
        # [parts, 1], so that rules that spare vectors from weight decay do not spare it.
        self.spectral_scale = nn.Parameter(start[:, None])

    @torch.no_grad()
    def _iterate(self, times: int) -> None:
        pieces = self.weight.unflatten(0, (self.parts, -1))
        for _ in range(times):
            right = F.normalize((self.spectral_left[:, None] @ pieces)[:, 0], dim=1)
            self.spectral_right.copy_(right)
            self.spectral_left.copy_(F.normalize((pieces @ right[..., None])[..., 0], dim=1))


def singular_values(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Largest singular value of each part of [out, in] -> [parts]; vectors [parts, out / parts], [parts, in]."""
    pieces = weight.unflatten(0, (len(left), -1))
    return (left[:, None] @ pieces @ right[..., None])[:, 0, 0]


def effective_weight(weight: Tensor, scale: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """W_eff [out, in] from W, the scales [parts, 1] and the singular vectors."""
    factor = (F.softplus(scale[:, 0]) + FLOOR) / (singular_values(weight, left, right) + EPSILON)
    return (weight.unflatten(0, (len(left), -1)) * factor[:, None, None]).flatten(0, 1)


def reparametrise(module: nn.Module, *, spectral: bool, damp: float) -> list[ReparametrisedLinear]:
    """Replace every linear layer inside; parameters, and their names, stay what they are.

    A weight that starts at zero gets no spectral scale: it has no singular value to divide by.
    """
    made: list[ReparametrisedLinear] = []
    for name, layer in list(module.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        parent = module.get_submodule(name.rpartition(".")[0])
        own = name.rpartition(".")[2]
        parts = 3 if own == "qkv" else 2 if isinstance(parent, GluMlp) and own == "fc1" else 1
        scaled = spectral and (layer.weight.is_meta or bool(layer.weight.any()))
        new = ReparametrisedLinear(layer, parts=parts, spectral=scaled, damp=damp, index=len(made))
        setattr(parent, own, new)
        made.append(new)
    return made


def fold_scales(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with W_eff in the place of W and nothing of the reparametrisation left."""
    baked = dict(state)
    for name in [name for name in state if name.endswith(f".{SCALE}")]:
        layer = name.removesuffix(f".{SCALE}")
        extra = [baked.pop(f"{layer}.{part}") for part in (SCALE, LEFT, RIGHT)]
        weight = baked[f"{layer}.weight"]
        baked[f"{layer}.weight"] = effective_weight(weight.double(), *(part.double() for part in extra)).to(
            weight.dtype
        )
    return baked
