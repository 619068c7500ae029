"""`python -m teachers`: the list, the card of a loaded backbone, a picture, and errors in a line."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from common.errors import guard
from teachers.__main__ import main, pca_picture
from teachers.known import KNOWN
from teachers.registry import load_backbone

VIT = "model_args={patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2, num_classes: 0}"
RANDOM = ["timm:vit_tiny_patch16_224", "pretrained=false", "image_size=32", VIT]


def test_list_names_every_library_and_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(main, ["list"]) == 0
    printed = capsys.readouterr().out
    assert all(row.short in printed and row.spec in printed and row.licence in printed for row in KNOWN.values())
    assert all(f"  {prefix} " in printed for prefix in ("timm", "open_clip", "transformers", "tiny", "sharp", "run"))


def test_check_prints_the_card_and_saves_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Image.effect_noise((40, 50), 64).convert("RGB").save(tmp_path / "in.png")
    picture = tmp_path / "out.png"
    assert guard(main, ["check", *RANDOM, "--image", str(tmp_path / "in.png"), "--pca", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "32x32 px, 4x4 tokens" in printed and "[1, 32, 4, 4]" in printed and "capabilities  intermediate" in printed
    assert Image.open(picture).size == (64, 32)


def test_check_at_another_size_and_in_bf16(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(main, ["check", *RANDOM, "--size", "48", "24", "--bf16"]) == 0
    assert "[1, 32, 6, 3]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["timmm:vit"], 'did you mean "timm"'),
        ([*RANDOM, "--size", "30", "30"], "multiples of 8 px"),
        ([*RANDOM, "--image", "/no/such.png"], "cannot read the picture"),
        ([*RANDOM, "summary"], "an option is name=value"),
        ([*RANDOM, "--device", "abacus"], "there is no device"),
    ],
)
def test_errors_are_a_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard(main, ["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) <= 2


def test_values_that_are_not_finite_are_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    node = {"spec": "timm:mobilenetv2_035", "pretrained": False}
    state = load_backbone(node).tower.model.state_dict()
    state["conv_head.weight"].fill_(torch.nan)
    save_file(state, tmp_path / "nan.safetensors")
    options = [f"weights={tmp_path}/nan.safetensors", "mean=[0, 0, 0]", "std=[1, 1, 1]"]
    assert guard(main, ["check", "timm:mobilenetv2_035", *options]) == 2
    assert "not finite" in capsys.readouterr().err


def test_pca_picture_shows_two_regions_apart() -> None:
    spatial = torch.zeros(5, 4, 4)
    spatial[2, :, 2:] = 3.0
    right = pca_picture(torch.zeros(3, 16, 16), spatial).crop((16, 0, 32, 16))
    colours = [right.getpixel((x, 8)) for x in (1, 6, 9, 14)]
    assert colours[0] == colours[1] and colours[2] == colours[3] and colours[1] != colours[2]
