"""Every debug overlay trains: the real recipe's losses, heads and engine options, with tiny teachers."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import train

from common.jsonl import read_log
from distill.recipe import Recipe, read, read_arms
from distill.recipe_stages import PartitionNode
from distill.training.arm_groups import group
from distill.training.arms import Arm, run_together
from distill.training.engine import start
from imagery.sources import open_sources

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
OVERLAYS = sorted((RECIPES / "debug_overlays").glob("*.yaml"))
ABLATION = RECIPES / "debug_overlays" / "teacher_upsamplers_debug.yaml"


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
    """Every recipe that needs more than this machine has one: all but those that run here as they are."""
    assert {path.stem.removesuffix("_debug") for path in OVERLAYS} == {*KEPT, "teacher_upsamplers"}
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*KEPT, "adapt", "debug", "quickstart"}


@pytest.mark.parametrize("path", [path for path in OVERLAYS if path != ABLATION], ids=lambda path: path.stem)
def test_an_overlay_keeps_its_recipe_and_trains(path: Path, tmp_path: Path) -> None:
    recipe: Recipe = read(path, [f"out={tmp_path}", "engine.threads=1"])
    assert KEPT[path.stem.removesuffix("_debug")](recipe)
    folder = train(recipe)
    assert [line["step"] for line in read_log(folder / "log.jsonl")] == [1, 2, 3, 4]
    assert (folder / "student" / "model.safetensors").is_file()


def test_the_ablations_overlay_keeps_its_arms_and_trains_them(tmp_path: Path) -> None:
    """Adapters, tiles and the denoising bias in the arms; only two at a time, as in the recipe."""
    arms = read_arms(ABLATION, [f"out={tmp_path}", "engine.threads=1"])
    assert list(arms) == list(read_arms(RECIPES / "ablations" / "teacher_upsamplers.yaml"))
    assert read(ABLATION).together == 2 and all(in_stages(recipe) for recipe in arms.values())
    third = arms["featsharp"].stages["third"].partitions["low"].teachers
    assert third["dfn_clip"].denoise and not arms["tile"].stages["third"].partitions["low"].teachers["siglip"].denoise
    chosen = {name: arms[name] for name in ("featsharp", "published")}
    accelerators = start(chosen)
    made = [Arm(name, recipe, accelerators[name]) for name, recipe in chosen.items()]
    for members in group(((arm, arm.recipe) for arm in made), 2):
        run_together(members, open_sources(chosen["featsharp"].data.train), untrained=None)
    for recipe in chosen.values():
        assert [line["step"] for line in read_log(recipe.folder / "log.jsonl")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_the_ablations_overlay_runs_as_a_command_in_a_minute(tmp_path: Path) -> None:
    command = [sys.executable, "distill/ablate.py", str(ABLATION), f"out={tmp_path}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| featsharp |" in done.stdout
    assert after.ru_utime - before.ru_utime < 120  # CPU seconds, of two cores
