"""`python -m featsharp_adapter compare RECIPE.yaml... [--upsamplers ...] [--seeds ...] --out TABLE`."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from common.digests import digest_value
from common.errors import UserError
from common.recipes import load_recipe
from common.run_lock import RunLock, add_take_over_flag
from featsharp_adapter.compare.ablations import ABLATIONS
from featsharp_adapter.compare.compare import compare, draw, refuse_twice
from featsharp_adapter.compare.outcomes import Outcome, append_outcome, read_outcomes
from featsharp_adapter.compare.page import write_page
from featsharp_adapter.compare.probes import Probes
from featsharp_adapter.compare.table import beside, tables_of, write_tables
from featsharp_adapter.compare.variants import FIELDS, TRUE_RESOLUTION, parse_variant, recipes_of
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.training.teacher_data import open_teacher_data

#: `ridge` is solved and not trained: against it a table of few steps shows how far the others have learned.
DEFAULT = ("bilinear", "tile", "s2", "ridge", "featup", "featsharp")


OpenProbes = Callable[[Path, Sequence[str]], Probes]


def add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", open_probes: OpenProbes) -> None:
    """The options of the command; `open_probes` makes a function of a suite file and changes to it."""
    command = commands.add_parser("compare", help="train several upsamplers with one budget; a table and pictures")
    command.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE.yaml", help="one per teacher")
    names = command.add_mutually_exclusive_group()
    form = "NAME[:OPTION=VALUE,...][/FIELD=VALUE,...]"
    form_help = f"options of the upsampler, fields of the recipe ({', '.join(FIELDS)}); lists have + between items"
    form_help += "; true_resolution is the teacher itself at k times its size"
    names.add_argument("--upsamplers", nargs="+", default=DEFAULT, metavar=form, help=form_help)
    names.add_argument("--ablation", choices=ABLATIONS, help="the variants of one of the paper's ablations instead")
    command.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2), metavar="SEED")
    command.add_argument("--set", nargs="+", default=(), metavar="key=value", help="recipe fields to change")
    out_help = "writes OUT.jsonl (a line a result; what stands there is not made again), OUT.md, OUT.json, OUT.html"
    command.add_argument("--out", type=Path, required=True, help=out_help)
    add_help = "results of others (or of earlier commands) to stand in the tables too"
    command.add_argument("--add", nargs="+", type=Path, default=(), metavar="RESULTS.jsonl", help=add_help)
    passes_help = "budgets of teacher passes an image for ridge and ridge_block; below 1 a share of all"
    command.add_argument("--passes", nargs="+", type=float, default=(), metavar="PASSES", help=passes_help)
    command.add_argument("--pictures", type=int, default=4, metavar="N", help="held-out images drawn; 0 for none")
    suite_help = "probe the sharpened features too: a suite file, and changes to it"
    command.add_argument("--suite", nargs="+", metavar=("SUITE.yaml", "key=value"), help=suite_help)
    add_take_over_flag(command)
    command.set_defaults(run=partial(run_compare, open_probes=open_probes))


def run_compare(arguments: argparse.Namespace, open_probes: OpenProbes) -> int:
    """Train, evaluate and draw, teacher after teacher."""
    if arguments.pictures < 0:
        raise UserError(f"--pictures is a number of images, got {arguments.pictures}")
    recipes = [load_recipe(AdapterRecipe, path, arguments.set) for path in arguments.recipes]
    variants = arguments.upsamplers if arguments.ablation is None else ABLATIONS[arguments.ablation]
    for text in variants:  # before anything is loaded
        if text != TRUE_RESOLUTION:
            parse_variant(text, recipes[0])
    suite = arguments.suite
    probes = open_probes(Path(suite[0]), suite[1:]) if suite else None
    refuse_twice(variants, arguments.seeds)
    if not arguments.out.name:
        raise UserError(f"--out is the name that all files begin with, got {arguments.out}")
    with RunLock(beside(arguments.out, ".jsonl"), is_file=True, take_over=arguments.take_over):
        return _compare_all(arguments, recipes, variants, probes)


def _compare_all(
    arguments: argparse.Namespace, recipes: Sequence[AdapterRecipe], variants: Sequence[str], probes: Probes | None
) -> int:
    """With all options looked at, and nobody else at work on OUT."""
    results = beside(arguments.out, ".jsonl")
    known = read_outcomes([*([results] if results.exists() else []), *arguments.add])
    write_tables(known, arguments.out)  # says what is wrong with lines of others before anything is trained

    def keep(found: Outcome) -> None:  # so that an interruption loses one training at most
        append_outcome(results, found)
        known.append(found)
        write_tables(known, arguments.out)

    pictures: dict[str, Path] = {}
    for recipe in recipes:
        teacher_data = open_teacher_data(recipe, recipes_of(recipe, variants))
        trained = compare(
            recipe,
            teacher_data,
            variants,
            arguments.seeds,
            probes,
            keep,
            passes=arguments.passes,
            suite=arguments.suite or (),
            known=tuple(known),
        )
        if arguments.pictures and len(trained.adapters) < len(variants):
            print("pictures: of what was trained now; results that were known already are not drawn again")
        if arguments.pictures and trained.adapters:
            name = teacher_data.spec.name.replace("/", "-").replace(":", "-")
            again = f"-{len(pictures) + 1}" if len(recipes) > 1 else ""  # one network may stand in several recipes
            target = arguments.out.with_name(f"{arguments.out.name}-{name}{again}.png")
            drawn = draw(trained.adapters, teacher_data, arguments.pictures, target)
            pictures[digest_value(trained.outcomes[0].setting)] = drawn
    print(write_tables(known, arguments.out))
    print(f"page: {write_page(tables_of(known), pictures, arguments.out)}")
    return 0
