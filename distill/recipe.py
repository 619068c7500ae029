"""The recipe of a distillation: one typed object, read from YAML (`common.recipes` does the reading).

Every field is read by the code that does the work; a field that nobody reads would be a lie. `fingerprint` says which
fields decide the numbers of a run, so that a resumed run can name what changed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args, get_origin

from pydantic import Field, model_validator
from torch import nn

from common.errors import UserError
from common.recipes import Name, Node, Place, Seed, read_recipe, safe_name, validate
from distill.recipe_engine import CacheNode, CheckpointNode, EngineNode, EvalNode, LogNode
from distill.recipe_models import DataNode, StudentNode, TeacherNode
from distill.recipe_stages import Align, StageNode
from distill.recipe_training import EmaNode, LossNode, NormaliserNode, OptimNode

#: Rows of a table: the student before its first update, of random weights or as it was given.
UNTRAINED, BEFORE = "untrained", "before"
FILES = {"eval.suite": "suites/"}  #: fields that name another file of this kind, and where shipped ones lie
#: A teacher's heads are modules under its name, so it may not be called as a module's own methods are.
TAKEN = frozenset({*dir(nn.ModuleDict), UNTRAINED, BEFORE})


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
