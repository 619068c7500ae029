"""Two processes of this machine, joined as a launcher joins them, without the launcher."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from eval_suite import processes


def said_by_two(work: Callable[..., Any], folder: Path, *given: Any) -> tuple[Any, Any]:
    """What `work(*given)` returned in each of two processes, the first one's first."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.start_processes(_one, args=(str(folder), work, given), nprocs=2, start_method="fork")  # imports take 8 s
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    return first, second


def _one(rank: int, folder: str, work: Callable[..., Any], given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo", RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    processes._joined, processes._patient = True, dist.new_group(backend="gloo")
    torch.save(work(*given), f"{folder}/{rank}.pt")
    dist.barrier()
    processes._joined, processes._patient = False, None
    dist.destroy_process_group()
