"""What an engine has learned so far, as files: with and without DeepSpeed, copied to the host first, written later.

    engine/random-0.pt  random-1.pt ...     where each process's random numbers stand
           student.pt  optimiser.pt         without DeepSpeed: alike on all processes, written by the first
           state/...                        DeepSpeed's own files; each process writes the shards it holds

All are read with torch's restricted unpickler: tensors and plain data, nothing that runs.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from common.errors import UserError
from distill.training.rng_state import read_rng, write_rng

ENGINE, STUDENT, OPTIMISER = "engine", "student.pt", "optimiser.pt"
DEEPSPEED = "state"  #: DeepSpeed's tag, and with it its folder


class EngineState(Protocol):
    """An engine's part in a checkpoint."""

    def copy(self) -> dict[str, Any]:
        """Path in a checkpoint -> what to `torch.save` there, on the host; this process's part. All must call it."""
        ...

    def restore(self, folder: Path, *, random: bool = True) -> None:
        """The inverse, from a checkpoint's folder. random: the place of the random numbers too."""
        ...


def state_of(accelerator: Accelerator, model: nn.Module, optimiser: Any) -> EngineState:
    """The state of a student on its engine."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return ShardedState(accelerator, model)
    return PlainState(accelerator, model, optimiser)


class PlainState:
    """Without DeepSpeed: one process, or several that all hold the same."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimiser: Any) -> None:
        self.accelerator, self.model, self.optimiser = accelerator, model, optimiser

    def copy(self) -> dict[str, Any]:
        files = {random_file(self.accelerator): read_rng(self.accelerator.device)}
        if self.accelerator.is_main_process:
            files[f"{ENGINE}/{STUDENT}"] = on_host(self.accelerator.unwrap_model(self.model).state_dict())
            files[f"{ENGINE}/{OPTIMISER}"] = on_host(self.optimiser.state_dict())
        return files

    def restore(self, folder: Path, *, random: bool = True) -> None:
        self.accelerator.unwrap_model(self.model).load_state_dict(read(folder / ENGINE / STUDENT))
        self.optimiser.load_state_dict(read(folder / ENGINE / OPTIMISER))
        if random:
            restore_random(folder, self.accelerator)


class ShardedState:
    """With DeepSpeed: its `save_checkpoint`, whose files are kept in memory instead of written."""

    def __init__(self, accelerator: Accelerator, model: Any) -> None:
        self.accelerator, self.model = accelerator, model

    def copy(self) -> dict[str, Any]:
        with self._kept() as kept:
            self.model.save_checkpoint(ENGINE, tag=DEEPSPEED, save_latest=False)
        return kept.files | {random_file(self.accelerator): read_rng(self.accelerator.device)}

    def restore(self, folder: Path, *, random: bool = True) -> None:
        with self._kept():
            found, _ = self.model.load_checkpoint(str(folder / ENGINE), tag=DEEPSPEED)
        if found is None:
            raise UserError(f"{folder} holds no state of DeepSpeed's")
        if random:
            restore_random(folder, self.accelerator)

    @contextmanager
    def _kept(self) -> "Iterator[Any]":
        """DeepSpeed with files that go to memory, and without the scripts that it copies beside them."""
        own, script = self.model.checkpoint_engine, self.model._copy_recovery_script
        kept = in_memory()
        self.model.checkpoint_engine, self.model._copy_recovery_script = kept, lambda path: None
        try:
            yield kept
        finally:
            self.model.checkpoint_engine, self.model._copy_recovery_script = own, script


def in_memory() -> Any:
    """A DeepSpeed checkpoint engine that keeps copies of what it is to save, by path, and reads with `read`."""
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

    class InMemory(CheckpointEngine):
        def __init__(self) -> None:
            super().__init__()
            self.files: dict[str, Any] = {}

        def create(self, info: Any) -> None: ...

        def makedirs(self, path: str, exist_ok: bool = False) -> None: ...

        def save(self, state_dict: Mapping[str, Any], path: str) -> None:
            self.files[path] = on_host(state_dict)

        def load(self, path: str, map_location: Any = None) -> Any:
            return read(Path(path))

        def commit(self, info: Any) -> bool:
            return True

        def preserves_storage_sharing(self) -> bool:
            return False  # copies are compact

    return InMemory()


def on_host(value: Any) -> Any:
    """A copy that nothing of the training changes any more: tensors on the CPU, each with memory of its own."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: on_host(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_host(each) for each in value) if type(value) in (list, tuple) else value
    return value


def read(path: Path) -> Any:
    """A file of ours or of DeepSpeed's, on the CPU, with the restricted unpickler."""
    with torch.serialization.safe_globals(known_globals()):
        return torch.load(path, map_location="cpu", weights_only=True)


def known_globals() -> list[Any]:
    """Classes of plain data in DeepSpeed's files."""
    try:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address
    except ImportError:
        return []
    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def random_file(accelerator: Accelerator) -> str:
    return f"{ENGINE}/random-{accelerator.process_index}.pt"


def restore_random(folder: Path, accelerator: Accelerator) -> None:
    """Where this process's random numbers stood; a process that was not there then keeps its own."""
    path = folder / random_file(accelerator)
    if path.is_file():
        write_rng(read(path), accelerator.device)


def read_student(folder: Path) -> dict[str, Tensor]:
    """The student's weights from a checkpoint of any engine. UserError where they are not in it."""
    plain, sharded = folder / ENGINE / STUDENT, folder / ENGINE / DEEPSPEED
    if plain.is_file():
        return dict(read(plain))
    states = sorted(sharded.glob("*model_states.pt"))
    if not states:
        raise UserError(f"{folder} is no checkpoint of a distillation")
    if states[0].name.startswith("mp_rank"):  # stages 1 and 2: whole on every process
        return dict(read(states[0])["module"])
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with torch.serialization.safe_globals(known_globals()):
        return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder / ENGINE), tag=DEEPSPEED))
