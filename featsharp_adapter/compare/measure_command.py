"""`python -m featsharp_adapter measure ADAPTER... --recipe RECIPE`: fidelity of adapters that exist already.

Of one whose training is not ours (converted, downloaded, handed on), or whose card is older than a change of measures.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from common.recipes import load_recipe
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.folder import find_folder
from featsharp_adapter.model.downsampler import build_downsampler
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.training.evaluation import Fidelity
from featsharp_adapter.training.teacher_data import TeacherData, open_teacher_data
from featsharp_adapter.training.train_one import evaluate, open_samples
from featsharp_adapter.training.trainer import Trainer, seeded, train_adapter
from teachers.registry import load_backbone


def add_measure(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The options of the command."""
    command = commands.add_parser("measure", help="fidelity of adapters that exist, and cards brought up to date")
    command.add_argument("adapters", nargs="+", metavar="ADAPTER", help="folders, builtin:NAME, or Hub repositories")
    recipe_help = "its teacher, data and views are used; its steps train the learned downsampler, on the frozen adapter"
    command.add_argument("--recipe", required=True, type=Path, metavar="RECIPE.yaml", help=recipe_help)
    command.add_argument("--set", nargs="+", default=(), metavar="key=value", help="recipe fields to change")
    command.add_argument("--write", action="store_true", help="put the numbers into the folder's card; weights stay")
    command.set_defaults(run=run_measure)


def run_measure(arguments: argparse.Namespace) -> int:
    """Adapter after adapter."""
    for name in arguments.adapters:
        folder = find_folder(name)
        adapter = Adapter.from_pretrained(folder)
        recipe = frozen_recipe(load_recipe(AdapterRecipe, arguments.recipe, arguments.set), adapter)
        adapter.meta.check_teacher(name, load_backbone(recipe.teacher).spec)  # before anything is computed
        teacher_data = open_teacher_data(recipe, [recipe])
        adapter, fidelity = measure_adapter(adapter, recipe, teacher_data)
        print(f"{name}: {adapter.meta.upsampler} {adapter.factor}x for {teacher_data.spec.name}")
        for how, value in fidelity.items():
            print(f"  {how} downsampler: fidelity {value.ratio:.3f}, error {value.mse:.4f} ± {value.stderr:.4f}")
        print("  " + ", ".join(f"{key} {value:.4f}" for key, value in adapter.meta.fidelity["side"].items()))
        if arguments.write:
            print(f"  card: {adapter.cpu().save_pretrained(folder) / 'README.md'}")
    return 0


def frozen_recipe(recipe: AdapterRecipe, adapter: Adapter) -> AdapterRecipe:
    """The recipe, for this adapter, with nothing left to train but the downsampler."""
    meta = adapter.meta
    changes = {"upsampler": meta.upsampler, "factor": meta.factor, "options": meta.options, "bias": False}
    changes |= {"published_views": meta.published_views, "conditional": None, "uncertainty": False, "spectral": False}
    return recipe.model_copy(update=changes)


def measure_adapter(
    adapter: Adapter, recipe: AdapterRecipe, teacher_data: TeacherData
) -> tuple[Adapter, dict[str, Fidelity]]:
    """Train a downsampler on the frozen adapter, evaluate by it and by the fixed one, and put it on the card."""
    node, dim = recipe.downsampler, teacher_data.spec.spatial_dim
    adapter.to(teacher_data.device).requires_grad_(False)
    with seeded(recipe.seed):
        downsampler = build_downsampler(node.name, dim=dim, factor=adapter.factor, kernel=node.kernel)
    downsampler.to(teacher_data.device)
    if any(parameter.requires_grad for parameter in downsampler.parameters()):
        train_adapter(Trainer(adapter, downsampler, recipe), open_samples(recipe, teacher_data))
    adapter, fidelity = evaluate(adapter.eval(), downsampler, teacher_data)
    how = f"{recipe.data.held_out}; {recipe.optim.steps} steps of the learned downsampler on the finished adapter"
    adapter.meta = replace(adapter.meta, fidelity=adapter.meta.fidelity | {"measured": how})
    return adapter, fidelity
