"""Heads from the student's tokens to one teacher's space. Every family ends in a linear layer `out`, where PHI-S folds.

mlp        Linear, LayerNorm, GELU, Linear (RADIOv2.5)
v1         Linear, LayerNorm, ReLU, then `inner` times the same, Linear (AM-RADIO)
v2         Linear, `inner` residual blocks x + Linear(GELU(LayerNorm(x))), LayerNorm, GELU, Linear (C-RADIO)
attention  two ViT blocks over the patch tokens, then v2 (C-RADIOv4's spatial heads; its summary heads are v2)
"""

import itertools
from collections.abc import Callable

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from distill.recipe_models import StudentNode

ATTENTION_BLOCKS, LAYER_SCALE = 2, 1e-5


class MlpHead(nn.Module):
    """tokens [..., D] -> [..., C]. The last bias starts at zero: in PHI-S space the mean of the targets is zero."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.act = nn.GELU()
        self.out = nn.Linear(hidden, out)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., D] -> [..., C]."""
        return self.out(self.act(self.norm(self.hidden(tokens))))


class V1Head(nn.Module):
    """tokens [..., D] -> [..., C], `1 + inner` layers of Linear, LayerNorm, ReLU before the last."""

    def __init__(self, width: int, hidden: int, out: int, inner: int) -> None:
        super().__init__()
        widths = [width] + [hidden] * (1 + inner)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(hidden, out)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., D] -> [..., C]."""
        return self.out(self.layers(tokens))


class V2Head(nn.Module):
    """tokens [..., D] -> [..., C], with `inner` residual blocks."""

    def __init__(self, width: int, hidden: int, out: int, inner: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, hidden)) for _ in range(inner)
        )
        self.norm = nn.LayerNorm(hidden)
        self.act = nn.GELU()
        self.out = nn.Linear(hidden, out)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., D] -> [..., C]."""
        tokens = self.hidden(tokens)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return self.out(self.act(self.norm(tokens)))


class AttentionHead(nn.Module):
    """patch tokens [B, N, D] -> [B, N, C]: ViT blocks that start as almost nothing, then a `V2Head`."""

    def __init__(self, width: int, hidden: int, out: int, inner: int, heads: int) -> None:
        super().__init__()
        self.attend = nn.Sequential(
            *(Block(width, heads, qkv_bias=True, init_values=LAYER_SCALE) for _ in range(ATTENTION_BLOCKS))
        )
        self.project = V2Head(width, hidden, out, inner)

    @property
    def out(self) -> nn.Linear:
        """The last layer."""
        return self.project.out

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, C]."""
        return self.project(self.attend(tokens))


def summary_head(node: StudentNode, width: int, out: int) -> nn.Module:
    """The head of a summary token [..., D] -> [..., S]."""
    hidden = node.head_hidden or width
    if node.head == "mlp":
        return MlpHead(width, hidden, out)
    return (
        V1Head(width, hidden, out, node.head_inner)
        if node.head == "v1"
        else V2Head(width, hidden, out, node.head_inner)
    )


def spatial_head(node: StudentNode, width: int, heads: int, out: int) -> nn.Module:
    """The head of patch tokens [B, N, D] -> [B, N, u*u*C], u the head's upsampling."""
    hidden, out = node.head_hidden or width, out * node.head_upsample**2
    if node.head == "attention":
        return AttentionHead(width, hidden, out, node.head_inner, heads)
    families: dict[str, Callable[[], nn.Module]] = {
        "mlp": lambda: MlpHead(width, hidden, out),
        "v1": lambda: V1Head(width, hidden, out, node.head_inner),
        "v2": lambda: V2Head(width, hidden, out, node.head_inner),
    }
    return families[node.head]()


def last_layer(family: str, name: str) -> str:
    """Path of the last linear layer of teacher `name`'s spatial head within the student."""
    return f"spatial_heads.{name}.project.out" if family == "attention" else f"spatial_heads.{name}.out"


def unfold(tokens: Tensor, grid: tuple[int, int], upsample: int) -> Tensor:
    """[B, h*w, u*u*C] -> [B, C, u*h, u*w]: a token's channels are groups of C, its pixels in reading order."""
    batch, _, channels = tokens.shape
    (rows, columns), u = grid, upsample
    pixels = tokens.reshape(batch, rows, columns, u, u, channels // (u * u))
    return pixels.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels // (u * u), rows * u, columns * u)
