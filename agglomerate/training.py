"""Training from Python: each function runs the same command that a shell would, in a process of its own.

So a training cannot disturb the program that starts it (process groups, threads, random state), and one that is
interrupted goes on where it stopped when it is called again.
"""

import subprocess
import sys
from os import PathLike, fspath
from pathlib import Path

from common.errors import UserError
from common.recipes import load_recipe
from common.shipped import shipped_recipes as _shipped
from distill.recipe import read
from featsharp_adapter.adapter.folder import TRAINED
from featsharp_adapter.recipe import AdapterRecipe

ERROR = "error: "  #: how the commands begin what a user can put right


def shipped_recipes() -> list[str]:
    """Names of the recipes and suites that ship, e.g. "quickstart.yaml" and "suites/embedded.yaml"."""
    return _shipped()


def distil(recipe: str | PathLike[str], *overrides: str, processes: int = 1, prepare: bool = False) -> Path:
    """Distil a student, probe it where the recipe says so, write the report; returns the folder of the run.

    recipe: a file, or the name of a shipped one. overrides: "field=value". processes: how many (GPUs) to launch.
    prepare: train adapters that are missing first. UserError for what the caller can put right.
    """
    run("distill.run", fspath(recipe), *overrides, *(["--prepare"] if prepare else []), processes=processes)
    return read(fspath(recipe), overrides).folder


def ablate(recipe: str | PathLike[str], *overrides: str, processes: int = 1, prepare: bool = False) -> Path:
    """Every arm of an ablation, and one table; returns the folder below which the arms lie."""
    run("distill.ablate", fspath(recipe), *overrides, *(["--prepare"] if prepare else []), processes=processes)
    return read(fspath(recipe), overrides).folder


def plan(recipe: str | PathLike[str], *overrides: str, gpu: str = "h100", gpus: int = 8) -> str:
    """What a distillation will cost: parameters, FLOPs, memory by ZeRO stage, GPU-hours, in words and tables."""
    return run("distill.run", fspath(recipe), *overrides, "--plan", "--gpu", gpu, "--gpus", str(gpus), keep=True)


def train_adapter(recipe: str | PathLike[str], *overrides: str, processes: int = 1) -> Path:
    """Train an adapter; returns its folder, which stands for it wherever an adapter is named.

    processes: how many (GPUs) to launch; more than one for `upsampler=ridge` alone, which is solved.
    """
    run("featsharp_adapter.train", fspath(recipe), *overrides, processes=processes)
    return Path(load_recipe(AdapterRecipe, fspath(recipe), overrides).out) / TRAINED


def run(module: str, *arguments: str, processes: int = 1, keep: bool = False) -> str:
    """Run a command of ours to its end; what it prints goes to the terminal, or is returned with `keep`.

    UserError with the command's own words where it ends with one; RuntimeError for any other failure.
    """
    launch = ["-m", "accelerate.commands.launch", "--num_processes", str(processes)] if processes > 1 else []
    command = [sys.executable, *launch, "-m", module, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE if keep else None, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        printed = "" if process.stdout is None else process.stdout.read()
        said = []
        for line in process.stderr or ():
            said.append(line)
            if not line.startswith(ERROR):
                sys.stderr.write(line)
    errors = [line.removeprefix(ERROR).rstrip() for line in said if line.startswith(ERROR)]
    if process.returncode and errors:
        raise UserError(errors[-1])
    if process.returncode:
        raise RuntimeError(f"{module} ended with exit code {process.returncode}; its messages are above")
    return printed
