"""What the student's ViT does beyond timm's: cropped positions, windows, scaled and shaken weights."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.keyed_tensors import Draws
from distill.recipe_models import StudentNode
from distill.student.cropped_positions import ASPECTS, SCALES, crop, crop_boxes, positions, window
from distill.student.model import HeadSpec, Student
from distill.student.spectral import ReparametrisedLinear, fold_scales
from distill.student.window_attention import Windows, global_blocks

SIZES = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
HEADS = {"a": HeadSpec(summary_dim=7, spatial_dim=5), "b": HeadSpec(summary_dim=None, spatial_dim=6)}
VARIANTS = {
    "plain": {},
    "cpe": {"cpe": 64, "position_dropout": 0.3},
    "window": {"window": 3, "global_blocks": 1},
    "window_train": {"window_train": (2, 4), "global_blocks": 1},
    "spectral": {"spectral": True},
    "damp": {"damp": 0.2},
    "all": {
        "cpe": 64, "position_dropout": 0.1, "window": 2, "window_train": (2, 5), "global_blocks": 1, "spectral": True,
        "damp": 0.1, "head": "attention", "registers": 2, "drop_path": 0.1,
    },
}  # fmt: skip


def make(size: tuple[int, int] = (32, 32), seed: int = 0, **fields: object) -> Student:
    torch.manual_seed(seed)
    return Student(StudentNode.model_validate({"model": "vit_tiny_patch16_224", **SIZES, **fields}), size, HEADS)


def images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("patch", "grid"), [(8, (5, 3)), (14, (1, 7))])
def test_every_variant_learns_at_any_size(variant: str, grid: tuple[int, int], patch: int) -> None:
    fields = VARIANTS[variant] | ({"cpe": 8 * patch} if "cpe" in VARIANTS[variant] else {})
    student = make((4 * patch, 4 * patch), **{**fields, "patch_size": patch})
    shown = images(grid[0] * patch, grid[1] * patch)
    out = student(shown)
    assert out["a"].summary.shape == (2, 7) and out["a"].spatial.shape == (2, 5, *grid)
    sum(part.square().sum() for features in out.values() for part in features if part is not None).backward()
    silent = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []
    assert torch.equal(student.eval()(shown)["b"].spatial, student(shown)["b"].spatial)  # nothing is drawn any more


def test_every_variant_runs_without_memory() -> None:
    with torch.device("meta"):
        student = make(**VARIANTS["all"])
    out = student(torch.zeros(2, 3, 40, 24, device="meta"))
    assert out["a"].spatial.shape == (2, 5, 5, 3) and out["a"].spatial.is_meta


# Cropped positions


def test_crops_are_as_published() -> None:
    top, left, height, width = crop_boxes(4000, 3).T
    assert ((top >= 0) & (left >= 0) & (top + height <= 1 + 1e-6) & (left + width <= 1 + 1e-6)).all()
    inside = (height < 1) & (width < 1)
    aspect = (width / height)[inside].sqrt()  # of s a over s / a
    assert ASPECTS[0] - 1e-5 <= aspect.min() < 0.76 and 1.31 < aspect.max() <= ASPECTS[1] + 1e-5
    scale = (width * height)[inside].sqrt()
    assert SCALES[0] - 1e-5 <= scale.min() < 0.33 and scale.max() <= 1
    assert not torch.equal(crop_boxes(4, 3), crop_boxes(4, 4)) and torch.equal(crop_boxes(4, 3), crop_boxes(4, 3))


def test_a_crop_is_bilinear_between_the_corners_of_its_box() -> None:
    square, grid = torch.randn(1, 3, 9, 9), (4, 5)
    boxes = torch.tensor([[0.25, 0.125, 0.375, 0.5], [0.0, 0.0, 1.0, 1.0]])
    found = crop(square, boxes, grid)
    for n, (top, left, height, width) in enumerate(boxes.tolist()):
        for row, column in itertools.product(range(grid[0]), range(grid[1])):
            y, x = 8 * (top + height * row / 3), 8 * (left + width * column / 4)
            y0, x0 = min(int(y), 7), min(int(x), 7)
            dy, dx = y - y0, x - x0
            slow = (
                (1 - dy) * (1 - dx) * square[0, :, y0, x0] + (1 - dy) * dx * square[0, :, y0, x0 + 1]
                + dy * (1 - dx) * square[0, :, y0 + 1, x0] + dy * dx * square[0, :, y0 + 1, x0 + 1]
            )  # fmt: skip
            assert torch.allclose(found[n, :, row, column], slow, atol=1e-5)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (6, 2)])
def test_evaluation_interpolates_and_takes_the_top_left(grid: tuple[int, int]) -> None:
    square = torch.randn(1, 3, 8, 8)
    whole = F.interpolate(square, size=(max(grid), max(grid)), mode="bilinear", align_corners=False)
    assert torch.equal(positions(square, grid, 2, None, 0.5), whole[..., : grid[0], : grid[1]])
    assert torch.equal(window(square, grid), whole[..., : grid[0], : grid[1]])
    assert torch.equal(positions(square, (8, 8), 2, 77, 0.0), square)  # the stored grid is used as it is


@torch.no_grad()
def test_the_student_adds_its_positions_once() -> None:
    """With cropped positions in evaluation: a plain student whose positions are the interpolated ones."""
    cropped, plain = make(cpe=64).eval(), make().eval()
    state = cropped.state_dict()
    square = state["vit.pos_embed"].transpose(1, 2).unflatten(2, (8, 8))
    state["vit.pos_embed"] = window(square, (4, 4)).flatten(2).transpose(1, 2)
    plain.load_state_dict(state)
    assert torch.allclose(cropped.tokens(images(32, 32))[1], plain.tokens(images(32, 32))[1], atol=1e-6)


def test_position_dropout_takes_all_positions_of_an_image() -> None:
    square = torch.rand(1, 3, 8, 8) + 1
    found = positions(square, (4, 4), 2000, 9, 0.25)
    gone = (found == 0).flatten(1).all(1)
    assert 0.22 < gone.float().mean() < 0.28 and (found[~gone] != 0).all()


def test_cropped_positions_need_a_fitting_square() -> None:
    with pytest.raises(UserError, match="cpe: 60 px needs"):
        make(cpe=60)


# Windows


@pytest.mark.parametrize(("grid", "size"), [((6, 6), 3), ((5, 7), 3), ((4, 9), 4), ((2, 7), 3), ((1, 5), 2)])
def test_windows_come_together_again(grid: tuple[int, int], size: int) -> None:
    tokens = torch.randn(2, 3 + grid[0] * grid[1], 5)
    windows = Windows(grid, size, 3)
    assert torch.allclose(windows.join(windows.cut(tokens)), tokens, atol=1e-6)
    mask = windows.mask(2, tokens.device)
    there = 2 * (grid[0] * grid[1] + 3 * windows.count[0] * windows.count[1])
    assert (
        len(windows.cut(tokens)) * (3 + windows.shape[0] * windows.shape[1]) if mask is None else mask.sum()
    ) == there


@torch.no_grad()
@pytest.mark.parametrize("grid", [(6, 6), (5, 7)])
def test_a_windowed_block_is_a_dense_block_with_a_mask(grid: tuple[int, int]) -> None:
    """The slow twin: every window's tokens and the prefix through the block one window at a time, in plain loops."""
    student = make(window=3).eval()
    block, prefix = student.vit.blocks[0], 2
    tokens = torch.randn(2, prefix + grid[0] * grid[1], 24)
    windows = Windows(grid, 3, prefix)
    fast = windows.join(block(windows.cut(tokens), attn_mask=windows.mask(2, tokens.device)))
    patches = tokens[:, prefix:].unflatten(1, grid)
    slow, prefixes = torch.zeros_like(patches), []
    for top, left in itertools.product(range(0, grid[0], 3), range(0, grid[1], 3)):
        part = patches[:, top : top + 3, left : left + 3]
        out = block(torch.cat([tokens[:, :prefix], part.flatten(1, 2)], 1))
        prefixes.append(out[:, :prefix])
        slow[:, top : top + 3, left : left + 3] = out[:, prefix:].unflatten(1, part.shape[1:3])
    assert torch.allclose(fast[:, prefix:].unflatten(1, grid), slow, atol=1e-5)
    assert torch.allclose(fast[:, :prefix], torch.stack(prefixes).mean(0), atol=1e-5)


@torch.no_grad()
def test_a_window_over_the_whole_image_is_global_attention() -> None:
    wide, plain, narrow = make(window=5).eval(), make().eval(), make(window=2, global_blocks=1).eval()
    shown = images(40, 24)
    assert torch.equal(wide.tokens(shown)[1], plain.tokens(shown)[1])
    assert not torch.allclose(narrow.tokens(shown)[1], plain.tokens(shown)[1], atol=1e-4)


def test_the_last_block_and_every_periodth_attend_globally() -> None:
    assert global_blocks(24, 4) == {5, 11, 17, 23} and global_blocks(32, 4) == {7, 15, 23, 31}
    assert global_blocks(2, 4) == {0, 1} and global_blocks(10, 4) == {1, 3, 5, 7, 9}


@torch.no_grad()
def test_intermediate_maps_are_in_image_order() -> None:
    """Inside a run of windowed blocks too: a pixel change moves its own place most, and the last map is the answer."""
    student, shown = make(window=2, global_blocks=1, cpe=64).eval(), images(40, 24, 1)
    maps = student.intermediate(shown, [0, 1, 2])
    assert torch.equal(maps[2], student.tokens(shown)[1])
    other = shown.clone()
    other[..., 32:, :8] = 1 - other[..., 32:, :8]
    change = (student.intermediate(other, [1])[1] - maps[1]).abs().sum(1)[0]
    assert divmod(int(change.argmax()), 3) == (4, 0)
    assert not change[0, 2].any()  # in another window, before any global block, but for the prefix: none joined yet


# Linear layers


def linears(student: Student) -> list[ReparametrisedLinear]:
    return [layer for layer in student.modules() if isinstance(layer, ReparametrisedLinear)]


@torch.no_grad()
def test_spectral_starts_as_the_plain_student() -> None:
    plain, spectral = make().eval(), make(spectral=True).eval()
    assert len(linears(spectral)) == 3 * 4 and len(linears(plain)) == 0
    assert torch.allclose(plain.tokens(images(32, 32))[1], spectral.tokens(images(32, 32))[1], atol=1e-5)


def test_a_scale_is_the_largest_singular_value_of_its_part() -> None:
    layer = ReparametrisedLinear(nn.Linear(16, 36), parts=3, spectral=True, damp=0, index=0)
    for layer.update in range(1, 60):  # power iteration goes on while nothing moves
        layer(torch.zeros(1, 16))
    assert layer.spectral_scale.shape == (3, 1)
    layer.spectral_scale.data += torch.tensor([[0.7], [0.0], [1.5]])
    wanted = F.softplus(layer.spectral_scale[:, 0]) + 0.05
    baked = fold_scales({f"qkv.{name}": tensor for name, tensor in layer.state_dict().items()})["qkv.weight"]
    found = torch.stack([torch.linalg.matrix_norm(part, 2) for part in baked.chunk(3)])
    assert torch.allclose(found, wanted, rtol=1e-3)


@torch.no_grad()
def test_baking_changes_nothing() -> None:
    student, plain = make(spectral=True, damp=0.2), make(seed=1).eval()
    for layer in linears(student):
        layer.spectral_scale += torch.randn_like(layer.spectral_scale).abs()
        layer.weight += 0.1 * torch.randn_like(layer.weight)
    state = fold_scales(student.state_dict())
    assert not any("spectral" in name for name in state)
    plain.load_state_dict(state)
    ours, theirs = student.eval()(images(40, 24)), plain(images(40, 24))
    assert torch.allclose(ours["a"].spatial, theirs["a"].spatial, atol=1e-5)
    assert torch.allclose(ours["a"].summary, theirs["a"].summary, atol=1e-5)


def test_sigma_takes_one_step_an_update() -> None:
    student = make(spectral=True)
    layer = student.vit.blocks[0].mlp.fc1
    with torch.no_grad():
        layer.weight.normal_()
    student.begin(1)
    student(images(32, 32))
    first = layer.spectral_left.clone()
    student(images(32, 32))
    assert torch.equal(layer.spectral_left, first)
    student.begin(2)
    student(images(32, 32))
    assert not torch.equal(layer.spectral_left, first)


def test_damp_multiplies_each_weight_by_its_own_noise() -> None:
    layer = ReparametrisedLinear(nn.Linear(300, 200, bias=False), parts=1, spectral=False, damp=0.3, index=2)
    with torch.no_grad():
        layer.weight.fill_(2.0)
    layer.key = 5
    layer.requires_grad_(False)
    factors = layer(torch.eye(300)).T / 2
    assert factors.mean() == pytest.approx(1, abs=0.01) and factors.std() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(layer(torch.eye(300)).T / 2, factors)
    layer.key = 6
    assert not torch.equal(layer(torch.eye(300)).T / 2, factors)
    assert torch.equal(layer.eval()(torch.eye(300)), torch.full((300, 200), 2.0))


# What is drawn


def test_draws_are_of_seed_process_update_and_forward() -> None:
    keys = set()
    for seed, rank, update in itertools.product(range(2), range(2), range(3)):
        draws = Draws(seed, rank)
        draws.begin(update)
        keys |= {draws.next(), draws.next()}
    assert len(keys) == 24
    again = Draws(1, 1)
    again.begin(2)
    assert again.next() in keys


@pytest.mark.parametrize("fields", [VARIANTS["cpe"], VARIANTS["window_train"], VARIANTS["damp"]])
def test_training_draws_by_update_and_leaves_torchs_numbers_alone(fields: dict[str, object]) -> None:
    student = make(**fields)
    before = torch.get_rng_state()
    outs = []
    for update in (1, 2, 3, 1):
        student.begin(update)
        outs.append(student.tokens(images(40, 56))[1])
    assert torch.equal(outs[0], outs[3]) and not all(torch.equal(outs[0], out) for out in outs[1:3])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("variant", ["spectral", "damp", "all"])
def test_activations_computed_again_are_the_same(variant: str) -> None:
    """Two forwards before one backward, as with two partitions: the second draws must not reach into the first."""
    gradients = []
    for again in (False, True):
        student = make(**VARIANTS[variant])
        student.vit.set_grad_checkpointing(again)
        student.begin(4)
        torch.manual_seed(0)
        losses = [student(images(*size))["a"].spatial.square().sum() for size in ((40, 24), (32, 56))]
        sum(losses).backward()
        gradients.append({name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None})
    assert all(torch.equal(gradients[0][name], gradient) for name, gradient in gradients[1].items())
