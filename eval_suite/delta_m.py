"""Δm: how much better a row is than the baseline, in percent, with its uncertainty.

FeatSharp equations 8 and 9: the relative change of a metric is 100 (-1)^l (M - B) / B, with l = 1 where lower is better
and B the baseline row's value. A group is the plain mean over its metrics, Δm the plain mean over groups.

Uncertainty, by the delta method from two sources:
  runs     where a row has several runs, their spread, taken on Δ itself, so that metrics that rise and fall together
           are not mistaken for independent ones;
  sampling the standard errors of the metrics (a finite test set), which more runs on the same test set do not
           reduce. Where both rows say what each test image adds to a metric (`Metrics.samples`), the comparison is
           paired: an image that is hard for both rows drops out, and what several metrics have in common does not.
           Otherwise the errors are taken as independent between metrics and between the two rows.
Intervals use Student's t with Welch-Satterthwaite degrees of freedom, as two or three runs say little of their spread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from eval_suite.results import GROUPS, Key, Metrics
from teachers.errors import UserError

DELTA_M = "delta_m"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A relative change in percent; `stderr` and `ci95` are None where an error of a metric is not known."""

    value: float
    stderr: float | None
    ci95: tuple[float, float] | None

    @property
    def is_real(self) -> bool:
        """Whether the 95 % interval excludes no change."""
        return self.ci95 is not None and (self.ci95[0] > 0 or self.ci95[1] < 0)


@dataclass(frozen=True)
class Measured:
    """One metric of one row."""

    runs: tuple[float, ...]  #: one value per run, the mean over its probe seeds
    variance: float | None  #: of the mean of `runs`, as far as its spread over runs does not show it
    higher_is_better: bool
    influence: tuple[float, ...] | None = None  #: by test image; its squares sum to the test set's part of `variance`

    @property
    def mean(self) -> float:
        return float(np.mean(self.runs))

    @property
    def stderr(self) -> float | None:
        """Of the mean, spread over runs included; None where nothing is known of it."""
        if self.variance is None:
            return None
        spread = float(np.var(self.runs, ddof=1)) / len(self.runs) if len(self.runs) > 1 else 0.0
        return (self.variance + spread) ** 0.5


@dataclass(frozen=True)
class Comparison:
    """A row against the baseline: per metric, per group, and in total (under `DELTA_M`)."""

    metrics: dict[Key, Estimate]
    columns: dict[str, Estimate]


def measure(runs: Sequence[Metrics], name: str) -> dict[Key, Measured]:
    """The metrics of a row from its runs' files; UserError where the runs do not hold the same metrics."""
    if not runs:
        raise UserError(f'row "{name}" has no results')
    suites = sorted({run.suite for run in runs})
    if len(suites) > 1:
        raise UserError(f'row "{name}" mixes the suites {", ".join(suites)}')
    keys = [list(dict.fromkeys(result.key for result in run.results)) for run in runs]
    for other in keys[1:]:
        if odd := set(keys[0]) ^ set(other):
            raise UserError(f'the runs of row "{name}" differ in their metrics: {_names(odd)}')
    return {key: _measured(runs, key, name) for key in keys[0]}


def _measured(runs: Sequence[Metrics], key: Key, name: str) -> Measured:
    entries = [[result for result in run.results if result.key == key] for run in runs]
    flat = [result for run in entries for result in run]
    if len({result.higher_is_better for result in flat}) > 1:
        raise UserError(f'row "{name}": {"/".join(key)} is called both better and worse when higher')
    errors = [result.stderr for result in flat if result.stderr is not None]
    sampling = float(np.mean(np.square(errors))) if len(errors) == len(flat) else None
    values = tuple(float(np.mean([result.value for result in run])) for run in entries)
    influence = _influence(
        [run.samples.get(result.label) for run in runs for result in run.results if result.key == key]
    )
    if influence is not None and sampling is not None:
        sampling = float(np.square(influence).sum())
    variance = sampling
    if len(runs) > 1:
        variance = sampling or 0.0
    elif len(flat) > 1:  # several probe seeds on one backbone: their spread, on top of the shared test set
        variance = (sampling or 0.0) + float(np.var([result.value for result in flat], ddof=1)) / len(flat)
    return Measured(values, variance, flat[0].higher_is_better, influence)


def _influence(found: Sequence[tuple[float, ...] | None]) -> tuple[float, ...] | None:
    """That of the mean over runs and probe seeds, if all of them say it and saw equally many images."""
    known = [values for values in found if values is not None]
    if len(known) < len(found) or len({len(values) for values in known}) != 1:
        return None
    return tuple(np.mean(known, axis=0).tolist())


def left_out(
    rows: Mapping[str, Mapping[Key, Measured]],
    baseline: str,
    allow_missing: Sequence[str],
    reasons: Mapping[str, Mapping[str, str]],
) -> list[Key]:
    """Metrics that are not in every row, or 0 in the baseline, all of them named in `allow_missing`.

    A name is a group, group/task or group/task/metric; `reasons` says by row and group/task why it has no result.
    UserError for what is missing and not named, and for names that fit nothing. What is left out is left out of every
    row, so that rows stay comparable.
    """
    everywhere = set.union(*(set(row) for row in rows.values()))
    for name in allow_missing:
        if not any(_named(key, [name]) for key in everywhere):
            raise UserError(
                f'no row has the "{name}" that may be missing; give a group, group/task or group/task/metric'
            )
    out: set[Key] = set()
    for name, row in rows.items():
        missing = everywhere - set(row)
        if refused := [key for key in missing if not _named(key, allow_missing)]:
            first = "/".join(min(refused)[:2])
            why = reasons.get(name, {}).get(first)
            raise UserError(
                f'row "{name}" has no {_names(refused)}, which other rows have{f" ({why})" if why else ""}; '
                f"probe it, or leave it out by name (--allow-missing {first})"
            )
        out |= missing
    for key in everywhere - out:
        value = rows[baseline][key].mean
        if value <= 0:
            if not _named(key, allow_missing):
                raise UserError(
                    f'baseline "{baseline}" has {"/".join(key)} = {value:g}: a relative change needs more than 0; '
                    f"leave it out by name (--allow-missing {'/'.join(key)})"
                )
            out.add(key)
    return sorted(out)


def compare(row: dict[Key, Measured], base: dict[Key, Measured], skip: Sequence[Key] = ()) -> Comparison:
    """A row against the baseline over all metrics but `skip`; both must hold the same ones."""
    keys = [key for key in base if key not in skip]
    if set(keys) != {key for key in row if key not in skip}:
        raise UserError(f"the rows differ in their metrics: {_names(set(row) ^ set(base))}")
    if not keys:
        raise UserError("no metric is left to compare")
    for key in keys:
        if row[key].higher_is_better != base[key].higher_is_better:
            raise UserError(f"{'/'.join(key)} is better when higher in one row and when lower in another")
    groups = group_order([key[0] for key in keys])
    member = np.array([[float(key[0] == group) for key in keys] for group in groups])
    share = member / member.sum(1, keepdims=True)
    weights = np.concatenate([np.eye(len(keys)), share, share.mean(0, keepdims=True)])
    estimates = _propagate(weights, [row[key] for key in keys], [base[key] for key in keys])
    return Comparison(
        dict(zip(keys, estimates[: len(keys)], strict=True)),
        dict(zip([*groups, DELTA_M], estimates[len(keys) :], strict=True)),
    )


def same_images(one: Measured, other: Measured) -> bool:
    """Whether two rows can be compared image by image in a metric."""
    return bool(one.influence and other.influence and len(one.influence) == len(other.influence))


def unchanged(base: dict[Key, Measured], skip: Sequence[Key] = ()) -> Comparison:
    """The baseline against itself: no change, and no doubt about it."""
    nothing = Estimate(0.0, 0.0, (0.0, 0.0))
    keys = [key for key in base if key not in skip]
    groups = group_order([key[0] for key in keys])
    return Comparison(dict.fromkeys(keys, nothing), dict.fromkeys([*groups, DELTA_M], nothing))


def group_order(groups: Sequence[str]) -> list[str]:
    """The groups that occur, the paper's in its order, others after them as they come."""
    seen = list(dict.fromkeys(groups))
    return [group for group in GROUPS if group in seen] + [group for group in seen if group not in GROUPS]


def _propagate(weights: Array, row: list[Measured], base: list[Measured]) -> list[Estimate]:
    """Weighted sums [K, T] of the T metrics' relative changes, with their errors."""
    ours, theirs = (np.array([metric.runs for metric in side]).T for side in (row, base))
    mean, reference = ours.mean(0), theirs.mean(0)
    sign = np.array([100.0 if metric.higher_is_better else -100.0 for metric in row])
    by_ours, by_theirs = sign / reference, -sign * mean / reference**2  # derivatives of the relative change
    sampling = _sampling_variance(weights, row, base, by_ours, by_theirs)
    parts = [_run_variance(ours, weights * by_ours), _run_variance(theirs, weights * by_theirs)]
    values = weights @ (sign * (mean - reference) / reference)
    return [
        _estimate(float(value), float(rest), [(float(part[i]), runs) for part, runs in parts])
        for i, (value, rest) in enumerate(zip(values, sampling, strict=True))
    ]


def _sampling_variance(
    weights: Array, row: list[Measured], base: list[Measured], by_ours: Array, by_theirs: Array
) -> Array:
    """Variance [K] that the test images bring into the weighted sums.

    Metrics over equally many images are taken to be over the same ones, in the same order: that is so within a suite,
    and where two data sets happen to be of one size, the covariance of unrelated images is nought on average.
    """
    rest = np.zeros(len(row))
    blocks: dict[int, list[tuple[int, Array]]] = {}
    for index, (ours, theirs) in enumerate(zip(row, base, strict=True)):
        if ours.variance is None or theirs.variance is None:
            rest[index] = np.nan
            continue
        rest[index] = by_ours[index] ** 2 * ours.variance + by_theirs[index] ** 2 * theirs.variance
        if same_images(ours, theirs):
            mine, other = by_ours[index] * np.array(ours.influence), by_theirs[index] * np.array(theirs.influence)
            rest[index] = max(
                0.0, rest[index] - float((mine**2).sum() + (other**2).sum())
            )  # what images do not explain
            blocks.setdefault(len(mine), []).append((index, mine + other))
    total = (np.where(weights > 0, rest, 0.0) * weights**2).sum(1)
    for members in blocks.values():
        columns, paired = [index for index, _ in members], np.stack([values for _, values in members])
        total += ((weights[:, columns] @ paired) ** 2).sum(1)
    return np.asarray(total)


def _run_variance(runs: Array, gradient: Array) -> tuple[Array, int]:
    """Variance of the mean over runs [R, T] of each linear combination [K, T] -> [K], and R."""
    count = len(runs)
    if count < 2:
        return np.zeros(len(gradient)), count
    spread = ((runs - runs.mean(0)) @ gradient.T) ** 2
    return spread.sum(0) / (count * (count - 1)), count


def _estimate(value: float, sampling: float, parts: list[tuple[float, int]]) -> Estimate:
    variance = sampling + sum(part for part, _ in parts)
    if np.isnan(variance):
        return Estimate(value, None, None)
    doubt = sum(part**2 / (runs - 1) for part, runs in parts if runs > 1)
    freedom = variance**2 / doubt if doubt > 0 else np.inf
    stderr = variance**0.5
    reach = float(student.ppf(0.975, freedom)) * stderr
    return Estimate(value, stderr, (value - reach, value + reach))


def _named(key: Key, names: Sequence[str]) -> bool:
    return any(name in (key[0], "/".join(key[:2]), "/".join(key)) for name in names)


def _names(keys: Sequence[Key] | set[Key]) -> str:
    names = sorted("/".join(key) for key in keys)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
