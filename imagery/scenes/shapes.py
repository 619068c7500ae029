"""How each kind of object is put together from spheres, boxes and frustums (a cone is a frustum with no top)."""

from dataclasses import dataclass

import numpy as np

from imagery.scenes.surfaces import BOX, FRUSTUM, SPHERE, Finish, Piece
from imagery.scenes.vocab import part_id

SMALLEST = {"sign": 0.30, "lamp": 0.25, "table": 0.30, "figure": 0.20}


@dataclass(frozen=True)
class Thing:
    """One object of the world: what it is called, where it stands, and its pieces."""

    kind: str
    material: str
    colour: str
    glyph: str
    x: float
    y: float
    base: float
    yaw: float
    radius: float
    top: float
    pieces: list[Piece]


@dataclass(frozen=True)
class _Spot:
    x: float
    y: float
    base: float
    yaw: float
    r: float
    glyph: int


def footprint(kind: str, radius: float) -> float:
    """Radius on the ground that placement keeps free, metres."""
    return 0.12 if kind == "pole" else radius


def build_pieces(
    kind: str, x: float, y: float, base: float, yaw: float, r: float, glyph: int, finish: Finish, trim: Finish,
    rng: np.random.Generator,
) -> list[Piece]:  # fmt: skip
    """Pieces of an object of size `r` metres standing at (x, y) on height `base`; `trim` is for posts and stems."""
    return _BUILDERS[kind](_Spot(x, y, base, yaw, r, glyph), finish, trim, rng)


def _frustum(
    s: _Spot, z0: float, z1: float, r0: float, r1: float, finish: Finish, low: int, high: int, split: float
) -> Piece:
    return Piece(FRUSTUM, s.x, s.y, s.base + z0, s.base + z1, r0, r1, s.yaw, finish, low, high, s.base + split)


def _ball(s: _Spot, finish: Finish, trim: Finish, rng: np.random.Generator) -> list[Piece]:
    low, high = part_id("ball", "lower"), part_id("ball", "upper")
    r = 0.9 * s.r
    return [Piece(SPHERE, s.x, s.y, s.base, s.base + 2 * r, r, r, s.yaw, finish, low, high, s.base + r)]


def _box(s: _Spot, finish: Finish, trim: Finish, rng: np.random.Generator) -> list[Piece]:
    half_x = s.r * rng.uniform(0.55, 0.85)
    thin = rng.random() < 0.35
    half_y = s.r * (rng.uniform(0.06, 0.18) if thin else rng.uniform(0.4, 0.75))
    top = s.base + s.r * rng.uniform(0.7, 1.7)
    low, high = part_id("box", "side"), part_id("box", "top")
    return [Piece(BOX, s.x, s.y, s.base, top, half_x, half_y, s.yaw, finish, low, high, top - 1e-6, s.glyph)]


def _cylinder(s: _Spot, finish: Finish, trim: Finish, rng: np.random.Generator) -> list[Piece]:
    height, r = s.r * rng.uniform(0.8, 2.0), s.r * rng.uniform(0.4, 0.75)
    low, high = part_id("cylinder", "side"), part_id("cylinder", "top")
    return [_frustum(s, 0, height, r, r, finish, low, high, height - 1e-6)]


def _cone(s: _Spot, finish: Finish, trim: Finish, rng: np.random.Generator) -> list[Piece]:
    height, r = s.r * rng.uniform(1.3, 2.2), s.r * rng.uniform(0.5, 0.8)
    low, high = part_id("cone", "body"), part_id("cone", "tip")
    return [_frustum(s, 0, height, r, 0.0, finish, low, high, 0.6 * height)]


def _pole(s: _Spot, finish: Finish, trim: Finish, rng: np.random.Generator) -> list[Piece]:
    height, r = rng.uniform(0.8, 2.2), rng.uniform(0.02, 0.05)
    low, high = part_id("pole", "shaft"), part_id("pole", "tip")
    return [_frustum(s, 0, height, r, r, finish, low, high, 0.75 * height)]


def _sign(s: _Spot, finish: Finish, trim: Finish, rng: np.random.Generator) -> list[Piece]:
    half_x, half_z = s.r * rng.uniform(0.65, 0.85), s.r * rng.uniform(0.65, 0.85)
    bottom = s.r * rng.uniform(0.5, 1.1)
    panel, post = part_id("sign", "panel"), part_id("sign", "post")
    z0, z1 = s.base + bottom, s.base + bottom + 2 * half_z
    thick = max(0.02, 0.04 * s.r)
    plate = Piece(BOX, s.x, s.y, z0, z1, half_x, thick, s.yaw, finish, panel, panel, z1, s.glyph)
    r = max(0.018, 0.06 * s.r)
    return [plate, _frustum(s, 0, bottom, r, r, trim, post, post, bottom)]


def _lamp(s: _Spot, finish: Finish, trim: Finish, rng: np.random.Generator) -> list[Piece]:
    foot, stem = 0.08 * s.r, s.r * rng.uniform(1.0, 1.7)
    shade_height, wide = s.r * rng.uniform(0.55, 0.75), s.r * rng.uniform(0.6, 0.8)
    thin = max(0.016, 0.06 * s.r)
    shade, rod, base = (part_id("lamp", part) for part in ("shade", "stem", "base"))
    return [
        _frustum(s, stem, stem + shade_height, wide, 0.5 * wide, finish, shade, shade, 9.0),
        _frustum(s, foot, stem, thin, thin, trim, rod, rod, 9.0),
        _frustum(s, 0, foot, 0.4 * s.r, 0.4 * s.r, trim, base, base, 9.0),
    ]


def _table(s: _Spot, finish: Finish, trim: Finish, rng: np.random.Generator) -> list[Piece]:
    half_x, half_y = 0.85 * s.r, s.r * rng.uniform(0.45, 0.6)
    height, slab, half = s.r * rng.uniform(0.7, 1.0), 0.10 * s.r, max(0.016, 0.045 * s.r)
    top, leg = part_id("table", "top"), part_id("table", "leg")
    z1 = s.base + height
    pieces = [Piece(BOX, s.x, s.y, z1 - slab, z1, half_x, half_y, s.yaw, finish, top, top, z1)]
    cos, sin = np.cos(s.yaw), np.sin(s.yaw)
    for dx, dy in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        lx, ly = dx * (half_x - 1.3 * half), dy * (half_y - 1.3 * half)
        x, y = s.x + cos * lx - sin * ly, s.y + sin * lx + cos * ly
        pieces.append(Piece(BOX, x, y, s.base, z1 - slab, half, half, s.yaw, trim, leg, leg, z1))
    return pieces


def _figure(s: _Spot, finish: Finish, trim: Finish, rng: np.random.Generator) -> list[Piece]:
    height, head = s.r * rng.uniform(1.1, 1.6), s.r * rng.uniform(0.28, 0.36)
    neck = height + 0.75 * head
    body_id, head_id = part_id("figure", "body"), part_id("figure", "head")
    return [
        _frustum(s, 0, height, s.r * rng.uniform(0.42, 0.6), 0.6 * head, finish, body_id, body_id, 9.0),
        Piece(
            SPHERE, s.x, s.y, s.base + neck - head, s.base + neck + head, head, head, s.yaw, trim, head_id, head_id, 9.0
        ),
    ]


_BUILDERS = {
    "ball": _ball,
    "box": _box,
    "cylinder": _cylinder,
    "cone": _cone,
    "pole": _pole,
    "sign": _sign,
    "lamp": _lamp,
    "table": _table,
    "figure": _figure,
}
