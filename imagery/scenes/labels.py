"""Label maps: everything is looked up from the surface code of each pixel, so nothing can disagree with the picture."""

import numpy as np

from imagery.scenes import vocab
from imagery.scenes.camera import Camera
from imagery.scenes.geometry import Surfels
from imagery.scenes.surfaces import BACKGROUND_OF_CODE, FIRST_PIECE
from imagery.scenes.visibility import Hits
from imagery.scenes.world import World

SALIENT_OBJECTS = 3


def label_maps(world: World, camera: Camera, hits: Hits, seen: Surfels, salient: list[int]) -> dict[str, np.ndarray]:
    """All maps of `Scene`, by field name; `salient` are the instance ids that saliency marks."""
    table, code = world.table, hits.code
    owner = table.owner
    salient_codes = np.isin(owner, salient) & (owner > 0)
    return {
        "semantic": np.take(_per_code(world, "semantic"), code),
        "kind": np.take(_per_code(world, "kind"), code),
        "instance": np.take(owner.astype(np.uint16), code),
        "part": _parts(world, hits, seen),
        "material": np.take(table.material, code),
        "saliency": np.take(salient_codes.astype(np.uint8), code),
        "boundary": boundary_map(np.take(_outline_ids(world), code)),
        "depth": depth_map(hits),
        "normals": camera_normals(camera, seen, code.shape),
    }


def _per_code(world: World, level: str) -> np.ndarray:
    """Class id of every surface code, uint8: `semantic` or `kind` (the coarse one)."""
    if level == "semantic":
        background = [vocab.SEMANTIC_CLASSES.index(name) for name in BACKGROUND_OF_CODE]
        objects = [vocab.semantic_id(thing.kind, thing.material) for thing in world.things]
    else:
        coarse = [vocab.COARSE_OF_BACKGROUND[name] for name in BACKGROUND_OF_CODE]
        background = [vocab.COARSE_CLASSES.index(name) for name in coarse]
        objects = [vocab.COARSE_CLASSES.index(thing.kind) for thing in world.things]
    owners = world.table.owner[FIRST_PIECE:] - 1
    return np.concatenate([background, np.asarray(objects)[owners]]).astype(np.uint8)


def _parts(world: World, hits: Hits, seen: Surfels) -> np.ndarray:
    table = world.table
    above = seen.points[2].reshape(hits.code.shape) > np.take(table.split, hits.code)
    high, low = table.high.astype(np.uint8), table.low.astype(np.uint8)
    return np.where(above, np.take(high, hits.code), np.take(low, hits.code))


def _outline_ids(world: World) -> np.ndarray:
    """One id per object and one per background surface, for boundaries."""
    owner = world.table.owner.astype(np.int16)
    return np.where(owner > 0, owner + FIRST_PIECE, np.arange(len(owner), dtype=np.int16))


def boundary_map(ids: np.ndarray) -> np.ndarray:
    """1 where a pixel's right or lower neighbour, or the left or upper one, belongs to something else: [H, W] uint8."""
    edge = np.zeros(ids.shape, dtype=bool)
    across, down = ids[:, 1:] != ids[:, :-1], ids[1:] != ids[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge.view(np.uint8)


def depth_map(hits: Hits) -> np.ndarray:
    """Distance along the optical axis [H, W] float32 in metres, 0 for the sky."""
    return np.where(np.isfinite(hits.depth), hits.depth, 0).astype(np.float32)


def camera_normals(camera: Camera, seen: Surfels, shape: tuple[int, int]) -> np.ndarray:
    """Normals in camera axes [H, W, 3] float32, 0 for the sky."""
    out = np.empty((seen.normals.shape[1], 3), dtype=np.float32)
    x, y, z = seen.normals
    for axis, row in enumerate(camera.axes):
        out[:, axis] = row[0] * x + row[1] * y + row[2] * z
    return out.reshape(*shape, 3)
