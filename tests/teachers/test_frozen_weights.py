"""Weights held in the type that autocast would give them: the same bits, half the memory, and no text towers."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory

from distill.targets.teacher_views import TeacherPool
from teachers.contracts import Backbone, Features, capability
from teachers.frozen import FrozenBackbone
from teachers.registry import load_backbone

SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 2}
CHANNELS = {"mean": [0.5] * 3, "std": [0.25] * 3}
VISION = {"image_size": 28, "layers": 2, "width": 32, "head_width": 16, "patch_size": 7}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
#: Registered the way open_clip lets its users do it.
ARCHITECTURES = {
    "held-clip": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "held-siglip": {"embed_dim": 24, "custom_text": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "held-rn": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": TEXT,
    },
}
NODES: dict[str, dict[str, Any]] = {
    "vit": {"spec": "timm:vit_tiny_patch16_224", "image_size": 32, "model_args": {"patch_size": 8, **SIZES}},
    "sam": {"spec": "timm:samvit_base_patch16", "image_size": 64, "summary": "none", "model_args": SIZES},
    "dinov2": {"spec": "timm:vit_small_patch14_reg4_dinov2", "image_size": 28, "model_args": SIZES},
    "clip": {"spec": "open_clip:held-clip", **CHANNELS},
    "siglip": {"spec": "open_clip:held-siglip", **CHANNELS},
    "resnet": {"spec": "open_clip:held-rn", **CHANNELS},
}


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("configs")
    for name, config in ARCHITECTURES.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield
    factory._MODEL_CONFIG_PATHS.remove(folder)
    for name in ARCHITECTURES:
        factory._MODEL_CONFIGS.pop(name)


@pytest.fixture(scope="module", params=NODES)
def backbone(request: pytest.FixtureRequest, architectures: None) -> Backbone:
    return load_backbone(NODES[request.param] | {"pretrained": False})


def images(backbone: Backbone) -> torch.Tensor:
    return torch.rand(2, 3, *backbone.spec.native_size, generator=torch.Generator().manual_seed(1))


def image_bytes(backbone: Any) -> int:
    return sum(parameter.nbytes for parameter in backbone.image_part.parameters())


@torch.no_grad()
def test_held_weights_give_the_bits_of_autocast_from_fp32(backbone: Backbone) -> None:
    shown = images(backbone)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted: Features = backbone(shown)
    held = FrozenBackbone(copy.deepcopy(backbone), torch.bfloat16)
    found = held(shown)
    assert torch.equal(found.spatial, wanted.spatial.float())
    if wanted.summary is not None:
        assert found.summary is not None and torch.equal(found.summary, wanted.summary.float())
    assert image_bytes(held.backbone) < 0.6 * image_bytes(backbone)
    assert held.spec.digest == backbone.spec.digest


def test_one_loader_gives_one_network_of_random_weights() -> None:
    torch.manual_seed(3)
    one = load_backbone(NODES["vit"] | {"pretrained": False})
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)  # loading draws nothing from the outside
    assert load_backbone(NODES["vit"] | {"pretrained": False}).spec.digest == one.spec.digest


@pytest.mark.parametrize("name", ["clip", "siglip"])
@torch.no_grad()
def test_targets_need_no_text_tower(name: str) -> None:
    node = NODES[name] | {"pretrained": False}
    whole, held = load_backbone(node), TeacherPool().get(node, None, 4)
    parameters = sum(parameter.numel() for parameter in held.parameters())
    assert parameters == sum(parameter.numel() for parameter in whole.image_part.parameters())
    assert parameters < sum(parameter.numel() for parameter in whole.parameters())
    shown = images(whole)
    assert torch.equal(held(shown).spatial, whole(shown).spatial) and held.spec == whole.spec
    encode = capability(held.backbone, "encode_text")  # what the teacher can do does not change
    assert encode is not None
    with pytest.raises(RuntimeError, match=r"text tower of open_clip:.* was let go of"):
        encode(["a cat"])
