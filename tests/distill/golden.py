"""The first steps of recipes/debug.yaml, stored. `python tests/distill/golden.py` stores them anew.

Policy: on the machine kind and torch they were stored with, every number is the same to the last bit. Elsewhere kernels
sum in other orders, and all numbers are within `TOLERANCE` (relative).
"""

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).with_name("golden_debug.json")
STEPS = 4
TOLERANCE = 1e-3


def machine() -> dict[str, str]:
    """What decides the last bit of a sum on a CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "cpu": model or platform.processor(), "capability": capability}


def first_steps(out: Path) -> list[dict[str, Any]]:
    """Loss, losses per teacher, gradient norm and rate of the first steps, from the log of a run below `out`."""
    from small_run import train

    from common.jsonl import read_log
    from distill.recipe import read

    recipe = read(ROOT / "recipes" / "debug.yaml", [f"out={out}", "engine.threads=1"])
    lines = read_log(train(recipe) / "log.jsonl")[:STEPS]
    return [{key: line[key] for key in ("step", "loss", "losses", "grad_norm", "lr")} for line in lines]


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    with tempfile.TemporaryDirectory() as scratch:
        STORED.write_text(json.dumps({"machine": machine(), "steps": first_steps(Path(scratch))}, indent=1) + "\n")
