"""A step of the quickstart against the bare arithmetic in it, in one run, taking turns.

    python benchmarks/step_overhead.py [RECIPE.yaml] [--rounds 8] [--threads 1] [field=value ...]

The step is the loop's own: from uint8 images to the written line of the log. Drawing the images is not in it; they are
drawn once and lie in memory, as from a cache. The bare side has, on the same machine and weights: every teacher's
forward passes on images that are already resized and cut, the adapters, the student's forward and backward pass with
the plainest loss, and the optimiser's update. So resizing, tiling, stitching, PHI-S, the recipe's losses, clipping, the
check for NaN, log and clocks are all overhead. The ratio of wall times is the result; that of processor times, which
other programs on the machine disturb less, is printed beside it.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from loop_steps import SteppedArms, alternating, below
from torch import Tensor

from common.errors import add_debug_flag, guard
from distill.recipe import Recipe, read
from distill.student.model import Student
from distill.targets.targets import Targets
from distill.training.optim import build_optimiser
from featsharp_adapter.model.views import Views, stitch, tile_images
from imagery.stream import to_float
from teachers.contracts import resize_images


def bare_step(recipe: Recipe, images: Tensor) -> Callable[[], None]:
    """The arithmetic of a step on images [B, 3, H, W], without anything around it."""
    targets = Targets(recipe, images.device)
    student = Student(recipe.student, recipe.data.size, targets.heads()).train()
    optimiser = build_optimiser(student, recipe.optim)
    inputs = {}
    for name, target in targets.teachers.items():
        height, width = target.spec.native_size
        tiles = {
            n: tile_images(resize_images(images, (n * height, n * width)), n)
            for n in target.target_upsampler.tile_grids
        }
        inputs[name] = (resize_images(images, (height, width)), tiles)

    @torch.no_grad()
    def teach() -> dict[str, tuple[Tensor | None, Tensor]]:
        found = {}
        for name, target in targets.teachers.items():
            low, tiles = inputs[name]
            seen = target.backbone(low)
            views = Views(
                seen.summary, seen.spatial, {n: stitch(target.backbone(t).spatial, n) for n, t in tiles.items()}
            )
            found[name] = (views.summary, target.target_upsampler(views, images))
        return found

    def step() -> None:
        answers = student(images)
        losses = [
            F.mse_loss(ours, theirs)
            for name, pair in teach().items()
            for ours, theirs in zip(answers[name], pair, strict=True)
            if ours is not None
        ]
        torch.stack(losses).sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def main(argv: list[str]) -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="recipes/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="field=value")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    add_debug_flag(parser)
    arguments = parser.parse_intermixed_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        settings = [f"engine.threads={arguments.threads}", *below(Path(scratch), "step"), *arguments.overrides]
        recipe = read(arguments.recipe, settings)
        stepped = SteppedArms.of({recipe.name: recipe})
        (_, images), *_ = stepped.loop.fetch(0)
        bare = bare_step(recipe, to_float(images))
        times = alternating({"step": stepped.step, "bare": bare}, arguments.rounds)
    (wall, cores), (bare_wall, bare_cores) = times["step"].medians(), times["bare"].medians()
    print(f"step {wall:.3f} s, bare {bare_wall:.3f} s; processor {cores:.3f} s and {bare_cores:.3f} s")
    print(f"ratio {wall / bare_wall:.3f} in wall time, {cores / bare_cores:.3f} in processor time")


if __name__ == "__main__":
    sys.exit(guard(main))
