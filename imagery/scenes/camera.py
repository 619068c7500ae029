"""A pinhole camera: pose, rays and projection. Camera axes as in OpenCV: x right, y down, z forward."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Camera:
    """`centre` [3] metres, `axes` [3, 3] rows right, down, forward in world axes, `focal` over the shorter side."""

    centre: np.ndarray
    axes: np.ndarray
    focal: float

    def intrinsics(self, height: int, width: int) -> np.ndarray:
        """[3, 3] pixel units, pixel centres at +0.5."""
        f = self.focal * min(height, width)
        return np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]], dtype=np.float64)

    def pose(self) -> np.ndarray:
        """[4, 4] camera-to-world."""
        pose = np.eye(4)
        pose[:3, :3] = self.axes.T
        pose[:3, 3] = self.centre
        return pose

    def rays(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """World directions [3, H, W] with camera z 1 (a ray's parameter is the depth), and their squares [H, W]."""
        f = self.focal * min(height, width)
        u = (np.arange(width) + 0.5 - width / 2) / f
        v = (np.arange(height) + 0.5 - height / 2) / f
        right, down, forward = self.axes[:, :, None]
        directions = np.empty((3, height, width))
        for axis in range(3):
            directions[axis] = right[axis] * u[None, :] + (down[axis] * v + forward[axis])[:, None]
        return directions, 1 + u[None, :] ** 2 + v[:, None] ** 2

    def project(self, points: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World points [3, ...] -> x, y in pixels and depth in metres (not positive: behind the camera)."""
        f = self.focal * min(height, width)
        px, py, pz = (points[axis] - self.centre[axis] for axis in range(3))
        x, y, z = (row[0] * px + row[1] * py + row[2] * pz for row in self.axes)
        safe = np.where(np.abs(z) < 1e-9, 1e-9, z)
        return f * x / safe + width / 2, f * y / safe + height / 2, z


def look(centre: np.ndarray, target: np.ndarray, focal: float, roll: float = 0.0) -> Camera:
    """A camera at `centre` that looks at `target`, both [3] metres; `roll` in radians turns it about its axis."""
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll), np.sin(roll)
    axes = np.stack([cos * right + sin * down, cos * down - sin * right, forward])
    return Camera(centre=centre, axes=axes, focal=focal)
