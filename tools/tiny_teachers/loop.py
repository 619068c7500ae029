"""The training loop of a tiny teacher: AdamW, warm-up and cosine, checkpoints, exact resume."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.atomic import replacing_file
from common.lr_schedule import half_cosine
from teachers.tiny.model import TinyNetwork
from tools.tiny_teachers.cache import SceneCache
from tools.tiny_teachers.crops import Crops, draw_windows, take_crops
from tools.tiny_teachers.objectives import Objective


@dataclass(frozen=True)
class Schedule:
    """`zoom` is the range of a crop's side over the scene's; `whole` the share of a batch that shows whole scenes."""

    steps: int
    batch: int
    zoom: tuple[float, float] = (0.5, 1.0)
    whole: float = 0.0
    rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 60
    seed: int = 0
    checkpoint_every: int = 200


def rate_at(schedule: Schedule, step: int) -> float:
    """Linear warm-up, then a half cosine to 1 % of the peak."""
    if step < schedule.warmup:
        return schedule.rate * (step + 1) / schedule.warmup
    return schedule.rate * (0.01 + 0.99 * half_cosine(step, schedule.warmup, schedule.steps))


def draw_crops(
    cache: SceneCache, schedule: Schedule, step: int, image_size: int, patch: int
) -> tuple[Crops, np.random.Generator]:
    """The batch of `step`, a function of the seed and the step alone, and the generator that goes on from there."""
    rng = np.random.default_rng([schedule.seed, step])
    rows = rng.choice(len(cache), schedule.batch, replace=len(cache) < schedule.batch)
    windows = draw_windows(schedule.batch, cache.size, schedule.zoom, rng)
    windows[: round(schedule.whole * schedule.batch)] = (0, 0, cache.size)
    return take_crops(cache, rows, windows, image_size, patch), rng


def optimiser_of(network: nn.Module, objective: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms) and scalars without weight decay."""
    parameters = [*network.parameters(), *objective.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": schedule.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.98))


def train(
    network: TinyNetwork, objective: Objective, cache: SceneCache, schedule: Schedule, checkpoint: Path | None = None
) -> dict[str, float]:
    """Train in place. Returns each weighted loss, mean over the last tenth of the steps, and wall and CPU seconds.

    With `checkpoint` the state is written there every so often and an earlier run of the same schedule is continued.
    """
    optimiser = optimiser_of(network, objective, schedule)
    state = _Progress(network, objective, optimiser, schedule, checkpoint)
    architecture = network.architecture
    network.train()
    bar = tqdm(range(state.step, schedule.steps), initial=state.step, total=schedule.steps, mininterval=2.0)
    for step in bar:
        crops, rng = draw_crops(cache, schedule, step, architecture.image_size, architecture.patch)
        losses = objective(network, crops, rng)
        report = take_step(network, objective, optimiser, losses, rate_at(schedule, step))
        if step >= schedule.steps - max(1, schedule.steps // 10):
            state.add(report)
        if step % 20 == 0:
            bar.set_postfix({name: f"{value:.3f}" for name, value in report.items()}, refresh=False)
        state.save(step + 1)
    network.eval()
    return state.finish()


def take_step(
    network: nn.Module, objective: nn.Module, optimiser: torch.optim.Optimizer, losses: dict[str, Tensor], rate: float
) -> dict[str, float]:
    """One optimiser step on the sum of the losses; returns them and the sum as `total`."""
    total = torch.stack(list(losses.values())).sum()
    if not bool(torch.isfinite(total)):
        raise FloatingPointError(f"a loss is not finite: { {name: float(loss) for name, loss in losses.items()} }")
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    nn.utils.clip_grad_norm_([*network.parameters(), *objective.parameters()], 1.0)
    optimiser.step()
    return {name: float(loss.detach()) for name, loss in losses.items()} | {"total": float(total.detach())}


class _Progress:
    """Step, running means and clocks, kept in the checkpoint."""

    def __init__(
        self,
        network: nn.Module,
        objective: nn.Module,
        optimiser: torch.optim.Optimizer,
        schedule: Schedule,
        path: Path | None,
    ) -> None:
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {}
        self.parts |= {"network": network, "objective": objective, "optimiser": optimiser}
        self.schedule, self.path = schedule, path
        self.step, self.spent = 0, (0.0, 0.0)
        self.sums: dict[str, tuple[float, int]] = {}
        if path is not None and path.exists():
            self._restore(torch.load(path, weights_only=True))
        self.started = (time.monotonic(), time.process_time())

    def _restore(self, saved: dict) -> None:
        if saved["schedule"] != {**asdict(self.schedule), "zoom": list(self.schedule.zoom)}:
            return  # another schedule's checkpoint: start over
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        self.step, self.sums, self.spent = saved["step"], saved["sums"], tuple(saved["spent"])

    def add(self, report: dict[str, float]) -> None:
        for name, value in report.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)

    def clocks(self) -> tuple[float, float]:
        """Wall and CPU seconds spent, earlier runs included."""
        wall, cpu = time.monotonic() - self.started[0], time.process_time() - self.started[1]
        return self.spent[0] + wall, self.spent[1] + cpu

    def save(self, step: int) -> None:
        if self.path is None or step % self.schedule.checkpoint_every:
            return
        saved: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        schedule = {**asdict(self.schedule), "zoom": list(self.schedule.zoom)}
        saved |= {"schedule": schedule, "step": step, "sums": self.sums, "spent": list(self.clocks())}
        with replacing_file(self.path) as temporary, temporary.open("wb") as file:  # by name, torch wants a suffix
            torch.save(saved, file)

    def finish(self) -> dict[str, float]:
        wall, cpu = self.clocks()
        means = {name: total / count for name, (total, count) in self.sums.items()}
        return means | {"wall_seconds": wall, "cpu_seconds": cpu}
