"""A user's own probe and reader, by dotted path: used like ours, and told what is missing where they are wrong."""

from pathlib import Path

import pytest
import torch

from common.errors import UserError, guard
from common.recipes import validate
from eval_suite.__main__ import main
from eval_suite.suite import Suite, load_suite

PARTS = """
from typing import Literal

import torch

from eval_suite.features import ProbedBackbone
from eval_suite.metrics.score import clustered_mean
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.readers.contracts import TEST, ClassifiedImages, ImageSource, LabelledData
from eval_suite.readers.nodes import ReaderNode


class Noise(ImageSource):
    def __init__(self, count: int) -> None:
        self.key, self.count = f"noise of {count}", count

    def __len__(self) -> int:
        return self.count

    def read(self, rows):
        return torch.stack([torch.full((3, 32, 32), int(row), dtype=torch.uint8) for row in rows])


class NoiseData(LabelledData):
    def __init__(self, name: str, count: int) -> None:
        self.name, self.images = name, Noise(count)

    def classes(self, split: str) -> ClassifiedImages:
        rows = torch.arange(len(self.images))
        return ClassifiedImages(self.images, rows, rows % 2, ("even", "odd"))


class NoiseReader(ReaderNode):
    reader: str
    count: int = 6

    def open(self, name: str) -> LabelledData:
        return NoiseData(name, self.count)


class LengthProbe(ProbeNode):
    probe: str
    power: int = 1

    def needs(self):
        return [Need("classes", TEST)]

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int):
        asked = data.classes(TEST)
        lengths = backbone.features(asked.images).pick(asked.rows).summary.norm(dim=1) ** self.power
        return [self.result("length", clustered_mean(lengths, None), seed)]


class Unfinished(ProbeNode):
    probe: str

    def needs(self):
        return []


class Nameless(ReaderNode):
    def open(self, name: str) -> LabelledData:
        return NoiseData(name, 1)
"""
SUITE = """
name: mine
data:
  noise: {reader: "class:my_parts.NoiseReader", count: 8}
probes:
  length: {probe: "class:my_parts.LengthProbe", group: classification, data: noise, power: 2}
"""


@pytest.fixture(autouse=True)
def my_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_parts.py").write_text(PARTS)
    (tmp_path / "mine.yaml").write_text(SUITE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_suite_runs_them_from_the_command_line(my_parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = my_parts / "metrics.json"
    arguments = ["run", "--backbone", "tiny:dino", "--suite", str(my_parts / "mine.yaml"), "--out", str(out)]
    assert guard(main, arguments) == 0
    assert '"task": "length"' in out.read_text()
    capsys.readouterr()


def test_what_a_suite_says_of_itself_names_them(my_parts: Path) -> None:
    suite = load_suite(my_parts / "mine.yaml")
    assert suite.model_dump()["data"]["noise"] == {"reader": "class:my_parts.NoiseReader", "count": 8}
    assert suite.model_dump()["probes"]["length"]["power"] == 2
    assert load_suite(my_parts / "mine.yaml", ["data.noise.count=9"]).model_dump_json() != suite.model_dump_json()


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ("class:my_parts.Unfinished", "my_parts.Unfinished lacks run; see eval_suite.probes.base.ProbeNode"),
        ("class:my_parts.NoiseReader", "the class NoiseReader, which is not below eval_suite.probes.base.ProbeNode"),
        ("class:my_parts.torch", "is a module, which is not below"),
        ("class:my_parts.LengthProb", 'has no "LengthProb" .did you mean "LengthProbe"'),
        ("class:nowhere.Probe", 'cannot import "nowhere"'),
        ("class:Probe", "a class is PACKAGE.MODULE.NAME"),
        ("knm", r"probes\.p"),
    ],
)
def test_a_wrong_probe_is_told_what_is_missing(probe: str, message: str) -> None:
    data = {"a": {"reader": "class:my_parts.NoiseReader"}}
    node = {"name": "x", "data": data, "probes": {"p": {"probe": probe, "group": "g", "data": "a"}}}
    with pytest.raises(UserError, match=message):
        validate(Suite, node, "suite")


def test_a_wrong_field_or_reader_is_told_too(my_parts: Path) -> None:
    with pytest.raises(UserError, match=r'unknown field "probes\.length.*powr'):
        load_suite(my_parts / "mine.yaml", ["probes.length.powr=3"])
    with pytest.raises(UserError, match="lacks the field `reader: str`"):
        load_suite(my_parts / "mine.yaml", ['data.noise={"reader": "class:my_parts.Nameless"}'])


def test_nothing_is_random(my_parts: Path) -> None:
    data = load_suite(my_parts / "mine.yaml").data["noise"].open("noise")
    assert torch.equal(
        data.classes("test").images.read(torch.tensor([3])), torch.full((1, 3, 32, 32), 3, dtype=torch.uint8)
    )
