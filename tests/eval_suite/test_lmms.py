"""Our model as lmms-eval's: the request shapes it documents, and lmms-eval itself where it is installed."""

import dataclasses
import io
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_llava import CPU, changed, recipe
from tiny_language import tiny_language
from toy_world import SIZE, ToyData

from common.errors import UserError
from eval_suite.vlm.requests import cut, generate, likelihoods
from eval_suite.vlm.saved import load_vlm
from eval_suite.vlm.training import trained
from teachers.registry import load_backbone


@dataclasses.dataclass
class Instance:
    """lmms_eval.api.instance.Instance, the fields that reach a model."""

    args: tuple[Any, ...]


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (SIZE, 2 * SIZE, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lmms")
    node = changed(
        recipe(tiny_language(root / "language")), steps=2, batch=2, tune="lora", lora={"rank": 2, "alpha": 4}
    )
    where = dataclasses.replace(CPU, folder=root / "vlm", node="tiny:dino")
    trained(load_backbone("tiny:dino"), node, {"toy": ToyData(4, 2)}, 0, where)
    return root / "vlm"


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    return doc["shown"]


TASKS = {
    "toy": {
        "test": [{"shown": [picture(1)]}, {"shown": [picture(2), picture(3)]}, {"shown": []}, {"shown": ["film.mp4"]}]
    }
}


def test_requests_are_answered_in_their_order(folder: Path) -> None:
    model = load_vlm(folder, language_model=str(folder.parent / "language"))
    limits: list[dict[str, Any]] = [
        {"max_new_tokens": 3, "until": ["ASSISTANT:"]},
        {"max_new_tokens": 5},
        {"max_new_tokens": 3},
    ]
    asked = [Instance((f"what colour {at} ?", limits[at], doc_to_visual, at, "toy", "test")) for at in range(3)]
    together = generate(model, asked, TASKS, batch=4)
    alone = [generate(model, [one], TASKS, batch=1)[0] for one in asked]
    assert together == alone and all(isinstance(reply, str) for reply in together)
    assert all(len(reply.split()) <= limit["max_new_tokens"] for reply, limit in zip(together, limits, strict=True))
    with pytest.raises(UserError, match=r"sees pictures only, a task shows it str film.mp4"):
        generate(model, [Instance(("?", {}, doc_to_visual, 3, "toy", "test"))], TASKS, batch=1)
    assert cut("red\nblue", ["\n"]) == "red" and cut("red", None) == "red" and cut("a b", "b") == "a"


def test_likelihoods_say_what_greedy_replies_say(folder: Path) -> None:
    model = load_vlm(folder, language_model=str(folder.parent / "language"))

    def request(answer: Any) -> Instance:
        return Instance(("what colour ?", answer, doc_to_visual, 0, "toy", "test"))

    found = likelihoods(model, [request(word) for word in ("red", "green", lambda doc: "red")], TASKS)
    assert found[0] == found[2] and all(score < 0 for score, _ in found)
    marked = likelihoods(model, [Instance(("<image> what colour ?", "red", doc_to_visual, 0, "toy", "test"))], TASKS)
    assert len(marked) == 1
    reply = generate(
        model, [Instance(("what colour ?", {"max_new_tokens": 1}, doc_to_visual, 0, "toy", "test"))], TASKS, 1
    )[0]
    first = likelihoods(model, [request(reply or "red")], TASKS)[0]
    assert isinstance(first[1], bool)


def test_a_folder_that_does_not_belong_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no vlm.json"):
        load_vlm(tmp_path)
    with pytest.raises(UserError, match="other weights of tiny:dino"):
        load_vlm(folder, backbone="tiny:clip")
    shutil.copytree(folder, tmp_path / "other")
    card = json.loads((folder / "vlm.json").read_text())
    card["backbone_map"]["reads"] = "level:2"
    (tmp_path / "other" / "vlm.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="another map of the same weights: reads was level:2, the one named has None"):
        load_vlm(tmp_path / "other")


def test_the_entry_point_names_the_class() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"agglomerate": "eval_suite.vlm.lmms:manifest"}
    assert any(name.startswith("lmms-eval") for name in project["optional-dependencies"]["lmms"])


TASK = """
task: toy_colours
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: "answer"
generation_kwargs: {{max_new_tokens: 4}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
UTILS = """
def visual(doc):
    return [doc["image"].convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""


def test_lmms_eval_runs_it(folder: Path, tmp_path: Path) -> None:
    """The real harness, a task of its own, our class from the registry. Skipped where lmms-eval is not installed."""
    pytest.importorskip("lmms_eval", reason="the lmms extra is not installed")
    import layout_fixtures as make
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2, get_model
    from lmms_eval.tasks import TaskManager

    from eval_suite.vlm.lmms import Agglomerate, manifest

    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    assert get_model("agglomerate") is Agglomerate
    language = folder.parent / "language"
    rows = [{"question": "what colour ?", "answer": "red", "image": make.jpeg(n)} for n in range(3)]
    file = make.parquet(tmp_path / "toy" / "test.parquet", rows)
    make.text(tmp_path / "toy" / "toy_colours.yaml", TASK.format(file=file))
    make.text(tmp_path / "toy" / "utils.py", UTILS)
    found = simple_evaluate(
        model="agglomerate",
        model_args=f"folder={folder},language_model={language}",
        tasks=["toy_colours"],
        batch_size=2,
        device="cpu",
        task_manager=TaskManager(include_path=str(tmp_path / "toy")),
        log_samples=True,
    )
    shown = [Image.open(io.BytesIO(make.jpeg(n)["bytes"])) for n in range(3)]
    asked = [Instance(("what colour ?", {"max_new_tokens": 4}, lambda doc: [doc], at, "t", "s")) for at in range(3)]
    direct = generate(load_vlm(folder, language_model=language), asked, {"t": {"s": shown}}, 2)
    samples = sorted(found["samples"]["toy_colours"], key=lambda sample: sample["doc_id"])
    assert [sample["filtered_resps"][0] for sample in samples] == direct
