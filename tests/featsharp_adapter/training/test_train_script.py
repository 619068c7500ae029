"""The entry script as a user starts it: from a recipe to an adapter that loads as a backbone; errors in words."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from small_recipes import image_folder, small_recipe
from small_timm import timm_folder

from common.errors import guard
from featsharp_adapter.train import main
from teachers.registry import load_backbone

ROOT = Path(__file__).parents[3]


def test_started_as_a_script_it_knows_its_options() -> None:
    script = [sys.executable, str(ROOT / "featsharp_adapter" / "train.py"), "--help"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "key=value" in done.stdout


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    recipe = small_recipe(
        image_folder(tmp_path / "images"), teacher=f"timm:{timm_folder(tmp_path / 'vit', 0)}", out="out", optim__steps=4
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return path


def test_recipe_to_sharpened_backbone(recipe_file: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert guard(main, [str(recipe_file), "optim.steps=3"]) == 0
    printed = capsys.readouterr().out
    assert "fidelity" in printed and "sharp:out/adapter" in printed
    description = json.loads((tmp_path / "out/adapter/adapter.json").read_text())
    assert description["training"]["optim"]["steps"] == 3
    assert set(description["fidelity"]) == {"average", "learned", "side"}
    assert yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())["optim"]["steps"] == 3
    # A file may not name a folder of the machine: who loads it names the teacher.
    node = {"spec": f"sharp:{tmp_path / 'out/adapter'}", "teacher": f"timm:{tmp_path / 'vit'}"}
    assert load_backbone(node)(torch.rand(1, 3, 64, 64)).spatial.shape == (1, 16, 8, 8)


def test_mistakes_end_with_two_and_one_line(recipe_file: Path, capsys) -> None:
    assert guard(main, [str(recipe_file), "upsampler=featshrap"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and 'did you mean "featsharp"' in error
