"""Shipped results are used for the weights and the suite they were measured with, and for nothing else."""

from pathlib import Path

import pytest

from eval_suite.recorded import recall_or_run, record, recorded
from eval_suite.suite import load_suite, run_suite
from teachers.registry import load_backbone

SUITES = Path(__file__).parents[2] / "recipes" / "suites"
SMALL = ["data.scenes.train=12", "data.scenes.test=8", "data.scenes.pairs=2", "data.scenes.size=112"]
TINY = ("tiny:clip", "tiny:dino", "tiny:sam")


def test_a_record_answers_for_its_weights_and_suite_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGGLOMERATE_CACHE", str(tmp_path / "cache"))
    suite = load_suite(SUITES / "embedded_debug.yaml", SMALL)
    knn = suite.model_copy(update={"probes": {"knn": suite.probes["knn"]}})
    dino = load_backbone("tiny:dino")
    assert recorded(dino, knn, tmp_path) is None
    path = record(dino, knn, progress=False, folder=tmp_path)
    assert path.parent == tmp_path
    found, fresh = recorded(dino, knn, tmp_path), run_suite(dino, knn, progress=False, samples=True)
    assert found is not None and found["results"] == fresh["results"]
    assert set(found["samples"]) == set(fresh["samples"]) != set()
    assert recorded(load_backbone("tiny:sam"), knn, tmp_path) is None
    assert recorded(dino, suite, tmp_path) is None
    assert recorded(dino, knn.model_copy(update={"seed": 1}), tmp_path) is None


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_teachers_on_the_embedded_suite_are_on_record(name: str) -> None:
    """After a change of the suite, its probes or the weights: `python -m eval_suite record` for each tiny teacher."""
    suite, backbone = load_suite(SUITES / "embedded.yaml"), load_backbone(name)
    found = recorded(backbone, suite)
    assert found is not None and found["results"]
    assert recall_or_run(backbone, suite)["results"] == found["results"]
    assert len(found["samples"]) == len(found["results"])


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a minute of the processor each, which is many on a busy machine
@pytest.mark.parametrize("name", TINY)
def test_the_records_are_what_comes_out(name: str) -> None:
    suite, backbone = load_suite(SUITES / "embedded.yaml"), load_backbone(name)
    found = recorded(backbone, suite)
    assert found is not None
    fresh = {(r["task"], r["metric"]): r for r in run_suite(backbone, suite, progress=False)["results"]}
    kept = {(r["task"], r["metric"]): r for r in found["results"]}
    assert set(fresh) == set(kept)
    for key, result in kept.items():
        # Another machine rounds differently and trained probes amplify it: a fraction of the standard error.
        assert fresh[key]["value"] == pytest.approx(result["value"], abs=max(0.5 * result["stderr"], 0.01)), key
