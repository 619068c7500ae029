"""The student: a timm VisionTransformer with one summary token and one pair of heads per teacher.

Shape letters: B batch, T teachers, N tokens, D student width, C a teacher's spatial width, S a teacher's summary width.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from common.errors import UserError
from common.keyed_tensors import Draws
from distill.recipe_models import StudentNode
from distill.student.cropped_positions import resize_stored
from distill.student.heads import spatial_head, summary_head, unfold
from distill.student.spectral import reparametrise
from distill.student.starting_weights import Kin, backbone_state
from distill.student.vit import StudentTransformer
from teachers.contracts import Features

#: The student's own map among its answers; no teacher can have this name.
BACKBONE = "_body"


@dataclass(frozen=True)
class HeadSpec:
    """What one teacher asks of the student: widths of its targets, None for a target that is not distilled."""

    summary_dim: int | None
    spatial_dim: int | None

    def to_dict(self) -> dict[str, int | None]:
        return asdict(self)


class Student(nn.Module):
    """images [B, 3, H, W] in [0, 1] -> per teacher Features, the spatial map in PHI-S space at the student's grid.

    The summary tokens are as many as the teachers, as in RADIO (one CLS per teacher); a teacher without a summary
    target still has its token, which then serves as a register and is left out of the exported summary.

    What its training draws (crops of its positions, window sizes, shaken weights) comes from `draws`; stochastic depth
    is timm's and comes from torch's random numbers.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, node: StudentNode, size: tuple[int, int], heads: Mapping[str, HeadSpec], *, bf16: bool = False
    ) -> None:
        super().__init__()
        self.node = node
        self.teachers = tuple(heads)
        self.bf16 = bf16
        self.vit = StudentTransformer.of(build_vit(node, size, list(heads)), node)
        self.draws = Draws()
        self.returns_backbone = False  #: whether answers hold `BACKBONE`, the map before the heads, too
        self.upsample = node.head_upsample
        width = self.vit.embed_dim
        self.summary_heads = nn.ModuleDict(
            {name: summary_head(node, width, head.summary_dim) for name, head in heads.items() if head.summary_dim}
        )
        first: Any = self.vit.blocks[0]
        attention = int(first.attn.num_heads)
        self.spatial_heads = nn.ModuleDict(
            {
                name: spatial_head(node, width, attention, head.spatial_dim)
                for name, head in heads.items()
                if head.spatial_dim
            }
        )
        data: Any = self.vit.pretrained_cfg
        self.register_buffer("mean", torch.tensor(data["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(data["std"]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Features]:
        """[B, 3, H, W] -> teacher name -> Features; a target that is not distilled is None."""
        # Autocast stands inside the module: a DeepSpeed engine switches off one that stands around it.
        with self.autocast(images):
            tokens, spatial = self.tokens(images)
            answers = {name: self._heads(name, tokens[:, row], spatial) for row, name in enumerate(self.teachers)}
            return answers | {BACKBONE: Features(None, spatial)} if self.returns_backbone else answers

    def autocast(self, images: Tensor) -> AbstractContextManager[Any]:
        """bf16 where the student computes in it."""
        return torch.autocast(images.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()

    def begin(self, update: int) -> None:
        """Tell the student that what comes now belongs to update number `update` (1, 2, ...)."""
        self.draws.begin(update)
        self.vit.begin(update)

    def tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> summary tokens [B, T, D] and the spatial map [B, D, h, w], after the last norm."""
        grid = self.grid(images)
        # Called as a module, not its forward_features, so that ZeRO-3 sees when tokens and positions are needed.
        normalised = (images - self.mean) / self.std
        out = self.vit(normalised) if self.vit.plain else self._drawn(normalised)
        return out[:, : len(self.teachers)], to_map(out[:, self.vit.num_prefix_tokens :], grid)

    @torch.compiler.disable(recursive=False)  # a key is another constant every time
    def _drawn(self, normalised: Tensor) -> Tensor:
        return self.vit(normalised, self.draws.next() if self.training else None)

    def intermediate(self, images: Tensor, blocks: Collection[int]) -> dict[int, Tensor]:
        """Maps [B, D, h, w] after the named blocks (0 is the first), each through the last norm."""
        grid = self.grid(images)
        _, kept = self.vit((images - self.mean) / self.std, None, blocks)
        prefix = self.vit.num_prefix_tokens
        return {block: to_map(self.vit.norm(tokens)[:, prefix:], grid) for block, tokens in kept.items()}

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Token rows and columns for images [B, 3, H, W]; UserError when a side is no multiple of the patch."""
        patch = self.vit.patch_embed.patch_size[0]
        height, width = images.shape[-2:]
        if height % patch or width % patch:
            raise UserError(f"the student takes sizes that are multiples of {patch} px, got {height}x{width}")
        return height // patch, width // patch

    def project_summary(self, name: str, token: Tensor) -> Tensor | None:
        """One teacher's summary token [B, D] -> [B, S], or None where its summary is not distilled."""
        return self.summary_heads[name](token) if name in self.summary_heads else None

    def project_spatial(self, name: str, spatial: Tensor) -> Tensor | None:
        """[B, D, h, w] -> [B, C, u*h, u*w] in the teacher's PHI-S space, u the heads' upsampling; or None."""
        if name not in self.spatial_heads:
            return None
        grid = (spatial.shape[-2], spatial.shape[-1])
        tokens = self.spatial_heads[name](spatial.flatten(2).transpose(1, 2))
        return to_map(tokens, grid) if self.upsample == 1 else unfold(tokens, grid, self.upsample)

    def _heads(self, name: str, token: Tensor, spatial: Tensor) -> Features:
        # Nobody reads a map that is not distilled.
        return Features(self.project_summary(name, token), self.project_spatial(name, spatial))  # type: ignore[arg-type]


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h*w, C] -> [B, C, h, w]."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def timm_options(node: StudentNode, teachers: int, size: Sequence[int]) -> dict[str, Any]:
    """Keywords of `timm.create_model(node.model, ...)` for the ViT of a student with so many teachers.

    size: (height, width) in pixels at which it has a position for every patch.
    """
    return {
        "img_size": tuple(size),
        "dynamic_img_size": True,
        "class_token": False,
        "reg_tokens": teachers + node.registers,
        "no_embed_class": True,
        "global_pool": "",
        "num_classes": 0,
        **node.overrides(),
    }


def build_vit(node: StudentNode, size: tuple[int, int], teachers: Sequence[str]) -> VisionTransformer:
    """The timm model with a token for each teacher before the patches and no head; UserError if it is no ViT."""
    options = timm_options(node, len(teachers), size if node.cpe is None else (node.cpe, node.cpe))
    try:
        vit = timm.create_model(node.model, **options, drop_path_rate=node.drop_path)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise UserError(f'student.model "{node.model}": timm cannot build it ({error})') from error
    if not isinstance(vit, VisionTransformer):
        raise UserError(f'student.model "{node.model}" is a {type(vit).__name__}; a student is a VisionTransformer')
    # timm starts register tokens at almost zero, all alike; summary tokens must differ to be told apart.
    assert vit.reg_token is not None  # one for each teacher
    nn.init.trunc_normal_(vit.reg_token, std=0.02)
    if node.cpe is not None:
        begin_positions(vit, node)
    if node.weights is not None:
        load_backbone_weights(vit, node, teachers)
    if node.spectral or node.damp:
        reparametrise(vit, spectral=node.spectral, damp=node.damp)
    return vit


def begin_positions(vit: VisionTransformer, node: StudentNode) -> None:
    """First values of cropped positions, as RADIO's: N(0, 1) / sqrt(D)."""
    patch = vit.patch_embed.patch_size[0]
    if vit.pos_embed is None or node.cpe is None or node.cpe % patch:
        raise UserError(f"student.cpe: {node.cpe} px needs a model with learned positions and patches that divide it")
    nn.init.normal_(vit.pos_embed, std=vit.embed_dim**-0.5)


def load_backbone_weights(vit: VisionTransformer, node: StudentNode, teachers: Sequence[str]) -> None:
    """Start from another ViT's weights: positions are resampled, its summary tokens start those of the same teachers.

    A class token starts every summary token; a teacher that the other did not know starts with the mean of its own.
    """
    state, kin = backbone_state(str(node.weights), node.model)
    if kin is not None:
        _refuse_another_kind(vit, node, kin)
    state = _without_prefix(state, vit, teachers, kin)
    here = (int(vit.patch_embed.grid_size[0]), int(vit.patch_embed.grid_size[1]))
    there = (math.isqrt(state["pos_embed"].shape[1]),) * 2 if kin is None else kin.grid
    if there[0] != there[1]:  # timm takes positions for those of a square
        if there != here:
            state["pos_embed"] = resample_abs_pos_embed(
                state["pos_embed"], list(here), list(there), 0, interpolation="bicubic", antialias=True
            )
    elif node.cpe is not None:
        state["pos_embed"] = resize_stored(state["pos_embed"], here[0])
    elif there != here and math.prod(there) == math.prod(here):
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], list(here), list(there), 0)
    state = checkpoint_filter_fn(state, vit, interpolation="bicubic", antialias=True)
    for name in [name for name in state if name.split(".", 1)[0] in ("head", "fc_norm", "attn_pool")]:
        del state[name]
    try:
        vit.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise UserError(
            f"student.weights {node.weights} do not fit {node.model} of these sizes: {lines[0][:300]}{more}"
        ) from error


def _refuse_another_kind(vit: VisionTransformer, node: StudentNode, kin: Kin) -> None:
    """UserError for a student whose tensors would fit and would be read as something else."""
    with torch.device("meta"):
        other: Any = timm.create_model(kin.node.model, **kin.node.overrides())
    mine, theirs = _kind(vit), _kind(other)
    wrong = [f"{what} {theirs[what]}, this recipe's {mine[what]}" for what in mine if mine[what] != theirs[what]]
    if wrong:
        raise UserError(f"student.weights {node.weights} are of a student with {wrong[0]}: give it the student it was")


def _kind(vit: Any) -> dict[str, Any]:
    """What decides a ViT's answers and has no tensor."""
    config, block = vit.pretrained_cfg, vit.blocks[0]
    pixels = {f"{name} of pixels": tuple(config[name]) for name in ("mean", "std")}
    return {"attention heads": int(block.attn.num_heads), "activation": type(block.mlp.act).__name__} | pixels


def _without_prefix(
    state: dict[str, Tensor], vit: VisionTransformer, teachers: Sequence[str], kin: Kin | None
) -> dict[str, Tensor]:
    """Class and register tokens taken out, positions of the patches kept, and the tokens of the student put in."""
    state = dict(state)
    registers, token = state.pop("reg_token", None), state.pop("cls_token", None)
    assert vit.reg_token is not None  # one for each teacher
    started = vit.reg_token.detach().clone()
    if "pos_embed" not in state:
        raise UserError("student.weights: these weights have no learned positions, and a student needs them")
    positions = state["pos_embed"]
    prefix = 0 if kin is not None else positions.shape[1] - math.isqrt(positions.shape[1]) ** 2
    others = (0 if token is None else 1) + (0 if registers is None else registers.shape[1])
    if prefix not in (0, 0 if token is None else 1, others):
        raise UserError(
            f"student.weights: its {positions.shape[1]} positions are those of no square of patches; only a student of "
            "this program says what rectangle they are of"
        )
    theirs = None if kin is None else kin.teachers
    state["pos_embed"] = positions[:, prefix:]
    if theirs is not None and registers is not None and registers.shape[-1] == started.shape[-1]:
        mean = registers[:, : len(theirs)].mean(1)
        for row, name in enumerate(teachers):
            started[:, row] = registers[:, theirs.index(name)] if name in theirs else mean + started[:, row]
        own, kept = started[:, len(teachers) :], registers[:, len(theirs) :]
        own[:, : kept.shape[1]] = kept[:, : own.shape[1]]
    elif token is not None and token.shape[-1] == started.shape[-1]:
        started[:, : len(teachers)] += token + (positions[:, :1] if prefix else 0)  # registers start from nothing
    return state | {"reg_token": started}
