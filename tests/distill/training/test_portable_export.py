"""What goes into the world names no folder of this machine; what the run goes on from names them all."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import small_recipe, train

from common.recipes import validate
from distill.exported import load
from distill.recipe import Recipe
from featsharp_adapter.adapter.adapter import Adapter


def test_a_student_folder_names_no_place_and_is_known_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, adapter = tmp_path / "secret" / "photographs", tmp_path / "secret" / "sharp"
    images.mkdir(parents=True)
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    Adapter.from_pretrained("builtin:tiny-clip-featsharp-2x").save_pretrained(adapter)
    data = small_recipe(tmp_path / "runs")
    data["data"] = {"train": {f"imagefolder:{images}": 1.0}, "size": [32, 32]}
    data["teachers"] = {
        "clip": {
            "backbone": "tiny:clip",
            "upsampler": "featsharp",
            "factor": 2,
            "adapters": {"featsharp": str(adapter)},
        }
    }
    data |= {"normaliser": {"batches": 1}, "optim": {"steps": 1, "batch_size": 2, "lr": 0.001}}
    recipe = validate(Recipe, data, "test")
    folder = train(recipe)
    for name in ("config.json", "README.md"):
        assert str(tmp_path) not in (folder / "student" / name).read_text()
    identity = json.loads((folder / "student" / "config.json").read_text())["identity"]
    assert identity["data.train.imagefolder:<local>/photographs"] == 1.0
    assert identity["teachers.clip.adapters.featsharp"] == "<local>/sharp"
    state = json.loads((folder / "checkpoints" / "step-00000001" / "state.json").read_text())["identity"]
    assert state["teachers.clip.adapters.featsharp"] == str(adapter)
    assert load(str(folder)).teachers["clip"]["adapter"].startswith("sha256:")

    # Known again, also where everything has moved.
    capsys.readouterr()
    train(recipe)
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "secret", moved)
    data["data"]["train"] = {f"imagefolder:{moved / 'photographs'}": 1.0}
    data["teachers"]["clip"]["adapters"]["featsharp"] = str(moved / "sharp")
    train(validate(Recipe, data, "test"))
    assert capsys.readouterr().out.count("already trained") == 2
