"""The `vlm:` node of a suite: which language model is tuned on the backbone's tokens, how, and on what.

Defaults are LLaVA-1.5's (haotian-liu/LLaVA scripts/v1_5/{pretrain,finetune,finetune_lora}.sh).
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.recipes import Node, Norm, Rate

Prompt = Literal["plain", "v1", "tokenizer"]
Positive = Annotated[int, Field(gt=0)]


class Stage(Node):
    """One stage of training: a data set of the suite and how long. Either `steps` or `epochs` says how long."""

    data: str  #: which of the suite's data sets; its train split
    use: Literal["conversations", "questions", "captions"] = "conversations"  #: which of its labels become the text
    prompt: Prompt  #: how a conversation is written for the language model
    batch: int = Field(gt=0)  #: conversations in an optimiser step
    accumulate: int = Field(default=1, gt=0)  #: parts a step is computed in; the result is that of one part
    epochs: float = Field(default=1.0, gt=0)  #: passes over the data
    steps: Positive | None = None  #: instead of epochs
    learning_rate: Rate  #: peak rate
    projector_learning_rate: Rate | None = None  #: None: the same
    warmup: float = Field(default=0.03, ge=0, lt=1)  #: share of the steps
    weight_decay: float = Field(default=0.0, ge=0)  #: decoupled
    clip: Norm = 1.0  #: largest norm of the gradient


class Align(Stage):
    """Stage 1: the projector alone, on captions."""

    prompt: Prompt = "plain"
    batch: int = Field(default=256, gt=0)
    learning_rate: Rate = 1e-3


class Instruct(Stage):
    """Stage 2: projector and language model, on conversations. With LoRA LLaVA's rates are 2e-4 and 2e-5."""

    prompt: Prompt = "v1"
    batch: int = Field(default=128, gt=0)
    learning_rate: Rate = 2e-5


class Lora(Node):
    """Low-rank adapters on every linear layer of the language model but its head."""

    rank: int = Field(default=128, gt=0)  #: of each added matrix (LLaVA-1.5: 128)
    alpha: float = Field(default=256.0, gt=0)  #: scale times the rank (LLaVA-1.5: 256)
    dropout: float = Field(default=0.05, ge=0, lt=1)  #: of their input, in training


class VlmRecipe(Node):
    """Frozen backbone, projector, causal language model."""

    language_model: str  #: Hub name or folder of a causal language model with its tokenizer
    revision: str | None = None  #: of the language model: commit or tag; None: the newest
    tune: Literal["none", "lora", "full"] = "lora"  #: what of the language model stage 2 trains
    lora: Lora = Lora()
    stage1: Align | None = None
    stage2: Instruct | None = None

    size: Positive | None = None  #: side of a view in pixels; None: the backbone's own
    views: Literal["single", "anyres"] = "single"  #: one view of a picture, or cut into several as well (LLaVA-1.6)
    #: anyres: (columns, rows) of views a picture may be cut into (LLaVA-1.6's, in units of one view)
    grids: tuple[tuple[Positive, Positive], ...] = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
    layer: int = Field(
        default=-1, ge=-1000, le=1000
    )  #: -1: the backbone's spatial map; else the output of that block, counted from the end (LLaVA: -2)
    projector: Literal["mlp2x_gelu", "norm_mlp2x_gelu"] = "mlp2x_gelu"  #: `norm_`: a layer norm in front, as VILA's
    reduce: Literal["none", "pool", "unshuffle", "tome"] = "none"  #: how tokens of a view become fewer
    side: Positive | None = None  #: at most side x side tokens of a view are left (tome: side * side)

    longest: int = Field(default=2048, gt=8)  #: tokens of a conversation, the image's included; the rest is cut off
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  #: auto: bfloat16 on a GPU
    gradient_checkpointing: bool = False  #: compute activations again in the backward pass: less memory, more time
    save_every: int = Field(default=500, gt=0)  #: steps between checkpoints
    answer_batch: int = Field(default=16, gt=0)  #: questions answered side by side

    @model_validator(mode="after")
    def _fits(self) -> "VlmRecipe":
        if self.stage1 is None and self.stage2 is None:
            raise ValueError("a vlm wants stage1, stage2 or both: an untrained projector says nothing")
        if list(self.stages.values())[-1].prompt == "plain":
            raise ValueError("the last stage says how questions are asked, and prompt: plain shows none; use v1")
        if (self.reduce == "none") != (self.side is None):
            raise ValueError("reduce and side go together: side says how many tokens reduce leaves")
        if self.reduce == "tome" and self.views == "anyres":
            raise ValueError("merged tokens (reduce: tome) have no grid to stitch views on; use pool or unshuffle")
        if self.tune == "lora" and self.stage2 is None:
            raise ValueError("tune: lora wants a stage2; stage1 trains the projector alone (tune: none)")
        return self

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages by name, in order; questions are asked with the last one's prompt."""
        return {name: stage for name, stage in (("stage1", self.stage1), ("stage2", self.stage2)) if stage is not None}
