"""Suite files, the scenes reader, and a whole run in small."""

from pathlib import Path

import pytest
import torch
from toy_world import Dumb

import eval_suite.readers.scenes as reader
from common.errors import UserError
from common.recipes import dump, validate
from eval_suite.readers.contracts import AskedQuestion
from eval_suite.readers.scenes import ScenesNode
from eval_suite.readers.store import CACHE_VARIABLE, stored
from eval_suite.results import GROUPS, validate_metrics
from eval_suite.suite import Suite, load_suite, run_suite
from imagery.scenes import render_scene
from teachers.contracts import Backbone, BackboneSpec, Features

SUITES = Path(__file__).parents[2] / "recipes" / "suites"
DEBUG = SUITES / "embedded_debug.yaml"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite(DEBUG)


class Speaking(Backbone):
    """Pools pixels, with a text tower that counts letters: enough for every probe to have something to read."""

    def __init__(self) -> None:
        super().__init__()
        ones = (1.0, 1.0, 1.0)
        self.spec = BackboneSpec("speaking", "test", 8, 12, 12, (64, 64), False, ones, ones, "none", "x", "sha256:1")

    def forward(self, images: torch.Tensor) -> Features:
        small = torch.nn.functional.adaptive_avg_pool2d(images, (8, 8))
        spatial = torch.cat([small, small.square(), small.sqrt(), small.cos()], 1)
        return Features(spatial.mean((2, 3)), spatial)

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[float(text.count(letter)) for letter in "abcdefghilno"] for text in texts])


def test_embedded_suite_covers_all_groups_twice(suite: Suite) -> None:
    metrics = run_suite(Speaking(), suite, progress=False)
    validate_metrics(metrics, "debug")
    per_group = {group: [r for r in metrics["results"] if r["group"] == group] for group in GROUPS}
    assert all(len(found) >= 2 for found in per_group.values()), {g: len(f) for g, f in per_group.items()}
    assert "absent" not in metrics
    assert all(r["n"] and r["stderr"] is not None and r["seed"] == suite.seed for r in metrics["results"])


def test_what_a_backbone_lacks_is_listed_and_never_dropped_in_silence(suite: Suite) -> None:
    class Mute(Dumb):
        def __init__(self) -> None:
            super().__init__()
            self.spec = Speaking().spec

        def forward(self, images: torch.Tensor) -> Features:
            return Features(None, Speaking().forward(images).spatial)

    only = suite.model_copy(update={"probes": {name: suite.probes[name] for name in ("knn", "zero_shot", "retrieval")}})
    metrics = run_suite(Mute(), only, progress=False)
    assert set(metrics["absent"]) == {"classification/zero_shot", "retrieval/retrieval"}
    assert all("no text tower" in reason for reason in metrics["absent"].values())
    assert [r["task"] for r in metrics["results"]] == ["knn"]


def test_suites_load_and_dump_to_themselves() -> None:
    for path in sorted(SUITES.glob("*.yaml")):
        suite = load_suite(path)
        plain = dump(suite)
        import yaml

        assert validate(Suite, yaml.safe_load(plain), "dump") == suite


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("probes.knn.kk=3", "kk"),
        ("probes.depth.data=photos", 'wants data "photos"'),
        ("probes.zero_shot.templates=[a picture]", "{}"),
        ("probes.nyudv2.tasks={semantik: 1}", "no task semantik"),
        ("data.scenes.reader=sceens", "sceens"),
        ("probes.knn.probe=nearest", "nearest"),
    ],
)
def test_mistakes_in_a_suite_are_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("{", r"\{")):
        load_suite(DEBUG, [override])


def test_unknown_scene_setting_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match='did you mean "indoor_share"'):
        load_suite(DEBUG, ["data.scenes.settings={indor_share: 1}"]).data["scenes"].open("scenes")


def node(**changes: object) -> ScenesNode:
    fields = {"seed": 5, "train": 3, "test": 2, "pairs": 2, "points": 20, "size": 48, "label_stride": 2, "workers": 1}
    return ScenesNode(reader="scenes", **{**fields, **changes})


def test_scenes_reader_gives_what_the_renderer_drew() -> None:
    data = node().open("scenes")
    dense = data.dense("train")
    scene = render_scene(5, 1, 48, 48)
    row = torch.tensor([1])
    assert torch.equal(dense.images.read(row)[0], torch.from_numpy(scene.rgb).movedim(-1, 0))
    assert torch.equal(dense.labels("semantic")[row][0], torch.from_numpy(scene.semantic[1::2, 1::2]))
    assert torch.allclose(dense.labels("depth")[row][0].float(), torch.from_numpy(scene.depth[1::2, 1::2]), rtol=1e-3)
    assert data.classes("train").labels[1] == scene.scene_class
    assert list(data.captions("train").captions[1]) == scene.captions
    asked = scene.questions[0]
    assert AskedQuestion(1, asked.kind, asked.question, asked.answer) in data.questions("train").questions
    assert dense.groups["indoor"][1] == scene.attributes["indoor"]


def test_train_test_and_pairs_are_different_scenes() -> None:
    data = node().open("scenes")
    train, test = (data.dense(split).images.read(torch.tensor([0])) for split in ("train", "test"))
    assert not torch.equal(train, test)
    assert not torch.equal(data.pairs("test").first.read(torch.tensor([0])), test)


def test_pairs_carry_true_correspondences() -> None:
    pairs = node(size=96, points=40).open("scenes").pairs("test")
    colour = [source.read(torch.arange(2)).float() for source in (pairs.first, pairs.second)]
    at = [points.long().clamp(0, 95) for points in (pairs.points, pairs.targets)]
    seen = [image[torch.arange(2)[:, None], :, p[..., 1], p[..., 0]] for image, p in zip(colour, at, strict=True)]
    close = (seen[0] - seen[1]).abs().mean(-1)[pairs.valid]
    assert pairs.valid.sum() > 20
    assert close.median() < 12  # grey levels; other places differ by far more


def test_rendered_once_then_read_from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    small = node(seed=77)
    first = small.open("a").dense("test")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr(reader, "render_many", never)
    again = small.open("b").dense("test")
    assert torch.equal(first.labels("kind")[first.rows], again.labels("kind")[again.rows])
    assert first.images.key == again.images.key
    with pytest.raises(AssertionError, match="rendered again"):
        node(seed=77, size=64).open("c").dense("test")


def test_an_interrupted_rendering_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails() -> tuple[dict[str, object], object]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path / "x", fails)
    with pytest.raises(TypeError):
        stored(tmp_path / "x", lambda: ({"a": torch.zeros(2).numpy()}, {1, 2}))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_probe_that_is_null_is_left_out_and_nothing_else() -> None:
    probes = load_suite(DEBUG).probes
    assert {*load_suite(DEBUG, ["probes.retrieval=null"]).probes} == {*probes} - {"retrieval"}
    with pytest.raises(UserError, match="probes"):
        load_suite(DEBUG, [f"probes.{name}=null" for name in probes])
