"""Teacher views from disk are the teacher's to the bit; damage is survived, and what cannot be replayed is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_logs import without_time
from safetensors.torch import load, load_file
from small_run import small_recipe, train
from torch import Tensor

from common.atomic import WRITING
from common.errors import UserError
from common.jsonl import read_log
from common.recipes import validate
from distill.recipe import Recipe
from distill.schedule import schedule
from distill.targets.targets import Targets
from distill.targets.teacher_views import BatchViews, TeacherPool
from distill.targets.view_cache_size import check_cache, forecast
from distill.training.arms import Arm, run_together
from distill.training.engine import start
from imagery.sources import open_source
from teachers.frozen import FrozenBackbone

STILL = {"zoom": [1, 1], "hflip": 0, "random_crop": False}


def recipe_of(out: Path, *, cache: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    data = small_recipe(out)
    data["data"] |= {"augment": STILL}
    data["optim"]["steps"] = 4
    return validate(Recipe, data | {"cache": cache} | changes, "test")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many images teachers really looked at, call by call."""
    found: list[int] = []
    forward = FrozenBackbone.forward

    def counted(self: FrozenBackbone, images: Tensor) -> Any:
        found.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(FrozenBackbone, "forward", counted)
    yield found


def targets_of(recipe: Recipe, images: Tensor) -> tuple[Targets, TeacherPool]:
    pool = TeacherPool(Path(recipe.cache.folder) if recipe.cache else None)
    made = Targets(recipe, torch.device("cpu"), pool)
    made.fit([images])
    return made, pool


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    pairs = [(a, b) for name in one for a, b in zip(one[name], other[name], strict=True) if a is not None]
    return len(pairs) > 2 and all(torch.equal(a, b) for a, b in pairs)


def test_views_from_the_cache_are_the_teachers_to_the_bit(tmp_path: Path, looks: list[int]) -> None:
    images = torch.rand(8, 3, 32, 32)
    plain, _ = targets_of(recipe_of(tmp_path), images)
    kept, pool = targets_of(recipe_of(tmp_path, cache={"folder": str(tmp_path / "views")}), images)
    for batch in (images[:4], images[4:], images[[6, 1, 3, 4]]):  # the last one of images met in other company
        expected = plain(batch)
        assert equal(expected, kept(batch)) and equal(expected, kept(batch))
    looks.clear()
    again, pool = targets_of(recipe_of(tmp_path, cache={"folder": str(tmp_path / "views")}), images)  # another process
    assert equal(plain(images[:4]), again(images[:4]))
    made = sum(looks)
    looks.clear()
    assert equal(again(images[:4]), again(images[:4])) and looks == [] and made > 0
    assert pool.use()[1] == 0


def test_another_image_size_or_teacher_is_another_view(tmp_path: Path, looks: list[int]) -> None:
    recipe = recipe_of(tmp_path, cache={"folder": str(tmp_path / "views")})
    images = torch.rand(4, 3, 32, 32)
    made, _ = targets_of(recipe, images)
    made(images)
    for changed in (images + 1e-7, images.flip(3), torch.cat([images[1:], images[:1] * 0.999])):
        looks.clear()
        made(changed.contiguous())
        assert sum(looks) > 0
    node = recipe.teachers["coarse"].backbone
    assert isinstance(node, dict)
    other = TeacherPool(tmp_path / "views").get(node | {"spatial": "last_block"}, None, 64)
    looks.clear()
    BatchViews(images).views(other, ())
    assert sum(looks) == 4


def test_damaged_and_torn_files_are_made_again(tmp_path: Path, looks: list[int]) -> None:
    recipe = recipe_of(tmp_path, cache={"folder": str(tmp_path / "views")})
    images = torch.rand(4, 3, 32, 32)
    made, _ = targets_of(recipe, images)
    expected = made(images)
    files = sorted((tmp_path / "views").rglob("*.safetensors"))
    assert len(files) == 12  # two teachers' small views and one's tiles, of four images
    before = {path: path.read_bytes() for path in files}
    numbers = {path: load(before[path]) for path in files}
    for index, path in enumerate(files):
        data = bytearray(before[path])
        if index % 3 == 0:
            del data[len(data) // 2 :]
        elif index % 3 == 1:
            data[-2] ^= 1  # one bit of a number
        else:
            data[:] = b""
        path.write_bytes(data)
    (files[0].parent / f"{WRITING}123-abc").write_bytes(b"half")  # of a process that was killed
    assert equal(expected, made(images)) and sum(looks) > 0
    for path, expected_file in numbers.items():
        found = load(path.read_bytes())
        assert all(torch.equal(found[name], expected_file[name]) for name in expected_file)
    looks.clear()
    assert equal(expected, made(images)) and looks == []


def test_a_run_with_a_cache_is_the_run_without(tmp_path: Path, looks: list[int], capsys: Any) -> None:
    """Also the second time, when nothing is looked at any more, as in arms that train one after the other."""
    folder = str(tmp_path / "views")
    plain = train(recipe_of(tmp_path, name="plain"))
    first = train(recipe_of(tmp_path, name="first", cache={"folder": folder}))
    assert "at most" in capsys.readouterr().out
    looks.clear()
    second = train(recipe_of(tmp_path, name="second", cache={"folder": folder, "max_gib": 0.1}))
    assert looks == [] and ", 0 made" in capsys.readouterr().out
    expected = load_file(plain / "student" / "model.safetensors")
    for each in (first, second):
        assert without_time(read_log(each / "log.jsonl")) == without_time(read_log(plain / "log.jsonl"))
        found = load_file(each / "student" / "model.safetensors")
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_arms_on_one_teacher_pass_share_a_cache(tmp_path: Path, looks: list[int]) -> None:
    folder = {"folder": str(tmp_path / "views")}
    train(recipe_of(tmp_path, name="before", cache=folder))
    looks.clear()
    arms = {name: recipe_of(tmp_path, name=name, cache=folder) for name in ("one", "two")}
    arms["two"] = arms["two"].model_copy(update={"student": arms["two"].student.model_copy(update={"seed": 3})})
    accelerators = start(arms)
    members = [Arm(name, recipe, accelerators[name]) for name, recipe in arms.items()]
    run_together(members, open_source(arms["one"].data.train), untrained=None)
    assert looks == []
    one, two = (read_log(arms[name].folder / "log.jsonl") for name in ("one", "two"))
    assert without_time(one) == without_time(read_log(tmp_path / "before" / "log.jsonl")) != without_time(two)


def test_the_forecast_is_what_is_written(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, cache={"folder": str(tmp_path / "views")})
    recipe = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"steps": 12})})  # two epochs of 24
    source = open_source(str(recipe.data.train))
    made, _ = targets_of(recipe, torch.rand(4, 3, 32, 32))
    lines = forecast(recipe, made, len(source))
    assert [(line.teacher, line.view, line.images, line.there > 0) for line in lines] == [
        ("coarse", "small 16x16 of 32x32 px", 24, True),
        ("coarse", "tiles 2x2 of 32x32 px", 24, False),
        ("fine", "small 32x32 of 32x32 px", 24, True),
    ]
    train(recipe)
    written = sum(path.stat().st_size for path in (tmp_path / "views").rglob("*.safetensors"))
    extra = sum(line.there for line in lines)  # of the random images above
    assert written - extra == pytest.approx(sum(line.bytes for line in lines), rel=0.15)


def test_the_forecast_leaves_out_tiles_that_a_budget_chooses(tmp_path: Path) -> None:
    adapter = {"upsampler": "ridge", "factor": 2, "adapters": {"ridge": "builtin:tiny-clip-ridge-2x"}}
    cache = {"folder": str(tmp_path / "views")}
    for passes, kept in ((0.5, ["small"]), (5, ["small", "tiles"])):
        teachers = {"sharp": {"backbone": "tiny:clip", "passes": passes, **adapter}}
        recipe = recipe_of(tmp_path, cache=cache, teachers=teachers)
        made = Targets(recipe, torch.device("cpu"), TeacherPool(tmp_path / "views"))
        assert [line.view.split()[0] for line in forecast(recipe, made, 24)] == kept


def test_what_cannot_be_replayed_or_has_no_room_is_refused(tmp_path: Path) -> None:
    source = open_source("scenes:seed=3,count=24,size=32,cache=true")

    def said(cache: dict[str, Any], augment: dict[str, Any]) -> str:
        recipe = recipe_of(tmp_path, cache={"folder": str(tmp_path / "views")} | cache)
        data = recipe.model_dump()
        data["data"]["augment"] = augment
        recipe = validate(Recipe, data, "test")
        pool = TeacherPool(tmp_path / "views")
        return check_cache(recipe, Targets(recipe, torch.device("cpu"), pool), source)

    for random in ({"hflip": 0.5}, {"zoom": [1, 1.1]}, {"random_crop": True}):
        with pytest.raises(UserError, match=r"cut out anew each time.*across_runs: true"):
            said({}, STILL | random)
    assert "nothing of it can be used again within this run" in said({"across_runs": True}, {"random_crop": True})
    with pytest.raises(UserError, match=r"more than cache.max_gib"):
        said({"max_gib": 1e-5}, STILL)
    assert "free" in said({}, STILL)


def test_the_cache_is_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    one, two = recipe_of(tmp_path), recipe_of(tmp_path, cache={"folder": "elsewhere"})
    assert one.fingerprint() == two.fingerprint() and schedule(one) == schedule(two)
