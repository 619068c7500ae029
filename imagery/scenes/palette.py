"""Named colours as RGB in [0, 1], and the second tone of a two-tone pattern."""

import numpy as np

from imagery.scenes.vocab import COLOURS

OBJECT_RGB = {
    "red": (0.86, 0.14, 0.13),
    "orange": (0.96, 0.53, 0.10),
    "yellow": (0.97, 0.87, 0.18),
    "green": (0.13, 0.62, 0.22),
    "blue": (0.14, 0.34, 0.86),
    "purple": (0.56, 0.20, 0.68),
    "white": (0.96, 0.96, 0.94),
    "black": (0.09, 0.09, 0.10),
}
GROUND_RGB = {
    "green": (0.42, 0.60, 0.33),
    "brown": (0.55, 0.42, 0.30),
    "grey": (0.56, 0.57, 0.58),
    "tan": (0.80, 0.70, 0.52),
    "pale": (0.83, 0.83, 0.80),
}
WALL_RGB = ((0.88, 0.84, 0.74), (0.78, 0.83, 0.88), (0.80, 0.87, 0.78), (0.90, 0.79, 0.77), (0.84, 0.84, 0.85))
NEUTRAL_RGB = (0.40, 0.38, 0.36)


def jitter(rgb: tuple[float, float, float], rng: np.random.Generator, amount: float) -> np.ndarray:
    """A slightly different shade of `rgb`: [3], float32, within [0, 1]."""
    return np.clip(np.asarray(rgb) + rng.uniform(-amount, amount, 3), 0.02, 0.98).astype(np.float32)


def second_tone(colour: str, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The other tone of a patterned object: a pale or a dark version, so that its colour keeps its name."""
    if colour not in COLOURS:
        raise ValueError(f"{colour} is no object colour")
    if colour == "white":
        return np.full(3, 0.60, np.float32)
    if colour == "black":
        return np.full(3, 0.40, np.float32)
    if colour == "yellow" or rng.random() < 0.5:
        return (0.32 * rgb).astype(np.float32)
    return (0.25 * rgb + 0.72).astype(np.float32)
