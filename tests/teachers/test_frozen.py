"""A frozen backbone stays frozen, gives the same features in pieces, and has the capabilities of what it holds."""

import copy

import pytest
import torch
from torch import nn

from common.errors import UserError
from teachers.contracts import Backbone, capability
from teachers.frozen import FrozenBackbone
from teachers.registry import load_backbone

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0, "proj_drop_rate": 0.5}
NORMALISATION = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


@pytest.fixture
def vit() -> Backbone:
    torch.manual_seed(0)
    node = {"spec": "timm:vit_tiny_patch16_224", "pretrained": False, "image_size": 32, "model_args": VIT}
    backbone = load_backbone(node)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.2)
    return backbone


@pytest.fixture(scope="module")
def clip() -> Backbone:
    return load_backbone({"spec": "open_clip:RN50", "pretrained": False, "image_size": 64, **NORMALISATION})


def test_it_stays_in_eval_mode_inside_a_module_that_trains(vit: Backbone) -> None:
    dropout = [module for module in vit.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    assert dropout  # or this test would prove nothing
    whole = nn.ModuleList([FrozenBackbone(vit), nn.Linear(2, 2)]).train()
    assert whole[1].training
    assert not any(module.training for module in whole[0].modules())
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(whole[0](images).spatial, whole[0](images).spatial)


def test_it_has_no_gradients_and_takes_none(vit: Backbone) -> None:
    frozen = FrozenBackbone(vit).requires_grad_(True)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    features = frozen(images)
    assert not features.spatial.requires_grad and not features.summary.requires_grad
    assert not frozen.intermediate(images, [0])[0].requires_grad
    scale = torch.ones(1, requires_grad=True)  # features can be part of a graph, unlike inference tensors
    (features.spatial * scale).sum().backward()
    assert scale.grad is not None


def test_pieces_give_the_same_features(vit: Backbone) -> None:
    images = torch.rand(7, 3, 32, 32)
    whole, pieces = FrozenBackbone(vit, chunk=64), FrozenBackbone(vit, chunk=3)
    torch.testing.assert_close(pieces(images).spatial, whole(images).spatial)
    torch.testing.assert_close(pieces(images).summary, whole(images).summary)
    torch.testing.assert_close(pieces.intermediate(images, [1, 0])[1], whole.intermediate(images, [1, 0])[1])
    seen: list[int] = []
    vit.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    pieces(images)
    assert seen == [3, 3, 1]


def test_bf16_computes_in_bf16_and_answers_in_float32(vit: Backbone) -> None:
    images = torch.rand(2, 3, 32, 32)
    exact, half = FrozenBackbone(vit)(images), FrozenBackbone(vit, dtype="bfloat16")(images)
    assert half.spatial.dtype == half.summary.dtype == torch.float32
    error = (half.spatial - exact.spatial).norm() / exact.spatial.norm()
    assert 1e-4 < error < 0.05
    matrices = [layer for layer in vit.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    norms = [layer for layer in vit.modules() if isinstance(layer, nn.LayerNorm)]
    assert matrices and {layer.weight.dtype for layer in matrices} == {torch.bfloat16}
    assert norms and {layer.weight.dtype for layer in norms} == {torch.float32}


def test_capabilities_are_those_of_the_inner_one(vit: Backbone, clip: Backbone) -> None:
    frozen = FrozenBackbone(vit)
    assert frozen.spec is vit.spec and frozen.num_blocks == 2
    assert capability(frozen, "encode_text") is None and capability(frozen, "adaptor") is None
    talking = FrozenBackbone(clip)
    text = talking.encode_text(["a red cube"])
    assert text.shape == (1, clip.spec.summary_dim) and not text.requires_grad
    assert torch.equal(text, clip.encode_text(["a red cube"]))


def test_a_copy_runs_its_own_weights(vit: Backbone) -> None:
    frozen = FrozenBackbone(vit)
    other = copy.deepcopy(frozen)
    images = torch.rand(1, 3, 32, 32)
    before = frozen.intermediate(images, [0])[0]
    with torch.no_grad():
        for parameter in frozen.parameters():
            parameter.zero_()
    assert torch.equal(other.intermediate(images, [0])[0], before)


@pytest.mark.parametrize("options", [{"chunk": 0}, {"dtype": "bf17"}])
def test_bad_options(vit: Backbone, options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        FrozenBackbone(vit, **options)
