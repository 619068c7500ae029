"""Distil one student: accelerate launch distill/run.py RECIPE.yaml [field=value ...]"""

import argparse
import sys

from distill.arm import Arm, open_images, run_arm
from distill.recipe import read
from distill.runtime import start
from teachers.errors import add_debug_flag, guard


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="field=value")
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    recipe = read(arguments.recipe, arguments.overrides)
    arm = Arm(recipe.name, recipe, start({recipe.name: recipe})[recipe.name])
    run_arm(arm, open_images(recipe), export_untrained=False)


if __name__ == "__main__":
    sys.exit(guard(main))
