"""Every teacher of a recipe at its true size, one after another: its views, its adapter, and a step of the adapter."""

import json
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from common.errors import UserError
from common.torch_internals import FakeTensorMode
from distill.planning.costs import PlannedTeacher, adapter_meta
from distill.planning.counting import Cost
from distill.planning.weightless_backbones import ON_META, shapes_only
from distill.recipe import Recipe
from distill.recipe_models import TeacherNode
from distill.schedule import Grid, View, schedule, student_patch, views
from distill.smoke.measured import Part, run_part
from distill.targets.target_upsampler import adapter_dtype
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.model.normalisers import new_normaliser
from featsharp_adapter.model.phi_s import PhiS
from featsharp_adapter.model.views import Views
from teachers.contracts import Backbone, BackboneSpec
from teachers.frozen import FrozenBackbone
from teachers.registry import load_backbone, parse_spec

PICTURES = 1  #: images of a forward pass


def teacher_parts(recipe: Recipe, name: str, device: torch.device, *, bf16: bool) -> Iterator[Part]:
    """Load it; one forward pass of every distinct view; what sharpens it; and a step of training that."""
    nodes = [part.teachers[name] for stage in schedule(recipe) for part in stage.passes if name in part.teachers]
    planned = PlannedTeacher(name, recipe.teachers[name], nodes, bf16)
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    yield from view_parts(recipe, name, planned, fakes, device, bf16=bf16)
    for node, low, shown in distinct_adapters(recipe, name, planned):
        yield from adapter_parts(name, node, planned, fakes, low, shown, device)


def view_parts(
    recipe: Recipe, name: str, planned: PlannedTeacher, fakes: FakeTensorMode, device: torch.device, *, bf16: bool
) -> Iterator[Part]:
    """The teacher's weights, and a forward pass of every distinct view; it is let go of at the end."""
    loaded, (backbone, how) = run_part(f"{name}: load", lambda: load_or_build(recipe.teachers[name]))
    frozen = FrozenBackbone(backbone, torch.bfloat16 if bf16 else None).to(device)
    size = sum(parameter.nbytes for parameter in backbone.parameters())
    weights = Cost(0.0, size), Cost(0.0, planned.bytes_of_teacher)
    yield Part(f"{name}: {how}", loaded.seconds, *weights, process=loaded.process)
    for view in distinct_views(recipe, name, planned):
        with fakes:
            expected, _, _ = planned.look(View(view.what, view.size, PICTURES), PICTURES, PICTURES)
        images = torch.rand(PICTURES, 3, *view.size, device=device)
        what = f"{name}: one pass of {view.what} at {view.size[0]}x{view.size[1]} px"
        yield run_part(what, partial(frozen, images), without_pixels(expected, view.size))[0]


def without_pixels(cost: Cost, size: Grid) -> Cost:
    """The plan counts the resized images too, which are there before a pass begins."""
    return Cost(cost.flops, cost.peak - PICTURES * 3 * size[0] * size[1] * 4)


def load_or_build(node: TeacherNode) -> tuple[Backbone, str]:
    """The teacher with its weights where they are, else of random ones; and which."""
    try:
        made, how = load_backbone(node.backbone), "its own weights"
    except UserError:
        made, how = random_weights(node), "random weights"
    if callable(drop := getattr(made, "drop_text", None)):
        drop()
    return made.eval(), how


def random_weights(node: TeacherNode) -> Backbone:
    """The same architecture without its weights; one that cannot be built here is a ViT of its size."""
    prefix, rest, options = parse_spec(node.backbone)
    if prefix in ("timm", "open_clip"):
        return load_backbone({"spec": f"{prefix}:{rest}", **options, "pretrained": False})
    made = shapes_only(node.backbone)
    return fill(made) if prefix in ON_META else made


def fill(made: Backbone) -> Backbone:
    """Give a module of the meta device numbers: small ones, norms of one, and buffers of zero but for mean and std."""
    made.to_empty(device="cpu")
    for name, parameter in made.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.constant_(parameter, float(name.endswith("weight")))
    for buffer in made.buffers():
        buffer.zero_()
    for name in ("mean", "std"):
        if hasattr(made, name):
            getattr(made, name).copy_(torch.tensor(getattr(made.spec, name)).view(1, 3, 1, 1))
    return made


def distinct_views(recipe: Recipe, name: str, planned: PlannedTeacher) -> list[View]:
    """What the teacher is shown anywhere in the schedule, each size once."""
    found: dict[Grid, View] = {}
    for stage in schedule(recipe):
        for part in stage.passes:
            if name in part.teachers:
                node = part.teachers[name]
                for size in part.sizes:
                    grids = planned.tile_grids(node)
                    for view in views(node, planned.spec, size, student_patch(recipe.student), grids):
                        found.setdefault(view.size, view)
    return list(found.values())


def distinct_adapters(recipe: Recipe, name: str, planned: PlannedTeacher) -> list[tuple[TeacherNode, Grid, Grid]]:
    """(node, its low grid, the student's image size) of every adapter in the schedule, each once."""
    found: dict[str, tuple[TeacherNode, Grid, Grid]] = {}
    for stage in schedule(recipe):
        for part in stage.passes:
            node = part.teachers.get(name)
            if node is not None and node.denoise is None and node.adapters.get(node.upsampler):
                found[json.dumps([node.upsampler, node.factor])] = (node, planned.spec.native_grid, max(part.sizes))
    return list(found.values())


def adapter_parts(
    name: str,
    node: TeacherNode,
    planned: PlannedTeacher,
    fakes: FakeTensorMode,
    low: Grid,
    shown: Grid,
    device: torch.device,
) -> Iterator[Part]:
    """The adapter as it sharpens in a pass, and one step of training it: forward, backward and update."""
    spec: BackboneSpec = planned.spec
    meta = adapter_meta(node.adapters[node.upsampler], node, spec)
    adapter = Adapter.build(meta, new_normaliser(meta.normaliser, spec.spatial_dim)).eval().to(device)
    adapter.dtype = adapter_dtype(node)
    images = torch.rand(PICTURES, 3, *shown, device=device)
    with fakes:
        expected, target = planned.sharpen(node, torch.empty(PICTURES, 3, *shown), low)
    tiles = {
        n: torch.randn(PICTURES, spec.spatial_dim, n * low[0], n * low[1], device=device) for n in adapter.tile_grids
    }
    seen = Views(None, torch.randn(PICTURES, spec.spatial_dim, *low, device=device), tiles)
    grids = f"{low[0]}x{low[1]} to {target[0]}x{target[1]} tokens, {spec.spatial_dim} wide"

    targets_space = PhiS(spec.spatial_dim).to(device)  # the run's own, which every target passes through

    @torch.no_grad()
    def sharpen() -> None:
        targets_space.normalise(adapter(seen, images))

    yield run_part(f"{name}: {node.upsampler}, {grids}", sharpen, expected)[0]
    optimiser = torch.optim.NAdam(adapter.parameters(), lr=1e-4)

    def learn() -> None:
        adapter.train()
        adapter.forward_normalised(seen, images).square().mean().backward()
        optimiser.step()

    yield run_part(f"{name}: a step of training that adapter", learn)[0]
