"""Everything that only a GPU can tell, in one go; meant for at most 8 minutes on one GPU.

    python benchmarks/gpu.py                       on the GPU; without one it says so and measures nothing
    python benchmarks/gpu.py --device cpu          the same script at small sizes: does it run?

1 exactness    every fused path against its plain form in float64, and against the slow form at real sizes
2 crossover    from which factor on a sharpened teacher costs less time than the teacher at full resolution
3 step         a distillation step: time by parts, TFLOP/s, MFU; also the adapter in bfloat16, and teachers compiled
4 ZeRO         the same step plain and under DeepSpeed ZeRO 1, 2, 3 on this one GPU: time, memory, losses
5 decoding     photographs to crops to the device, images a second

A section that would begin after --minutes is left out, and the script says so; --only takes it up another time. Weights
are random: they do not change the time. Every engine has a process of its own.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crossover
import decoding
import jbu_speed
import torch
import window_attention
from loop_steps import SteppedArms
from timing import add_device, alternating_ms, describe, now_ms, open_device, table
from torch import Tensor

from common.errors import add_debug_flag, guard
from common.jsonl import read_log
from common.recipes import validate
from distill.recipe import Recipe
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.description import AdapterMeta
from featsharp_adapter.model import adaptive_upsample, local_attention
from featsharp_adapter.model.exactness import TOLERANCE
from featsharp_adapter.model.phi_s import PhiS
from featsharp_adapter.model.views import Views
from imagery.augment import Augment
from teachers.registry import load_backbone

ENGINES = {"plain": "off", "ZeRO-1": 1, "ZeRO-2": 2, "ZeRO-3": 3}
#: Ways to do the same step: (teachers.*.adapter_dtype, engine.compile_teachers).
WAYS = {"plain": ("float32", False), "adapter in bfloat16": ("bfloat16", False), "teachers compiled": ("float32", True)}
LEFT_OUT = 3  #: updates of an engine that warm it up, and compile
ADAPTER = "builtin:tiny-clip-featsharp-2x"


@dataclass(frozen=True)
class Sizes:
    """What is measured: real on a GPU, small as a smoke."""

    dims: tuple[int, int]  #: of the adapters' fused paths: width of JBU, width of the window attention
    grid: int
    teacher: str  #: of the crossover
    factors: tuple[int, ...]
    student: str
    taught_by: str
    pixels: int
    batch: int
    photographs: int
    side: int
    steps: int  #: updates of an engine
    teacher_pixels: int  #: at which it teaches: a small one's map is of 4x4 tokens at least


REAL = Sizes((1024, 2048), 32, "timm:vit_huge_patch14_clip_378", (2, 3, 4), "vit_large_patch16_224",
             "timm:vit_large_patch14_clip_336", 432, 16, 24, 2048, 12, 336)  # fmt: skip
SMALL = Sizes((32, 64), 14, "timm:vit_tiny_patch16_224", (2, 3), "vit_tiny_patch16_224",
              "timm:vit_tiny_patch16_224", 64, 2, 2, 256, 5, 64)  # fmt: skip


@torch.inference_mode()
def exactness(sizes: Sizes, device: torch.device) -> str:
    """Largest differences, in shares of the largest value."""
    rows: list[list[object]] = []
    for trial in (local_attention.TRIAL, adaptive_upsample.TRIAL):
        expected = trial.plain()
        apart = float((trial.fast(device).double().cpu() - expected).abs().max() / expected.abs().max())
        rows.append([f"{trial.name} against float64", f"{apart:.0e}", f"{TOLERANCE:.0e}"])
    jbu = jbu_speed.measure(sizes.dims[0], sizes.grid, 2, 1, 1, False, device)
    rows.append([f"JBU, {sizes.dims[0]} wide, against unfolding ({jbu[5]} faster)", jbu[-1], "1e-05"])
    attention = window_attention.measure(sizes.dims[1], 2 * sizes.grid, 1, 7, 1, device)
    rows.append([f"windows, {sizes.dims[1]} wide, against dense ({attention[4]} faster)", attention[-1], "1e-05"])
    rows.append(["an adapter in bfloat16 against float32, norms", f"{adapter_apart(device):.0e}", "1e-02"])
    return table(["path", "differs by", "allowed"], rows)


def adapter_apart(device: torch.device) -> float:
    """|bf16 - fp32| / |fp32| of a shipped adapter's map in PHI-S space, on random views."""
    adapter = Adapter.from_pretrained(ADAPTER).to(device)
    spec, torch_numbers = adapter.meta.teacher, torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch_numbers).to(device)

    grid, width = spec.native_grid, spec.spatial_dim
    views = Views(None, numbers(1, width, *grid), {2: numbers(1, width, 2 * grid[0], 2 * grid[1])})
    images = numbers(1, 3, *(2 * side for side in spec.native_size)).sigmoid()
    exact = adapter.forward_normalised(views, images)
    adapter.dtype = torch.bfloat16
    return float((adapter.forward_normalised(views, images) - exact).norm() / exact.norm())


def crossing(sizes: Sizes, device: torch.device) -> str:
    """Milliseconds on a GPU; on a CPU operations."""
    on_gpu = device.type == "cuda"
    rows = crossover.measure(sizes.teacher, list(sizes.factors), "cuda" if on_gpu else "meta")
    unit = "ms" if on_gpu else "TFLOPs"
    head = ["factor", f"full size, {unit}", f"1 + x^2 passes, {unit}", f"adapter, {unit}", "full size / sharpened"]
    return f"{table(head, rows)}\nthe sharpened teacher costs less from factor {crossover.crossover(rows)} on"


def recipe_of(sizes: Sizes, folder: Path, engine: str, adapter: Path, way: str) -> Recipe:
    """One teacher, sharpened twofold, of random weights."""
    zero = ENGINES[engine]
    adapter_dtype, compiled = WAYS[way]
    own = {"deepspeed": "off"} if zero == "off" else {"deepspeed": "on", "zero_stage": zero}
    own |= {
        "compile_teachers": compiled,
        "threads": 1,
    }  # on a CPU, which may be shared: threads that wait for each other spin
    data = {
        "name": "gpu",
        "out": str(folder / f"{engine}-{way}"),
        "data": {"train": f"scenes:seed=1,count={sizes.batch},size={sizes.pixels}", "size": [sizes.pixels] * 2},
        "student": {"model": sizes.student, "patch_size": 16},
        "teachers": {
            "teacher": {
                "backbone": teacher_node(sizes),
                "upsampler": "featsharp",
                "factor": 2,
                "adapters": {"featsharp": str(adapter)},
                "adapter_dtype": adapter_dtype,
            }
        },
        "normaliser": {"batches": 1},
        # One more than is made: after the last one a checkpoint is written, beside what is measured.
        "optim": {"name": "lamb", "steps": sizes.steps + 1, "batch_size": sizes.batch, "lr": 1e-3, "warmup_steps": 1},
        "checkpoint": {"every": 1_000_000},
        "engine": own,
    }
    return validate(Recipe, data, "gpu.py")


def teacher_node(sizes: Sizes) -> dict[str, Any]:
    """The same random weights in every process."""
    return {"spec": sizes.taught_by, "pretrained": False, "image_size": sizes.teacher_pixels}


def steps_of(sizes: Sizes, engine: str, way: str) -> dict[str, Any]:
    """Medians of the log's times over the steps that count, losses and memory; run in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.manual_seed(0)
        spec = load_backbone(teacher_node(sizes)).spec
        adapter = Adapter.build(AdapterMeta(spec, teacher_node(sizes), "featsharp", 2), PhiS(spec.spatial_dim))
        adapter.save_pretrained(folder / "adapter")
        recipe = recipe_of(sizes, folder, engine, folder / "adapter", way)
        stepped = SteppedArms.of({recipe.name: recipe})
        began = 0.0
        for number in range(sizes.steps):
            if number == LEFT_OUT:
                began = now_ms()
            stepped.step()
        each = (now_ms() - began) / (sizes.steps - LEFT_OUT)
        lines = read_log(recipe.folder / "log.jsonl")
    last = lines[-1]["time"]
    names = ("data", "teachers", "student", "tflops_per_second", "mfu", "peak_memory_mib")
    return {"ms": each, "losses": [line["loss"] for line in lines], **{name: last[name] for name in names}}


@functools.cache
def run_apart(device: torch.device, engine: str, way: str) -> dict[str, Any]:
    """`steps_of` in a process of its own; what it said where it failed."""
    command = [sys.executable, __file__, "--device", device.type, "--engine", engine, "--way", way]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TQDM_DISABLE": "1"}, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith('{"ms"')]
    if done.returncode or not found:
        return {"failed": (done.stderr.strip().splitlines() or ["without a word"])[-1]}
    result: dict[str, Any] = json.loads(found[-1])
    return result


def step(_: Sizes, device: torch.device) -> str:
    """Seconds of a step by parts, from the last line of its log."""
    rows: list[list[object]] = []
    for way in WAYS:
        found = run_apart(device, "plain", way)
        if "failed" in found:
            rows.append([way, f"failed: {found['failed']}", *[""] * 6])
            continue
        parts = [1000 * found[name] for name in ("data", "teachers", "student")]
        rows.append(
            [way, found["ms"], *parts, found["tflops_per_second"], found["mfu"], found["peak_memory_mib"] / 1024]
        )
    return table(["way", "step ms", "data", "teachers", "student", "TFLOP/s", "MFU", "GiB"], rows)


def zero(sizes: Sizes, device: torch.device) -> str:
    """Every engine on the same images and first weights; losses relative to the plain engine's."""
    rows: list[list[object]] = []
    plain: list[float] = []
    for engine in ENGINES:
        found = run_apart(device, engine, "plain")
        if "failed" in found:
            rows.append([engine, f"failed: {found['failed']}", "", ""])
            continue
        plain = plain or found["losses"]
        apart = max(abs(one - other) / other for one, other in zip(found["losses"], plain, strict=True))
        rows.append([engine, found["ms"], found["peak_memory_mib"] / 1024, f"{apart:.0e}"])
    return table(["engine", "step ms", "GiB", f"losses of {sizes.steps} updates differ by"], rows)


def decode(sizes: Sizes, device: torch.device) -> str:
    """Crops a second by threads, and the way of a batch of them to the device."""
    files = decoding.photographs(None, sizes.side, sizes.photographs)
    size = sizes.side // 2
    ways = decoding.ways(Augment(zoom=(1.0, 1.1)), size)
    threads = len(os.sched_getaffinity(0))
    found = decoding.measure({"crop": ways["crop"]}, files, threads, 2)["crop"]
    batch = torch.stack([torch.from_numpy(ways["crop"](data, place)) for place, data in enumerate(files)])
    variants: dict[str, Callable[[], object]] = {"pageable": lambda: batch.to(device)}
    if device.type == "cuda":
        pinned = batch.pin_memory()
        variants["pinned"] = lambda: pinned.to(device, non_blocking=True)
    copies = alternating_ms(variants, 5)
    rows: list[list[object]] = [[f"decode and crop, {threads} threads", found[1]]]
    rows += [[f"copy to {device}, {name}", 1000 * len(batch) / max(ms, 1e-6)] for name, ms in copies.items()]
    return table([f"{sizes.side} -> {size} px", "images a second"], rows)


SECTIONS = {"exactness": exactness, "crossover": crossing, "step": step, "ZeRO": zero, "decoding": decode}


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device(parser)
    parser.set_defaults(device="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="no section begins after")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="a section; may be repeated")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=list(WAYS), default="plain", help=argparse.SUPPRESS)
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU here: nothing was measured; --device cpu tries the script at small sizes")
        return 0
    device = open_device(arguments)
    sizes = REAL if device.type == "cuda" else SMALL
    if arguments.engine:
        print(json.dumps(steps_of(sizes, arguments.engine, arguments.way)), flush=True)
        return 0
    print(describe(device), "" if sizes is REAL else "(small sizes: a smoke, no measurement)")
    began = time.monotonic()
    for name in arguments.only or SECTIONS:
        if time.monotonic() - began > 60 * arguments.minutes:
            print(f"\n## {name}\n\nleft out: {arguments.minutes:g} minutes are over")
            continue
        started = time.monotonic()
        print(f"\n## {name}\n\n{SECTIONS[name](sizes, device)}\n\n{time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
