"""The public Python functions, used as a user would, from a folder of their own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import agglomerate
from eval_suite.table_formats import render

ADAPTER = "builtin:tiny-clip-featsharp-2x"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photo(elsewhere: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (230, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(elsewhere / "photo.png")
    return elsewhere / "photo.png"


def test_importing_it_loads_nothing_heavy() -> None:
    script = "import sys, agglomerate; print('torch' in sys.modules, len(agglomerate.__all__), len(dir(agglomerate)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False 14 14\n"
    with pytest.raises(AttributeError, match="has no attribute 'sharpn'"):
        _ = agglomerate.sharpn
    assert all(getattr(agglomerate, name) is not None for name in agglomerate.__all__)


def test_an_image_is_sharpened_from_whatever_holds_it(photo: Path) -> None:
    backbone = agglomerate.sharpened(ADAPTER)
    from_path = agglomerate.sharpen("photo.png", backbone)
    pixels = np.array(Image.open(photo))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    for image in (photo, Image.open(photo), pixels, tensor, tensor[None]):
        assert torch.equal(agglomerate.sharpen(image, backbone).spatial, from_path.spatial)
    two = agglomerate.sharpen([photo, tensor], backbone)
    assert two.spatial.shape[0] == 2 and torch.allclose(two.spatial[0], two.spatial[1])
    patch = backbone.spec.patch_size
    assert from_path.spatial.shape[-2:] == (230 // patch, 300 // patch)
    assert not from_path.spatial.requires_grad
    assert torch.equal(agglomerate.sharpen(photo, ADAPTER).spatial, from_path.spatial)


def test_an_encoder_has_the_map_before_sharpening_and_a_budget(photo: Path) -> None:
    images = torch.rand(1, 3, 224, 224)
    cheap, whole = (agglomerate.sharpened("builtin:tiny-clip-ridge-2x", passes=passes) for passes in (0.5, None))
    with torch.no_grad():
        assert cheap.low_res(images).shape[-2:] == (7, 7) and cheap(images).spatial.shape[-2:] == (14, 14)
        assert not torch.equal(cheap(images).spatial, whole(images).spatial)
    assert torch.equal(cheap.low_res(images), whole.low_res(images))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("gone.png", "cannot be read as an image"),
        (np.zeros((8, 8, 3)), "uint8"),
        (np.zeros((8, 8), dtype=np.uint8), "uint8"),
        (torch.full((3, 64, 64), 200.0), "divide by 255"),
        (torch.full((3, 64, 64), -1.0), "do not normalise"),
        (torch.zeros(64, 64, 3), "float .B, 3, H, W."),
        (torch.zeros(3, 64, 64, dtype=torch.uint8), "float .B, 3, H, W."),
        (torch.zeros(3, 2, 64), "smaller than one patch"),
        ([torch.zeros(3, 64, 64), torch.zeros(3, 64, 80)], "several sizes"),
    ],
    ids=["gone", "floats", "grey", "0-255", "negative", "channels last", "bytes", "small", "sizes"],
)
def test_wrong_images_are_refused_in_words(image: object, message: str) -> None:
    with pytest.raises(agglomerate.UserError, match=message):
        agglomerate.sharpen(image, agglomerate.sharpened(ADAPTER))  # type: ignore[arg-type]


def test_backbones_and_what_is_known() -> None:
    assert agglomerate.known_teachers()["dfn_clip_h"]["spec"].startswith("open_clip:")
    assert agglomerate.load_adapter(ADAPTER).factor == 2
    assert agglomerate.load_backbone("tiny:sam").spec.name == "tiny:sam"
    with pytest.raises(agglomerate.UserError, match="no exported student"):
        (Path("empty")).mkdir()
        agglomerate.load_student("empty")


def test_a_shipped_recipe_is_distilled_probed_and_tabled(elsewhere: Path) -> None:
    overrides = ["optim.steps=2", "optim.warmup_steps=0", "name=first", "eval=null"]
    folder = agglomerate.distil("debug.yaml", *overrides)
    assert folder == Path("runs/first") and (folder / "student" / "model.safetensors").is_file()
    student = agglomerate.load_student(folder)
    suite = "suites/embedded_debug.yaml"
    small = agglomerate.probe(student, suite, only=["dense"], out="first.json")
    other = agglomerate.probe("tiny:clip", suite, only=["dense"])
    table = agglomerate.build_table({"first": small, "clip": other}, "first")
    assert "| clip |" in render(table, "md") and set(table.to_dict()["rows"]) == {"first", "clip"}
    assert agglomerate.build_table(["first.json"], "first").to_dict()["rows"] is not None
    with pytest.raises(agglomerate.UserError, match=r'unknown field "optim\.stepz" .did you mean "steps"'):
        agglomerate.distil("debug.yaml", "optim.stepz=2")


def test_hub_entries() -> None:
    loaded = torch.hub.load(str(ROOT), "backbone", "tiny:dino", source="local", trust_repo=True)
    assert loaded.spec.name == "tiny:dino"
    sharp = torch.hub.load(str(ROOT), "sharpened", source="local", trust_repo=True)
    assert sharp(torch.rand(1, 3, 224, 224)).spatial.shape[0] == 1
