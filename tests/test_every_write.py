"""Every file and folder that the program replaces is old or new, whatever call fails or is killed in between."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.json_files import read_json
from distill.exported import find_student
from distill.targets.statistics import fitted_before, keep_fitted
from distill.training.export import write_student
from eval_suite.finished import FinishedTasks
from eval_suite.made_by import MadeBy
from eval_suite.results import Result, read_metrics, write_metrics
from eval_suite.vlm.checkpoints import Checkpoints as VlmCheckpoints
from eval_suite.vlm.checkpoints import Progress
from featsharp_adapter.adapter.folder import find_folder, read_description, read_weights, write_folder
from featsharp_adapter.training.checkpoints import Checkpoints as AdapterCheckpoints
from tests.common.disk_faults import check_every_fault

STUDENT = {
    "schema": 1,
    "name": "small",
    "step": 3,
    "student": {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
    "size": [16, 16],
    "teachers": {
        "a": {"spec": {"name": "a", "licence": "x", "source": "y"}, "upsampler": "none", "factor": 1, "adapter": None}
    },
}


RESULT = Result(
    group="dense", task="a", metric="miou", value=0.0, higher_is_better=True, seed=None, n=None, stderr=None
)


class Learned(torch.nn.Linear):
    """What a VLM checkpoint asks of its model; the real one is saved and read in test_llava."""

    device = torch.device("cpu")

    def learned(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.named_parameters())


def adapter(folder: Path, value: float) -> None:
    write_folder(folder / "adapter", {"w": torch.full((3,), value)}, {"value": value}, f"card {value}\n")


def read_adapter(folder: Path) -> tuple[Any, ...]:
    found = find_folder(str(folder))  # the folder of the training, in which the adapter lies
    return read_description(found)["value"], read_weights(found)["w"].tolist(), (found / "README.md").read_text()


def vlm(folder: Path, step: float) -> None:
    model = Learned(2, 2)
    torch.nn.init.constant_(model.weight, step)
    optimiser = torch.optim.SGD(model.parameters(), lr=step)
    VlmCheckpoints(folder, "this", {"one": 0}).save(model, optimiser, Progress("one", int(step)))  # type: ignore[arg-type]


def read_vlm(folder: Path) -> tuple[Any, ...]:
    model, kept = Learned(2, 2), VlmCheckpoints(folder, "this")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    assert kept.newest is not None
    kept.load(model, optimiser)  # type: ignore[arg-type]
    return kept.reached(), model.weight.tolist(), optimiser.param_groups[0]["lr"]


def student(folder: Path, value: float) -> None:
    write_student(folder / "student", {"w": torch.full((3,), value)}, STUDENT | {"step": int(value)})


def read_student(folder: Path) -> tuple[Any, ...]:
    found = find_student(folder)
    return read_json(found / "config.json")["step"], load_file(found / "model.safetensors")["w"].tolist()


def metrics(folder: Path, value: float) -> None:
    result = {"group": "dense", "task": "a", "metric": "miou", "value": value, "higher_is_better": True}
    result |= {"seed": None, "n": None, "stderr": None}
    backbone = {"name": "x", "digest": "sha256:0"}
    write_metrics(folder / "metrics.json", {"schema": 1, "backbone": backbone, "suite": "s", "results": [result]})


def read_metrics_value(folder: Path) -> float:
    return read_metrics(folder).results[0].value


def adapter_checkpoint(folder: Path, step: float) -> None:
    AdapterCheckpoints(folder, "this", keep=1).save(int(step), {"value": step})


def read_adapter_checkpoint(folder: Path) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    AdapterCheckpoints(folder, "this", keep=1).restore(found.append)
    return found[0]


def statistics(folder: Path, value: float) -> None:
    keep_fitted(folder, {"seed": value}, {"a.mean": torch.full((3,), value)})


def read_statistics(folder: Path) -> list[float | None]:
    found = [fitted_before(folder, {"seed": value}) for value in (1.0, 2.0)]
    return [None if each is None else float(each["a.mean"][0]) for each in found]


def finished_task(folder: Path, value: float) -> None:
    made = MadeBy(backbone="sha256:0", dtype="float32", protocol="p", data="d", program="x")
    FinishedTasks(folder).keep("dense/a", made, 0, (RESULT.model_copy(update={"value": value}),), None)


def read_finished_task(folder: Path) -> float | None:
    made = MadeBy(backbone="sha256:0", dtype="float32", protocol="p", data="d", program="x")
    found = FinishedTasks(folder).get("dense/a", made, 0, None)
    return None if found is None else found[0].value


WRITES: dict[str, tuple[Callable[[Path, float], None], Callable[[Path], Any]]] = {
    "adapter": (adapter, read_adapter),
    "vlm checkpoint": (vlm, read_vlm),
    "student": (student, read_student),
    "metrics": (metrics, read_metrics_value),
    "adapter checkpoint": (adapter_checkpoint, read_adapter_checkpoint),
    "statistics": (statistics, read_statistics),
    "finished task": (finished_task, read_finished_task),
}
FOLDERS = ("adapter", "student", "statistics")
CASES = [(name, True) for name in WRITES] + [(name, False) for name in FOLDERS]


def check(folder: Path, name: str, exchange: bool, stride: int) -> None:
    write, read = WRITES[name]
    before, after = (lambda here: write(here, 1.0)), (lambda here: write(here, 2.0))
    assert check_every_fault(folder, before, after, read, exchange=exchange, stride=stride) > 3


@pytest.mark.parametrize(("name", "exchange"), CASES, ids=lambda value: str(value))
def test_old_or_new_is_there_whole(fast_folder: Path, name: str, exchange: bool) -> None:
    """At every seventh fault; the test below takes them all."""
    check(fast_folder, name, exchange, stride=7)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exchange"), CASES, ids=lambda value: str(value))
def test_old_or_new_is_there_whole_at_every_fault(fast_folder: Path, name: str, exchange: bool) -> None:
    check(fast_folder, name, exchange, stride=1)
