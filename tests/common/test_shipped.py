"""Recipes that ship are found by name from anywhere; a file of the user's own comes first."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.recipes import read_recipe
from common.shipped import FOLDER, find_recipe, shipped_recipes
from distill.recipe import read, read_arms
from eval_suite.suite import load_suite
from featsharp_adapter.recipe import AdapterRecipe


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_by_name_and_by_path_in_a_checkout() -> None:
    for name in ("quickstart.yaml", "recipes/quickstart.yaml", "./recipes/quickstart.yaml"):
        assert find_recipe(name) == FOLDER / "quickstart.yaml"
    assert "suites/embedded.yaml" in shipped_recipes()
    with pytest.raises(UserError, match=r'no such file, here or among those that ship .did you mean "quickstart.yaml"'):
        find_recipe("quikstart.yaml")
    with pytest.raises(UserError, match=r'did you mean "suites/embedded.yaml"'):
        find_recipe("embeded.yaml", "suites/")
    with pytest.raises(UserError, match=r"those that ship: suites/arms_debug.yaml, .*suites/vlm.yaml"):
        find_recipe("nosuch.yaml", "suites/")
    for hostile in ("../recipes/quickstart.yaml", "/recipes/quickstart.yaml", "a\0b", ""):
        with pytest.raises(UserError, match="cannot read recipe"):
            find_recipe(hostile)


def test_the_user_s_own_file_comes_first(elsewhere: Path) -> None:
    (elsewhere / "debug.yaml").write_text("extends: []\nname: mine\n")
    assert read_recipe("debug.yaml") == {"name": "mine"}


def test_every_shipped_recipe_loads_from_an_empty_folder() -> None:
    for name in shipped_recipes():
        if name.startswith("suites/"):
            load_suite(name)
        elif name.startswith("adapters/"):
            AdapterRecipe.model_validate(read_recipe(name))
        else:
            read(name)


def test_a_recipe_s_suite_is_looked_for_beside_it_then_here_then_among_ours(elsewhere: Path) -> None:
    folder = elsewhere / "mine"
    folder.mkdir()
    (folder / "own.yaml").write_text("extends: " + str(FOLDER / "quickstart.yaml") + "\neval: {suite: near.yaml}\n")
    (folder / "near.yaml").write_text("near: 1\n")
    assert read(folder / "own.yaml").eval.suite == str(folder / "near.yaml")  # type: ignore[union-attr]
    (elsewhere / "here.yaml").write_text("here: 1\n")
    assert read(folder / "own.yaml", ["eval.suite=here.yaml"]).eval.suite == "here.yaml"  # type: ignore[union-attr]
    ours = read(folder / "own.yaml", ["eval.suite=recipes/suites/quick.yaml"])
    assert ours.eval.suite == str(FOLDER / "suites/quick.yaml")  # type: ignore[union-attr]
    assert {arm.eval.suite for arm in read_arms("quickstart.yaml").values() if arm.eval} == {
        str(FOLDER / "suites/embedded.yaml")
    }
    with pytest.raises(UserError, match=r"cannot read recipe 'gone\.yaml'"):
        read(folder / "own.yaml", ["eval.suite=gone.yaml"])


def test_the_commands_take_the_names() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "distill.run", "debug.yaml", "optim.stepz=1"], capture_output=True, text=True
    )
    assert said.returncode == 2 and 'unknown field "optim.stepz"' in said.stderr
