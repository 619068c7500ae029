"""Shift equivariance and MESA: features are compared where both have seen the same place, whatever the crops."""

import copy
import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_run import small_recipe
from torch import Tensor

from common.errors import UserError
from common.recipes import apply_override, validate
from distill.losses.losses import hybrid, hybrid_positions, mse, mse_positions
from distill.losses.shift_equivariance import MOST, Shifts, centre_crop, cut, margin, move, overlap_mean
from distill.losses.step import AVERAGE, STUDENT, DistillStep
from distill.recipe import Recipe
from distill.recipe_models import StudentNode
from distill.student.ema import MovingAverage, mesa
from distill.student.model import BACKBONE, HeadSpec, Student
from distill.targets.targets import SharedTargets, Targets
from teachers.contracts import Features

CPU = torch.device("cpu")
PATCH, GRID = 8, 6
ROOM = 2 * MOST * PATCH


def recipe_with(*overrides: str) -> Recipe:
    data = small_recipe(Path("unused"))
    for override in overrides:
        apply_override(data, override)
    return validate(Recipe, data, "test")


def test_shifts_are_rounded_normal_numbers_of_patches() -> None:
    found = Shifts(0, 0, PATCH).offsets("clip", "low", 20000)
    assert found.shape == (20000, 2) and found.abs().max() == MOST
    share = (found == 0).float().mean(0)  # P(|N(0, 0.5)| < 0.5) = 0.683
    assert ((share - 0.6827).abs() < 0.02).all() and found.float().mean().abs() < 0.02


def test_everybody_has_shifts_of_his_own_and_keeps_them_within_an_update() -> None:
    def all_of(update: int, rank: int = 0) -> list[Tensor]:
        shifts = Shifts(3, rank, PATCH, update)
        return [shifts.offsets(who, part, 64) for who, part in itertools.product((STUDENT, "a", "b"), ("low", "high"))]

    one, again, later, beside = all_of(1), all_of(1), all_of(2), all_of(1, rank=1)
    assert all(torch.equal(x, y) for x, y in zip(one, again, strict=True))
    different = [*one, *later, *beside]
    assert not any(torch.equal(x, y) for x, y in itertools.combinations(different, 2))


def test_every_micro_batch_of_an_update_has_its_own() -> None:
    shifts = Shifts(0, 0, PATCH)
    shifts.begin(1)
    found = []
    for _ in range(2):
        shifts.next_batch("low")
        found.append(shifts.offsets("a", "low", 64))
        assert torch.equal(shifts.offsets("a", "low", 64), found[-1])
    assert not torch.equal(found[0], found[1])
    shifts.begin(1)
    shifts.next_batch("low")
    assert torch.equal(shifts.offsets("a", "low", 64), found[0])


def test_a_crop_lies_where_its_offset_says() -> None:
    canvases = torch.rand(3, 3, 32 + ROOM, 48 + ROOM)
    offsets = torch.tensor([[0, 0], [-2, 1], [2, -2]])
    found = cut(canvases, offsets, PATCH)
    assert found.shape == (3, 3, 32, 48) and torch.equal(found[0], centre_crop(canvases, ROOM)[0])
    assert torch.equal(found[1], canvases[1, :, :32, 24 : 24 + 48])
    assert torch.equal(found[2], canvases[2, :, 32 : 32 + 32, :48])
    assert centre_crop(canvases, 0) is canvases and margin(recipe_with("loss.shift=true"), PATCH) == ROOM
    assert margin(recipe_with(), PATCH) == 0


def canvas_features(seed: int, offsets: Tensor, channels: int = 5) -> tuple[Tensor, Tensor]:
    """A map of whole canvases in tokens, and what a viewer at `offsets` has of it."""
    whole = torch.randn(
        len(offsets), channels, GRID + 2 * MOST, GRID + 2 * MOST, generator=torch.Generator().manual_seed(seed)
    )
    places = zip(whole, (offsets + MOST).tolist(), strict=True)
    return whole, torch.stack([each[:, top : top + GRID, left : left + GRID] for each, (top, left) in places])


def test_perfectly_equivariant_features_cost_nothing() -> None:
    shifts = Shifts(1, 0, PATCH, 7)
    ours_at, theirs_at = (shifts.offsets(who, "all", 16) for who in (STUDENT, "a"))
    _, ours = canvas_features(0, ours_at)
    _, theirs = canvas_features(0, theirs_at)
    by = shifts.between(STUDENT, "a", "all", 16)
    assert torch.equal(by, theirs_at - ours_at) and by.any()
    assert torch.equal(overlap_mean(mse_positions, ours, theirs, by), torch.zeros(16))
    assert float(mse(ours, theirs)) > 0.5  # features that stick to the image cost nothing, the maps differ


@pytest.mark.parametrize("name", ["mse", "hybrid"])
def test_the_loss_is_the_mean_over_the_overlap(name: str) -> None:
    """Equation 1 in plain loops, with offsets of student and teacher spelled out."""
    compare = {"mse": mse_positions, "hybrid": hybrid_positions}[name]
    ours, theirs = torch.randn(3, 5, GRID, GRID), torch.randn(3, 5, GRID, GRID)
    by = torch.tensor([[0, 0], [2, -1], [-4, 3]])
    found = overlap_mean(compare, ours, theirs, by)
    for n, (down, across) in enumerate(by.tolist()):
        total, count = 0.0, 0
        for row, column in itertools.product(range(GRID), range(GRID)):
            y, x = row + down, column + across
            if 0 <= y < GRID and 0 <= x < GRID:
                a, b = ours[n, :, y, x], theirs[n, :, row, column]
                total += float(compare(a[None, :, None, None], b[None, :, None, None]))
                count += 1
        assert float(found[n]) == pytest.approx(total / count, rel=1e-5)
    plain = {"mse": mse, "hybrid": hybrid}[name]
    assert float(overlap_mean(compare, ours, theirs, 0 * by).mean()) == pytest.approx(float(plain(ours, theirs)))


def test_what_lies_outside_the_overlap_does_not_count() -> None:
    ours, theirs = torch.randn(2, 5, GRID, GRID), torch.randn(2, 5, GRID, GRID)
    by = torch.tensor([[2, 0], [0, -1]])
    before = overlap_mean(mse_positions, ours, theirs, by)
    ours[0, :, :2] = theirs[0, :, -2:] = 1e6  # rows only one of them has seen
    ours[1, :, :, -1] = theirs[1, :, :, 0] = -1e6
    assert torch.equal(overlap_mean(mse_positions, ours, theirs, by), before)
    both = overlap_mean(mse_positions, ours + 3, theirs + 3, by)  # a shared constant
    assert torch.allclose(both, before, rtol=1e-4)


def test_a_shift_without_overlap_costs_nothing() -> None:
    ours = torch.randn(1, 2, 3, 3, requires_grad=True)
    lost = overlap_mean(mse_positions, ours, torch.randn(1, 2, 3, 3), torch.tensor([[4, 0]]))
    lost.sum().backward()
    assert float(lost.detach()) == 0 and not ours.grad.any()


def test_fractions_of_a_token_are_interpolated() -> None:
    ramp = torch.arange(6.0)[:, None].expand(6, 6)[None, None].clone()
    moved, known = move(ramp, torch.tensor([[1.5, 0.0]]))
    assert torch.allclose(moved[0, 0, :4, 0], torch.tensor([1.5, 2.5, 3.5, 4.5]))
    assert known[0, :, 0].tolist() == [True, True, True, True, False, False]


# In the step


class Eyes:
    """A viewer whose features are its pixels: the mean of each patch. It shifts exactly as its crop does."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return F.avg_pool2d(images, PATCH)


def test_student_and_teachers_meet_on_what_both_saw() -> None:
    """A student and teachers that say what they see agree at every shift, and without the warp they do not."""
    recipe = recipe_with("loss.shift=true", "teachers.coarse.weight.summary=0")
    shifts, eyes = Shifts(0, 0, PATCH, 3), Eyes()
    canvases = torch.rand(4, 3, 32 + ROOM, 32 + ROOM, generator=torch.Generator().manual_seed(0))

    def student(images: Tensor) -> Mapping[str, Features]:
        return {name: Features(None, eyes(images)) for name in ("coarse", "fine")}

    def targets(_: Tensor) -> Mapping[str, Features]:
        return {name: Features(None, eyes(shifts.cut(canvases, name, "all"))) for name in ("coarse", "fine")}

    result = DistillStep(student, targets, recipe, shifts=shifts)(canvases)
    assert float(result.loss) == pytest.approx(0, abs=1e-10)
    assert len({tuple(images.flatten().tolist()) for images in eyes.seen}) == 3  # each a crop of its own
    made = targets(canvases)
    shifts.update = 4  # the student moves on, and the loss believes in other crops than the targets were made of
    assert float(DistillStep(student, targets, recipe, shifts=shifts).loss(canvases, made).loss) > 1e-3


@pytest.mark.parametrize("align", ["student", "teacher", "min"])
def test_targets_of_shifted_crops_are_those_of_the_crops(align: str) -> None:
    """Through the real teachers: what the step compares are the teacher's maps of its own crop, per align's grid."""
    recipe = recipe_with("loss.shift=true", f"align={align}", "loss.drop_teachers=0.3")
    targets, shifts = Targets(recipe, CPU), Shifts(0, 0, PATCH, 5)
    canvases = torch.rand(3, 3, 32 + ROOM, 32 + ROOM, generator=torch.Generator().manual_seed(0))
    targets.fit([centre_crop(canvases, ROOM)])
    (part,) = targets.schedule[0].passes
    look, shared = targets.for_pass(part, shifts), SharedTargets()
    found, shared = look(canvases), shared.share(targets, part, shifts)(canvases)
    for name in ("coarse", "fine"):
        plain = targets(shifts.cut(canvases, name, "all"))[name]
        assert torch.equal(found[name].spatial, plain.spatial) and torch.equal(shared[name].spatial, plain.spatial)
    student = Student(recipe.student, (32, 32), targets.heads())
    torch.manual_seed(0)
    result = DistillStep(student, look, recipe, part=part, shifts=shifts)(canvases)
    result.loss.backward()
    assert result.loss.isfinite() and set(result.report) == {"coarse/summary", "coarse/spatial", "fine/spatial"}


def test_whole_map_cosines_cannot_be_shifted() -> None:
    with pytest.raises(UserError, match="shift compares position by position"):
        recipe_with("loss.shift=true", "loss.spatial=hybrid_map")


# MESA

NODE = StudentNode(model="vit_tiny_patch16_224", patch_size=8, embed_dim=24, depth=2, num_heads=2)


def new_student(**fields: object) -> Student:
    torch.manual_seed(0)
    student = Student(
        NODE.model_copy(update=fields), (32, 32), {"coarse": HeadSpec(24, 24), "fine": HeadSpec(None, 12)}
    )
    student.returns_backbone = True
    return student


def test_mesa_is_the_distance_of_normalised_tokens() -> None:
    ours, theirs = torch.randn(2, 7, 3, 4), torch.randn(2, 7, 3, 4)

    def normalised(token: Tensor) -> Tensor:
        return (token - token.mean()) / torch.sqrt(token.var(correction=0) + 1e-5)

    found = mesa(ours, theirs)
    for n, row, column in itertools.product(range(2), range(3), range(4)):
        slow = (normalised(ours[n, :, row, column]) - normalised(theirs[n, :, row, column])).square().mean()
        assert float(found[n, row, column]) == pytest.approx(float(slow), rel=1e-4)
    assert torch.allclose(mesa(3 * ours + 2, theirs), found, atol=1e-4)  # blind to scale and offset of a token


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_average_is_a_moving_average(decay: float) -> None:
    student = new_student(spectral=True)
    average = MovingAverage(student, decay, CPU)
    expected = {name: p.detach().clone() for name, p in student.named_parameters()}
    for _ in range(3):
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                parameter += torch.randn_like(parameter)
                expected[name] = decay * expected[name] + (1 - decay) * parameter
        for buffer in student.buffers():
            buffer += 1
        average.update()
    for name, parameter in average.net.named_parameters():
        assert torch.allclose(parameter, expected[name], atol=1e-5) and not parameter.requires_grad, name
    assert all(torch.equal(a, b) for a, b in zip(average.net.buffers(), student.buffers(), strict=True))
    other = MovingAverage(new_student(spectral=True), decay, CPU)
    other.load_state_dict(average.state_dict())
    assert all(torch.equal(tensor, average.state_dict()[name]) for name, tensor in other.state_dict().items())


def mesa_loss(student: Student, average: MovingAverage, shift: bool) -> Tensor:
    recipe = recipe_with("loss.mesa=0.5", "ema.decay=0.0", f"loss.shift={str(shift).lower()}")
    side = 32 + (ROOM if shift else 0)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    teachers = {"coarse": Features(torch.randn(2, 24), torch.randn(2, 24, 4, 4)),
                "fine": Features(None, torch.randn(2, 12, 4, 4))}  # fmt: skip
    shifts = Shifts(0, 0, PATCH, 1) if shift else None
    step = DistillStep(student, lambda _: teachers, recipe, shifts=shifts, average=average)
    result = step(images)
    assert torch.equal(torch.stack(list(result.report.values())).sum(), result.loss.detach())
    return result.report["mesa"]


def test_an_average_without_memory_is_the_student_and_costs_nothing() -> None:
    student = new_student()
    average = MovingAverage(student, 0.0, CPU)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    assert float(mesa_loss(student, average, shift=False)) > 0.01
    average.update()
    assert float(mesa_loss(student, average, shift=False)) == pytest.approx(0, abs=1e-10)
    assert float(mesa_loss(student, average, shift=True)) > 0  # other crops: a ViT is not equivariant by itself


def test_mesa_draws_the_student_and_not_the_average() -> None:
    student = new_student()
    average = MovingAverage(copy.deepcopy(student), 0.0, CPU)
    with torch.no_grad():
        student.vit.blocks[0].mlp.fc1.weight.mul_(2)
    images = torch.rand(2, 3, 32, 32)
    mesa(student(images)[BACKBONE].spatial, average.features(images)).mean().backward()
    assert student.vit.blocks[0].mlp.fc1.weight.grad.any()
    assert all(parameter.grad is None for parameter in average.net.parameters())


def test_mesa_needs_an_average() -> None:
    with pytest.raises(UserError, match=r"set ema\.decay"):
        recipe_with("loss.mesa=1")
    with pytest.raises(UserError, match="no average without a decay"):
        recipe_with("ema.export=true")
    assert AVERAGE != STUDENT
