"""What users get wrong, through the commands they type: one or two clear lines, exit code 2, no traceback."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from small_recipes import image_folder, small_recipe
from small_timm import timm_folder

from common.errors import guard
from featsharp_adapter import train
from featsharp_adapter.__main__ import main
from featsharp_adapter.adapter.adapter import make_untrained
from teachers.registry import load_backbone

ROOT = Path(__file__).parents[3]


def broken_folder(folder: Path) -> Path:
    """A ViT whose last norm has a NaN: it loads, and all its features are none."""
    timm_folder(folder, 0)
    path = folder / "model.safetensors"
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    with torch.no_grad():
        model.norm.bias[0] = float("nan")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vit/ and another/, nan/ whose features are NaN, an adapter for the first and for the last, images, a recipe."""
    tmp_path = tmp_path_factory.mktemp("world")
    for name, made in (("vit", timm_folder(tmp_path / "vit", 0)), ("nan", broken_folder(tmp_path / "nan"))):
        node = f"timm:{made}"
        adapter = make_untrained("featup", load_backbone(node).spec, 2, teacher_node=node)
        adapter.save_pretrained(tmp_path / f"{name}-adapter")
    timm_folder(tmp_path / "another", 1)
    image_folder(tmp_path / "images")
    Image.new("RGB", (3, 50)).save(tmp_path / "sliver.png")
    recipe = small_recipe(tmp_path / "images", teacher=f"timm:{tmp_path / 'vit'}", out=str(tmp_path / "out"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return tmp_path


def told(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.count("\n") <= 2
    return error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{w}/images/0.png", "--adapter", "{w}/vit-adapter", "--teacher", "timm:{w}/another"], "other weights"),
        (
            ["{w}/images/0.png", "--adapter", "{w}/vit-adapter", "--teacher", "timm:{w}/vit", "--grid", "40x40"],
            "adapter of a larger factor",
        ),
        (
            ["{w}/images/0.png", "--adapter", "{w}/nan-adapter", "--teacher", "timm:{w}/nan"],
            "not finite (NaN or infinity)",
        ),
        (
            ["{w}/images", "--adapter", "{w}/nan-adapter", "--teacher", "timm:{w}/nan"],
            "none of the images could be sharpened; the last: timm:",
        ),
        (["{w}/sliver.png", "--adapter", "{w}/vit-adapter", "--teacher", "timm:{w}/vit"], "smaller than one patch"),
        (["{w}/images/0.png", "--adapter", "{w}/nowhere"], "no adapter at"),
        (["{w}/images/0.png", "--adapter", "{w}/images"], "is no adapter"),
    ],
)
def test_sharpen(world: Path, capsys, arguments: list[str], message: str) -> None:
    filled = [text.format(w=world) for text in arguments]
    assert guard(main, ["sharpen", *filled, "--out", str(world / "out")]) == 2
    assert message in told(capsys)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["factor=0"], "factor"),
        (["factor=2.5"], "factor"),
        (["upsampler=none", "options={{}}"], "its factor is 1, not 2"),
        (["upsampler=featup_published", "options={{}}", "factor=3"], "power of two"),
        (["factor=7"], "does not cover a cell of 7x7"),
        (["teacher=timm:{w}/nan"], "not finite (NaN or infinity)"),
        (["teacher=timm:{w}/nan", "data.cache_gib=0"], "not finite (NaN or infinity)"),
        (["teacher=timm:{w}/missing"], "there is no folder"),
        (["upsampler=anyup", "options={{}}"], "options.checkout"),
        (["upsampler=naf", "options={{checkout: hub}}"], "torch.hub cache"),
        (["optim.lr=1e3", "optim.first_clip_steps=0", "optim.clip=1e30"], "lower optim.lr"),
    ],
)
def test_train(world: Path, capsys, monkeypatch, overrides: list[str], message: str) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(world))
    filled = [text.format(w=world) for text in overrides]
    assert guard(train.main, [str(world / "recipe.yaml"), *filled]) == 2
    assert message in told(capsys)


def test_compare_and_measure(world: Path, capsys) -> None:
    recipe, out = str(world / "recipe.yaml"), ["--out", str(world / "table")]
    nan = ["--set", f"teacher=timm:{world / 'nan'}"]
    assert guard(main, ["compare", recipe, *nan, "--upsamplers", "bilinear", *out]) == 2
    assert "not finite (NaN or infinity)" in told(capsys)
    assert guard(main, ["compare", recipe, "--upsamplers", "naf", *out]) == 2
    assert "git clone" in told(capsys)
    other = ["--set", f"teacher=timm:{world / 'another'}"]
    assert guard(main, ["measure", str(world / "vit-adapter"), "--recipe", recipe, *other]) == 2
    assert "other weights" in told(capsys)


def test_a_description_that_was_edited_does_not_fit_its_weights(world: Path, tmp_path: Path, capsys) -> None:
    path = Path(shutil.copytree(world / "vit-adapter", tmp_path / "edited")) / "adapter.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(description | {"factor": 3, "upsampler": "featsharp", "options": {"heads": 2}}))
    given = [str(world / "images" / "0.png"), "--adapter", str(path.parent), "--out", str(world / "out")]
    assert guard(main, ["sharpen", *given]) == 2
    assert "do not fit the description" in capsys.readouterr().err


def test_images_that_hold_no_numbers_are_refused_in_training(world: Path, tmp_path: Path, capsys) -> None:
    for index in range(8):
        Image.fromarray(np.full((60, 80), np.nan, dtype=np.float32)).save(tmp_path / f"{index}.tiff")
    given = [f"data.train=imagefolder:{tmp_path}", f"out={tmp_path / 'out'}"]
    assert guard(train.main, [str(world / "recipe.yaml"), *given]) == 2
    assert "32-bit float pixels have no fixed range" in told(capsys)


@pytest.mark.slow
def test_the_process_itself_ends_with_two(world: Path) -> None:
    image, adapter = str(world / "sliver.png"), str(world / "vit-adapter")
    command = [sys.executable, "-m", "featsharp_adapter", "sharpen", image, "--adapter", adapter, "--out", str(world)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=250)
    assert done.returncode == 2 and "smaller than one patch" in done.stderr and "Traceback" not in done.stderr
