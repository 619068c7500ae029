"""What more arms cost on one pass of the teachers, in one run, taking turns.

    python benchmarks/arms_together.py [RECIPE.yaml] [--arm featsharp] [--rounds 5] [--threads 1] [field=value ...]

Without a recipe: the quickstart with one arm for each of five upsamplers. Steps one arm alone and all arms of the
ablation side by side, by turns, and prints a step's time of each and their ratio: on images that lie in memory, on
images that are drawn, and over the whole training, in which a scene is drawn once and then comes from the cache.
Processor times, which other programs on the machine disturb less, are printed beside the wall times.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from loop_steps import SteppedArms, Times, alternating, below

from common.errors import UserError, add_debug_flag, guard, unknown
from distill.recipe import Recipe, read_arms
from distill.schedule import schedule
from distill.training.arm_groups import group
from distill.training.data import Streams
from distill.training.loop import Fetch
from imagery.sources import open_source

QUICKSTART = "recipes/quickstart.yaml"
#: One arm and all of them, on images that lie in memory and on images that are drawn.
GROUPS = ("one", "every", "one drawing", "every drawing")
UPSAMPLERS = ("bilinear", "tile", "s2", "featup", "featsharp")


def report(times: Mapping[str, Times], recipe: Recipe, scenes: int) -> str:
    """The times of a step in both measures, with and without drawing, and their ratios."""
    images = recipe.optim.steps * recipe.optim.batch_size
    fresh = min(1.0, scenes / images)  # share of the steps that draw
    lines = []
    for number, measure in enumerate(("wall", "processor")):
        one, every, one_drawing, every_drawing = (times[name].medians()[number] for name in GROUPS)
        whole = mixed(every, every_drawing, fresh) / mixed(one, one_drawing, fresh)
        lines.append(
            f"{measure:9}  one arm {one:.3f} s a step, {one_drawing:.3f} s drawing its images; all arms {every:.3f} s "
            f"and {every_drawing:.3f} s; ratio {every / one:.2f} without drawing, {every_drawing / one_drawing:.2f} "
            f"with drawing, {whole:.2f} over the recipe's {recipe.optim.steps} steps"
        )
    return "\n".join(lines)


def mixed(without: float, drawing: float, fresh: float) -> float:
    """Mean time of a step when a share `fresh` of them draws."""
    return fresh * drawing + (1 - fresh) * without


def main(argv: list[str]) -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", help="an ablation")
    parser.add_argument("overrides", nargs="*", metavar="field=value")
    parser.add_argument("--arm", default="featsharp", help="the one to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    add_debug_flag(parser)
    arguments = parser.parse_intermixed_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = arguments.recipe or QUICKSTART
        settings = [f"engine.threads={arguments.threads}", *arguments.overrides]
        if arguments.recipe is None:
            settings.append(f"arms={json.dumps({name: arm(name) for name in UPSAMPLERS})}")
        together = read_arms(path, [*settings, *below(folder, "together")])
        alone = read_arms(path, [*settings, *below(folder, "alone")])
        if arguments.arm not in alone:
            raise unknown("arm", arguments.arm, alone)
        if len(group(together.items())) > 1:
            raise UserError(f"the arms of {path} do not all share their teachers' pass")
        recipe = alone[arguments.arm]
        one = {arguments.arm: recipe}
        groups = [
            SteppedArms.of(one),
            SteppedArms.of(together),
            SteppedArms.of(one, drawn(recipe)),
            SteppedArms.of(together, drawn(recipe)),
        ]
        times = alternating(
            {name: stepped.step for name, stepped in zip(GROUPS, groups, strict=True)}, arguments.rounds
        )
    print(f"{arguments.arm} against {len(together)} arms, {arguments.threads} threads")
    print(report(times, schedule_of(recipe), len(open_source(recipe.data.train))))


def arm(upsampler: str) -> list[str]:
    """An arm that brings both CLIP-like and DINO-like teacher to the student's grid with this upsampler."""
    return [f"teachers.{teacher}.upsampler={upsampler}" for teacher in ("clip", "dino")]


def schedule_of(recipe: Recipe) -> Recipe:
    """The recipe, refused where its steps differ from stage to stage: one step's time would not stand for all."""
    if len(schedule(recipe)) > 1:
        raise UserError("the benchmark is for recipes without stages")
    return recipe


def drawn(recipe: Recipe) -> Fetch:
    """The recipe's images, every one drawn anew."""
    return Streams(recipe, open_source(recipe.data.train.replace(",cache=true", "")), 0, 1).take


if __name__ == "__main__":
    sys.exit(guard(main))
