"""open_clip models saved in open_clip's own format and loaded as backbones give exactly open_clip's own features."""

import json
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip import factory
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file
from torch import Tensor, nn

from common.errors import UserError
from teachers.contracts import capability, state_digest
from teachers.registry import load_backbone

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
CLIP = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 28, "layers": 3, "width": 32, "head_width": 16, "patch_size": 7},
    "text_cfg": TEXT,
}
SIGLIP = {
    "embed_dim": 192,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "none",
    },
    "text_cfg": {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
}
NORMALISATION = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tiny architectures registered the way open_clip lets its users do it."""
    folder = tmp_path_factory.mktemp("configs")
    late = {**CLIP, "vision_cfg": {**CLIP["vision_cfg"], "final_ln_after_pool": True}}
    resnet = {**CLIP, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}}
    map_siglip = {
        **SIGLIP,
        "embed_dim": 768,
        "vision_cfg": {**SIGLIP["vision_cfg"], "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map"},
    }
    for name, config in (
        ("tiny-clip", CLIP),
        ("tiny-late", late),
        ("tiny-rn", resnet),
        ("tiny-siglip", SIGLIP),
        ("map-siglip", map_siglip),
    ):
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield
    factory._MODEL_CONFIG_PATHS.remove(folder)
    for name in ("tiny-clip", "tiny-late", "tiny-rn", "tiny-siglip", "map-siglip"):
        factory._MODEL_CONFIGS.pop(name)


def create(arch: str) -> nn.Module:
    torch.manual_seed(0)
    model = open_clip.create_model(arch, pretrained=None).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.02, std=0.15)
    return model


def save(model: nn.Module, arch: str, folder: Path) -> Path:
    """A folder as open_clip pushes it to the hub: config and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    model.visual.image_mean, model.visual.image_std = NORMALISATION["mean"], NORMALISATION["std"]
    save_config_for_hf(model, folder / "open_clip_config.json", open_clip.get_model_config(arch))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def normalised(images: Tensor) -> Tensor:
    return (images - 0.5) / 0.25


def as_map(tokens: Tensor, side: int) -> Tensor:
    return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)


@torch.no_grad()
def test_clip_from_a_folder(tmp_path: Path) -> None:
    model = create("tiny-clip")
    backbone = load_backbone(f"open_clip:{save(model, 'tiny-clip', tmp_path / 'clip')}")
    images = torch.rand(2, 3, 28, 28)
    features = backbone(images)
    model.visual.output_tokens = True
    summary, tokens = model.visual(normalised(images))
    model.visual.output_tokens = False
    assert torch.equal(features.summary, model.encode_image(normalised(images)))
    assert torch.equal(features.summary, summary)
    assert torch.equal(features.spatial, as_map(tokens, 4))
    spec = backbone.spec
    assert (spec.patch_size, spec.spatial_dim, spec.summary_dim) == (7, 32, 24)
    assert spec.mean == (0.5, 0.5, 0.5) and spec.std == (0.25, 0.25, 0.25)
    assert spec.digest == state_digest(model)


@torch.no_grad()
def test_text_is_in_the_space_of_the_summary(tmp_path: Path) -> None:
    model = create("tiny-clip")
    folder = save(model, "tiny-clip", tmp_path / "clip")
    texts = ["a red cube", "two green spheres on grass"]
    tokens = open_clip.get_tokenizer("tiny-clip")(texts)
    backbone = load_backbone(f"open_clip:{folder}")
    assert torch.equal(backbone.encode_text(texts), model.encode_text(tokens))
    assert capability(load_backbone({"spec": f"open_clip:{folder}", "summary": "none"}), "encode_text") is None


@torch.no_grad()
def test_before_the_norm_and_blocks(tmp_path: Path) -> None:
    model = create("tiny-clip")
    node = {"spec": f"open_clip:{save(model, 'tiny-clip', tmp_path / 'clip')}", "spatial": "last_block"}
    images = torch.rand(1, 3, 28, 28)
    blocks = model.visual.forward_intermediates(normalised(images), intermediates_only=True)["image_intermediates"]
    backbone = load_backbone(node)
    assert torch.equal(backbone(images).spatial, blocks[-1])
    found = backbone.intermediate(images, [2, 0])
    assert backbone.num_blocks == 3
    assert torch.equal(found[0], blocks[2]) and torch.equal(found[1], blocks[0])


@torch.no_grad()
def test_a_tower_that_norms_after_pooling_keeps_its_tokens_raw(tmp_path: Path) -> None:
    model = create("tiny-late")
    backbone = load_backbone(f"open_clip:{save(model, 'tiny-late', tmp_path / 'late')}")
    images = torch.rand(1, 3, 28, 28)
    model.visual.output_tokens = True
    summary, tokens = model.visual(normalised(images))
    assert torch.equal(backbone(images).spatial, as_map(tokens, 4))
    assert torch.equal(backbone(images).summary, summary)


@torch.no_grad()
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_siglip_from_a_weight_file_at_another_size(tmp_path: Path, suffix: str) -> None:
    model = create("tiny-siglip")
    file = tmp_path / f"siglip.{suffix}"
    save_file(model.state_dict(), file) if suffix == "safetensors" else torch.save(model.state_dict(), file)
    backbone = load_backbone(
        {"spec": "open_clip:tiny-siglip", "weights": str(file), "image_size": [64, 96], **NORMALISATION}
    )
    model.visual.set_input_size((64, 96))
    images = torch.rand(2, 3, 64, 96)
    tokens = model.visual.trunk.forward_features(normalised(images))
    features = backbone(images)
    assert torch.equal(features.summary, model.encode_image(normalised(images)))
    assert torch.equal(features.spatial, tokens[:, 1:].transpose(1, 2).reshape(2, 192, 4, 6))
    assert backbone.spec.native_grid == (4, 6) and not backbone.spec.resizable
    with pytest.raises(UserError, match="takes 64x96 px only"):
        backbone(torch.rand(1, 3, 96, 64))


@torch.no_grad()
def test_residual_network(tmp_path: Path) -> None:
    model = create("tiny-rn")
    backbone = load_backbone(f"open_clip:{save(model, 'tiny-rn', tmp_path / 'rn')}")
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(backbone(images).summary, model.encode_image(normalised(images)))
    assert torch.equal(
        backbone(images).spatial,
        model.visual.layer4(
            model.visual.layer3(model.visual.layer2(model.visual.layer1(model.visual.stem(normalised(images)))))
        ),
    )
    assert backbone.spec.patch_size == 32


def test_attention_pooled_siglip_has_the_pooled_width_as_summary() -> None:
    spec = load_backbone({"spec": "open_clip:map-siglip", "device": "meta", "pretrained": False, **NORMALISATION}).spec
    assert (spec.summary_dim, spec.spatial_dim, spec.native_grid) == (768, 768, (14, 14))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"spec": "open_clip:ViT-B-33"}, "did you mean"),
        ({"spec": "open_clip:ViT-B-32-quickgelu:opnai"}, "it has: .*openai"),
        ({"spec": "open_clip:ViT-B-32:openai"}, "use ViT-B-32-quickgelu:openai"),
        ({"spec": "open_clip:tiny-clip", **NORMALISATION}, "names no weights; add a tag"),
        ({"spec": "open_clip:tiny-clip", "pretrained": False}, "nothing says how .* normalises"),
        ({"spec": "open_clip:./nowhere"}, "there is no folder"),
        ({"spec": "open_clip:tiny-rn", "pretrained": False, "image_size": [64, 96], **NORMALISATION}, "square sizes"),
        ({"spec": "open_clip:tiny-clip", "weights": "/no/such", **NORMALISATION}, "no such file or folder"),
    ],
)
def test_bad_nodes_say_what_to_do(node: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone(node)


def test_a_folder_without_weights_is_an_error_not_a_random_model(tmp_path: Path) -> None:
    folder = save(create("tiny-clip"), "tiny-clip", tmp_path / "clip")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match="should hold one weight file"):
        load_backbone(f"open_clip:{folder}")


def test_weights_of_another_architecture_are_named(tmp_path: Path) -> None:
    state = create("tiny-clip").state_dict()
    state["visual.extra"] = state.pop("visual.ln_post.weight")
    save_file(state, tmp_path / "w.safetensors")
    node = {"spec": "open_clip:tiny-clip", "weights": str(tmp_path / "w.safetensors"), **NORMALISATION}
    with pytest.raises(UserError, match=r"missing visual.ln_post.weight; unexpected visual.extra"):
        load_backbone(node)
