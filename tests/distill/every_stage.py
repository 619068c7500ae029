"""Run by test_lamb.py in one or two processes: a recipe trained whole under each ZeRO stage in turn, or without.

every_stage.py RECIPE [field=value ...]      launched with --use_deepspeed: runs PROCESSES-zero1 to -zero3, else -plain
"""

import os
import sys

from distill.recipe import read
from distill.training.arms import Arm, run_arm
from distill.training.engine import start
from imagery.sources import open_sources


def main() -> None:
    recipe, *overrides = sys.argv[1:]
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
    stages = [f"zero{stage}" for stage in (1, 2, 3)] if deepspeed else ["plain"]
    processes = os.environ.get("WORLD_SIZE", "1")
    arms = {}
    for stage in stages:
        own = [f"engine.zero_stage={stage[-1]}"] if deepspeed else []
        arms[stage] = read(recipe, [*overrides, f"name={processes}-{stage}", *own])
    accelerators = start(arms)
    source = open_sources(next(iter(arms.values())).data.train)
    for stage, arm in arms.items():
        run_arm(Arm(stage, arm, accelerators[stage]), source, export_untrained=False)


if __name__ == "__main__":
    main()
