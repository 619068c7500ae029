"""An independent judge of the ray caster: whether points lie inside a piece, from the definition of each solid."""

import numpy as np

from imagery.scenes.surfaces import BOX, SPHERE, Piece


def excess(piece: Piece, points: np.ndarray) -> np.ndarray:
    """How far outside a solid points [n, 3] are, roughly in metres: negative inside, 0 on the surface."""
    x, y, z = points[:, 0] - piece.x, points[:, 1] - piece.y, points[:, 2]
    if piece.shape == SPHERE:
        return np.sqrt(x * x + y * y + (z - (piece.z0 + piece.z1) / 2) ** 2) - piece.rx
    tall = np.maximum(piece.z0 - z, z - piece.z1)
    if piece.shape == BOX:
        along = np.cos(piece.yaw) * x + np.sin(piece.yaw) * y
        aside = np.cos(piece.yaw) * y - np.sin(piece.yaw) * x
        return np.maximum.reduce([np.abs(along) - piece.rx, np.abs(aside) - piece.ry, tall])
    share = (z - piece.z0) / (piece.z1 - piece.z0)
    return np.maximum(np.hypot(x, y) - (piece.rx + share * (piece.ry - piece.rx)), tall)
