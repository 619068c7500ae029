"""LAMB is LAMB on every engine: equal to timm's on whole parameters, and to itself where ZeRO cuts them up."""

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
import timm.optim
import torch
from launching import ROOT, command_line, start
from safetensors.torch import load_file

from common.errors import UserError
from common.jsonl import read_log
from distill.training.lamb import Lamb, Layout, Piece
from distill.training.zero_layout import fit_to_zero

#: Largest difference of a weight after ten updates, over the largest movement of one: sums run in another order.
#: AdamW's is not of the engines: the bias of attention's keys has a gradient of zero in exact arithmetic (softmax does
#: not see it), and what float32 leaves of it, 1e-12, is divided by its own root and an epsilon of 1e-8; other weights
#: of next to no gradient follow. With an epsilon of 1e-5 AdamW holds 1e-5 too. (Plain training in float32 is 1e-4 from
#: the same in float64.)
TOLERANCE = {"lamb": 1e-5, "lamb graded": 1e-5, "adamw": 1e-4, "adamw of epsilon 1e-5": 1e-5}
LOSSES = 1e-5  #: largest relative difference of a loss, whatever the optimiser


def tensors() -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    shapes = [(5, 7), (3,), (1,), (2, 3, 4), (6, 6)]
    return [torch.randn(shape, generator=made).requires_grad_() for shape in shapes] + [
        torch.zeros(4, 2).requires_grad_()
    ]


def groups(found: list[torch.Tensor]) -> list[dict[str, object]]:
    return [{"params": found[::2], "weight_decay": 0.1}, {"params": found[1::2], "weight_decay": 0.0}]


def give_gradients(found: list[torch.Tensor], update: int) -> None:
    made = torch.Generator().manual_seed(10 + update)
    for tensor in found:
        tensor.grad = torch.randn(tensor.shape, generator=made)


def test_on_whole_parameters_it_is_timms() -> None:
    """Ten updates of changing rates, a parameter of zeros among them, whose trust ratio is 1."""
    ours, theirs = tensors(), tensors()
    mine = Lamb(groups(ours), lr=0.1, betas=(0.9, 0.95))
    twin = timm.optim.Lamb(groups(theirs), lr=0.1, betas=(0.9, 0.95), max_grad_norm=None)
    for update in range(10):
        for optimiser, found in ((mine, ours), (twin, theirs)):
            optimiser.param_groups[0]["lr"] = 0.1 / (1 + update)
            give_gradients(found, update)
            optimiser.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_on_a_flat_tensor_it_is_itself_and_timms_is_not() -> None:
    """All parameters of a group end to end with padding between, as ZeRO-1 lays them out."""
    whole = [tensor for tensor in tensors() if tensor.numel() > 1]
    flat = torch.full((sum(tensor.numel() + 3 for tensor in whole),), 9.0)
    pieces, start = [], 0
    for index, tensor in enumerate(whole):
        flat[start : start + tensor.numel()] = tensor.detach().flatten()
        pieces.append(Piece(index, start, tensor.numel()))
        start += tensor.numel() + 3
    timms = flat.clone().requires_grad_()
    flat.requires_grad_()
    mine, ours = Lamb(whole, lr=0.1, weight_decay=0.1), Lamb([flat], lr=0.1, weight_decay=0.1)
    ours.lay_out([(flat, Layout(len(whole), tuple(pieces)))])
    theirs = timm.optim.Lamb([timms], lr=0.1, weight_decay=0.1, max_grad_norm=None)
    for update in range(3):
        give_gradients(whole, update)
        flat.grad = torch.zeros_like(flat)
        for tensor, piece in zip(whole, pieces, strict=True):
            flat.grad[piece.start : piece.start + piece.length] = tensor.grad.flatten()
        timms.grad = flat.grad.clone()
        for optimiser in (mine, ours, theirs):
            optimiser.step()

    def difference(found: torch.Tensor) -> float:
        cuts = [found[piece.start : piece.start + piece.length] for piece in pieces]
        return max(
            float((cut - tensor.flatten()).detach().abs().max()) for cut, tensor in zip(cuts, whole, strict=True)
        )

    assert difference(flat) < 1e-6 and difference(timms) > 0.01


def test_an_optimiser_of_norms_is_refused_under_zero() -> None:
    parameters = [torch.zeros(2, requires_grad=True)]
    fit_to_zero(object(), torch.optim.AdamW(parameters))
    with pytest.raises(UserError, match=r"Muon is not known to be exact under ZeRO; set engine\.deepspeed: off"):
        fit_to_zero(object(), torch.optim.Muon([torch.zeros(2, 2, requires_grad=True)]))
    with pytest.raises(UserError, match="does not say where its flat tensors hold which parameter"):
        fit_to_zero(object(), Lamb(parameters))


def furthest(processes: int, engine: str, *kinds: str) -> dict[str, list[float]]:
    """What engines_agree.py found: by optimiser and stage, how far weights and losses are from plain training's."""
    stage = 2 if engine == "zero" else None
    script = ("tests/distill/engines_agree.py", engine, *kinds)
    command, environment = command_line(*script, processes=processes, stage=stage)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    return next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))


def assert_near(found: dict[str, list[float]], kinds: Iterable[str], engines: list[str]) -> None:
    assert set(found) == {f"{kind}, {engine}" for kind in kinds for engine in engines}
    for name, (weights, losses) in found.items():
        assert weights < TOLERANCE[name.partition(",")[0]] and losses < LOSSES, found


@pytest.mark.slow
def test_every_zero_stage_on_two_processes_is_plain_training() -> None:
    """LAMB with accumulation, clipping, layer-wise rates and a frozen body; a width that no partition divides."""
    assert_near(furthest(2, "zero", "lamb graded"), ["lamb graded"], ["1", "2", "3"])


@pytest.mark.slow
def test_every_optimiser_is_plain_training_on_every_engine() -> None:
    for processes, engine, names in ((2, "zero", ["1", "2", "3"]), (1, "zero", ["1", "2", "3"]), (2, "ddp", ["ddp"])):
        assert_near(furthest(processes, engine, *TOLERANCE), TOLERANCE, names)


#: Ten updates of an overlay over its three stages.
TEN = [
    "stages.first.steps=3",
    "stages.second.steps=3",
    "stages.third.steps=4",
    "checkpoint.every=6",
    "checkpoint.keep=9",
]
#: As the recipe has it; AdamW in its place; and LAMB with rates by layer.
OPTIMISERS = {"own": [], "adamw": ["optim.name=adamw"], "graded": ["optim.layer_decay=0.8"]}


#: Two processes draw other random numbers than one, and lay other neighbours beside an image in SAM's mosaics.
ALIKE = ["student.position_dropout=0", "student.cpe=null"] + [
    f"stages.{stage}.partitions.low.teachers.sam.mosaic=false" for stage in ("first", "second", "third")
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("overlay", ["radio_b", "radio_l"])
def test_the_flagships_overlays_agree_on_every_engine(overlay: str, optimiser: str, tmp_path: Path) -> None:
    """Ten updates through the three stages with the recipe's own optimiser: plain, DDP and ZeRO 1, 2, 3."""
    recipe = f"recipes/debug_overlays/{overlay}_debug.yaml"
    for processes, stage in ((1, None), (1, 2), (2, None), (2, 2)):
        changes = [f"out={tmp_path}", *ALIKE, *TEN, *OPTIMISERS[optimiser]]
        start("tests/distill/every_stage.py", recipe, *changes, processes=processes, stage=stage)
    engines = ["plain", "zero1", "zero2", "zero3"]
    assert_agree(
        {f"{processes}-{engine}": tmp_path / f"{processes}-{engine}" for processes in (1, 2) for engine in engines}
    )


def assert_agree(folders: dict[str, Path]) -> None:
    """Losses of every update, and the exported weights, are those of the first run to 1e-5."""
    plain, *others = folders
    losses = [line["loss"] for line in read_log(folders[plain] / "log.jsonl")]
    weights = load_file(folders[plain] / "student" / "model.safetensors")
    assert len(losses) == 10
    for other in others:
        ours = [line["loss"] for line in read_log(folders[other] / "log.jsonl")]
        assert ours == pytest.approx(losses, rel=1e-5), other
        for name, tensor in load_file(folders[other] / "student" / "model.safetensors").items():
            torch.testing.assert_close(
                tensor, weights[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name, o=other: f"{o}, {n}: {m}"
            )
