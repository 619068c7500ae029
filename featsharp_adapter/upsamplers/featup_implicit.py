"""FeatUp's implicit upsampler (arXiv 2403.10516, section 3.2): one small network fitted to one image.

Slow; a reference. The network says the features of every pixel from its place and colour. It is fitted until what it
says explains what the teacher saw of many views of the image. Published code: mhamilton723/FeatUp, MIT; this is written
from the paper. Three changes suit hundreds of steps where the paper takes thousands; together they lowered the error on
known fine features: no dropout, no frequencies above what the fine grid can show, and the mean of a cell, the paper's
simple downsampler without its learned blur, in place of the attention.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from featsharp_adapter.model.downsampler import AverageDownsampler
from featsharp_adapter.model.multiview import inside_share, warp
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.parts import ChannelNorm, FourierFeatures, coordinates


@dataclass(frozen=True)
class ImplicitSettings:
    """How long and how finely one image is fitted; published: 1200 steps or more, 10 of 3000 views a step."""

    steps: int = 300
    views_per_step: int = 10
    components: int = 128  #: principal components of the image's features that are fitted
    hidden: int = 128  #: width of the network
    frequencies: int = 30
    lr: float = 5e-3  #: of NAdam
    tv_weight: float = 0.05  #: of the total variation of the features' magnitude
    seed: int = 0


class ImplicitMap(nn.Module):
    """pixels [1, 3, H, W] in [0, 1] -> features [1, D, H, W], every pixel by itself."""

    def __init__(self, width: int, hidden: int, frequencies: int, size: tuple[int, int]) -> None:
        """size: H x W, whose finest wave, two cells long, is the highest of `frequencies`."""
        super().__init__()
        inputs = 10 * frequencies + 3
        self.features = FourierFeatures(5, frequencies, high=math.log(math.pi / 2 * max(size)))
        self.layers = nn.Sequential(
            ChannelNorm(inputs),
            nn.Conv2d(inputs, hidden, 1),
            nn.ReLU(),
            ChannelNorm(hidden),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, width, 1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        colours = 2 * pixels - 1
        places = coordinates(*pixels.shape[-2:], like=pixels)[None]
        return self.layers(torch.cat([self.features(torch.cat([places, colours], dim=1)), colours], dim=1))


class ImplicitFit(nn.Module):
    """All that is fitted to one image: the map, and how much each target is to be trusted."""

    def __init__(self, width: int, factor: int, size: tuple[int, int], settings: ImplicitSettings) -> None:
        super().__init__()
        self.map = ImplicitMap(width, settings.hidden, settings.frequencies, size)
        self.downsampler = AverageDownsampler(factor)
        self.log_scale = nn.Conv2d(width, 1, 1)
        nn.init.normal_(self.log_scale.weight, std=0.1 / width**0.5)

    def loss(self, pixels: Tensor, targets: Tensor, homographies: Tensor, tv_weight: float) -> Tensor:
        """targets [V, D, g, g'] through homographies [V, 3, 3]: eq. 2 of the paper, a Gaussian likelihood, and TV."""
        sharp = self.map(pixels)
        predicted = self.downsampler(warp(sharp.expand(len(targets), -1, -1, -1), homographies))
        log_scale = self.log_scale(targets).clamp(min=-9.0)
        likelihood = (predicted - targets).square() / (2 * (2 * log_scale).exp()) + log_scale
        mask = inside_share(homographies, (targets.shape[-2], targets.shape[-1]))
        magnitude = sharp.square().sum(dim=1, keepdim=True).add(1e-12).sqrt()
        variation = sum(magnitude.diff(dim=side).square().mean() for side in (2, 3))
        return (likelihood * mask).mean() + tv_weight * variation


def fit_implicit(
    guidance: Tensor, targets: Tensor, homographies: Tensor, factor: int, settings: ImplicitSettings
) -> tuple[Tensor, list[float]]:
    """guidance [3, H, W], targets [V, C, g, g'] of views through homographies [V, 3, 3] -> ([C, k*g, k*g'], losses).

    A function of its arguments alone: random numbers come from the settings' seed. No gradients flow through it.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        guidance, targets, homographies = (t.detach().clone() for t in (guidance, targets, homographies))
        mean, basis = principal_components(targets, settings.components)
        reduced = torch.einsum("vchw,cd->vdhw", targets - mean, basis)
        size = (targets.shape[-2] * factor, targets.shape[-1] * factor)
        pixels = F.adaptive_avg_pool2d(guidance, size)[None]
        fit = ImplicitFit(basis.shape[1], factor, size, settings).to(targets)
        optimiser = torch.optim.NAdam(fit.parameters(), lr=settings.lr)
        losses = []
        for _ in range(settings.steps):
            picks = torch.randperm(len(reduced))[: settings.views_per_step].to(reduced.device)
            loss = fit.loss(pixels, reduced[picks], homographies[picks], settings.tv_weight)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        sharp = fit.eval().map(pixels).detach()[0]
    return torch.einsum("dhw,cd->chw", sharp, basis) + mean, losses


def principal_components(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[V, C, g, g'] -> mean [C, 1, 1], and the `count` (at most C) directions of most variance as columns [C, D]."""
    tokens = maps.movedim(1, -1).flatten(0, 2)
    mean = tokens.mean(dim=0)
    centred = (tokens - mean).double()
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)
    return mean[:, None, None], directions[:, :count].to(maps.dtype)


class ImplicitUpsampler(Upsampler):
    """Fits every image anew, to the views an upsampler has: the whole, and the tiles of `grids` as zoomed views.

    Nothing is learned between images and no gradient passes, so that only a bias and a learned downsampler can be
    trained around it. `fit_implicit` takes any other views.
    """

    def __init__(
        self,
        *,
        dim: int,
        factor: int,
        grid: tuple[int, int],
        grids: Sequence[int] | None = None,
        steps: int = ImplicitSettings.steps,
        components: int = ImplicitSettings.components,
        seed: int = ImplicitSettings.seed,
    ) -> None:
        chosen = ((factor,) if factor > 1 else ()) if grids is None else tuple(grids)
        if steps < 1 or components < 1 or any(n < 2 for n in chosen):
            raise UserError("featup_implicit: steps and components are at least 1, tile grids at least 2")
        super().__init__(dim=dim, factor=factor, grid=grid, tile_grids=chosen)
        self.settings = ImplicitSettings(steps=steps, components=components, seed=seed)

    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        views = [low[:, None], *(cut_tiles(tiles[n], n) for n in self.tile_grids)]
        targets = torch.cat(views, dim=1)
        whole = torch.eye(3, device=low.device, dtype=low.dtype)[None]
        homographies = torch.cat([whole, *(tile_homographies(n, like=low) for n in self.tile_grids)])
        fits = [
            fit_implicit(image, views, homographies, self.factor, self.settings)[0]
            for image, views in zip(guidance, targets, strict=True)
        ]
        return torch.stack(fits)


def cut_tiles(tiles: Tensor, n: int) -> Tensor:
    """[B, C, n*g, n*g'] -> [B, n*n, C, g, g'], row by row."""
    cut = tiles.unflatten(2, (n, -1)).unflatten(4, (n, -1))  # [B, C, n, g, n, g']
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def tile_homographies(n: int, like: Tensor) -> Tensor:
    """[n*n, 3, 3]: where in the image the tiles lie, row by row; see `multiview` for the coordinates."""
    centres = (2 * torch.arange(n, device=like.device, dtype=like.dtype) + 1) / n - 1
    matrices = torch.zeros(n, n, 3, 3, device=like.device, dtype=like.dtype)
    matrices[..., 0, 0] = matrices[..., 1, 1] = 1 / n
    matrices[..., 0, 2], matrices[..., 1, 2] = centres[None, :], centres[:, None]
    matrices[..., 2, 2] = 1
    return matrices.flatten(0, 1)
