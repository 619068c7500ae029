"""The plan against what really runs: FLOPs by torch's own counter, memory by the tensors of a whole small training."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from small_run import small_recipe, small_vit, train
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common.errors import UserError
from common.recipes import validate
from distill.losses.step import DistillStep
from distill.planning import plan_text as words
from distill.planning.costs import Counter
from distill.planning.counting import CostCounter
from distill.planning.gpus import GPUS, Gpu, find_gpu
from distill.planning.mfu import StudentFlops
from distill.planning.plan import TERA, Plan, deepspeed_estimate
from distill.planning.plan_text import plan_text
from distill.planning.weightless_backbones import TableBackbone
from distill.recipe import Recipe, read
from distill.schedule import schedule
from distill.student.ema import MovingAverage
from distill.student.model import Student
from distill.targets.targets import Targets
from featsharp_adapter.sharpening.peak_memory import PeakMemory
from teachers.known import KNOWN

ROOT = Path(__file__).parents[3] / "recipes"
TOLERANCE = 0.15


def recipe_of(out: Path, **changes: Any) -> Recipe:
    """The small recipe, large enough for activations to matter: 64 px, 16 images, a teacher through a real adapter."""
    data = small_recipe(out)
    data["data"] = {"train": "scenes:seed=3,count=16,size=64,cache=true", "size": [64, 64]}
    data["student"] |= {"embed_dim": 64, "depth": 4}
    data["teachers"]["coarse"]["backbone"] = small_vit(32, 24)
    data["teachers"]["fine"]["backbone"] = small_vit(64, 12, summary="none")
    data["optim"] = {"steps": 2, "batch_size": 16, "lr": 0.003}
    data["normaliser"] = {"batches": 1}
    return validate(Recipe, data | changes, "test")


SHARPENED = {
    "clip": {
        "backbone": "tiny:clip",
        "upsampler": "featsharp",
        "factor": 2,
        "adapters": {"featsharp": "builtin:tiny-clip-featsharp-2x"},
    }
}
PARTITIONS = {
    "main": {
        "steps": 2,
        "partitions": {
            "low": {"sizes": [32, 48], "batch_size": 16, "teachers": {"fine": {"mosaic": True}}, "without": ["coarse"]},
            "high": {"batch_size": 8},
        },
    }
}


def really_counted(recipe: Recipe, backends: list[SDPBackend], mapping: dict[Any, Any]) -> tuple[float, float]:
    """(student, teachers and adapters) of one real step on real numbers, by torch's counter."""
    part = schedule(recipe)[0].passes[0]
    targets = Targets(recipe, torch.device("cpu"))
    images = torch.rand(part.batch_size, 3, *part.sizes[0])
    targets.fit([images])
    student = Student(recipe.student, recipe.data.size, targets.heads())
    average = MovingAverage(student, 0.5, torch.device("cpu")) if recipe.loss.mesa else None
    student.returns_backbone = average is not None
    step = DistillStep(student, targets, recipe, targets.dispersions(), part, average=average)
    with sdpa_kernel(backends):
        with FlopCounterMode(display=False, custom_mapping=mapping) as looking:
            seen = step.make_targets(images)
        with FlopCounterMode(display=False, custom_mapping=mapping) as learning:
            step.loss(images, seen).loss.backward()
    return learning.get_total_flops(), looking.get_total_flops()


@pytest.mark.parametrize(
    "changes",
    [{}, {"teachers": SHARPENED}, {"loss": {"mesa": 1.0}, "ema": {"decay": 0.5}}],
    ids=["tiles", "featsharp", "mesa"],
)
def test_flops_are_those_of_torchs_counter_on_a_real_step(changes: dict[str, Any], tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, **changes)
    made = Plan(recipe, 1, bf16=False)
    (cost,) = made.stages[0].passes
    planned = cost.student, sum(cost.teachers.values()) + sum(cost.adapters.values())
    # By torch's own counter and formulas, attention as the matrix products that it is.
    student, looked = really_counted(recipe, [SDPBackend.MATH], {})
    assert planned == pytest.approx((student, looked), rel=1e-6)
    # The log counts as the plan does.
    mesa = recipe.loss.mesa > 0
    logged = StudentFlops(recipe.student, recipe.data.size, made.heads, mesa=mesa).per_image((64, 64))
    assert logged == pytest.approx(planned[0] / 16, rel=0.01)


def test_the_plan_says_what_a_budget_of_passes_saves(tmp_path: Path) -> None:
    adapter = {"upsampler": "ridge", "adapters": {"ridge": "builtin:tiny-clip-ridge-2x"}}
    teachers = {"clip": SHARPENED["clip"] | adapter | {"passes": 0.5}}
    text = plan_text(Plan(recipe_of(tmp_path, teachers=teachers), 1), GPUS["h100"], 0.4)
    assert "1 small 7x7 + 1.5 of 4 tiles 7x7" in text
    (found,) = re.findall(r"passes: 2.5 of 5, which saves (\S+) of (\S+)\n", text)
    assert float(found[0]) == pytest.approx(float(found[1]) / 2, rel=0.01)


@pytest.mark.parametrize("grad", [True, False], ids=["kernels", "one kernel"])
def test_a_clip_tower_is_counted_as_by_hand(grad: bool) -> None:
    """torch runs whole attention layers in one kernel where no gradient is asked for, and its counter says 0 for it."""
    tokens, width, layers, patch = 17, 32, 3, 7
    vision = {"image_size": 28, "layers": layers, "width": width, "head_width": 16, "patch_size": patch}
    text = {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    visual = CLIP(24, vision, text).eval().visual
    with torch.set_grad_enabled(grad), CostCounter() as counted:
        visual(torch.rand(2, 3, 28, 28))
    block = (4 + 8) * 2 * tokens * width**2 + 2 * 2 * tokens**2 * width
    assert counted.flops == 2 * (2 * (tokens - 1) * 3 * patch**2 * width + layers * block + 2 * width * 24)


def test_attention_costs_twice_on_the_way_back_with_every_kernel() -> None:
    """Two products there, four back, whichever kernel; four heads of 8 on 10 tokens."""
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        query, key, value = (torch.rand(2, 4, 10, 8, requires_grad=True) for _ in range(3))
        with sdpa_kernel(backend), CostCounter() as counted:
            F.scaled_dot_product_attention(query, key, value).sum().backward()
        assert counted.flops == 3 * 2 * 4 * (2 * 10 * 10 * 8 * 2), backend


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "featsharp": {"teachers": SHARPENED},
    "partitions": {"stages": PARTITIONS},
    "checkpointing": {"engine": {"checkpointing": True, "threads": 1}},
}


@pytest.mark.parametrize(
    "student",
    [
        {"depth": 7},
        {"depth": 5, "cpe": 128, "spectral": True},  # large positions: the most memory is not where the blocks are
        {"depth": 9, "damp": 0.1, "registers": 2},
        {"depth": 6, "window": 2, "global_blocks": 2},  # blocks that are not alike: all are counted
        {"depth": 6, "drop_path": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("engine", [{}, {"checkpointing": True}], ids=["kept", "checkpointing"])
def test_a_deep_student_is_counted_from_two_blocks(
    student: dict[str, Any], engine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = small_recipe(tmp_path)
    recipe = Recipe.model_validate(base | {"student": base["student"] | student, "engine": engine})
    quick = Plan(recipe, 1)
    alike = not {"window", "drop_path"} & set(student)
    assert quick.counter._alike == alike
    monkeypatch.setattr(Counter, "_of_like_blocks", lambda *_: None)
    assert quick.stages[0].passes[0].sizes[0].student == Plan(recipe, 1).stages[0].passes[0].sizes[0].student


@pytest.mark.parametrize("case", CASES)
def test_memory_is_that_of_a_real_training(case: str, tmp_path: Path) -> None:
    """Every tensor of a whole run is counted while it lives: fitting PHI-S, two updates, checkpoint, export."""
    recipe = recipe_of(tmp_path, **CASES[case])
    planned = Plan(recipe, 1, bf16=False).bytes_on_a_gpu(0)
    with PeakMemory() as memory:
        train(recipe)
    assert planned == pytest.approx(memory.peak, rel=TOLERANCE), (planned / 2**20, memory.peak / 2**20)


def test_drawn_sizes_count_as_often_as_they_are_drawn_and_the_largest_sets_the_memory(tmp_path: Path) -> None:
    made = Plan(recipe_of(tmp_path, stages=PARTITIONS), 1, bf16=False)
    low, high = made.stages[0].passes
    assert [cost.size for cost in low.sizes] == [(32, 32), (48, 48)]
    assert low.student == sum(cost.student.flops for cost in low.sizes) / 2
    assert low.largest.size == (48, 48)
    worst = made.stages[0].peak()
    assert worst >= low.largest.held + high.largest.targets + high.largest.student.peak > high.largest.peak


def test_hours_are_flops_over_what_the_gpu_reaches(tmp_path: Path) -> None:
    made, gpu = Plan(recipe_of(tmp_path, stages=PARTITIONS), 1), Gpu("toy", 80, bf16=4, fp32=2)
    (stage,) = made.stages
    flops = sum(each.student + sum(each.teachers.values()) for each in stage.passes)
    adapters = sum(sum(each.adapters.values()) for each in stage.passes)
    expected = 2 * (flops / (4 * TERA * 0.5) + adapters / (2 * TERA * 0.5)) / 3600
    assert made.hours(stage, gpu, 0.5) == pytest.approx(expected)
    for split, ranks in (("step", 1), ("ranks", 2)):
        stages = {"main": PARTITIONS["main"] | {"split": split}}
        text = plan_text(Plan(recipe_of(tmp_path, stages=stages), ranks), gpu, 0.5)
        assert "whole run" in text and max(map(len, text.splitlines())) <= 140


@pytest.mark.parametrize(
    ("hours", "said"), [(8e-10, "under 1 s"), (0.01, "36 s"), (0.5, "30 min"), (1.5, "1.5 h"), (5226.4, "5226 h")]
)
def test_durations_have_units_one_can_read(hours: float, said: str) -> None:
    assert words.duration(hours) == said


def test_adapters_in_bf16_take_the_rate_of_bf16(tmp_path: Path) -> None:
    found = []
    for dtype in ("float32", "bfloat16"):
        teachers = {"clip": SHARPENED["clip"] | {"adapter_dtype": dtype}}
        made = Plan(recipe_of(tmp_path, teachers=teachers), 1)
        found.append(made.seconds(made.stages[0], Gpu("toy", 80, bf16=4, fp32=2), 0.5))
    exact, half = found
    assert half[2] == pytest.approx(exact[2] / 2) and half[:2] == exact[:2]


def test_zero_shares_out_and_deepspeed_is_asked_too(tmp_path: Path) -> None:
    made = Plan(recipe_of(tmp_path), 8)
    count = made.parameters
    assert made.state_bytes(0) == 20 * count and made.state_bytes(0, 1) == 16 * count
    one, two, three = (made.state_bytes(zero) - 4 * 500_000_000 for zero in (1, 2, 3))
    assert one == (8 + 12 / 8) * count and two == (4 + 16 / 8) * count
    assert three == 20 / 8 * count + 4 * made.largest_layer
    assert deepspeed_estimate(made, 1) is None
    for zero in (2, 3):  # 16-bit weights and no buffers: less than ours, and of their order
        said = deepspeed_estimate(made, zero)
        assert said is not None and 0.25 < said / (made.state_bytes(zero) - 4 * 500_000_000) < 1


def test_what_does_not_fit_is_said_with_what_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.planning.plan.ZERO_BUCKET", 0)
    made = Plan(recipe_of(tmp_path), 1)
    whole = made.bytes_on_a_gpu(2) / words.GIB
    text = plan_text(made, Gpu("toy", 0.7 * whole / words.USABLE, 1, 1), 0.4)
    assert "DOES NOT FIT" in text and "engine.checkpointing=true" in text
    assert "    2 GPUs" in text or "    4 GPUs" in text
    pieces = re.search(r"optim\.accumulate=(\d+) +([\d.]+) GiB", text)
    assert pieces is not None
    whole = Plan(
        recipe_of(tmp_path, optim={"steps": 2, "batch_size": 16, "lr": 0.003, "accumulate": int(pieces[1])}), 1
    )
    assert float(pieces[2]) == pytest.approx(whole.bytes_on_a_gpu(2) / words.GIB, abs=0.1)
    assert "DOES NOT FIT" not in plan_text(made, GPUS["h100"], 0.4)


def test_wrong_questions_are_answered_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'unknown GPU "h1000".*a100'):
        find_gpu("h1000")
    with pytest.raises(UserError, match="does not divide over 3"):
        Plan(recipe_of(tmp_path), 3)
    with pytest.raises(UserError, match="at least one GPU"):
        Plan(recipe_of(tmp_path), 0)
    with pytest.raises(UserError, match="--share"):
        plan_text(Plan(recipe_of(tmp_path), 1), GPUS["h100"], 0)


def test_a_teacher_out_of_reach_is_counted_by_its_size() -> None:
    row = KNOWN["openai_clip_b"]
    made = TableBackbone(row, {})
    millions = sum(parameter.numel() for parameter in made.parameters()) / 1e6
    assert millions == pytest.approx(row.parameters, rel=TOLERANCE)
    images = torch.empty(1, 3, row.native, row.native, device="meta")
    with FlopCounterMode(display=False) as counter:
        found = made(images)
    assert counter.get_total_flops() / 1e9 == pytest.approx(row.gflops, rel=TOLERANCE)
    assert found.spatial.shape == (1, 768, 14, 14) and found.summary is not None and found.summary.shape == (1, 512)


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [8, 64])
def test_radio_l_is_planned_in_seconds(gpus: int) -> None:
    start = time.process_time()
    made = Plan(read(ROOT / "radio_l.yaml"), gpus)
    for name in ("h100", "h200"):
        assert "whole run" in plan_text(made, find_gpu(name), 0.4)
    assert time.process_time() - start < 30


PLANNED = [path for path in sorted(ROOT.glob("*.yaml")) if path.stem != "radio_l"]


@pytest.mark.slow
@pytest.mark.parametrize("path", PLANNED, ids=lambda path: path.stem)
def test_every_recipe_can_be_planned_without_a_network(path: Path) -> None:
    text = plan_text(Plan(read(path), 4), find_gpu("h200"), 0.4)
    assert "whole run" in text


HEADS = [path for path in sorted(ROOT.glob("*.yaml")) if "--plan" in path.read_text().replace("\n#", "")]
#: --plan --gpu h100 --gpus 64, at 40 % of the peak: 10 + 19 + 48 h on 64 H100 = 4920 GPU-hours
HOURS = re.compile(r"--plan --gpu (\w+) --gpus (\d+).*?([\d.]+) GPU-hours")
MEMORY = re.compile(r"Memory ([\d.]+) GiB|GPU-hours(?: and|,) ([\d.]+) GiB")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", HEADS, ids=lambda path: path.stem)
def test_a_recipes_head_says_what_its_plan_says(path: Path) -> None:
    """GPU-hours and memory of a GPU, launched as the command in the head does, on as many GPUs as it counts."""
    head = " ".join(path.read_text().replace("\n#", " ").split())
    hours, memory = HOURS.search(head), MEMORY.search(head)
    assert hours is not None and memory is not None
    gpu, made = find_gpu(hours[1]), Plan(read(path), int(hours[2]))
    whole = made.bytes_on_a_gpu(2 if "--use_deepspeed" in head else 0) / words.GIB
    counted = sum(made.hours(stage, gpu, 0.4) for stage in made.stages) + made.fitting_hours(gpu, 0.4)
    assert float(hours[3]) == pytest.approx(made.gpus * counted, rel=0.05)
    assert float(memory[1] or memory[2]) == pytest.approx(whole, rel=0.02, abs=0.5)
    assert whole <= words.USABLE * gpu.memory
