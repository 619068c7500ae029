"""Many arms on one teacher pass: each is to the bit the run it would have been alone, also after an interruption."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from run_logs import without_time
from safetensors.torch import load_file
from small_run import small_recipe, train
from torch import Tensor

from common.jsonl import read_log
from distill.recipe import Recipe, read_arms
from distill.targets.targets import Targets
from distill.targets.teacher_views import BatchViews, TeacherPool, tile_view
from distill.training.arm_groups import group, split, upstream
from distill.training.arms import Arm, run_together
from distill.training.engine import start
from distill.training.loop import ArmTrainer
from featsharp_adapter.adapter.adapter import make_untrained
from featsharp_adapter.model.views import teacher_views
from imagery.sources import open_source
from teachers.frozen import FrozenBackbone

#: Whatever may differ downstream of the teachers: upsampler, adapter, weights, loss, student, heads, optimiser, seed.
ARMS = {
    "flat": ["teachers.coarse.upsampler=bilinear"],
    "tile": ["student.drop_path=0.2", "checkpoint.every=2"],
    "sharp": [
        "teachers.coarse.upsampler=featsharp",
        "loss.spatial=hybrid",
        "loss.summary=angular",
        "loss.drop_teachers=0.5",
    ],
    "seed": ["student.seed=7", "student.drop_path=0.2", "optim.steps=8"],
    "wide": ["student.embed_dim=32", "student.head_hidden=40", "optim.lr=0.001", "log.every=2"],
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter of random weights for the coarse teacher."""
    folder = tmp_path_factory.mktemp("adapter")
    recipe = Recipe.model_validate(small_recipe(folder))
    torch.manual_seed(3)
    made = make_untrained("featsharp", Targets(recipe, torch.device("cpu")).teachers["coarse"].spec, 2)
    return str(made.save_pretrained(folder / "featsharp"))


def arms_in(folder: Path, adapter: str) -> dict[str, Recipe]:
    """The recipes of ARMS, writing below `folder`."""
    data = small_recipe(folder) | {"arms": ARMS, "baseline": "flat"}
    data["teachers"]["coarse"]["adapters"] = {"featsharp": adapter}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return read_arms(path)


def run(recipes: Mapping[str, Recipe]) -> None:
    """Train the arms side by side in this process."""
    accelerators = start(recipes)
    arms = [Arm(name, recipe, accelerators[name]) for name, recipe in recipes.items()]
    for members in group((arm, arm.recipe) for arm in arms):
        run_together(members, open_source(members[0].recipe.data.train), untrained="flat")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, adapter: str) -> dict[str, Path]:
    """The folder of every arm, each trained by itself."""
    recipes = arms_in(tmp_path_factory.mktemp("alone"), adapter)
    return {name: train(recipe, export_untrained=name == "flat") for name, recipe in recipes.items()}


def assert_equal_folders(one: Path, other: Path) -> None:
    """The same files; weights, moments and normalisers equal to the bit, logs but for the clock, recipes but `out`."""
    files = sorted(path.relative_to(one) for path in one.rglob("*"))
    assert files == sorted(path.relative_to(other) for path in other.rglob("*"))
    for file in files:
        assert contents(one / file) == contents(other / file), file


def contents(path: Path) -> Any:
    """What must be equal in a file, as plain data."""
    if path.suffix == ".safetensors":
        return {name: tensor.tolist() for name, tensor in load_file(path).items()}
    if path.name == "data.json":  # how many were read is of the whole pass, which the longest arm decides
        return {name: value for name, value in json.loads(path.read_text()).items() if name != "read"}
    if path.name == "optimizer.bin":
        state = torch.load(path, weights_only=True)["state"]
        return {key: {name: value.tolist() for name, value in entry.items()} for key, entry in state.items()}
    if path.name == "log.jsonl":
        return without_time(read_log(path))
    if path.name == "recipe.yaml":
        return yaml.safe_load(path.read_text(encoding="utf-8")) | {"out": None}
    if path.suffix in (".json", ".md"):
        return path.read_text(encoding="utf-8")
    return path.is_file()


def test_every_arm_is_equal_to_its_solo_run_and_teachers_look_once(
    tmp_path: Path, adapter: str, alone: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    forward = FrozenBackbone.forward

    def counted(self: FrozenBackbone, images: Tensor) -> Any:
        looked.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(FrozenBackbone, "forward", counted)
    recipes = arms_in(tmp_path, adapter)
    assert len(group(recipes.items())) == len({upstream(recipe) for recipe in recipes.values()}) == 1
    run(recipes)
    for name, recipe in recipes.items():
        assert_equal_folders(recipe.folder, alone[name])
    losses = [read_log(recipe.folder / "log.jsonl")[-1]["loss"] for recipe in recipes.values()]
    assert len(set(losses)) == len(ARMS)
    fitting, views = 3 * 4 * 2, 1 + 4 + 1  # 3 batches of 4 images for two teachers; low + 2 x 2 tiles, and low
    assert sum(looked) == fitting + 8 * 4 * views


def test_interrupted_twice_all_arms_end_equal(
    tmp_path: Path, adapter: str, alone: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while one arm makes an update: by then some arms have a later checkpoint than others, or are done."""
    recipes = arms_in(tmp_path, adapter)
    whole = ArmTrainer.finish
    interruptions = [("sharp", 5), ("seed", 7)]

    def interrupted(self: ArmTrainer, done: int, images: Any) -> float | None:
        if interruptions and (self.recipe.name, done) == interruptions[0]:
            raise KeyboardInterrupt
        return whole(self, done, images)

    monkeypatch.setattr(ArmTrainer, "finish", interrupted)
    while interruptions:
        with pytest.raises(KeyboardInterrupt):
            run(recipes)
        del interruptions[0]
    run(recipes)
    for name, recipe in recipes.items():
        assert_equal_folders(recipe.folder, alone[name])


def test_arms_that_differ_upstream_do_not_share(write_recipe: Callable[..., Path]) -> None:
    arms = {
        "base": [],
        "loss": ["loss.spatial=hybrid"],
        "seed": ["seed=1"],
        "batch": ["optim.batch_size=8"],
        "teacher": ["teachers.fine.backbone.model_args.depth=2"],
        "size": ["data.size=[48,48]"],
        "fit": ["normaliser.batches=2"],
        "threads": ["engine.threads=2"],
    }
    recipes = read_arms(write_recipe(arms=arms, baseline="base"))
    groups = group((name, recipe) for name, recipe in recipes.items())
    assert sorted(groups) == sorted([["base", "loss"], *([name] for name in list(arms)[2:])])


@pytest.mark.parametrize(("most", "sizes"), [(None, [5]), (2, [2, 2, 1]), (1, [1] * 5)])
def test_as_many_at_once_as_the_recipe_says(
    tmp_path: Path, adapter: str, most: int | None, sizes: Sequence[int]
) -> None:
    recipes = arms_in(tmp_path, adapter)
    groups = group(recipes.items(), most)
    assert [len(members) for members in groups] == sizes
    assert [name for members in groups for name in members] == list(recipes)
    assert split([1, 2, 3], 2) == [[1, 2], [3]]


def test_a_view_has_the_same_bits_whatever_else_is_asked_for() -> None:
    recipe = Recipe.model_validate(small_recipe(Path("unused")))
    teacher = TeacherPool().get(recipe.teachers["coarse"].backbone, None, 3)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    alone, after_more = BatchViews(images).views(teacher, (2,)), BatchViews(images)
    after_more.views(teacher, (3, 1))
    together = after_more.views(teacher, (2,))
    assert torch.equal(alone.low, together.low) and torch.equal(alone.tiles[2], together.tiles[2])
    assert torch.equal(alone.tiles[2], tile_view(teacher, images, 2))
    slow = teacher_views(teacher, images, (2,), chunk=100)
    assert torch.allclose(slow.tiles[2], alone.tiles[2], atol=1e-5)
    assert torch.allclose(slow.summary, alone.summary, atol=1e-5)


def test_a_pool_holds_a_teacher_once() -> None:
    pool, nodes = TeacherPool(), Recipe.model_validate(small_recipe(Path("unused"))).teachers
    coarse = nodes["coarse"].backbone
    assert pool.get(coarse, None, 4) is pool.get(json.loads(json.dumps(coarse)), None, 4)
    assert len({pool.get(coarse, None, 4), pool.get(coarse, None, 8), pool.get(nodes["fine"].backbone, None, 4)}) == 3
