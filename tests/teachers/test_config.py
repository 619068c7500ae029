"""Recipes: inheritance, overrides, and errors that name the field, the file and the nearest known name."""

from pathlib import Path

import pytest

from common.errors import UserError
from common.recipes import Node, apply_override, dump, load_recipe, read_recipe, validate


class Teacher(Node):
    backbone: str
    upsampler: str = "bilinear"


class Recipe(Node):
    name: str
    steps: int = 10
    teachers: dict[str, Teacher]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(
        "name: base\nteachers:\n  a: {backbone: tiny:clip}\n  b: {backbone: tiny:dino}\n"
    )
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\nname: child\nteachers:\n  b: {upsampler: tile}\n")
    return child


def test_extends_merges_mappings(recipe: Path) -> None:
    loaded = load_recipe(Recipe, recipe)
    assert loaded.name == "child"
    assert loaded.teachers["b"] == Teacher(backbone="tiny:dino", upsampler="tile")


def test_star_stands_for_every_teacher(recipe: Path) -> None:
    loaded = load_recipe(Recipe, recipe, ["teachers.*.upsampler=s2", "steps=3"])
    assert [teacher.upsampler for teacher in loaded.teachers.values()] == ["s2", "s2"]
    assert loaded.steps == 3


def test_star_that_meets_nothing_is_an_error(recipe: Path) -> None:
    with pytest.raises(UserError, match="meets no entries"):
        load_recipe(Recipe, recipe, ["students.*.size=3"])


def test_unknown_field_suggests_the_nearest(recipe: Path) -> None:
    with pytest.raises(UserError, match=r'unknown field "teachers.a.upsampelr" \(did you mean "upsampler"\?\)'):
        load_recipe(Recipe, recipe, ["teachers.a.upsampelr=s2"])
    with pytest.raises(UserError, match=r'unknown field "stepz" \(did you mean "steps"\?\)'):
        load_recipe(Recipe, recipe, ["stepz=1"])


def test_wrong_type_names_the_field(recipe: Path) -> None:
    with pytest.raises(UserError, match="steps: Input should be a valid integer"):
        load_recipe(Recipe, recipe, ["steps=many"])


def test_a_resolved_recipe_loads_back(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(Recipe, recipe)
    (tmp_path / "resolved.yaml").write_text(dump(loaded))
    assert load_recipe(Recipe, tmp_path / "resolved.yaml") == loaded


@pytest.mark.parametrize(
    ("text", "message"),
    [("extends: x.yaml\n", "extends itself"), ("a: [", "not valid YAML"), ("- 1\n", "holds no mapping")],
)
def test_bad_files_say_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_recipe(tmp_path / "x.yaml")


def test_missing_file_and_bad_override() -> None:
    with pytest.raises(UserError, match="cannot read recipe"):
        read_recipe("nowhere.yaml")
    with pytest.raises(UserError, match="path=value"):
        apply_override({}, "steps")


def test_missing_field_is_named() -> None:
    with pytest.raises(UserError, match="set name; "):
        validate(Recipe, {"teachers": {}}, "here")
