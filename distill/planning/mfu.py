"""How much of a GPU's peak a run uses: FLOPs of its forward and backward passes, counted once for each size of images.

Model FLOPs, as PaLM's MFU has them (arXiv 2204.02311): what activation checkpointing computes again does not count, but
for us the teachers' forward passes do. Peaks are the data sheets' dense figures; for other devices there is no MFU.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from distill.planning.counting import CostCounter
from distill.planning.gpus import GPUS
from distill.recipe_models import StudentNode
from distill.schedule import Grid
from distill.student.ema import NoAverage
from distill.student.model import HeadSpec, Student

Made = TypeVar("Made")
TERA = 1e12
#: torch.cuda.get_device_name -> name in `distill.planning.gpus.GPUS`.
DEVICES = {
    "NVIDIA L40S": "l40s",
    "NVIDIA A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-PCIE-40GB": "a100-40",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200",
}


def peak_of(device: torch.device, *, bf16: bool) -> float | None:
    """FLOP/s of one device at its best, None where no data sheet's figure is known."""
    if device.type != "cuda":
        return None
    name = DEVICES.get(torch.cuda.get_device_name(device))
    return None if name is None else TERA * (GPUS[name].bf16 if bf16 else GPUS[name].fp32)


def peak_in_words(device: torch.device, *, bf16: bool) -> str:
    """What a run's MFU is measured against, for environment.json."""
    peak = peak_of(device, bf16=bf16)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"no peak is known for {name}: mfu is null" if peak is None else f"{name}, {peak / TERA:g} TFLOP/s"


class StudentFlops:
    """FLOPs of a student's forward and backward pass, counted on the meta device, once for each size of images."""

    def __init__(self, node: StudentNode, size: Grid, heads: Mapping[str, HeadSpec], *, mesa: bool = False) -> None:
        """mesa: with the forward pass of the moving average that MESA asks."""
        self._node, self._size, self._heads = node.model_copy(update={"weights": None}), size, heads
        self._mesa = mesa
        self._known: dict[Grid, float] = {}

    def of(self, images: Tensor) -> float:
        """For images [B, 3, H, W]."""
        return len(images) * self.per_image((int(images.shape[-2]), int(images.shape[-1])))

    def per_image(self, size: Grid) -> float:
        """For one image of (height, width) pixels."""
        if size not in self._known:
            self._known[size] = self._count(size)
        return self._known[size]

    def _count(self, size: Grid) -> float:
        with torch.random.fork_rng(devices=()), torch.device("meta"):
            student = Student(self._node, self._size, self._heads)
            images = torch.empty(1, 3, *size)
            with CostCounter(meta=True) as counted:
                answers = student(images)
                if self._mesa:
                    NoAverage(student).features(images)
                parts = [part for features in answers.values() for part in features if part is not None]
                torch.stack([part.sum() for part in parts]).sum().backward()
        return float(counted.flops)


class FlopMeter:
    """FLOPs that a process has done so far, for all its arms together, and the peak they are held against."""

    def __init__(self, peak: float | None) -> None:
        self.peak = peak
        self.done = 0.0
        self._known: dict[Any, float] = {}

    def count(self, key: Hashable, function: Callable[[], Made]) -> Made:
        """What `function` gives, its FLOPs added; they are counted at the first call with this `key`."""
        if key not in self._known:
            with CostCounter() as counted:
                made = function()
            self._known[key] = float(counted.flops)
        else:
            made = function()
        self.done += self._known[key]
        return made

    def rate(self, before: float, seconds: float) -> dict[str, float | None]:
        """TFLOP/s of this process since `done` was `before`, and their share of the peak: null where none is known."""
        speed = (self.done - before) / max(seconds, 1e-9)
        mfu = None if self.peak is None else round(speed / self.peak, 4)
        return {"tflops_per_second": float(f"{speed / TERA:.4g}"), "mfu": mfu}
