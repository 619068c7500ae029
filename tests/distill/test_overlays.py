"""Every debug overlay trains: the real recipe's losses, heads and engine options, with tiny teachers."""

from pathlib import Path

import pytest
from small_run import train

from distill.log import read_log
from distill.recipe import Recipe, read
from distill.stage_nodes import PartitionNode

OVERLAYS = sorted((Path(__file__).parents[2] / "recipes" / "debug_overlays").glob("*.yaml"))


def in_stages(recipe: Recipe) -> bool:
    """RADIO's three stages, the last with a low and a high partition, and SAM on mosaics in the low ones."""
    *_, third = recipe.stages.values()
    lows = [stage.partitions["low"].teachers["sam"].mosaic for stage in recipe.stages.values()]
    return lows == [True] * 3 and list(third.partitions) == ["low", "high"] and recipe.optim.name == "lamb"


def only_stage(recipe: Recipe) -> dict[str, PartitionNode]:
    (stage,) = recipe.stages.values()
    return stage.partitions


def as_c_radio_v4(recipe: Recipe) -> bool:
    """C-RADIOv4's student and losses."""
    student, loss = recipe.student, recipe.loss
    built = student.cpe and student.spectral and student.damp and student.window_train and student.head == "attention"
    return bool(built and loss.summary == "angular" and loss.shift and loss.mesa and recipe.ema.decay == 0.9996)


#: What a recipe is about, and its overlay must keep.
KEPT = {
    "theia": lambda recipe: recipe.loss.spatial == "hybrid_map" and recipe.optim.final_share == 1,
    "unic": lambda recipe: recipe.loss.drop_teachers == 0.5 and recipe.student.drop_path == 0.1,
    "ungated": lambda recipe: recipe.student.head == "v2" and recipe.teachers["clip"].upsampler == "s2",
    "single_teacher": lambda recipe: len(recipe.teachers) == 1 and recipe.student.registers == 4,
    "radio_l": lambda recipe: recipe.teachers["dfn_clip"].factor == 3 and in_stages(recipe) and recipe.student.spectral,
    "radio_b": lambda recipe: recipe.teachers["dfn_clip"].factor == 3 and in_stages(recipe),
    "radio_h": lambda recipe: recipe.engine.checkpointing and in_stages(recipe),
    "c_radio_v4": lambda recipe: (
        recipe.teachers["sam3"].mosaic and len(only_stage(recipe)["low"].sizes or []) > 1 and as_c_radio_v4(recipe)
    ),
}


def test_every_overlay_is_known() -> None:
    assert {path.stem.removesuffix("_debug") for path in OVERLAYS} == set(KEPT)


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_keeps_its_recipe_and_trains(path: Path, tmp_path: Path) -> None:
    recipe: Recipe = read(path, [f"out={tmp_path}", "engine.threads=1"])
    assert KEPT[path.stem.removesuffix("_debug")](recipe)
    folder = train(recipe)
    assert [line["step"] for line in read_log(folder / "log.jsonl")] == [1, 2, 3, 4]
    assert (folder / "student" / "model.safetensors").is_file()
