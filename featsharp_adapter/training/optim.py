"""NAdam with the published parameter groups and schedule (FeatSharp, arXiv 2502.16025, table 11)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from common.lr_schedule import warm_up_cosine
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.recipe import OptimNode

#: Of the spectral scales: their share of the rate, and their decay (L2, NAdam's own), as published code has them.
SCALE_RATE, SCALE_DECAY = 0.1, 0.01


def build_optimiser(
    adapter: Adapter,
    downsampler: nn.Module,
    optim: OptimNode,
    uncertainty: nn.Module | None = None,
    scales: Sequence[nn.Parameter] = (),
) -> torch.optim.NAdam:
    """Groups of the image-guided kernel, what is solved already, the uncertainty network, spectral `scales`, the rest.

    Every parameter is in exactly one.
    """
    guide = [parameter for parameter in adapter.upsampler.guide_parameters() if parameter.requires_grad]
    # The kernel's few parameters (which pixels are alike, and how far to look) have gradients and scales of their own.
    uncertain = [] if uncertainty is None else [p for p in uncertainty.parameters() if not _among(p, scales)]
    fitted = adapter.upsampler.fitted_parameters()
    taken = {id(parameter) for parameter in (*guide, *fitted, *uncertain, *scales)}
    everything = [*adapter.parameters(), *downsampler.parameters()]
    rest = [parameter for parameter in everything if parameter.requires_grad and id(parameter) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": rest, "peak": optim.lr},
        {"params": guide, "peak": optim.lr_guide},
        {"params": [p for p in fitted if p.requires_grad], "peak": optim.lr_fitted},
        {"params": uncertain, "peak": optim.lr_uncertainty},
        {"params": list(scales), "peak": SCALE_RATE * optim.lr, "weight_decay": SCALE_DECAY},
    ]
    return torch.optim.NAdam([group for group in groups if group["params"]], lr=optim.lr)


def _among(parameter: nn.Parameter, others: Sequence[nn.Parameter]) -> bool:
    return any(parameter is other for other in others)


def set_rates(optimiser: torch.optim.Optimizer, optim: OptimNode, step: int) -> None:
    """The rates of step `step` (from 0)."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * rate_scale(optim, step)


def rate_scale(optim: OptimNode, step: int) -> float:
    """0.1 to 1 over the warm-up, then a half cosine to 0."""
    return warm_up_cosine(step, optim.steps, min(optim.warmup, optim.steps), start=0.1)


def clip_norm(optim: OptimNode, step: int) -> float:
    """Largest gradient norm at step `step`."""
    return optim.first_clip if step < optim.first_clip_steps else optim.clip
