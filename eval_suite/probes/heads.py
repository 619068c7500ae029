"""Small heads on frozen features, and the one loop that trains them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.lr_schedule import half_cosine
from eval_suite.maps import channel_moments, resize_map


class Standardise(nn.Module):
    """[B, C, h, w] -> zero mean, unit variance per channel, with the statistics of a training set.

    This is the batch normalisation at the front of the usual linear head with population statistics in place of
    running ones: the same function, and no noise from the order of batches. A channel that hardly varies in the
    training set is left out (zero): divided by what rounding left of it, one test image where it does drowns the rest.
    """

    mean: Tensor
    scale: Tensor
    DEAD = 1e-4  #: below this share of the channels' mean standard deviation

    def __init__(self, spatial: Tensor) -> None:
        super().__init__()
        mean, deviation = channel_moments(spatial)
        self.register_buffer("mean", mean)
        dead = deviation < self.DEAD * deviation.mean()
        self.register_buffer("scale", deviation.clamp(min=1e-6).masked_fill(dead, float("inf")))

    def forward(self, spatial: Tensor) -> Tensor:
        return (spatial - self.mean) / self.scale


class LinearHead(nn.Module):
    """Normalisation and one 1x1 convolution, logits bilinearly resized (RADIO's ADE20K head): -> [B, K, *size]."""

    def __init__(self, spatial: Tensor, outputs: int) -> None:
        super().__init__()
        self.normalise = Standardise(spatial)
        self.classify = nn.Conv2d(spatial.shape[1], outputs, 1)

    def forward(self, spatial: Tensor, size: tuple[int, int]) -> Tensor:
        return resize_map(self.classify(self.normalise(spatial)), size)


class ConvHead(nn.Module):
    """Multi-task convolution probe: 3x3 conv, BN, GELU, then a 1x1 convolution for each task: -> {task: [B, K, *size]}.

    After the `conv` head of the PASCAL-Context / NYUDv2 multi-task harness; one trunk serves all the tasks.
    """

    def __init__(self, spatial: Tensor, hidden: int, outputs: dict[str, int]) -> None:
        super().__init__()
        self.normalise = Standardise(spatial)
        self.trunk = nn.Sequential(
            nn.Conv2d(spatial.shape[1], hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.GELU()
        )
        self.tasks = nn.ModuleDict({task: nn.Conv2d(hidden, width, 1) for task, width in outputs.items()})

    def forward(self, spatial: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        shared = self.trunk(self.normalise(spatial))
        return {task: resize_map(head(shared), size) for task, head in self.tasks.items()}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights drawn in here depend on the seed alone, and the global random state is as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """`steps` batches of row numbers from shuffled passes over `count` rows; every batch is full."""
    size = min(size, count)
    queue = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(queue) < size:
            queue = torch.cat([queue, torch.randperm(count, generator=generator)])
        yield queue[:size]
        queue = queue[size:]


def train(
    head: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    rows: Iterator[Tensor],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    warmup: float = 0.1,
    clip: float = 10.0,
) -> None:
    """AdamW with linear warm-up and a cosine to zero, so that the result does not hang on the last few batches.

    `clip`: largest norm of the gradient.
    """
    optimiser = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
    first = max(1, int(warmup * steps))
    head.train()
    for step, batch in enumerate(rows):
        ramp = (step + 1) / first if step < first else half_cosine(step, first, steps)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * ramp
        optimiser.zero_grad(set_to_none=True)
        loss_of(batch).backward()
        nn.utils.clip_grad_norm_(head.parameters(), clip)
        optimiser.step()
    head.eval()


def shrink_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Class maps [B, h, w] -> [B, *size] by picking pixels; a map that is already that small stays."""
    if tuple(labels.shape[-2:]) == size:
        return labels
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(labels.dtype)
