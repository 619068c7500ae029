"""Ray intersection with the primitives. Origins and directions may be numbers or arrays: they broadcast.

Each function returns the ray parameter of the nearest hit in front of the origin, infinite where there is none. A ray
that starts inside is not handled: cameras and shaded points are always outside. Everything runs in float64, since
a pole of 2 cm at 10 m cancels most digits of a float32 discriminant.
"""

import numpy as np

Number = float | np.ndarray
Ray = tuple[Number, Number, Number] | np.ndarray
NEAR = 1e-6


def hit_sphere(centre: tuple[float, float, float], r: float, o: Ray, d: Ray, square: Number) -> np.ndarray:
    """`square` is the squared length of `d`."""
    x, y, z = centre[0] - o[0], centre[1] - o[1], centre[2] - o[2]
    along = (x * d[0] + y * d[1] + z * d[2]) / square
    inside = (r * r - (x * x + y * y + z * z)) / square + along * along
    hit = (inside > 0) & (along > 0)
    t = along - np.sqrt(np.maximum(inside, 0))
    return np.where(hit & (t > NEAR), t, np.inf)


def hit_box(
    centre: tuple[float, float],
    span: tuple[float, float],
    half: tuple[float, float],
    turn: tuple[float, float],
    o: Ray,
    d: Ray,
) -> np.ndarray:
    """Upright box turned by (cos, sin) about the vertical axis; `span` is its lowest and highest z."""
    cos, sin = turn
    px, py = o[0] - centre[0], o[1] - centre[1]
    ox, oy = cos * px + sin * py, cos * py - sin * px
    dx, dy = cos * d[0] + sin * d[1], cos * d[1] - sin * d[0]
    near, far = _slab(ox, dx, -half[0], half[0])
    for low, high in (_slab(oy, dy, -half[1], half[1]), _slab(o[2], d[2], span[0], span[1])):
        near, far = np.maximum(near, low), np.minimum(far, high)
    return np.where((near <= far) & (near > NEAR), near, np.inf)


def _slab(o: Number, d: Number, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    inverse = 1.0 / d
    a, b = (low - o) * inverse, (high - o) * inverse
    return np.minimum(a, b), np.maximum(a, b)


def hit_frustum(
    centre: tuple[float, float], span: tuple[float, float], radii: tuple[float, float], o: Ray, d: Ray
) -> np.ndarray:
    """Upright frustum from radius `radii[0]` at z `span[0]` to `radii[1]` at `span[1]`, closed by discs."""
    k = (radii[1] - radii[0]) / (span[1] - span[0])
    ox, oy = o[0] - centre[0], o[1] - centre[1]
    r = radii[0] + k * (o[2] - span[0])
    flat = d[0] * d[0] + d[1] * d[1]
    a = flat - (k * d[2]) ** 2
    b = ox * d[0] + oy * d[1] - k * d[2] * r
    cross = ox * d[1] - oy * d[0]
    # b^2 - a c, expanded so that the two large terms of a distant thin pole never meet.
    inside = flat * r * r - cross * cross
    if k != 0:
        inside = inside - k * d[2] * (2 * r * (ox * d[0] + oy * d[1]) - k * d[2] * (ox * ox + oy * oy))
    root = np.sqrt(np.maximum(inside, 0))
    t = _on_side((-b - root) / a, inside, span, o, d)
    if k != 0:  # inside the opening angle of a cone the other root can come first
        t = np.minimum(t, _on_side((-b + root) / a, inside, span, o, d))
    for z, limit in ((span[1], radii[1]), (span[0], radii[0])):
        if limit > 0:
            t = np.minimum(t, _on_disc(z, limit, ox, oy, o, d))
    return t


def _on_side(t: np.ndarray, inside: Number, span: tuple[float, float], o: Ray, d: Ray) -> np.ndarray:
    z = o[2] + t * d[2]
    return np.where((inside > 0) & (t > NEAR) & (z >= span[0]) & (z <= span[1]), t, np.inf)


def _on_disc(z: float, r: float, ox: Number, oy: Number, o: Ray, d: Ray) -> np.ndarray:
    t = (z - o[2]) / d[2]
    x, y = ox + t * d[0], oy + t * d[1]
    return np.where((t > NEAR) & (x * x + y * y <= r * r), t, np.inf)
