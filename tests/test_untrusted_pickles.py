"""A file of tensors or arrays may be a pickle that runs code; no place that reads one lets it."""

import ast
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from common.errors import UserError
from common.plain_yaml import _Loader
from distill.student.starting_weights import _read as read_weights
from distill.training.engine_state import read as read_engine_file
from eval_suite.predictions import predictions_path, read_predictions
from eval_suite.readers.rasters import read_raster
from eval_suite.readers.safe_pickle import read_pickle
from eval_suite.sample_scores import read_samples

ROOT = Path(__file__).parents[1]
ROOMS = ("agglomerate", "common", "distill", "eval_suite", "featsharp_adapter", "imagery", "teachers")
#: yaml.load is called once, with a loader of our own below SafeLoader (common/plain_yaml.py).
YAML = [("common/plain_yaml.py", "yaml.load")]
#: How each loader that can unpickle is told not to.
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
FORBIDDEN = {
    "pickle.load",
    "pickle.loads",
    "torch.jit.load",
    "joblib.load",
    "yaml.unsafe_load",
    "eval",
    "exec",
}


class Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("ran",)


pytestmark = pytest.mark.usefixtures("nothing_runs")


def test_the_pickle_would_run_where_it_is_let(tmp_path: Path) -> None:
    torch.save({"weight": Evil()}, "evil.pt")
    torch.load("evil.pt", weights_only=False)
    (tmp_path / "ran").rmdir()


def calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(place, dotted name of what is called, its constant keywords) of every call in the program."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    constants = {
                        k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)
                    }
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), constants


def test_every_load_is_told_not_to_unpickle() -> None:
    found = list(calls())
    assert sum(name in SAFE for _, name, _ in found) >= 8
    assert [(place.split(":")[0], name) for place, name, _ in found if name == "yaml.load"] == YAML
    assert issubclass(_Loader, yaml.SafeLoader | getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for place, name, keywords in found:
        assert name not in FORBIDDEN, f"{place} calls {name}"
        assert not keywords.get("trust_remote_code"), place
        if name in SAFE:
            keyword, value = SAFE[name]
            assert keywords.get(keyword) is value, f"{place}: {name} without {keyword}={value}"


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.bin"])
def test_weights_to_start_from(name: str) -> None:
    torch.save({"weight": Evil()}, name)
    with pytest.raises(UserError, match="no file of weights that may be read"):
        read_weights(Path(name))


def test_a_checkpoint_s_file() -> None:
    torch.save({"state": Evil()}, "optimiser.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        read_engine_file(Path("optimiser.pt"))


def test_what_a_table_reads(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    for path, read in ((tmp_path / "metrics.samples.npz", read_samples), (predictions_path(metrics), None)):
        np.savez(path, index=np.array([Evil()], dtype=object))
        with pytest.raises(UserError, match="is damaged"):
            read(path) if read is not None else read_predictions(metrics)


def test_labels(tmp_path: Path) -> None:
    np.save("label.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    np.savez("label.npz", label=np.array([Evil()], dtype=object))
    (tmp_path / "label.pkl").write_bytes(pickle.dumps({"label": Evil()}))
    for name in ("label.npy", "label.npz"):
        with pytest.raises(UserError):
            read_raster(tmp_path / name)
    with pytest.raises(UserError, match="nothing in it was run"):
        read_pickle(tmp_path / "label.pkl")
