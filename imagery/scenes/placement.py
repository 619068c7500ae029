"""Where the objects stand: one main object, many small ones that never hide it, some of them on table tops."""

from dataclasses import dataclass
from math import atan2, cos, exp, hypot, log, pi, sin

import numpy as np

from imagery.scenes.palette import NEUTRAL_RGB, OBJECT_RGB, jitter, second_tone
from imagery.scenes.settings import SceneSettings
from imagery.scenes.shapes import SMALLEST, Thing, build_pieces, footprint
from imagery.scenes.surfaces import Finish
from imagery.scenes.vocab import COLOURS, GLYPHS, KINDS, MAIN_KINDS, MATERIALS

_KIND_WEIGHTS = {
    "ball": 0.15, "box": 0.17, "cylinder": 0.12, "cone": 0.12, "pole": 0.12,
    "sign": 0.10, "lamp": 0.07, "table": 0.07, "figure": 0.08,
}  # fmt: skip
_CUMULATIVE = np.cumsum([_KIND_WEIGHTS[kind] for kind in KINDS])
# How large the main object is drawn for its kind, so that slender ones also are the largest thing in the picture.
_MAIN_SCALE = {
    "ball": 0.95,
    "box": 1.0,
    "cylinder": 1.05,
    "cone": 1.2,
    "sign": 0.9,
    "lamp": 1.0,
    "table": 1.2,
    "figure": 1.25,
}
_BULKY = {"ball": 0.8, "box": 0.9, "cylinder": 0.85, "sign": 0.8}
_SMALL_KINDS = ("ball", "box", "cylinder", "cone")
_SKIN_RGB = (0.80, 0.67, 0.55)


@dataclass(frozen=True)
class Spot:
    """The view that objects are placed for: focal length, heading (radians), walls (left, right, back, front)."""

    focal: float
    heading: float
    walls: tuple[float, float, float, float] | None


def place_objects(rng: np.random.Generator, settings: SceneSettings, spot: Spot) -> list[Thing]:
    """The main object first, then the others; fewer than drawn when no free place is found."""
    count = int(rng.integers(settings.objects[0], settings.objects[1] + 1))
    main, apparent = _main_object(rng, settings, spot)
    things = [main]
    for _ in range(count - 1):
        thing = _next_object(rng, settings, spot, things, apparent * settings.rival_share)
        if thing is not None:
            things.append(thing)
    return things


def _main_object(rng: np.random.Generator, settings: SceneSettings, spot: Spot) -> tuple[Thing, float]:
    kind = MAIN_KINDS[rng.integers(len(MAIN_KINDS))]
    apparent, distance = rng.uniform(*settings.main_apparent), rng.uniform(*settings.main_distance)
    side = rng.uniform(-0.5, 0.5) * (0.5 / spot.focal)
    x, y = _to_world(spot, side * distance, distance)
    radius = apparent * distance * _MAIN_SCALE[kind]
    return _make(rng, settings, kind, x, y, 0.0, radius, always_glyph=kind == "sign"), apparent


def _next_object(
    rng: np.random.Generator, settings: SceneSettings, spot: Spot, things: list[Thing], largest: float
) -> Thing | None:
    """Tries forty places; None when all are taken."""
    kind = KINDS[int(np.searchsorted(_CUMULATIVE, rng.random() * _CUMULATIVE[-1]))]
    tables = [thing for thing in things if thing.kind == "table" and not _is_loaded(thing, things)]
    if tables and kind in _SMALL_KINDS and rng.random() < settings.on_table_share:
        return _on_table(rng, settings, tables[0])
    radius = exp(rng.uniform(log(settings.radius[0]), log(settings.radius[1])))
    radius = max(radius, SMALLEST.get(kind, 0.0))
    nearest = max(settings.distance[0], radius / (largest * _BULKY.get(kind, 1.0)))
    farthest = max(settings.distance[1], nearest * 1.05)
    for _ in range(40):
        distance = exp(rng.uniform(log(nearest), log(farthest)))
        side = rng.uniform(-1, 1) * (0.46 / spot.focal) * distance
        x, y = _to_world(spot, side, distance)
        if _is_free(kind, x, y, radius, spot, things):
            return _make(rng, settings, kind, x, y, 0.0, radius, always_glyph=False)
    return None


def _on_table(rng: np.random.Generator, settings: SceneSettings, table: Thing) -> Thing:
    kind = _SMALL_KINDS[rng.integers(len(_SMALL_KINDS))]
    radius = table.radius * rng.uniform(0.22, 0.36)
    along = rng.uniform(-0.5, 0.5) * table.radius
    x, y = table.x + cos(table.yaw) * along, table.y + sin(table.yaw) * along
    return _make(rng, settings, kind, x, y, table.top, radius, always_glyph=False)


def _is_loaded(table: Thing, things: list[Thing]) -> bool:
    return any(thing.base == table.top for thing in things)


def _to_world(spot: Spot, side: float, distance: float) -> tuple[float, float]:
    c, s = cos(spot.heading), sin(spot.heading)
    return c * side - s * distance, s * side + c * distance


def _is_free(kind: str, x: float, y: float, radius: float, spot: Spot, things: list[Thing]) -> bool:
    own = footprint(kind, radius)
    if spot.walls is not None:
        left, right, back, front = spot.walls
        if not (left + own < x < right - own and back + own < y < front - own):
            return False
    if any(hypot(x - other.x, y - other.y) < own + footprint(other.kind, other.radius) + 0.04 for other in things):
        return False
    return not _hides(kind, x, y, radius, things[0])


def _hides(kind: str, x: float, y: float, radius: float, main: Thing) -> bool:
    """Whether an object at (x, y) would stand between the camera (at the origin) and the main object."""
    distance, main_distance = hypot(x, y), hypot(main.x, main.y)
    if kind == "pole" or distance > main_distance:
        return False
    turn = abs(atan2(x * main.y - y * main.x, x * main.x + y * main.y))
    return turn < radius / distance + 0.8 * main.radius / main_distance


def _make(
    rng: np.random.Generator,
    settings: SceneSettings,
    kind: str,
    x: float,
    y: float,
    base: float,
    radius: float,
    always_glyph: bool,
) -> Thing:
    colour = COLOURS[rng.integers(len(COLOURS))]
    material = MATERIALS[2 + rng.integers(4)] if rng.random() < settings.patterned_share else "solid"
    can_carry = kind == "sign" or (kind == "box" and radius >= 0.25 and rng.random() < settings.glyph_share)
    glyph = int(rng.integers(len(GLYPHS))) if can_carry or always_glyph else -1
    yaw = rng.uniform(-pi, pi)
    if glyph >= 0:
        yaw = atan2(-x, y) + rng.uniform(-0.4, 0.4)
    finish = _finish(rng, colour, material, 0.2 if kind == "pole" else radius)
    trim = _trim(rng, kind)
    pieces = build_pieces(kind, x, y, base, yaw, radius, glyph, finish, trim, rng)
    top = max(piece.z1 for piece in pieces)
    return Thing(kind, material, colour, GLYPHS[glyph] if glyph >= 0 else "", x, y, base, yaw, radius, top, pieces)


def _finish(rng: np.random.Generator, colour: str, material: str, size: float) -> Finish:
    tone = jitter(OBJECT_RGB[colour], rng, 0.04)
    stripes = ((0.0, 0.0, 1.0), (0.8, 0.6, 0.0), (0.5, 0.5, 0.7))
    return Finish(
        material=material,
        tone=tone,
        tone2=second_tone(colour, tone, rng),
        frequency=rng.uniform(1.5, 2.4) / size,
        phase=rng.uniform(0.05, 0.95, 3),
        stripe=np.array(stripes[rng.integers(3)]),
    )


def _trim(rng: np.random.Generator, kind: str) -> Finish:
    tone = jitter(_SKIN_RGB if kind == "figure" else NEUTRAL_RGB, rng, 0.05)
    return Finish("solid", tone, tone, 1.0, np.zeros(3), np.array([0.0, 0.0, 1.0]))
