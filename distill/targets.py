"""What the student learns from: images -> per teacher {summary, spatial}, the spatial map in PHI-S space.

An adapter maps raw teacher units to raw teacher units, with its own PHI-S inside. The PHI-S here is the run's: it is
fitted on the teacher's plain low-resolution map, whatever sharpens it, so the arms of an ablation have targets in one
and the same space and their losses can be compared.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from distill.dispersion import DirectionStatistics
from distill.recipe import Recipe, TeacherNode
from distill.runtime import wants_bf16
from distill.sharpen import Sharpener
from distill.student import HeadSpec
from distill.teacher import Seen, TeacherPool
from featsharp_adapter.phi_s import CovarianceStatistics, PhiS
from featsharp_adapter.views import Views
from teachers.contracts import BackboneSpec, Features
from teachers.errors import UserError
from teachers.frozen import FrozenBackbone

DISPERSION = "dispersion"


class TeacherTarget(nn.Module):
    """One frozen teacher, what sharpens it, and the run's normaliser."""

    def __init__(self, name: str, node: TeacherNode, backbone: FrozenBackbone) -> None:
        super().__init__()
        self.node = node
        self.backbone = backbone
        self.head = head_spec(name, node, self.spec)
        self.sharpener = Sharpener(name, node, self.spec)
        self.normaliser = PhiS(self.spec.spatial_dim)
        self.dispersion: float | None = None  #: of its summaries, once fitted

    @property
    def spec(self) -> BackboneSpec:
        """Of the teacher itself."""
        return self.backbone.spec

    def views(self, seen: Seen) -> Views:
        """Everything the teacher has to look at in a batch; what another arm has asked for is not computed again."""
        return seen.views(self.backbone, self.sharpener.tile_grids)

    def from_views(self, views: Views, images: Tensor) -> Features:
        """Views and the images they come from [B, 3, H, W] -> summary [B, S] and the sharpened map in PHI-S space."""
        return Features(views.summary, self.normaliser.normalise(self.sharpener(views, images)))


class Targets(nn.Module):
    """images [B, 3, H, W] in [0, 1] -> teacher name -> Features, the spatial map in PHI-S space at its own grid.

    pool: where the teachers come from; with one pool, the targets of several arms share the teachers themselves.
    """

    def __init__(self, recipe: Recipe, device: torch.device, pool: TeacherPool | None = None) -> None:
        super().__init__()
        dtype = torch.bfloat16 if wants_bf16(recipe.engine, device) else None
        teachers = pool or TeacherPool()
        self.teachers = nn.ModuleDict(
            {
                name: TeacherTarget(name, node, teachers.get(node.backbone, dtype, node.chunk))
                for name, node in recipe.teachers.items()
            }
        )
        self.eval().requires_grad_(False).to(device)

    def forward(self, images: Tensor) -> dict[str, Features]:
        """[B, 3, H, W] -> Features per teacher; the normalisers must have been fitted or loaded."""
        return self.of(Seen(images))

    @torch.no_grad()
    def of(self, seen: Seen) -> dict[str, Features]:
        """As `forward`, for a batch that other arms may have looked at already."""
        return {name: target.from_views(target.views(seen), seen.images) for name, target in self.teachers.items()}

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Estimate every PHI-S on these images [B, 3, H, W], over all processes, and freeze it."""
        statistics = {name: CovarianceStatistics(target.spec.spatial_dim) for name, target in self.teachers.items()}
        directions = {name: DirectionStatistics() for name, target in self.teachers.items() if target.spec.summary_dim}
        for images in batches:
            seen = Seen(images)
            for name, target in self.teachers.items():
                views = seen.views(target.backbone, ())
                statistics[name].update(views.low)
                if name in directions:
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
        adapters = {f"digest of adapter {name}": target.sharpener.digest for name, target in self.teachers.items()}
        return teachers | adapters


class Board:
    """Several arms at one batch: teachers look once, and equal targets are made once."""

    def __init__(self) -> None:
        self._seen: Seen | None = None

    def share(self, targets: Targets) -> Callable[[Tensor], dict[str, Features]]:
        """`targets` as a function of images [B, 3, H, W] that shares its work with every other one made here.

        Calls with the very same tensor count as one batch; the views of the batch before are let go.
        """

        def look(images: Tensor) -> dict[str, Features]:
            if self._seen is None or self._seen.images is not images:
                self._seen = Seen(images)
            seen = self._seen
            return seen.once((targets,), lambda: targets.of(seen))

        return look


def head_spec(name: str, node: TeacherNode, spec: BackboneSpec) -> HeadSpec:
    """Widths of the targets with a weight; UserError where the recipe wants a summary the teacher does not have."""
    if node.weight.summary and spec.summary_dim is None:
        raise UserError(f"teacher {name} ({spec.name}) has no summary; set teachers.{name}.weight.summary: 0")
    return HeadSpec(
        summary_dim=spec.summary_dim if node.weight.summary else None,
        spatial_dim=spec.spatial_dim if node.weight.spatial else None,
    )
