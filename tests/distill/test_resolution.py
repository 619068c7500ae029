"""Stages, partitions and quadrants in training: what is learned, and that an interruption anywhere changes nothing."""

import copy
import itertools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from run_logs import without_time
from safetensors.torch import load_file
from small_run import small_recipe, train
from torch import Tensor

from common.jsonl import read_log
from common.recipes import validate
from distill.losses.losses import mse
from distill.losses.step import DistillStep
from distill.recipe import Recipe, read, read_arms
from distill.schedule import schedule
from distill.student.model import Student
from distill.targets.targets import Targets
from distill.training.arm_groups import group
from distill.training.arms import Arm, run_together
from distill.training.engine import start
from distill.training.engine_state import read_student
from imagery.sources import open_source
from teachers.contracts import Features

CPU = torch.device("cpu")
#: RADIO's order in small: low, then low and high; the fine teacher works at high resolution alone, so low is a mosaic.
STAGES: dict[str, Any] = {
    "one": {
        "steps": 3,
        "partitions": {
            "low": {
                "sizes": [16],
                "batch_size": 8,
                "teachers": {"coarse": {"upsampler": "none"}, "fine": {"mosaic": True}},
            }
        },
        "warmup_steps": 1,
    },
    "two": {
        "steps": 4,
        "partitions": {
            "low": {
                "sizes": [16, 32],
                "batch_size": 4,
                "teachers": {"coarse": {"upsampler": "none"}, "fine": {"mosaic": True}},
            },
            "high": {"sizes": [32, [32, 48]], "batch_size": 2},
        },
        "warmup_steps": 1,
        "freeze_body_steps": 1,
    },
}


def staged(out: Path, **changes: Any) -> dict[str, Any]:
    """The small recipe with STAGES, as plain data."""
    data = small_recipe(out) | {"stages": STAGES, "checkpoint": {"every": 1, "keep": 9}}
    data["optim"] = {"batch_size": 4, "lr": 0.003, "warmup_steps": 2}
    data["student"] = data["student"] | {"drop_path": 0.2}
    return data | changes


@pytest.fixture(scope="module")
def trained_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished run through both stages, with every checkpoint kept."""
    folder = tmp_path_factory.mktemp("stages")
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(staged(folder / "runs")), encoding="utf-8")
    return train(read(path))


def test_every_step_has_the_terms_of_its_stage(trained_stages: Path) -> None:
    lines = read_log(trained_stages / "log.jsonl")
    plain = {"coarse/summary", "coarse/spatial", "fine/spatial"}
    both = {f"{partition}/{term}" for partition in ("low", "high") for term in plain}
    assert [set(line["losses"]) for line in lines] == [plain] * 3 + [both] * 4
    for line in lines:
        assert sum(line["losses"].values()) == pytest.approx(line["loss"], rel=1e-6)


def test_the_cosine_starts_again_in_every_stage(trained_stages: Path) -> None:
    rates = [line["lr"] for line in read_log(trained_stages / "log.jsonl")]
    assert rates[:3] == pytest.approx([0.003, 0.003, 0.0015]) and rates[3:5] == [0.003, 0.003]
    assert rates[5] == pytest.approx(0.003 * 0.75) and rates[6] == pytest.approx(0.003 * 0.25)


def test_the_body_is_frozen_at_the_start_of_the_stage_that_says_so(trained_stages: Path) -> None:
    states = [read_student(path) for path in checkpoints(trained_stages)]
    moved = [
        not torch.equal(before["vit.blocks.0.attn.qkv.weight"], after["vit.blocks.0.attn.qkv.weight"])
        for before, after in itertools.pairwise(states)
    ]
    assert moved == [True, True, False, True, True, True]  # update 4 is the first of stage two


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").iterdir())


@pytest.mark.parametrize("step", [2, 3, 4])
def test_going_on_across_a_boundary_changes_nothing(trained_stages: Path, tmp_path: Path, step: int) -> None:
    """Stopped inside the first stage, right at its end, and after one step of the second."""
    shutil.copytree(trained_stages, tmp_path / "runs" / "small")
    recipe = read(trained_stages / "recipe.yaml", [f"out={tmp_path / 'runs'}"])
    for path in [*checkpoints(recipe.folder)[step:], recipe.folder / "student"]:
        shutil.rmtree(path)
    train(recipe)
    ours, whole = (read_log(folder / "log.jsonl") for folder in (recipe.folder, trained_stages))
    assert without_time(ours) == without_time(whole)
    for file in ("student/model.safetensors", "checkpoints/step-00000007/targets.safetensors"):
        states = [load_file(folder / file) for folder in (recipe.folder, trained_stages)]
        assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


def test_arms_through_stages_equal_their_solo_runs(trained_stages: Path, tmp_path: Path) -> None:
    """`tile` is the run above; beside it an arm of another upsampler, on the same passes of the teachers."""
    arms = {"flat": ["teachers.coarse.upsampler=bilinear", "align=min"], "tile": []}
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump(staged(tmp_path, arms=arms, baseline="flat")), encoding="utf-8")
    recipes = read_arms(path)
    accelerators = start(recipes)
    made = [Arm(name, recipe, accelerators[name]) for name, recipe in recipes.items()]
    (members,) = group((arm, arm.recipe) for arm in made)
    run_together(members, open_source(recipes["tile"].data.train), untrained=None)
    log = read_log(recipes["tile"].folder / "log.jsonl")
    assert without_time(log) == without_time(read_log(trained_stages / "log.jsonl"))
    assert without_time(log) != without_time(read_log(recipes["flat"].folder / "log.jsonl"))


def test_a_steps_loss_is_the_mean_over_its_images(tmp_path: Path) -> None:
    """Two partitions that show their teachers alike cost what one pass over all the images costs, gradients too."""
    data = staged(tmp_path)
    data["optim"]["warmup_steps"] = 0
    data["stages"] = {"both": {"steps": 1, "partitions": {name: {"batch_size": n} for name, n in (("a", 2), ("b", 6))}}}
    recipe = validate(Recipe, data, "test")
    torch.manual_seed(0)
    images = torch.rand(8, 3, 32, 32)
    targets = Targets(recipe, CPU)
    targets.fit([images])
    student = Student(recipe.student.model_copy(update={"drop_path": 0.0}), (32, 32), targets.heads())
    (stage,) = schedule(recipe)
    losses = [
        DistillStep(student, targets.for_pass(part), recipe, None, part, part.share)(piece).loss
        for part, piece in zip(stage.passes, images.split([2, 6]), strict=True)
    ]
    whole = DistillStep(student, targets, recipe)(images).loss
    assert torch.allclose(sum(losses), whole, rtol=1e-5)
    weight = student.vit.patch_embed.proj.weight
    (ours,), (one,) = torch.autograd.grad(sum(losses), weight), torch.autograd.grad(whole, weight)
    assert torch.allclose(ours, one, rtol=1e-3, atol=1e-6)


#: Grids of the two maps in the small recipe: student 16 or 32 px, teacher plain or sharpened, and where they meet.
QUADRANTS = {("low", "none"): (2, 2), ("low", "tile"): (2, 4), ("high", "none"): (4, 2), ("high", "tile"): (4, 4)}


@pytest.mark.parametrize("align", ["student", "teacher", "min", "max"])
@pytest.mark.parametrize("quadrant", QUADRANTS, ids="-".join)
def test_the_four_quadrants_meet_where_align_says(tmp_path: Path, quadrant: tuple[str, str], align: str) -> None:
    """Low or high student, low or high teacher: the loss is that of both maps resized by hand to the stated grid."""
    (size, upsampler), (ours, theirs) = quadrant, QUADRANTS[quadrant]
    teachers = {"coarse": {"upsampler": upsampler, "align": align, "weight": {"summary": 0}}}
    part = {"sizes": [16 if size == "low" else 32], "teachers": teachers, "without": ["fine"]}
    data = staged(tmp_path)
    data["stages"] = {"low": {"steps": 1}, "only": {"steps": 1, "partitions": {"here": part}}}
    recipe = validate(Recipe, data, "test")
    targets = Targets(recipe, CPU)
    images = torch.rand(2, 3, 8 * ours, 8 * ours, generator=torch.Generator().manual_seed(0))
    targets.fit([images])
    (here,) = schedule(recipe)[1].passes
    answer = torch.randn(2, 24, ours, ours, generator=torch.Generator().manual_seed(1))

    def student(_: Tensor) -> Mapping[str, Features]:
        return {"coarse": Features(None, answer)}

    target = targets.for_pass(here)(images)["coarse"].spatial
    assert target.shape[-1] == theirs
    grid = {"student": ours, "teacher": theirs, "min": min(ours, theirs), "max": max(ours, theirs)}[align]
    resized = [
        F.interpolate(each, size=(grid, grid), mode="bilinear", antialias=True) if each.shape[-1] != grid else each
        for each in (answer, target)
    ]
    result = DistillStep(student, targets.for_pass(here), recipe, None, here)(images)
    assert torch.allclose(result.loss, mse(*resized), rtol=1e-6)
    assert set(result.report) == {"coarse/spatial"}


def test_a_head_without_a_target_in_a_pass_takes_a_gradient_of_zero(tmp_path: Path) -> None:
    data = staged(tmp_path)
    data["stages"] = {"one": {"steps": 1, "partitions": {"a": {"without": ["fine"]}}}, "two": {"steps": 1}}
    recipe = validate(Recipe, data, "test")
    targets = Targets(recipe, CPU)
    targets.fit([torch.rand(4, 3, 32, 32)])
    student = Student(recipe.student, (32, 32), targets.heads())
    (part,) = schedule(recipe)[0].passes
    DistillStep(student, targets.for_pass(part), recipe, None, part)(torch.rand(2, 3, 32, 32)).loss.backward()
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    idle = [gradient for name, gradient in gradients.items() if name.startswith("spatial_heads.fine")]
    assert idle and all(not gradient.any() for gradient in idle)
    assert gradients["spatial_heads.coarse.out.weight"].any()


def test_statistics_are_measured_as_the_first_stage_shows_the_teachers(tmp_path: Path) -> None:
    """The fine teacher's maps are standard in the space of its mosaics, not in that of its plain views."""
    recipe = validate(Recipe, staged(tmp_path), "test")
    targets = Targets(recipe, CPU)
    images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    (low,) = schedule(recipe)[0].passes
    targets.fit_shown([(low, images)])
    variance: Callable[[Tensor], Tensor] = lambda maps: maps.transpose(0, 1).flatten(1).var(1, correction=0)  # noqa: E731
    mosaics = targets.for_pass(low)(images)
    assert torch.allclose(variance(mosaics["fine"].spatial), torch.ones(12), atol=1e-3)
    assert torch.allclose(variance(mosaics["coarse"].spatial), torch.ones(24), atol=1e-3)
    high = schedule(recipe)[1].passes[1]
    assert not torch.allclose(variance(targets.for_pass(high)(images)["fine"].spatial), torch.ones(12), atol=1e-3)
    assert targets.dispersions().keys() == {"coarse"}


def test_each_partition_has_a_chunk_of_its_own(tmp_path: Path) -> None:
    """How many images a forward pass takes differs between partitions; what the teacher says does not."""
    data = staged(tmp_path)
    low, high = copy.deepcopy(STAGES["two"]["partitions"]).values()
    low["teachers"]["coarse"] = {"upsampler": "none", "chunk": 3}
    high["teachers"] = {"coarse": {"chunk": 2}}
    data["stages"] = {"two": {"steps": 3, "partitions": {"low": low, "high": high}}}
    recipe = validate(Recipe, data, "test")
    targets = Targets(recipe, CPU)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    targets.fit([images])
    taken: list[int] = []
    handle = targets.teachers["coarse"].backbone.backbone.register_forward_pre_hook(
        lambda _, given: taken.append(len(given[0]))
    )
    found = {}
    for part in schedule(recipe)[0].passes:
        taken.clear()
        found[part.partition] = targets.for_pass(part)(images)["coarse"]
        whole = 4 if part.partition == "low" else 4 + 4 * 2 * 2  # and the tiles
        assert sum(taken) == whole and max(taken) == {"low": 3, "high": 2}[part.partition]
    handle.remove()
    other = validate(Recipe, staged(tmp_path), "test")
    plain = Targets(other, CPU)
    plain.load_normalisers(targets.normaliser_state())
    for part in schedule(other)[1].passes:
        assert torch.allclose(plain.for_pass(part)(images)["coarse"].spatial, found[part.partition].spatial, atol=1e-5)
