"""Surface normals worked out from a depth map."""

import numpy as np


def depth_normals(metres: np.ndarray, focal: float, centre: tuple[float, float]) -> np.ndarray:
    """Unit normals [H, W, 3] of a depth map: mean of the four cross products of neighbour differences; 0 where unknown.

    Camera coordinates x right, y down, z ahead; normals point to the camera. `focal` is the focal length and `centre`
    the principal point (x, y), in pixels of the map with pixel centres at +0.5. A wrong centre shears the normals.
    """
    height, width = metres.shape
    y, x = np.mgrid[:height, :width]
    x, y = x + 0.5 - centre[0], y + 0.5 - centre[1]
    points = np.stack([x * metres / focal, y * metres / focal, metres], -1).astype(np.float64)
    padded = np.pad(points, ((1, 1), (1, 1), (0, 0)), mode="edge")
    known = np.pad(metres > 0, 1)
    around = [
        (slice(1, -1), slice(2, None)),
        (slice(2, None), slice(1, -1)),
        (slice(1, -1), slice(None, -2)),
        (slice(None, -2), slice(1, -1)),
    ]
    total = np.zeros_like(points)
    for first, second in zip(around, [*around[1:], around[0]], strict=True):
        both = (known[first] & known[second])[..., None]
        total -= np.where(both, np.cross(padded[first] - points, padded[second] - points), 0.0)
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    return np.where((metres > 0)[..., None] & (length > 0), total / np.maximum(length, 1e-30), 0.0).astype(np.float32)
