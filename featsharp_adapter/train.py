"""Train an adapter: `accelerate launch featsharp_adapter/train.py RECIPE.yaml [key=value ...]`, or plain python.

Writes into the recipe's `out`: recipe.yaml, log.jsonl, checkpoints/, and adapter/ (with its fidelity on held-out
images); `out` stands for it wherever an adapter is named. Started again after an interruption it goes on from there.
`ridge`, which is solved, takes several processes (`--num_processes`), each with its share of the images.
"""

import argparse
import sys
from pathlib import Path

from common.atomic import write_text
from common.errors import UserError, add_debug_flag, guard
from common.launch_options import refuse_unheeded
from common.recipes import dump, load_recipe
from common.run_lock import RunLock, add_take_over_flag
from common.trackers import refuse_missing_trackers
from featsharp_adapter.adapter.folder import TRAINED
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.training.processes import Place, joined, launched
from featsharp_adapter.training.teacher_data import open_teacher_data
from featsharp_adapter.training.train_one import fit_one, train_one
from featsharp_adapter.upsamplers.table import upsampler_class


def main(argv: list[str]) -> int:
    """Read the recipe, train, save, and say how good it is."""
    parser = argparse.ArgumentParser(description="Train an adapter that sharpens one teacher's features.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe fields to change")
    add_take_over_flag(parser)
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    recipe = load_recipe(AdapterRecipe, arguments.recipe, arguments.overrides)
    heeded = {"--mixed_precision": ["bf16"]} if recipe.teacher_dtype == "bfloat16" else {}
    refuse_unheeded({"--mixed_precision": "teacher_dtype"}, heeded)
    refuse_missing_trackers(recipe.log.trackers)
    if launched() > 1 and not upsampler_class(recipe.upsampler).closed_form:
        raise UserError(
            f"{recipe.upsampler} is trained by one process (accelerate launch --num_processes 1, or plain python); "
            "only what is solved, ridge, takes several"
        )
    with joined() as place:
        if place.rank:
            fit_one(recipe, open_teacher_data(recipe, [recipe], place), folder=Path(recipe.out))
            return 0
        return first_process(recipe, place, take_over=arguments.take_over)


def keep_recipe(out: Path, recipe: AdapterRecipe) -> None:
    """Write the recipe into the folder. UserError where the folder holds what another one trained."""
    path, content = out / "recipe.yaml", dump(recipe)
    trained = (out / TRAINED).exists() or any(out.glob("checkpoints/step-*"))
    if trained and path.is_file() and path.read_text(encoding="utf-8") != content:
        raise UserError(f"{out} holds what another recipe trained, see {path}; choose another `out`, or delete it")
    write_text(path, content)


def first_process(recipe: AdapterRecipe, place: Place, *, take_over: bool) -> int:
    """The one that writes; often the only one."""
    out = Path(recipe.out)
    with RunLock(out, take_over=take_over):
        keep_recipe(out, recipe)
        adapter, fidelity = train_one(recipe, open_teacher_data(recipe, [recipe], place), folder=out)
        folder = adapter.save_pretrained(out / TRAINED)
    for name, value in fidelity.items():
        print(f"held-out error, {name} downsampler: {value.mse:.4f} ± {value.stderr:.4f} (fidelity {value.ratio:.2f})")
    side = adapter.meta.fidelity["side"]
    print(f"beside it: TV {side['tv']:.4f}, CRF {side['crf']:.4f}, MMD {side['mmd']:.4f}")
    print(f"adapter: {folder}  (as a backbone: sharp:{folder})")
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
