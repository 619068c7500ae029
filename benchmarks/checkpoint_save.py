"""How long a save stops training, and how long it takes beside it, for a student of so many million parameters.

    python benchmarks/checkpoint_save.py [--millions 300] [--folder FOLDER]

Weights and two moments in float32, as AdamW has them. Printed: the stall, in two parts: waiting for the save before to
be on the disk, and copying to the host, in wall time and in processor time of the thread that trains, which other
programs disturb less; the whole length until the checkpoint has its name, how much of it the checksums take, and what
checking it costs. The third save comes at once after the second, as where `checkpoint.every` is too small for the disk;
in a training that saves less often than a save takes, nothing is waited for.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate import Accelerator

from common.step_folders import problem
from distill.training.checkpoint import Checkpoints
from distill.training.engine_state import state_of


class Place:
    """A stream that stands at the beginning."""

    def state_dict(self) -> dict[str, Any]:
        return {"at": 0}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=300)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    options = parser.parse_args()
    width = 1024
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(options.millions * 10**6 // width**2)))
    optimiser = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    optimiser.zero_grad()
    accelerator = Accelerator()
    engine = state_of(accelerator, *accelerator.prepare(model, optimiser))
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        checkpoints = Checkpoints(Path(scratch), accelerator, {}, keep=1)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}")
        for step in (1, 2, 3):
            began = time.perf_counter()
            checkpoints.wait()
            waited, used = time.perf_counter() - began, time.thread_time()
            checkpoints.save(step, engine, Place(), {})
            copied, used = time.perf_counter() - began - waited, time.thread_time() - used
            stall = f"save {step}: waiting {waited:.2f} s, copying {copied:.2f} s ({used:.2f} s of the processor)"
            if step == 2:
                print(stall, flush=True)
                continue
            checkpoints.wait()
            length = time.perf_counter() - began - waited
            path = checkpoints.folders.path(step)
            size = sum(file.stat().st_size for file in path.rglob("*"))
            piece, began = bytes(4 << 20), time.perf_counter()
            for _ in range(64):
                xxhash.xxh3_128(piece)
            checksum = (time.perf_counter() - began) / (64 * len(piece)) * size
            began = time.perf_counter()
            assert problem(path) is None
            check = time.perf_counter() - began
            print(
                f"{stall}, {size / 2**30:.2f} GiB, length {length:.1f} s "
                f"({size / length / 2**20:.0f} MiB/s), checksums {checksum:.2f} s of it ({checksum / length:.1%}), "
                f"checking before a resume {check:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
