"""A teacher and its features of the training and held-out images, computed once for all upsamplers compared.

Of several processes each holds its share of the training images, and the first alone the held-out ones.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.progress import ProgressBar
from featsharp_adapter.model.phi_s import CovarianceStatistics
from featsharp_adapter.model.views import teacher_views
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.training.processes import ALONE, Place
from featsharp_adapter.training.samples import SampleMaker, SampleStore, StreamedSamples, fill_store, sample_bytes
from featsharp_adapter.upsamplers.ridge import RidgeUpsampler
from featsharp_adapter.upsamplers.table import build_upsampler, upsampler_class
from imagery.contracts import SequentialSource, Source
from imagery.sources import open_source, summary
from imagery.stream import ImageStream, to_float
from teachers.contracts import Backbone, BackboneSpec
from teachers.frozen import FrozenBackbone
from teachers.registry import load_backbone

#: Images a stream hands over at once while a store is filled; the teacher itself takes `chunk` at a time.
FILL_BATCH = 16


@dataclass(frozen=True)
class TeacherData:
    """What training needs besides the recipe, ready to use."""

    backbone: Backbone
    maker: SampleMaker
    statistics: CovarianceStatistics  #: of the teacher's tokens, which any normaliser is fitted to
    training: SampleStore | StreamedSamples  #: of data.images images, or this process' share of them
    held_out: SampleStore | StreamedSamples
    device: torch.device
    images: int  #: for training, over all processes
    place: Place = ALONE  #: of this process among them

    @property
    def store(self) -> SampleStore | None:
        """Of the training images; None: the views do not fit in memory, the teacher works at every step."""
        return self.training if isinstance(self.training, SampleStore) else None

    @property
    def spec(self) -> BackboneSpec:
        """Of the teacher."""
        return self.backbone.spec


def open_teacher_data(recipe: AdapterRecipe, recipes: Iterable[AdapterRecipe], place: Place = ALONE) -> TeacherData:
    """Load the teacher and compute its features of the images once, with the tiles that any of `recipes` needs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if recipe.teacher_dtype == "bfloat16" else None
    backbone = FrozenBackbone(load_backbone(recipe.teacher), dtype=dtype, chunk=recipe.chunk).to(device)
    recipes = list(recipes)
    grids = needed_grids(backbone.spec, recipes)
    recipe = with_needed_images(recipe, recipes)
    maker = SampleMaker(
        backbone,
        grids,
        recipe.views.settings(),
        recipe.views.count,
        recipe.seed,
        device,
        antialias=not recipe.published_views,
    )
    spec, data = backbone.spec, recipe.data
    images, held_out_images = place.share_of(data.images, FILL_BATCH), 0 if place.rank else data.held_out_images
    for source in dict.fromkeys((data.train, data.held_out)):
        print("\n".join(summary(open_once(source))))

    def training(batch_size: int) -> ImageStream:
        return open_stream(recipe, spec, data.train, batch_size, recipe.seed, place)

    def evaluated(batch_size: int) -> ImageStream:
        return open_stream(recipe, spec, data.held_out, batch_size, recipe.seed)

    train: SampleStore | StreamedSamples
    held_out: SampleStore | StreamedSamples
    if fits_in_memory(recipe, spec, grids, images + held_out_images):
        train = _fill(images, training(FILL_BATCH), maker, "training views")
        held_out = _fill(held_out_images, evaluated(FILL_BATCH), maker, "held-out views")
        maps: Iterable[Tensor] = (sample.views.low for sample in train.in_order(FILL_BATCH))
    else:
        train = StreamedSamples(images, training, maker)
        held_out = StreamedSamples(held_out_images, evaluated, maker)
        maps = _low_maps(images, training(FILL_BATCH), maker)
    statistics = statistics_of(maps, spec.spatial_dim)
    statistics.all_reduce()
    return TeacherData(backbone, maker, statistics, train, held_out, device, data.images, place)


def fits_in_memory(recipe: AdapterRecipe, spec: BackboneSpec, grids: tuple[int, ...], images: int) -> bool:
    """Whether the views of so many may be kept; says which, since it decides how long training takes."""
    data = recipe.data
    needed = images * sample_bytes(spec, recipe.factor, grids, recipe.views.count) / 2**30
    fits = needed <= data.cache_gib
    how = "kept in memory" if fits else f"more than data.cache_gib ({data.cache_gib:g}): made at every step"
    print(f"{spec.name}: views of {images} images are {needed:.2f} GiB, {how}")
    return fits


def with_needed_images(recipe: AdapterRecipe, recipes: Sequence[AdapterRecipe]) -> AdapterRecipe:
    """The recipe, with no more training images than the steps of any of `recipes` come to; a closed form sees all."""
    wanted = max((images_of(each) for each in recipes), default=recipe.data.images)
    if wanted >= recipe.data.images:
        return recipe
    print(f"the steps asked for see {wanted} of the {recipe.data.images} training images: only those are encoded")
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"images": wanted})})


def images_of(recipe: AdapterRecipe) -> int:
    """How many training images a training meets."""
    if issubclass(upsampler_class(recipe.upsampler), RidgeUpsampler):
        return recipe.data.images
    return min(recipe.data.images, recipe.optim.steps * recipe.optim.batch_size)


def needed_grids(spec: BackboneSpec, recipes: Iterable[AdapterRecipe]) -> tuple[int, ...]:
    """All tile grids that the upsamplers of these recipes ask for."""
    grids: set[int] = set()
    for recipe in recipes:
        dim, grid = spec.spatial_dim, spec.native_grid
        with torch.device("meta"):
            built = build_upsampler(recipe.upsampler, dim=dim, factor=recipe.factor, grid=grid, **recipe.options)
        grids |= set(built.tile_grids)
    return tuple(sorted(grids))


@functools.cache
def open_once(source: str) -> Source | SequentialSource:
    """`open_source`, once in this process: looking through many files takes a while."""
    return open_source(source)


def open_stream(
    recipe: AdapterRecipe, spec: BackboneSpec, source: str, batch_size: int, seed: int, place: Place = ALONE
) -> ImageStream:
    """Random crops, `factor` times the teacher's native size."""
    return ImageStream(
        open_once(source),
        batch_size=batch_size,
        height=recipe.factor * spec.native_size[0],
        width=recipe.factor * spec.native_size[1],
        seed=seed,
        augment=recipe.data.augment(),
        workers=recipe.data.workers,
        max_bad_share=recipe.data.max_bad_share,
        rank=place.rank,
        world=place.world,
    )


def statistics_of(maps: Iterable[Tensor], dim: int) -> CovarianceStatistics:
    """Of all tokens of low-resolution maps [B, C, g, g'], C = dim."""
    statistics = CovarianceStatistics(dim)
    for low in maps:
        statistics.update(low)
    return statistics


def _fill(size: int, stream: ImageStream, maker: SampleMaker, title: str) -> SampleStore:
    with ProgressBar(size, title, "image") as bar:
        store = fill_store(size, stream, maker, bar)
    _finish(stream)
    return store


def _low_maps(size: int, stream: ImageStream, maker: SampleMaker) -> Iterator[Tensor]:
    with ProgressBar(size, "PHI-S statistics", "image") as bar:
        while bar.done < size:
            images = to_float(next(stream).images.to(maker.device))[: size - bar.done]
            yield teacher_views(maker.backbone, images, (), antialias=maker.antialias).low
            bar.update(len(images))
    _finish(stream)


def _finish(stream: ImageStream) -> None:
    """Stop the stream's threads, and say which images could not be read."""
    stream.close()
    report = stream.report()
    if report["bad"]:
        print(f"{report['bad']} of {report['read']} images were unreadable and replaced: {report['bad_keys'][:10]}")
