"""What can be said of each object in this picture: how much of it shows, where, and whether its glyph can be read."""

import numpy as np

from imagery.scenes.geometry import Surfels
from imagery.scenes.glyphs import PLATE_HEIGHT
from imagery.scenes.patterns import glyph_pixels, plate_half_sizes
from imagery.scenes.scene import ObjectFacts
from imagery.scenes.surfaces import FIRST_PIECE
from imagery.scenes.visibility import Hits
from imagery.scenes.world import World

CLEAR_AREA = 0.0009  # of the shorter side squared: 45 pixels at 224
CLEAR_SHARE = 0.5  # of the object neither hidden nor cut off
READABLE_HEIGHT = 0.058  # of the shorter side: the letter is 13 pixels tall at 224
READABLE_SHARE = 0.97  # of the plate unhidden
_THIN_AREA = 0.4  # a pole has little area for its height


def object_facts(world: World, hits: Hits, seen: Surfels) -> list[ObjectFacts]:
    """One entry per object with at least one visible pixel, in instance order."""
    owner = world.table.owner
    counts = np.bincount(seen.code, minlength=len(owner))
    pixels = np.bincount(owner, weights=counts).astype(np.int64)
    alone = np.bincount(owner, weights=hits.covered / np.maximum(hits.inside, 1e-3)).astype(np.float64)
    x, y, nearest = _places(owner, hits, len(world.things))
    side = min(hits.code.shape)
    facts = []
    for index, thing in enumerate(world.things):
        instance = index + 1
        if pixels[instance] == 0:
            continue
        share = float(min(1.0, pixels[instance] / alone[instance]))
        area = CLEAR_AREA * (_THIN_AREA if thing.kind == "pole" else 1.0)
        clear = pixels[instance] >= area * side * side and share >= CLEAR_SHARE
        facts.append(
            ObjectFacts(
                instance=instance,
                kind=thing.kind,
                colour=thing.colour,
                material=thing.material,
                glyph=thing.glyph,
                pixels=int(pixels[instance]),
                seen_share=share,
                x=float(x[instance]),
                y=float(y[instance]),
                distance=float(nearest[instance]),
                clear=bool(clear),
                glyph_readable=bool(thing.glyph) and _is_readable(world, hits, seen, instance),
            )
        )
    return facts


def _places(owner: np.ndarray, hits: Hits, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per instance id: middle of its visible pixels as shares of width and height, and its least depth in metres."""
    height, width = hits.code.shape
    flat = hits.code.ravel()
    pixels = np.flatnonzero(flat >= FIRST_PIECE)
    instance = owner[flat[pixels]]
    total = np.maximum(np.bincount(instance, minlength=count + 1), 1)
    rows, columns = np.divmod(pixels, width)
    x = np.bincount(instance, weights=columns, minlength=count + 1) / total
    y = np.bincount(instance, weights=rows, minlength=count + 1) / total
    nearest = np.full(count + 1, np.inf)
    np.minimum.at(nearest, instance, hits.depth.ravel()[pixels])
    return (x + 0.5) / width, (y + 0.5) / height, nearest


def _is_readable(world: World, hits: Hits, seen: Surfels, instance: int) -> bool:
    """Whether the plate is large enough, faces the camera enough, and is all there.

    The plate's full area in pixels comes from its corners in space, so a hidden or cut-off part counts against it.
    """
    table = world.table
    rows = np.flatnonzero((table.owner == instance) & (table.glyph >= 0))
    pixels, _ = glyph_pixels(table, seen, rows)
    if len(pixels) == 0:
        return False
    corners = plate_corners(world, int(rows[0]))
    x, y, z = world.camera.project(corners, *hits.code.shape)
    if z.min() < 0.1:
        return False
    full = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    tall = min(np.hypot(x[3] - x[0], y[3] - y[0]), np.hypot(x[2] - x[1], y[2] - y[1]))
    wide = min(np.hypot(x[1] - x[0], y[1] - y[0]), np.hypot(x[2] - x[3], y[2] - y[3]))
    letter = 7 / PLATE_HEIGHT * tall
    # the plate's outline is cut by whole pixels, hence the tolerance of half a pixel around it
    complete = len(pixels) >= READABLE_SHARE * full - 0.5 * (tall + wide)
    return bool(complete and letter >= READABLE_HEIGHT * min(hits.code.shape) and wide >= 0.45 * tall)


def plate_corners(world: World, row: int) -> np.ndarray:
    """World corners [3, 4] of a glyph's plate, clockwise from the top left as seen from its front."""
    half_x, half_z = plate_half_sizes(world.table, np.array([row]))
    table = world.table
    lx = np.array([-1, 1, 1, -1]) * half_x
    ly = np.full(4, -table.ry[row])
    lz = (table.z0[row] + table.z1[row]) / 2 + np.array([1, 1, -1, -1]) * half_z
    cos, sin = table.cos[row], table.sin[row]
    return np.stack([table.x[row] + cos * lx - sin * ly, table.y[row] + sin * lx + cos * ly, lz])
