"""Fits the linear part of `ridge` and `ridge_block` in one pass over the training views; no gradient steps.

For a view with homography h, target t and average downsampler D: D(warp(low + W phi + b)) - t is linear in (W, b), so
the consistency loss is a least-squares problem with inputs D(warp(phi)), targets t - D(warp(low)) and, as weights, the
share of each cell that is inside the image (times the weight of borders between tiles). Views of every fifth image
choose the ridges; then all are solved together.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.model.downsampler import AverageDownsampler
from featsharp_adapter.model.layers import bias_of
from featsharp_adapter.model.least_squares import LeastSquaresSums, Solution, choose_ridges, solve
from featsharp_adapter.model.multiview import inside_share, warp
from featsharp_adapter.model.views import tile_images
from featsharp_adapter.training.passes import Passes
from featsharp_adapter.training.samples import Sample
from featsharp_adapter.upsamplers.ridge import OF_TILES, RidgeUpsampler
from featsharp_adapter.upsamplers.simple import resize_features

#: One image in so many chooses the ridges.
HELD_BACK = 5
#: A cell whose residual is more than so many root mean squares counts less in the second solve (Huber's weights).
OUTLIER = 1.5
#: So many images say what a tile changes: one number for each tile, of which these are several times the inputs.
GAIN_IMAGES = 4096


class Rows(NamedTuple):
    """What the views of some images say: inputs [N, D], targets [N, C], weights [N], all views after each other."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor


@torch.no_grad()
def fit_linear(adapter: Adapter, passes: Passes, *, reweight: bool = False, places: Tensor | None = None) -> Solution:
    """Solve the adapter's linear map and put it in place.

    reweight: solve a second time, with cells that no linear map explains (outlier tokens) counting less.
    places: [1, 1, k*g, k*g'], how much each place of the sharpened map counts; None: all the same.
    """
    upsampler = adapter.upsampler
    if not isinstance(upsampler, RidgeUpsampler):
        raise UserError(f"{adapter.meta.upsampler} has no closed form; ridge and ridge_block have")
    adapter.eval()
    solution = _solve(adapter, upsampler, passes, None, places)
    if reweight:
        solution = _solve(adapter, upsampler, passes, solution, places)
    put_in(upsampler.linear, solution.weight)
    if upsampler.budgeted and upsampler.closed_form:
        _fit_gains(adapter, upsampler, passes)
    return solution


@torch.no_grad()
def fit_without_tiles(adapter: Adapter, passes: Passes, *, places: Tensor | None = None) -> None:
    """Solve what a budget of passes needs, after a training that has changed the inputs of the closed form."""
    upsampler = adapter.upsampler
    assert isinstance(upsampler, RidgeUpsampler) and upsampler.budgeted
    size, device = (len(upsampler.low_channels), upsampler.dim), upsampler.linear.weight.device
    sums = LeastSquaresSums(*size, device), LeastSquaresSums(*size, device)

    def add(sample: Sample) -> None:
        for one, part in zip(sums, _parts(sample), strict=True):
            if part is not None:
                one.update(*view_rows(adapter, upsampler, part, places, tiles=False))

    passes.sum("views without tiles", sums, add)
    put_in(upsampler.linear_low, choose_ridges(*sums, upsampler.low_groups).weight)
    _fit_gains(adapter, upsampler, passes)


def put_in(layer: nn.Conv2d | nn.Linear, solution: Tensor) -> None:
    """solution [D, C], its last row the bias."""
    weight = solution.to(layer.weight)
    layer.weight.copy_(weight[:-1].T.reshape(layer.weight.shape))
    bias_of(layer).copy_(weight[-1])


def _solve(
    adapter: Adapter, upsampler: RidgeUpsampler, passes: Passes, before: Solution | None, places: Tensor | None
) -> Solution:
    size, device = (sum(upsampler.widths), upsampler.dim), upsampler.linear.weight.device
    train, held_back = sums = LeastSquaresSums(*size, device), LeastSquaresSums(*size, device)

    def add(sample: Sample) -> None:
        for one, part in zip(sums, _parts(sample), strict=True):
            if part is not None:
                rows = view_rows(adapter, upsampler, part, places)
                one.update(rows.inputs, rows.targets, _weights(rows, before))

    passes.sum("views" if before is None else "views reweighted", sums, add)
    if not train.weight or not held_back.weight:
        raise UserError(f"a closed form wants {HELD_BACK} training images or more: data.images")
    solution = choose_ridges(train, held_back, upsampler.groups)
    if upsampler.budgeted:  # the map of the inputs that need no tiles: from the same sums, with the same ridges
        ridges = [ridge for name, ridge in zip(upsampler.inputs, solution.ridges, strict=True) if name not in OF_TILES]
        small = train.merge(held_back).keep(upsampler.low_channels)
        put_in(upsampler.linear_low, solve(small, upsampler.low_groups, ridges))
    return solution


def _parts(sample: Sample) -> tuple[Sample | None, Sample | None]:
    """The images that a solution is of, and those that choose its ridges; None for no such image."""
    chosen = sample.positions % HELD_BACK == HELD_BACK - 1
    kept, held = (sample.take(index.nonzero()[:, 0]) if bool(index.any()) else None for index in (~chosen, chosen))
    return kept, held


def _fit_gains(adapter: Adapter, upsampler: RidgeUpsampler, passes: Passes) -> None:
    """Predict from the low-resolution pass what each tile changes: the mean squared difference of the maps there."""
    size, device = (upsampler.gain.in_features, 1), upsampler.linear.weight.device
    sums = LeastSquaresSums(*size, device), LeastSquaresSums(*size, device)

    def add(sample: Sample) -> None:
        low = adapter.denoise_normalised(sample.views.low)
        tiles = {n: adapter.denoise_normalised(sample.views.tiles[n], n) for n in adapter.tile_grids}
        low_phi = upsampler.low_phi(low, sample.guidance())
        without = resize_features(low, upsampler.factor) + upsampler.linear_low(low_phi)
        changed = (upsampler(low, tiles, sample.guidance()) - without).square().mean(dim=1, keepdim=True)
        gains = tile_images(changed, upsampler.n).flatten(1).mean(dim=1, keepdim=True)
        inputs = upsampler.gain_inputs(low_phi).flatten(0, 1)
        chosen = (sample.positions % HELD_BACK == HELD_BACK - 1).to(device).repeat_interleave(upsampler.n**2)
        for one, index in zip(sums, (~chosen, chosen), strict=True):
            one.update(inputs[index], gains[index], torch.ones(int(index.sum()), device=device))

    passes.sum("gains of tiles", sums, add, before=GAIN_IMAGES)
    put_in(upsampler.gain, choose_ridges(*sums, [slice(0, size[0])]).weight)


def view_rows(
    adapter: Adapter, upsampler: RidgeUpsampler, sample: Sample, places: Tensor | None = None, *, tiles: bool = True
) -> Rows:
    """The least-squares rows of all views of these images; places: as in `fit_linear`. Inputs without tiles, or all."""
    low = adapter.denoise_normalised(sample.views.low)
    base = resize_features(low, upsampler.factor)
    if tiles:
        maps = {n: adapter.denoise_normalised(sample.views.tiles[n], n) for n in adapter.tile_grids}
        phi = upsampler.phi(low, maps, sample.guidance())
    else:
        phi = upsampler.low_phi(low, sample.guidance())
    pool = AverageDownsampler(upsampler.factor)
    inputs, targets, weights = [], [], []
    for view in range(sample.targets.shape[1]):
        homographies = sample.homographies[:, view]
        target = adapter.denoise_normalised(sample.targets[:, view])
        inputs.append(_tokens(pool(warp(phi, homographies))))
        targets.append(_tokens(target - pool(warp(base, homographies))))
        inside = inside_share(homographies, (target.shape[-2], target.shape[-1]))
        if places is not None:
            inside = inside * pool(warp(places.expand(len(low), -1, -1, -1), homographies))
        weights.append(inside.flatten())
    return Rows(torch.cat(inputs), torch.cat(targets), torch.cat(weights))


def _weights(rows: Rows, before: Solution | None) -> Tensor:
    """As they are, or Huber's around a solution that there is already."""
    if before is None:
        return rows.weights
    weight = before.weight.to(rows.inputs)
    residual = (rows.targets - rows.inputs @ weight[:-1] - weight[-1]).square().mean(dim=1).sqrt()
    return rows.weights * (OUTLIER * before.error**0.5 / residual.clamp(min=1e-12)).clamp(max=1.0)


def _tokens(maps: Tensor) -> Tensor:
    """[B, C, g, g'] -> [B*g*g', C]."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
