"""Recipe nodes for resolutions: stages in time, partitions of a step, and what a teacher does differently in one.

`distill.schedule` turns them into the passes of every step.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from common.recipes import Count, Node, Pixels, Rate
from featsharp_adapter.upsamplers.table import check_upsampler_name
from imagery.augment import Augment

Align = Literal["student", "teacher", "min", "max"]


def _square(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


#: (height, width) in pixels; one number means a square.
Size = Annotated[tuple[Pixels, Pixels], BeforeValidator(_square)]
#: What a teacher is shown: its native size, the size that gives it the student's grid, or a size of its own.
Input = Literal["native", "match"] | Size


class AugmentNode(Node):
    """`imagery.augment.Augment`, field by field."""

    zoom: tuple[float, float] = (1.0, 1.0)  #: range of the factor that enlarges a picture beyond the smallest fit
    aspect: tuple[float, float] = (1.0, 1.0)  #: range of the stretch width : height; 1 is none
    hflip: float = 0.0  #: chance of a mirror image
    random_crop: bool = True  #: a random window; false: the centre

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.build()
        return self

    def build(self) -> Augment:
        """What it describes; UserError for ranges that make no sense."""
        return Augment(**self.model_dump())


class WeightNode(Node):
    """Weights of a teacher's two losses; 0 leaves a loss and its head out."""

    summary: float = Field(1.0, ge=0)  #: of the summary loss
    spatial: float = Field(1.0, ge=0)  #: of the spatial loss


class TeacherPart(Node):
    """What a teacher does differently in one partition; what is left out (or null) is as in the recipe's `teachers`."""

    upsampler: str | None = None  #: see `teachers`
    factor: int | None = Field(None, ge=1, le=64)  #: see `teachers`
    denoise: str | None = None  #: see `teachers`
    input: Input | None = None  #: see `teachers`
    mosaic: bool | None = None  #: see `teachers`
    align: Align | None = None  #: see `teachers`
    chunk: Count | None = None  #: see `teachers`
    weight: WeightNode | None = None

    @field_validator("upsampler")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return name if name is None else check_upsampler_name(name)


class PartitionNode(Node):
    """A part of every step of a stage: images of its own, at a size of its own, for teachers of its own settings."""

    sizes: list[Size] | None = Field(None, min_length=1)  #: one is drawn for each step; None: data.size
    batch_size: Count | None = None  #: over all processes; None: optim.batch_size
    weight: float | None = Field(None, gt=0)  #: of its loss; None: its share of the step's images
    augment: AugmentNode | None = None  #: None: data.augment
    teachers: dict[str, TeacherPart] = Field(default_factory=dict)
    without: list[str] = Field(default_factory=list)  #: teachers that do not teach here
    ranks: Count = 1  #: its share of the processes in a stage with `split: ranks`


class StageNode(Node):
    """A stretch of the training with sizes and a cosine of its own."""

    steps: Count  #: updates of this stage
    partitions: dict[str, PartitionNode] = Field(default_factory=lambda: {"all": PartitionNode()}, min_length=1)
    #: step: every process does all partitions, one after the other; ranks: every process does one of them
    split: Literal["step", "ranks"] = "step"
    lr: Rate | None = None  #: peak; None: optim.lr
    warmup_steps: int | None = Field(None, ge=0)  #: None: optim.warmup_steps
    freeze_body_steps: int | None = Field(None, ge=0)  #: None: optim.freeze_body_steps
