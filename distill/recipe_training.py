"""Recipe nodes of how the student learns: losses, the teachers' normalisers, optimiser, moving average."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.errors import nearest
from common.plugins import is_plugin
from common.recipes import Count, Node, Norm, Rate

Share = Annotated[float, Field(ge=0, lt=1)]


SUMMARY_LOSSES, SPATIAL_LOSSES = ("cosine", "angular"), ("mse", "hybrid", "hybrid_map")
LOSSES = "distill.losses"  #: the entry point group of losses that other packages add


class LossNode(Node):
    """Which loss compares student and teacher: one of `distill/losses/losses.py`, or a function of the user's."""

    summary: str = "cosine"  #: cosine, angular, class:PACKAGE.MODULE.NAME, or a registered name
    spatial: str = "mse"  #: mse, hybrid, hybrid_map, class:PACKAGE.MODULE.NAME, or a registered name
    cosine_share: float = Field(0.9, ge=0, le=1)  #: of the hybrid losses; the rest is smooth L1
    beta: float = Field(1.0, ge=1e-6, le=1e6)  #: where smooth L1 turns from square to line
    drop_teachers: float = Field(0.0, ge=0, lt=1)  #: chance to leave a teacher out for an image, its hardest excepted
    shift: bool = False  #: student and teachers see crops shifted by whole patches (C-RADIOv4, equation 1)
    mesa: float = Field(0.0, ge=0)  #: weight of the distance to the student's own moving average (`ema`)

    @model_validator(mode="after")
    def _known(self) -> Self:
        for field, known in (("summary", SUMMARY_LOSSES), ("spatial", SPATIAL_LOSSES)):
            name = getattr(self, field)
            if name not in known and not is_plugin(name, LOSSES):
                raise ValueError(f'{field}: unknown loss "{name}"{nearest(name, known)}; known: {", ".join(known)}')
        return self

    @model_validator(mode="after")
    def _shiftable(self) -> Self:
        if self.shift and self.spatial == "hybrid_map":
            raise ValueError("shift compares position by position; choose spatial: mse or hybrid")
        return self


class NormaliserNode(Node):
    """PHI-S statistics of each teacher: estimated on the first batches of the run's data, then frozen."""

    batches: Count = 32  #: of the first stage, from which means and covariances are estimated
    load: str | None = None  #: run, checkpoint or targets.safetensors to take them from, instead of estimating


class OptimNode(Node):
    """The optimiser, with linear warm-up and a cosine to `final_share` of the peak."""

    name: Literal["adamw", "lamb"] = "adamw"  #: torch's AdamW, or LAMB (`distill.training.lamb`)

    steps: Count  #: updates of the whole run; with `stages` it is their sum
    batch_size: Count  #: over all processes
    lr: Rate = 1e-3  #: this and weight decay as in PHI-S (arXiv 2410.01680), table 10
    weight_decay: float = Field(0.02, ge=0)  #: decoupled, of weight matrices alone
    betas: tuple[Share, Share] = (0.9, 0.95)  #: decay of the two moments
    warmup_steps: int = Field(0, ge=0)  #: first updates, in which the rate rises linearly
    final_share: float = Field(0.0, ge=0, le=1)  #: 1 keeps the rate after the warm-up
    layer_decay: float = Field(1.0, gt=0, le=1)  #: a block's rate, over that of the block above it
    freeze_body_steps: int = Field(0, ge=0)  #: first updates, which move the heads and leave the ViT as it is
    clip: Norm = 1.0  #: largest norm of the whole gradient
    accumulate: Count = 1  #: micro-batches that a process's share of the batch is cut into, to save memory


class EmaNode(Node):
    """A moving average of the student's weights, kept after every update (`distill.student.ema`)."""

    decay: float | None = Field(None, ge=0, lt=1)  #: None: none is kept
    export: bool = False  #: export the average in the place of the student

    @model_validator(mode="after")
    def _kept(self) -> Self:
        if self.export and self.decay is None:
            raise ValueError("export: there is no average without a decay")
        return self
