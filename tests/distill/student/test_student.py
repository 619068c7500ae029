"""The student: shapes, tokens, gradients, and starting from weights that were made with a class token."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import UserError
from distill.recipe_models import StudentNode
from distill.student.model import HeadSpec, Student

SIZES = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
HEADS = {"a": HeadSpec(summary_dim=7, spatial_dim=5), "b": HeadSpec(summary_dim=None, spatial_dim=6)}


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return Student(StudentNode(model="vit_tiny_patch16_224", **SIZES), (32, 32), HEADS)


@pytest.mark.parametrize("size", [(32, 32), (16, 48), (40, 24)])
def test_any_multiple_of_the_patch(student: Student, size: tuple[int, int]) -> None:
    out = student(torch.rand(2, 3, *size))
    grid = (size[0] // 8, size[1] // 8)
    assert out["a"].summary.shape == (2, 7) and out["a"].spatial.shape == (2, 5, *grid)
    assert out["b"].summary is None and out["b"].spatial.shape == (2, 6, *grid)


def test_other_sizes_are_refused(student: Student) -> None:
    with pytest.raises(UserError, match="multiples of 8 px, got 30x32"):
        student(torch.rand(1, 3, 30, 32))


def test_every_parameter_gets_a_gradient(student: Student) -> None:
    out = student(torch.rand(2, 3, 32, 32))
    sum(part.square().sum() for features in out.values() for part in features if part is not None).backward()
    silent = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_spatial_map_is_row_major(student: Student) -> None:
    """A change in the top right corner must move the top right of the map most."""
    images = torch.rand(1, 3, 32, 32)
    other = images.clone()
    other[..., :8, -8:] = 1 - other[..., :8, -8:]
    change = (student.tokens(other)[1] - student.tokens(images)[1]).abs().sum(1)[0]
    assert divmod(int(change.argmax()), 4) == (0, 3)


def test_summary_tokens_differ_from_the_start(student: Student) -> None:
    tokens, _ = student.tokens(torch.rand(1, 3, 32, 32))
    assert not torch.allclose(tokens[:, 0], tokens[:, 1], atol=1e-3)


def body(path: Path, **overrides: int) -> dict[str, Tensor]:
    """timm weights with a class token, saved to `path`."""
    torch.manual_seed(1)
    state = timm.create_model("vit_tiny_patch16_224", img_size=32, **SIZES | overrides).state_dict()
    save_file(state, path)
    return state


def test_starts_from_timm_weights(tmp_path: Path) -> None:
    state = body(tmp_path / "vit.safetensors")
    node = StudentNode(model="vit_tiny_patch16_224", weights=str(tmp_path / "vit.safetensors"), **SIZES)
    vit = Student(node, (32, 32), HEADS).vit
    assert torch.equal(vit.blocks[1].mlp.fc1.weight, state["blocks.1.mlp.fc1.weight"])
    assert torch.equal(vit.pos_embed, state["pos_embed"][:, 1:])
    start = state["cls_token"] + state["pos_embed"][:, :1]
    assert (vit.reg_token - start).abs().max() < 0.1 and not torch.equal(vit.reg_token[:, 0], vit.reg_token[:, 1])


def test_positions_are_resampled_to_another_size(tmp_path: Path) -> None:
    body(tmp_path / "vit.safetensors")
    node = StudentNode(model="vit_tiny_patch16_224", weights=str(tmp_path / "vit.safetensors"), **SIZES)
    assert Student(node, (64, 32), HEADS).vit.pos_embed.shape == (1, 32, 24)


def test_unfit_weights_and_models_are_refused(tmp_path: Path) -> None:
    body(tmp_path / "deep.safetensors", depth=3)
    for node, message in (
        (StudentNode(model="vit_tiny_patch16_224", weights=str(tmp_path / "deep.safetensors"), **SIZES), "do not fit"),
        (StudentNode(model="vit_tiny_patch16_224", weights="nowhere.safetensors", **SIZES), "no file"),
        (StudentNode(model="vit_tiny_patch16_2244"), "cannot build"),
        (StudentNode(model="resnet18"), "VisionTransformer|cannot build"),
    ):
        with pytest.raises(UserError, match=message):
            Student(node, (32, 32), HEADS)


def test_builds_without_memory() -> None:
    with torch.device("meta"):
        student = Student(StudentNode(model="vit_large_patch16_224"), (1024, 1024), HEADS)
    assert sum(p.numel() for p in student.parameters()) > 300e6
