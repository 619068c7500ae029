"""Run by test_lamb.py in one or two processes: a small student on every ZeRO stage, or on DDP, against plain training.

    engines_agree.py ddp|zero KIND...

Each process has half of every batch. Prints for every optimiser and stage the largest difference of a weight from plain
training, over how far the weights moved, and of a loss, over the loss; the test judges it.
"""

import json
import sys
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from distill.recipe import Recipe
from distill.recipe_models import StudentNode
from distill.recipe_training import OptimNode
from distill.student.model import HeadSpec, Student
from distill.training.engine import prepare, start
from distill.training.optim import build_optimiser, learning_rate, rate_shares

UPDATES, ACCUMULATE = 10, 2
SIZES = {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 33, "depth": 2, "num_heads": 3}
STUDENT = StudentNode(**SIZES, spectral=True)
OPTIM = {"steps": UPDATES, "batch_size": 8, "lr": 0.01, "warmup_steps": 2, "clip": 0.05, "accumulate": ACCUMULATE}
KINDS = {
    "lamb": {"name": "lamb", "weight_decay": 0.1},
    "lamb graded": {"name": "lamb", "weight_decay": 0.1, "layer_decay": 0.7, "freeze_body_steps": 2},
    "adamw": {"name": "adamw", "layer_decay": 0.7},
    "adamw of epsilon 1e-5": {"name": "adamw", "layer_decay": 0.7},
}
EPSILON = {"adamw of epsilon 1e-5": 1e-5}  #: other than torch's 1e-8
Found = tuple[dict[str, Tensor], list[float]]  #: weights, and the losses of the updates


def student() -> Student:
    torch.manual_seed(0)
    return Student(STUDENT, (32, 32), {"a": HeadSpec(7, 5)})


def batch(update: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(update)
    return torch.rand(8, 3, 32, 32, generator=made), torch.randn(8, 7, generator=made)


def loss_of(model: nn.Module, images: Tensor, wanted: Tensor) -> Tensor:
    answer = model(images)["a"]
    return F.mse_loss(answer.summary, wanted) + 0.1 * answer.spatial.square().mean()


def with_epsilon(optimiser: Any, epsilon: float | None) -> None:
    for group in optimiser.param_groups if epsilon else []:
        group["eps"] = epsilon


def plainly(node: OptimNode, epsilon: float | None) -> Found:
    """The slow twin: whole batches, torch's own clipping, one process."""
    model = student()
    optimiser = build_optimiser(model, node)
    with_epsilon(optimiser, epsilon)
    losses = []
    places = [group.get("place") for group in optimiser.param_groups]
    for update in range(UPDATES):
        for group, share in zip(optimiser.param_groups, rate_shares(update, node, places), strict=True):
            group["lr"] = learning_rate(update, node) * share
        loss = loss_of(model, *batch(update))
        losses.append(float(loss))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), node.clip)
        optimiser.step()
        optimiser.zero_grad()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, losses


def on_engine(accelerator: Accelerator, name: str, recipe: Recipe, epsilon: float | None) -> Found:
    engine = prepare(accelerator, name, student(), recipe)
    with_epsilon(engine.optimiser, epsilon)
    losses = []
    rank, world = accelerator.process_index, accelerator.num_processes
    for update in range(UPDATES):
        engine.activate()
        engine.set_learning_rate(update)
        images, wanted = (whole.chunk(world)[rank] for whole in batch(update))
        pieces = list(zip(images.chunk(ACCUMULATE), wanted.chunk(ACCUMULATE), strict=True))
        shares = []
        for number, piece in enumerate(pieces, 1):
            with engine.accumulating(number == ACCUMULATE):
                loss = loss_of(engine.model, *piece)
                shares.append(loss.detach())
                engine.backward(loss)
        losses.append(float(accelerator.reduce(torch.stack(shares).mean(), "mean")))
        engine.clip()
        engine.update()
    return engine.student_state(), losses


def furthest(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The largest difference of two states."""
    assert set(some) == set(others)
    return max(float((some[name] - others[name]).abs().max()) for name in some)


def recipe_of(optim: dict[str, object], stage: int | None) -> Recipe:
    return Recipe(
        name="unused",
        data={"train": "scenes:seed=1,count=1,size=32", "size": (32, 32)},
        student=STUDENT,
        teachers={"a": {"backbone": "tiny:clip"}},
        optim=OPTIM | optim,
        engine={"zero_stage": stage, "threads": 1} if stage else {"threads": 1},
    )


def main() -> None:
    engine, *kinds = sys.argv[1:]
    stages = [None] if engine == "ddp" else [1, 2, 3]
    recipes = {f"{kind}, {stage or 'ddp'}": recipe_of(KINDS[kind], stage) for kind in kinds for stage in stages}
    accelerators = start(recipes)
    torch.set_num_threads(1)
    first, wanted, found = student().state_dict(), {}, {}
    for name, recipe in recipes.items():
        kind = name.partition(",")[0]
        wanted[kind] = wanted.get(kind) or plainly(recipe.optim, EPSILON.get(kind))
        weights, losses = on_engine(accelerators[name], name, recipe, EPSILON.get(kind))
        if accelerators[name].is_main_process:  # ZeRO-3 gathers for the first process alone
            theirs, plain = wanted[kind]
            apart = max(abs(one - other) / other for one, other in zip(losses, plain, strict=True))
            found[name] = furthest(weights, theirs) / furthest(first, theirs), apart
    print(json.dumps(found) if found else "")


if __name__ == "__main__":
    main()
