"""The passes of every step: stages in order, partitions with their own teachers, sizes drawn alike everywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_run import small_recipe

from common.errors import UserError
from common.recipes import dump, validate
from distill.recipe import Recipe, read
from distill.schedule import Pass, schedule, stage_at, student_patch, views
from teachers.contracts import BackboneSpec

#: RADIO's order on a small scale: two stages of one size, then a low and a high partition.
STAGES: dict[str, Any] = {
    "one": {"steps": 3, "partitions": {"low": {"sizes": [16], "batch_size": 8}}, "lr": 0.01},
    "two": {
        "steps": 4,
        "partitions": {
            "low": {"sizes": [16, [24, 32]], "batch_size": 6, "teachers": {"coarse": {"upsampler": "none"}}},
            "high": {"batch_size": 2, "without": ["fine"], "teachers": {"coarse": {"align": "teacher"}}},
        },
        "warmup_steps": 1,
    },
}


def staged(out: Path, **changes: Any) -> Recipe:
    """The small recipe with STAGES."""
    data = small_recipe(out)
    del data["optim"]["steps"]
    return validate(Recipe, data | {"stages": STAGES} | changes, "test")


def spec_of(size: int, *, patch: int = 8, resizable: bool = False) -> BackboneSpec:
    """The spec of a square teacher."""
    return BackboneSpec("t", "timm", patch, 4, 4, (size, size), resizable, (0.5,) * 3, (0.5,) * 3, "", "", "")


def test_without_stages_it_is_one_pass_of_the_whole_batch(tmp_path: Path) -> None:
    recipe = validate(Recipe, small_recipe(tmp_path), "test")
    (stage,) = schedule(recipe)
    (only,) = stage.passes
    assert (stage.first, stage.steps, stage.images, stage.optim) == (0, 6, 4, recipe.optim)
    assert (only.sizes, only.batch_size, only.share) == (((32, 32),), 4, 1)
    assert only.teachers == recipe.teachers and set(only.aligns.values()) == {"student"}


def test_stages_follow_each_other_with_their_own_optimiser_and_teachers(tmp_path: Path) -> None:
    recipe = staged(tmp_path)
    one, two = schedule(recipe)
    assert recipe.optim.steps == 7 and [stage_at((one, two), step).name for step in (0, 2, 3, 6, 99)] == [
        "one", "one", "two", "two", "two",
    ]  # fmt: skip
    assert (one.optim.lr, one.optim.warmup_steps, one.optim.steps) == (0.01, 2, 3)
    assert (two.optim.lr, two.optim.warmup_steps, two.optim.steps) == (0.003, 1, 4)
    low, high = two.passes
    assert low.sizes == ((16, 16), (24, 32)) and high.sizes == ((32, 32),)
    assert (low.share, high.share, two.images) == (0.75, 0.25, 8)
    assert low.teachers["coarse"].upsampler == "none" and high.teachers["coarse"].upsampler == "tile"
    assert set(high.teachers) == {"coarse"}
    assert (low.aligns["coarse"], high.aligns["coarse"]) == ("student", "teacher")


def test_sizes_depend_on_seed_and_step_alone_and_all_come_up(tmp_path: Path) -> None:
    low = schedule(staged(tmp_path))[1].passes[0]
    drawn = [low.size_at(5, step) for step in range(64)]
    assert drawn == [schedule(staged(tmp_path))[1].passes[0].size_at(5, step) for step in range(64)]
    assert set(drawn) == set(low.sizes) and drawn != [low.size_at(6, step) for step in range(64)]


def test_what_a_teacher_looks_at(tmp_path: Path) -> None:
    node = staged(tmp_path).teachers["coarse"]
    low, tiles = views(node, spec_of(16), (32, 32), 8, (2,))
    assert (low.size, low.per_image, tiles.size, tiles.per_image) == ((16, 16), 1, (16, 16), 4)
    matched = node.model_copy(update={"upsampler": "none", "input": "match"})
    (small,) = views(matched, spec_of(70, patch=14, resizable=True), (32, 48), 8, ())
    assert small.size == (56, 84)
    with pytest.raises(UserError, match="takes 16x16 px only, not 32x32"):
        views(matched, spec_of(16), (32, 32), 8, ())
    mosaic = node.model_copy(update={"upsampler": "none", "mosaic": True})
    (canvas,) = views(mosaic, spec_of(1024, patch=16), (432, 256), 16, ())
    assert canvas.what == "mosaic 2x4" and canvas.per_image == 1 / 8
    with pytest.raises(UserError, match="does not fit"):
        views(mosaic, spec_of(16), (32, 32), 8, ())


RECIPES = Path(__file__).parents[2] / "recipes"
#: The teachers of the two papers: (native side, patch, whether it takes other sizes).
PAPERS = {
    "dfn_clip": (378, 14, False),
    "siglip": (378, 14, False),
    "dinov2": (896, 14, True),
    "sam": (1024, 16, True),
    "siglip2": (384, 16, False),
    "dinov3": (1152, 16, True),
    "sam3": (1008, 14, False),
}


def shown(recipe: Recipe, part: Pass, teacher: str) -> list[list[tuple[int, float]]]:
    """(side, passes per image) of every view of a teacher, for each of the pass's sizes."""
    side, patch, resizable = PAPERS[teacher]
    node, spec = part.teachers[teacher], spec_of(side, patch=patch, resizable=resizable)
    grids = () if node.upsampler == "none" else (node.factor,)
    made = [views(node, spec, size, student_patch(recipe.student), grids) for size in part.sizes]
    return [[(view.size[0], view.per_image) for view in each] for each in made]


def test_radio_ls_passes_are_the_papers() -> None:
    """PHI-S, table 10; RADIOv2.5 on mosaics; FeatSharp, section 4.5."""
    recipe = read(RECIPES / "radio_l.yaml")
    stages = schedule(recipe)
    assert [stage.steps for stage in stages] == [300_000] * 3 and recipe.optim.steps == 900_000
    assert [stage.images for stage in stages] == [1024, 1024, 1024 + 128]
    (first,), (second,), (low, high) = (stage.passes for stage in stages)
    for part, side, dinov2, cells in ((first, 256, 224, 16), (second, 432, 378, 4), (low, 432, 378, 4)):
        assert part.sizes == ((side, side),)
        assert shown(recipe, part, "dfn_clip") == shown(recipe, part, "siglip") == [[(378, 1)]]
        assert shown(recipe, part, "dinov2") == [[(dinov2, 1)]] and shown(recipe, part, "sam") == [[(1024, 1 / cells)]]
    assert shown(recipe, high, "dfn_clip") == shown(recipe, high, "siglip") == [[(378, 1), (378, 9)]]
    assert shown(recipe, high, "dinov2") == [[(896, 1)]] and shown(recipe, high, "sam") == [[(1024, 1)]]
    cleaned = [part.teachers["siglip"].denoise is not None for part in (first, second, low, high)]
    assert cleaned == [False, False, True, False]  # in the high one the whole adapter works, which denoises itself


def test_c_radio_v4s_passes_are_the_papers() -> None:
    """C-RADIOv4: sizes drawn from two sets, SigLIP2 3x in the high one alone, SAM3 at one size with mosaics."""
    recipe = read(RECIPES / "c_radio_v4.yaml")
    (stage,) = schedule(recipe)
    low, high = stage.passes
    assert [size[0] for size in low.sizes] == [128, 192, 224, 256, 384, 432]
    assert [size[0] for size in high.sizes] == [512, 768, 1024, 1152]
    assert shown(recipe, low, "siglip2") == [[(384, 1)]] * 6
    assert shown(recipe, high, "siglip2") == [[(384, 1), (384, 9)]] * 4
    assert shown(recipe, high, "dinov3") == [[(size[0], 1)] for size in high.sizes]
    assert shown(recipe, low, "sam3") == [[(1008, 1 / cells**2)] for cells in (9, 6, 5, 4, 3, 2)]
    assert shown(recipe, high, "sam3") == [[(1008, 1 / 4)], [(1008, 1)], [(1008, 1)], [(1008, 1)]]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.two.partitions.high.without=[coarse, fine]", "no teacher is left"),
        ("stages.two.partitions.high.without=[fin]", 'no teacher "fin"'),
        ("stages.two.partitions.low.teachers.fine.mosaic=true", None),
        ("stages.two.partitions.low.teachers.coarse.mosaic=true", "one summary for several images"),
        ("stages.two.partitions.high.teachers.coarse.input=match", "native view"),
        ("stages.two.partitions.high.size=[3]", 'unknown field.*did you mean "sizes"'),
        ("stages.one.partitions.low.sizes=[]", "at least 1"),
        ("optim.steps=9", "sum up to 7"),
        ("stages.one.steps=5", None),
    ],
)
def test_contradictions_are_named(write_recipe: Callable[..., Path], override: str, message: str | None) -> None:
    optim = {"batch_size": 4, "lr": 0.003, "warmup_steps": 2}
    path = write_recipe(stages=STAGES, optim=optim)
    if message is None:
        assert len(schedule(read(path, [override]))) == 2
        return
    with pytest.raises(UserError, match=message):
        schedule(read(path, [override]))


def test_a_written_recipe_reads_back_the_same(tmp_path: Path) -> None:
    recipe, path = staged(tmp_path), tmp_path / "recipe.yaml"
    path.write_text(dump(recipe), encoding="utf-8")
    assert read(path) == recipe and schedule(read(path)) == schedule(recipe)
