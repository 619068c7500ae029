"""timm models saved to disk in timm's own format and loaded as backbones give exactly timm's own features."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from common.errors import UserError
from teachers.contracts import capability, state_digest
from teachers.registry import load_backbone

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISATION = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def normalised(
    images: Tensor, mean: tuple[float, ...] = (0.5, 0.5, 0.5), std: tuple[float, ...] = (0.5, 0.5, 0.5)
) -> Tensor:
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def saved(folder: Path, name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **arguments).eval()
    for parameter in model.parameters():  # timm's small initial values would hide a wrong order of operations
        nn.init.normal_(parameter, std=0.2)
    save_for_hf(model, str(folder), safe_serialization=True)
    return model


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("timm") / "vit"
    return folder, saved(folder, "vit_tiny_patch16_224", **TINY, reg_tokens=2)


@torch.no_grad()
def test_vit_from_a_folder_gives_timms_own_features(vit: tuple[Path, nn.Module]) -> None:
    folder, model = vit
    backbone = load_backbone(f"timm:{folder}")
    images = torch.rand(2, 3, 32, 32)
    tokens = model.forward_features(normalised(images))
    features = backbone(images)
    assert model.num_prefix_tokens == 3
    assert torch.equal(features.spatial, tokens[:, 3:].transpose(1, 2).reshape(2, 32, 4, 4))
    assert torch.equal(features.summary, model.forward_head(tokens, pre_logits=True))
    assert backbone.spec.native_size == (32, 32) and backbone.spec.patch_size == 8
    assert backbone.spec.resizable and backbone.spec.mean == (0.5, 0.5, 0.5)
    assert backbone.spec.digest == state_digest(model)
    assert backbone.spec.source == f"local-dir:{folder}"
    assert capability(backbone, "encode_text") is None


@torch.no_grad()
def test_other_sizes_equal_timms_dynamic_model(vit: tuple[Path, nn.Module]) -> None:
    folder, model = vit
    dynamic = timm.create_model("vit_tiny_patch16_224", **TINY, reg_tokens=2, num_classes=5, dynamic_img_size=True)
    dynamic.load_state_dict(model.state_dict())
    images = torch.rand(1, 3, 48, 24)
    tokens = dynamic.eval().forward_features(normalised(images))
    features = load_backbone(f"timm:{folder}")(images)
    assert torch.equal(features.spatial, tokens[:, 3:].transpose(1, 2).reshape(1, 32, 6, 3))


@torch.no_grad()
def test_summary_and_spatial_options(vit: tuple[Path, nn.Module]) -> None:
    folder, model = vit
    images = torch.rand(2, 3, 32, 32)
    final, blocks = model.forward_intermediates(normalised(images), indices=[0, 1, 2])
    raw = load_backbone({"spec": f"timm:{folder}", "summary": "cls", "spatial": "last_block"})
    assert torch.equal(raw(images).spatial, blocks[2])
    assert torch.equal(raw(images).summary, final[:, 0])
    assert not torch.equal(raw(images).spatial, load_backbone(f"timm:{folder}")(images).spatial)
    assert raw.spec.reads == "last_block" and load_backbone(f"timm:{folder}").spec.reads == "final"
    silent = load_backbone({"spec": f"timm:{folder}", "summary": "none"})
    assert silent(images).summary is None and silent.spec.summary_dim is None
    assert raw.num_blocks == 3
    backwards = raw.intermediate(images, [2, 0])
    assert torch.equal(backwards[0], blocks[2]) and torch.equal(backwards[1], blocks[0])
    with pytest.raises(UserError, match=r"blocks 0\.\.2"):
        raw.intermediate(images, [3])


def test_a_size_it_does_not_take_is_refused(vit: tuple[Path, nn.Module]) -> None:
    folder, _ = vit
    with pytest.raises(UserError, match="multiples of 8 px, got 36x32"):
        load_backbone(f"timm:{folder}")(torch.rand(1, 3, 36, 32))
    fixed = load_backbone({"spec": f"timm:{folder}", "resizable": False})
    with pytest.raises(UserError, match="takes 32x32 px only"):
        fixed(torch.rand(1, 3, 40, 32))


@torch.no_grad()
def test_weight_file_and_image_size_go_through_timms_own_filter(vit: tuple[Path, nn.Module], tmp_path: Path) -> None:
    _, model = vit
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": model.state_dict()}, file)
    arguments = {**TINY, "reg_tokens": 2, "num_classes": 5}
    backbone = load_backbone(
        {
            "spec": "timm:vit_tiny_patch16_224",
            "weights": str(file),
            "image_size": [48, 24],
            "model_args": {key: value for key, value in arguments.items() if key != "img_size"},
            **NORMALISATION,
        }
    )
    larger = timm.create_model(
        "vit_tiny_patch16_224",
        **{**arguments, "img_size": (48, 24)},
        pretrained_cfg_overlay={"file": str(file), "num_classes": 5},
        pretrained=True,
    )
    images = torch.rand(1, 3, 48, 24)
    tokens = larger.eval().forward_features(normalised(images))
    assert backbone.spec.native_size == (48, 24)
    assert backbone.spec.licence == "unknown" and backbone.spec.source == str(file)
    assert torch.equal(backbone(images).spatial, tokens[:, 3:].transpose(1, 2).reshape(1, 32, 6, 3))


def test_weights_of_unknown_origin_need_their_normalisation(vit: tuple[Path, nn.Module], tmp_path: Path) -> None:
    save_file(vit[1].state_dict(), tmp_path / "w.safetensors")
    node = {"spec": "timm:vit_tiny_patch16_224", "weights": str(tmp_path / "w.safetensors"), "model_args": TINY}
    with pytest.raises(UserError, match=r"nothing says how .* normalises"):
        load_backbone(node)


@torch.no_grad()
def test_convolutional_network_with_pad_type(tmp_path: Path) -> None:
    model = timm.create_model("mobilenetv2_035", pad_type="same").eval()
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    node = {"spec": "timm:mobilenetv2_035", "weights": str(tmp_path / "net.safetensors"), **NORMALISATION}
    backbone = load_backbone({**node, "model_args": {"pad_type": "same"}})
    images = torch.rand(1, 3, 64, 96)
    final = model.forward_features(normalised(images))
    assert torch.equal(backbone(images).spatial, final)
    assert torch.equal(backbone(images).summary, model.forward_head(final, pre_logits=True))
    assert final.shape[-2:] == (2, 3) and backbone.spec.patch_size == 32
    stages = model.forward_intermediates(normalised(images), intermediates_only=True)
    assert torch.equal(backbone.intermediate(images, [1])[0], stages[1])
    with pytest.raises(UserError, match="no class token"):
        load_backbone({**node, "summary": "cls"})
    with pytest.raises(UserError, match="does not take these model_args"):
        load_backbone({**node, "model_args": {"padding_type": "same"}})


@torch.no_grad()
def test_sam_before_and_after_the_neck(tmp_path: Path) -> None:
    arguments = {**TINY, "img_size": 64, "window_size": 3, "global_attn_indexes": (1,), "neck_chans": 16}
    model = saved(tmp_path / "sam", "samvit_base_patch16", **arguments)
    images = torch.rand(1, 3, 64, 64)
    neck = load_backbone({"spec": f"timm:{tmp_path}/sam", "summary": "none"})
    assert torch.equal(neck(images).spatial, model.forward_features(normalised(images, MEAN, STD)))
    assert neck.spec.spatial_dim == 16 and neck(images).summary is None
    before = load_backbone({"spec": f"timm:{tmp_path}/sam", "summary": "none", "spatial": "last_block"})
    raw = model.forward_intermediates(normalised(images, MEAN, STD), indices=1, intermediates_only=True)[0]
    assert torch.equal(before(images).spatial, raw) and before.spec.spatial_dim == 32
    wide = torch.rand(1, 3, 48, 96)
    assert torch.equal(neck(wide).spatial, model.forward_features(normalised(wide, MEAN, STD)))


def test_sam_takes_other_sizes_only_when_asked() -> None:
    node = {"spec": "timm:samvit_base_patch16.sa1b", "device": "meta"}
    assert not load_backbone(node).spec.resizable
    assert load_backbone({**node, "resizable": True}).spec.resizable


def test_a_model_that_cannot_resize_says_so() -> None:
    node = {"spec": "timm:cait_xxs24_224.fb_dist_in1k", "device": "meta"}
    assert not load_backbone(node).spec.resizable
    with pytest.raises(UserError, match="takes one size only"):
        load_backbone({**node, "resizable": True})


def test_tokens_without_a_layout_are_refused() -> None:
    with pytest.raises(UserError, match="MlpMixer of timm does not say how its tokens lie"):
        load_backbone({"spec": "timm:mixer_s32_224", "device": "meta"})


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"spec": "timm:vit_tinny_patch16_224"}, 'did you mean "vit_tiny_patch16_224"'),
        ({"spec": "timm:vit_small_patch14_dinov2.lvd143m"}, "it has|lvd142m"),
        ({"spec": "timm:./nowhere"}, "there is no folder"),
        ({"spec": "timm:vit_tiny_patch16_224", "weights": "/no/such/file.pth", **NORMALISATION}, "no such file"),
        ({"spec": "timm:vit_tiny_patch16_224", "weights": "x.pth", "pretrained": False}, "contradict"),
        ({"spec": "timm:vit_tiny_patch16_224", "summry": "cls"}, 'did you mean "summary"'),
        ({"spec": "timm:vit_tiny_patch16_224", "summary": "clss"}, 'did you mean "cls"'),
        ({"spec": "timm:vit_tiny_patch16_224", "device": "cuda"}, "known: cpu, meta"),
    ],
)
def test_bad_nodes_say_what_to_do(node: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone(node)


def test_random_initialisation_is_asked_for_and_said() -> None:
    node = {"spec": "timm:vit_tiny_patch16_224", "pretrained": False, "model_args": TINY, "image_size": 32}
    node["model_args"] = {key: value for key, value in TINY.items() if key != "img_size"}
    spec = load_backbone(node).spec
    assert spec.source == "random initialisation" and spec.native_grid == (4, 4)
