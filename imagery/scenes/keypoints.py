"""Named points on objects, comparable between objects of a kind: "left" and "near" are as the camera sees them."""

from collections.abc import Iterator

import numpy as np

from imagery.scenes.camera import Camera
from imagery.scenes.scene import Keypoint
from imagery.scenes.shapes import Thing
from imagery.scenes.surfaces import FIRST_PIECE, Piece
from imagery.scenes.visibility import hit_piece
from imagery.scenes.world import World

_UP = np.array([0.0, 0.0, 1.0])
_ASLANT = 0.9  # radians away from the camera's side: still seen, unlike the outline itself
_SLACK = 2e-3  # of the distance; a point on a surface counts as hit by its own ray there
Named = tuple[str, np.ndarray]


def scene_keypoints(world: World, camera: Camera, height: int, width: int) -> list[Keypoint]:
    """Every object's keypoints; a point is visible when it lies in the picture and nothing blocks its ray."""
    named = [
        (index + 1, thing.kind, name, point)
        for index, thing in enumerate(world.things)
        for name, point in _POINTS[thing.kind](thing, camera)
    ]
    points = np.stack([point for _, _, _, point in named], axis=1)
    x, y, z = camera.project(points, height, width)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (z > 0)
    visible = inside & unblocked(world, camera.centre, points)
    return [
        Keypoint(name, instance, kind, float(x[k]), float(y[k]), bool(visible[k]))
        for k, (instance, kind, name, _) in enumerate(named)
    ]


def unblocked(world: World, centre: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether the straight line from `centre` [3] to each of `points` [3, n] is free of objects: [n] bool."""
    rays = points - centre[:, None]
    square = (rays * rays).sum(axis=0)
    free = np.ones(points.shape[1], dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for row in range(FIRST_PIECE, len(world.table)):
            free &= hit_piece(world.table, row, centre, rays, square) > 1 - _SLACK
    return free


def _sides(piece: Piece, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Level unit vectors from a piece towards the camera, and to the right as the camera sees it."""
    toward = np.array([camera.centre[0] - piece.x, camera.centre[1] - piece.y, 0.0])
    toward /= np.linalg.norm(toward)
    return toward, np.array([-toward[1], toward[0], 0.0])


def _around(piece: Piece, camera: Camera, z: float, r: float, turn: float) -> np.ndarray:
    """The point of an upright piece at height `z`, radius `r`, turned `turn` radians from the camera to the right."""
    toward, right = _sides(piece, camera)
    return np.array([piece.x, piece.y, z]) + r * (np.cos(turn) * toward + np.sin(turn) * right)


def _rim(piece: Piece, camera: Camera, name: str, top: bool) -> Iterator[Named]:
    z, r = (piece.z1, piece.ry) if top else (piece.z0, piece.rx)
    yield f"{name} left", _around(piece, camera, z, r, -_ASLANT)
    yield f"{name} right", _around(piece, camera, z, r, _ASLANT)
    yield f"{name} front", _around(piece, camera, z, r, 0.0)


def _on_ball(piece: Piece, camera: Camera, turn: float, rise: float) -> np.ndarray:
    toward, right = _sides(piece, camera)
    direction = np.cos(rise) * (np.cos(turn) * toward + np.sin(turn) * right) + np.sin(rise) * _UP
    return np.array([piece.x, piece.y, (piece.z0 + piece.z1) / 2]) + piece.rx * direction


def _corners(piece: Piece, z: float) -> np.ndarray:
    """The four corners of a box at height `z`: [4, 3]."""
    cos, sin = np.cos(piece.yaw), np.sin(piece.yaw)
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    lx, ly = signs[:, 0] * piece.rx, signs[:, 1] * piece.ry
    return np.stack([piece.x + cos * lx - sin * ly, piece.y + sin * lx + cos * ly, np.full(4, z)], axis=1)


def _named_corners(piece: Piece, camera: Camera, z: float) -> dict[str, np.ndarray]:
    """Corners named by the camera's view: leftmost, rightmost, and the nearer and farther of the other two."""
    corners = _corners(piece, z)
    toward, right = _sides(piece, camera)
    order = np.argsort(corners @ right)
    middle = sorted(order[1:3], key=lambda k: -float(corners[k] @ toward))
    return {
        "left": corners[order[0]],
        "right": corners[order[3]],
        "near": corners[middle[0]],
        "far": corners[middle[1]],
    }


def _ball(thing: Thing, camera: Camera) -> Iterator[Named]:
    piece = thing.pieces[0]
    yield "top", _on_ball(piece, camera, 0.0, _ASLANT)
    yield "left", _on_ball(piece, camera, -_ASLANT, 0.0)
    yield "right", _on_ball(piece, camera, _ASLANT, 0.0)
    yield "front", _on_ball(piece, camera, 0.0, 0.0)


def _box(thing: Thing, camera: Camera) -> Iterator[Named]:
    piece = thing.pieces[0]
    for name, point in _named_corners(piece, camera, piece.z1).items():
        yield f"top {name}", point
    yield "base near", _named_corners(piece, camera, piece.z0)["near"]


def _cylinder(thing: Thing, camera: Camera) -> Iterator[Named]:
    piece = thing.pieces[0]
    yield "top centre", np.array([piece.x, piece.y, piece.z1])
    yield from _rim(piece, camera, "top", top=True)
    yield from _rim(piece, camera, "base", top=False)


def _cone(thing: Thing, camera: Camera) -> Iterator[Named]:
    piece = thing.pieces[0]
    yield "tip", np.array([piece.x, piece.y, piece.z1])
    yield from _rim(piece, camera, "base", top=False)


def _pole(thing: Thing, camera: Camera) -> Iterator[Named]:
    piece = thing.pieces[0]
    for name, share in (("tip", 1.0), ("middle", 0.5), ("foot", 0.0)):
        yield name, _around(piece, camera, piece.z0 + share * (piece.z1 - piece.z0), piece.rx, 0.0)


def _sign(thing: Thing, camera: Camera) -> Iterator[Named]:
    panel, post = thing.pieces
    front = {"top": _corners(panel, panel.z1), "bottom": _corners(panel, panel.z0)}
    for edge, corners in front.items():
        yield f"panel {edge} left", corners[0]
        yield f"panel {edge} right", corners[1]
    yield "foot", _around(post, camera, post.z0, post.rx, 0.0)


def _lamp(thing: Thing, camera: Camera) -> Iterator[Named]:
    shade, stem, foot = thing.pieces
    yield from _rim(shade, camera, "shade", top=False)
    yield "shade top", _around(shade, camera, shade.z1, shade.ry, 0.0)
    yield "stem", _around(stem, camera, (stem.z0 + stem.z1) / 2, stem.rx, 0.0)
    yield "foot", _around(foot, camera, foot.z0, foot.rx, 0.0)


def _table(thing: Thing, camera: Camera) -> Iterator[Named]:
    for name, point in _named_corners(thing.pieces[0], camera, thing.pieces[0].z1).items():
        yield f"top {name}", point
    toward, _ = _sides(thing.pieces[0], camera)
    leg = max(thing.pieces[1:], key=lambda piece: piece.x * toward[0] + piece.y * toward[1])
    yield "near foot", _named_corners(leg, camera, leg.z0)["near"]


def _figure(thing: Thing, camera: Camera) -> Iterator[Named]:
    body, head = thing.pieces
    yield "head top", _on_ball(head, camera, 0.0, _ASLANT)
    yield "face", _on_ball(head, camera, 0.0, 0.0)
    yield from _rim(body, camera, "base", top=False)


_POINTS = {
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
