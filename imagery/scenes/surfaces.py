"""The table of everything a ray can hit: eight background surfaces, then the pieces (primitives) of the objects.

One row per surface, one array per property, so that shading looks a pixel's properties up by its surface code.
Lengths in metres, world axes: x right, y forward, z up.
"""

from dataclasses import dataclass

import numpy as np

from imagery.scenes.vocab import MATERIALS

BACKGROUND_OF_CODE = ("sky", "ground", "floor", "wall", "wall", "wall", "wall", "ceiling")
SKY, GROUND, FLOOR, WALL_LEFT, WALL_RIGHT, WALL_BACK, WALL_FRONT, CEILING = range(8)
FIRST_PIECE = len(BACKGROUND_OF_CODE)
PLANE, SPHERE, BOX, FRUSTUM = range(4)


@dataclass(frozen=True)
class Finish:
    """What a surface looks like: material, two tones [3], pattern cells per metre, phase [3], stripe direction [3]."""

    material: str
    tone: np.ndarray
    tone2: np.ndarray
    frequency: float
    phase: np.ndarray
    stripe: np.ndarray

    def __post_init__(self) -> None:
        if self.material not in MATERIALS:
            raise ValueError(f"unknown material {self.material}")


@dataclass(frozen=True)
class Piece:
    """One primitive. `rx, ry` are half extents of a box, the bottom and top radius of a frustum, twice a ball's radius.

    Points above `split` (metres above the ground) belong to part `high`, the others to part `low`.
    """

    shape: int
    x: float
    y: float
    z0: float
    z1: float
    rx: float
    ry: float
    yaw: float
    finish: Finish
    low: int
    high: int
    split: float
    glyph: int = -1


@dataclass(frozen=True)
class SurfaceTable:
    """Struct of arrays over surface codes (rows 0..7 background, then pieces ordered by shape)."""

    shape: np.ndarray
    x: np.ndarray
    y: np.ndarray
    z0: np.ndarray
    z1: np.ndarray
    rx: np.ndarray
    ry: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    owner: np.ndarray
    low: np.ndarray
    high: np.ndarray
    split: np.ndarray
    glyph: np.ndarray
    material: np.ndarray
    tone: np.ndarray
    tone2: np.ndarray
    frequency: np.ndarray
    phase: np.ndarray
    stripe: np.ndarray

    def __len__(self) -> int:
        return len(self.shape)


def build_table(backgrounds: list[Finish], objects: list[list[Piece]]) -> SurfaceTable:
    """Collect eight background finishes and every object's pieces; `owner` is object index + 1, 0 = background."""
    if len(backgrounds) != FIRST_PIECE:
        raise ValueError(f"{FIRST_PIECE} background finishes expected, got {len(backgrounds)}")
    planes = [(0, Piece(PLANE, 0, 0, 0, 0, 1, 1, 0, finish, 0, 0, np.inf)) for finish in backgrounds]
    pieces = [(index + 1, piece) for index, group in enumerate(objects) for piece in group]
    rows = planes + sorted(pieces, key=lambda row: row[1].shape)

    def column(name: str) -> np.ndarray:
        return np.array([getattr(piece, name) for _, piece in rows], dtype=np.float64)

    def look(name: str) -> np.ndarray:
        return np.array([getattr(piece.finish, name) for _, piece in rows], dtype=np.float32)

    integers = {name: column(name).astype(np.int16) for name in ("shape", "low", "high", "glyph")}
    lengths = {name: column(name) for name in ("x", "y", "z0", "z1", "rx", "ry", "split")}
    looks = {name: look(name) for name in ("tone", "tone2", "frequency", "phase", "stripe")}
    yaw = column("yaw")
    return SurfaceTable(
        cos=np.cos(yaw),
        sin=np.sin(yaw),
        owner=np.array([owner for owner, _ in rows], dtype=np.int16),
        material=np.array([MATERIALS.index(piece.finish.material) for _, piece in rows], dtype=np.uint8),
        **integers,
        **lengths,
        **looks,
    )
