"""From a recipe and its teacher data to a trained and evaluated adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.description import AdapterMeta
from featsharp_adapter.model.downsampler import AverageDownsampler, build_downsampler
from featsharp_adapter.model.normalisers import fit_normaliser
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.training.checkpoints import Checkpoints
from featsharp_adapter.training.closed_form import fit_linear, fit_without_tiles
from featsharp_adapter.training.evaluation import Fidelity, evaluate_held_out
from featsharp_adapter.training.passes import Passes
from featsharp_adapter.training.samples import LiveSamples, Samples, StoredSamples
from featsharp_adapter.training.teacher_data import FILL_BATCH, TeacherData, open_once, open_stream
from featsharp_adapter.training.trainer import Trainer, place_weights, seeded, train_adapter
from featsharp_adapter.training.watching import Watching
from featsharp_adapter.upsamplers.ridge import RidgeUpsampler
from featsharp_adapter.upsamplers.table import upsampler_class

CHECKPOINTS = "checkpoints"


def train_one(
    recipe: AdapterRecipe, teacher_data: TeacherData, *, folder: Path | None = None
) -> tuple[Adapter, dict[str, Fidelity]]:
    """Train and evaluate one adapter; with a `folder`, checkpoints and a log go there and it resumes from them."""
    if upsampler_class(recipe.upsampler).closed_form:
        adapter = fit_one(recipe, teacher_data, folder=folder)
        with watched(folder, recipe, teacher_data) as watching:
            if watching is not None:
                watching.line(0, {"error": adapter.meta.training["closed form"]["error"]})
                watching.picture(0, adapter)
        return evaluate(adapter, AverageDownsampler(recipe.factor), teacher_data)
    trainer = new_trainer(recipe, teacher_data, folder=folder)
    checkpoints = None
    if folder is not None:
        checkpoints = Checkpoints(folder / CHECKPOINTS, identity(recipe, teacher_data), keep=recipe.checkpoint.keep)
    with watched(folder, recipe, teacher_data) as watching:
        samples = open_samples(recipe, teacher_data)
        adapter = train_adapter(trainer, samples, checkpoints=checkpoints, watching=watching)
    if adapter.upsampler.budgeted:
        fit_without_tiles(
            adapter, passes_of(recipe, teacher_data, folder), places=place_weights(adapter, recipe.border_weight)
        )
    return evaluate(adapter, trainer.downsampler, teacher_data)


@contextmanager
def watched(folder: Path | None, recipe: AdapterRecipe, teacher_data: TeacherData) -> Iterator[Watching | None]:
    """Log, trackers and pictures of a training in this folder; None without one."""
    if folder is None:
        yield None
        return
    drawn = next(iter(teacher_data.held_out.in_order(recipe.log.images))) if recipe.log.pictures else None
    watching = Watching(folder, recipe, drawn)
    try:
        yield watching
    finally:
        watching.close()


def identity(recipe: AdapterRecipe, teacher_data: TeacherData) -> str:
    """What a checkpoint is of; images by content, for those of a changed folder are others under the same recipe."""
    return f"{decisive(recipe)}{teacher_data.spec.digest}{open_once(recipe.data.train).fingerprint}"


def decisive(recipe: AdapterRecipe) -> str:
    """The recipe without what changes nothing that is trained."""
    said = recipe.model_dump(mode="json", exclude={"log"})
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True)


def fit_one(recipe: AdapterRecipe, teacher_data: TeacherData, *, folder: Path | None = None) -> Adapter:
    """An adapter whose upsampler is solved and not trained; the seed decides its random features alone."""
    with seeded(recipe.seed):
        adapter = new_adapter(recipe, teacher_data)
    solve_linear(adapter, recipe, teacher_data, folder)
    facts = {name: value for name, value in adapter.meta.training.items() if name not in ("optim", "downsampler")}
    adapter.meta = replace(adapter.meta, training=facts | {"bias": False, "gradient steps": 0})
    return adapter.eval()


def solve_linear(adapter: Adapter, recipe: AdapterRecipe, teacher_data: TeacherData, folder: Path | None) -> None:
    """Put the closed form's weights in place, and say on the card what was chosen. folder: where sums are saved."""
    places = place_weights(adapter, recipe.border_weight)
    passes = passes_of(recipe, teacher_data, folder)
    solution = fit_linear(adapter, passes, reweight=recipe.ridge.reweight, places=places)
    facts = {"ridges": list(solution.ridges), "error": solution.error}
    adapter.meta = replace(adapter.meta, training=adapter.meta.training | {"closed form": facts})


def passes_of(recipe: AdapterRecipe, teacher_data: TeacherData, folder: Path | None) -> Passes:
    """Over the training images; what they sum is saved in this folder, if there is one."""
    if folder is None:
        return Passes(teacher_data.training)
    where = folder / CHECKPOINTS / f"sums-{teacher_data.place.rank}-of-{teacher_data.place.world}"
    of = identity(recipe, teacher_data)
    return Passes(
        teacher_data.training,
        lambda name: Checkpoints(where / name.replace(" ", "-"), of, keep=1),
        recipe.checkpoint.every,
    )


def evaluate(
    adapter: Adapter, downsampler: nn.Module, teacher_data: TeacherData
) -> tuple[Adapter, dict[str, Fidelity]]:
    """Measure on the held-out images and write it into the adapter's description."""
    fidelity, side = evaluate_held_out(adapter, downsampler, teacher_data.held_out.in_order(FILL_BATCH))
    facts = {name: value.to_dict() for name, value in fidelity.items()} | {"side": asdict(side)}
    adapter.meta = replace(adapter.meta, fidelity=facts)
    return adapter, fidelity


def new_trainer(recipe: AdapterRecipe, teacher_data: TeacherData, *, folder: Path | None = None) -> Trainer:
    """Everything that learns, freshly initialised from the recipe's seed; what has a closed form is solved first."""
    node = recipe.downsampler
    with seeded(recipe.seed):
        adapter = new_adapter(recipe, teacher_data)
        dim = teacher_data.spec.spatial_dim
        downsampler = build_downsampler(node.name, dim=dim, factor=recipe.factor, kernel=node.kernel)
        if isinstance(adapter.upsampler, RidgeUpsampler):
            solve_linear(adapter, recipe, teacher_data, folder)
        return Trainer(adapter, downsampler.to(teacher_data.device), recipe)


def new_adapter(recipe: AdapterRecipe, teacher_data: TeacherData) -> Adapter:
    """Untrained, around the normaliser of these features."""
    meta = AdapterMeta(
        teacher=teacher_data.spec,
        teacher_node=recipe.teacher,
        upsampler=recipe.upsampler,
        factor=recipe.factor,
        options=recipe.options,
        normaliser=recipe.normaliser,
        conditional_heads=None if recipe.conditional is None else recipe.conditional.heads,
        published_views=recipe.published_views,
        training=training_facts(recipe, teacher_data.images, stored=teacher_data.store is not None),
    )
    return Adapter.build(meta, fit_normaliser(recipe.normaliser, teacher_data.statistics)).to(teacher_data.device)


def open_samples(recipe: AdapterRecipe, teacher_data: TeacherData) -> Samples:
    """The training batches: from the store, or, where that did not fit, from the teacher itself."""
    if teacher_data.store is not None:
        return StoredSamples(teacher_data.store, recipe.optim.batch_size, recipe.seed)
    stream = open_stream(recipe, teacher_data.spec, recipe.data.train, recipe.optim.batch_size, recipe.seed)
    return LiveSamples(stream, teacher_data.maker)


def training_facts(recipe: AdapterRecipe, images: int, *, stored: bool) -> dict[str, Any]:
    """What belongs on the card. images: how many were encoded, at most data.images."""
    facts = {
        "data": recipe.data.train,
        "images": f"{images}, repeated" if stored else "new at every step",
        "PHI-S images": images,
        "held-out data": recipe.data.held_out,
        "zoom": list(recipe.data.zoom),
    }
    nodes = {"views": recipe.views, "downsampler": recipe.downsampler, "optim": recipe.optim}
    nodes |= {"losses": recipe.losses} if any(recipe.losses.model_dump().values()) else {}
    rest = {"bias": recipe.bias, "border_weight": recipe.border_weight, "seed": recipe.seed}
    rest |= {"uncertainty": True} if recipe.uncertainty else {}
    rest |= {"spectral": True} if recipe.spectral else {}
    return facts | {name: node.model_dump(mode="json") for name, node in nodes.items()} | rest
