"""Recipe nodes of what is distilled: images, student, teachers."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from common.recipes import Count, Node, Pixels, Seed, Workers
from distill.recipe_stages import Align, AugmentNode, Input, WeightNode
from featsharp_adapter.upsamplers.table import check_upsampler_name
from teachers.registry import parse_spec

Mixed = Annotated[dict[str, Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=1)]


class DataNode(Node):
    """Where images come from and at what size the student sees them."""

    train: str | Mixed  #: `imagery.sources.open_source` form, or several of them with weights
    size: tuple[Pixels, Pixels]  #: (height, width) in pixels
    augment: AugmentNode = AugmentNode()
    workers: Workers = 0  #: threads or processes that decode ahead
    max_bad_share: float = Field(0.05, ge=0, le=1)  #: more unreadable images than this is an error


class StudentNode(Node):
    """A timm VisionTransformer; the sizes given here override those of the named model."""

    model: str  #: name of a timm VisionTransformer
    patch_size: Pixels | None = None  #: side in px of a patch; None: the model's
    embed_dim: int | None = Field(None, ge=1, le=2**16)  #: channels of a token; None: the model's
    depth: int | None = Field(None, ge=1, le=1024)  #: blocks; None: the model's
    num_heads: int | None = Field(None, ge=1, le=1024)  #: attention heads of a block; None: the model's
    #: stochastic depth: chance to leave out the last block, less for those before
    drop_path: float = Field(0.0, ge=0, lt=1)
    #: of the ViT: "pretrained" (timm's own), a file of timm's or RADIO's, an exported student, a run or a checkpoint
    weights: str | None = None
    seed: Seed | None = None  #: of its first weights and its stochastic depth; None: the recipe's, as the data's
    registers: int = Field(0, ge=0, le=4096)  #: tokens without a target, beside one summary token per teacher
    head: Literal["mlp", "v1", "v2", "attention"] = "mlp"  #: family of the heads, see `distill.student.heads`
    head_hidden: int | None = Field(None, ge=1, le=2**20)  #: hidden width of the heads; None takes the student's width
    head_inner: int = Field(0, ge=0, le=64)  #: further hidden layers (v1) or residual blocks (v2, attention)
    head_upsample: int = Field(1, ge=1, le=64)  #: how much finer than the student's grid its spatial answers are
    cpe: Pixels | None = None  #: side in px of a square of positions to train on crops of (`positions`)
    position_dropout: float = Field(0.0, ge=0, lt=1)  #: chance that an image is shown without its cropped positions
    window: Pixels | None = None  #: side in tokens of the windows most blocks attend in; None: globally
    window_train: tuple[int, int] | None = None  #: least and most side, drawn anew in training; None: as `window`
    global_blocks: int = Field(4, ge=1, le=1024)  #: how many blocks attend globally all the same
    spectral: bool = False  #: train the ViT's linear layers as direction and largest singular value (`linear`)
    damp: float = Field(0.0, ge=0, le=10)  #: sigma of noise that multiplies the ViT's linear weights (DAMP)

    @model_validator(mode="after")
    def _head_exists(self) -> Self:
        if self.head == "mlp" and self.head_inner:
            raise ValueError("head: mlp has no inner layers; choose head v1, v2 or attention, or head_inner: 0")
        if self.position_dropout and self.cpe is None:
            raise ValueError("position_dropout is for cropped positions; set cpe too")
        if self.window_train is not None and not 1 <= self.window_train[0] <= self.window_train[1]:
            raise ValueError("window_train is a range low, high with 1 <= low <= high")
        return self

    def overrides(self) -> dict[str, Any]:
        """Sizes to give to timm on top of the named model."""
        sizes = {name: getattr(self, name) for name in ("patch_size", "embed_dim", "depth", "num_heads")}
        return {name: value for name, value in sizes.items() if value is not None}


class TeacherNode(Node):
    """One teacher and what sharpens it."""

    backbone: str | dict[str, Any]  #: a backbone node, see `teachers.registry`
    upsampler: str = "none"  #: what sharpens its map, by its name in the table of upsamplers; none: nothing does
    factor: int = Field(1, ge=1, le=64)  #: how many times finer the sharpened map is on each side
    adapters: dict[str, str] = Field(
        default_factory=dict
    )  #: upsampler -> adapter folder or builtin:NAME, for those that must be trained
    passes: float | None = Field(None, gt=0)  #: passes an image over a batch (below 1: share of all); None: all tiles
    #: of the adapter's matrix products; bfloat16 moves a shipped one's map by 0.3 % (docs/adapters.md)
    adapter_dtype: Literal["float32", "bfloat16"] = "float32"
    denoise: str | None = None  #: adapter whose bias alone cleans the low-resolution map, with `upsampler: none`
    input: Input = "native"  #: what its small view shows: its native size, `match` (the student's grid), or a size
    mosaic: bool = False  #: put as many images as fit on one canvas of its native size, unscaled (RADIO's SAM)
    align: Align | None = None  #: None: the recipe's
    chunk: Count = 64  #: images (tiles count) in one teacher forward
    weight: WeightNode = WeightNode()

    @field_validator("backbone")
    @classmethod
    def _names_a_backbone(cls, node: str | dict[str, Any]) -> str | dict[str, Any]:
        parse_spec(node)
        return node

    @field_validator("upsampler")
    @classmethod
    def _known(cls, name: str) -> str:
        return check_upsampler_name(name)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in self.adapters:
            check_upsampler_name(name)
        if self.denoise is not None and self.upsampler != "none":
            raise ValueError("denoise is for a teacher with `upsampler: none`; an adapter denoises by itself")
        if self.adapter_dtype != "float32" and not self.adapters:
            raise ValueError("adapter_dtype is of an adapter, and `adapters` names none; leave it out")
        if self.passes is not None and (self.upsampler == "none" or self.mosaic):
            raise ValueError("passes is a budget of tiles; this teacher has none to leave out")
        if self.weight.summary == 0 and self.weight.spatial == 0:
            raise ValueError("both weights are 0: leave the teacher out")
        if self.mosaic and (self.upsampler != "none" or self.denoise is not None or self.input != "native"):
            raise ValueError("a mosaic fills the teacher's native canvas: upsampler none, no denoise, input native")
        if self.mosaic and self.weight.summary:
            raise ValueError("a mosaic has one summary for several images: set weight.summary: 0")
        if self.input != "native" and (self.upsampler != "none" or self.denoise is not None):
            raise ValueError("an adapter takes the teacher's native view: leave `input` out, or upsampler and denoise")
        return self

    @property
    def effective_factor(self) -> int:
        """How much finer than the teacher's own grid the target is; `none` leaves the grid as it is."""
        return 1 if self.upsampler == "none" else self.factor
