"""The entry script as a user starts it: from a recipe to an adapter that loads as a backbone; errors in words."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_sharp import timm_folder
from worlds import image_folder, small_recipe

from teachers.registry import load_backbone

ROOT = Path(__file__).parents[2]


def start(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(ROOT / "featsharp_adapter" / "train.py"), *arguments]
    return subprocess.run(script, cwd=cwd, capture_output=True, text=True, timeout=200)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    recipe = small_recipe(
        image_folder(tmp_path / "images"), teacher=f"timm:{timm_folder(tmp_path / 'vit', 0)}", out="out", optim__steps=4
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return path


def test_recipe_to_sharpened_backbone(recipe_file: Path, tmp_path: Path) -> None:
    done = start(str(recipe_file), "optim.steps=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fidelity" in done.stdout and "sharp:out/adapter" in done.stdout
    description = json.loads((tmp_path / "out/adapter/adapter.json").read_text())
    assert description["training"]["optim"]["steps"] == 3
    assert set(description["fidelity"]) == {"average", "learned"}
    assert yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())["optim"]["steps"] == 3
    assert load_backbone(f"sharp:{tmp_path / 'out/adapter'}")(torch.rand(1, 3, 64, 64)).spatial.shape == (1, 16, 8, 8)


def test_mistakes_end_with_two_and_one_line(recipe_file: Path, tmp_path: Path) -> None:
    done = start(str(recipe_file), "upsampler=featshrap", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and 'did you mean "featsharp"' in done.stderr
