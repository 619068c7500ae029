"""What more arms cost on one pass of the teachers, in one run.

    python benchmarks/arms_together.py [RECIPE.yaml] [--arm featsharp] [--steps 12] [--threads 1] [field=value ...]

Trains one arm alone, then all arms of the ablation side by side, without probing, and prints the wall time of a step
of each and their ratio. The time of a step is the median over the steps after the first, from the arms' logs.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from distill.arm import Arm, run_together
from distill.groups import group
from distill.log import read_log
from distill.recipe import Recipe, read_arms
from distill.runtime import start
from imagery.sources import open_sources
from teachers.errors import add_debug_flag, guard, unknown

RECIPE = "recipes/ablations/quickstart_upsamplers.yaml"


def seconds_of_a_step(recipes: Mapping[str, Recipe]) -> float:
    """Train these arms together; median seconds of a step, summed over the arms (data counts once)."""
    accelerators = start(recipes)
    arms = [Arm(name, recipe, accelerators[name]) for name, recipe in recipes.items()]
    for members in group((arm, arm.recipe) for arm in arms):
        run_together(members, open_sources(members[0].recipe.data.train), untrained=None)
    logs = [read_log(recipe.folder / "log.jsonl")[1:] for recipe in recipes.values()]
    steps = [
        lines[0]["time"]["data"] + sum(line["time"]["teachers"] + line["time"]["student"] for line in lines)
        for lines in zip(*logs, strict=True)
    ]
    return statistics.median(steps)


def main(argv: list[str]) -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default=RECIPE, help="an ablation")
    parser.add_argument("overrides", nargs="*", metavar="field=value")
    parser.add_argument("--arm", default="featsharp", help="the one to compare with")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    add_debug_flag(parser)
    arguments = parser.parse_intermixed_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        short = [f"optim.steps={arguments.steps}", "normaliser.batches=1", "log.every=1", "optim.warmup_steps=1"]
        short += [f"engine.threads={arguments.threads}", f"checkpoint.every={arguments.steps}"]
        settings = [*short, *arguments.overrides]
        alone = read_arms(arguments.recipe, [*settings, f"out={Path(scratch) / 'alone'}"])
        if arguments.arm not in alone:
            raise unknown("arm", arguments.arm, alone)
        one = seconds_of_a_step({arguments.arm: alone[arguments.arm]})
        every = seconds_of_a_step(read_arms(arguments.recipe, [*settings, f"out={Path(scratch) / 'together'}"]))
    print(f"one arm ({arguments.arm}): {one:.3f} s a step; {len(alone)} arms together: {every:.3f} s a step")
    print(f"ratio {every / one:.2f}")


if __name__ == "__main__":
    sys.exit(guard(main))
