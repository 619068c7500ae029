"""Operations and memory of a recipe's parts: the real teachers, adapters, student and losses, run on fake tensors.

Models are built on the meta device, so that nothing is downloaded or allocated, and run as fake CPU tensors, so that
the library takes the kernels it takes for real ones (its fused attention keeps no attention map, autocast is bf16).
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.losses.step import DistillStep
from distill.planning.counting import Cost, CostCounter, SkipInit, as_fake, measure, parameter_bytes
from distill.planning.repeated_blocks import RepeatedBlocks, signature
from distill.planning.weightless_backbones import shapes_only
from distill.recipe import Recipe
from distill.recipe_models import StudentNode, TeacherNode
from distill.schedule import Grid, Pass, View, views
from distill.student.ema import NoAverage
from distill.student.model import HeadSpec, Student
from distill.student.spectral import ReparametrisedLinear
from distill.targets.target_upsampler import adapter_dtype, plain_upsampler
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.description import AdapterMeta
from featsharp_adapter.adapter.folder import find_folder, read_description
from featsharp_adapter.model.normalisers import new_normaliser
from featsharp_adapter.model.phi_s import PhiS
from featsharp_adapter.model.views import Views
from featsharp_adapter.upsamplers.base import Upsampler
from teachers.contracts import BackboneSpec, Features, capability
from teachers.frozen import FrozenBackbone, hold_matrices

#: Depths at which a student of like blocks is counted, to tell what a block adds.
SHORT = (1, 2)
MOST = 2**20  #: images at once: more than any chunk


class PlannedTeacher:
    """A teacher of the recipe, without its numbers. Make it outside of `FakeTensorMode`, use it inside."""

    def __init__(self, name: str, node: TeacherNode, nodes: Sequence[TeacherNode], bf16: bool) -> None:
        self.name, self.node, self.bf16 = name, node, bf16
        self.plain = shapes_only(node.backbone)
        if drop_text := capability(self.plain, "drop_text"):
            drop_text()
        self.spec: BackboneSpec = self.plain.spec
        self.parameters = sum(parameter.numel() for parameter in self.plain.parameters())
        self.dtype = torch.bfloat16 if bf16 else None
        if self.dtype is not None:
            hold_matrices(getattr(self.plain, "image_part", self.plain), self.dtype)
        self._sharpeners = {each.model_dump_json(): self._make(each) for each in nodes}
        adapters = {id(made): parameter_bytes(made) for made in self._sharpeners.values() if made is not None}
        self.bytes_of_teacher = sum(parameter.nbytes for parameter in self.plain.parameters())
        self.bytes = parameter_bytes(self.plain) + sum(adapters.values())
        self._frozen: FrozenBackbone | None = None
        self._looks: dict[Grid, tuple[Cost, int]] = {}
        self._faked: dict[str, nn.Module] = {}
        self._sharp: dict[tuple[str, tuple[int, ...], Grid], tuple[Cost, Grid]] = {}

    def _make(self, node: TeacherNode) -> Adapter | Upsampler | None:
        """What sharpens it in a pass: the adapter, trained or still to be trained; an upsampler; None."""
        folder = node.denoise or node.adapters.get(node.upsampler)
        if folder is None:
            return None if node.upsampler == "none" else plain_upsampler(self.name, node, self.spec)
        with torch.device("meta"), SkipInit():
            meta = adapter_meta(folder, node, self.spec)
            made = Adapter.build(meta, new_normaliser(meta.normaliser, self.spec.spatial_dim))
        made.dtype = adapter_dtype(node)
        return made

    def tile_grids(self, node: TeacherNode) -> tuple[int, ...]:
        """Of a pass."""
        made = self._sharpeners[node.model_dump_json()]
        return () if made is None or node.denoise is not None else tuple(made.tile_grids)

    def _working(self, node: TeacherNode) -> nn.Module | None:
        """The sharpener with fake numbers; made once, for a faked module cannot be faked again."""
        key = node.model_dump_json()
        made = self._sharpeners[key]
        if made is not None and key not in self._faked:
            self._faked[key] = as_fake(made)
        return self._faked.get(key)

    def look(self, view: View, images: int, chunk: int) -> tuple[Cost, int, int]:
        """(cost of all its forward passes for this view of `images` images, bytes of the maps, forward passes).

        chunk: images of one pass at most.
        """
        count = -int(-images * view.per_image // 1)
        if self._frozen is None:
            self._frozen = FrozenBackbone(as_fake(self.plain), self.dtype, MOST)
            self._repeated = RepeatedBlocks(self._frozen)
        chunk = min(chunk, count)
        if view.size not in self._looks:
            frozen, pixels = self._frozen, torch.empty(chunk, 3, *view.size)
            self._looks[view.size] = self._repeated.measure(lambda: frozen(pixels)), chunk
        one, measured = self._looks[view.size]  # images do not meet in a frozen network, so what is counted is linear
        grid = (view.size[0] // self.spec.patch_size, view.size[1] // self.spec.patch_size)
        maps = count * self.spec.spatial_dim * grid[0] * grid[1] * 4
        pixels_bytes = count * 3 * view.size[0] * view.size[1] * 4  # the resized images, all of them at once
        return Cost(one.flops / measured * count, one.peak * chunk // measured + pixels_bytes), maps, count

    def sharpen(self, node: TeacherNode, images: Tensor, low: Grid) -> tuple[Cost, Grid]:
        """Cost of everything between the views of images [b, 3, H, W] and the target; the target's grid."""
        key = (node.model_dump_json(), tuple(images.shape), low)
        if key not in self._sharp:
            self._sharp[key] = self._sharpen(node, images, low)
        return self._sharp[key]

    def _sharpen(self, node: TeacherNode, images: Tensor, low: Grid) -> tuple[Cost, Grid]:
        module, dim = self._working(node), self.spec.spatial_dim
        normaliser = PhiS(dim)
        tiles = {n: torch.empty(len(images), dim, n * low[0], n * low[1]) for n in self.tile_grids(node)}
        seen = Views(None, torch.empty(len(images), dim, *low), tiles)
        found: list[Tensor] = []

        def target() -> None:
            sharp = seen.low
            if isinstance(module, Adapter):
                sharp = module.denoise(seen.low) if node.denoise is not None else module(seen, images)
            elif module is not None:
                sharp = module(seen.low, seen.tiles, images)
            found.append(normaliser.normalise(sharp))

        with torch.no_grad():
            cost = measure(target)
        return cost, (found[0].shape[-2], found[0].shape[-1])


def adapter_meta(folder: str, node: TeacherNode, spec: BackboneSpec) -> AdapterMeta:
    """Of the trained adapter; where there is none yet, of one with the upsampler's default options."""
    if folder.startswith("builtin:") or Path(folder).is_dir():
        path = find_folder(folder)
        return AdapterMeta.from_dict(read_description(path), str(path))
    name = "featsharp" if node.denoise is not None else node.upsampler
    return AdapterMeta(teacher=spec, teacher_node=node.backbone, upsampler=name, factor=max(node.factor, 2))


def build_student(node: StudentNode, size: Grid, heads: Mapping[str, HeadSpec], *, bf16: bool) -> Student:
    """The student without its numbers; its starting weights change nothing here."""
    with torch.device("meta"), SkipInit():
        student = Student(node.model_copy(update={"weights": None}), size, heads, bf16=bf16)
    for layer in student.modules():
        if isinstance(layer, ReparametrisedLinear):
            layer.index = 0  # which numbers it would draw makes it no other layer
    return student


@dataclass(frozen=True)
class StudentCost(Cost):
    """Forward, loss and backward. held: bytes of activations kept for the backward pass when the loss is known."""

    held: int


@dataclass(frozen=True)
class PassCost:
    """One pass of a step on one process, at one size.

    student: beside its weights and gradients. teachers, adapters: FLOPs by name. forwards: of every teacher (view, its
    size, how many). grids: of the targets. peak_teachers: bytes while the teachers look and are sharpened. targets:
    bytes of what the student is compared with, and of the images.
    """

    part: Pass
    size: Grid
    images: int
    student: StudentCost
    teachers: dict[str, float]
    adapters: dict[str, float]
    forwards: dict[str, list[tuple[str, Grid, int]]]
    grids: dict[str, Grid]
    peak_teachers: int
    targets: int

    @property
    def peak(self) -> int:
        """Most bytes at once, beside all weights and the student's gradients."""
        return max(self.peak_teachers, self.targets + self.student.peak)

    @property
    def held(self) -> int:
        """Bytes that stay while the other passes of the step go forward: one backward pass follows for all of them."""
        return self.targets + self.student.held


class Counter:
    """Costs of a recipe's passes. Make it outside of `FakeTensorMode`, ask it inside."""

    def __init__(self, recipe: Recipe, teachers: Mapping[str, PlannedTeacher], student: Student) -> None:
        self.recipe, self.teachers, self.student = recipe, teachers, student
        self._learnt: dict[str, StudentCost] = {}
        self._updates = 0
        windowed = student.node.window is not None or student.node.window_train is not None
        self._alike = not windowed and len({signature(block) for block in student.vit.blocks}) == 1

    def anew(self) -> "Counter":
        """One that counts the student again, for it has been changed."""
        again = copy(self)
        again._learnt = {}
        return again

    def count(self, part: Pass, size: Grid, images: int) -> PassCost:
        """Everything that one pass costs a process that does it on so many images of this size."""
        pixels = torch.empty(images, 3, *size)
        looked: dict[str, float] = {}
        adapted: dict[str, float] = {}
        forwards: dict[str, list[tuple[str, Grid, int]]] = {}
        targets: dict[str, Features] = {}
        held = peak = pixels.nbytes
        maps = 0
        for name in part.teachers:
            seen = self._see(part, name, size, images)
            maps += sum(own for _, _, own in seen)  # every teacher's views stay until the targets of a pass are made
            looked[name] = sum(cost.flops for _, cost, _ in seen)
            forwards[name] = [(view.what, view.size, -int(-images * view.per_image // 1)) for view, _, _ in seen]
            cost, grid = self._sharpen(part, name, pixels, seen[0][0])
            adapted[name] = cost.flops
            peak = max(peak, held + maps + max(cost.peak, *(look.peak for _, look, _ in seen)))
            targets[name] = self._target(part, name, images, grid)
            held += targets[name].spatial.nbytes
        grids = {name: (target.spatial.shape[-2], target.spatial.shape[-1]) for name, target in targets.items()}
        learnt = self._student(part, pixels, targets, grids)
        return PassCost(part, size, images, learnt, looked, adapted, forwards, grids, peak, held)

    @property
    def patch(self) -> int:
        """Pixels of a side of the student's patch."""
        return int(self.student.vit.patch_embed.patch_size[0])

    def _see(self, part: Pass, name: str, size: Grid, images: int) -> list[tuple[View, Cost, int]]:
        """Every view of a teacher: (view, cost, bytes of its maps)."""
        teacher, node = self.teachers[name], part.teachers[name]
        found = []
        for view in views(node, teacher.spec, size, self.patch, teacher.tile_grids(node)):
            cost, own, _ = teacher.look(view, images, node.chunk)
            found.append((view, cost, own))
        return found

    def _sharpen(self, part: Pass, name: str, pixels: Tensor, small: View) -> tuple[Cost, Grid]:
        teacher, node = self.teachers[name], part.teachers[name]
        side = self.patch if node.mosaic else teacher.spec.patch_size  # a mosaic's parts have the student's grid
        height, width = pixels.shape[-2:] if node.mosaic else small.size
        return teacher.sharpen(node, pixels, (height // side, width // side))

    def _target(self, part: Pass, name: str, images: int, grid: Grid) -> Features:
        spec = self.teachers[name].spec
        width = None if part.teachers[name].mosaic else spec.summary_dim
        summary = None if width is None else torch.empty(images, width)
        return Features(summary, torch.empty(images, spec.spatial_dim, *grid))

    def _student(
        self, part: Pass, pixels: Tensor, targets: Mapping[str, Features], grids: Mapping[str, Grid]
    ) -> StudentCost:
        """Of forward, loss and backward; two passes that differ in nothing that matters are counted once."""
        weights = {name: node.weight.model_dump() for name, node in part.teachers.items()}
        key = str((tuple(pixels.shape), grids, part.aligns, weights))
        if key not in self._learnt:
            everyone = dict.fromkeys(self.recipe.teachers, 1.0)
            average = NoAverage(self.student) if self.recipe.loss.mesa else None
            self.student.returns_backbone = average is not None
            step = DistillStep(self.student, lambda images: dict(targets), self.recipe, everyone, part, average=average)
            self._learnt[key] = self._of_like_blocks(step, pixels, targets) or self._learn(step, pixels, targets)
        return self._learnt[key]

    def _of_like_blocks(self, step: DistillStep, pixels: Tensor, targets: Mapping[str, Features]) -> StudentCost | None:
        """The same from two depths, for a student whose blocks are all alike: each further block adds as much.

        The most memory is needed either while blocks keep activations for the backward pass, and then it grows with
        their number, or before and after, and then it does not; the two are measured apart.
        """
        vit = self.student.vit
        blocks = vit.blocks
        if len(blocks) <= sum(SHORT) or not self._alike:
            return None
        found = []
        for depth in SHORT:
            vit.blocks = blocks[:depth]
            try:
                with BlockPeak(vit.blocks[0]) as within:
                    cost = self._learn(step, pixels, targets, within)
                found.append((cost, within))
            finally:
                vit.blocks = blocks
        (less, short), (more, longer) = found
        further = len(blocks) - SHORT[1]
        inside = longer.peak + further * (longer.peak - short.peak)
        return StudentCost(
            more.flops + further * (more.flops - less.flops),
            max(inside, longer.outside),
            more.held + further * (more.held - less.held),
        )

    def _learn(
        self, step: DistillStep, pixels: Tensor, targets: Mapping[str, Features], within: "BlockPeak | None" = None
    ) -> StudentCost:
        for parameter in self.student.parameters():
            parameter.grad = torch.empty_like(parameter)
        self._updates += 1
        self.student.begin(self._updates)  # a spectral layer does more in the first forward of an update
        with CostCounter(meta=True) as counted:
            if within is not None:
                within.counted = counted
            result = step.loss(pixels, targets)
            held = counted.current
            result.loss.backward()
        if within is not None:
            within.end()
        self.student.zero_grad()
        return StudentCost(float(counted.flops), counted.peak, held)


class BlockPeak:
    """The peak of a count from where `first`, a block, begins until its gradient is known, and the peak outside.

    A context manager around one forward and backward pass; `counted` is the count that goes on in it.
    """

    def __init__(self, first: nn.Module) -> None:
        self.first = first
        self.counted: CostCounter | None = None
        self.peak = self.outside = 0

    def __enter__(self) -> "BlockPeak":
        self._handle = self.first.register_forward_pre_hook(self._begin)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def end(self) -> None:
        """The count is over: what it saw last was outside."""
        if self.counted is not None:
            self.outside = max(self.outside, self.counted.peak)

    def _begin(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        # Recomputed activations come here again, in the backward pass.
        if self.counted is not None and not self.peak:
            self.outside, self.counted.peak = self.counted.peak, self.counted.current
            given[0].register_hook(lambda _: self._done())
            self.peak = 1

    def _done(self) -> None:
        if self.counted is not None:
            self.peak, self.counted.peak = self.counted.peak, self.counted.current
