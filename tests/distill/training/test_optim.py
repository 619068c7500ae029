"""Parameter groups, the learning rate, the share of a batch."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_logs import without_time
from safetensors.torch import load_file
from small_run import train

from common.errors import UserError
from common.jsonl import read_log
from distill.recipe import read
from distill.recipe_models import StudentNode
from distill.recipe_training import OptimNode
from distill.student.model import HeadSpec, Student
from distill.training.engine_state import read_student
from distill.training.lamb import Lamb
from distill.training.optim import (
    Place,
    build_optimiser,
    learning_rate,
    local_batch,
    parameter_groups,
    place_in,
    rate_shares,
)

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


def test_every_parameter_has_one_place() -> None:
    model = student()
    groups = parameter_groups(model, 0.3, place_in(1))
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())
    where = {id(p): group["place"] for group in groups for p in group["params"]}
    places = {name: where[id(p)] for name, p in model.named_parameters()}
    assert places["vit.patch_embed.proj.weight"] == places["vit.reg_token"] == Place(0, body=True)
    assert places["vit.blocks.0.attn.qkv.weight"] == Place(1, body=True)
    assert places["vit.norm.weight"] == Place(2, body=True)
    assert places["spatial_heads.a.out.weight"] == Place(2, body=False)


def test_rate_shares_by_hand() -> None:
    node = OptimNode(steps=9, batch_size=1, lr=1.0, layer_decay=0.5, freeze_body_steps=3)
    places = [Place(0, True), Place(1, True), Place(2, True), Place(2, False), None]
    assert rate_shares(2, node, places) == [0, 0, 0, 1, 1]
    assert rate_shares(3, node, places) == [0.25, 0.5, 1, 1, 1]


def test_the_recipe_names_the_optimiser() -> None:
    assert type(build_optimiser(student(), NODE)) is torch.optim.AdamW
    assert type(build_optimiser(student(), NODE.model_copy(update={"name": "lamb"}))) is Lamb


def test_a_frozen_body_stands_still_while_the_heads_learn(write_recipe: Callable[..., Path]) -> None:
    """Two updates with the body frozen, one without; LAMB, and activations computed again: all in a resumed run."""
    optim = {"steps": 3, "batch_size": 4, "lr": 0.01, "freeze_body_steps": 2, "layer_decay": 0.7, "name": "lamb"}
    path = write_recipe(optim=optim, checkpoint={"every": 2, "keep": 3}, engine={"threads": 1, "checkpointing": True})
    folder = train(read(path), export_untrained=True)
    first = load_file(folder / "untrained" / "student" / "model.safetensors")
    frozen, last = (read_student(folder / f"checkpoints/step-{n:08d}") for n in (2, 3))
    body = [name for name in first if name.startswith("vit.")]
    assert all(torch.equal(first[name], frozen[name]) for name in body)
    assert not torch.equal(first["summary_heads.coarse.out.weight"], frozen["summary_heads.coarse.out.weight"])
    assert not torch.equal(frozen["vit.blocks.0.attn.qkv.weight"], last["vit.blocks.0.attn.qkv.weight"])
    log = without_time(read_log(folder / "log.jsonl"))
    (folder / "student").rename(folder / "before")
    (folder / "checkpoints" / "step-00000003").rename(folder / "gone")
    train(read(path))
    assert without_time(read_log(folder / "log.jsonl")) == log


def test_checkpointing_changes_memory_only(trained: Path, write_recipe: Callable[..., Path]) -> None:
    folder = train(read(write_recipe(), ["engine.checkpointing=true", "optim.steps=2"]))
    ours, theirs = (read_log(run / "log.jsonl")[0] for run in (folder, trained))
    assert ours["losses"] == pytest.approx(theirs["losses"]) and ours["grad_norm"] == pytest.approx(theirs["grad_norm"])
