"""Charts as inline SVG: no script, no network, and the page's colours in light and dark."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from eval_suite.delta_m import DELTA_M
from eval_suite.page import hover_text
from eval_suite.table import Table, signed, title_of
from eval_suite.uncertainty import Estimate

#: Okabe & Ito's colours, told apart by colour-blind readers too; grey is the baseline's
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b")
BASELINE_COLOUR = "#8b929c"

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """From data to pixels; logarithmic where `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        place = math.log10(value) if self.log else value
        return self.start + (place - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """A few round numbers within the range."""
        if self.log:
            return _log_ticks(self.low, self.high)
        step = nice_step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    candidates = [lead * 10.0**decade for decade in decades for lead in (1, 2, 5)]
    inside = [value for value in candidates if low * 0.999 <= value <= high * 1.001]
    whole = [value for value in inside if math.isclose(math.log10(value) % 1.0, 0.0, abs_tol=1e-9)]
    return whole if len(whole) >= 3 else inside


def nice_step(span: float, count: int = 5) -> float:
    """A step of 1, 2 or 5 times a power of ten that cuts `span` into about `count` pieces."""
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    return next(lead * power for lead in (1, 2, 5, 10) if lead * power >= raw * 0.999)


def row_colours(names: Sequence[str], baseline: str | None) -> dict[str, str]:
    """A colour for each row, the same in every chart of a page."""
    others = [name for name in dict.fromkeys(names) if name != baseline]
    colours = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(others)}
    return {name: colours.get(name, BASELINE_COLOUR) for name in names}


def forest(table: Table, colours: Mapping[str, str]) -> Markup:
    """Every group's change with its 95 % interval, one dot a row; Δm below them all."""
    rows = [name for name in table.rows if name != table.baseline]
    line, gap, left, width, top = 17.0, 13.0, 132.0, 760.0, 8.0
    block = line * len(rows) + gap
    bottom = top + block * len(table.columns)
    axis = _forest_axis([table.rows[name].columns[c] for name in rows for c in table.columns], left + 10, width - 62)
    parts = [_band(top + block * (len(table.columns) - 1), block, width)]
    for tick in axis.ticks():
        zero = abs(tick) < 1e-12
        parts.append(_line(axis.at(tick), top, axis.at(tick), bottom, "zero" if zero else "grid"))
        parts.append(_label(axis.at(tick), bottom + 15, f"{_number(tick)} %", "middle", "tick"))
    for index, column in enumerate(table.columns):
        y = top + index * block + gap / 2
        kind = "head strong" if column == DELTA_M else "head"
        parts.append(_label(left - 8, y + line * len(rows) / 2 + 4, title_of(column), "end", kind))
        for place, name in enumerate(rows):
            parts.append(
                _whisker(axis, y + line * (place + 0.5), table.rows[name].columns[column], colours[name], name)
            )
    return _svg(width, bottom + 22, parts, "Change of every group against the baseline with 95 % intervals")


def _forest_axis(estimates: Sequence[Estimate], start: float, end: float) -> Axis:
    ends = [0.0] + [value for e in estimates for value in (e.ci95 or (e.value, e.value))]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    return Axis(low - 0.04 * span, high + 0.04 * span, start, end)


def _whisker(axis: Axis, y: float, estimate: Estimate, colour: str, name: str) -> str:
    x = axis.at(estimate.value)
    bar, right = "", x
    if estimate.ci95 is not None:
        low, right = axis.at(estimate.ci95[0]), axis.at(estimate.ci95[1])
        ends = f"M{low:.1f} {y - 4:.1f}v8m0-4H{right:.1f}m0-4v8"
        bar = f'<path d="{ends}" stroke="{colour}" stroke-width="1.6" fill="none"/>'
    fill = colour if estimate.is_real or estimate.ci95 is None else "var(--page)"
    dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.2" fill="{fill}" stroke="{colour}" stroke-width="1.6"/>'
    text = _label(right + 7, y + 3.8, _minus(signed(estimate.value)), "start", "value")
    return f"<g><title>{escape(name)}: {escape(hover_text(estimate))}</title>{bar}{dot}{text}</g>"


def curves(title: str, arms: Mapping[str, Points], colours: Mapping[str, str]) -> Markup:
    """One chart with a line for each arm: thin as logged, and where there are many points a running mean over it."""
    drawn = {name: np.asarray(points, float).reshape(-1, 2) for name, points in arms.items()}
    drawn = {name: points[np.isfinite(points).all(1)] for name, points in drawn.items()}
    drawn = {name: points for name, points in drawn.items() if len(points)}
    if not drawn:
        return Markup("")
    everything = np.concatenate(list(drawn.values()))
    width, height, left, right, top, bottom = 372.0, 236.0, 52.0, 10.0, 28.0, 30.0
    x = _axis(everything[:, 0], left, width - right, log=False)
    y = _axis(everything[:, 1], height - bottom, top, log=_spans_decades(everything[:, 1]))
    parts = [_label(left, 16, title, "start", "head strong")]
    for tick in y.ticks():
        parts.append(_line(left, y.at(tick), width - right, y.at(tick), "grid"))
        parts.append(_label(left - 6, y.at(tick) + 3.5, _number(tick), "end", "tick"))
    for tick in x.ticks():
        parts.append(_label(x.at(tick), height - bottom + 16, _number(tick), "middle", "tick"))
    parts.append(_line(left, height - bottom, width - right, height - bottom, "zero"))
    for name, points in drawn.items():
        parts += _curve(points, x, y, colours[name], name)
    return _svg(width, height, parts, f"{title} over training steps")


def _curve(points: np.ndarray, x: Axis, y: Axis, colour: str, name: str) -> list[str]:
    if len(points) < 60:
        return [_path(points, x, y, colour, 1.8, 1.0, name)]
    return [
        _path(_thinned(points), x, y, colour, 0.8, 0.28, name),
        _path(_thinned(smooth(points)), x, y, colour, 1.8, 1.0, name),
    ]


def smooth(points: np.ndarray) -> np.ndarray:
    """Centred running mean over a thirtieth of the points, [n, 2] -> [n, 2]; shorter windows at the ends."""
    reach = max(1, len(points) // 60)
    total = np.concatenate([[0.0], np.cumsum(points[:, 1])])
    low = np.maximum(np.arange(len(points)) - reach, 0)
    high = np.minimum(np.arange(len(points)) + reach + 1, len(points))
    return np.stack([points[:, 0], (total[high] - total[low]) / (high - low)], 1)


def _thinned(points: np.ndarray, most: int = 700) -> np.ndarray:
    return points[np.unique(np.linspace(0, len(points) - 1, min(most, len(points))).round().astype(int))]


def _path(points: np.ndarray, x: Axis, y: Axis, colour: str, width: float, opacity: float, name: str) -> str:
    places = " ".join(f"{x.at(step):.1f},{y.at(value):.1f}" for step, value in points)
    style = f'fill="none" stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}" stroke-linejoin="round"'
    return f'<polyline points="{places}" {style}><title>{escape(name)}</title></polyline>'


def _axis(values: np.ndarray, start: float, end: float, *, log: bool) -> Axis:
    low, high = float(values.min()), float(values.max())
    if log:
        return Axis(low / 1.08, high * 1.08, start, end, log=True)
    pad = 0.04 * (high - low) or 0.5 * (abs(high) or 1.0)
    return Axis(low - pad, high + pad, start, end)


def _spans_decades(values: np.ndarray) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() > 12)


def _number(value: float) -> str:
    return _minus(f"{value:.6g}") if abs(value) > 1e-12 else "0"


def _minus(number: str) -> str:
    return number.replace("-", "−")  # a true minus, as wide as the plus


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def _label(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _band(y: float, height: float, width: float) -> str:
    return f'<rect class="band" x="0" y="{y:.1f}" width="{width:.0f}" height="{height:.1f}" rx="6"/>'


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> Markup:
    head = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(parts) + "</svg>")
