"""The student at its true size against stand-ins of its teachers: every stage, checkpoint, resume, export."""

import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.jsonl import read_log
from common.recipes import validate
from distill.exported import from_pretrained
from distill.planning.counting import Cost
from distill.planning.plan import Plan
from distill.planning.weightless_backbones import shapes_only
from distill.recipe import Recipe
from distill.schedule import schedule
from distill.smoke.measured import GIB, Part, run_device, run_part
from distill.smoke.stand_in import stand_in_node
from distill.training.arms import Arm, run_arm
from distill.training.engine import start, wants_bf16
from imagery.sources import open_sources

IMAGES = "scenes:seed=1,count=4,size=256,cache=true"


def smoke_recipe(recipe: Recipe, out: Path) -> Recipe:
    """One update of every stage (two of a single one), one image in every partition, at its largest size."""
    data: dict[str, Any] = recipe.model_dump(mode="json")
    specs = {name: shapes_only(node.backbone).spec for name, node in recipe.teachers.items()}
    steps = 1 if len(recipe.stages) > 1 else 2
    for name, node in data["teachers"].items():
        node |= {"backbone": stand_in_node(specs[name]), "adapters": {}, "denoise": None}
        node["upsampler"] = "none" if node["upsampler"] == "none" else "bilinear"
    for stage in data["stages"].values():
        stage |= {"steps": steps, "warmup_steps": 0, "freeze_body_steps": 0, "split": "step"}
        for part in stage["partitions"].values():
            part |= {"batch_size": 1, "sizes": part["sizes"] and [max(part["sizes"])], "ranks": 1}
            for node in part["teachers"].values():
                node |= {"denoise": None}
    updates = steps * max(1, len(data["stages"]))
    data["optim"] |= {"batch_size": 1, "accumulate": 1, "steps": updates, "warmup_steps": 0, "freeze_body_steps": 0}
    data["data"] |= {"train": IMAGES, "workers": 0}
    data["student"] |= {"weights": None}
    data |= {"start_from": None, "start_optimiser": False}
    data["normaliser"] |= {"batches": 1, "load": None}
    # On a CPU the copy that is written lies in the memory that the next update wants.
    data["checkpoint"] = {"every": max(1, updates - 1), "keep": 2, "background": run_device().type != "cpu"}
    data["log"] = {"every": 1, "trackers": []}
    data |= {"name": f"{recipe.name}-smoke", "out": str(out), "eval": None, "arms": {}, "baseline": None, "seeds": []}
    return validate(Recipe, data, f"the smoke of {recipe.name}")


def student_parts(small: Recipe) -> Iterator[Part]:
    """Train from nothing to the end, go on from the last checkpoint but one, export, look at images with the export.

    small: of `smoke_recipe`.
    """
    shutil.rmtree(small.folder, ignore_errors=True)
    bf16 = wants_bf16(small.engine, run_device())
    plan = Plan(small, 1, bf16=bf16)
    trained, _ = run_part(f"student: {small.optim.steps} updates", lambda: train(small), planned_cost(plan))
    yield trained
    log = read_log(small.folder / "log.jsonl")
    for line, stage in zip(log, (s for s in schedule(small) for _ in range(s.steps)), strict=True):
        shown = " + ".join(f"{part.sizes[0][0]}x{part.sizes[0][1]}" for part in stage.passes)
        yield Part(f"student: update {line['step']}, stage {stage.name} ({shown} px)", line["time"]["wall"])
    last = max((small.folder / "checkpoints").glob("step-*"))
    yield Part("checkpoint", log[-1]["time"].get("save", 0.0), note=f"{folder_bytes(last) / GIB:.2f} GiB on the disk")
    yield resume(small, last, log[-1]["loss"])
    yield from export_parts(small)


def train(recipe: Recipe) -> None:
    """As distill/run.py does."""
    accelerator = start({recipe.name: recipe})[recipe.name]
    run_arm(Arm(recipe.name, recipe, accelerator), open_sources(recipe.data.train), export_untrained=False)


def planned_cost(plan: Plan) -> Cost:
    """Of the whole smoke: every update, and the look at the first batch that PHI-S is estimated on."""
    flops = 0.0
    for stage in plan.stages:
        for one in stage.passes:
            looking = sum(one.teachers.values())
            flops += stage.stage.steps * (one.student + looking + sum(one.adapters.values()))
            flops += looking if stage is plan.stages[0] else 0.0
    # On a CPU what is saved and its copy lie in one memory.
    written = 2 * plan.saved_bytes if run_device().type == "cpu" else 0
    return Cost(flops, int(max(plan.bytes_on_a_gpu(0), written)))


def resume(recipe: Recipe, last: Path, loss: float) -> Part:
    """Without the last checkpoint and the export: the last update again, with the loss it had. UserError if not."""
    shutil.rmtree(last)
    shutil.rmtree(recipe.folder / "student")
    began = time.perf_counter()
    train(recipe)
    again = read_log(recipe.folder / "log.jsonl")[-1]["loss"]
    if again != loss:
        raise UserError(f"{recipe.name}: after resuming the last update's loss is {again}, it was {loss}")
    return Part("resume from the checkpoint before, last update, export", time.perf_counter() - began, note="same loss")


def export_parts(recipe: Recipe) -> Iterator[Part]:
    """The export's size, and features of one image at every size of the schedule."""
    folder = recipe.folder / "student"
    began = time.perf_counter()
    student = from_pretrained(folder).to(run_device())
    yield Part("load the export", time.perf_counter() - began, note=f"{folder_bytes(folder) / GIB:.2f} GiB on the disk")
    sizes = dict.fromkeys(size for stage in schedule(recipe) for part in stage.passes for size in part.sizes)
    for size in sizes:
        with torch.no_grad():
            part, found = run_part(
                f"features at {size[0]}x{size[1]} px", partial(student, torch.rand(1, 3, *size, device=run_device()))
            )
        if not bool(torch.isfinite(found.spatial).all()):
            raise UserError(f"{recipe.name}: features at {size[0]}x{size[1]} px are not finite")
        yield part


def folder_bytes(folder: Path) -> int:
    """Of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
