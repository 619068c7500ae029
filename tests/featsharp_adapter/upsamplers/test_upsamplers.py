"""The contract every upsampler of the table meets, at odd and non-square sizes, and what each one is."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from zoo_cases import ELSEWHERE, NAMES

from common.errors import UserError
from featsharp_adapter.model.jbu import JBUStack
from featsharp_adapter.model.phi_s import CovarianceStatistics, PhiS
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.table import UPSAMPLERS, build_upsampler

DIM = 8
VARIANTS: list[tuple[str, int, dict[str, Any]]] = [
    ("none", 1, {}),
    *((name, factor, {}) for name in ("bilinear", "tile", "s2", "featup") for factor in (2, 3)),
    *(("featsharp", factor, {"heads": 2}) for factor in (1, 2, 3, 6)),
    ("featsharp", 6, {"heads": 2, "progressive": True}),
    ("featup_published", 2, {}),
    ("featup_published", 4, {}),
    ("featsharp", 2, {"heads": 1, "inputs": ["bilinear"], "window": 3, "hidden": 8}),
    ("featsharp", 2, {"heads": 3, "inputs": ["tiles", "bilinear", "jbu"], "layer_scale": 1e-6}),
    ("featsharp", 2, {"heads": 2, "inputs": ["bilinear", "rgb", "tiles"], "norm": False, "position": "none"}),
    ("featsharp", 3, {"heads": 2, "position": "rope", "published_guidance": True}),
    ("featsharp", 2, {"heads": 2, "head_dim": 16, "window": 3}),
    ("featsharp", 2, {"heads": 2, "block": "no_attention"}),
    ("featsharp", 2, {"heads": 2, "block": "no_ffn"}),
    ("featsharp", 3, {"block": "linear"}),
]


def build(name: str, factor: int, options: dict[str, Any] | None = None) -> Upsampler:
    return build_upsampler(name, dim=DIM, factor=factor, grid=(5, 4), **(options or {}))


def inputs(upsampler: Upsampler, grid: tuple[int, int] = (5, 4)) -> tuple[Tensor, dict[int, Tensor], Tensor]:
    tiles = {n: torch.randn(2, DIM, n * grid[0], n * grid[1]) for n in upsampler.tile_grids}
    return torch.randn(2, DIM, *grid), tiles, torch.rand(2, 3, 93, 71)


def test_every_name_of_the_table_is_tested() -> None:
    assert {name for name, _, _ in VARIANTS} | set(NAMES) | ELSEWHERE == set(UPSAMPLERS)  # the zoo has its own files


@pytest.mark.parametrize(("name", "factor", "options"), VARIANTS)
def test_contract(name: str, factor: int, options: dict[str, Any]) -> None:
    upsampler = build(name, factor, options).eval()
    assert upsampler.factor == factor
    for grid in ((5, 4), (4, 9)):  # a learned upsampler also takes grids it was not made for
        low, tiles, guidance = inputs(upsampler, grid)
        out = upsampler(low, tiles, guidance)
        assert out.shape == (2, DIM, factor * grid[0], factor * grid[1])
        one = upsampler(low[:1], {n: t[:1] for n, t in tiles.items()}, guidance[:1])
        assert torch.allclose(out[:1], one, atol=1e-5)  # images of a batch do not see each other
    for n in upsampler.tile_grids:
        with pytest.raises(ValueError, match="tiles"):
            upsampler(low, {k: t for k, t in tiles.items() if k != n}, guidance)
        with pytest.raises(ValueError, match="tiles"):
            upsampler(low, {**tiles, n: tiles[n][..., 1:]}, guidance)
    with pytest.raises(ValueError, match="wide"):
        upsampler(low[:, 1:], tiles, guidance)


@pytest.mark.parametrize(("name", "factor", "options"), VARIANTS)
def test_gradients_reach_every_parameter_and_input(name: str, factor: int, options: dict[str, Any]) -> None:
    upsampler = build(name, factor, options)
    for parameter in upsampler.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    low, tiles, guidance = inputs(upsampler)
    guidance.requires_grad_()
    wanted = [t.requires_grad_() for t in ([low] if name != "tile" else []) + list(tiles.values())]
    upsampler(low, tiles, guidance).square().sum().backward()
    for tensor in [*wanted, *upsampler.parameters()]:
        assert tensor.grad is not None and tensor.grad.abs().max() > 0
    if name == "featup" or ("jbu" in options.get("inputs", ["jbu"]) and name == "featsharp" and factor > 1):
        assert guidance.grad.abs().max() > 0
    inside = {id(parameter) for parameter in upsampler.parameters()}
    assert all(id(parameter) in inside for parameter in upsampler.guide_parameters())


@pytest.mark.parametrize("name", ["bilinear", "tile", "s2"])
def test_upsamplers_without_weights_do_the_same_inside_and_outside_of_phi_s(name: str) -> None:
    upsampler = build(name, 2)
    low, tiles, guidance = inputs(upsampler)
    statistics = CovarianceStatistics(DIM)
    statistics.update(low)
    phi_s = PhiS.fit(statistics)
    inside = upsampler(phi_s.normalise(low), {n: phi_s.normalise(t) for n, t in tiles.items()}, guidance)
    assert torch.allclose(phi_s.denormalise(inside), upsampler(low, tiles, guidance), atol=1e-5)
    assert not list(upsampler.parameters())


def test_the_simple_ones_are_what_they_say() -> None:
    low, tiles, guidance = inputs(build("tile", 2))
    bilinear = F.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.equal(build("bilinear", 2)(low, {}, guidance), bilinear)
    assert torch.equal(build("tile", 2)(low, tiles, guidance), tiles[2])
    assert torch.allclose(build("s2", 2)(low, tiles, guidance), (bilinear + tiles[2]) / 2, atol=1e-6)
    assert torch.equal(build("none", 1)(low, {}, guidance), low)
    with pytest.raises(UserError, match="leaves the grid"):
        build("none", 2)


def test_featup_is_the_joint_bilateral_stack() -> None:
    upsampler = build("featup", 6)
    low, _, guidance = inputs(upsampler)
    stack = JBUStack(6)
    stack.load_state_dict(upsampler.jbu.state_dict())
    assert torch.equal(upsampler(low, {}, guidance), stack(low, guidance))


LOCAL = [variant for variant in VARIANTS if build(*variant).local]


@pytest.mark.parametrize(("name", "factor", "options"), [*LOCAL, ("featup", 14, {})])
@pytest.mark.parametrize("strip_rows", [1, 4, 1000])
@torch.no_grad()
def test_strips_of_rows_are_the_whole_map(name: str, factor: int, options: dict[str, Any], strip_rows: int) -> None:
    upsampler = build(name, factor, options)
    for parameter in upsampler.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    low, tiles, guidance = inputs(upsampler, (6, 5))
    whole = upsampler(low, tiles, guidance)
    upsampler.strip_rows = strip_rows
    assert torch.allclose(upsampler(low, tiles, guidance), whole, rtol=1e-4, atol=1e-4)


def test_joint_bilateral_and_fusion_upsamplers_can_be_made_in_strips() -> None:
    assert {name for name, _, _ in LOCAL} == {"featup", "featsharp"}


@pytest.mark.parametrize("block", ["full", "no_attention", "no_ffn", "linear"])
@pytest.mark.parametrize("first", ["jbu", "bilinear", "tiles"])
def test_every_block_starts_as_its_first_input(block: str, first: str) -> None:
    rest = [name for name in ("tiles", "jbu") if name != first]
    upsampler = build("featsharp", 2, {"heads": 1, "block": block, "inputs": [first, *rest, "rgb"]})
    low, tiles, guidance = inputs(upsampler)
    level = upsampler.levels[0]
    expected = {"jbu": level.jbu(low, guidance), "tiles": tiles[2], "bilinear": build("bilinear", 2)(low, {}, guidance)}
    assert torch.equal(upsampler(low, tiles, guidance), expected[first])


@pytest.mark.parametrize("guide", ["jafar", "carafe"])
def test_learned_guides_are_upsamplers_of_the_table(guide: str) -> None:
    """The repository's later configurations put JAFAR where the joint bilateral map was."""
    upsampler = build("featsharp", 2, {"heads": 2, "inputs": [guide, "tiles"]}).eval()
    low, tiles, guidance = inputs(upsampler)
    alone = upsampler.levels[0].learned[guide]
    assert torch.equal(upsampler(low, tiles, guidance), alone(low, {}, guidance))
    assert not upsampler.local and upsampler.tile_grids == (2,)
    for parameter in upsampler.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    upsampler(low, tiles, guidance).square().sum().backward()
    assert all(parameter.grad is not None for parameter in upsampler.parameters())


def test_published_widths() -> None:
    full = build("featsharp", 2, {"heads": 2}).levels[0].block
    assert full.mlp.w3.in_features == 48 and full.mlp.w12.in_features == 16  # 16C/3 = 42.7, to a multiple of 8
    wide = [
        build_upsampler("featsharp", dim=dim, factor=2, grid=(2, 2), heads=4).levels[0].block.mlp.w3.in_features
        for dim in (384, 1280)
    ]
    assert wide == [2048, 6832]
    alone = build("featsharp", 2, {"heads": 2, "block": "no_attention"}).levels[0].block
    assert alone.branch.w3.in_features == 24


@pytest.mark.parametrize("progressive", [False, True])
def test_untrained_featsharp_is_exactly_its_guide(progressive: bool) -> None:
    upsampler = build("featsharp", 4, {"heads": 2, "progressive": progressive})
    assert upsampler.tile_grids == ((2, 4) if progressive else (4,))
    low, tiles, guidance = inputs(upsampler)
    expected = low
    for level in upsampler.levels:
        expected = level.jbu(expected, guidance)
    assert torch.equal(upsampler(low, tiles, guidance), expected)


def test_tile_position_is_one_vector_per_tile() -> None:
    upsampler = build("featsharp", 2, {"heads": 1, "inputs": ["tiles"]})
    low, tiles, guidance = inputs(upsampler)
    embedding = torch.randn(1, DIM, 2, 2)
    with torch.no_grad():
        upsampler.levels[0].position.embedding.copy_(embedding)
    added = upsampler(low, tiles, guidance) - tiles[2]
    assert torch.allclose(added[:, :, :5, 4:], embedding[:, :, :1, 1:].expand(2, -1, 5, 4), atol=1e-6)
    assert torch.allclose(added[:, :, 5:, :4], embedding[:, :, 1:, :1].expand(2, -1, 5, 4), atol=1e-6)


def test_mistakes_are_answered_in_words() -> None:
    with pytest.raises(UserError, match='did you mean "featsharp"'):
        build("featshrap", 2)
    with pytest.raises(UserError, match='did you mean "window"'):
        build("featsharp", 2, {"windw": 3})
    with pytest.raises(UserError, match='did you mean "tiles"'):
        build("featsharp", 2, {"inputs": ["tile"]})
    with pytest.raises(UserError, match="different names"):
        build("featsharp", 2, {"inputs": []})
    with pytest.raises(UserError, match="whole number"):
        build("bilinear", 0)
    with pytest.raises(UserError, match="heads"):
        build("featsharp", 2, {"heads": 5})
    with pytest.raises(UserError, match='cannot be "rgb"'):
        build("featsharp", 2, {"inputs": ["rgb", "jbu"]})
    with pytest.raises(UserError, match='did you mean "no_ffn"'):
        build("featsharp", 2, {"block": "no_fn"})
    with pytest.raises(UserError, match="larger image"):
        JBUStack(14)(torch.rand(1, 2, 1, 4), torch.rand(1, 3, 14, 56))
    with pytest.raises(UserError, match="needs more than"):
        build_upsampler("featup", dim=DIM, factor=3, grid=(1, 9))
