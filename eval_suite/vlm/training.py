"""LLaVA-1.5's two stages: align the projector, then instruct the language model. A step hangs on its number alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.interruption import Stopped, heeding, signal_name
from common.lr_schedule import warm_up_cosine
from common.progress import ProgressBar
from common.run_lock import maybe_locked
from eval_suite.readers.contracts import ConversationImages, ImageSource, LabelledData
from eval_suite.vlm.checkpoints import Checkpoints, Progress
from eval_suite.vlm.conversations import training_data
from eval_suite.vlm.language import language_digest
from eval_suite.vlm.model import Llava
from eval_suite.vlm.prompts import NO_TARGET, encode
from eval_suite.vlm.recipe import Stage, VlmRecipe
from eval_suite.vlm.saved import describe, training_digest
from teachers.contracts import Backbone


@dataclass(frozen=True)
class Where:
    """Where a training runs and what it leaves behind. Without a folder nothing is kept."""

    device: torch.device
    folder: Path | None = None  #: the model's own; `under`: a folder that gets one for each model
    under: Path | None = None
    node: str | dict[str, Any] | None = None  #: how the backbone is loaded again, if not by its name
    progress: bool = False
    take_over: bool = False  #: the folder's lock, though another machine may hold it


def trained(backbone: Backbone, recipe: VlmRecipe, data: Mapping[str, LabelledData], seed: int, where: Where) -> Llava:
    """The recipe's model, trained on the suite's data. With a folder it goes on from there, to the same weights."""
    told = {name: training_data(data[stage.data], stage) for name, stage in recipe.stages.items()}
    for name, found in told.items():
        if not found.conversations:
            raise UserError(f'vlm {name}: data "{recipe.stages[name].data}" holds no {recipe.stages[name].use}')
    model = Llava(backbone, recipe, where.device, seed)
    names, language = list(recipe.stages), language_digest(recipe)
    digest = training_digest(backbone, recipe, language, told, seed)
    folder = where.folder or (None if where.under is None else where.under / f"vlm-{digest}")
    with maybe_locked(folder, take_over=where.take_over):
        kept, reached = None, Progress("", 0)
        if folder is not None:
            last = Progress(names[-1], steps_of(recipe.stages[names[-1]], len(told[names[-1]].conversations)))
            describe(folder, backbone, where.node, recipe, seed, digest, language, last)
            kept = Checkpoints(folder, digest, steps_before(recipe, told))
            kept.folders.tidy()
            reached = kept.reached()
        first = names.index(reached.stage) if reached.stage in names else 0
        for name in names[first:]:
            at = reached.step if name == reached.stage else 0
            train_stage(model, name, told[name], seed, kept, at, where.progress)
    model.learn("none")
    return model


def train_stage(
    model: Llava,
    name: str,
    told: ConversationImages,
    seed: int,
    kept: Checkpoints | None,
    start: int,
    progress: bool,
) -> list[float]:
    """One stage, from step `start` on, whose weights and optimiser state `kept` holds; the loss of every step."""
    stage = model.recipe.stages[name]
    total = steps_of(stage, len(told.conversations))
    model.learn(name)
    optimiser = optimiser_of(model, stage)
    if kept is not None and kept.newest is not None:
        kept.load(model, optimiser if start else None)
    losses: list[float] = []
    bar = ProgressBar(total, f"vlm {name}", "step", start=start, shown=progress, leave=False)
    with heeding() as wishes:
        for step in bar.over(range(start, total)):
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * ramp(step, total, stage.warmup)
            rows = rows_of_step(len(told.conversations), stage.batch, step, seed)
            losses.append(one_step(model, stage, told, rows, optimiser, seed + step))
            bar.note(loss=f"{losses[-1]:.3f}")
            if not math.isfinite(losses[-1]):
                raise UserError(f"vlm {name}: the loss is {losses[-1]} at step {step}; lower vlm.{name}.learning_rate")
            asked = bool(wishes.stop or wishes.save)
            if kept is not None and (asked or (step + 1) % model.recipe.save_every == 0 or step + 1 == total):
                kept.save(model, optimiser, Progress(name, step + 1))
            wishes.save = False
            if wishes.stop:
                saved = f" after step {step + 1} of vlm {name}, which is saved" if kept is not None else ""
                raise Stopped(wishes.stop, f"stopped by {signal_name(wishes.stop)}{saved}; start again to go on")
    return losses


def one_step(
    model: Llava,
    stage: Stage,
    told: ConversationImages,
    rows: Sequence[int],
    optimiser: torch.optim.Optimizer,
    seed: int,
) -> float:
    """One optimiser step on these conversations; the mean loss over their answer tokens.

    The batch may be computed in parts: their losses are divided by the answer tokens of all, so it is the same step.
    """
    chosen = [told.conversations[row] for row in rows]
    texts = [encode(model.tokenizer, stage.prompt, item.turns, len(item.rows)) for item in chosen]
    count = sum(target != NO_TARGET for text in texts for target in text.targets)
    optimiser.zero_grad(set_to_none=True)
    value = 0.0
    with seeded_dropout(model.device, seed):
        size = math.ceil(len(rows) / stage.accumulate)
        for at in range(0, len(rows), size):
            pictures = [
                [model.view(picture_of(required(told.images), row)) for row in item.rows]
                for item in chosen[at : at + size]
            ]
            loss = model.loss(texts[at : at + size], pictures) / max(count, 1)
            if loss.requires_grad:  # text alone teaches a projector nothing
                loss.backward()
            value += float(loss.detach())
    learning = [weight for group in optimiser.param_groups for weight in group["params"]]
    nn.utils.clip_grad_norm_(learning, stage.clip)
    optimiser.step()
    return value


def optimiser_of(model: Llava, stage: Stage) -> torch.optim.Optimizer:
    """AdamW over what learns now; the projector may have a rate of its own (LLaVA's mm_projector_lr)."""
    inner = {id(weight) for weight in model.projector.parameters()}
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    own = [weight for weight in learning if id(weight) in inner]
    rest = [weight for weight in learning if id(weight) not in inner]
    rate = stage.projector_learning_rate or stage.learning_rate
    groups = [{"params": own, "peak": rate}] + ([{"params": rest, "peak": stage.learning_rate}] if rest else [])
    return torch.optim.AdamW(groups, lr=stage.learning_rate, weight_decay=stage.weight_decay)


def ramp(step: int, total: int, warmup: float) -> float:
    """Share of the peak rate: linear from 0, then a cosine to 0 (transformers' get_cosine_schedule_with_warmup)."""
    return warm_up_cosine(step, total, math.ceil(warmup * total))


def steps_before(recipe: VlmRecipe, told: Mapping[str, ConversationImages]) -> dict[str, int]:
    """Stage -> steps of all stages before it."""
    found, whole = {}, 0
    for name, stage in recipe.stages.items():
        found[name] = whole
        whole += steps_of(stage, len(told[name].conversations))
    return found


def steps_of(stage: Stage, count: int) -> int:
    """Optimiser steps of a stage over `count` conversations."""
    return stage.steps or max(1, round(stage.epochs * count / min(stage.batch, count)))


def rows_of_step(count: int, batch: int, step: int, seed: int) -> list[int]:
    """The conversations of a step: one shuffled pass after the other, each epoch in an order of its own."""
    batch = min(batch, count)
    out: list[int] = []
    for epoch in range(step * batch // count, ((step + 1) * batch - 1) // count + 1):
        order = _order(count, seed, epoch)
        start = max(0, step * batch - epoch * count)
        out += order[start : min(count, (step + 1) * batch - epoch * count)].tolist()
    return out


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation by (seed, epoch); kept, since every step asks."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))


@contextmanager
def seeded_dropout(device: torch.device, seed: int) -> Iterator[None]:
    """Dropout in here depends on the seed alone; the global random state is as it was afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def required(images: ImageSource | None) -> ImageSource:
    """The pictures of conversations that have some."""
    assert images is not None
    return images


def picture_of(images: ImageSource, row: int) -> Tensor:
    """A picture at its own size if the source can show it, uint8 [3, H, W]."""
    original = getattr(images, "original", None)
    return images.read(torch.tensor([row]))[0] if original is None else original(row)
