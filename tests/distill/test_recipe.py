"""Recipes: what is wrong is named, and what decides the numbers is told from what does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_run import small_recipe

from common.errors import UserError
from common.errors import UserError as ImageError
from common.recipes import validate
from distill.recipe import Recipe, read, read_arms, runs_of
from distill.training.engine import deepspeed_config

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", ["debug.yaml", "quickstart.yaml", "ablations/quickstart_upsamplers.yaml"])
def test_shipped_recipes_load(name: str) -> None:
    assert read(RECIPES / name).optim.steps > 0


def test_unknown_field_suggests_the_nearest(write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r'unknown field "optim.stepss".*did you mean "steps"'):
        read(write_recipe(), ["optim.stepss=3"])


def test_unknown_upsampler_suggests_the_nearest(write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r'unknown upsampler "featshrp".*did you mean "featsharp"'):
        read(write_recipe(), ["teachers.*.upsampler=featshrp"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teachers.coarse.denoise=somewhere", "upsampler: none"),
        ("teachers.fine.weight.spatial=0", "leave the teacher out"),
        ("baseline=tile", "no arms"),
        ("teachers={}", "at least 1 item"),
        ("optim.lr=-1", "greater than 0"),
    ],
)
def test_contradictions_are_named(write_recipe: Callable[..., Path], override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write_recipe(), [override])


def test_impossible_augmentation_is_named(write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(ImageError, match="zoom"):
        read(write_recipe(), ["data.augment.zoom=[0.5, 1.0]"])


def test_arms_are_overrides_written_below_the_recipe(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe(
        arms={"tile": ["teachers.coarse.upsampler=tile"], "flat": ["teachers.coarse.upsampler=bilinear"]},
        baseline="flat",
    )
    arms = read_arms(path, ["optim.steps=9"])
    assert {name: arm.teachers["coarse"].upsampler for name, arm in arms.items()} == {
        "tile": "tile",
        "flat": "bilinear",
    }
    assert arms["flat"].folder == read(path).folder / "flat"
    assert arms["flat"].optim.steps == 9 and not arms["flat"].arms
    with pytest.raises(UserError, match="one of the arms"):
        read(path, ["baseline=flatt"])


def test_seeds_are_runs_of_every_arm(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe(
        arms={"tile": [], "flat": ["teachers.coarse.upsampler=bilinear"]}, baseline="flat", seeds=[0, 7]
    )
    whole, runs = read(path), read_arms(path)
    assert {arm: list(names) for arm, names in runs_of(whole).items()} == {
        "tile": ["tile-seed0", "tile-seed7"],
        "flat": ["flat-seed0", "flat-seed7"],
    }
    found = {(run.name, run.student.seed, run.seed, run.teachers["coarse"].upsampler) for run in runs.values()}
    upsamplers = {"tile": "tile", "flat": "bilinear"}
    assert found == {(f"{arm}-seed{seed}", seed, 0, upsamplers[arm]) for arm in upsamplers for seed in (0, 7)}
    assert all(run.folder.parent == whole.folder and not run.seeds for run in runs.values())
    assert runs["flat-seed7"].fingerprint()["student.seed"] == 7
    with pytest.raises(UserError, match="seeds must differ"):
        read(path, ["seeds=[1, 1]"])
    with pytest.raises(UserError, match="there are no arms"):
        read(path, ["arms={}", "baseline=null"])


def test_a_student_that_begins_with_weights_is_not_called_untrained(write_recipe: Callable[..., Path]) -> None:
    assert read(write_recipe()).first_row == "untrained"
    for change in ("start_from=run:other", "student.weights=pretrained"):
        assert read(write_recipe(), [change]).first_row == "before"


def test_an_arms_own_mistake_names_the_arm(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe(arms={"bad": ["optim.step=1"]}, baseline="bad")
    with pytest.raises(UserError, match=r"arm bad.*optim\.step"):
        read_arms(path)


def test_fingerprint_holds_what_decides_the_numbers(tmp_path: Path) -> None:
    def fingerprint(**changes: Any) -> dict[str, Any]:
        return validate(Recipe, small_recipe(tmp_path) | changes, "test").fingerprint()

    base = fingerprint()
    assert fingerprint(name="other", out="elsewhere", checkpoint={"every": 1}, log={"every": 2}) == base
    changed = fingerprint(seed=1, align="max")
    assert {key for key in base if base[key] != changed[key]} == {"seed", "align"}


def test_deepspeed_takes_further_settings_but_not_those_of_the_recipe(tmp_path: Path) -> None:
    def config(own: dict[str, Any]) -> dict[str, Any]:
        recipe = validate(Recipe, small_recipe(tmp_path) | {"engine": {"deepspeed_config": own}}, "test")
        return deepspeed_config(recipe, 1)

    made = config({"wall_clock_breakdown": True, "zero_optimization": {"reduce_bucket_size": 1000}})
    assert made["wall_clock_breakdown"] and made["gradient_clipping"] == 1.0
    assert made["zero_optimization"]["reduce_bucket_size"] == 1000 and made["zero_optimization"]["stage"] == 2
    for own, said in (
        ({"gradient_clipping": 0.1}, r"gradient_clipping is decided by optim\.clip"),
        ({"fp16": {"enabled": True}}, r"fp16 is decided by engine\.precision"),
        ({"bfloat16": {"enabled": True}}, r"bfloat16 is decided by engine\.precision"),
        ({"gradient_allreduce_op": "sum"}, '"gradient_allreduce_op" is no setting that changes speed alone'),
        ({"disable_allgather": True}, '"disable_allgather" is no setting'),
        ({"progressive_layer_drop": {"enabled": True}}, '"progressive_layer_drop" is no setting'),
        ({"wall_clock_breakdwn": True}, 'did you mean "wall_clock_breakdown"'),
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization\.stage is decided by engine\.zero_stage"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            r"offload_optimizer is decided",
        ),
    ):
        with pytest.raises(UserError, match=said):
            config(own)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_are_exchanged_beside_the_backward_pass_unless_told(
    stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed leaves overlap_comm off in stages 1 and 2 by itself; on a CPU there is nothing to overlap with."""

    def overlaps(own: dict[str, Any]) -> bool:
        engine = {"zero_stage": stage, "deepspeed_config": own}
        made = validate(Recipe, small_recipe(tmp_path) | {"engine": engine}, "test")
        return bool(deepspeed_config(made, 1)["zero_optimization"]["overlap_comm"])

    assert overlaps({}) == (stage == 3)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert overlaps({}) and not overlaps({"zero_optimization": {"overlap_comm": False}})


def test_what_several_fields_contradict_is_said_without_the_whole_recipe(write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"there are only 1 steps; lower it$"):
        read(write_recipe(optim={"steps": 1, "warmup_steps": 3, "batch_size": 2, "lr": 1e-3}))


def test_an_override_of_a_teacher_that_is_not_there_names_those_that_are(write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(
        UserError, match=r'set teachers.clip.backbone; .*; teachers has coarse, fine, and "clip" is new'
    ):
        read(write_recipe(), ["teachers.clip.factor=2"])
