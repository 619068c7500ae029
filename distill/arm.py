"""One arm from recipe to exported student: put the pieces together, resume where it stopped, train, export."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_wandb_available
from torch import Tensor

from distill.checkpoint import Checkpoints, refuse_difference
from distill.export import export_student, exported_identity
from distill.log import Log
from distill.loop import train
from distill.optim import local_batch
from distill.recipe import UNTRAINED, Recipe
from distill.runtime import deepspeed_config, describe, only_existing, prepare, set_threads, wants_bf16
from distill.step import DistillStep
from distill.student import Student
from distill.targets import Targets
from imagery.contracts import SequentialSource, Source
from imagery.stream import ImageStream, to_float
from teachers.config import dump
from teachers.errors import UserError

TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


@dataclass(frozen=True)
class Arm:
    """A recipe under a name on an Accelerator, writing to the recipe's folder."""

    name: str
    recipe: Recipe
    accelerator: Accelerator

    @property
    def folder(self) -> Path:
        return self.recipe.folder

    @property
    def student_folder(self) -> Path:
        return self.folder / "student"

    @property
    def untrained_folder(self) -> Path:
        """The student as it was before the first step: the row that shows what training brought."""
        return self.folder / UNTRAINED / "student"


def run_arm(arm: Arm, source: Source | SequentialSource, *, export_untrained: bool) -> Path:
    """Train an arm to its end, from wherever it stands, and export the student; returns the student's folder."""
    recipe, accelerator = arm.recipe, arm.accelerator
    set_threads(recipe.engine, accelerator.device)
    targets = Targets(recipe, accelerator.device)
    identity = identify(arm, targets)
    finished = exported_identity(arm.student_folder)
    if finished is not None:
        refuse_difference(finished, identity, str(arm.student_folder))
        accelerator.print(f"{arm.name}: already trained, {arm.student_folder}")
        return arm.student_folder
    begin(arm)
    stream = open_stream(arm, source)
    state = train_student(arm, stream, targets, identity, export_untrained=export_untrained)
    report_data(arm, stream)
    stream.close()
    if accelerator.is_main_process:
        export_student(arm.student_folder, state, recipe, targets, identity, step=recipe.optim.steps)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return arm.student_folder


def train_student(
    arm: Arm, stream: ImageStream, targets: Targets, identity: dict[str, Any], *, export_untrained: bool
) -> dict[str, Tensor]:
    """From the last checkpoint or from nothing to the last step; returns the student's weights."""
    recipe, accelerator = arm.recipe, arm.accelerator
    checkpoints = Checkpoints(arm.folder / "checkpoints", accelerator, identity, recipe.checkpoint.keep)
    latest = checkpoints.latest()
    start = checkpoints.read_state(latest) if latest else 0
    if latest:
        targets.load_normalisers(checkpoints.read_targets(latest))
    else:
        fit_targets(arm, stream, targets)
    torch.manual_seed(recipe.seed)
    bf16 = wants_bf16(recipe.engine, accelerator.device)
    student = Student(recipe.student, recipe.data.size, targets.heads(), bf16=bf16)
    if export_untrained and accelerator.is_main_process and exported_identity(arm.untrained_folder) is None:
        export_student(arm.untrained_folder, student.state_dict(), recipe, targets, identity, step=0)
    engine = prepare(accelerator, arm.name, student, recipe)
    # From here on every process draws its own random numbers (stochastic depth).
    torch.manual_seed(recipe.seed + 1 + accelerator.process_index)
    if latest:
        checkpoints.restore(latest, stream)
        accelerator.print(f"{arm.name}: going on after step {start}")
    log = Log(arm.folder / "log.jsonl")
    if accelerator.is_main_process:
        log.truncate(start)

    def save(step: int) -> None:
        checkpoints.save(step, stream, targets.normaliser_state())

    train(DistillStep(engine.model, targets, recipe), engine, stream, recipe, log, start, save)
    return engine.student_state()


def identify(arm: Arm, targets: Targets) -> dict[str, Any]:
    """Everything that decides the numbers of this run: recipe fields, digests, engine, number of processes."""
    identity = arm.recipe.fingerprint()
    for field in [name for name in identity if name.startswith("engine.")]:
        del identity[field]
    accelerator = arm.accelerator
    identity["processes"] = accelerator.num_processes
    identity["precision"] = "bf16" if wants_bf16(arm.recipe.engine, accelerator.device) else "fp32"
    identity["engine"] = "torch"
    if accelerator.state.deepspeed_plugins is not None:
        config = deepspeed_config(arm.recipe, accelerator.num_processes)
        identity["engine"] = f"deepspeed ZeRO-{config['zero_optimization']['stage']}"
    return identity | targets.digests()


def begin(arm: Arm) -> None:
    """Make the folder, say what will run, start the trackers."""
    only_existing(arm.folder)
    if arm.accelerator.is_main_process:
        (arm.folder / "recipe.yaml").write_text(dump(arm.recipe), encoding="utf-8")
        environment = json.dumps(describe(arm.accelerator), indent=1)
        (arm.folder / "environment.json").write_text(environment, encoding="utf-8")
    for tracker in arm.recipe.log.trackers:
        if not TRACKERS[tracker]():  # Accelerate would leave it out and say nothing
            raise UserError(f'log.trackers: {tracker} is not installed; pip install "agglomerate[{tracker}]"')
    arm.accelerator.init_trackers(arm.recipe.name)


def open_stream(arm: Arm, source: Source | SequentialSource) -> ImageStream:
    """This process's share of the endless, seeded stream of images."""
    data, accelerator = arm.recipe.data, arm.accelerator
    return ImageStream(
        source,
        batch_size=local_batch(arm.recipe.optim, accelerator.num_processes),
        height=data.size[0],
        width=data.size[1],
        seed=arm.recipe.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        augment=data.augment.build(),
        workers=data.workers,
        max_bad_share=data.max_bad_share,
    )


def fit_targets(arm: Arm, stream: ImageStream, targets: Targets) -> None:
    """Estimate every teacher's PHI-S on the run's first batches; the first step sees the same images again."""
    beginning = stream.state_dict()
    device = arm.accelerator.device
    targets.fit(to_float(next(stream).images.to(device)) for _ in range(arm.recipe.normaliser.batches))
    stream.load_state_dict(beginning)


def report_data(arm: Arm, stream: ImageStream) -> None:
    """Say at the end which images could not be read."""
    report = stream.report()
    if report["bad"]:
        rank = arm.accelerator.process_index
        print(f"process {rank}: {report['bad']} of {report['read']} images were unreadable: {report['bad_keys'][:10]}")
