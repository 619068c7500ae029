"""Train an adapter by multi-view consistency; resumed training is equal to uninterrupted training, bit for bit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.interruption import Stopped, heeding, signal_name
from common.keyed_random import mix
from common.progress import ProgressBar
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.model.conditional_bias import disturbance
from featsharp_adapter.model.multiview import border_weights, consistency_loss, inside_share, warp
from featsharp_adapter.model.side_metrics import (
    conditional_random_field,
    maximum_mean_discrepancy,
    total_variation,
)
from featsharp_adapter.model.spectral import attach_spectral, bake_spectral
from featsharp_adapter.model.uncertainty import UncertaintyNet
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.training.checkpoints import Checkpoints
from featsharp_adapter.training.optim import build_optimiser, clip_norm, set_rates
from featsharp_adapter.training.samples import Sample, Samples
from featsharp_adapter.training.watching import Watching

_STEP = 0x57E9


class Trainer:
    """Adapter, downsampler and optimiser; what one step does, and what has to be saved of them."""

    def __init__(self, adapter: Adapter, downsampler: nn.Module, recipe: AdapterRecipe) -> None:
        self.adapter, self.downsampler, self.recipe = adapter.train(), downsampler.train(), recipe
        adapter.bias.requires_grad_(recipe.bias)
        device = adapter.bias.buffer.device
        self.uncertainty = UncertaintyNet(adapter.bias.buffer.shape[1]).to(device) if recipe.uncertainty else None
        self.modules = [adapter, downsampler, *([] if self.uncertainty is None else [self.uncertainty])]
        scales = [scale for module in self.modules for scale in (attach_spectral(module) if recipe.spectral else [])]
        self.parameters = [p for module in self.modules for p in module.parameters() if p.requires_grad]
        if not self.parameters:
            raise UserError(f"nothing to train: {recipe.upsampler} without bias and with an average downsampler")
        self.optimiser = build_optimiser(adapter, downsampler, recipe.optim, self.uncertainty, scales)
        self.weights = place_weights(adapter, recipe.border_weight)

    def step(self, number: int, sample: Sample) -> dict[str, Tensor]:
        """One update; a function of (state, sample, seed, number) alone. Returns detached {loss, grad_norm}."""
        self.optimiser.zero_grad()
        total = torch.zeros((), device=sample.pixels.device)
        size = len(sample.pixels)
        with seeded(mix(self.recipe.seed, number, _STEP) >> 1):  # torch takes 63 bits
            picks = torch.randperm(sample.targets.shape[1])[: self.recipe.views.per_step].tolist()
            for part in sample.split(self.recipe.optim.micro_batch or size):
                loss = self.loss(part, picks) * (len(part.pixels) / size)
                loss.backward()
                total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.parameters, clip_norm(self.recipe.optim, number))
        set_rates(self.optimiser, self.recipe.optim, number)
        self.optimiser.step()
        return {"loss": total, "grad_norm": norm.detach()}

    def loss(self, sample: Sample, picks: Sequence[int]) -> Tensor:
        """Mean consistency loss over the picked views; a mean over images, so that parts of a batch add up."""
        sharp = self.adapter.forward_normalised(sample.views, sample.guidance())
        uncertainty = None if self.uncertainty is None else self.uncertainty(sharp)
        losses = [
            consistency_loss(
                sharp,
                # The target is denoised by the same bias, and the bias learns from both sides.
                self.adapter.denoise_normalised(sample.targets[:, pick]),
                sample.homographies[:, pick],
                self.downsampler,
                self.weights,
                uncertainty,
            )
            for pick in picks
        ]
        return torch.stack(losses).mean() + self.side_losses(sharp, sample) + self.penalty(sample, picks)

    def penalty(self, sample: Sample, picks: Sequence[int]) -> Tensor:
        """For a conditional bias that changes what views agree on; mean over the picked views."""
        node, conditional, total = self.recipe.conditional, self.adapter.conditional, sample.views.low.new_zeros(())
        if node is None or conditional is None or not node.penalty:
            return total
        low = self.adapter.denoise_fixed(sample.views.low)
        for pick in picks:
            homographies = sample.homographies[:, pick]
            seen = self.adapter.denoise_fixed(sample.targets[:, pick])
            mask = inside_share(homographies, (seen.shape[-2], seen.shape[-1]))
            total = total + disturbance(conditional(seen), seen, warp(low, homographies), mask)
        return node.penalty * total / len(picks)

    def side_losses(self, sharp: Tensor, sample: Sample) -> Tensor:
        """What the recipe weighs of TV, CRF and MMD, mean over images."""
        node, total = self.recipe.losses, torch.zeros((), device=sharp.device)
        if node.tv:
            total = total + node.tv * total_variation(sharp).mean()
        if node.crf:
            total = total + node.crf * conditional_random_field(sharp, sample.guidance()).mean()
        if node.mmd:
            low = self.adapter.denoise_normalised(sample.views.low)
            total = total + node.mmd * maximum_mean_discrepancy(sharp, low).mean()
        return total

    def finish(self) -> Adapter:
        """Training is over: plain weights, eval mode."""
        for module in self.modules:
            bake_spectral(module)
        return self.adapter.eval()

    def state_dict(self) -> dict[str, Any]:
        return {
            "adapter": self.adapter.state_dict(),
            "downsampler": self.downsampler.state_dict(),
            "uncertainty": None if self.uncertainty is None else self.uncertainty.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adapter.load_state_dict(state["adapter"])
        self.downsampler.load_state_dict(state["downsampler"])
        if self.uncertainty is not None:
            self.uncertainty.load_state_dict(state["uncertainty"])
        self.optimiser.load_state_dict(state["optimiser"])


def place_weights(adapter: Adapter, border_weight: float) -> Tensor | None:
    """[1, 1, k*g, k*g'], how much each place of the sharpened map counts in the loss; None: all the same."""
    if border_weight == 1 or not adapter.tile_grids:
        return None
    weights = border_weights(adapter.meta.teacher.native_grid, adapter.factor, border_weight)
    return weights.to(adapter.bias.buffer.device)


def train_adapter(
    trainer: Trainer, samples: Samples, *, checkpoints: Checkpoints | None = None, watching: Watching | None = None
) -> Adapter:
    """Run to the recipe's last step from wherever `checkpoints` stands; returns the adapter in eval mode."""
    recipe = trainer.recipe

    def load(state: dict[str, Any]) -> None:
        trainer.load_state_dict(state["trainer"])
        samples.load_state_dict(state["samples"])

    start = checkpoints.restore(load) if checkpoints else 0
    if watching:
        watching.log.truncate(start)
    title = f"{recipe.upsampler} {recipe.factor}x"
    bar = ProgressBar(recipe.optim.steps, title, "step", start=start)
    with bar, heeding() as wishes:
        for number in range(start, recipe.optim.steps):
            report = trainer.step(number, samples.next())
            done = number + 1
            if done % 10 == 0 or done == recipe.optim.steps:  # reading a value waits for the device
                values = {name: float(value) for name, value in report.items()}
                stop_if_diverged(values, done)
                if watching:
                    watching.line(done, values)
                bar.note(loss=f"{values['loss']:.4f}")
            if watching and recipe.log.pictures and (done % recipe.log.pictures == 0 or done == recipe.optim.steps):
                watching.picture(done, trainer.adapter)
            asked = bool(wishes.stop or wishes.save)
            if checkpoints and (asked or done % recipe.checkpoint.every == 0 or done == recipe.optim.steps):
                refuse_not_finite(trainer, done)
                checkpoints.save(done, {"trainer": trainer.state_dict(), "samples": samples.state_dict()})
            wishes.save = False
            bar.update()
            if wishes.stop:
                saved = f" after step {done}, which is saved" if checkpoints else ""
                raise Stopped(wishes.stop, f"stopped by {signal_name(wishes.stop)}{saved}; start again to go on")
    return trainer.finish()


def refuse_not_finite(trainer: Trainer, step: int) -> None:
    """UserError where a weight is NaN or infinite: no checkpoint may hold one."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in trainer.parameters):
        raise UserError(f"weights are NaN or infinite after step {step}, and are not saved; lower optim.lr")


def stop_if_diverged(values: dict[str, float], step: int) -> None:
    """UserError when the loss is no longer a number."""
    if not values["loss"] < float("inf"):
        raise UserError(f"the loss is {values['loss']} at step {step}; lower optim.lr or check the teacher's features")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's random numbers from `seed` inside, undisturbed outside."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
