"""Images per second, shares, memory, FLOPs: what the clock says stands under "time", and adds up."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_run import train

from common.jsonl import read_log
from distill.planning.counting import CostCounter
from distill.planning.gpus import GPUS
from distill.planning.mfu import DEVICES, FlopMeter, StudentFlops, peak_of
from distill.recipe import read
from distill.recipe_models import StudentNode
from distill.student.model import HeadSpec, Student


def test_shares_add_up(trained: Path) -> None:
    for line in read_log(trained / "log.jsonl"):
        time = line["time"]
        shares = [time[f"{name}_share"] for name in ("data", "teachers", "student")]
        assert all(0 <= share <= 1 for share in shares) and 0.1 < sum(shares) <= 1.001
        assert time["images_per_second"] == pytest.approx(4 / time["wall"], rel=0.02, abs=0.01)
        assert time["peak_memory_mib"] > 100 and time["tflops_per_second"] > 0
        assert time["mfu"] is None  # nobody publishes a peak of this CPU


def test_trackers_get_them_too(write_recipe: Callable[..., Path]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(read(write_recipe(log={"trackers": ["tensorboard"]}), ["optim.steps=2"]))
    (events,) = folder.glob("events.out.tfevents*")  # in the run's folder itself
    found = EventAccumulator(str(events))
    found.Reload()
    assert {"loss", "coarse/spatial", "images_per_second", "teachers_share", "peak_memory_mib"} <= {
        *found.Tags()["scalars"]
    }


def test_student_flops_are_those_of_a_real_step() -> None:
    node = StudentNode(model="vit_tiny_patch16_224", patch_size=8, embed_dim=64, depth=2, num_heads=2)
    heads = {"a": HeadSpec(32, 48), "b": HeadSpec(None, 16)}
    images = torch.rand(3, 3, 64, 96)
    with CostCounter() as counted:
        answers = Student(node, (64, 64), heads)(images)
        sum(part.square().mean() for each in answers.values() for part in each if part is not None).backward()
    before = torch.get_rng_state()
    assert StudentFlops(node, (64, 64), heads).of(images) == pytest.approx(counted.flops, rel=0.05)
    assert torch.equal(torch.get_rng_state(), before)


def test_mfu_is_what_was_done_over_the_peak() -> None:
    flop_meter = FlopMeter(peak=1e9)
    a = torch.ones(10, 20)
    for _ in range(2):  # counted once, added twice
        flop_meter.count("key", lambda: a @ a.T)
    assert flop_meter.done == 2 * 2 * 10 * 20 * 10
    assert flop_meter.rate(0.0, 1e-4)["mfu"] == pytest.approx(0.08)
    assert peak_of(torch.device("cpu"), bf16=True) is None


def test_a_known_gpus_peak_is_its_data_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(DEVICES.values()) <= set(GPUS)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_of(torch.device("cuda"), bf16=True) == 989e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU of next year")
    assert peak_of(torch.device("cuda"), bf16=True) is None


def test_what_is_planned_meanwhile_is_not_counted() -> None:
    """A run counts its student on tensors without numbers while its own operations are counted."""
    node = StudentNode(model="vit_tiny_patch16_224", patch_size=8, embed_dim=64, depth=2, num_heads=2)
    with CostCounter() as counted:
        planned = StudentFlops(node, (64, 64), {"a": HeadSpec(32, 48)}).per_image((64, 64))
    assert planned > 0 and counted.flops == 0
