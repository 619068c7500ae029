"""Two backbones of the same weights are two where one option differs: their identity says so."""

import inspect
from typing import Any

import pytest
import torch

from common.digests import digest_value
from teachers.contracts import identity_of
from teachers.frozen import FrozenBackbone
from teachers.registry import load_backbone, loaders, plain_node

OTHERS: list[Any] = [None, True, False, 0, 1, 0.5, "a", "b", [1, 2], [2, 1], {"x": 1}, {"x": 2}]
OPTIONS = [
    (prefix, option)
    for prefix, point in sorted(loaders().items())
    for option in list(inspect.signature(point.load()).parameters)[1:]
] + [("class", "anything")]


@pytest.mark.parametrize(("prefix", "option"), OPTIONS)
def test_every_option_of_every_kind_of_node_makes_another_network(prefix: str, option: str) -> None:
    nodes = [plain_node(prefix, "name", {})] + [plain_node(prefix, "name", {option: value}) for value in OTHERS]
    nodes += [plain_node(prefix, "other", {option: 1}), plain_node(prefix, "name", {f"{option}_": 1})]
    assert len({digest_value(node) for node in nodes}) == len(nodes)


def test_same_weights_with_another_option_are_another_network() -> None:
    """`model_args` that hold no weights: the digest of the weights is the same, the features are not."""
    node: dict[str, Any] = {"spec": "timm:vit_tiny_patch16_224", "pretrained": False, "model_args": {"img_size": 32}}
    torch.manual_seed(0)
    one = load_backbone(node)
    torch.manual_seed(0)
    other = load_backbone(node | {"model_args": {"img_size": 32, "act_layer": "relu"}})
    images = torch.rand(1, 3, 32, 32)
    assert one.spec.digest == other.spec.digest and not torch.equal(one(images).spatial, other(images).spatial)
    assert identity_of(one) != identity_of(other)
    torch.manual_seed(0)
    assert identity_of(load_backbone(node)) == identity_of(one)
    identities = [identity_of(each) for each in (one, FrozenBackbone(one), FrozenBackbone(one, "bfloat16"))]
    assert len({digest_value(each) for each in identities}) == 3


def test_a_cache_does_not_answer_for_another_network(tmp_path: Any) -> None:
    import numpy as np

    from eval_suite.features import ProbedBackbone
    from eval_suite.readers.fitting import Fit
    from eval_suite.readers.image_files import MadeImages

    pictures = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    images = MadeImages("noise", 3, lambda row: pictures[row], Fit(32, 32))
    node: dict[str, Any] = {"spec": "timm:vit_tiny_patch16_224", "pretrained": False, "model_args": {"img_size": 32}}

    def features(given: dict[str, Any]) -> torch.Tensor:
        torch.manual_seed(0)
        return ProbedBackbone(load_backbone(given), cache=tmp_path).features(images).spatial

    first = features(node)
    other = features(node | {"model_args": {"img_size": 32, "act_layer": "relu"}})
    assert not torch.equal(first, other) and torch.equal(features(node), first)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    damaged = min(tmp_path.rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"abcd")
    assert torch.equal(features(node), first)
