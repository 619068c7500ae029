"""The recipe of an adapter: one typed object, read from YAML (`common.recipes` does the reading)."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from common.errors import unknown
from common.recipes import Count, Node, Norm, Place, Rate, Seed, Workers
from featsharp_adapter.model.multiview import ViewSettings
from featsharp_adapter.model.normalisers import NORMALISERS
from featsharp_adapter.upsamplers.options import check_options
from featsharp_adapter.upsamplers.table import check_upsampler_name, upsampler_class
from imagery.augment import Augment


class DataNode(Node):
    """Images to train on, and others to evaluate on."""

    train: str  #: `imagery.sources.open_source` form
    held_out: str  #: images to evaluate on, in the same form as `train`
    images: Count  #: PHI-S is fitted on so many; training repeats them if their views fit `cache_gib`
    held_out_images: Count = 256  #: how many of them
    zoom: tuple[float, float] = (1.0, 2.0)  #: of the crop that image and views share, `imagery.augment.Augment`
    hflip: float = 0.0  #: chance of a mirror image
    cache_gib: float = Field(
        4.0, ge=0, le=1e6
    )  #: memory for the views of training images; 0 keeps the teacher in the loop
    workers: Workers = 0  #: threads that decode ahead
    max_bad_share: float = Field(0.05, ge=0, le=1)  #: more unreadable images than this is an error

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.augment()
        return self

    def augment(self) -> Augment:
        """A random crop, zoomed."""
        return Augment(zoom=self.zoom, hflip=self.hflip)


class ViewsNode(Node):
    """Random homographies, `multiview.ViewSettings`; defaults are the paper's."""

    count: Count = 5  #: views of an image that the teacher encodes
    per_step: Count = 5  #: of which a training step uses so many
    zoom: tuple[float, float] = ViewSettings.zoom  #: range of the view's side in sides of the image, log-uniform
    #: range of the standard deviation of the corners' shift, in sides
    perspective: tuple[float, float] = ViewSettings.perspective
    rotation: float = Field(ViewSettings.rotation, ge=0, le=180)  #: largest angle in degrees
    shift: float = Field(ViewSettings.shift, ge=0, le=1)  #: largest shift in sides of the image
    #: chance of a mirrored view; listed in table 11, 0 in the published code
    hflip: float = Field(ViewSettings.hflip, ge=0, le=1)

    def settings(self) -> ViewSettings:
        """As `multiview` takes them."""
        return ViewSettings(
            zoom=self.zoom, perspective=self.perspective, rotation=self.rotation, shift=self.shift, hflip=self.hflip
        )

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if not 0.01 <= self.zoom[0] <= self.zoom[1] <= 100:
            raise ValueError(f"zoom is a range low, high with 0.01 <= low <= high <= 100, got {self.zoom}")
        if not 0 <= self.perspective[0] <= self.perspective[1] <= 0.25:  # beyond, corners cross
            raise ValueError(f"perspective is a range low, high with 0 <= low <= high <= 0.25, got {self.perspective}")
        if self.per_step > self.count:
            raise ValueError(f"per_step ({self.per_step}) is more than the count of views ({self.count})")
        return self


class DownsamplerNode(Node):
    """What brings a sharpened map back to the teacher's grid in training (`downsampler.py`)."""

    #: which one; the paper's is attention
    name: Literal["attention", "average", "simple", "place_attention"] = "attention"
    kernel: int = Field(7, ge=1, le=255)  #: side of the cells it looks at, in cells of the sharpened map


class ConditionalNode(Node):
    """A bias that depends on what the teacher sees (`conditional_bias.py`); in the code, not in the paper."""

    heads: int = Field(16, ge=1, le=1024)  #: attention heads of the network that gives the bias
    penalty: float = Field(0.0, ge=0)  #: for changing what views agree on


class LossNode(Node):
    """Weights of what is measured in any case (`side_metrics.py`); the paper trains with none of them."""

    tv: float = Field(0.0, ge=0)  #: total variation of the sharpened map
    crf: float = Field(0.0, ge=0)  #: 0.001 in FeatUp's recipe
    mmd: float = Field(0.0, ge=0)  #: distance of its distribution to the teacher's


class OptimNode(Node):
    """NAdam; linear warm-up from a tenth of the rate, then a cosine to zero. Defaults: FeatSharp, table 11."""

    steps: Count = 3000  #: updates
    batch_size: Count = 32  #: images of an update
    micro_batch: Count | None = None  #: images on the device at a time; their gradients add up to one step
    lr: Rate = 1e-4  #: peak rate of everything that has none of its own below
    lr_guide: Rate = 1e-4  #: of the few parameters of the image-guided kernel
    lr_fitted: Rate = 3e-4  #: of weights that a closed form has solved before (`ridge_block`)
    lr_uncertainty: Rate = 1e-5  #: of the uncertainty network, where there is one
    warmup: int = Field(100, ge=0)  #: first updates, in which the rate rises
    clip: Norm = 5.0  #: largest norm of the gradient
    first_clip: Norm = 1e-4  #: the same during the first `first_clip_steps`, while NAdam's moments settle
    first_clip_steps: int = Field(10, ge=0)  #: updates that `first_clip` holds for


class RidgeNode(Node):
    """How `ridge` and `ridge_block` solve their linear part (`training/closed_form.py`)."""

    reweight: bool = False  #: solve twice, outlier tokens counting less the second time


class CheckpointNode(Node):
    """When training state is written, and how many are kept."""

    every: Count = 500  #: updates between two checkpoints; of sums over images, batches of 16
    keep: Count = 2  #: newest checkpoints that stay on disk


class LogNode(Node):
    """`log.jsonl` is always written; trackers are Accelerate's, and show the same numbers and pictures."""

    trackers: list[Literal["tensorboard", "wandb"]] = Field(
        default_factory=list
    )  #: further ones, by Accelerate's names
    pictures: int = Field(0, ge=0)  #: steps between two pictures of held-out images in OUT/pictures; 0: none
    images: Count = 4  #: in a picture


class AdapterRecipe(Node):
    """One adapter for one teacher."""

    teacher: str | dict[str, Any]  #: a backbone node, see `teachers.registry`
    teacher_dtype: Literal["float32", "bfloat16"] = "float32"  #: of the frozen teacher's matrix products
    chunk: Count = 64  #: images (tiles count) in one teacher forward
    upsampler: str = "featsharp"  #: by its name in the table of upsamplers
    factor: int = Field(ge=1, le=64)  #: how many times finer the sharpened map is on each side
    options: dict[str, Any] = Field(default_factory=dict)  #: of the upsampler, see `upsamplers/`
    normaliser: str = "phi_s"  #: of `normalisers.NORMALISERS`; the others are ablations
    published_views: bool = False  #: resize what the teacher sees without antialiasing, as published code does
    bias: bool = True  #: learn the denoising bias
    conditional: ConditionalNode | None = None  #: a second, input-dependent bias; None: none
    border_weight: float = Field(1.0, gt=0)  #: of the loss at borders between tiles, solved or trained
    losses: LossNode = LossNode()
    uncertainty: bool = False  #: learn where views cannot agree (`uncertainty.py`); in the code, not in the paper
    spectral: bool = False  #: reparametrise linear layers while training (`spectral.py`); likewise
    data: DataNode
    views: ViewsNode = ViewsNode()
    downsampler: DownsamplerNode = DownsamplerNode()
    optim: OptimNode = OptimNode()
    ridge: RidgeNode = RidgeNode()
    checkpoint: CheckpointNode = CheckpointNode()
    log: LogNode = LogNode()
    seed: Seed = 0  #: of weights, views and the order of images
    out: Place  #: folder to write

    @field_validator("upsampler")
    @classmethod
    def _known(cls, name: str) -> str:
        return check_upsampler_name(name)

    @field_validator("normaliser")
    @classmethod
    def _known_normaliser(cls, name: str) -> str:
        if name not in NORMALISERS:
            raise unknown("normaliser", name, NORMALISERS)
        return name

    @model_validator(mode="after")
    def _options_exist(self) -> Self:
        check_options(self.upsampler, self.options)
        return self

    @model_validator(mode="after")
    def _a_solution_knows_no_steps(self) -> Self:
        asked = {
            "losses": any(self.losses.model_dump().values()),
            "uncertainty": self.uncertainty,
            "spectral": self.spectral,
            "conditional": self.conditional is not None,
        }
        if upsampler_class(self.upsampler).closed_form and any(asked.values()):
            names = ", ".join(name for name, there in asked.items() if there)
            raise ValueError(f"{self.upsampler} is solved and takes no gradient steps: leave out {names}")
        return self

    @model_validator(mode="after")
    def _the_rate_rises(self) -> Self:
        # A default shrinks with a short training (training/optim.py); what somebody wrote must fit.
        if "warmup" in self.optim.model_fields_set and self.optim.warmup > self.optim.steps:
            raise ValueError(f"optim.warmup is {self.optim.warmup}, but there are only {self.optim.steps} steps")
        return self
