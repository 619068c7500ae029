"""Head families: against plain arithmetic, folded at export, and trained in a whole run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import small_recipe, train
from torch import nn

from common.errors import UserError
from common.recipes import validate
from distill.recipe import Recipe, read
from distill.recipe_models import StudentNode
from distill.student.heads import last_layer, summary_head, unfold
from distill.student.model import HeadSpec, Student
from distill.training.export import fold_normaliser
from featsharp_adapter.model.phi_s import CovarianceStatistics, PhiS
from teachers.registry import load_backbone

SIZES: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
HEADS = {"a": HeadSpec(7, 12), "b": HeadSpec(None, 8)}
FAMILIES = [("mlp", 0), ("v1", 1), ("v2", 2), ("attention", 1)]


def student(**changes: Any) -> Student:
    torch.manual_seed(0)
    return Student(StudentNode(model="vit_tiny_patch16_224", **SIZES | changes), (32, 32), HEADS).eval()


@pytest.mark.parametrize(("family", "inner"), FAMILIES)
@pytest.mark.parametrize("upsample", [1, 2])
def test_shapes_and_gradients(family: str, inner: int, upsample: int) -> None:
    net = student(head=family, head_inner=inner, head_upsample=upsample, head_hidden=16, registers=3)
    out = net(torch.rand(2, 3, 32, 16))
    assert out["a"].summary.shape == (2, 7) and out["a"].spatial.shape == (2, 12, 4 * upsample, 2 * upsample)
    sum(part.square().sum() for features in out.values() for part in features if part is not None).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_registers_are_beside_the_summaries() -> None:
    net = student(registers=3)
    assert net.vit.reg_token.shape == (1, len(HEADS) + 3, 24)
    tokens, spatial = net.tokens(torch.rand(1, 3, 32, 32))
    assert tokens.shape == (1, 2, 24) and spatial.shape == (1, 24, 4, 4)


def test_v1_and_v2_by_hand() -> None:
    tokens = torch.randn(5, 24)
    v1: Any = summary_head(StudentNode(model="m", head="v1", head_inner=1, head_hidden=6), 24, 4)
    slow = tokens
    for index in (0, 3):
        slow = torch.relu(v1.layers[index + 1](v1.layers[index](slow)))
    assert torch.allclose(v1(tokens), v1.out(slow))
    v2: Any = summary_head(StudentNode(model="m", head="v2", head_inner=1, head_hidden=6), 24, 4)
    slow = v2.hidden(tokens)
    slow = slow + v2.blocks[0][2](nn.functional.gelu(v2.blocks[0][0](slow)))
    assert torch.allclose(v2(tokens), v2.out(nn.functional.gelu(v2.norm(slow))), atol=1e-6)


def test_unfolding_by_hand() -> None:
    tokens = torch.randn(2, 6, 4 * 3)
    out = unfold(tokens, (2, 3), 2)
    assert out.shape == (2, 3, 4, 6)
    for row in range(4):
        for column in range(6):
            group = 3 * (2 * (row % 2) + column % 2)
            token = tokens[:, 3 * (row // 2) + column // 2]
            assert torch.equal(out[:, :, row, column], token[:, group : group + 3])


@pytest.mark.parametrize(("family", "inner"), FAMILIES)
def test_phi_s_folds_into_every_family(family: str, inner: int) -> None:
    """Undoing PHI-S on the answer, or in the head: the same map; with upsampling too."""
    net = student(head=family, head_inner=inner, head_upsample=2)
    statistics = CovarianceStatistics(12)
    statistics.update(torch.randn(500, 12) @ torch.randn(12, 12) + 3)
    normaliser, images = PhiS.fit(statistics), torch.rand(1, 3, 32, 32)
    raw = normaliser.denormalise(net(images)["a"].spatial)
    weights = dict(net.state_dict())
    fold_normaliser(weights, last_layer(family, "a"), normaliser)
    net.load_state_dict(weights)
    assert torch.allclose(net(images)["a"].spatial, raw, atol=1e-4)


def test_inner_layers_of_a_head_without_any_are_refused() -> None:
    data = small_recipe(Path("unused"))
    data["student"]["head_inner"] = 2
    with pytest.raises(UserError, match="mlp has no inner layers"):
        validate(Recipe, data, "test")


def test_a_run_with_attention_heads_registers_and_finer_answers(write_recipe: Callable[..., Path]) -> None:
    overrides = ["student.head=attention", "student.head_upsample=2", "student.registers=2", "optim.steps=2"]
    folder = train(read(write_recipe(), overrides))
    loaded = load_backbone(f"run:{folder}")
    features = loaded(torch.rand(1, 3, 32, 32))
    assert features.spatial.shape == (1, 24, 4, 4)
    assert loaded.adaptor("coarse").project(features).spatial.shape == (1, 24, 8, 8)
