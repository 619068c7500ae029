"""Fills a scene cache from anything that draws labelled scenes, on several processes; a current one is reused."""

import hashlib
import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from common.atomic import write_text
from tools.tiny_teachers.cache import SceneCache, create, open_cache, store_depth, store_normals

_CHUNK = 16
_DONE = "captions.json"  #: written last, so its presence says that the rest is there


class LabelledScene(Protocol):
    """What is read of a scene: maps [S, S(, 3)], captions, and the attributes `indoor` and `light_direction` [3]."""

    rgb: np.ndarray
    semantic: np.ndarray
    kind: np.ndarray
    part: np.ndarray
    instance: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    captions: list[str]
    scene_class: int
    attributes: dict[str, Any]


def fill(draw: Callable[[int], LabelledScene], count: int, size: int, folder: Path, workers: int) -> SceneCache:
    """Draw scenes 0 .. count - 1 into `folder`, or open it where that was done before. `draw` must be picklable."""
    if not _is_current(folder, draw, count, size):
        (folder / _DONE).unlink(missing_ok=True)
        create(folder, count, size)
        captions = _draw_all(partial(_store, draw, folder), count, workers)
        write_text(folder / _DONE, json.dumps(captions))
    return open_cache(folder)


def _is_current(folder: Path, draw: Callable[[int], LabelledScene], count: int, size: int) -> bool:
    """Whether the folder is complete and its first scene is still what `draw` draws (the world may have changed)."""
    if not (folder / _DONE).exists():
        return False
    cache = open_cache(folder)
    if (len(cache), cache.size) != (count, size):
        return False
    scene = draw(0)
    same = all(np.array_equal(cache.maps[key][0], getattr(scene, key)) for key in ("rgb", "semantic", "part"))
    return same and cache.captions()[0] == list(scene.captions)


def _draw_all(store: Callable[[Sequence[int]], list[list[str]]], count: int, workers: int) -> list[list[str]]:
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    bar = partial(tqdm, total=len(chunks), desc="scenes", unit=f"x{_CHUNK}", mininterval=2.0)
    if workers <= 1:
        return [row for rows in bar(map(store, chunks)) for row in rows]
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return [row for rows in bar(pool.map(store, chunks)) for row in rows]


def _store(draw: Callable[[int], LabelledScene], folder: Path, indices: Sequence[int]) -> list[list[str]]:
    cache = open_cache(folder, "r+")
    return [_store_one(cache, index, draw(index)) for index in indices]


def _store_one(cache: SceneCache, row: int, scene: LabelledScene) -> list[str]:
    maps, facts = cache.maps, cache.facts
    maps["rgb"][row], maps["semantic"][row], maps["coarse"][row] = scene.rgb, scene.semantic, scene.kind
    maps["part"][row] = scene.part
    maps["instance"][row] = scene.instance.astype(np.uint8)
    maps["depth"][row], maps["normals"][row] = store_depth(scene.depth), store_normals(scene.normals)
    facts["indoor"][row], facts["light"][row] = scene.attributes["indoor"], scene.attributes["light_direction"]
    facts["scene_class"][row] = scene.scene_class
    return list(scene.captions)


def fingerprint(cache: SceneCache, rows: int = 64) -> str:
    """Hash of the first pictures and labels: tells which version of the scenes a teacher was trained on."""
    digest = hashlib.sha256()
    for name in ("rgb", "semantic", "part"):
        digest.update(np.ascontiguousarray(cache.maps[name][:rows]).tobytes())
    return digest.hexdigest()[:16]
