"""Distil one student, probe it, and compare it with what it was before its first update, and with its teachers.

accelerate launch distill/run.py RECIPE.yaml [field=value ...]      an interrupted run goes on where it stopped
accelerate launch distill/run.py RECIPE.yaml --plan                 what it will cost, counted without training
python distill/run.py RECIPE.yaml --smoke                           every part once at its true size, beside the plan
accelerate launch distill/run.py RECIPE.yaml --prepare              train the missing adapters, then go on
python distill/run.py --replay RUN/nan/step-...                     say where an update became NaN or infinite
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError, add_debug_flag, guard
from common.run_lock import add_take_over_flag
from distill.planning.gpus import GPUS, find_gpu
from distill.recipe import Recipe, read
from teachers.imports import many_imports

if TYPE_CHECKING:  # a plan is made in seconds, half of which these imports would take
    from distill.training.arms import Arm


def main(argv: list[str]) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="e.g. teachers.*.upsampler=tile")
    parser.add_argument("--plan", action="store_true", help="count parameters, FLOPs, memory and GPU-hours, and stop")
    parser.add_argument("--gpu", default="h100", metavar="NAME", help=f"for the plan: {', '.join(GPUS)}")
    parser.add_argument("--gpus", type=int, metavar="N", help="for the plan; without it, the processes launched")
    parser.add_argument("--share", type=float, default=0.4, help="of a GPU's peak FLOP/s that is reached, for the plan")
    parser.add_argument(
        "--prepare", action="store_true", help="train the adapters that are missing, then go on with the run"
    )
    parser.add_argument("--smoke", action="store_true", help="run every part once at its true size, beside the plan")
    parser.add_argument("--part", action="append", default=[], help="for the smoke: a teacher's name or student only")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="say where a NaN began, from what the run kept")
    parser.add_argument("--elastic", action="store_true", help="go on though the number of processes has changed")
    add_take_over_flag(parser)
    add_debug_flag(parser)
    arguments = parser.parse_intermixed_args(argv)
    if arguments.replay is not None:
        print_replay(arguments.replay, [arguments.recipe, *arguments.overrides] if arguments.recipe else [])
        return
    if arguments.recipe is None:
        raise UserError("no recipe; give a YAML file, e.g. distill/run.py recipes/quickstart.yaml")
    recipe = read(arguments.recipe, arguments.overrides)
    if arguments.plan:
        print_plan(recipe, arguments.gpu, arguments.gpus, arguments.share)
    elif arguments.smoke:
        print_smoke(recipe, arguments.part)
    else:
        run(recipe, prepare=arguments.prepare, elastic=arguments.elastic, take_over=arguments.take_over)


def print_replay(folder: Path, overrides: list[str]) -> None:
    """On a GPU where there is one."""
    import torch

    from distill.training.nan_replay import replay

    print(replay(folder, torch.device("cuda" if torch.cuda.is_available() else "cpu"), overrides))


def print_plan(recipe: Recipe, gpu: str, gpus: int | None, share: float) -> None:
    """By one process, whatever was launched."""
    with many_imports():
        from distill.planning.plan import Plan
        from distill.planning.plan_text import plan_text
    named, world = find_gpu(gpu), int(os.environ.get("WORLD_SIZE", "1"))
    if int(os.environ.get("RANK", "0")) == 0:
        print(plan_text(Plan(recipe, world if gpus is None else gpus), named, share))


def print_smoke(recipe: Recipe, parts: list[str]) -> None:
    """By one process."""
    with many_imports():
        from distill.smoke.smoke import smoke
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--smoke is for one process")
    print(smoke(recipe, parts))


def run(recipe: Recipe, *, prepare: bool, elastic: bool, take_over: bool) -> None:
    """Train, or go on training, then probe."""
    with many_imports():
        from distill.preflight import find_missing, make, open_once, refuse
        from distill.training.arms import Arm, run_arm
        from distill.training.engine import start
        from distill.training.processes import alone_in, leave_together, refuse_strays

    refuse_strays()
    missing = find_missing([recipe])
    refuse(make(missing) if prepare else missing)
    arm = Arm(recipe.name, recipe, start({recipe.name: recipe})[recipe.name], elastic)
    with alone_in(recipe.folder, arm.accelerator, take_over=take_over):
        run_arm(arm, open_once(recipe.data.train), export_untrained=wants_untrained(recipe))
        main = leave_together(arm.accelerator)
        if recipe.eval is not None and main:
            probe_and_report(recipe, arm)
        if main:
            print(f"student: {recipe.folder / 'student'}\nlog: {recipe.folder / 'log.jsonl'}")


def wants_untrained(recipe: Recipe) -> bool:
    """Whether the student before its first update is a row; a single run has no other baseline."""
    return recipe.eval is not None and recipe.eval.untrained is not False


def probe_and_report(recipe: Recipe, arm: "Arm") -> None:
    """Probe, print the table against the student before its first update, write the report."""
    with many_imports():
        from distill.evaluation.probing import probe_all
        from distill.evaluation.report import publish

    arms = {recipe.name: [recipe]}
    untrained = wants_untrained(recipe)
    baseline = recipe.first_row if untrained else recipe.name
    probed = probe_all(arms, recipe.folder, (baseline, arm.untrained_folder) if untrained else None)
    print(publish(probed, arms, baseline, recipe.folder))


if __name__ == "__main__":
    sys.exit(guard(main))
