"""Operations and memory of a recipe's parts, counted on tensors that have shapes and no numbers.

Models are built on the meta device, so that nothing is downloaded or allocated, and run as fake CPU tensors, so that
the library takes the kernels it takes for real ones (its fused attention keeps no attention map, autocast is bf16).
What is counted: matrix products, convolutions and attention (torch.utils.flop_counter), and bytes of live tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from distill.recipe import Recipe, StudentNode, TeacherNode
from distill.schedule import Grid, Pass, View, views
from distill.sharpen import plain_upsampler
from distill.step import DistillStep
from distill.student import HeadSpec, Student
from featsharp_adapter.adapter import Adapter
from featsharp_adapter.adapter_folder import find_folder, read_description
from featsharp_adapter.meta import AdapterMeta
from featsharp_adapter.normalisers import new_normaliser
from featsharp_adapter.peak_memory import PeakMemory
from featsharp_adapter.phi_s import PhiS
from featsharp_adapter.views import Views
from teachers.contracts import Backbone, BackboneSpec, Features
from teachers.frozen import FrozenBackbone
from teachers.registry import load_backbone, parse_spec


def _attention(query: Any, key: Any, value: Any, *_rest: Any, **_named: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_rest: Any, **_named: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


#: torch's own counter does not know the CPU's fused attention.
_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
#: Libraries that build a model without its weights.
_ON_META = ("timm", "open_clip", "transformers")


@dataclass(frozen=True)
class Cost:
    """flops: of a call. peak: bytes of tensors it made that lived at one time, results included."""

    flops: float
    peak: int


def measure(function: Callable[[], object]) -> Cost:
    """Of one call; inside `FakeTensorMode` nothing is computed."""
    with PeakMemory() as memory, FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        function()
    return Cost(float(counter.get_total_flops()), memory.peak)


def as_fake(module: nn.Module) -> nn.Module:
    """The module with fake parameters and buffers on the CPU; call it inside `FakeTensorMode`."""
    return module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))


def parameter_bytes(module: nn.Module) -> int:
    """Parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


class PlannedTeacher:
    """A teacher of the recipe, without its numbers. Make it outside of `FakeTensorMode`, use it inside."""

    def __init__(self, name: str, node: TeacherNode, bf16: bool) -> None:
        self.name, self.node, self.bf16 = name, node, bf16
        self.plain = shapes_only(node.backbone)
        self.spec: BackboneSpec = self.plain.spec
        self.parameters = sum(parameter.numel() for parameter in self.plain.parameters())
        self.bytes = parameter_bytes(self.plain)
        self._frozen: FrozenBackbone | None = None
        self._looks: dict[tuple[Grid, int], Cost] = {}
        self._sharpeners: dict[str, nn.Module | None] = {}
        self._faked: dict[str, nn.Module] = {}

    def sharpener(self, node: TeacherNode) -> nn.Module | None:
        """What sharpens it in a pass: the adapter, trained or still to be trained; an upsampler; None."""
        key = node.model_dump_json()
        if key not in self._sharpeners:
            self._sharpeners[key] = self._make(node)
        return self._sharpeners[key]

    def _make(self, node: TeacherNode) -> nn.Module | None:
        folder = node.denoise or node.adapters.get(node.upsampler)
        if folder is None:
            return None if node.upsampler == "none" else plain_upsampler(self.name, node, self.spec)
        with torch.device("meta"):
            meta = adapter_meta(folder, node, self.spec)
            return Adapter.build(meta, new_normaliser(meta.normaliser, self.spec.spatial_dim))

    def tile_grids(self, node: TeacherNode) -> tuple[int, ...]:
        """Of a pass."""
        made = self.sharpener(node)
        return () if made is None or node.denoise is not None else tuple(made.tile_grids)

    def _working(self, node: TeacherNode) -> nn.Module | None:
        """The sharpener with fake numbers; made once, for a faked module cannot be faked again."""
        key, made = node.model_dump_json(), self.sharpener(node)
        if made is not None and key not in self._faked:
            self._faked[key] = as_fake(made)
        return self._faked.get(key)

    def look(self, view: View, images: int) -> tuple[Cost, int, int]:
        """(cost of all its forward passes for this view of `images` images, bytes of the maps, forward passes)."""
        count = -(-images * view.per_image // 1)
        chunk = int(min(self.node.chunk, count))
        key = (view.size, chunk)
        if self._frozen is None:
            dtype = torch.bfloat16 if self.bf16 else None
            self._frozen = FrozenBackbone(as_fake(self.plain), dtype, self.node.chunk)
        if key not in self._looks:
            frozen, pixels = self._frozen, torch.empty(chunk, 3, *view.size)
            self._looks[key] = measure(lambda: frozen(pixels))
        one = self._looks[key]
        grid = (view.size[0] // self.spec.patch_size, view.size[1] // self.spec.patch_size)
        maps = int(count) * self.spec.spatial_dim * grid[0] * grid[1] * 4
        return Cost(one.flops / chunk * count, one.peak), maps, int(count)

    def sharpen(self, node: TeacherNode, images: Tensor, low: Grid) -> tuple[Cost, Grid]:
        """Cost of everything between the views of images [b, 3, H, W] and the target; the target's grid."""
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


def shapes_only(node: str | Mapping[str, Any]) -> Backbone:
    """The backbone without weights where its library can; else as it is."""
    prefix, rest, options = parse_spec(node)
    options = {key: value for key, value in options.items() if key != "digest"}
    if prefix in _ON_META:
        options |= {"device": "meta"}
    return load_backbone({"spec": f"{prefix}:{rest}", **options})


def adapter_meta(folder: str, node: TeacherNode, spec: BackboneSpec) -> AdapterMeta:
    """Of the trained adapter; where there is none yet, of one with the upsampler's default options."""
    if folder.startswith("builtin:") or Path(folder).is_dir():
        path = find_folder(folder)
        return AdapterMeta.from_dict(read_description(path), str(path))
    name = "featsharp" if node.denoise is not None else node.upsampler
    return AdapterMeta(teacher=spec, teacher_node=node.backbone, upsampler=name, factor=max(node.factor, 2))


def build_student(node: StudentNode, size: Grid, heads: Mapping[str, HeadSpec], *, bf16: bool) -> Student:
    """The student without its numbers; its starting weights change nothing here."""
    with torch.device("meta"):
        return Student(node.model_copy(update={"weights": None}), size, heads, bf16=bf16)


@dataclass(frozen=True)
class PassCost:
    """One pass of a step on one process.

    student: forward, loss and backward, beside its weights and gradients. teachers, adapters: FLOPs by name. forwards: of
    every teacher (view, its size, how many). grids: of the targets. peak_teachers: bytes while the teachers look.
    targets: bytes of what the student is compared with, and of the images.
    """

    part: Pass
    size: Grid
    images: int
    student: Cost
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


class Counter:
    """Costs of a recipe's passes. Make it outside of `FakeTensorMode`, ask it inside."""

    def __init__(self, recipe: Recipe, teachers: Mapping[str, PlannedTeacher], student: Student) -> None:
        self.recipe, self.teachers, self.student = recipe, teachers, student
        self._learnt: dict[object, Cost] = {}

    def count(self, part: Pass, size: Grid, images: int) -> PassCost:
        """Everything that one pass costs a process that does it on so many images of this size."""
        pixels = torch.empty(images, 3, *size)
        patch = self.student.vit.patch_embed.patch_size[0]
        looked: dict[str, float] = {}
        adapted: dict[str, float] = {}
        forwards: dict[str, list[tuple[str, Grid, int]]] = {}
        targets: dict[str, Features] = {}
        held = peak = pixels.nbytes
        for name, node in part.teachers.items():
            teacher = self.teachers[name]
            low = (size[0] // patch, size[1] // patch)  # of a mosaic
            maps = 0
            for view in views(node, teacher.spec, size, patch, teacher.tile_grids(node)):
                cost, own, many = teacher.look(view, images)
                looked[name] = looked.get(name, 0.0) + cost.flops
                forwards.setdefault(name, []).append((view.what, view.size, many))
                maps += own
                peak = max(peak, held + maps + cost.peak)
                if view.what == "small":
                    low = (view.size[0] // teacher.spec.patch_size, view.size[1] // teacher.spec.patch_size)
            cost, grid = teacher.sharpen(node, pixels, low)
            adapted[name] = cost.flops
            peak = max(peak, held + maps + cost.peak)
            width = None if node.mosaic else teacher.spec.summary_dim
            summary = None if width is None else torch.empty(images, width)
            targets[name] = Features(summary, torch.empty(images, teacher.spec.spatial_dim, *grid))
            held += targets[name].spatial.nbytes
        grids = {name: (target.spatial.shape[-2], target.spatial.shape[-1]) for name, target in targets.items()}
        learnt = self._student(part, pixels, targets, grids)
        return PassCost(part, size, images, learnt, looked, adapted, forwards, grids, peak, held)

    def _student(self, part: Pass, pixels: Tensor, targets: Mapping[str, Features], grids: Mapping[str, Grid]) -> Cost:
        """Of forward, loss and backward; two passes that differ in nothing that matters are counted once."""
        weights = {name: node.weight.model_dump() for name, node in part.teachers.items()}
        key = str((tuple(pixels.shape), grids, part.aligns, weights))
        if key not in self._learnt:
            everyone = dict.fromkeys(self.recipe.teachers, 1.0)
            step = DistillStep(self.student, lambda images: dict(targets), self.recipe, everyone, part)
            for parameter in self.student.parameters():
                parameter.grad = torch.empty_like(parameter)
            self._learnt[key] = measure(lambda: step.learn(pixels, targets).loss.backward())
            self.student.zero_grad()
        return self._learnt[key]
