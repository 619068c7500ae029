"""Distil one student, probe it, and compare it with the untrained student and its teachers.

accelerate launch distill/run.py RECIPE.yaml [field=value ...]      an interrupted run goes on where it stopped
accelerate launch distill/run.py RECIPE.yaml --plan                 what it asks for, without training
accelerate launch distill/run.py RECIPE.yaml --prepare              train the adapters that are missing first
python distill/run.py --replay RUN/nan/step-...                     say where an update became NaN or infinite
"""

import argparse
import sys
from pathlib import Path

import torch

from distill.arm import Arm, run_arm
from distill.missing import find_missing, make, open_once, refuse
from distill.plan import plan
from distill.recipe import UNTRAINED, Recipe, read
from distill.replay import replay
from distill.runtime import start
from distill.student import Student
from distill.targets import Targets
from distill.verdict import EvalRoom, probe_all, publish
from eval_suite.recorded import recall_or_run
from eval_suite.report import write_report
from eval_suite.results import read_metrics, write_metrics
from eval_suite.suite import load_suite
from eval_suite.table import build_table
from eval_suite.table_formats import render
from teachers.errors import UserError, add_debug_flag, guard

ROOM = EvalRoom(load_suite, recall_or_run, read_metrics, write_metrics, build_table, render, write_report)


def main(argv: list[str]) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="e.g. teachers.*.upsampler=tile")
    parser.add_argument("--plan", action="store_true", help="print what the recipe asks for and stop")
    parser.add_argument("--prepare", action="store_true", help="train the adapters that are missing, first")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="say where a NaN began, from what the run kept")
    add_debug_flag(parser)
    arguments = parser.parse_intermixed_args(argv)
    if arguments.replay is not None:
        print(replay(arguments.replay, torch.device("cuda" if torch.cuda.is_available() else "cpu")))
        return
    if arguments.recipe is None:
        raise UserError("no recipe; give a YAML file, e.g. distill/run.py recipes/quickstart.yaml")
    recipe = read(arguments.recipe, arguments.overrides)
    if arguments.plan:
        targets = Targets(recipe, torch.device("cpu"))
        print(plan(recipe, Student(recipe.student, recipe.data.size, targets.heads()), targets))
        return
    missing = find_missing([recipe])
    refuse(make(missing) if arguments.prepare else missing)
    arm = Arm(recipe.name, recipe, start({recipe.name: recipe})[recipe.name])
    run_arm(arm, open_once(recipe.data.train), export_untrained=wants_untrained(recipe))
    if recipe.eval is not None and arm.accelerator.is_main_process:
        judge(recipe, arm)
    arm.accelerator.end_training()


def wants_untrained(recipe: Recipe) -> bool:
    """Whether the untrained student is a row; it is the baseline of a single run, unless the recipe does without."""
    return recipe.eval is not None and recipe.eval.untrained is not False


def judge(recipe: Recipe, arm: Arm) -> None:
    """Probe, print the table against the untrained student, write the report."""
    arms = {recipe.name: [recipe]}
    untrained = wants_untrained(recipe)
    baseline = UNTRAINED if untrained else recipe.name
    judged = probe_all(ROOM, arms, recipe.folder, arm.untrained_folder if untrained else None)
    print(publish(ROOM, judged, arms, baseline, recipe.folder))


if __name__ == "__main__":
    sys.exit(guard(main))
