"""The processes of a run: as many as were launched, one run in a folder, and all of them leave together."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
import torch.distributed as dist
from accelerate import Accelerator

from common.errors import UserError
from common.launch_options import check_launch
from common.other_processes import in_words
from common.run_lock import RunLock
from distill.training.data import gather_objects


def refuse_strays() -> None:
    """UserError where `accelerate launch` was asked for several processes, and started each to train alone.

    It does so without several GPUs: it starts the script once, whatever `--num_processes`, `--num_machines` or its
    config file say. torchrun and DeepSpeed's launcher tell their processes who they are.
    """
    check_launch()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    launcher = psutil.Process(os.getppid())
    processes, machines = (_asked_for(launcher, word) for word in ("processes", "machines"))
    if processes > 1 or machines > 1 or _meets_others(launcher):
        raise UserError(
            "several processes were asked for, and `accelerate launch` started one alone, as it does without several "
            f"GPUs. What works:\n  {_with_torchrun(processes, machines)}"
            + (
                "\nor add --use_deepspeed --zero_stage 2 to the launcher's options, without --cpu"
                if machines < 2
                else ""
            )
        )


def _asked_for(launcher: psutil.Process, what: str) -> int:
    """The number of processes or machines in the command line of `accelerate launch`; 0 where there is none."""
    try:
        words = launcher.cmdline()
    except psutil.Error:
        return 0
    if not any("accelerate" in word for word in words[:4]):
        return 0
    pairs = [word.split("=", 1) for word in words if "=" in word] + [list(pair) for pair in pairwise(words)]
    names = (f"--num_{what}", f"--num-{what}")
    return max((int(value) for name, value in pairs if name in names and value.isdigit()), default=0)


def _meets_others(launcher: psutil.Process) -> bool:
    """Whether `accelerate launch` told this process where to meet others: so it does for several, without a count."""
    try:
        told = "MASTER_PORT" in os.environ and "MASTER_PORT" not in launcher.environ()
    except psutil.Error:
        return False
    return told and "ACCELERATE_MIXED_PRECISION" in os.environ


def _with_torchrun(processes: int, machines: int) -> str:
    """The command that starts what was asked for; `--num_processes` counts those of all machines."""
    each = str(max(1, processes // max(1, machines))) if processes else "PROCESSES"
    words = ["torchrun", "--nproc-per-node", each]
    if machines > 1:
        address, port = os.environ.get("MASTER_ADDR", "FIRST"), os.environ.get("MASTER_PORT", "29500")
        words += ["--nnodes", str(machines), "--node-rank", "RANK", "--master-addr", address, "--master-port", port]
    return shlex.join([*words, *sys.argv])


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
        words = in_words(error, "The last checkpoint stays") if accelerator.num_processes > 1 else None
        raise words or error from error
    finally:
        if accelerator.is_main_process:
            lock.__exit__(None, None, None)


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
