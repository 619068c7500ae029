"""Whether two runs ended in one and the same state: every file of their last checkpoints, tensor by tensor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from common.checksums import MANIFEST

#: What names the run or its folder, and is no state; and Python's and numpy's own random state, which training never
#: uses: they are as the process found them.
NAMES = {"identity", "ds_config", "ds_version", "random_state", "numpy_random_seed"}


def assert_same_checkpoints(one: Path, other: Path) -> None:
    """The last checkpoints of two runs: student, moments, statistics, places in the data, random numbers."""
    ours, theirs = (max((folder / "checkpoints").iterdir()) for folder in (one, other))
    assert ours.name == theirs.name
    files = sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file())
    for file in files:
        if file.name == MANIFEST:  # checksums of the others, names of runs included
            continue
        assert same(contents(ours / file), contents(theirs / file)), file


def contents(path: Path) -> Any:
    """A file as Python has it. The pickles are our own: Accelerate's random states, DeepSpeed's partitions."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix in (".bin", ".pt", ".pkl"):
        return torch.load(path, weights_only=False, map_location="cpu")
    return path.read_bytes()


def same(one: Any, other: Any) -> bool:
    """Equal all the way down, tensors by torch.equal."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one.keys() - NAMES)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(ours, theirs) for ours, theirs in zip(one, other, strict=True))
    if hasattr(one, "__dict__") and not callable(one):
        return same(vars(one), vars(other))
    return bool(one == other)
