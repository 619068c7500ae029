"""What a recipe needs and is not there, with the command that makes it: said before anything is loaded or trained."""

import functools
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.errors import UserError
from common.recipes import load_recipe
from common.shipped import FOLDER, shipped_recipes
from distill.recipe import Recipe, TeacherNode
from distill.schedule import schedule
from distill.student.starting_weights import PRETRAINED, find_start
from featsharp_adapter.adapter.folder import find_folder, read_description
from featsharp_adapter.recipe import AdapterRecipe
from imagery.contracts import SequentialSource, Source
from imagery.mixture import Mixture
from imagery.sources import open_sources

ADAPTER_RECIPES = "adapters/"  #: of the shipped ones
LAUNCH = ("-m", "accelerate.commands.launch")


@dataclass(frozen=True)
class Missing:
    """One thing that is not there. `command`: what `accelerate launch` is to run to make it, None if unknown."""

    what: str
    command: tuple[str, ...] | None

    def __str__(self) -> str:
        return (
            self.what if self.command is None else f"{self.what}; make it: accelerate launch {shlex.join(self.command)}"
        )


def find_missing(recipes: Iterable[Recipe]) -> list[Missing]:
    """Adapters, student weights and images that the recipes name and that are not there, each once."""
    found: dict[str, Missing] = {}
    for recipe in recipes:
        for missing in [*missing_adapters(recipe), *missing_weights(recipe), *missing_data(recipe)]:
            found.setdefault(missing.what, missing)
    return list(found.values())


def missing_adapters(recipe: Recipe) -> list[Missing]:
    """Adapters that a teacher's upsampler or denoising needs."""
    found = []
    parts = [part for stage in schedule(recipe) for part in stage.passes]
    nodes = [(name, node) for part in parts for name, node in part.teachers.items()]
    for name, node in nodes:
        folder = node.denoise or node.adapters.get(node.upsampler)
        if folder is None:
            continue
        try:
            read_description(find_folder(folder))  # a training that is not finished has none yet
        except UserError as error:
            found.append(Missing(f"teachers.{name}: {error}", adapter_command(node, folder)))
    return found


def adapter_command(node: TeacherNode, folder: str) -> tuple[str, ...] | None:
    """How to train the adapter of this teacher, from the recipes at hand; None where none is for this teacher."""
    for name in shipped_recipes():
        if not name.startswith(ADAPTER_RECIPES):
            continue
        recipe = load_recipe(AdapterRecipe, FOLDER / name)
        if recipe.teacher != node.backbone:
            continue
        command = ["-m", "featsharp_adapter.train", name]
        command += [f"out={folder}"] if recipe.out != folder else []
        if node.denoise is None:
            wanted = {"upsampler": node.upsampler, "factor": node.factor}
            command += [f"{key}={value}" for key, value in wanted.items() if value != recipe.model_dump()[key]]
        return tuple(command)
    return None


def missing_weights(recipe: Recipe) -> list[Missing]:
    """What a student is to begin with, and is not there."""
    found = []
    for field, weights in (("student.weights", recipe.student.weights), ("start_from", recipe.start_from)):
        if weights not in (None, PRETRAINED):
            try:
                find_start(str(weights))
            except UserError as error:
                found.append(Missing(f"{field}: {error}", None))
    return found


def open_once(train: str | dict[str, float]) -> Source | SequentialSource | Mixture:
    """`open_sources`, once in this process: looking through many shards takes a while, rendered scenes are kept."""
    return _opened(train if isinstance(train, str) else tuple(train.items()))


@functools.cache
def _opened(train: str | tuple[tuple[str, float], ...]) -> Source | SequentialSource | Mixture:
    return open_sources(train if isinstance(train, str) else dict(train))


def missing_data(recipe: Recipe) -> list[Missing]:
    """Images to train on."""
    try:
        open_once(recipe.data.train)
    except Exception as error:
        if getattr(error, "exit_code", None) is None:
            raise
        return [Missing(f"data.train: {error}", None)]
    return []


def make(missing: Sequence[Missing]) -> list[Missing]:
    """Run the command of everything that has one, in order; returns what is still to be made by hand.

    UserError when a command fails (what it said is above), or where several processes would each run it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--prepare is for one process: launch with --num_processes 1 first, then as you did without it")
    for each in missing:
        if each.command is not None:
            print(f"preparing: accelerate launch {shlex.join(each.command)}", flush=True)
            if subprocess.run([sys.executable, *LAUNCH, *each.command]).returncode:
                raise UserError(f"could not be prepared: {each}")
    return [each for each in missing if each.command is None]


def refuse(missing: Sequence[Missing]) -> None:
    """UserError that lists all that is missing; nothing where nothing is."""
    if missing:
        lines = "\n".join(f"  - {each}" for each in missing)
        hint = "\n  (--prepare runs these commands first)" if any(each.command for each in missing) else ""
        raise UserError(f"the recipe needs what is not there:\n{lines}{hint}")
