"""Arms from recipe to exported student: put the pieces together, resume where they stopped, train, export."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from common.atomic import remove_leftovers, write_text
from common.errors import UserError
from common.json_files import write_json
from common.jsonl import Log
from common.recipes import dump
from common.trackers import refuse_missing_trackers
from distill.losses.shift_equivariance import centre_crop, margin
from distill.losses.step import DistillStep, Predict
from distill.planning.mfu import FlopMeter, StudentFlops, peak_in_words, peak_of
from distill.recipe import UNTRAINED, Recipe
from distill.schedule import schedule, student_patch
from distill.student.model import Student
from distill.targets import statistics as known_statistics
from distill.targets.sharded_teachers import shard
from distill.targets.targets import SharedTargets, Targets
from distill.targets.teacher_views import TeacherPool
from distill.targets.view_cache_size import check_cache
from distill.training.checkpoint import Checkpoints, refuse_difference, without_layout
from distill.training.data import Streams, gather_objects, roles, to_device
from distill.training.engine import deepspeed_config, environment_of, only_existing, prepare, set_threads, wants_bf16
from distill.training.export import export_student, exported_identity, portable_identity
from distill.training.loop import ArmTrainer, train
from distill.training.nan_capture import NonFiniteUpdate, not_finite_advice, write_capture
from distill.training.rng_state import RngState
from distill.training.start_from import begin_with_heads, begin_with_optimiser, find_beginning, student_node
from distill.training.step_times import StepTimer
from distill.training.trained_student import TrainedStudent, build_trained_student
from imagery.contracts import SequentialSource, Source
from imagery.mixture import Mixture
from imagery.sources import summary


@dataclass(frozen=True)
class Arm:
    """A recipe under a name on an Accelerator, writing to the recipe's folder."""

    name: str
    recipe: Recipe
    accelerator: Accelerator
    elastic: bool = False  #: go on though another number of processes was at it before

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


@dataclass(frozen=True)
class UnfinishedArm:
    """An arm that is not finished, and where it stands."""

    arm: Arm
    targets: Targets
    identity: dict[str, Any]
    checkpoints: Checkpoints
    latest: Path | None  #: the checkpoint to go on from
    start: int  #: updates behind it


def run_arm(arm: Arm, source: Source | SequentialSource | Mixture, *, export_untrained: bool) -> Path:
    """Train an arm to its end, from wherever it stands, and export the student; returns the student's folder."""
    run_together([arm], source, untrained=arm.name if export_untrained else None)
    return arm.student_folder


def run_together(arms: Sequence[Arm], source: Source | SequentialSource | Mixture, *, untrained: str | None) -> None:
    """Train arms that agree on everything upstream of the student (arm_groups.py) on one pass of their teachers.

    Each arm's folder ends as it would have, had the arm been trained alone. `untrained` names the arm whose student is
    exported before its first step too.
    """
    accelerator = arms[0].accelerator
    pool = teacher_pool(arms)
    ready = assemble(arms, source, pool, untrained=untrained)
    if ready is None:
        return
    unfinished, trainers, stream = ready
    train(trainers, stream, accelerator.device)
    report_data(accelerator, stream, [found.arm.folder for found in unfinished])
    if arms[0].recipe.cache:
        accelerator.print("teacher views: {} from the cache, {} made by this process".format(*pool.use()))
    stream.close()
    for found, trainer in zip(unfinished, trainers, strict=True):
        with trainer.activated():
            state = trainer.engine.student_state()
        if trainer.trained.average is not None and found.arm.recipe.ema.export:
            state = trainer.trained.average.state_dict()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values() if tensor.is_floating_point()):
            raise UserError(not_finite_advice(found.arm.recipe.optim.steps, found.arm.recipe))
        finish(found, state)


def assemble(
    arms: Sequence[Arm], source: Source | SequentialSource | Mixture, pool: TeacherPool, *, untrained: str | None
) -> tuple[list[UnfinishedArm], list[ArmTrainer], Streams] | None:
    """Those arms that are not finished, each ready for its next update, and the images; None if all are finished."""
    accelerator = arms[0].accelerator
    set_threads(arms[0].recipe.engine, accelerator.device)
    unfinished = [found for found in find_unfinished_arms(arms, pool, source.fingerprint) if found is not None]
    if not unfinished:
        return None
    if arms[0].recipe.cache:
        accelerator.print(check_cache(unfinished[0].arm.recipe, unfinished[0].targets, source))
    for found in unfinished:
        begin(found.arm)
    accelerator.print("\n".join(summary(source)))
    stream = Streams(unfinished[0].arm.recipe, source, accelerator.process_index, accelerator.num_processes)
    beginning = stream.state_dict()
    fit_targets(unfinished, stream)
    shared = SharedTargets() if len(unfinished) > 1 else None
    bf16 = wants_bf16(unfinished[0].arm.recipe.engine, accelerator.device)
    flop_meter = FlopMeter(peak_of(accelerator.device, bf16=bf16))
    trainers = [
        build_trainer(found, stream, shared, flop_meter, export_untrained=found.arm.name == untrained)
        for found in unfinished
    ]
    stream.load_state_dict(beginning)
    last = min(unfinished, key=lambda found: found.start)  # the others wait until it has caught up
    if last.latest:
        last.checkpoints.restore_position(last.latest, stream)
    return unfinished, trainers, stream


def teacher_pool(arms: Sequence[Arm]) -> TeacherPool:
    """Where these arms' teachers come from."""
    kept = arms[0].recipe.cache
    return TeacherPool(Path(kept.folder) if kept else None)


def find_unfinished_arms(arms: Sequence[Arm], pool: TeacherPool, images: str) -> list[UnfinishedArm | None]:
    """Where each arm stands, None for one that is finished. Arms of equal targets get one object for them."""
    made: dict[str, Targets] = {}
    unfinished = []
    for arm in arms:
        plain = arm.recipe.model_dump(mode="json", include={"teachers", "stages"})
        key = json.dumps(plain | {"patch": student_patch(arm.recipe.student)}, sort_keys=True)
        targets = made.get(key) or Targets(arm.recipe, arm.accelerator.device, pool)
        made[key] = targets
        unfinished.append(find_unfinished(arm, targets, images))
    if arms[0].recipe.engine.teachers == "zero3":
        shard(pool.teachers, schedule(arms[0].recipe))
    return unfinished


def find_unfinished(arm: Arm, targets: Targets, images: str) -> UnfinishedArm | None:
    """Where one arm stands; UserError when what is on the disk was made by another recipe or of other images."""
    identity = identify(arm, targets) | {"images": images}
    finished = exported_identity(arm.student_folder)
    if finished is not None:
        # A student of before has places as they were typed.
        before, now = (without_layout(portable_identity(each)) for each in (finished, identity))
        refuse_difference(before, now, str(arm.student_folder))
        arm.accelerator.print(f"{arm.name}: already trained, {arm.student_folder}")
        return None
    checkpoints = Checkpoints(
        arm.folder / "checkpoints",
        arm.accelerator,
        identity,
        arm.recipe.checkpoint.keep,
        background=arm.recipe.checkpoint.background,
        patience=60 * arm.recipe.engine.patience,
        elastic=arm.elastic,
    )
    latest = checkpoints.latest()
    start = checkpoints.read_state(latest) if latest else 0
    return UnfinishedArm(arm, targets, identity, checkpoints, latest, start)


def build_trainer(
    found: UnfinishedArm,
    stream: Streams,
    shared: SharedTargets | None,
    flop_meter: FlopMeter,
    *,
    export_untrained: bool,
) -> ArmTrainer:
    """Build an arm's student on its engine, and bring it to where it stood."""
    arm, recipe, targets, accelerator = found.arm, found.arm.recipe, found.targets, found.arm.accelerator
    rng_state = RngState(accelerator.device)
    with rng_state.hold():
        torch.manual_seed(recipe.student_seed)
        bf16 = wants_bf16(recipe.engine, accelerator.device)
        beginning = None if found.latest else find_beginning(recipe, targets)
        student = Student(student_node(recipe, beginning), recipe.data.size, targets.heads(), bf16=bf16)
        if beginning is not None:
            accelerator.print(f"{arm.name}: {begin_with_heads(student, beginning)}")
        if export_untrained and accelerator.is_main_process and exported_identity(arm.untrained_folder) is None:
            export_student(arm.untrained_folder, student.state_dict(), recipe, targets, found.identity, step=0)
        trained = build_trained_student(student, recipe, accelerator.process_index, accelerator.device)
        if trained.average is not None:
            found.checkpoints.register("average", trained.average)
        engine = prepare(accelerator, arm.name, student, recipe)
        if beginning is not None and recipe.start_optimiser:
            begin_with_optimiser(engine.state(), beginning)
        # From here on every process draws its own random numbers (stochastic depth).
        torch.manual_seed(recipe.student_seed + 1 + accelerator.process_index)
        if found.latest:
            found.checkpoints.restore(found.latest, engine.state())
            accelerator.print(f"{arm.name}: going on after step {found.start}")
    log = Log(arm.folder / "log.jsonl")
    if accelerator.is_main_process:
        log.truncate(found.start)

    def save(step: int) -> None:
        if not engine.weights_are_finite():
            found.checkpoints.wait()  # the advice names the last one
            raise UserError(not_finite_advice(step, recipe))
        found.checkpoints.save(step, engine.state(), stream, targets.normaliser_state())

    def capture(bad_update: NonFiniteUpdate) -> str:
        found.checkpoints.wait()  # the advice names the last one
        average = None if trained.average is None else trained.average.state_dict()
        names = stream.names(bad_update.step - 1)
        return write_capture(bad_update, recipe, engine, targets.normaliser_state(), average, names)

    flops = StudentFlops(recipe.student, recipe.data.size, targets.heads(), mesa=recipe.loss.mesa > 0)
    for size in {size for stage in schedule(recipe) for part in stage.passes for size in part.sizes}:
        flops.per_image(size)  # now, so that no step's time has it
    return ArmTrainer(
        steps=make_steps(found, engine.model, shared, trained),
        engine=engine,
        recipe=recipe,
        log=log,
        start=found.start,
        save=save,
        settle=found.checkpoints.wait,
        capture=capture,
        rng_state=rng_state,
        trained=trained,
        timer=StepTimer(accelerator.device),
        flop_meter=flop_meter,
        flops=flops,
    )


def make_steps(
    found: UnfinishedArm, model: Predict, shared: SharedTargets | None, trained: TrainedStudent
) -> dict[tuple[str, str], DistillStep]:
    """A step for every pass that this process does in any stage, by stage and partition."""
    targets, accelerator, shifts = found.targets, found.arm.accelerator, trained.shifts
    steps = {}
    for stage in schedule(found.arm.recipe):
        for role in roles(stage, accelerator.process_index, accelerator.num_processes):
            look = shared.share(targets, role.part, shifts) if shared else targets.for_pass(role.part, shifts)
            made = DistillStep(
                model, look, found.arm.recipe, targets.dispersions(), role.part, role.scale, shifts, trained.average
            )
            steps[stage.name, role.part.partition] = made
    return steps


def finish(found: UnfinishedArm, state: dict[str, Tensor]) -> None:
    """Export an arm's student and let go of its engine."""
    arm, accelerator = found.arm, found.arm.accelerator
    if accelerator.is_main_process:
        step = arm.recipe.optim.steps
        export_student(arm.student_folder, state, arm.recipe, found.targets, found.identity, step=step)
    accelerator.wait_for_everyone()
    accelerator.free_memory()


def identify(arm: Arm, targets: Targets) -> dict[str, Any]:
    """Everything that decides the numbers of this run: recipe fields, digests, engine, number of processes."""
    identity = arm.recipe.fingerprint()
    for field in [name for name in identity if name.startswith("engine.")]:
        del identity[field]
    accelerator = arm.accelerator
    if arm.recipe.normaliser.load is not None:
        identity["digest of statistics"] = known_statistics.digest(Path(arm.recipe.normaliser.load))
    identity["processes"] = accelerator.num_processes
    identity["precision"] = "bf16" if wants_bf16(arm.recipe.engine, accelerator.device) else "fp32"
    identity["engine"] = "torch"
    if accelerator.state.deepspeed_plugins is not None:
        config = deepspeed_config(arm.recipe, accelerator.num_processes)
        identity["engine"] = f"deepspeed ZeRO-{config['zero_optimization']['stage']}"
    if arm.recipe.optim.name == "lamb":
        identity["lamb"] = "norms of whole parameters"  # runs of before took them of what ZeRO made of the parameters
    return identity | targets.digests()


def begin(arm: Arm) -> None:
    """Make the folder, say what will run, start the trackers."""
    only_existing(arm.folder)
    refuse_missing_trackers(arm.recipe.log.trackers)
    if arm.accelerator.is_main_process:
        remove_leftovers(arm.folder)  # an arm of an ablation has its lock above
        write_text(arm.folder / "recipe.yaml", dump(arm.recipe))
        device, bf16 = arm.accelerator.device, wants_bf16(arm.recipe.engine, arm.accelerator.device)
        environment = environment_of(arm.accelerator) | {"mfu_against": peak_in_words(device, bf16=bf16)}
        write_json(arm.folder / "environment.json", environment)
    arm.accelerator.init_trackers(arm.recipe.name)


def fit_targets(unfinished: Sequence[UnfinishedArm], stream: Streams) -> None:
    """Every teacher's PHI-S: from a checkpoint or another run's file, else estimated on the run's first batches.

    Arms on one teacher pass have one and the same PHI-S (arm_groups.py), so it is found once for all of them.
    """
    begun = next((found for found in unfinished if found.latest), None)
    first, recipe = unfinished[0].targets, unfinished[0].arm.recipe
    if begun and begun.latest:
        state = begun.checkpoints.read_targets(begun.latest)
        if begun.arm.accelerator.is_main_process:
            known_statistics.mend_fitted(begun.arm.folder, begun.identity, state)
    elif recipe.normaliser.load is not None:
        state = known_statistics.load(Path(recipe.normaliser.load), first)
    elif (beginning := find_beginning(recipe, first)) is not None and beginning.statistics is not None:
        state = known_statistics.load(beginning.statistics, first)
    elif (fitted := fitted_before(unfinished[0])) is not None:
        state = fitted
    else:
        device, room = unfinished[0].arm.accelerator.device, margin(recipe, first.patch)
        batches = range(recipe.normaliser.batches)
        shown = (each for _ in batches for each in to_device(stream.next(), device))
        first.fit_shown((each.role.part, centre_crop(each.images, room)) for each in shown)
        state = first.normaliser_state()
        for found in unfinished:  # now, for it may take an hour, and the first checkpoint is far
            if found.arm.accelerator.is_main_process:
                known_statistics.keep_fitted(found.arm.folder, found.identity, state)
    for found in unfinished:
        found.targets.load_normalisers(state)


def fitted_before(found: UnfinishedArm) -> dict[str, Tensor] | None:
    """What an earlier start of the same run has estimated and kept, None where there is nothing."""
    main = bool(found.arm.accelerator.is_main_process)
    return known_statistics.fitted_before(found.arm.folder, found.identity, main=main)


def report_data(accelerator: Accelerator, stream: Streams, folders: Sequence[Path]) -> None:
    """Say at the end how many images were read over all processes and which could not be, and write it to data.json."""
    each = gather_objects(stream.report())
    if not accelerator.is_main_process:
        return
    read, bad = (sum(report[name] for report in each) for name in ("read", "bad"))
    reasons = {key: reason for report in each for key, reason in report["bad_reasons"].items()}
    problems = list(dict.fromkeys(problem for report in each for problem in report["problems"]))
    found = {"read": read, "bad": bad, "bad_reasons": reasons, "problems": problems}
    for folder in folders:
        write_json(folder / "data.json", found)
    print(f"images: {read} read, {bad} of them unreadable and replaced, {len(problems)} damaged shards")
    for what, why in [*list(reasons.items())[:10], *((problem, "") for problem in problems[:10])]:
        print(f"  {what}{': ' if why else ''}{why}")
