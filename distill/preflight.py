"""What would stop a run later, with what mends it: said before teachers load and anything is trained."""

import functools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common.errors import UserError
from common.plugins import is_plugin
from common.recipes import load_recipe
from common.shipped import FOLDER, shipped_recipes
from common.trackers import missing_trackers
from distill.losses.losses import own_loss
from distill.recipe import Recipe
from distill.recipe_models import StudentNode, TeacherNode
from distill.recipe_training import LOSSES
from distill.schedule import schedule
from distill.student.model import build_vit
from distill.student.starting_weights import find_start
from distill.training.export import exported_identity
from eval_suite.data_check import check_suite
from eval_suite.suite import load_suite
from featsharp_adapter.adapter.folder import find_folder, read_description
from featsharp_adapter.recipe import AdapterRecipe
from imagery.contracts import SequentialSource, Source
from imagery.mixture import Mixture
from imagery.sources import open_sources

ADAPTER_RECIPES = "adapters/"  #: of the shipped ones
GIB = 2**30
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
    """What is missing or does not fit, each once: adapters, student weights, images, the suite and its data, room."""
    found: dict[str, Missing] = {}
    needed: dict[Path, float] = {}  #: bytes of checkpoints by folder
    for recipe in recipes:
        for missing in [
            *wrong_losses(recipe),
            *missing_adapters(recipe),
            *missing_start(recipe),
            *missing_data(recipe),
            *[Missing(said, None) for said in missing_trackers(recipe.log.trackers)],
            *suite_problems(recipe),
        ]:
            found.setdefault(missing.what, missing)
        parameters, unbuilt = build_student_body(recipe)
        for missing in unbuilt:
            found.setdefault(missing.what, missing)
        needed[recipe.folder] = checkpoint_bytes(recipe, parameters)
    for missing in full_disks(needed):
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
            if node.upsampler != recipe.upsampler and recipe.options:  # they are of the recipe's own upsampler
                command += ["options={}"]
        return tuple(command)
    return None


def wrong_losses(recipe: Recipe) -> list[Missing]:
    """A user's own losses that are none."""
    found = []
    for field in ("summary", "spatial"):
        name = getattr(recipe.loss, field)
        try:
            if is_plugin(name, LOSSES):
                own_loss(name)
        except UserError as error:
            found.append(Missing(f"loss.{field}: {error}", None))
    return found


def missing_start(recipe: Recipe) -> list[Missing]:
    """The training that this one is to begin from, which is not there."""
    try:
        if recipe.start_from is not None:
            find_start(str(recipe.start_from))
    except UserError as error:
        return [Missing(f"start_from: {error}", None)]
    return []


@functools.cache
def _body(node: str, height: int, width: int, teachers: tuple[str, ...]) -> int:
    vit = build_vit(StudentNode.model_validate_json(node), (height, width), teachers)
    return sum(parameter.numel() for parameter in vit.parameters())


def build_student_body(recipe: Recipe) -> tuple[int, list[Missing]]:
    """Build the student's ViT and load its starting weights, as the run will; (its parameters, what went wrong)."""
    before = torch.get_rng_state()
    try:
        return _body(recipe.student.model_dump_json(), *recipe.data.size, tuple(recipe.teachers)), []
    except UserError as error:
        return 0, [Missing(str(error) if recipe.student.weights is None else f"student.weights: {error}", None)]
    finally:
        torch.set_rng_state(before)


def checkpoint_bytes(recipe: Recipe, parameters: int) -> float:
    """Least room for a run's checkpoints, heads not counted: fp32 weights, two moments, and the moving average."""
    each = parameters * (12 if recipe.ema.decay is None else 16)
    finished = exported_identity(recipe.folder / "student") is not None
    written = len(list((recipe.folder / "checkpoints").glob("step-*")))
    return 0 if finished else each * max(0, recipe.checkpoint.keep + 1 - written)


def full_disks(needed: Mapping[Path, float]) -> list[Missing]:
    """Disks that have no room for the checkpoints that will be kept on them, and the one that is being written."""
    by_disk: dict[int, tuple[Path, float]] = {}
    for folder, size in needed.items():
        existing = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
        device = existing.stat().st_dev
        by_disk[device] = (existing, by_disk.get(device, (existing, 0.0))[1] + size)
    return [
        Missing(
            f"{existing}: checkpoints need at least {size / GIB:.3g} GiB and {free / GIB:.3g} GiB are free; make room, "
            "set out= to another disk, or checkpoint.keep=1",
            None,
        )
        for existing, size in by_disk.values()
        if size > (free := shutil.disk_usage(existing).free)
    ]


def suite_problems(recipe: Recipe) -> list[Missing]:
    """A suite that cannot be read, whose data is not there, or that asks for adaptors the student will not have."""
    if recipe.eval is None:
        return []
    try:
        suite = load_suite(recipe.eval.suite, recipe.eval.overrides)
    except UserError as error:
        return [Missing(f"eval.suite: {error}", None)]
    found = [
        Missing(
            f"eval.suite: data {each.data}, {each.kind} of {each.split}: {each.text}; see: python -m eval_suite data "
            f"check {recipe.eval.suite}",
            None,
        )
        for each in check_suite(suite, thorough=False)
        if each.problem
    ]
    for name, probe in suite.probes.items():
        adaptor = getattr(probe, "adaptor", None)
        if adaptor is not None and adaptor not in recipe.teachers:
            found.append(
                Missing(
                    f'eval.suite: probe {name} asks for adaptor "{adaptor}", the student has '
                    f"{', '.join(recipe.teachers)}; say which: 'eval.overrides=[probes.{name}.adaptor=NAME]', "
                    f"or leave it out: probes.{name}=null",
                    None,
                )
            )
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
