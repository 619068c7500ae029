"""Train every arm of a recipe, probe all students, print one table.

accelerate launch distill/ablate.py RECIPE.yaml [field=value ...]      finished arms are not trained again

Arms that differ only downstream of the teachers (upsampler, loss, student, optimiser) train side by side on one pass of
the teachers; each is equal to the bit to the run it would have been alone. `together: N` says how many at a time. With
`seeds: [0, 1, 2]` every arm is trained with each student seed, and its row's errors hold the spread of the runs.
"""

import argparse
import sys

from common.errors import UserError, add_debug_flag, guard
from common.run_lock import add_take_over_flag
from distill.evaluation.probing import probe_all
from distill.evaluation.report import publish
from distill.preflight import find_missing, make, open_once, refuse
from distill.recipe import read, read_arms, runs_of
from distill.training.arm_groups import group
from distill.training.arms import Arm, run_together
from distill.training.engine import start
from distill.training.processes import alone_in, leave_together, refuse_strays


def main(argv: list[str]) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML file with `arms` and a `baseline`")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="laid under every arm's own")
    parser.add_argument(
        "--prepare", action="store_true", help="train the adapters that are missing, then go on with the arms"
    )
    parser.add_argument("--elastic", action="store_true", help="go on though the number of processes has changed")
    add_take_over_flag(parser)
    add_debug_flag(parser)
    arguments = parser.parse_intermixed_args(argv)
    refuse_strays()
    whole = read(arguments.recipe, arguments.overrides)
    recipes = read_arms(arguments.recipe, arguments.overrides)
    rows = {arm: [recipes[run] for run in runs] for arm, runs in runs_of(whole).items()}
    if whole.eval is None:
        raise UserError(f"{arguments.recipe} has no eval, so its arms cannot be compared; add `eval: {{suite: FILE}}`")
    missing = find_missing(recipes.values())
    refuse(make(missing) if arguments.prepare else missing)
    accelerators = start(recipes)
    arms = {name: Arm(name, recipe, accelerators[name], arguments.elastic) for name, recipe in recipes.items()}
    baseline = str(whole.baseline)
    plain = arms[rows[baseline][0].name] if whole.eval.untrained is True else None
    first = next(iter(arms.values())).accelerator
    with alone_in(whole.folder, first, take_over=arguments.take_over):
        for members in group(((arm, arm.recipe) for arm in arms.values()), whole.together):
            run_together(members, open_once(members[0].recipe.data.train), untrained=plain.name if plain else None)
        if leave_together(first):
            probed = probe_all(rows, whole.folder, (plain.recipe.first_row, plain.untrained_folder) if plain else None)
            print(publish(probed, rows, baseline, whole.folder))


if __name__ == "__main__":
    sys.exit(guard(main))
