"""Values that nobody can mean are refused when a recipe or suite is read, in a line that names the field."""

from pathlib import Path

import pytest

from common.errors import UserError
from common.plain_yaml import parse_yaml
from tests.fuzz_recipes import RECIPES, command_of

DISTILLATION, ADAPTER = "quickstart.yaml", "adapters/tiny_dino.yaml"
SUITE, FILES, VLM, VIEWS = (f"suites/{name}.yaml" for name in ("embedded", "radio", "vlm", "probe3d"))
SENSELESS = [
    (DISTILLATION, "data.augment.zoom=[1, 1e+30]"),
    (DISTILLATION, "data.augment.aspect=[1, 1e+30]"),
    (DISTILLATION, "data.augment.hflip=2"),
    (DISTILLATION, "data.train={'scenes:seed=1': -1}"),
    (DISTILLATION, "data.train={'scenes:seed=1': 0}"),
    (DISTILLATION, "data.train={}"),
    (DISTILLATION, "optim.lr=1e+30"),
    (DISTILLATION, 'out="\\u202e"'),
    (ADAPTER, "data.zoom=[1, 1e+30]"),
    (ADAPTER, "views.zoom=[1, 1e+9]"),
    (ADAPTER, "data.cache_gib=1e+300"),
    (ADAPTER, "optim.lr=1e+30"),
    (ADAPTER, 'out="\\u202e"'),
    (ADAPTER, 'out=" "'),
    (SUITE, "probes.two_view.pixels=[-1]"),
    (SUITE, "probes.two_view.pixels=[0]"),
    (SUITE, "probes.two_view.pixels=[3, 3]"),
    (SUITE, "probes.two_view.cells=1000000000"),
    (SUITE, "probes.keypoints.alpha=1e+30"),
    (SUITE, "probes.knn.temperature=1e-30"),
    (SUITE, "probes.kind.label_size=1000000000"),
    (SUITE, "probes.retrieval.ranks=[0]"),
    (SUITE, "probes.retrieval.ranks=[1, 1]"),
    (SUITE, "probes.pascal_context.learning_rate=1e+30"),
    (FILES, "data.ade20k.size=0"),
    (FILES, "data.ade20k.size=[0, 1]"),
    (FILES, "data.ade20k.label_size=-1"),
    (VLM, "vlm.layer=1000000"),
    (VLM, "vlm.stage1.learning_rate=1e+30"),
    (VLM, "vlm.stage1.clip=1e-30"),
    (VIEWS, "probes.navi_views.cells=0"),
    (VIEWS, "probes.navi_views.centimetres=[-1]"),
]


@pytest.mark.parametrize(
    ("text", "number"), [("010", 8), ("-017", -15), ("1:30", 90), ("1:30.5", 90.5), ("0_7", 7)], ids=str
)
def test_numbers_that_yaml_reads_otherwise_than_people_do(text: str, number: float) -> None:
    with pytest.raises(UserError, match=f"{text} in line 1 is {number} to YAML"):
        parse_yaml(f"a: {text}", "test")
    assert parse_yaml(f"a: '{text}'", "test") == {"a": text}


def test_plain_numbers() -> None:
    text = "{a: 0, b: 10, c: -3, d: 0.5, e: 1_000, f: 0x10, g: 0b11, h: 00.5, i: 08}"
    expected = {"a": 0, "b": 10, "c": -3, "d": 0.5, "e": 1000, "f": 16, "g": 3, "h": 0.5, "i": "08"}
    assert parse_yaml(text, "test") == expected


@pytest.mark.parametrize(("file", "override"), SENSELESS, ids=lambda value: str(value))
def test_senseless_values_are_refused(file: str, override: str) -> None:
    path = Path(RECIPES) / file
    _, load = command_of(path)
    field = override.partition("=")[0].split(".")[-1]
    with pytest.raises(UserError) as refused:
        load(path, [override])
    assert field in str(refused.value) and len(str(refused.value)) < 600
