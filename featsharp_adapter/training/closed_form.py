"""Fits the linear part of `ridge` and `ridge_block` in one pass over the training views; no gradient steps.

For a view with homography h, target t and average downsampler D: D(warp(low + W phi + b)) - t is linear in (W, b), so
the consistency loss is a least-squares problem with inputs D(warp(phi)), targets t - D(warp(low)) and, as weights, the
share of each cell that is inside the image (times the weight of borders between tiles). Views of every fifth image
choose the ridges; then all are solved together.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.model.downsampler import AverageDownsampler
from featsharp_adapter.model.layers import bias_of
from featsharp_adapter.model.least_squares import LeastSquaresSums, Solution, choose_ridges, solve
from featsharp_adapter.model.multiview import inside_share, warp
from featsharp_adapter.model.views import tile_images
from featsharp_adapter.training.samples import Sample
from featsharp_adapter.upsamplers.ridge import OF_TILES, RidgeUpsampler
from featsharp_adapter.upsamplers.simple import resize_features

#: One image in so many chooses the ridges.
HELD_BACK = 5
#: A cell whose residual is more than so many root mean squares counts less in the second solve (Huber's weights).
OUTLIER = 1.5


@dataclass(frozen=True)
class Rows:
    """What the views of some images say: inputs [N, D], targets [N, C], weights [N], all views after each other."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor


@torch.no_grad()
def fit_linear(
    adapter: Adapter,
    samples: Callable[[], Iterable[Sample]],
    *,
    reweight: bool = False,
    places: Tensor | None = None,
) -> Solution:
    """Solve the adapter's linear map and put it in place. samples(): every training image once.

    reweight: solve a second time, with cells that no linear map explains (outlier tokens) counting less.
    places: [1, 1, k*g, k*g'], how much each place of the sharpened map counts; None: all the same.
    """
    upsampler = adapter.upsampler
    if not isinstance(upsampler, RidgeUpsampler):
        raise UserError(f"{adapter.meta.upsampler} has no closed form; ridge and ridge_block have")
    adapter.eval()
    solution = _solve(adapter, upsampler, samples(), None, places)
    if reweight:
        solution = _solve(adapter, upsampler, samples(), solution, places)
    weight = solution.weight.to(upsampler.linear.weight)
    upsampler.linear.weight.copy_(weight[:-1].T[:, :, None, None])
    bias_of(upsampler.linear).copy_(weight[-1])
    if upsampler.budgeted:
        _fit_gains(adapter, upsampler, samples())
    return solution


def _solve(
    adapter: Adapter,
    upsampler: RidgeUpsampler,
    samples: Iterable[Sample],
    before: Solution | None,
    places: Tensor | None,
) -> Solution:
    device = upsampler.linear.weight.device
    size = (sum(upsampler.widths), upsampler.dim)
    train, held_back = (LeastSquaresSums(*size, device) for _ in range(2))
    for sample in samples:
        chosen = sample.positions % HELD_BACK == HELD_BACK - 1
        for sums, index in ((train, ~chosen), (held_back, chosen)):
            if bool(index.any()):
                rows = view_rows(adapter, upsampler, sample.take(index.nonzero()[:, 0]), places)
                sums.update(rows.inputs, rows.targets, _weights(rows, before))
    train.all_reduce()
    held_back.all_reduce()
    if not train.weight or not held_back.weight:
        raise UserError(f"a closed form wants {HELD_BACK} training images or more: data.images")
    solution = choose_ridges(train, held_back, upsampler.groups)
    if upsampler.budgeted:
        _solve_low(upsampler, train.merge(held_back), solution.ridges)
    return solution


def _solve_low(upsampler: RidgeUpsampler, sums: LeastSquaresSums, ridges: tuple[float, ...]) -> None:
    """The map of the inputs that need no tiles, from the same sums and with the ridges those inputs have."""
    kept = [(name, ridge) for name, ridge in zip(upsampler.inputs, ridges, strict=True) if name not in OF_TILES]
    widths = [upsampler.widths[upsampler.inputs.index(name)] for name, _ in kept]
    ends = list(accumulate(widths))
    groups = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
    found = solve(sums.keep(upsampler.low_channels), groups, [ridge for _, ridge in kept])
    weight = found.to(upsampler.linear_low.weight)
    upsampler.linear_low.weight.copy_(weight[:-1].T[:, :, None, None])
    bias_of(upsampler.linear_low).copy_(weight[-1])


def _fit_gains(adapter: Adapter, upsampler: RidgeUpsampler, samples: Iterable[Sample]) -> None:
    """Predict from the low-resolution pass what each tile changes: the mean squared difference of the maps there."""
    device, size = upsampler.linear.weight.device, (upsampler.gain.in_features, 1)
    train, held_back = (LeastSquaresSums(*size, device) for _ in range(2))
    for sample in samples:
        low = adapter.denoise_normalised(sample.views.low)
        tiles = {n: adapter.denoise_normalised(sample.views.tiles[n], n) for n in adapter.tile_grids}
        image = sample.guidance()
        changed = (upsampler(low, tiles, image) - upsampler.upsample_low(low, image)).square().mean(dim=1, keepdim=True)
        gains = tile_images(changed, upsampler.n).flatten(1).mean(dim=1, keepdim=True)
        inputs = upsampler.gain_inputs(upsampler.low_phi(low, image)).flatten(0, 1)
        chosen = (sample.positions % HELD_BACK == HELD_BACK - 1).to(device).repeat_interleave(upsampler.n**2)
        for sums, index in ((train, ~chosen), (held_back, chosen)):
            sums.update(inputs[index], gains[index], torch.ones(int(index.sum()), device=device))
    weight = choose_ridges(train.all_reduce(), held_back.all_reduce(), [slice(0, size[0])]).weight
    upsampler.gain.weight.copy_(weight[:-1].T)
    upsampler.gain.bias.copy_(weight[-1])


def view_rows(adapter: Adapter, upsampler: RidgeUpsampler, sample: Sample, places: Tensor | None = None) -> Rows:
    """The least-squares rows of all views of these images; places: as in `fit_linear`."""
    low = adapter.denoise_normalised(sample.views.low)
    tiles = {n: adapter.denoise_normalised(sample.views.tiles[n], n) for n in adapter.tile_grids}
    phi, base = upsampler.phi(low, tiles, sample.guidance()), resize_features(low, upsampler.factor)
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
