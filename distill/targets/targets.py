"""What the student learns from: images -> per teacher {summary, spatial}, the spatial map in PHI-S space.

An adapter maps raw teacher units to raw teacher units, with its own PHI-S inside. The PHI-S here is the run's: it is
fitted on the teacher's plain low-resolution map, whatever sharpens it, so the arms of an ablation have targets in one
and the same space and their losses can be compared.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from common.errors import UserError
from distill.losses.shift_equivariance import Shifts
from distill.recipe import Recipe
from distill.recipe_models import TeacherNode
from distill.recipe_stages import WeightNode
from distill.schedule import Pass, input_size, schedule, student_patch
from distill.student.model import HeadSpec
from distill.targets.dispersion import DirectionStatistics
from distill.targets.target_upsampler import TargetUpsampler
from distill.targets.teacher_views import BatchViews, TeacherPool, batch_views, some_tiles
from distill.training.engine import wants_bf16
from featsharp_adapter.adapter.budget import with_tiles
from featsharp_adapter.model.phi_s import CovarianceStatistics, PhiS
from featsharp_adapter.model.views import Views
from teachers.contracts import BackboneSpec, Features
from teachers.frozen import FrozenBackbone

DISPERSION = "dispersion"


class TeacherTarget(nn.Module):
    """One frozen teacher, what sharpens it, and the run's normaliser.

    nodes: the teacher as it is in each pass that it takes part in; `node` as the recipe's `teachers` have it.
    """

    def __init__(self, name: str, node: TeacherNode, backbone: FrozenBackbone, nodes: Sequence[TeacherNode]) -> None:
        super().__init__()
        self.node = node
        self.backbone = backbone
        self.head = head_spec(name, nodes, self.spec)
        different = {_module_name(each): each for each in [*nodes, node]}
        upsamplers = nn.ModuleDict({key: TargetUpsampler(name, each, self.spec) for key, each in different.items()})
        self.target_upsamplers: Mapping[str, TargetUpsampler] = upsamplers  # type: ignore[assignment]  # its stubs do not say of what it is
        self.normaliser = PhiS(self.spec.spatial_dim)
        self.dispersion: float | None = None  #: of its summaries, once fitted

    @property
    def spec(self) -> BackboneSpec:
        """Of the teacher itself."""
        return self.backbone.spec

    @property
    def target_upsampler(self) -> TargetUpsampler:
        """What sharpens the teacher as the recipe's `teachers` have it."""
        return self.upsampler_for(self.node)

    def upsampler_for(self, node: TeacherNode) -> TargetUpsampler:
        """What sharpens the teacher as it is in `node`."""
        return self.target_upsamplers[_module_name(node)]

    def plain_views(self, seen: BatchViews, node: TeacherNode, patch: int) -> Views:
        """The small view that the pass of `node` shows the teacher, without tiles; `patch` the student's."""
        height, width = seen.images.shape[-2:]
        if node.mosaic:
            return seen.mosaic(self.backbone, (height // patch, width // patch), node.chunk)
        return seen.views(self.backbone, (), input_size(node, self.spec, (height, width), patch), node.chunk)

    def views(self, seen: BatchViews, node: TeacherNode, patch: int) -> Views:
        """Everything the teacher has to look at in a batch; what another arm has asked for is not computed again."""
        small, upsampler = self.plain_views(seen, node, patch), self.upsampler_for(node)
        if node.passes is not None:
            chosen = upsampler.chosen_tiles(small.low, seen.images, node.passes)
            if chosen is not None:
                return with_tiles(small, some_tiles(self.backbone, seen.images, small.low, chosen, node.chunk), chosen)
        grids = upsampler.tile_grids
        return Views(small.summary, small.low, seen.tiles(self.backbone, grids, node.chunk))

    def from_views(self, views: Views, images: Tensor, node: TeacherNode) -> Features:
        """Views and the images they come from [B, 3, H, W] -> summary [B, S] and the sharpened map in PHI-S space."""
        return Features(views.summary, self.normaliser.normalise(self.upsampler_for(node)(views, images)))


class Targets(nn.Module):
    """images [B, 3, H, W] in [0, 1] -> teacher name -> Features, the spatial map in PHI-S space at its own grid.

    Each pass of the recipe's schedule has targets of its own: its teachers, shown and sharpened as it says. PHI-S is
    one for all of them, as are the student's heads.

    pool: where the teachers come from; with one pool, the targets of several arms share the teachers themselves.
    """

    def __init__(self, recipe: Recipe, device: torch.device, pool: TeacherPool | None = None) -> None:
        super().__init__()
        dtype = torch.bfloat16 if wants_bf16(recipe.engine, device) else None
        teachers = pool or TeacherPool()
        self.schedule = schedule(recipe)
        parts = [part for stage in self.schedule for part in stage.passes]
        self.patch = student_patch(recipe.student)
        nodes = {name: [part.teachers[name] for part in parts if name in part.teachers] for name in recipe.teachers}
        made = nn.ModuleDict(
            {
                name: TeacherTarget(
                    name,
                    node,
                    teachers.get(
                        node.backbone,
                        dtype,
                        max(each.chunk for each in [node, *nodes[name]]),
                        compiled=recipe.engine.compile_teachers,
                    ),
                    nodes[name],
                )
                for name, node in recipe.teachers.items()
            }
        )
        self.teachers: Mapping[str, TeacherTarget] = made  # type: ignore[assignment]  # its stubs do not say of what it is
        self.eval().requires_grad_(False).to(device)
        if recipe.engine.compile_teachers:
            for target in self.teachers.values():
                for upsampler in target.target_upsamplers.values():
                    upsampler.compile(dynamic=False)

    @property
    def only(self) -> Pass:
        """The first pass: the only one of a recipe without stages."""
        return self.schedule[0].passes[0]

    def forward(self, images: Tensor) -> dict[str, Features]:
        """[B, 3, H, W] of the first pass -> Features per teacher; the normalisers must have been fitted or loaded."""
        return self.of(BatchViews(images), self.only)

    @torch.no_grad()
    def of(self, seen: BatchViews, part: Pass) -> dict[str, Features]:
        """The targets of a pass, for a batch that other arms may have looked at already."""
        found = {}
        for name, node in part.teachers.items():
            target, own = self.teachers[name], seen.of(name)
            found[name] = target.from_views(target.views(own, node, self.patch), own.images, node)
        return found

    def for_pass(self, part: Pass, shifts: Shifts | None = None) -> Callable[[Tensor], dict[str, Features]]:
        """The targets of a pass as a function of images [B, 3, H, W]; with shifts, of canvases."""
        return lambda images: self.of(batch_views(images, part.partition, shifts), part)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Estimate every PHI-S on these images [B, 3, H, W] of the first pass, over all processes, and freeze it."""
        self.fit_shown((self.only, images) for images in batches)

    @torch.no_grad()
    def fit_shown(self, batches: Iterable[tuple[Pass, Tensor]]) -> None:
        """As `fit`, on images of any of the first stage's passes.

        A teacher is measured as these passes show it, before anything sharpens it; one that they do not show at all,
        on their images at its native size.
        """
        parts = self.schedule[0].passes
        nodes = {name: [part.teachers[name] for part in parts if name in part.teachers] for name in self.teachers}
        statistics = {name: CovarianceStatistics(target.spec.spatial_dim) for name, target in self.teachers.items()}
        directions = {
            name: DirectionStatistics()
            for name, target in self.teachers.items()
            if target.spec.summary_dim and not (nodes[name] and all(node.mosaic for node in nodes[name]))
        }
        for part, images in batches:
            seen = BatchViews(images)
            for name, target in self.teachers.items():
                if name not in part.teachers and nodes[name]:
                    continue
                node = part.teachers.get(name)
                views = target.plain_views(seen, node, self.patch) if node else seen.views(target.backbone, ())
                statistics[name].update(views.low)
                if name in directions and views.summary is not None:
                    directions[name].update(views.summary)
        for name, target in self.teachers.items():
            statistics[name].all_reduce()
            target.normaliser.load_state_dict(PhiS.fit(statistics[name]).state_dict())
        for name, direction in directions.items():
            self.teachers[name].dispersion = direction.dispersion()

    def normaliser_state(self) -> dict[str, Tensor]:
        """The normalisers' buffers by "teacher.buffer", and dispersions: all the state of the targets a run makes."""
        buffers = {
            f"{name}.{buffer}": tensor.cpu()
            for name, target in self.teachers.items()
            for buffer, tensor in target.normaliser.state_dict().items()
        }
        return buffers | {
            f"{name}.{DISPERSION}": torch.tensor(d, dtype=torch.float64) for name, d in self.dispersions().items()
        }

    def dispersions(self) -> dict[str, float]:
        """How far each teacher's summaries spread, in squared radians, where that was estimated."""
        known = {name: target.dispersion for name, target in self.teachers.items()}
        return {name: value for name, value in known.items() if value is not None}

    def load_normalisers(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `normaliser_state` gave."""
        for name, target in self.teachers.items():
            own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            dispersion = own.pop(DISPERSION, None)
            target.dispersion = None if dispersion is None else float(dispersion)
            target.normaliser.load_state_dict(own)

    def heads(self) -> dict[str, HeadSpec]:
        """What each teacher asks of the student."""
        return {name: target.head for name, target in self.teachers.items()}

    def digests(self) -> dict[str, str | None]:
        """Digests of teachers and adapters, for the identity of a run."""
        teachers = {f"digest of teacher {name}": target.spec.digest for name, target in self.teachers.items()}
        adapters = {
            f"digest of adapter {name}": target.target_upsampler.digest for name, target in self.teachers.items()
        }
        others = {
            f"digest of adapter {name} as {key}": target_upsampler.digest
            for name, target in self.teachers.items()
            for key, target_upsampler in target.target_upsamplers.items()
            if key != how(target.node)
        }
        return teachers | adapters | others


class SharedTargets:
    """Several arms at one batch: teachers look once, and equal targets are made once."""

    def __init__(self) -> None:
        self._seen: dict[str, BatchViews] = {}
        self._stage = ""

    def share(
        self, targets: Targets, part: Pass, shifts: Shifts | None = None
    ) -> Callable[[Tensor], dict[str, Features]]:
        """The targets of a pass as a function of images [B, 3, H, W] that shares its work with every other made here.

        Calls with the very same tensor count as one batch; the views of the pass's batch before are let go.
        """

        def look(images: Tensor) -> dict[str, Features]:
            if part.stage != self._stage:
                self._stage, self._seen = part.stage, {}
            seen = self._seen.get(part.partition)
            if seen is None or seen.images is not images:
                seen = self._seen[part.partition] = batch_views(images, part.partition, shifts)
            return seen.once((targets,), lambda: targets.of(seen, part))

        return look


def how(node: TeacherNode) -> str:
    """What decides the sharpener of a teacher, as a name."""
    if node.denoise is not None:
        return f"denoised by {node.denoise.replace('.', '_')}"
    return f"{node.upsampler} {node.factor}x" if node.upsampler != "none" else "none"


def head_spec(name: str, nodes: Sequence[TeacherNode], spec: BackboneSpec) -> HeadSpec:
    """Widths of the targets with a weight in any pass; UserError where one wants a summary the teacher has not."""
    whole = WeightNode(
        summary=max((node.weight.summary for node in nodes), default=0),
        spatial=max((node.weight.spatial for node in nodes), default=0),
    )
    if whole.summary and spec.summary_dim is None:
        raise UserError(f"teacher {name} ({spec.name}) has no summary; set teachers.{name}.weight.summary: 0")
    return HeadSpec(
        summary_dim=spec.summary_dim if whole.summary else None,
        spatial_dim=spec.spatial_dim if whole.spatial else None,
    )


def _module_name(node: TeacherNode) -> str:
    """`how(node)` without the dots of `class:PACKAGE.MODULE.NAME`, which PyTorch allows in no module's name."""
    return how(node).replace(".", ":")
