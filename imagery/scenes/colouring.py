"""Label maps as pictures that people can read. All return [H, W, 3] uint8."""

from colorsys import hls_to_rgb

import matplotlib
import numpy as np

from imagery.scenes import vocab

_BACKGROUND_RGB = {"sky": (196, 218, 238), "ground": (203, 196, 178), "wall": (222, 219, 214)}
_BACKGROUND_RGB |= {"floor": (190, 178, 160), "ceiling": (236, 235, 232)}


def class_palette() -> np.ndarray:
    """One hue per kind and one lightness per material group: [NUM_CLASSES, 3]."""
    rows: list[tuple[int, ...]] = [_BACKGROUND_RGB[name] for name in vocab.BACKGROUNDS]
    for index in range(len(vocab.KINDS)):
        for lightness in (0.62, 0.47, 0.33):
            rgb = hls_to_rgb(index / len(vocab.KINDS), lightness, 0.72)
            rows.append(tuple(round(255 * value) for value in rgb))
    return np.array(rows, dtype=np.uint8)


def spread_palette(count: int) -> np.ndarray:
    """Distinct colours by golden-angle hues, the first one light grey for "nothing": [count, 3]."""
    rows: list[tuple[int, ...]] = [(225, 225, 225)]
    for index in range(1, count):
        rgb = hls_to_rgb(index * 0.61803 % 1, 0.42 + 0.2 * (index * 0.37 % 1), 0.75)
        rows.append(tuple(round(255 * value) for value in rgb))
    return np.array(rows, dtype=np.uint8)


def colour_ids(ids: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Paint an id map with a palette."""
    return palette[ids.astype(np.int64)]


def colour_depth(depth: np.ndarray) -> np.ndarray:
    """Near is bright; the scale is inverse depth between the nearest point and 25 m; no depth is white."""
    valid = depth > 0
    inverse = np.where(valid, 1 / np.maximum(depth, 1e-6), 0)
    low, high = 1 / 25, inverse.max()
    rgb = matplotlib.colormaps["magma"](np.clip((inverse - low) / max(high - low, 1e-6), 0, 1))[..., :3]
    rgb[~valid] = 1
    return (255 * rgb).astype(np.uint8)


def colour_normals(normals: np.ndarray) -> np.ndarray:
    """The usual colours: right red, up green, towards the camera blue; no normal is white."""
    shown = normals * np.array([1, -1, -1], dtype=np.float32)
    rgb = np.where((normals != 0).any(axis=-1, keepdims=True), 0.5 + 0.5 * shown, 1)
    return (255 * rgb).astype(np.uint8)


def colour_mask(mask: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """The picture where the mask is set, and a pale grey version of it elsewhere."""
    grey = rgb.mean(axis=-1, keepdims=True) * 0.25 + 180
    return np.where(mask[..., None] > 0, rgb, grey.astype(np.uint8))


def colour_edges(edges: np.ndarray) -> np.ndarray:
    """Dark lines on white."""
    return np.where(edges[..., None] > 0, np.uint8(30), np.uint8(250)).repeat(3, axis=-1)
