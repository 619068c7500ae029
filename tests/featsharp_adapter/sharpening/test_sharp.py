"""`sharp:FOLDER`: a teacher and its adapter as one backbone, by entry point, for the teacher's own weights only."""

from pathlib import Path

import pytest
import torch
from small_timm import timm_folder

from common.errors import UserError
from featsharp_adapter.adapter.adapter import make_untrained
from featsharp_adapter.model.views import teacher_views
from featsharp_adapter.sharpening.backbone import SharpenedBackbone, load
from featsharp_adapter.sharpening.sharpener import SharpenSettings, choose_fit
from teachers.contracts import capability, resize_images
from teachers.registry import load_backbone


@pytest.fixture
def adapter_folder(tmp_path: Path) -> Path:
    node = f"timm:{timm_folder(tmp_path / 'vit', 0)}"
    teacher = load_backbone(node)
    return make_untrained("tile", teacher.spec, 2, teacher_node=node).save_pretrained(tmp_path / "adapter")


def typed(adapter_folder: Path, **options) -> dict[str, object]:
    """The node with its teacher: a folder of this machine is for the user to type, see teachers/artefacts.py."""
    return {"spec": f"sharp:{adapter_folder}", "teacher": f"timm:{adapter_folder.parent / 'vit'}", **options}


@torch.no_grad()
def test_the_recorded_teacher_is_loaded_and_sharpened(adapter_folder: Path, tmp_path: Path) -> None:
    backbone = load_backbone(typed(adapter_folder))
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


def test_a_folder_of_this_machine_is_not_read_because_a_file_says_so(adapter_folder: Path) -> None:
    with pytest.raises(UserError, match=r"a file may not name: .*<local>/vit.* is a path.*teacher: NODE"):
        load_backbone(f"sharp:{adapter_folder}")


def test_another_copy_of_the_weights_will_do_other_weights_will_not(adapter_folder: Path, tmp_path: Path) -> None:
    copy = timm_folder(tmp_path / "copy", 0)
    assert load(str(adapter_folder), teacher=f"timm:{copy}").spec.native_size == (64, 64)
    other = timm_folder(tmp_path / "other", 1)
    with pytest.raises(UserError, match="other weights"):
        load(str(adapter_folder), teacher=f"timm:{other}")


def test_text_tower_is_passed_on_if_there_is_one(teacher, adapter_folder: Path) -> None:
    sharp = SharpenedBackbone(teacher, make_untrained("bilinear", teacher.spec, 3), "x")
    assert torch.equal(capability(sharp, "encode_text")(["a"]), torch.ones(1, 8))
    assert capability(load_backbone(typed(adapter_folder)), "encode_text") is None


def test_digest_changes_with_the_adapter(teacher) -> None:
    adapter = make_untrained("bilinear", teacher.spec, 2)
    before = SharpenedBackbone(teacher, adapter, "x").spec.digest
    torch.nn.init.ones_(adapter.bias.buffer)
    assert SharpenedBackbone(teacher, adapter, "x").spec.digest != before


@torch.no_grad()
@pytest.mark.parametrize("fit", ["auto", "windows", "squash"])
@pytest.mark.parametrize("size", [(64, 64), (72, 104), (40, 160)])
def test_any_size_and_shape_for_a_teacher_of_one_size(teacher, fit: str, size: tuple[int, int]) -> None:
    adapter = make_untrained("featsharp", teacher.spec, 2)
    patch = teacher.spec.patch_size
    size = (size[0] // 8 * patch, size[1] // 8 * patch)
    sharp = SharpenedBackbone(teacher, adapter, "x", settings=SharpenSettings(fit=fit))
    assert sharp.spec.resizable
    images = torch.rand(2, 3, *size)
    features = sharp(images)
    asked = tuple(side // patch for side in size)
    own = tuple(2 * side for side in teacher.spec.native_grid)
    squashed = choose_fit(fit, teacher.spec, images) == "squash"
    expected = tuple(map(min, asked, own)) if squashed else asked
    assert tuple(features.spatial.shape[-2:]) == expected
    assert torch.isfinite(features.spatial).all()
    assert torch.equal(features.summary, teacher(resize_images(images, teacher.spec.native_size)).summary)


@torch.no_grad()
def test_any_size_for_a_teacher_of_any_size(tmp_path: Path) -> None:
    node = {"spec": f"timm:{timm_folder(tmp_path / 'vit', 0)}"}
    backbone = load_backbone(node)
    assert backbone.spec.resizable
    sharp = SharpenedBackbone(
        backbone, make_untrained("tile", backbone.spec, 2), "x", settings=SharpenSettings(fit="auto")
    )
    assert tuple(sharp(torch.rand(1, 3, 72, 104)).spatial.shape) == (1, 16, 9, 13)  # 9 and 13 are no multiples of 2
    exact = torch.rand(1, 3, 64, 96)
    assert tuple(sharp(exact).spatial.shape) == (1, 16, 8, 12)


@torch.no_grad()
def test_at_its_own_size_any_size_means_the_same(teacher) -> None:
    adapter = make_untrained("tile", teacher.spec, 2)
    images = torch.rand(1, 3, *(2 * side for side in teacher.spec.native_size))
    plain = SharpenedBackbone(teacher, adapter, "x")
    free = SharpenedBackbone(teacher, adapter, "x", settings=SharpenSettings())
    assert torch.allclose(plain(images).spatial, free(images).spatial, atol=1e-6)
    assert plain.spec.digest != free.spec.digest  # elsewhere it does not, and a cache must not mix them up


@torch.no_grad()
def test_the_map_before_sharpening_is_there_too(teacher) -> None:
    adapter = make_untrained("tile", teacher.spec, 2)
    torch.nn.init.normal_(adapter.bias.buffer)
    images = torch.rand(2, 3, *(2 * side for side in teacher.spec.native_size))
    expected = adapter.denoise(teacher_views(teacher, images, ()).low)
    for settings in (None, SharpenSettings(fit="squash"), SharpenSettings(fit="windows")):
        backbone = SharpenedBackbone(teacher, adapter, "test", settings=settings)
        assert torch.allclose(backbone.low_res(images), expected, atol=1e-5)


@torch.no_grad()
def test_the_teacher_may_compute_in_bfloat16_the_adapter_does_not(adapter_folder: Path) -> None:
    images = torch.rand(1, 3, 64, 64)
    exact, coarse = (load_backbone(typed(adapter_folder, **how))(images) for how in ({}, {"dtype": "bfloat16"}))
    assert coarse.spatial.dtype == torch.float32 and not torch.equal(exact.spatial, coarse.spatial)
    assert torch.allclose(exact.spatial, coarse.spatial, atol=0.1)
    with pytest.raises(UserError, match="dtype is one of"):
        load_backbone(typed(adapter_folder, dtype="int8"))


def test_the_digest_covers_what_the_teacher_computes_in_and_true_is_no_number(adapter_folder: Path) -> None:
    plain, half = (load_backbone(typed(adapter_folder, **more)).spec.digest for more in ({}, {"dtype": "bfloat16"}))
    assert plain != half
    with pytest.raises(UserError, match="option chunk takes no true or false"):
        load_backbone(typed(adapter_folder, chunk=True))


def test_options_of_the_node(adapter_folder: Path) -> None:
    node = typed(adapter_folder, fit="windows", overlap=0.25, max_memory="1G")
    assert load_backbone(node).settings == SharpenSettings(fit="windows", overlap=0.25, max_memory=2**30)
    with pytest.raises(UserError, match=r'fit is one of auto, .* got "window"'):
        load(str(adapter_folder), fit="window")
    with pytest.raises(UserError, match="add a fit: auto"):
        load(str(adapter_folder), overlap=0.5)


def test_a_sharpened_backbone_is_frozen_unless_told_otherwise(adapter_folder: Path, tmp_path: Path) -> None:
    node = f"timm:{tmp_path / 'vit'}"
    frozen, free = load(str(adapter_folder), teacher=node), load(str(adapter_folder), teacher=node, frozen=False)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert any(parameter.requires_grad for parameter in free.teacher.parameters())
    with pytest.raises(UserError, match="dtype is of a frozen teacher"):
        load(str(adapter_folder), teacher=node, frozen=False, dtype="bfloat16")
