"""What more arms cost on one pass of the teachers, in one run, taking turns.

    python benchmarks/arms_together.py [RECIPE.yaml] [--arm featsharp] [--rounds 5] [--threads 1] [field=value ...]

Without a recipe: the quickstart with one arm for each of five upsamplers. Steps one arm alone and all arms of the
ablation side by side, by turns and on the same images, and prints a step's time of each and their ratio: without
drawing the images, with drawing them (both pay it once), and over the whole training, in which a scene is drawn once
and then comes from the cache. With `--threads 2 engine.student_threads=1` the arms take their steps at the same time;
the one arm alone always uses all threads for its step. Processor times, which other programs on the machine disturb
less, are printed beside the wall times.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from loop_steps import Party, Times, alternating, below

from distill.groups import group
from distill.recipe import Recipe, read_arms
from distill.schedule import schedule
from distill.streams import Streams
from imagery.sources import open_source
from teachers.errors import UserError, add_debug_flag, guard, unknown

QUICKSTART = "recipes/quickstart.yaml"
UPSAMPLERS = ("bilinear", "tile", "s2", "featup", "featsharp")


def report(times: Mapping[str, Times], recipe: Recipe, scenes: int | None) -> str:
    """The times of a step in both measures, with and without drawing, and their ratios."""
    lines = []
    for number, measure in enumerate(("wall", "processor")):
        one, every, drawing = (times[name].medians()[number] for name in ("one", "every", "drawing"))
        images = recipe.optim.steps * recipe.optim.batch_size
        fresh = 1.0 if scenes is None else min(1.0, scenes / images)
        lines.append(
            f"{measure:9}  one arm {one:.3f} s, all arms {every:.3f} s a step, drawing a batch {drawing:.3f} s; ratio "
            f"{every / one:.2f} without drawing, {(every + drawing) / (one + drawing):.2f} with drawing, "
            f"{(every + fresh * drawing) / (one + fresh * drawing):.2f} over the recipe's {recipe.optim.steps} steps"
        )
    return "\n".join(lines)


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
        alone = read_arms(path, [*settings, *below(folder, "alone"), "engine.student_threads=null"])
        if arguments.arm not in alone:
            raise unknown("arm", arguments.arm, alone)
        if len(group(together.items())) > 1:
            raise UserError(f"the arms of {path} do not all share their teachers' pass")
        every, one = Party.of(together), Party.of({arguments.arm: alone[arguments.arm]})
        taken = every.stream.take(0)
        recipe = alone[arguments.arm]
        uncached = recipe.data.train.replace(",cache=true", "")  # every batch is drawn anew
        fresh = Streams(recipe, open_source(uncached), 0, 1)
        times = alternating(
            {"one": lambda: one.step(taken), "every": lambda: every.step(taken), "drawing": lambda: fresh.next()},
            arguments.rounds,
        )
    print(
        f"{arguments.arm} against {len(together)} arms, {arguments.threads} threads, {every.crew.hands} arms at a time"
    )
    print(report(times, schedule_of(recipe), scenes_in(recipe)))


def arm(upsampler: str) -> list[str]:
    """An arm that brings both CLIP-like and DINO-like teacher to the student's grid with this upsampler."""
    return [f"teachers.{teacher}.upsampler={upsampler}" for teacher in ("clip", "dino")]


def schedule_of(recipe: Recipe) -> Recipe:
    """The recipe, refused where its steps differ from stage to stage: one step's time would not stand for all."""
    if len(schedule(recipe)) > 1:
        raise UserError("the benchmark is for recipes without stages")
    return recipe


def scenes_in(recipe: Recipe) -> int | None:
    """How many different images the recipe's source has."""
    return len(open_source(recipe.data.train))


if __name__ == "__main__":
    sys.exit(guard(main))
