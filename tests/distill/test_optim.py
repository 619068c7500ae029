"""Parameter groups, the learning rate, the share of a batch."""

import itertools
import math

import pytest

from distill.optim import learning_rate, local_batch, parameter_groups
from distill.recipe import OptimNode, StudentNode
from distill.student import HeadSpec, Student
from teachers.errors import UserError

NODE = OptimNode(steps=10, batch_size=6, lr=2.0, warmup_steps=4, final_share=0.1)


def student() -> Student:
    node = StudentNode(model="vit_tiny_patch16_224", patch_size=8, embed_dim=24, depth=1, num_heads=2)
    return Student(node, (16, 16), {"a": HeadSpec(3, 5)})


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = student()
    groups = parameter_groups(model, 0.3)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert "vit.blocks.0.attn.qkv.weight" in names and "spatial_heads.a.out.weight" in names
    assert not names & {"vit.reg_token", "vit.pos_embed", "vit.norm.weight", "vit.blocks.0.mlp.fc1.bias"}


def test_a_parameter_without_gradient_is_refused() -> None:
    model = student()
    model.vit.pos_embed.requires_grad_(False)
    with pytest.raises(RuntimeError, match="pos_embed"):
        parameter_groups(model, 0.1)


def test_learning_rate_by_hand() -> None:
    rates = [learning_rate(step, NODE) for step in range(11)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0 and rates[7] == pytest.approx(0.2 + 1.8 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert rates[10] == pytest.approx(0.2)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[4:]))


def test_batches_must_divide_evenly() -> None:
    assert local_batch(NODE, 3) == 2
    with pytest.raises(UserError, match="does not divide over 4 processes"):
        local_batch(NODE, 4)
