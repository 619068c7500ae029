"""Passes over the training images that sum something, saved now and then: an interrupted one goes on where it was."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from common.interruption import Stopped, heeding, signal_name
from common.progress import ProgressBar
from featsharp_adapter.model.least_squares import LeastSquaresSums
from featsharp_adapter.training.checkpoints import Checkpoints
from featsharp_adapter.training.samples import Sample, SampleStore, StreamedSamples
from featsharp_adapter.training.teacher_data import FILL_BATCH

#: Sums over the images that a solution is of, and over those that choose its ridges.
Sums = tuple[LeastSquaresSums, LeastSquaresSums]


@dataclass(frozen=True)
class Passes:
    """Over all images, or this process' share of them.

    checkpoints: from a pass' name to where its sums are saved; None: nowhere. every: batches of FILL_BATCH images.
    """

    samples: SampleStore | StreamedSamples
    checkpoints: Callable[[str], Checkpoints] | None = None
    every: int = 500

    def sum(self, name: str, sums: Sums, add: Callable[[Sample], None], *, before: int | None = None) -> Sums:
        """Have `add` put every image into `sums`, then merge those of all processes. The order is always the same.

        before: only images at earlier positions of the stream.
        """
        checkpoints = self.checkpoints(name) if self.checkpoints else None

        def load(state: dict[str, Any]) -> None:
            for one, kept in zip(sums, state["sums"], strict=True):
                one.load_state_dict(kept)

        def save(done: int) -> None:
            if checkpoints:
                checkpoints.save(done, {"sums": [one.state_dict() for one in sums]})

        start = checkpoints.restore(load) if checkpoints else 0
        total = self.samples.size if before is None else min(self.samples.size, before)
        if start < total:
            with ProgressBar(total, f"sums of the {name}", "image", start=start) as progress, heeding() as wishes:
                samples = self.samples.in_order(FILL_BATCH, start)
                wanted = takewhile(lambda sample: before is None or int(sample.positions[0]) < before, samples)
                for number, sample in enumerate(wanted, 1):
                    add(sample)
                    progress.update(len(sample.pixels))
                    if wishes.save or wishes.stop or number % self.every == 0:
                        save(progress.done)
                    wishes.save = False
                    if wishes.stop:
                        saved = ", which are saved" if checkpoints else ""
                        said = f"stopped by {signal_name(wishes.stop)} after {progress.done} images{saved}"
                        raise Stopped(wishes.stop, f"{said}; start again to go on")
                save(total)
        for one in sums:
            one.all_reduce()
        return sums
