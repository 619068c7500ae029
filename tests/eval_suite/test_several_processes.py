"""Two processes probe as one does: the whole command under a launcher, and every metric on parts that are gathered."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from toy_world import Constant, Dumb, Oracle, Squares, ToyData, cells_of
from two_processes import said_by_two

from common.errors import UserError, guard
from eval_suite import features, processes
from eval_suite.__main__ import main
from eval_suite.features import ProbedBackbone
from eval_suite.metrics.boundaries import Boundaries
from eval_suite.metrics.depth import Depth
from eval_suite.metrics.instance_masks import InstanceIou
from eval_suite.metrics.normals import Normals
from eval_suite.metrics.saliency import Saliency
from eval_suite.metrics.score import Tally
from eval_suite.metrics.segmentation import Segmentation
from eval_suite.results import read_metrics
from eval_suite.sample_scores import samples_path

IMAGES = 11


def _maps(classes: int = 2, channels: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(classes)
    if channels:
        return torch.randn(IMAGES, channels, 12, 10, generator=generator)
    return torch.randint(0, classes, (IMAGES, 12, 10), generator=generator)


def _noise() -> torch.Tensor:
    return torch.rand(IMAGES, 12, 10, generator=torch.Generator().manual_seed(99))


#: metric -> prediction and label of all images
METRICS: dict[str, tuple[Callable[[], Tally], Callable[[], tuple[torch.Tensor, torch.Tensor]]]] = {
    "segmentation": (lambda: Segmentation(4), lambda: (_maps(4), _maps(4).roll(1, 0))),
    "depth_pixel": (lambda: Depth(pool="pixel"), lambda: (0.2 + 3 * _noise(), _maps(4).float())),
    "depth_image": (lambda: Depth(align="scale_shift"), lambda: (0.2 + 3 * _noise(), _maps(4).float())),
    "normals_pixel": (lambda: Normals(pool="pixel"), lambda: (_maps(3, 3), _maps(5, 3))),
    "normals_image": (lambda: Normals(pool="image"), lambda: (_maps(3, 3), _maps(5, 3))),
    "saliency": (Saliency, lambda: (_noise(), _maps(2))),
    "saliency_mlore": (lambda: Saliency(variant="mlore"), lambda: (_noise(), _maps(2))),
    "boundaries": (lambda: Boundaries(farthest=0.1), lambda: (_noise(), (_maps(6) == 0).long())),
}


def _seen(name: str, rows: range) -> Tally:
    make, given = METRICS[name]
    metric, (pred, target) = make(), given()
    for part in (rows[:3], rows[3:]):
        if len(part):
            metric.update(pred[list(part)], target[list(part)])
    return metric


def _instances(rows: range) -> InstanceIou:
    metric = InstanceIou()
    for row in rows:
        generator = torch.Generator().manual_seed(row)
        masks = torch.rand(2, row % 3, 8, 9, generator=generator) < 0.5
        metric.update(masks[0], masks[1], [200.0 * (row + 1) ** 2] * (row % 3))
    return metric


class Half(Squares):
    """A set whose image 5 cannot be read."""

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        if 5 in rows.tolist():
            raise UserError("image 5 is broken")
        return super().read(rows)


def _parts(folder: Path) -> dict[str, object]:
    rows = processes.own_rows(IMAGES)
    said: dict[str, object] = {}
    for name in METRICS:
        metric = _seen(name, rows)
        processes.gather(metric)
        said[name] = metric.scores()
    objects = _instances(rows)
    processes.gather(objects)
    said["instances"] = objects.scores()
    maps = torch.arange(35.0).view(5, 7)
    said["split"] = processes.split_forward(lambda part: [part + 1, 2 * part], maps)
    layer = torch.nn.Linear(3, 2)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    batch = torch.arange(12.0).view(4, 3)[list(processes.own_rows(4))]
    layer(batch).square().mean().backward()
    processes.average_gradients(layer)
    said["gradient"] = layer.weight.grad
    torch.nn.init.constant_(layer.bias, processes.rank() + 5.0)
    processes.same_everywhere(layer)
    said["bias"] = layer.bias.detach()
    squares = Squares("train", cells_of(23, 0))
    for backbone, cache in ((Dumb(), None), (Oracle(), folder / "cache")):
        probed = ProbedBackbone(backbone, batch_size=4, cache=cache)
        probed.extract_together(squares, "features")
        probed.extract_together(squares, "vectors")  # asked for twice, done once
        said[type(backbone).__name__] = probed._tables.get("train")
    features.MAPS_KEPT = 0
    probed = ProbedBackbone(Oracle(), batch_size=4)
    probed.extract_together(squares, "vectors")
    said["vectors"] = probed._vectors.get("train")
    try:
        ProbedBackbone(Dumb(), batch_size=2).extract_together(Half("half", cells_of(12, 0)), "features")
    except UserError as error:
        said["error"] = str(error)
    return said


def test_two_processes_add_up_to_one(tmp_path: Path) -> None:
    first, second = said_by_two(_parts, tmp_path, tmp_path)
    for name in METRICS:  # the very same sums in the same order: no tolerance
        assert first[name] == second[name] == _seen(name, range(IMAGES)).scores(), name
    assert first["instances"] == second["instances"] == _instances(range(IMAGES)).scores()
    maps = torch.arange(35.0).view(5, 7)
    for said in (first, second):
        assert torch.equal(said["split"][0], maps + 1) and torch.equal(said["split"][1], 2 * maps)
        assert said["bias"].tolist() == [5.0, 5.0]
        assert said["error"] == "image 5 is broken"
    layer = torch.nn.Linear(3, 2)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    layer(torch.arange(12.0).view(4, 3)).square().mean().backward()
    assert torch.allclose(first["gradient"], layer.weight.grad) and torch.equal(first["gradient"], second["gradient"])
    squares = Squares("train", cells_of(23, 0))
    for backbone in (Dumb(), Oracle()):
        alone, together = ProbedBackbone(backbone, batch_size=4).features(squares), first[type(backbone).__name__]
        assert torch.equal(together.spatial, alone.spatial) and second[type(backbone).__name__] is None
        assert (alone.summary is None) == (together.summary is None)
        assert alone.summary is None or torch.equal(together.summary, alone.summary)
    assert torch.equal(first["vectors"].spatial, alone.spatial.mean((2, 3), keepdim=True)) and second["vectors"] is None
    assert torch.equal(first["vectors"].summary, alone.summary)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 6  # each batch was written by who made it


def test_one_process_has_all_the_work() -> None:
    assert processes.world() == 1 and processes.rank() == 0 and list(processes.own_rows(3)) == [0, 1, 2]
    assert processes.all_say("x") == ["x"]
    with processes.joined_processes("cpu") as device:
        assert device == "cpu" and processes.world() == 1
    probed = ProbedBackbone(Constant(), batch_size=4)
    probed.extract_together(ToyData(8, 4).dense("train").images, "features")
    assert not probed._tables  # nothing to share: a probe extracts when it asks


SUITE = """
name: pair
batch_size: 5
data:
  squares:
    reader: dense_folders
    root: {root}
    images: "images/{{split}}/*.png"
    labels: {{semantic: {{files: "labels/{{split}}/*.png", kind: classes, classes: 4, first: 1}}}}
    size: 32
    label_size: 4
  folders: {{reader: class_folders, root: {folders}, size: 32}}
probes:
  seg: {{probe: segmentation, data: squares, labels: semantic, steps: 10, batch: 8, label_size: 4}}
  linear: {{probe: linear_segmentation, data: squares, protocol: dinov2-linear, steps: 6, batch: 5, crop: 32}}
  knn: {{probe: knn, data: folders, k: 3, vector: summary_or_mean}}
"""


def _write_data(root: Path) -> Path:
    from test_probes_on_files import write_squares

    write_squares(root / "squares")
    for split in ("train", "test"):
        for number, path in enumerate(sorted((root / "squares" / "images" / split).glob("*.png"))):
            target = root / "folders" / split / f"class{number % 3}" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    suite = root / "suite.yaml"
    suite.write_text(SUITE.format(root=root / "squares", folders=root / "folders"))
    return suite


def _run(launcher: list[str], suite: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [
        *launcher,
        "-m",
        "eval_suite",
        "run",
        "--backbone",
        "tiny:dino",
        "--suite",
        str(suite),
        "--out",
        str(out),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1500)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _launcher() -> list[str]:
    # without --multi_gpu accelerate starts a single process where there is no GPU
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    return [*command, "--num_machines", "1", "--mixed_precision", "no", "--main_process_port", str(_free_port())]


def _rank_of_two(rank: int, port: int, arguments: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", GLOO_SOCKET_IFNAME="lo")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    assert guard(main, arguments) == 0


def _same_results(one: Path, two: Path) -> None:
    """What hangs on features alone is equal; a head trained on maps that were computed apart may differ."""
    alone, together = read_metrics(one), read_metrics(two)
    assert len(alone.results) == 3
    for ours, theirs in zip(alone.results, together.results, strict=True):
        assert theirs.key == ours.key and theirs.n == ours.n
        exact = ours.task in ("seg", "knn")  # the same batches, features and order
        assert theirs.value == (ours.value if exact else pytest.approx(ours.value, abs=0.5))
        assert theirs.samples is not None and theirs.samples.test_set == ours.samples.test_set
    assert samples_path(two).is_file()


@pytest.mark.slow
def test_the_command_in_two_processes_gives_the_same_file(tmp_path: Path) -> None:
    """As a launcher sets them up, without the launcher (which takes its time: the slow test has it)."""
    suite = _write_data(tmp_path)
    arguments = ["run", "--backbone", "tiny:dino", "--suite", str(suite), "--out"]
    assert guard(main, [*arguments, str(tmp_path / "one.json")]) == 0
    given = (_free_port(), [*arguments, str(tmp_path / "two.json")])
    mp.start_processes(_rank_of_two, args=given, nprocs=2, start_method="fork")
    _same_results(tmp_path / "one.json", tmp_path / "two.json")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_command_under_accelerate_launch_gives_the_same_file(tmp_path: Path) -> None:
    suite = _write_data(tmp_path)
    one = _run([sys.executable], suite, tmp_path / "one.json")
    assert one.returncode == 0, one.stderr
    two = _run(_launcher(), suite, tmp_path / "two.json")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("results written") == 1 and "by 2 processes" in two.stdout, two.stdout
    _same_results(tmp_path / "one.json", tmp_path / "two.json")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_bad_input_in_one_of_two_processes_ends_both(tmp_path: Path) -> None:
    suite = _write_data(tmp_path)
    broken = sorted((tmp_path / "squares" / "images" / "train").glob("*.png"))[
        7
    ]  # of the second batch, the second rank's
    broken.write_bytes(b"no image")
    done = _run(_launcher(), suite, tmp_path / "two.json")
    assert done.returncode != 0 and f"{broken} cannot be read" in done.stderr
    assert not (tmp_path / "two.json").exists()
