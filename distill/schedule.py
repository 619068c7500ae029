"""Which passes every training step consists of: a pure function of the recipe.

    schedule(recipe) -> (Stage, Stage, ...)      in order; a recipe without `stages` is one stage of one pass
    Stage.passes -> (Pass, Pass, ...)            the step's partitions, in order
    Pass: sizes, batch_size, share, teachers     `teachers` are whole TeacherNodes, as they are in this very pass
    views(node, spec, size, patch, tile_grids)   the forward passes one teacher makes for one image of a pass

Stages are those of RADIO (256 -> 432 -> 432 + 1024 px; PHI-S, arXiv 2410.01680, table 10): the cosine starts again in
each. Partitions are RADIO's too: images of their own at a size of their own, one update for all of them. A size drawn
anew for each step, the same on all processes, is C-RADIOv4's (arXiv 2601.17237).
"""

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch

from common.errors import UserError
from common.recipes import validate
from distill.recipe import Recipe
from distill.recipe_models import StudentNode, TeacherNode
from distill.recipe_stages import Align, AugmentNode, PartitionNode, StageNode, TeacherPart
from distill.recipe_training import OptimNode
from featsharp_adapter.adapter.budget import budget_of
from teachers.contracts import BackboneSpec

ONLY = "all"  #: name of the one partition of a recipe without any
Grid = tuple[int, int]


@dataclass(frozen=True)
class Pass:
    """One partition of a stage's steps.

    share: its loss in the step's. ranks: its share of the processes in a stage split by ranks.
    """

    stage: str
    partition: str
    sizes: tuple[Grid, ...]  #: (height, width) in pixels of the student's images; one is drawn per step
    batch_size: int  #: over all processes that do this pass
    share: float
    ranks: int
    augment: AugmentNode
    teachers: Mapping[str, TeacherNode]
    aligns: Mapping[str, Align]  #: of every teacher

    def size_at(self, seed: int, step: int) -> Grid:
        """The size at update number `step` (0, 1, ...): of seed, partition and step alone, so alike on all ranks."""
        if len(self.sizes) == 1:
            return self.sizes[0]
        return random.Random(f"{seed} {self.partition} {step}").choice(self.sizes)


@dataclass(frozen=True)
class Stage:
    """Updates `first` (0, 1, ...) up to, not including, `first + steps`."""

    name: str
    first: int
    steps: int
    by_ranks: bool  #: every process does one of the passes, instead of all
    passes: tuple[Pass, ...]
    optim: OptimNode  #: as it is in this stage: its steps, rate, warm-up and frozen steps, counted from `first`

    @property
    def images(self) -> int:
        """Images of one step, over all processes."""
        return sum(part.batch_size for part in self.passes)


def schedule(recipe: Recipe) -> tuple[Stage, ...]:
    """Every stage with the passes of its steps; UserError where a partition's settings contradict each other."""
    nodes = recipe.stages or {"main": StageNode(steps=recipe.optim.steps, partitions={ONLY: PartitionNode()})}
    stages: list[Stage] = []
    for name, node in nodes.items():
        first = stages[-1].first + stages[-1].steps if stages else 0
        own = {"lr": node.lr, "warmup_steps": node.warmup_steps, "freeze_body_steps": node.freeze_body_steps}
        changes = {"steps": node.steps} | {key: value for key, value in own.items() if value is not None}
        optim = recipe.optim.model_copy(update=changes)
        stages.append(Stage(name, first, node.steps, node.split == "ranks", _passes(recipe, name, node), optim))
    taught = {teacher for stage in stages for part in stage.passes for teacher in part.teachers}
    if idle := [name for name in recipe.teachers if name not in taught]:
        raise UserError(f"teachers.{idle[0]} teaches in no stage; leave it out")
    return tuple(stages)


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage of update number `step` (0, 1, ...); past the end, the last one."""
    return next((stage for stage in stages if step < stage.first + stage.steps), stages[-1])


def stage_in_words(stage: Stage) -> str:
    """A stage in words."""
    passes = [
        f"{part.batch_size} images at {' or '.join(f'{height}x{width}' for height, width in part.sizes)} px"
        for part in stage.passes
    ]
    return f"{stage.steps} steps x {' + '.join(passes)}"


def student_patch(node: StudentNode) -> int:
    """Pixels of a side of the student's patch; UserError where timm does not know the model."""
    return node.patch_size or _patch_of(node.model)


@functools.cache
def _patch_of(model: str) -> int:
    try:
        with torch.device("meta"):
            made: Any = timm.create_model(model)
        return int(made.patch_embed.patch_size[0])
    except (RuntimeError, AttributeError) as error:
        raise UserError(f'student.model "{model}" is no vision transformer of timm ({error})') from error


def _passes(recipe: Recipe, stage: str, node: StageNode) -> tuple[Pass, ...]:
    batches = {name: part.batch_size or recipe.optim.batch_size for name, part in node.partitions.items()}
    whole = sum(batches.values())
    return tuple(
        Pass(
            stage=stage,
            partition=name,
            sizes=tuple(part.sizes or [recipe.data.size]),
            batch_size=batches[name],
            share=batches[name] / whole if part.weight is None else part.weight,
            ranks=part.ranks,
            augment=part.augment or recipe.data.augment,
            teachers=_teachers(recipe, f"stages.{stage}.partitions.{name}", part),
            aligns={teacher: _align(recipe, teacher, part) for teacher in recipe.teachers},
        )
        for name, part in node.partitions.items()
    )


def _teachers(recipe: Recipe, where: str, part: PartitionNode) -> dict[str, TeacherNode]:
    """The teachers of a partition, each as it is there."""
    for name in [*part.teachers, *part.without]:
        if name not in recipe.teachers:
            raise UserError(f'{where}: no teacher "{name}"; there are {", ".join(recipe.teachers)}')
    made = {
        name: _changed(node, part.teachers.get(name), f"{where}.teachers.{name}")
        for name, node in recipe.teachers.items()
        if name not in part.without
    }
    if not made:
        raise UserError(f"{where}: no teacher is left")
    return made


def _changed(node: TeacherNode, part: TeacherPart | None, where: str) -> TeacherNode:
    if part is None:
        return node
    changes: dict[str, Any] = part.model_dump(exclude_none=True)
    return validate(TeacherNode, node.model_dump() | changes, where)


def _align(recipe: Recipe, teacher: str, part: PartitionNode) -> Align:
    own = part.teachers[teacher].align if teacher in part.teachers else None
    return own or recipe.teachers[teacher].align or recipe.align


@dataclass(frozen=True)
class View:
    """Forward passes of a teacher at one size. per_image: how many an image costs; a mosaic's are shared by several."""

    what: str  #: "small", "tiles 3x3" or "mosaic 2x2"
    size: Grid  #: in pixels, as the teacher sees it
    per_image: float


def views(node: TeacherNode, spec: BackboneSpec, size: Grid, patch: int, tile_grids: Sequence[int]) -> list[View]:
    """What a teacher looks at for one student image of `size` pixels, `patch` the student's.

    tile_grids: what the upsampler asks for (`TargetUpsampler.tile_grids`; (factor,) for tile, s2, featsharp). UserError
    where the teacher cannot be shown that.
    """
    if node.mosaic:
        rows, columns = mosaic_cells(spec, (size[0] // patch, size[1] // patch))
        return [View(f"mosaic {rows}x{columns}", spec.native_size, 1 / (rows * columns))]
    small = View("small", input_size(node, spec, size, patch), 1)
    return [small, *(_tiles(node, spec, n) for n in tile_grids)]


def _tiles(node: TeacherNode, spec: BackboneSpec, n: int) -> View:
    """All tiles of a grid, or as many of them as the teacher's budget of passes allows."""
    whole = 1 + n * n
    if node.passes is None or budget_of(node.passes, whole) == whole:
        return View(f"tiles {n}x{n}", spec.native_size, n * n)
    worth = budget_of(node.passes, whole) - 1
    return View(f"of {n * n} tiles", spec.native_size, worth)


def input_size(node: TeacherNode, spec: BackboneSpec, size: Grid, patch: int) -> Grid:
    """Pixels of a teacher's small view of a student image of `size`; UserError for a size it cannot take."""
    if node.input == "native":
        return spec.native_size
    if node.input == "match":  # C-RADIOv4: the teacher's size is the student's, scaled by the patches' ratio
        wanted = (size[0] // patch * spec.patch_size, size[1] // patch * spec.patch_size)
    else:
        wanted = node.input
    fits = spec.resizable and not any(side % spec.patch_size for side in wanted)
    if wanted != tuple(spec.native_size) and not fits:
        how = (
            f"multiples of {spec.patch_size} px"
            if spec.resizable
            else f"{spec.native_size[0]}x{spec.native_size[1]} px"
        )
        raise UserError(f"{spec.name} takes {how} only, not {wanted[0]}x{wanted[1]}; set its `input: native`")
    return wanted


def mosaic_cells(spec: BackboneSpec, grid: Grid) -> Grid:
    """How many rows and columns of images of `grid` tokens fit on the teacher's canvas; UserError for none."""
    rows, columns = (whole // part for whole, part in zip(spec.native_grid, grid, strict=True))
    if not rows or not columns:
        raise UserError(
            f"{spec.name}: an image of {grid[0]}x{grid[1]} tokens does not fit on its canvas of {spec.native_grid[0]}x"
            f"{spec.native_grid[1]}; leave `mosaic` out for this size"
        )
    return rows, columns
