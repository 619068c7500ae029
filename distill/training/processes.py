"""The processes of a run: as many as were launched, one run in a folder, and all of them leave together."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
import torch.distributed as dist
from accelerate import Accelerator

from common.errors import UserError
from common.run_lock import RunLock
from distill.training.data import gather_objects

_MEANT = ("--num_processes", "--num-processes", "--num_machines", "--num-machines")


def refuse_strays() -> None:
    """UserError where a launcher was asked for several processes, and started each to train alone.

    `accelerate launch` does so on a CPU: it looks for GPUs, finds none, and starts the script once, whatever
    `--num_processes` and `--num_machines` say. torchrun and DeepSpeed's launcher tell their processes who they are.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    wanted = max(_asked_for(psutil.Process(os.getppid())), default=1)
    if wanted > 1:
        raise UserError(
            f"{wanted} were asked for, and `accelerate launch` started one alone (it does without GPUs). On the CPU:\n"
            f"  torchrun --nproc-per-node {wanted} SCRIPT ...\n"
            "  torchrun --nnodes N --nproc-per-node P --node-rank R --master-addr FIRST --master-port 29500 SCRIPT\n"
            f"  accelerate launch --use_deepspeed --zero_stage 2 --num_processes {wanted} SCRIPT ..."
        )


def _asked_for(launcher: psutil.Process) -> list[int]:
    """The numbers of processes and machines in an accelerate launcher's command line."""
    try:
        words = launcher.cmdline()
    except psutil.Error:
        return []
    if not any("accelerate" in word for word in words[:4]):
        return []
    pairs = [word.split("=", 1) for word in words if "=" in word] + [list(pair) for pair in pairwise(words)]
    return [int(value) for name, value in pairs if name in _MEANT and value.isdigit()]


@contextmanager
def alone_in(folder: Path, accelerator: Accelerator, *, take_over: bool) -> Iterator[None]:
    """Nobody else writes into the folder meanwhile: UserError, in all processes, where somebody does.

    The first process holds the lock for all of them.
    """
    lock, trouble = RunLock(folder, take_over=take_over), None
    if accelerator.is_main_process:
        try:
            lock.__enter__()
        except UserError as error:
            trouble = str(error)
    told = gather_objects({"trouble": trouble})[0]["trouble"]
    if told is not None:
        raise UserError(told)
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes > 1 and _is_of_another(error):
            reason = str(error).splitlines()[0][-200:]
            raise UserError(
                f"another process of this run ended, hangs or cannot be reached ({reason}); what it said last tells "
                "why. The last checkpoint stays; start again to go on"
            ) from error
        raise
    finally:
        if accelerator.is_main_process:
            lock.__exit__(None, None, None)


def _is_of_another(error: RuntimeError) -> bool:
    """Whether the error is one of talking to other processes: of torch.distributed, gloo or NCCL."""
    named = isinstance(error, dist.DistError)
    return named or any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "ProcessGroup"))


def leave_together(accelerator: Accelerator) -> bool:
    """The end of what processes do together; returns whether this is the one that stays for what is left.

    The others need not wait for it, and so no patience is needed for hours of probing.
    """
    main = bool(accelerator.is_main_process)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if dist.is_initialized():
        dist.destroy_process_group()
    return main
