"""`python -m featsharp_adapter compare RECIPE.yaml... [--upsamplers ...] [--seeds ...] --out TABLE`."""

import argparse
import sys
from pathlib import Path

from featsharp_adapter.compare import compare, write_table
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.upsamplers.table import UPSAMPLERS
from featsharp_adapter.workshop import open_workshop
from teachers.config import load_recipe
from teachers.errors import add_debug_flag, guard, unknown

DEFAULT = ("bilinear", "tile", "s2", "featup", "featsharp")


def main(argv: list[str]) -> int:
    """The only command so far: compare."""
    parser = argparse.ArgumentParser(prog="python -m featsharp_adapter", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("compare", help="train several upsamplers with one budget and tabulate their errors")
    command.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE.yaml", help="one per teacher")
    command.add_argument("--upsamplers", nargs="+", default=DEFAULT, metavar="NAME")
    command.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2), metavar="SEED")
    command.add_argument("--set", nargs="+", default=(), metavar="key=value", help="recipe fields to change")
    command.add_argument("--out", type=Path, required=True, help="writes OUT.md and OUT.json")
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    for name in arguments.upsamplers:
        if name not in UPSAMPLERS:
            raise unknown("upsampler", name, UPSAMPLERS)
    recipes = [load_recipe(AdapterRecipe, path, arguments.set) for path in arguments.recipes]
    outcomes = []
    for recipe in recipes:
        outcomes += compare(recipe, open_workshop(recipe, arguments.upsamplers), arguments.upsamplers, arguments.seeds)
        table = write_table(outcomes, arguments.out)  # after every teacher, so that an interruption loses one at most
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
