"""The command a user types: files and folders in, feature files and pictures out, mistakes in words and exit code 2."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_timm import timm_folder

from common.errors import guard
from featsharp_adapter.__main__ import main
from featsharp_adapter.adapter.adapter import make_untrained
from featsharp_adapter.model.phi_s import CovarianceStatistics
from featsharp_adapter.sharpening.command import read_image
from featsharp_adapter.sharpening.pictures import ColourBasis, shared_basis
from teachers.registry import load_backbone


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """adapter/ for a tiny ViT of 32 px, photos/ of two shapes with one broken file in a folder of its own."""
    node = f"timm:{timm_folder(tmp_path / 'vit', 0)}"
    make_untrained("tile", load_backbone(node).spec, 2, teacher_node=node).save_pretrained(tmp_path / "adapter")
    (tmp_path / "photos" / "more").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (64, 64, 3)), ("more/a.png", (64, 120, 3))):
        Image.fromarray(generator.integers(0, 255, size, dtype=np.uint8)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "broken.png").write_bytes(b"not a picture")
    return tmp_path


def run(world: Path, *arguments: str) -> int:
    adapter = [] if "--adapter" in arguments else ["--adapter", str(world / "adapter")]
    teacher = [] if "--teacher" in arguments else ["--teacher", f"timm:{world / 'vit'}"]
    return guard(main, ["sharpen", *arguments, *adapter, *teacher, "--out", str(world / "out")])


def test_a_folder_becomes_features_and_pictures(world: Path, capsys) -> None:
    assert run(world, str(world / "photos")) == 0
    printed = capsys.readouterr().out
    assert "broken.png" in printed and "2 images" in printed
    files = sorted(str(path.relative_to(world / "out")) for path in (world / "out").rglob("*") if path.is_file())
    assert files == ["a.png", "a.safetensors", "more/a.png", "more/a.safetensors"]
    features = load_file(world / "out" / "a.safetensors")
    image = read_image(world / "photos" / "a.png")
    expected = load_backbone({"spec": f"sharp:{world / 'adapter'}", "teacher": f"timm:{world / 'vit'}"})(image)
    assert torch.allclose(features["spatial"], expected.spatial[0], atol=1e-5)
    assert torch.allclose(features["summary"], expected.summary[0], atol=1e-6)
    wide = load_file(world / "out" / "more" / "a.safetensors")["spatial"]
    assert wide.shape[1] == 8 and wide.shape[2] > 12
    with Image.open(world / "out" / "more" / "a.png") as panels:
        assert panels.width > panels.height


def test_options_reach_the_sharpener(world: Path) -> None:
    image = str(world / "photos" / "more" / "a.png")
    how = ["--fit", "squash", "--grid", "5x7", "--overlap", "0.5", "--max-memory", "1G", "--no-pictures", "--low-res"]
    assert run(world, image, image, *how) == 0
    assert load_file(world / "out" / "a.safetensors")["spatial"].shape == (16, 5, 7)
    assert load_file(world / "out" / "a.safetensors")["low_res"].shape == (16, 4, 4)
    assert sorted(path.name for path in (world / "out").iterdir()) == ["a-2.safetensors", "a.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "no image at"),
        (["{photos}/broken.png"], "cannot be read as an image"),
        (["{photos}/a.png", "--grid", "99x99"], "larger factor"),
        (["{photos}/a.png", "--grid", "9"], "ROWSxCOLUMNS"),
        (["{photos}/a.png", "--overlap", "2"], "overlap"),
        (["{photos}/a.png", "--max-memory", "lots"], "amount of memory"),
        (["{photos}/a.png", "--max-memory", "1K"], "too little"),
        (["{photos}/a.png", "--adapter", "builtin:none"], "built-in adapter"),
        (["{photos}/a.png", "--teacher", "tiny:clip"], "other weights"),
        (["{vit}"], "no images in"),
        (["{photos}/small.png"], "smaller than one patch"),
    ],
)
def test_mistakes_end_with_two_and_a_line(world: Path, capsys, arguments: list[str], message: str) -> None:
    Image.new("RGB", (5, 40)).save(world / "photos" / "small.png")
    filled = [text.format(photos=world / "photos", vit=world / "vit") for text in arguments]
    assert run(world, *filled) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") <= 2 and "Traceback" not in error


def test_equal_features_have_equal_colours_on_every_grid() -> None:
    maps = {"low": torch.randn(2, 12, 4, 4), "high": torch.randn(2, 12, 8, 6)}
    maps["high"][:, :, :4, :4] = maps["low"]
    basis = shared_basis(maps)
    low, high = basis.paint(maps["low"]), basis.paint(maps["high"])
    assert torch.allclose(high[:, :, :4, :4], low) and low.min() >= 0 and low.max() <= 1
    narrow = CovarianceStatistics(2)
    narrow.update(torch.randn(1, 2, 5, 5))
    assert torch.equal(ColourBasis.fit(narrow).paint(torch.randn(1, 2, 3, 3))[:, 2], torch.full((1, 3, 3), 0.5))
