"""What is kept of an update that came out NaN or infinite, so that it can be looked at again (nan_replay.py).

runs/<name>/nan/step-00000012/
  update.json             step, what was not finite, the terms, the names of the images by rank and partition
  recipe.yaml  student.safetensors  targets.safetensors     the student before the update, the normalisers
  average.safetensors     its moving average, where there is one
  rank-0.safetensors ...  the images of each process, uint8 by partition, and its random state
  engine/                 moments and all else a checkpoint has of its engine (engine_state.py)
  manifest.json           size and checksum of every file; like a checkpoint, the folder is complete or not there
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.atomic import remove, write_text
from common.checksums import Entries, entry_of, write_checked
from common.recipes import dump
from common.step_folders import StepFolders
from common.tensor_files import write_tensors
from distill.recipe import Recipe
from distill.training.data import RawBatch, gather_objects
from distill.training.engine import Engine, only_existing, wants_bf16

RNG_STATE = "rng_state"
KEPT = 5  #: of a run's updates, the newest


@dataclass(frozen=True)
class NonFiniteUpdate:
    """An update that was not made: its line of the log, random numbers before it, and the images of this process."""

    step: int
    line: Mapping[str, Any]
    rng_state: Sequence[Tensor]
    raw: Sequence[RawBatch]

    def non_finite_terms(self) -> list[str]:
        """Terms of the loss that are not finite; where all are, it was the gradient."""
        found = [name for name, value in self.line["losses"].items() if not math.isfinite(value)]
        return found or ["the gradient"]


def write_capture(
    bad_update: NonFiniteUpdate,
    recipe: Recipe,
    engine: Engine,
    targets: Mapping[str, Tensor],
    average: Mapping[str, Tensor] | None,
    keys: Mapping[str, list[str]],
) -> str:
    """Write the folder; returns what to tell the user. All processes must call it.

    average: state of the student's moving average. keys: of this process's images, by partition.
    """
    accelerator = engine.accelerator
    folders = StepFolders(recipe.folder / "nan", KEPT)
    folder = folders.writing(bad_update.step)
    names = gather_objects(dict(keys))
    student, pieces = engine.student_state(), engine.state().copy()
    own: list[str] = []
    if accelerator.is_main_process:
        remove(folder)
        only_existing(folder)
        write_text(folder / "recipe.yaml", dump(recipe))
        write_tensors(folder / "student.safetensors", student)
        write_tensors(folder / "targets.safetensors", targets)
        if average is not None:
            write_tensors(folder / "average.safetensors", average)
        facts = {
            "step": bad_update.step,
            "not_finite": bad_update.non_finite_terms(),
            "line": dict(bad_update.line),
            "processes": accelerator.num_processes,
            "bf16": wants_bf16(recipe.engine, accelerator.device),
            "student": "after the update" if updated(bad_update, engine) else "before the update",
            "keys": names,
        }
        write_text(folder / "update.json", json.dumps(facts, indent=1))  # its loss may be NaN
        own = [path.name for path in folder.iterdir()]
    accelerator.wait_for_everyone()
    images = {role.part.partition: pixels for role, pixels in bad_update.raw}
    rng_state = {f"{RNG_STATE}.{number}": state for number, state in enumerate(bad_update.rng_state)}
    rank = f"rank-{accelerator.process_index}.safetensors"
    write_tensors(folder / rank, images | rng_state)
    entries: Entries = {name: entry_of(folder / name) for name in [*own, rank]}
    for name, content in pieces.items():
        entries[name] = write_checked(folder / name, partial(torch.save, content))
    written = gather_objects(entries)
    if accelerator.is_main_process:
        folders.commit(bad_update.step, {name: entry for each in written for name, entry in each.items()})
    accelerator.wait_for_everyone()
    return advice(bad_update, recipe, folders.path(bad_update.step))


def updated(bad_update: NonFiniteUpdate, engine: Engine) -> bool:
    """Whether the weights have been moved already: DeepSpeed tells the gradient's norm only with the update."""
    return engine.updates_in_backward and math.isfinite(bad_update.line["loss"])


def advice(bad_update: NonFiniteUpdate, recipe: Recipe, folder: Path) -> str:
    """What happened and what to do."""
    line = bad_update.line
    return (
        f"step {bad_update.step}: loss {line['loss']}, gradient norm {line['grad_norm']} (not finite: "
        f"{', '.join(bad_update.non_finite_terms())}); stopped before this is saved. "
        f"{begin_again(recipe, bad_update.step - 1)}\n"  # that one's weights, finite as they are, gave this
        f"where it began: python distill/run.py --replay {folder}"
    )


def not_finite_advice(step: int, recipe: Recipe) -> str:
    """What to say of weights that are NaN or infinite after an update."""
    return f"step {step}: weights are NaN or infinite, and are neither saved nor exported. {begin_again(recipe, step)}"


def begin_again(recipe: Recipe, bad: int) -> str:
    """The command of a new run from the last checkpoint before step `bad`, at half the rate."""
    folders = StepFolders(recipe.folder / "checkpoints", keep=1)
    whole = [path for path in folders.all() if path < folders.path(bad)]
    slower = {"optim.lr": recipe.optim.lr / 2}
    slower |= {f"stages.{name}.lr": stage.lr / 2 for name, stage in recipe.stages.items() if stage.lr is not None}
    words = ["accelerate", "launch", "distill/run.py", str(recipe.folder / "recipe.yaml"), f"name={recipe.name}-slower"]
    words += [f"start_from={whole[-1]}"] if whole else []
    words += [f"{name}={value:g}" for name, value in slower.items() if math.isfinite(value)]
    what = "Begin a new run from the last checkpoint before" if whole else "Begin again"
    return f"{what} at a lower rate, e.g.: {shlex.join(words)}"
