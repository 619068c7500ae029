"""Draw a whole scene set at once, on several processes."""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from imagery.scenes.scene import Scene
from imagery.scenes.scene_set import SceneSet

_CHUNK = 8


def render_many(scenes: SceneSet, workers: int = 2) -> list[Scene]:
    """All scenes in order. The result does not depend on `workers`; 0 or 1 draws in this process."""
    if workers <= 1 or len(scenes) <= _CHUNK:
        return [scenes[index] for index in range(len(scenes))]
    # fork where it exists: spawned workers would import the caller's main module (and torch) anew, for seconds.
    # The children run numpy only and never touch a thread pool of the parent.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return list(pool.map(partial(_draw, scenes), range(len(scenes)), chunksize=_CHUNK))


def _draw(scenes: SceneSet, index: int) -> Scene:
    return scenes[index]
