"""The recipe of a distillation: one typed object, read from YAML (`common.recipes` does the reading).

Every field is read by the code that does the work; a field that nobody reads would be a lie. `fingerprint` says which
fields decide the numbers of a run, so that a resumed run can name what changed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import Field, field_validator, model_validator
from torch import nn

from common.errors import UserError, nearest
from common.plugins import is_plugin
from common.recipes import (
    Count,
    Name,
    Node,
    Norm,
    Pixels,
    Place,
    Rate,
    Seed,
    Threads,
    Workers,
    read_recipe,
    safe_name,
    validate,
)
from distill.recipe_stages import Align, AugmentNode, Input, StageNode, WeightNode
from featsharp_adapter.upsamplers.table import check_upsampler_name
from teachers.registry import parse_spec

#: Rows of a table: the student before its first update, of random weights or as it was given.
UNTRAINED, BEFORE = "untrained", "before"
FILES = {"eval.suite": "suites/"}  #: fields that name another file of this kind, and where shipped ones lie
Share = Annotated[float, Field(ge=0, lt=1)]
#: A teacher's heads are modules under its name, so it may not be called as a module's own methods are.
TAKEN = frozenset({*dir(nn.ModuleDict), UNTRAINED, BEFORE})


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


#: DeepSpeed settings that other fields of a recipe decide, or that would change what is computed.
DEEPSPEED_OWNED = {
    "train_batch_size": "optim.batch_size",
    "train_micro_batch_size_per_gpu": "optim.batch_size and optim.accumulate",
    "gradient_accumulation_steps": "optim.accumulate",
    "gradient_clipping": "optim.clip",
    "optimizer": "optim",
    "scheduler": "optim",
    "fp16": "engine.precision",
    "bf16": "engine.precision",
    "amp": "engine.precision",
    "torch_autocast": "engine.precision",
    "data_types": "engine.precision",
    "communication_data_type": "engine.precision",
    "zero_allow_untested_optimizer": "optim.name",
    "zero_force_ds_cpu_optimizer": "optim.name",
    "steps_per_print": "log.every",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.offload_optimizer": "optim.name: its updates would be DeepSpeed's own",
    "zero_optimization.zero_quantized_weights": "engine.precision",
    "zero_optimization.zero_quantized_gradients": "engine.precision",
    "zero_optimization.zero_hpz_partition_size": "engine.zero_stage",
}


class EngineNode(Node):
    """How the arithmetic is done; none of it changes what is computed."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"  #: auto: bf16 where the hardware has it
    deepspeed: Literal["auto", "on", "off"] = "auto"  #: auto: when launched with --use_deepspeed
    zero_stage: Literal[1, 2, 3] | None = None  #: None: what the launcher says (--zero_stage), else 2
    checkpointing: bool = False  #: compute the student's activations again in the backward pass: less memory, more time
    threads: Threads | None = None  #: of torch on the CPU; None: the cores, shared by the processes
    compile: bool = False  #: torch.compile of the student: minutes at the start, less time a step
    #: further settings, as DeepSpeed's JSON has them
    deepspeed_config: dict[str, Any] = Field(default_factory=dict)
    teachers: Literal["replicated", "zero3"] = "replicated"  #: zero3: every process holds a share of their weights
    patience: float = Field(10.0, gt=0)  #: minutes a process waits for the others before it calls them lost

    @field_validator("deepspeed_config")
    @classmethod
    def _not_ours(cls, config: dict[str, Any]) -> dict[str, Any]:
        zero = config.get("zero_optimization") or {}
        if not isinstance(zero, dict):
            raise ValueError("zero_optimization is a mapping")
        for name in [*config, *(f"zero_optimization.{key}" for key in zero)]:
            if name in DEEPSPEED_OWNED:
                raise ValueError(f"{name} is decided by {DEEPSPEED_OWNED[name]}")
        return config


class CheckpointNode(Node):
    """When to save, and how many checkpoints to keep."""

    every: Count = 500  #: updates between two checkpoints
    keep: Count = 2  #: newest checkpoints that stay on disk
    grace: float = Field(27.0, gt=0)  #: seconds from a signal to the end, saved or not; schedulers kill after 30


class LogNode(Node):
    """`log.jsonl` is always written; trackers are Accelerate's."""

    every: Count = 1  #: updates between two lines
    #: further ones, by Accelerate's names
    trackers: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list)


class CacheNode(Node):
    """Teacher views kept on disk (`distill.targets.view_cache`). It changes nothing that is computed."""

    folder: str  #: where the views lie; runs may share it
    max_gib: float = Field(50.0, gt=0)  #: a run that may need more does not start
    across_runs: bool = False  #: keep crops that never come again in this run, for others of the same data and seed


class EvalNode(Node):
    """What probes the student. Without it a run ends with the exported student."""

    suite: str  #: suite file
    overrides: list[str] = Field(
        default_factory=list
    )  #: of the suite, e.g. probes.imagenet1k_zero_shot.adaptor=dfn_clip
    teachers: bool = True  #: probe the teachers too, as rows to compare with
    #: probe the student before its first update too; left out, a single run does (its baseline), an ablation does not
    untrained: bool | None = None


class Recipe(Node):
    """A whole distillation; with `arms`, a whole ablation."""

    name: Name  #: of the run, and of its folder
    out: Place = "runs"  #: folder in which the run's folder is made
    seed: Seed = 0  #: of everything random; the student may have one of its own
    data: DataNode
    student: StudentNode
    teachers: dict[str, TeacherNode] = Field(min_length=1)
    #: how student and teacher grids meet: at the student's, the teacher's, the smaller or the larger one
    align: Align = "student"
    loss: LossNode = LossNode()
    normaliser: NormaliserNode = NormaliserNode()
    optim: OptimNode
    engine: EngineNode = EngineNode()
    stages: dict[str, StageNode] = Field(default_factory=dict)  #: in order; none: all steps at data.size
    checkpoint: CheckpointNode = CheckpointNode()
    log: LogNode = LogNode()
    eval: EvalNode | None = None
    arms: dict[str, list[str]] = Field(default_factory=dict)  #: arm -> overrides of this recipe
    baseline: str | None = None  #: the arm every other is compared with
    seeds: list[Seed] = Field(
        default_factory=list
    )  #: of the student; every arm is trained with each, as runs of one row
    together: int | None = Field(None, ge=1)  #: most arms in memory at once on one teacher pass; None: all that can be
    ema: EmaNode = EmaNode()

    cache: CacheNode | None = None
    #: run:NAME@STEP, a run, a checkpoint, an exported student or a file of weights that a new run begins with
    start_from: str | None = None
    start_optimiser: bool = False  #: with the moments of that checkpoint's optimiser too

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.start_from is not None and self.student.weights is not None:
            raise ValueError("start_from and student.weights both say what the student begins with; give one")
        if self.start_optimiser and self.start_from is None:
            raise ValueError("start_optimiser: say with start_from which checkpoint's")
        return self

    @model_validator(mode="after")
    def _cache_has_whole_teachers(self) -> Self:
        if self.cache is not None and self.engine.teachers == "zero3":  # one rank may find what another must make
            raise ValueError("a cache of views needs whole teachers on every process: set engine.teachers: replicated")
        parts = [part for stage in self.stages.values() for part in stage.partitions.values()]
        if self.cache is not None and any(node.chunk for part in parts for node in part.teachers.values()):
            raise ValueError("a cache of views keeps what one chunk gives: set chunk in `teachers` alone")
        return self

    @model_validator(mode="after")
    def _mesa_has_an_average(self) -> Self:
        if self.loss.mesa and self.ema.decay is None:
            raise ValueError("loss.mesa compares with the moving average: set ema.decay (C-RADIOv4 has 0.9996)")
        return self

    @model_validator(mode="before")
    @classmethod
    def _steps_of_stages(cls, data: Any) -> Any:
        """With stages, optim.steps is their sum: left out, it is filled in."""
        try:
            whole = sum(stage["steps"] for stage in data["stages"].values())
            given = data["optim"].get("steps")
        except (KeyError, TypeError, AttributeError):
            return data  # no stages, or what the fields themselves will complain about
        if not whole or given == whole:
            return data
        if given is not None:
            raise ValueError(
                f"optim.steps is {given}, the steps of the stages sum up to {whole}; leave optim.steps out"
            )
        return {**data, "optim": {**data["optim"], "steps": whole}}

    @model_validator(mode="after")
    def _arms_make_sense(self) -> Self:
        if self.arms and self.baseline not in self.arms:
            raise ValueError(f"baseline must be one of the arms: {', '.join(self.arms)}")
        if not self.arms and self.baseline is not None:
            raise ValueError("baseline names an arm, and there are no arms")
        if self.seeds and not self.arms:
            raise ValueError("seeds are of arms, and there are no arms; a single run has student.seed")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must differ")
        for name in [*self.arms, *self.teachers]:
            if "." in safe_name(name) or name in TAKEN:
                raise ValueError(f'"{name}" cannot name an arm or a teacher')
        return self

    @model_validator(mode="after")
    def _the_rate_rises_and_the_body_learns(self) -> Self:
        # A stage that is shorter than the warm-up it inherits only rises; what somebody wrote for it must fit.
        nodes: dict[str, OptimNode | StageNode] = {"optim": self.optim}
        nodes |= {f"stages.{name}": stage for name, stage in self.stages.items()}
        for where, node in nodes.items():
            if node.warmup_steps is not None and node.warmup_steps > node.steps:
                raise ValueError(
                    f"{where}.warmup_steps is {node.warmup_steps}, but there are only {node.steps} steps; lower it"
                )
        frozen = self.optim.freeze_body_steps
        learns = any(
            (frozen if node.freeze_body_steps is None else node.freeze_body_steps) < node.steps
            for node in self.stages.values() or [self.optim]
        )
        if not learns:
            raise ValueError("freeze_body_steps is all of the steps: the ViT never learns; lower it")
        return self

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.out) / self.name

    @property
    def first_row(self) -> str:
        """What the student before its first update is called in a table."""
        return UNTRAINED if self.start_from is None and self.student.weights is None else BEFORE

    @property
    def student_seed(self) -> int:
        """Seed of everything random in the student."""
        return self.seed if self.student.seed is None else self.student.seed

    def fingerprint(self) -> dict[str, Any]:
        """Dotted field -> value, for the fields that decide the numbers of the training."""
        apart = {"name", "out", "checkpoint", "log", "eval", "arms", "baseline", "together", "seeds", "cache"}
        data = self.model_dump(mode="json", exclude=apart)
        data["data"].pop("workers")
        return dict(_leaves(data, ""))


def read(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load and check a recipe file; UserError says which field is wrong."""
    return validate(Recipe, read_recipe(path, overrides, FILES), str(path))


def read_arms(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """The recipe of every run of an ablation, by name: an arm's overrides over the recipe, below its folder.

    Without `seeds` an arm has one run, of its own name; `runs_of` says which runs are an arm's.
    """
    whole = read(path, overrides)
    if not whole.arms:
        raise UserError(f"{path} has no arms; add `arms: {{NAME: [field=value, ...]}}` or use distill/run.py")
    return {
        name: _arm(path, [*overrides, *whole.arms[arm], *own], whole, name)
        for arm, runs in runs_of(whole).items()
        for name, own in runs.items()
    }


def runs_of(whole: Recipe) -> dict[str, dict[str, list[str]]]:
    """Arm -> names of its runs -> what each changes of the arm: the student's seed."""
    if not whole.seeds:
        return {arm: {arm: []} for arm in whole.arms}
    return {arm: {f"{arm}-seed{seed}": [f"student.seed={seed}"] for seed in whole.seeds} for arm in whole.arms}


def _arm(path: str | Path, overrides: Sequence[str], whole: Recipe, name: str) -> Recipe:
    data = read_recipe(path, overrides, FILES)
    data |= {"name": name, "out": str(whole.folder), "arms": {}, "baseline": None, "together": None, "seeds": []}
    return validate(Recipe, data, f"{path}, arm {name}")


def default_of(name: str) -> Any:
    """Default of a dotted recipe field such as "loss.beta" or "teachers.clip.chunk"; None where it has none.

    A field that a run's recorded identity lacks is younger than the run, and its default is what the run did.
    """
    node: Any = Recipe
    for part in name.split("."):
        if isinstance(node, type) and issubclass(node, Node) and part in node.model_fields:
            field = node.model_fields[part]
            node = field.annotation if field.is_required() else field.get_default(call_default_factory=True)
        elif get_origin(node) is dict:  # of nodes by name
            node = get_args(node)[1]
        elif isinstance(node, Node) and part in type(node).model_fields:
            node = getattr(node, part)
        else:
            return None
    return None if isinstance(node, type) else node


def _leaves(node: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        return [leaf for key, value in node.items() for leaf in _leaves(value, f"{path}.{key}" if path else str(key))]
    return [(path, node)]
