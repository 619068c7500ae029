"""Accelerate and DeepSpeed: one Accelerator per arm, from a plain `accelerate launch` up to ZeRO-3 on many GPUs."""

import datetime
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType, InitProcessGroupKwargs, ProjectConfiguration
from torch import Tensor, nn

from common.errors import UserError
from common.interruption import STOPPING, Wishes
from common.launch_options import refuse_unheeded
from common.other_processes import in_words
from distill.recipe import Recipe
from distill.recipe_engine import EngineNode
from distill.recipe_training import OptimNode
from distill.schedule import Stage, schedule, stage_at
from distill.student.model import Student
from distill.training.engine_state import EngineState, state_of
from distill.training.optim import Place, build_optimiser, learning_rate, local_batch, rate_shares
from distill.training.zero_layout import fit_to_zero

SINGLE_PROCESS = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}


@dataclass
class Engine:
    """A student on its engine: how to go back, update, and get at its weights, alike with and without DeepSpeed."""

    arm: str
    accelerator: Accelerator
    model: nn.Module
    optimiser: Any  #: Accelerate's wrapper of the optimiser
    node: OptimNode
    places: list[Place | None]  #: of the optimiser's groups
    stages: tuple[Stage, ...]  #: each with a warm-up and a cosine of its own
    wishes: Wishes = field(default_factory=Wishes)  #: what signals asked of this process
    agreed: Wishes = field(default_factory=Wishes)  #: what the processes agreed on in an update

    def activate(self) -> None:
        """Make this arm's DeepSpeed settings the ones Accelerate reads; they are the process's, not the arm's."""
        select_arm(self.accelerator, self.arm)

    @property
    def updates_in_backward(self) -> bool:
        """A DeepSpeed engine clips and updates as the last part of `backward`."""
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Forward and backward of one micro-batch of an update; only with the last do processes exchange gradients."""
        self.accelerator.sync_gradients = last
        alone = last or self.updates_in_backward  # DeepSpeed looks at sync_gradients itself
        with nullcontext() if alone else self.accelerator.no_sync(self.model):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's share to the gradients, which are averaged over the processes with the last one."""
        self.accelerator.backward(loss)

    def clip(self) -> float | Tensor:
        """Clip the whole gradient; returns its norm before that."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.node.clip)
        if norm is None:
            raise RuntimeError("DeepSpeed did not report a gradient norm")
        return norm

    def update(self) -> None:
        """Update the weights and forget the gradients."""
        self.optimiser.step()
        self.optimiser.zero_grad()

    def anywhere(self, found: bool | Tensor) -> bool:
        """Whether any process found something; with several, all must call it. The signals' wishes go along.

        found: a tensor may be of the device. The one wait for the device in an update is here.
        """
        stop = [self.wishes.stop == number for number in STOPPING]
        told = [False, self.wishes.save, *stop]
        if self.accelerator.num_processes > 1:
            device = self.accelerator.device
            flags = torch.tensor(told, dtype=torch.float32).to(device, non_blocking=True)
            flags[0] += found
            told = [flag > 0 for flag in self.accelerator.reduce(flags, "sum").tolist()]
        else:
            told[0] = bool(found)
        self.agreed.save = self.agreed.save or told[1]
        self.agreed.stop = self.agreed.stop or next(
            (n for n, asked in zip(STOPPING, told[2:], strict=True) if asked), 0
        )
        return told[0]

    def weights_are_finite(self) -> bool:
        """Whether every weight is a number, in all processes; all must call it."""
        parts = [getattr(weight, "ds_tensor", weight).detach() for weight in self.model.parameters()]
        sums = torch.stack([part.float().sum() if part.numel() else part.new_zeros(()).float() for part in parts])
        whole = bool(torch.isfinite(sums).all())  # a sum of finite numbers may overflow: then look closer
        if not whole:
            whole = all(bool(torch.isfinite(part).all()) for part in parts)
        return not self.anywhere(not whole)

    def state(self) -> EngineState:
        """Its part in a checkpoint."""
        return state_of(self.accelerator, self.model, self.optimiser)

    def set_learning_rate(self, step: int) -> float:
        """Prepare update number `step` (0, 1, ...); returns its rate, of which a group may get a share only."""
        stage = stage_at(self.stages, step)
        rate = learning_rate(step - stage.first, stage.optim)
        shares = rate_shares(step - stage.first, stage.optim, self.places)
        for group, share in zip(self.optimiser.param_groups, shares, strict=True):
            group["lr"] = rate * share
        return rate

    def student_state(self) -> dict[str, Tensor]:
        """The student's whole state on the CPU; gathered from all processes, so all must call it."""
        state = self.accelerator.get_state_dict(self.model)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in (state or {}).items()}


def start(arms: Mapping[str, Recipe]) -> dict[str, Accelerator]:
    """An Accelerator for every arm. All arms must agree on whether DeepSpeed is used: it is a fact of the process.

    With DeepSpeed, each arm has a plugin of its own; select it (`prepare` does) before building the arm's engine.
    """
    refuse_launch_options(arms)
    modes = {uses_deepspeed(recipe.engine) for recipe in arms.values()}
    if len(modes) > 1:
        raise UserError("engine.deepspeed differs between arms; one launch uses it for all of them or for none")
    plugins = None
    if modes == {True}:
        for name, value in SINGLE_PROCESS.items():
            os.environ.setdefault(name, value)
        no_compiler()
        world = int(os.environ["WORLD_SIZE"])
        plugins = {arm: DeepSpeedPlugin(hf_ds_config=deepspeed_config(r, world)) for arm, r in arms.items()}
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    accelerators: dict[str, Accelerator] = {}
    for arm, recipe in arms.items():
        first = not accelerators
        accelerators[arm] = _accelerator(
            # Without this, processes on the CPU would each train alone: Accelerate does not wrap their models.
            cpu=several and plugins is None and not torch.cuda.is_available(),
            mixed_precision="no",  # the student brings its own autocast, the same under every engine
            log_with=list(recipe.log.trackers) or None,
            # trackers add the run's name to the place of their files, which makes it the run's folder
            project_config=ProjectConfiguration(project_dir=str(recipe.folder), logging_dir=str(recipe.folder.parent)),
            deepspeed_plugins=plugins if first else None,
            kwargs_handlers=[_process_group(recipe.engine.patience)] if first else None,
        )
        if several and accelerators[arm].distributed_type == DistributedType.NO:
            raise RuntimeError("several processes were started, and Accelerate would let each of them train alone")
    return accelerators


def _accelerator(**options: Any) -> Accelerator:
    """An Accelerator; UserError where the other processes cannot be met."""
    try:
        return Accelerator(**options)
    except RuntimeError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise in_words(error, f"They meet at {place}") or error from error


def refuse_launch_options(arms: Mapping[str, Recipe]) -> None:
    """UserError where the launcher was told what the recipe decides, and otherwise."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = all(wants_bf16(recipe.engine, device) for recipe in arms.values())
    accumulate = {str(recipe.optim.accumulate) for recipe in arms.values()}
    refuse_unheeded(
        {
            "--mixed_precision": "engine.precision",
            "--dynamo_backend": "engine.compile",
            "--gradient_accumulation_steps": "optim.accumulate",
            "--offload_optimizer_device": "engine.deepspeed_config",
            "--offload_param_device": "engine.deepspeed_config",
            "--use_fsdp": "engine.deepspeed and engine.zero_stage",
        },
        {
            "--mixed_precision": ["bf16"] if bf16 else [],
            "--gradient_accumulation_steps": accumulate if len(accumulate) == 1 else [],
        },
    )


def no_compiler() -> None:
    """On the CPU, DeepSpeed builds a C++ all-reduce at first use: minutes of compiling that gloo makes unnecessary."""
    import deepspeed

    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def set_threads(node: EngineNode, device: torch.device) -> None:
    """`accelerate launch` leaves a process on the CPU with a single thread unless told otherwise: use the cores."""
    if device.type == "cpu":
        share = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(node.threads or max(1, share))


def prepare(accelerator: Accelerator, arm: str, student: Student, recipe: Recipe) -> Engine:
    """Put an arm's student and a new optimiser on its engine."""
    select_arm(accelerator, arm)
    stages = schedule(recipe)
    made = build_optimiser(student, recipe.optim, freezes=any(stage.optim.freeze_body_steps for stage in stages))
    # Taken out again: a checkpoint holds plain numbers only.
    places = [group.pop("place", None) for group in made.param_groups]
    student.vit.set_grad_checkpointing(recipe.engine.checkpointing)
    if recipe.engine.compile:
        student.compile()  # in place: names of weights, and what is saved and exported, stay as they are
    accelerator.gradient_accumulation_steps = recipe.optim.accumulate
    model, optimiser = accelerator.prepare(student, made)
    if accelerator.state.deepspeed_plugins is not None:
        fit_to_zero(model.optimizer, made)
    return Engine(arm, accelerator, model, optimiser, recipe.optim, places, stages)


def select_arm(accelerator: Accelerator, arm: str) -> None:
    """Choose among the DeepSpeed plugins that `start` made; nothing to choose without DeepSpeed."""
    if accelerator.state.deepspeed_plugins is not None:
        accelerator.state.select_deepspeed_plugin(arm)


def uses_deepspeed(node: EngineNode) -> bool:
    """Whether this process is to run on DeepSpeed, from the recipe and the launcher's --use_deepspeed."""
    launched = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if launched and node.deepspeed == "off":
        raise UserError("launched with --use_deepspeed, but the recipe says engine.deepspeed: off")
    if launched and os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        raise UserError("the DeepSpeed config is made from the recipe; launch without --deepspeed_config_file")
    return launched or node.deepspeed == "on"


def deepspeed_config(recipe: Recipe, world: int) -> dict[str, Any]:
    """DeepSpeed's own config for an arm. fp32 weights and moments: bf16, where used, is the student's autocast."""
    launcher = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))
    stage = recipe.engine.zero_stage or launcher
    own = recipe.engine.deepspeed_config
    return own | {
        "train_micro_batch_size_per_gpu": max(1, local_batch(recipe.optim, world) // recipe.optim.accumulate),
        "gradient_accumulation_steps": recipe.optim.accumulate,
        "gradient_clipping": recipe.optim.clip,
        "zero_optimization": {
            # Gradients are exchanged beside the backward pass; DeepSpeed does so by itself in stage 3 alone.
            "overlap_comm": torch.cuda.is_available() or stage == 3,
            **own.get("zero_optimization", {}),
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": True,  # the name is old: it gathers fp32 just as well
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def wants_bf16(node: EngineNode, device: torch.device) -> bool:
    """Whether to compute in bf16; `auto` only where the GPU has it in hardware."""
    has = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return node.precision == "bf16" or (node.precision == "auto" and has)


def environment_of(accelerator: Accelerator) -> dict[str, Any]:
    """What the run ran on, for environment.json."""
    import accelerate
    import deepspeed
    import timm

    device = accelerator.device
    return {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "accelerate": accelerate.__version__,
        "deepspeed": deepspeed.__version__ if accelerator.state.deepspeed_plugins is not None else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
    }


def only_existing(folder: Path) -> Path:
    """The folder, made if it is not there; UserError where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    return folder


def _process_group(minutes: float) -> InitProcessGroupKwargs:
    """Without a GPU the backend must be named: left to itself, Accelerate calls every rank of two the only one."""
    patience = datetime.timedelta(minutes=minutes)
    cpu = not torch.cuda.is_available() and "RANK" in os.environ and "WORLD_SIZE" in os.environ
    return InitProcessGroupKwargs(backend="gloo", timeout=patience) if cpu else InitProcessGroupKwargs(timeout=patience)
