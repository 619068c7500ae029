"""Labelled scenes as memory-mapped arrays, written once and read by crops: one row a scene, one file an array.

Nothing here knows where scenes come from; whoever fills the cache does. Colours and class ids keep the full size S
(thin things survive), depth and normals half of it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

_ARRAYS = {
    "rgb": ("uint8", 1, (3,)),
    "semantic": ("uint8", 1, ()),
    "coarse": ("uint8", 1, ()),
    "part": ("uint8", 1, ()),
    "instance": ("uint8", 1, ()),
    "depth": ("float16", 2, ()),
    "normals": ("int8", 2, (3,)),
}
_FACTS = {"indoor": ("uint8", ()), "light": ("float32", (3,)), "scene_class": ("uint8", ())}


@dataclass(frozen=True)
class SceneCache:
    """`maps` by name, rows [S, S(, 3)] or [S/2, S/2(, 3)]; `facts` one row a scene; captions read on demand."""

    folder: Path
    size: int
    maps: dict[str, np.ndarray]
    facts: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.maps["rgb"])

    def captions(self) -> list[list[str]]:
        """Paraphrases per scene."""
        rows: list[list[str]] = json.loads((self.folder / "captions.json").read_text())
        return rows


def create(folder: Path, count: int, size: int) -> None:
    """Empty files for `count` scenes of `size` x `size` pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {name: (dtype, (count, size // r, size // r, *last)) for name, (dtype, r, last) in _ARRAYS.items()}
    shapes |= {name: (dtype, (count, *last)) for name, (dtype, last) in _FACTS.items()}
    for name, (dtype, shape) in shapes.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape).flush()


def open_cache(folder: Path, mode: Literal["r", "r+"] = "r") -> SceneCache:
    """Open for reading ("r") or filling ("r+")."""
    maps = {name: np.load(folder / f"{name}.npy", mmap_mode=mode) for name in _ARRAYS}
    facts = {name: np.load(folder / f"{name}.npy", mmap_mode=mode) for name in _FACTS}
    return SceneCache(folder, maps["rgb"].shape[1], maps, facts)


def store_depth(depth: np.ndarray) -> np.ndarray:
    """Metres [H, W] float32 (0 = none) -> [H/2, W/2] float16."""
    return np.minimum(depth[::2, ::2], 6e4).astype(np.float16)


def store_normals(normals: np.ndarray) -> np.ndarray:
    """Unit vectors [H, W, 3] -> [H/2, W/2, 3] int8, 127 = 1."""
    return np.rint(normals[::2, ::2] * 127).astype(np.int8)
