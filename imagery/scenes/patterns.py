"""Two-tone patterns on surfaces. Each says how much of the second tone a point shows: [n], 0 or 1 before filtering."""

from collections.abc import Iterator

import numpy as np

from imagery.scenes.geometry import Surfels, to_local
from imagery.scenes.glyphs import PLATE_HEIGHT, PLATE_WIDTH, glyph_plates
from imagery.scenes.surfaces import FIRST_PIECE, SurfaceTable
from imagery.scenes.vocab import MATERIALS

Code = int | np.ndarray  # one surface code for all points, or one each
_GLYPH_FILL = 0.88  # how much of the face the plate of a glyph fills
_INK, _PLATE = 0.06, 0.95
_MEAN_SHARE = {"checker": 0.5, "stripes": 0.5, "dots": 0.33, "noise": 0.5}


def albedo(table: SurfaceTable, seen: Surfels, footprint: np.ndarray) -> np.ndarray:
    """Colour of every pixel's surface before light [3, N] float32.

    `footprint` [N] is the size of a pixel on the surface in metres: a pattern finer than that fades to its mean, which
    is what a camera would see, instead of aliasing.
    """
    mix = np.zeros(len(seen.code), dtype=np.float32)
    for name, code, pixels in _patterned(table, seen.code):
        frequency = table.frequency[code]
        local = to_local(table, code, np.take(seen.points, pixels, axis=1)).astype(np.float32)
        local *= frequency
        share = _PATTERNS[name](local, table, code, seen, pixels)
        sharp = np.clip(1.6 - 1.6 * footprint[pixels] * frequency, 0, 1)
        mix[pixels] = _MEAN_SHARE[name] + sharp * (share - _MEAN_SHARE[name])
    out = np.empty((3, len(mix)), dtype=np.float32)
    for channel in range(3):
        first = table.tone[:, channel].copy()
        np.take(first, seen.code, out=out[channel])
        out[channel] += mix * np.take(table.tone2[:, channel] - first, seen.code)
    draw_glyphs(table, seen, out)
    return out


def _patterned(table: SurfaceTable, codes: np.ndarray) -> Iterator[tuple[str, Code, np.ndarray]]:
    """Groups of pixels with one pattern: its name, their surface codes, and where they are.

    A background surface is a group of its own, with a single code: it is large, and looking its properties up pixel by
    pixel would cost more than the pattern.
    """
    for code in range(FIRST_PIECE):
        name = MATERIALS[table.material[code]]
        pixels = np.flatnonzero(codes == code) if name in _PATTERNS else ()
        if len(pixels):
            yield name, code, np.asarray(pixels)
    objects = np.flatnonzero(codes >= FIRST_PIECE)
    object_codes = codes[objects]
    material = np.take(table.material, object_codes)
    for name in _PATTERNS:
        chosen = np.flatnonzero(material == MATERIALS.index(name))
        if len(chosen):
            yield name, object_codes[chosen], objects[chosen]


def _checker(q: np.ndarray, table: SurfaceTable, code: Code, seen: Surfels, pixels: np.ndarray) -> np.ndarray:
    phase = table.phase[code]
    cells = np.floor(q[0] + phase[..., 0]) + np.floor(q[1] + phase[..., 1]) + np.floor(q[2] + phase[..., 2])
    return cells.astype(np.int32) & 1


def _stripes(q: np.ndarray, table: SurfaceTable, code: Code, seen: Surfels, pixels: np.ndarray) -> np.ndarray:
    stripe = table.stripe[code]
    along = q[0] * stripe[..., 0] + q[1] * stripe[..., 1] + q[2] * stripe[..., 2] + table.phase[code][..., 0]
    return np.floor(1.3 * along).astype(np.int32) & 1


def _dots(q: np.ndarray, table: SurfaceTable, code: Code, seen: Surfels, pixels: np.ndarray) -> np.ndarray:
    """Discs on a square lattice, in the two axes that the surface faces least away from."""
    normal = np.abs(_local_normals(table, code, seen.normals[:, pixels]))
    away = normal.argmax(axis=0)
    u = np.where(away == 0, q[1], q[0])
    v = np.where(away == 2, q[1], q[2])
    phase = table.phase[code]
    u, v = 1.25 * u + phase[..., 0], 1.25 * v + phase[..., 1]
    u -= np.floor(u) + 0.5
    v -= np.floor(v) + 0.5
    return u * u + v * v < 0.105


def _noise(q: np.ndarray, table: SurfaceTable, code: Code, seen: Surfels, pixels: np.ndarray) -> np.ndarray:
    """Blotches: the sign of a sum of skew waves."""
    phase = 6.3 * table.phase[code]
    x, y, z = 3.8 * q
    wave = np.sin(x + 1.7 * np.sin(0.9 * y + z + phase[..., 0]) + phase[..., 1])
    wave += np.sin(y * 1.31 - z * 1.17 + 1.9 * np.sin(0.8 * x - 0.6 * z + phase[..., 2]))
    wave += 0.7 * np.sin(2.3 * z - 1.9 * x + 1.6 * y)
    return wave > 0


_PATTERNS = {"checker": _checker, "stripes": _stripes, "dots": _dots, "noise": _noise}


def _local_normals(table: SurfaceTable, code: Code, normals: np.ndarray) -> np.ndarray:
    cos, sin = table.cos[code], table.sin[code]
    return np.stack([cos * normals[0] + sin * normals[1], cos * normals[1] - sin * normals[0], normals[2]])


def draw_glyphs(table: SurfaceTable, seen: Surfels, colours: np.ndarray) -> None:
    """Paint each glyph's plate and ink over `colours` [3, N], in place."""
    carriers = np.flatnonzero(table.glyph >= 0)
    pixels, ink = glyph_pixels(table, seen, carriers)
    colours[:, pixels] = np.where(ink, _INK, _PLATE)


def glyph_pixels(table: SurfaceTable, seen: Surfels, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that lie on the glyph plates of these surface codes, and whether each is ink: [n] int, [n] bool."""
    if not len(rows):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
    wanted = np.zeros(len(table), dtype=bool)
    wanted[rows] = True
    pixels = np.flatnonzero(np.take(wanted, seen.code))
    code = seen.code[pixels]
    local = to_local(table, code, seen.points[:, pixels])
    middle = (table.z1 - table.z0)[code] / 2
    half_x, half_z = plate_half_sizes(table, code)
    u = 0.5 + 0.5 * local[0] / half_x
    v = 0.5 - 0.5 * (local[2] - middle) / half_z
    on_front = local[1] < 1e-6 - table.ry[code]
    on_plate = on_front & (u >= 0) & (u < 1) & (v >= 0) & (v < 1)
    pixels, code, u, v = pixels[on_plate], code[on_plate], u[on_plate], v[on_plate]
    plates = glyph_plates()
    rows_, columns = (v * plates.shape[1]).astype(np.int64), (u * plates.shape[2]).astype(np.int64)
    return pixels, plates[table.glyph[code], rows_, columns]


def plate_half_sizes(table: SurfaceTable, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half width and half height in metres [n] of the glyph plates on these surfaces: the largest that fit the face."""
    half_z = _GLYPH_FILL * np.minimum((table.z1 - table.z0)[code] / 2, table.rx[code] * PLATE_HEIGHT / PLATE_WIDTH)
    return half_z * PLATE_WIDTH / PLATE_HEIGHT, half_z
