"""`sharp:FOLDER`: a teacher and its adapter as one backbone, by entry point, for the teacher's own weights only."""

from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

from featsharp_adapter.adapter import make_untrained
from featsharp_adapter.sharp import SharpenedBackbone, load
from featsharp_adapter.views import teacher_views
from teachers.contracts import capability
from teachers.errors import UserError
from teachers.registry import load_backbone

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}


def timm_folder(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_for_hf(timm.create_model("vit_tiny_patch16_224", **TINY), str(folder), safe_serialization=True)
    return folder


@pytest.fixture
def adapter_folder(tmp_path: Path) -> Path:
    node = f"timm:{timm_folder(tmp_path / 'vit', 0)}"
    teacher = load_backbone(node)
    return make_untrained("tile", teacher.spec, 2, teacher_node=node).save_pretrained(tmp_path / "adapter")


@torch.no_grad()
def test_the_recorded_teacher_is_loaded_and_sharpened(adapter_folder: Path, tmp_path: Path) -> None:
    backbone = load_backbone(f"sharp:{adapter_folder}")
    teacher = load_backbone(f"timm:{tmp_path / 'vit'}")
    images = torch.rand(2, 3, 64, 64)
    views = teacher_views(teacher, images, (2,))
    features = backbone(images)
    assert torch.allclose(features.spatial, views.tiles[2], atol=1e-6)
    assert torch.equal(features.summary, views.summary)
    spec = backbone.spec
    assert spec.native_size == (64, 64) and spec.native_grid == (8, 8) and not spec.resizable
    assert spec.spatial_dim == 16 and spec.library == "sharp" and spec.digest != teacher.spec.digest
    assert not backbone.training
    with pytest.raises(UserError, match="64x64 px only"):
        backbone(torch.rand(1, 3, 32, 32))


def test_another_copy_of_the_weights_will_do_other_weights_will_not(adapter_folder: Path, tmp_path: Path) -> None:
    copy = timm_folder(tmp_path / "copy", 0)
    assert load(str(adapter_folder), teacher=f"timm:{copy}").spec.native_size == (64, 64)
    other = timm_folder(tmp_path / "other", 1)
    with pytest.raises(UserError, match="other weights"):
        load(str(adapter_folder), teacher=f"timm:{other}")


def test_text_tower_is_passed_on_if_there_is_one(teacher, adapter_folder: Path) -> None:
    sharp = SharpenedBackbone(teacher, make_untrained("bilinear", teacher.spec, 3), "x")
    assert torch.equal(capability(sharp, "encode_text")(["a"]), torch.ones(1, 8))
    assert capability(load_backbone(f"sharp:{adapter_folder}"), "encode_text") is None


def test_digest_changes_with_the_adapter(teacher) -> None:
    adapter = make_untrained("bilinear", teacher.spec, 2)
    before = SharpenedBackbone(teacher, adapter, "x").spec.digest
    torch.nn.init.ones_(adapter.bias.buffer)
    assert SharpenedBackbone(teacher, adapter, "x").spec.digest != before
