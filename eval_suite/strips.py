"""Which images got better and worse, with what both rows said of them."""

import base64
import colorsys
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eval_suite.predictions import Predictions, read_predictions
from eval_suite.results import Metrics, Result
from eval_suite.uncertainty import Measured, are_paired

EACH_WAY = 4  #: images shown that got better, and that got worse
SIDE = 112  #: pixels of a shown picture


@dataclass(frozen=True)
class Panel:
    """One image under two rows; each picture is a data address with what to say below it."""

    change: str
    pictures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Strip:
    """The images of one task that changed most between the baseline and a row."""

    row: str
    task: str
    metric: str
    better: tuple[Panel, ...]
    worse: tuple[Panel, ...]
    counts: str


def strips_of(baseline: str, rows: Mapping[str, Sequence[Metrics]]) -> list[Strip]:
    """A strip for every row and task whose predictions both it and the baseline kept; of the first run of each."""
    base = rows[baseline][0]
    theirs = None if base.file is None else read_predictions(base.file)
    if theirs is None:
        return []
    out = []
    for name, runs in rows.items():
        ours = None if name == baseline or runs[0].file is None else read_predictions(runs[0].file)
        if ours is None:
            continue
        for task in ours.kinds:
            if task in theirs.kinds and ours.kinds[task] in DRAWN and "pictures" in ours.arrays[task]:
                out += _strips(name, task, (runs[0], ours), (base, theirs))
    return out


Row = tuple[Metrics, Predictions]


def _strips(name: str, task: str, ours: Row, theirs: Row) -> list[Strip]:
    pairs = [
        (one, other)
        for one in ours[0].results
        for other in theirs[0].results
        if one.key == other.key and "/".join(one.key[:2]) == task and one.unit == "image" and _alike(one, other)
    ]
    return [_strip(name, task, one, other, ours[1], theirs[1]) for one, other in pairs[:1]]


def _alike(one: Result, other: Result) -> bool:
    sides = [Measured((result.value,), None, True, samples=result.samples) for result in (one, other)]
    return are_paired(*sides)


def _strip(name: str, task: str, one: Result, other: Result, ours: Predictions, theirs: Predictions) -> Strip:
    assert one.samples is not None and other.samples is not None
    sign = 1 if one.higher_is_better else -1
    change = sign * (one.samples.samples.scores - other.samples.samples.scores)
    units = one.samples.samples.units
    order = np.argsort(-change, kind="stable")
    draw = DRAWN[ours.kinds[task]]

    def panels(positions: NDArray[np.int64]) -> tuple[Panel, ...]:
        return tuple(
            Panel(f"{float(sign * change[at]):+.3g}", draw(int(units[at]), task, ours, theirs)) for at in positions
        )

    gained, lost = order[change[order] > 0], order[::-1][change[order[::-1]] < 0]
    counts = f"{len(gained)} of {len(units)} images got better, {len(lost)} worse"
    return Strip(name, task, one.metric, panels(gained[:EACH_WAY]), panels(lost[:EACH_WAY]), counts)


def _maps(unit: int, task: str, ours: Predictions, theirs: Predictions) -> tuple[tuple[str, str], ...]:
    found = ours.arrays[task], theirs.arrays[task]
    values = [found[0]["labels"][unit], found[1]["predicted"][unit], found[0]["predicted"][unit]]
    colour = _class_colours if ours.kinds[task] == "segmentation" else _depth_colours(found[0]["labels"][unit])
    pictures = [colour(value) for value in values]
    return (("image", _picture(found[0]["pictures"][unit])), *zip(("label", "baseline", "row"), pictures, strict=True))


def _named(unit: int, task: str, ours: Predictions, theirs: Predictions) -> tuple[tuple[str, str], ...]:
    names: Sequence[Any] = ours.plain[task]["names"]
    said = [ours.arrays[task]["labels"], theirs.arrays[task]["predicted"], ours.arrays[task]["predicted"]]
    words = [str(names[int(values[unit])]) for values in said]
    text = f"{words[0]}; baseline: {words[1]}; row: {words[2]}"
    return ((text, _picture(ours.arrays[task]["pictures"][unit])),)


#: how a kind of prediction is shown
DRAWN = {"segmentation": _maps, "depth": _maps, "classes": _named}


def _class_colours(classes: np.ndarray) -> str:
    """A hue for each class, grey for pixels that do not count."""
    palette = np.full((256, 3), 150, np.uint8)
    for number in range(255):
        lightness = 0.42 + 0.2 * (number % 3) / 2
        palette[number] = [round(255 * part) for part in colorsys.hls_to_rgb(number * 0.618 % 1, lightness, 0.6)]
    return _address(palette[classes])


def _depth_colours(labels: np.ndarray) -> Any:
    valid = labels[labels > 0].astype(np.float32)
    low, high = (float(valid.min()), float(valid.max())) if valid.size else (0.0, 1.0)

    def colours(metres: np.ndarray) -> str:
        grey = 255 * (1 - (metres.astype(np.float32) - low).clip(0, high - low) / max(high - low, 1e-6))
        return _address(np.where(metres > 0, grey, 0).astype(np.uint8))

    return colours


def _picture(pixels: np.ndarray) -> str:
    return _address(np.moveaxis(pixels, 0, -1))


def _address(pixels: np.ndarray) -> str:
    """A small PNG as a data address."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
