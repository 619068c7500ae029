"""Δm: how much better a row is than the baseline, in percent, with its uncertainty.

FeatSharp equations 8 and 9: the relative change of a metric is 100 (-1)^l (M - B) / B, with l = 1 where lower is better
and B the baseline row's value. A group is the plain mean over its metrics, Δm the plain mean over groups.

Uncertainty, by the delta method from two sources:
  runs     where a row has several runs, their spread, taken on Δ itself, so that metrics that rise and fall together
           are not mistaken for independent ones;
  sampling what a finite test set leaves open, which more runs on the same test set do not reduce. Where both rows
           have per-sample scores on the same test set the comparison is paired: images that are hard for both rows
           cancel, and metrics that share images are correlated as they are. This is the jackknife form of the
           bootstrap over samples. Without them the metrics' standard errors are taken as independent between
           metrics and between the two rows, which says too much doubt for rows that saw the same images.
Intervals use Student's t with Welch-Satterthwaite degrees of freedom, as two or three runs say little of their spread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit  # scipy.stats takes a second to import

from common.errors import UserError
from eval_suite.metrics.score import Samples
from eval_suite.results import GROUPS, Key, Metrics
from eval_suite.sample_scores import SetSamples

DELTA_M = "delta_m"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A relative change in percent; `stderr` and `ci95` are None where an error of a metric is not known.

    `paired`: both rows were compared sample by sample in every metric of it.
    """

    value: float
    stderr: float | None
    ci95: tuple[float, float] | None
    paired: bool = False

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
    seed_variance: float = 0.0  #: the part of `variance` that comes from several probe seeds on one backbone
    samples: SetSamples | None = None  #: mean over the runs, where all of them have samples on one test set

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
    """A row against the baseline: per metric, per group, and in total (under `DELTA_M`).

    `without` says for each metric what Δm would be if that metric were left out: how much hangs on it alone.
    """

    metrics: dict[Key, Estimate]
    columns: dict[str, Estimate]
    without: dict[Key, float] = field(default_factory=dict)

    @property
    def strongest(self) -> tuple[Key, float] | None:
        """The metric whose absence moves Δm most, and Δm without it; None where there is but one metric."""
        total = self.columns[DELTA_M].value
        return max(self.without.items(), key=lambda item: abs(item[1] - total), default=None)


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
    variance, of_seeds = sampling, 0.0
    if len(runs) > 1:
        variance = sampling or 0.0
    elif len(flat) > 1:  # several probe seeds on one backbone: their spread, on top of the shared test set
        of_seeds = float(np.var([result.value for result in flat], ddof=1)) / len(flat)
        variance = (sampling or 0.0) + of_seeds
    samples = mean_samples([result.samples for result in flat])
    return Measured(values, variance, flat[0].higher_is_better, of_seeds, samples)


def mean_samples(parts: Sequence[SetSamples | None]) -> SetSamples | None:
    """Samples of the mean of several results; None unless all have the same units of the same test set."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    first = known[0]
    for part in known[1:]:
        if part.test_set != first.test_set or not torch.equal(part.samples.units, first.samples.units):
            return None
    scores = torch.stack([part.samples.scores for part in known]).mean(0)
    value = float(np.mean([part.value for part in known]))
    return SetSamples(first.test_set, value, Samples(first.samples.units, scores))


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
    changes = {key: estimate.value for key, estimate in zip(keys, estimates, strict=False)}
    return Comparison(
        dict(zip(keys, estimates[: len(keys)], strict=True)),
        dict(zip([*groups, DELTA_M], estimates[len(keys) :], strict=True)),
        {key: total_change({k: v for k, v in changes.items() if k != key}) for key in keys} if len(keys) > 1 else {},
    )


def total_change(changes: Mapping[Key, float]) -> float:
    """Plain mean over groups of the plain mean over each group's metrics, percent."""
    groups: dict[str, list[float]] = {}
    for key, change in changes.items():
        groups.setdefault(key[0], []).append(change)
    return float(np.mean([np.mean(members) for members in groups.values()]))


def unchanged(base: dict[Key, Measured], skip: Sequence[Key] = ()) -> Comparison:
    """The baseline against itself: no change, and no doubt about it."""
    nothing = Estimate(0.0, 0.0, (0.0, 0.0), True)
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
    variances = [np.array([np.nan if m.variance is None else m.variance for m in side]) for side in (row, base)]
    per_metric = by_ours**2 * variances[0] + by_theirs**2 * variances[1]
    shared = np.array([are_paired(one, other) for one, other in zip(row, base, strict=True)])
    per_metric = np.where(shared, _beyond_sampling(row, by_ours) + _beyond_sampling(base, by_theirs), per_metric)
    sampling = (np.where(weights > 0, per_metric, 0.0) * weights**2).sum(1)
    sampling = sampling + paired_variance(weights, row, base, by_ours, by_theirs)
    parts = [_run_variance(ours, weights * by_ours), _run_variance(theirs, weights * by_theirs)]
    values = weights @ (sign * (mean - reference) / reference)
    return [
        _estimate(
            float(value),
            float(rest),
            [(float(part[i]), runs) for part, runs in parts],
            bool(shared[weights[i] > 0].all()),
        )
        for i, (value, rest) in enumerate(zip(values, sampling, strict=True))
    ]


def are_paired(one: Measured, other: Measured) -> bool:
    """Whether both have scores of the same units of the same test set."""
    left, right = one.samples, other.samples
    if left is None or right is None or left.test_set != right.test_set:
        return False
    return torch.equal(left.samples.units, right.samples.units)


def paired_variance(
    weights: Array, row: Sequence[Measured], base: Sequence[Measured], by_ours: Array, by_theirs: Array
) -> Array:
    """Sampling variance [K] of weighted sums [K, T] of relative changes, from the metrics that are paired.

    With pseudo-values p of a metric over n units its variance is the sum over units of u^2, where
    u = (p - mean p) / sqrt(n (n - 1)). A linear combination of metrics, and of two rows, combines the u of each unit;
    units of different test sets are independent.
    """
    spread: dict[str, Array] = {}
    for at, (ours, theirs) in enumerate(zip(row, base, strict=True)):
        if ours.samples is None or theirs.samples is None or not are_paired(ours, theirs):
            continue
        units = ours.samples.samples.units.numpy()
        own = by_ours[at] * _deviations(ours.samples) + by_theirs[at] * _deviations(theirs.samples)
        table = spread.setdefault(ours.samples.test_set, np.zeros((len(weights), 0)))
        if (missing := int(units.max()) + 1 - table.shape[1]) > 0:
            table = np.pad(table, ((0, 0), (0, missing)))
        table[:, units] += weights[:, at, None] * own
        spread[ours.samples.test_set] = table
    return sum(((table**2).sum(1) for table in spread.values()), np.zeros(len(weights)))


def _deviations(entry: SetSamples) -> Array:
    scores = entry.samples.scores.numpy()
    return np.asarray((scores - scores.mean()) / np.sqrt(len(scores) * (len(scores) - 1)))


def _beyond_sampling(side: Sequence[Measured], gradient: Array) -> Array:
    """What is in the variances of one run beside sampling: the spread over its probe seeds."""
    return gradient**2 * np.array([metric.seed_variance for metric in side])


def _run_variance(runs: Array, gradient: Array) -> tuple[Array, int]:
    """Variance of the mean over runs [R, T] of each linear combination [K, T] -> [K], and R."""
    count = len(runs)
    if count < 2:
        return np.zeros(len(gradient)), count
    spread = ((runs - runs.mean(0)) @ gradient.T) ** 2
    return spread.sum(0) / (count * (count - 1)), count


def _estimate(value: float, sampling: float, parts: list[tuple[float, int]], paired: bool) -> Estimate:
    variance = sampling + sum(part for part, _ in parts)
    if np.isnan(variance):
        return Estimate(value, None, None, paired)
    doubt = sum(part**2 / (runs - 1) for part, runs in parts if runs > 1)
    freedom = variance**2 / doubt if doubt > 0 else np.inf
    stderr = variance**0.5
    reach = float(stdtrit(freedom, 0.975)) * stderr
    return Estimate(value, stderr, (value - reach, value + reach), paired)


def _named(key: Key, names: Sequence[str]) -> bool:
    return any(name in (key[0], "/".join(key[:2]), "/".join(key)) for name in names)


def _names(keys: Sequence[Key] | set[Key]) -> str:
    names = sorted("/".join(key) for key in keys)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
