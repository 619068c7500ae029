"""Launching a distillation in processes of its own, and comparing what two runs wrote."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.jsonl import read_log

ROOT = Path(__file__).parents[2]
#: Sums run in another order over two processes; nothing else may differ. Relative, on losses and gradient norms.
TOLERANCE = 1e-5


def launch(recipe: Path, *overrides: str, processes: int = 2, stage: int | None = 2, name: str | None = None) -> Path:
    """`accelerate launch` in its own interpreter; returns the run's folder, named after the layout unless given."""
    name = name or f"world{processes}-zero{stage}"
    start("distill/run.py", str(recipe), f"name={name}", *overrides, processes=processes, stage=stage)
    return recipe.parent / "runs" / name


def start(*arguments: str, processes: int, stage: int | None) -> None:
    """`accelerate launch` of a script with its arguments; without DeepSpeed it starts one process on the CPU alone."""
    command, environment = command_line(*arguments, processes=processes, stage=stage)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def command_line(*arguments: str, processes: int, stage: int | None) -> tuple[list[str], dict[str, str]]:
    """The command that launches a script, and its environment."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", str(processes)]
    if stage is None and processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    elif stage is not None:
        command += ["--use_deepspeed", "--zero_stage", str(stage)]
        # torchrun picks a free port, so that runs of other people on this machine do not meet ours.
        command += ["--main_process_port", "0"] if processes > 1 else []
    command += arguments
    return command, os.environ | {"OMP_NUM_THREADS": "1"}


def numbers(folder: Path) -> list[dict[str, Any]]:
    return [
        {"loss": line["loss"], "grad_norm": line["grad_norm"], **line["losses"]}
        for line in read_log(folder / "log.jsonl")
    ]


def assert_close(one: Path, other: Path) -> None:
    """Every logged loss and norm, and the exported weights, within the tolerance."""
    ours, theirs = numbers(one), numbers(other)
    assert len(ours) == len(theirs) == 6
    for line, reference in zip(ours, theirs, strict=True):
        assert line == pytest.approx(reference, rel=TOLERANCE)
    ours_student = load_file(one / "student" / "model.safetensors")
    for name, tensor in load_file(other / "student" / "model.safetensors").items():
        assert torch.allclose(ours_student[name], tensor, rtol=1e-3, atol=1e-4), name
