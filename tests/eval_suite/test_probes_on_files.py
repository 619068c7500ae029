"""Probes end to end on files: features kept on disk, new probes' ceiling and floor, whole suites, bad input."""

import json
from dataclasses import replace
from pathlib import Path

import layout_fixtures as make
import numpy as np
import pytest
import torch
from PIL import Image
from test_readers_layouts import opened
from toy_world import SIZE, Constant, Dumb, Oracle, Squares, ToyData, cells_of, probed

from common.errors import UserError, guard
from eval_suite.__main__ import backbone_node, main
from eval_suite.features import ProbedBackbone
from eval_suite.probes.correspondence import KeypointProbe, fixed_pairs
from eval_suite.probes.instance_retrieval import InstanceRetrievalProbe
from eval_suite.probes.linear_classification import LinearClassificationProbe
from eval_suite.probes.multitask import MultitaskProbe
from eval_suite.probes.vlm import VlmProbe
from eval_suite.readers.contracts import AskedQuestion, DenseImages, LabelledData, QuestionImages, RankedImages
from eval_suite.readers.label_files import BY_ANNOTATOR
from eval_suite.readers.remembered import Remembered
from eval_suite.results import read_metrics
from eval_suite.sample_scores import samples_path
from eval_suite.suite import load_suite
from eval_suite.text import AbsentError
from teachers.contracts import Features

SUITES = Path(__file__).parents[2] / "recipes" / "suites"


def write_squares(root: Path) -> Path:
    """The squares of the toy world as PNG files: images/SPLIT, labels/SPLIT (the first class is stored as 1)."""
    for split, seed, count in (("train", 0, 24), ("test", 1, 12)):
        squares = Squares(split, cells_of(count, seed))
        for number, (pixels, cells) in enumerate(zip(squares.pixels, squares.cells, strict=True)):
            for folder, values in (("images", pixels.movedim(0, -1).numpy()), ("labels", 1 + cells.numpy())):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(root / folder / split / f"{number:02d}.png")
    return root


SUITE = """
name: files
batch_size: 5
data:
  squares:
    reader: dense_folders
    root: {root}
    images: "images/{{split}}/*.png"
    labels: {{semantic: {{files: "labels/{{split}}/*.png", kind: classes, classes: 4, first: 1}}}}
    size: 32
    label_size: 4
probes:
  seg: {{probe: segmentation, data: squares, labels: semantic, steps: 60, batch: 8, label_size: 4}}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    write_squares(tmp_path / "squares")
    return make.text(tmp_path / "suite.yaml", SUITE.format(root=tmp_path / "squares"))


def files_probe(suite: Path) -> tuple[object, LabelledData]:
    loaded = load_suite(suite)
    return loaded.probes["seg"], loaded.data["squares"].open("squares")


def test_label_files_reach_ceiling_and_floor(suite: Path) -> None:
    task, data = files_probe(suite)
    best, worst = (task.run(probed(backbone), data, seed=0)[0].value for backbone in (Oracle(), Constant()))
    assert best > 98 and worst < 20


def test_a_whole_run_from_the_command_line(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = suite.parent / "m" / "metrics.json"
    arguments = [
        "run",
        "--backbone",
        "tiny:dino",
        "--suite",
        str(suite),
        "--out",
        str(out),
        "--cache",
        str(suite.parent / "c"),
    ]
    assert guard(main, [*arguments, "probes.seg.steps=2"]) == 0
    metrics = read_metrics(out)
    assert metrics.results[0].samples is not None and samples_path(out).is_file()
    first = out.read_text()
    assert guard(main, [*arguments, "probes.seg.steps=2"]) == 0 and out.read_text() == first
    table = ["table", f"a={out}", f"b={out}", "--baseline", "a", "--format", "json"]
    capsys.readouterr()
    assert guard(main, table) == 0
    cell = json.loads(capsys.readouterr().out)["rows"]["b"]["dense"]
    assert cell["value"] == 0 and cell["stderr"] == pytest.approx(0) and cell["paired"] is True


def test_a_backbone_is_named_with_options_or_by_a_file(tmp_path: Path) -> None:
    assert backbone_node("tiny:clip") == "tiny:clip"
    assert backbone_node("{spec: timm:x, pretrained: false}") == {"spec": "timm:x", "pretrained": False}
    file = make.text(tmp_path / "b.yaml", "spec: tiny:dino\n")
    assert backbone_node(str(file)) == {"spec": "tiny:dino"}
    with pytest.raises(UserError, match="not valid YAML"):
        backbone_node("{spec: [}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "labels/test/03.png").unlink(), "03.png is missing"),
        (lambda root: (root / "images/train/00.png").write_bytes(b"x"), "00.png cannot be read as an image"),
        (lambda root: make.grey(root / "labels/train/05.png", np.full((4, 4), 9)), "05.png holds the value 9"),
        (lambda root: make.grey(root / "labels/train/05.png", np.full((4, 9), 1)), "05.png is 9x4 but its image 32x32"),
        (lambda root: [path.unlink() for path in (root / "images/test").iterdir()], "no image fits"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    suite: Path, capsys: pytest.CaptureFixture[str], damage, message: str
) -> None:
    damage(suite.parent / "squares")
    code = guard(
        main,
        [
            "run",
            "--backbone",
            "tiny:dino",
            "--suite",
            str(suite),
            "--out",
            str(suite.parent / "m.json"),
            "probes.seg.steps=2",
        ],
    )
    error = capsys.readouterr().err.strip()
    assert code == 2 and message in error and len(error.splitlines()) <= 2 and "Traceback" not in error
    assert not (suite.parent / "m.json").exists()


def test_what_cannot_be_done_is_said_before_or_instead_of_the_work(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder as --out, a device there is not, inner layers and a text tower that the backbone lacks."""

    def said(*changes: str, out: str = "m.json", device: str = "cpu") -> tuple[int, str, str]:
        wanted = ["--suite", str(suite), "--out", str(suite.parent / out), "--device", device]
        code = guard(main, ["run", "--backbone", "tiny:dino", *wanted, *changes])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err and len(printed.err.strip().splitlines()) <= 2
        return code, printed.out, printed.err

    assert "is a folder; name a file in it" in said(out="squares")[2]
    assert "--device quantum" in said(device="quantum")[2]
    kinds = make.class_tree(suite.parent / "kinds")
    zero_shot = 'probes.names={probe: zero_shot, data: kinds, templates: ["a {}"]}'
    data = f"data.kinds={{reader: class_folders, root: {kinds}, size: 32}}"
    few = "probes.seg={probe: segmentation, data: squares, labels: semantic, steps: 1}"
    code, printed, _ = said(few, data, zero_shot)
    assert code == 0 and "1 results written" in printed
    assert "not measured: classification/names: tiny:dino has no text tower and no adaptor to one" in printed
    only = suite.with_name("only.yaml")
    kinds_only = f"data: {{kinds: {data.split('=', 1)[1]}}}\nprobes: {{names: {zero_shot.split('=', 1)[1]}}}\n"
    only.write_text("name: only\n" + kinds_only)
    code = guard(main, ["run", "--backbone", "tiny:dino", "--suite", str(only), "--out", str(suite.parent / "n.json")])
    assert code == 2 and "nothing could be measured" in capsys.readouterr().err
    assert not (suite.parent / "n.json").exists()


class Counting(Dumb):
    """Counts the images it is shown, and can be made to fail after some."""

    def __init__(self, most: int | None = None, digest: str = "sha256:0") -> None:
        super().__init__()
        self.shown = 0
        self.most = most
        self.spec = type(self.spec)(**{**self.spec.to_dict(), "digest": digest})

    def forward(self, images: torch.Tensor):
        if self.most is not None and self.shown + len(images) > self.most:
            raise KeyboardInterrupt
        self.shown += len(images)
        return super().forward(images)


def test_features_are_kept_and_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    images = Squares("train", cells_of(23, 0))

    def features(backbone: Counting, cache: Path | None = tmp_path, batch: int = 5) -> torch.Tensor:
        return ProbedBackbone(backbone, batch_size=batch, cache=cache).features(images).spatial

    broken = Counting(most=12)
    with pytest.raises(KeyboardInterrupt):
        features(broken)
    assert broken.shown == 10
    rest, again, other, plain = Counting(), Counting(), Counting(digest="sha256:1"), Counting()
    whole = features(rest)
    assert rest.shown == 13  # two batches of five were there
    assert torch.equal(features(again), whole) and again.shown == 0
    assert torch.equal(features(plain, None), whole)
    features(other)
    assert other.shown == 23  # other weights are another backbone
    regrouped = Counting()
    features(regrouped, batch=8)
    assert regrouped.shown == 23
    shown = []
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:20])
        repaired = Counting()
        assert torch.equal(features(repaired), whole)
        shown.append(repaired.shown)
    assert sorted(filter(None, shown)) == [3, 5, 5, 5, 5]  # each damaged batch alone, whoever's the other files are


def test_linear_classification_ceiling_floor_and_what_it_lacks() -> None:
    data = ToyData(96, 40)
    task = LinearClassificationProbe(
        probe="linear_classification", name="lp", data="toy", metrics=("top1", "mean_class_accuracy")
    )
    best, worst = (task.run(probed(backbone), data, seed=0) for backbone in (Oracle(), Constant()))
    assert [result.metric for result in best] == ["top1", "mean_class_accuracy"]
    assert all(result.value > 95 for result in best) and all(result.value < 50 for result in worst)
    assert best[0].protocol == "logistic-regression"
    with pytest.raises(AbsentError, match="no summary vector"):
        task.run(probed(Dumb()), data, seed=0)


class Means(Constant):
    """Mean colour of the image and of each patch: takes any picture."""

    def forward(self, images: torch.Tensor) -> Features:
        return Features(images.mean((2, 3)), torch.nn.functional.avg_pool2d(images, 8))


class Buildings(LabelledData):
    """Gallery images equal to a query are its positives."""

    name = "buildings"

    def ranked(self, split: str) -> RankedImages:
        queries = Squares("queries", cells_of(5, 0))
        gallery = Squares("gallery", torch.cat([queries.cells, cells_of(15, 9), queries.cells]))
        same = (gallery.cells.flatten(1)[None] == queries.cells.flatten(1)[:, None]).all(-1)
        nothing = torch.zeros_like(same)
        return RankedImages(queries, gallery, {"medium": same, "hard": same}, {"medium": nothing, "hard": nothing})


def test_instance_retrieval_ceiling_and_floor() -> None:
    task = InstanceRetrievalProbe(probe="instance_retrieval", name="b", data="buildings")
    best, worst = (task.run(probed(backbone), Buildings(), seed=0) for backbone in (Oracle(), Constant()))
    assert [result.metric for result in best] == ["map_medium", "map_hard"]
    assert best[0].value == pytest.approx(100.0) and worst[0].value < 60


def test_instance_retrieval_on_files(tmp_path: Path) -> None:
    data = opened("revisited", make.revisited(tmp_path), dataset="roxford5k", size=SIZE)
    task = InstanceRetrievalProbe(probe="instance_retrieval", name="b", data="toy", difficulties=("easy", "hard"))
    results = task.run(probed(Means()), data, seed=0)
    assert [result.metric for result in results] == ["map_easy", "map_hard"] and all(
        0 < r.value <= 100 for r in results
    )


class Pixels(Constant):
    """The picture itself, one token a pixel."""

    def forward(self, images: torch.Tensor) -> Features:
        return Features(None, images)


class Edges(ToyData):
    """Boundaries between squares of different class, a pixel wide, at full resolution."""

    def dense(self, split: str) -> DenseImages:
        whole = super().dense(split)
        classes = self.sources[split].cells.repeat_interleave(8, 1).repeat_interleave(8, 2)
        edge = torch.zeros_like(classes, dtype=torch.uint8)
        edge[:, :, 1:] |= (classes[:, :, 1:] != classes[:, :, :-1]).to(edge.dtype)
        edge[:, 1:] |= (classes[:, 1:] != classes[:, :-1]).to(edge.dtype)
        return DenseImages(whole.images, whole.rows, {"edge": edge}, whole.names, whole.groups)


def test_boundaries_are_a_task_of_the_conv_probe() -> None:
    task = MultitaskProbe(
        probe="multitask", name="mt", group="pascal_context", data="toy", tasks={"edge": 50.0}, hidden=16, steps=80,
        batch=8, label_size=32, learning_rate=2e-2,
    )  # fmt: skip
    best, worst = (task.run(probed(backbone), Edges(24, 8), seed=0)[0] for backbone in (Pixels(), Constant()))
    assert best.metric == "edge_odsf_py" and best.higher_is_better
    assert best.value > 50 and worst.value < 25


class DrawnTwice(Edges):
    """The same boundaries, drawn by two people."""

    def dense(self, split: str) -> DenseImages:
        found = super().dense(split)
        edge = found.labels("edge")[torch.arange(len(found.rows))]
        return replace(found, maps={"edge": edge, f"edge{BY_ANNOTATOR}": torch.stack([edge, edge], 1)})


def test_boundaries_by_several_people_have_a_name_of_their_own() -> None:
    fields = {"probe": "multitask", "name": "mt", "group": "pascal_context", "data": "toy", "tasks": {"edge": 50.0}}
    task = MultitaskProbe.model_validate(fields | {"hidden": 8, "steps": 5, "batch": 8, "label_size": 32})
    one, two = (task.run(probed(Pixels()), data, seed=0)[0] for data in (Edges(8, 4), DrawnTwice(8, 4)))
    assert (one.metric, two.metric) == ("edge_odsf_py", "edge_odsf_by_annotator_py")
    assert two.value == pytest.approx(one.value)  # both people drew the same


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_file_is_valid(path: Path) -> None:
    suite = load_suite(path)
    assert suite.name == path.stem
    assert all(probe.needs() for probe in suite.probes.values())


class Ruled(ToyData):
    """Questions with options about the first square, scored by the letter rule."""

    def questions(self, split: str) -> QuestionImages:
        source = self.sources[split]
        options = ("red", "green", "blue", "white")
        asked = [
            AskedQuestion(row, "first", "which colour is the first square?", "ABCD"[int(cells[0, 0])], (), options)
            for row, cells in enumerate(source.cells)
        ]
        return QuestionImages(source, asked, "letter")


def test_replies_are_decoded_and_scored_by_the_rule_of_the_data() -> None:
    task = VlmProbe(
        probe="vlm", name="vlm", data="toy", side=4, merge=1, width=32, layers=2, steps=150, batch=16, asked=1
    )
    best, worst = (task.run(probed(backbone), Ruled(), seed=0)[0] for backbone in (Oracle(), Constant()))
    assert (best.metric, best.protocol) == ("accuracy", "rule letter")
    assert best.value > 90 and worst.value < 50


def test_a_data_set_is_opened_once() -> None:
    class Counted(ToyData):
        calls = 0

        def dense(self, split: str) -> DenseImages:
            self.calls += 1
            return super().dense(split)

    data = Counted()
    remembered = Remembered(data)
    assert remembered.dense("test") is remembered.dense("test") and data.calls == 1
    assert remembered.dense("train") is not remembered.dense("test")
    for kind in ("classes", "captions", "pairs", "keypoints", "questions"):
        assert getattr(remembered, kind)("test") is getattr(remembered, kind)("test")
    with pytest.raises(UserError, match="no instance retrieval lists"):
        remembered.ranked("test")


def test_fixed_pairs_are_used_and_the_whole_image_is_searched(tmp_path: Path) -> None:
    data = opened("spair71k", make.spair(tmp_path), size=SIZE)
    images = data.keypoints("test")
    assert fixed_pairs(images.objects, images.pairs, 5, 0) == [(0, images.objects[0], images.objects[1])]
    assert fixed_pairs(images.objects, images.pairs, 0, 0) == []
    task = KeypointProbe(probe="keypoints", name="spair", data="toy").model_copy(update={"alpha": 10.0})  # all is near
    result = task.run(probed(Means()), data, seed=0)[0]
    assert result.value == 100.0 and result.n == 2  # the two points both images show
