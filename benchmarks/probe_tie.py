"""Whether a linear probe reads more in a map that is solved in other ways than `ridge` is, at equal teacher passes.

    OMP_NUM_THREADS=1 python benchmarks/probe_tie.py RECIPE.yaml [key=value ...] [--only VARIANT ...] [--seeds 0 1]

One table: held-out MSE by the fixed average of cells; mIoU by recipes/suites/sharpened.yaml, and how far it is from the
first row of the same seed, with its standard error image by image; CPU seconds of fitting, without the teacher's
passes. A seed decides the random features of the image and nothing else.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.recipes import load_recipe
from eval_suite.sample_scores import SetSamples
from eval_suite.suite import load_suite, run_suite
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.compare.compare import spend
from featsharp_adapter.compare.probes import RememberingBackbone
from featsharp_adapter.model.downsampler import AverageDownsampler
from featsharp_adapter.model.least_squares import LeastSquaresSums, choose_ridges
from featsharp_adapter.model.multiview import border_weights, inside_share, view_images, warp
from featsharp_adapter.model.views import Views
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.sharpening.backbone import SharpenedBackbone, sharpened_spec
from featsharp_adapter.training.closed_form import HELD_BACK, Rows, put_in, view_rows
from featsharp_adapter.training.evaluation import collect_errors, summarise
from featsharp_adapter.training.samples import Sample
from featsharp_adapter.training.teacher_data import FILL_BATCH, TeacherData, open_teacher_data
from featsharp_adapter.training.train_one import fit_one, new_adapter
from featsharp_adapter.training.trainer import seeded
from featsharp_adapter.upsamplers.ridge import OF_TILES, RidgeUpsampler
from featsharp_adapter.upsamplers.ridge import Rows as Source
from featsharp_adapter.upsamplers.simple import resize_features
from teachers.contracts import Backbone, Features
from teachers.frozen import FrozenBackbone
from teachers.registry import load_backbone

SUITE = Path("recipes/suites/sharpened.yaml")
LARGE = ("data.scenes.size=448", "data.scenes.label_stride=4")  # the same labels of images twice as large
OTHER = {"tiny:clip": "tiny:dino", "tiny:dino": "tiny:clip"}
Signal = Callable[[Tensor, Mapping[int, Tensor], Tensor], Tensor]  #: low, tiles, image -> [B, k*g, k*g']
RowsOf = Callable[[Adapter, RidgeUpsampler, Sample], Rows]


@dataclass
class Lab:
    """One teacher's data at one factor, and what is measured on it."""

    recipe: AdapterRecipe
    changes: Sequence[str] = ()  #: of the suite
    first: dict[int, SetSamples] = field(default_factory=dict)  #: of each seed, the first probe

    @cached_property
    def data(self) -> TeacherData:
        return open_teacher_data(self.recipe, [self.recipe])

    @cached_property
    def teacher(self) -> Backbone:
        return RememberingBackbone(self.data.backbone)

    def batches(self) -> Iterator[Sample]:
        return self.data.training.in_order(FILL_BATCH)

    def new(self, seed: int) -> tuple[Adapter, RidgeUpsampler]:
        """Not solved yet; nothing is predicted for budgets of passes."""
        with seeded(seed):
            adapter = new_adapter(self.recipe.model_copy(update={"seed": seed}), self.data).eval()
        assert isinstance(adapter.upsampler, RidgeUpsampler)
        adapter.upsampler.budgeted = False
        return adapter.requires_grad_(False), adapter.upsampler

    def row(
        self,
        title: str,
        seed: int,
        adapter: Adapter,
        began: float | None = None,
        passes: float | None = None,
        batch: int | None = None,
    ) -> None:
        """Measure and print; began: CPU time at which fitting did."""
        spent = None if began is None else time.process_time() - began
        samples = self.data.held_out.in_order(batch or FILL_BATCH)
        error = mse(adapter, samples if passes is None else spend(adapter, samples, passes))
        changes = [] if batch is None else [f"batch_size={batch}"]
        self.told(title, seed, error, SharpenedBackbone(self.teacher, adapter, "ridge", passes=passes), spent, *changes)

    def told(
        self, title: str, seed: int, error: float | None, map_: Backbone, spent: float | None, *changes: str
    ) -> None:
        """Probe, and print a line of the table."""
        suite = load_suite(SUITE, [*self.changes, *changes])
        (found,) = run_suite(map_, suite, progress=False, samples=True)["samples"].values()
        first = self.first.setdefault(seed, found)
        apart = found.samples.scores - first.samples.scores
        error_of_it = float(apart.std(ddof=1)) / len(apart) ** 0.5
        change = "" if first is found else f"{found.value - first.value:+.2f} ± {error_of_it:.2f}"
        shown = ["" if error is None else f"{error:.4f}", f"{found.value:.2f}", change]
        print("| " + " | ".join([title, str(seed), *shown, "" if spent is None else f"{spent:.0f}"]) + " |", flush=True)


def mse(adapter: Adapter, samples: Iterable[Sample], downsampler: nn.Module | None = None) -> float:
    """Held-out, in normalised space."""
    found = collect_errors(adapter, {"": downsampler or AverageDownsampler(adapter.factor)}, samples)
    return summarise(found.by_downsampler[""], found.variance).mse


@torch.no_grad()
def solve_rows(samples: Iterable[Sample], rows_of: Callable[[Sample], Rows], groups: Sequence[slice]) -> Tensor:
    """As `fit_linear` solves, of any rows that stand view after view; the weight [D, C]."""
    sums: list[LeastSquaresSums] = []
    for sample in samples:
        rows, images = rows_of(sample), len(sample.pixels) * sample.targets.shape[1]
        sums = sums or [LeastSquaresSums(rows.inputs.shape[1], rows.targets.shape[1]) for _ in range(2)]
        held = (sample.positions % HELD_BACK == HELD_BACK - 1).repeat(sample.targets.shape[1])
        held = held.repeat_interleave(len(rows.weights) // images)
        for part, kept in zip(sums, (~held, held), strict=True):
            part.update(rows.inputs[kept], rows.targets[kept], rows.weights[kept])
    return choose_ridges(sums[0], sums[1], groups).weight


def attempt(
    lab: Lab,
    title: str,
    seed: int,
    like: RidgeUpsampler | None = None,
    samples: Iterable[Sample] | None = None,
    rows_of: RowsOf = view_rows,
) -> Adapter:
    """Solve, measure and print; like: what stands in the adapter instead of a `ridge`."""
    adapter, upsampler = lab.new(seed)
    adapter.upsampler = upsampler = like or upsampler
    adapter.requires_grad_(False)
    began = time.process_time()
    weight = solve_rows(samples or lab.batches(), partial(rows_of, adapter, upsampler), upsampler.groups)
    put_in(upsampler.linear, weight)
    lab.row(title, seed, adapter, began)
    return adapter


def plain(lab: Lab, seed: int) -> Adapter:
    """What the others are compared with."""
    images = ", images of 448 px" if lab.changes else ""
    return attempt(lab, f"`ridge`, {lab.recipe.factor}x{images}", seed)


def ceiling(lab: Lab, seed: int) -> None:
    """A probe on all inputs of W side by side, which hold whatever W reads."""
    adapter, upsampler = lab.new(seed)
    map_ = AllInputs(lab.teacher, adapter, upsampler)
    lab.told(f"all its inputs side by side, {adapter.factor}x", seed, None, map_, None)


class AllInputs(Backbone):
    """phi itself as the map."""

    def __init__(self, teacher: Backbone, adapter: Adapter, upsampler: RidgeUpsampler) -> None:
        super().__init__()
        self.teacher, self.adapter, self.upsampler = teacher, adapter, upsampler
        self.spec = replace(sharpened_spec(teacher.spec, adapter, "phi"), spatial_dim=sum(upsampler.widths))

    def forward(self, images: Tensor) -> Features:
        views = self.adapter.views(self.teacher, images)
        return Features(views.summary, self.upsampler.phi(*normalised(self.adapter, views), images))


def normalised(adapter: Adapter, views: Views) -> tuple[Tensor, dict[int, Tensor]]:
    """The low-resolution map and the tiles that an upsampler is given."""
    tiles = {n: adapter.denoise_normalised(views.tiles[n], n) for n in adapter.tile_grids}
    return adapter.denoise_normalised(views.low), tiles


# ---- K maps W


class Bucketed(RidgeUpsampler):
    """A map W for each bucket of places, all solved together and exactly: pooling a warped map mixes buckets, so that
    phi stands K times side by side, masked (and the mask itself, for a constant); copies of an input share a ridge.
    shared: inputs whose part of W is the same everywhere."""

    def __init__(self, like: RidgeUpsampler, bucket: Signal, count: int, shared: Sequence[str] = ()) -> None:
        super().__init__(dim=like.dim, factor=like.factor, grid=like.grid, inputs=like.inputs, tile_grid=like.n)
        self.stem, self.budgeted, self.bucket, self.count = like.stem, False, bucket, count
        self.copied = [name not in shared for name in self.inputs]
        self.widths = [w * (count if many else 1) for w, many in zip(self.widths, self.copied, strict=True)] + [count]
        self.linear = nn.Conv2d(sum(self.widths), self.dim, 1)

    def sources(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> list[Source]:
        masks = F.one_hot(self.bucket(low, tiles, guidance), self.count).movedim(-1, 1).to(low)

        def masked(source: Source) -> Source:
            return lambda start, stop: (masks[:, :, None, start:stop] * source(start, stop)[:, None]).flatten(1, 2)

        whole = zip(super().sources(low, tiles, guidance), self.copied, strict=True)
        return [*(masked(it) if many else it for it, many in whole), lambda start, stop: masks[:, :, start:stop]]


def buckets(lab: Lab, seed: int) -> None:
    """By quantiles of what tiles change, by borders between tiles, by the nearest of K means of tokens."""
    adapter, like = lab.new(seed)
    k, n, grid = like.factor, like.n, like.grid

    def change(low: Tensor, tiles: Mapping[int, Tensor], image: Tensor) -> Tensor:
        return (resize_features(tiles[n], k // n) - resize_features(low, k)).square().mean(dim=1)

    def border(low: Tensor, tiles: Mapping[int, Tensor], image: Tensor) -> Tensor:
        at_border = border_weights((k // n * grid[0], k // n * grid[1]), n, 2.0)[:, 0] > 1
        return at_border.long().expand(len(low), -1, -1)

    def some(function: Signal) -> Tensor:
        parts = islice(lab.batches(), 12)
        return torch.cat([function(*normalised(adapter, s.views), s.guidance()) for s in parts]).flatten()

    def quantiles(signal: Signal, count: int) -> Signal:
        edges = torch.quantile(some(signal), torch.arange(1, count) / count)
        return lambda low, tiles, image: torch.bucketize(signal(low, tiles, image), edges)

    def nearest(count: int) -> Signal:
        tokens = some(lambda low, tiles, image: low.movedim(1, -1)).view(-1, like.dim)
        means = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[:count]]
        for _ in range(20):
            which = torch.cdist(tokens, means).argmin(dim=1)
            means = torch.stack([tokens[which == each].mean(dim=0) for each in range(count)])
        return lambda low, tiles, image: torch.cdist(resize_features(low, k).movedim(1, -1), means).argmin(dim=-1)

    cases = [("what tiles change, K = 2", quantiles(change, 2), 2), ("nearest of K means, K = 4", nearest(4), 4)]
    cases += [("borders between tiles, K = 2", border, 2), ("what tiles change, K = 4", quantiles(change, 4), 4)]
    for title, bucket, count in cases:
        shared = (
            ("low_mean", "tile_mean", "image") if count > 2 else ()
        )  # or the sums of D = 640 K inputs take too long
        attempt(lab, f"buckets: {title}", seed, Bucketed(like, bucket, count, shared))


# ---- other objectives


def zoom(lab: Lab, seed: int) -> None:
    """Views count by zoom^-4; below 1 they show a part, larger."""

    def rows_of(adapter: Adapter, upsampler: RidgeUpsampler, sample: Sample) -> Rows:
        rows, area = view_rows(adapter, upsampler, sample), sample.homographies[..., :2, :2].det().abs()
        counted = (area**-2).T.flatten().repeat_interleave(len(rows.weights) // area.numel())
        return rows._replace(weights=rows.weights * counted)

    attempt(lab, "views weighted by zoom^-4", seed, rows_of=rows_of)


def mirrored(lab: Lab, seed: int) -> None:
    """Targets are means over a view and its mirror image: 2 passes a view, at training only."""
    mirror, samples = torch.diag(torch.tensor([-1.0, 1.0, 1.0])), []
    for sample in lab.batches():
        images = sample.guidance().repeat_interleave(sample.targets.shape[1], dim=0)
        seen = view_images(images, sample.homographies.flatten(0, 1) @ mirror, lab.data.spec.native_size)
        again = lab.data.backbone(seen).spatial.flip(-1).unflatten(0, sample.targets.shape[:2])
        samples.append(replace(sample, targets=(sample.targets + again) / 2))
    attempt(lab, "targets averaged over mirrored views", seed, samples=samples)


class Kernel(nn.Module):
    """One linear kernel [K, K] for all cells and channels, around each cell."""

    def __init__(self, factor: int, weight: Tensor) -> None:
        super().__init__()
        self.factor, self.weight, self.side = factor, weight, (len(weight) - factor) // 2

    def forward(self, maps: Tensor) -> Tensor:
        padded, dim = F.pad(maps, (self.side,) * 4, mode="replicate"), maps.shape[1]
        return F.conv2d(padded, self.weight.to(maps).expand(dim, 1, -1, -1), stride=self.factor, groups=dim)


def alternating(lab: Lab, seed: int) -> None:
    """W and the downsampler's kernel (4 x 4, of sum 1) in turns; the map is still judged by the average."""
    (adapter, upsampler), side = lab.new(seed), 1
    cell = torch.full((lab.recipe.factor,) * 2, lab.recipe.factor**-2)
    kernel, began = Kernel(lab.recipe.factor, F.pad(cell, (side,) * 4)), time.process_time()
    for turn in range(4):
        if turn:
            kernel = Kernel(lab.recipe.factor, solve_kernel(adapter, lab.batches(), side))
        weight = solve_rows(lab.batches(), partial(pooled_rows, adapter, upsampler, kernel), upsampler.groups)
        put_in(upsampler.linear, weight)
    own = mse(adapter, lab.data.held_out.in_order(FILL_BATCH), kernel)
    lab.row(f"W and a 4x4 kernel in turns, 3 times (MSE by it: {own:.4f})", seed, adapter, began)


def pooled_rows(adapter: Adapter, upsampler: RidgeUpsampler, pool: nn.Module, sample: Sample) -> Rows:
    """`view_rows` under another downsampler."""
    low, tiles = normalised(adapter, sample.views)
    maps = torch.cat([upsampler.phi(low, tiles, sample.guidance()), resize_features(low, upsampler.factor)], dim=1)
    parts = []
    for homographies, targets in zip(sample.homographies.unbind(1), sample.targets.unbind(1), strict=True):
        target, dim = adapter.denoise_normalised(targets), upsampler.dim
        found = pool(warp(maps, homographies))
        inside = inside_share(homographies, (target.shape[-2], target.shape[-1]))
        parts.append(torch.cat([found[:, :-dim], target - found[:, -dim:], inside], dim=1).movedim(1, -1).flatten(0, 2))
    rows = torch.cat(parts)
    width = rows.shape[1] - upsampler.dim - 1
    return Rows(rows[:, :width], rows[:, width:-1], rows[:, -1])


@torch.no_grad()
def solve_kernel(adapter: Adapter, samples: Iterable[Sample], side: int) -> Tensor:
    """The kernel of sum 1 over a cell and `side` around it that brings the map as it is nearest to the views."""
    size = adapter.factor + 2 * side
    taps = size * size
    matrix, vector = torch.zeros(taps + 1, taps + 1, dtype=torch.float64), torch.zeros(taps + 1, dtype=torch.float64)
    for sample in samples:
        sharp = adapter.forward_normalised(sample.views, sample.guidance())
        for homographies, targets in zip(sample.homographies.unbind(1), sample.targets.unbind(1), strict=True):
            target = adapter.denoise_normalised(targets)
            weight = inside_share(homographies, (target.shape[-2], target.shape[-1])).flatten(1)[:, None, None]
            padded = F.pad(warp(sharp, homographies), (side,) * 4, mode="replicate")
            patches = F.unfold(padded, size, stride=adapter.factor).unflatten(1, (-1, taps))
            rows = (patches * weight).movedim(2, 0).flatten(1)
            matrix[:-1, :-1] += rows @ patches.movedim(2, 0).flatten(1).T
            vector[:-1] += rows @ target.flatten()
    matrix[-1, :-1] = matrix[:-1, -1] = vector[-1] = 1.0  # Lagrange's row: the sum is one
    return torch.linalg.solve(matrix, vector)[:-1].view(size, size)


# ---- half of the passes


def half(lab: Lab, seed: int) -> None:
    """Both maps of a budget solved together, each on the places that it is for; and tiles shared out image by image."""
    adapter = fit_one(lab.recipe.model_copy(update={"seed": seed}), lab.data).requires_grad_(False)
    upsampler = adapter.upsampler
    assert isinstance(upsampler, RidgeUpsampler)
    lab.row("2.5 of 5 passes", seed, adapter, passes=2.5)  # tiles chosen over a batch
    there: list[Tensor] = []
    split = Bucketed(upsampler, lambda low, tiles, image: there[0], 2)
    halves = [torch.arange(group.start, group.stop).chunk(2) for group in split.groups]
    without, within = zip(*halves, strict=True)
    named = list(zip(upsampler.inputs, without[:-1], strict=True))
    absent = torch.cat([index for name, index in named if name in OF_TILES])

    def rows_of(sample: Sample) -> Rows:
        assert sample.views.chosen is not None
        sides = [upsampler.factor * side // upsampler.n for side in upsampler.grid]
        there[:] = [sample.views.chosen.long().repeat_interleave(sides[0], 1).repeat_interleave(sides[1], 2)]
        rows = view_rows(adapter, split, sample)
        rows.inputs[:, absent] = 0
        return rows

    for title, batch in (("over a batch", None), ("image by image", 1)):
        lab.row(f"3 of 5 passes, tiles chosen {title}", seed, adapter, passes=3.0, batch=batch)
    began = time.process_time()
    weight = solve_rows(spend(adapter, lab.batches(), 2.5), rows_of, split.groups)
    put_in(upsampler.linear, torch.cat([weight[torch.cat(within[:-1])], weight[-1:] + weight[within[-1]]]))
    low = torch.cat([index for name, index in named if name not in OF_TILES])
    put_in(upsampler.linear_low, torch.cat([weight[low], weight[-1:] + weight[without[-1]]]))
    lab.row("2.5 of 5 passes, both maps solved for it", seed, adapter, began, passes=2.5)


# ---- two teachers, each with the other's inputs


class Guided(RidgeUpsampler):
    """phi has another teacher's maps too. It asks that teacher itself, which remembers what it has seen."""

    def __init__(self, like: RidgeUpsampler, other: Adapter, teacher: Backbone) -> None:
        super().__init__(dim=like.dim, factor=like.factor, grid=like.grid, inputs=like.inputs, tile_grid=like.n)
        assert isinstance(other.upsampler, RidgeUpsampler)
        self.stem, self.budgeted, self.other = like.stem, False, (other, other.upsampler, teacher)  # no parts of it
        self.widths = [*self.widths, *other.upsampler.widths[:-1]]
        self.linear = nn.Conv2d(sum(self.widths), self.dim, 1)

    def sources(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> list[Source]:
        adapter, upsampler, teacher = self.other
        theirs = upsampler.sources(*normalised(adapter, adapter.views(teacher, guidance)), guidance)
        return [*super().sources(low, tiles, guidance), *theirs[:-1]]  # the image is there once


def guided(lab: Lab, seed: int) -> None:
    """All inputs of both teachers in one solution, at all passes of each."""
    name = OTHER[lab.data.spec.name]
    other, teacher = Adapter.from_pretrained(f"builtin:{name.replace(':', '-')}-ridge-2x"), load_backbone(name)
    remembering, (_, like) = RememberingBackbone(FrozenBackbone(teacher)), lab.new(seed)
    for sample in lab.batches():  # so that its passes are not counted as fitting
        other.views(remembering, sample.guidance())
    attempt(lab, f"inputs of {name} too, 5 passes of both", seed, Guided(like, other, remembering))


# ---- a finer grid


def finer(lab: Lab, seed: int) -> None:
    """4x from the 2 x 2 tiles of 2x, beside the 2x map on the same labels."""
    fine = replace(lab, changes=LARGE, first={})
    fine.data, fine.teacher = lab.data, lab.teacher
    plain(fine, seed)
    data = lab.recipe.data.model_copy(update={"images": 250, "held_out_images": 100})
    changes = {"factor": 4, "options": {"tile_grid": 2}, "data": data}
    plain(Lab(lab.recipe.model_copy(update=changes), LARGE, fine.first), seed)


VARIANTS: dict[str, Callable[[Lab, int], object]] = {
    each.__name__: each for each in (ceiling, guided, zoom, mirrored, half, buckets, finer, alternating)
}


def main() -> None:
    """A line for each variant and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    recipe = load_recipe(AdapterRecipe, arguments.recipe, ["upsampler=ridge", "options={}", *arguments.overrides])
    lab = Lab(recipe)
    print("| variant | seed | MSE | mIoU | against the first | CPU s |\n|---|---:|---:|---:|---:|---:|")
    for seed in arguments.seeds:
        for variant in (plain, *(VARIANTS[name] for name in arguments.only)):
            variant(lab, seed)


if __name__ == "__main__":
    main()
