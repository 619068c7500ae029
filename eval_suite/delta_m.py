"""Δm: how much better a row is than the baseline, in percent.

FeatSharp equations 8 and 9: the relative change of a metric is 100 (-1)^l (M - B) / B, with l = 1 where lower is better
and B the baseline row's value. A group is the plain mean over its metrics, Δm the plain mean over groups.

Beside it stands the robust Δm: the same means of 100 (-1)^l ln(M / B), over the metrics whose baseline is more than two
errors away from the floor, the value of an answer that knows nothing of the image. A ratio to a small noisy number is
lopsided and on average too large, its logarithm is not (docs/statistics.md). Errors are those of `uncertainty`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.errors import UserError
from eval_suite.results import GROUPS, Key, Metrics, Result
from eval_suite.sample_scores import Samples, SetSamples
from eval_suite.uncertainty import Estimate, Measured, relative_changes

DELTA_M = "delta_m"
ERRORS_FROM_FLOOR = 2.0  #: a baseline nearer to its floor than this tells no network from one that sees nothing


@dataclass(frozen=True)
class Comparison:
    """A row against the baseline: per metric, per group, and in total (under `DELTA_M`).

    `without` says for each metric what Δm would be if that metric were left out: how much hangs on it alone.
    """

    metrics: dict[Key, Estimate]
    columns: dict[str, Estimate]
    without: dict[Key, float] = field(default_factory=dict)
    robust: Estimate | None = None  #: Δm of log ratios without metrics near their floor; None where none is left

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
    variance, of_seeds, seeds = sampling, 0.0, 1
    if len(runs) > 1:
        variance = sampling or 0.0
    elif len(flat) > 1:  # several probe seeds on one backbone: their spread, on top of the shared test set
        seeds = len(flat)
        of_seeds = float(np.var([result.value for result in flat], ddof=1)) / seeds
        variance = (sampling or 0.0) + of_seeds
    samples = mean_samples([result.samples for result in flat])
    counts = [result.n if result.units is None else result.units for result in flat]
    units = [count for count in counts if count is not None]
    return Measured(
        runs=values,
        variance=variance,
        higher_is_better=flat[0].higher_is_better,
        seed_variance=of_seeds,
        samples=samples,
        by_run=() if samples is None else _samples_by_run(entries),
        units=len(samples.samples.units) if samples else min(units) if len(units) == len(flat) else None,
        floor=flat[0].floor,
        probe_seeds=seeds,
        items=flat[0].n,
    )


def _samples_by_run(entries: Sequence[Sequence[Result]]) -> tuple[SetSamples, ...]:
    found = [mean_samples([result.samples for result in run]) for run in entries]
    return tuple(samples for samples in found if samples is not None)


def mean_samples(parts: Sequence[SetSamples | None]) -> SetSamples | None:
    """Samples of the mean of several results; None unless all have the same units of the same test set."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    first = known[0]
    for part in known[1:]:
        if part.test_set != first.test_set or not np.array_equal(part.samples.units, first.samples.units):
            return None
    scores = np.stack([part.samples.scores for part in known]).mean(0)
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


def compare(
    row: dict[Key, Measured],
    base: dict[Key, Measured],
    skip: Sequence[Key] = (),
    near_floor: Sequence[Key] = (),
) -> Comparison:
    """A row against the baseline over all metrics but `skip`; both must hold the same ones.

    The robust Δm also leaves out those `near_floor`.
    """
    keys = [key for key in base if key not in skip]
    if set(keys) != {key for key in row if key not in skip}:
        raise UserError(f"the rows differ in their metrics: {_names(set(row) ^ set(base))}")
    if not keys:
        raise UserError("no metric is left to compare")
    for key in keys:
        if row[key].higher_is_better != base[key].higher_is_better:
            raise UserError(f"{'/'.join(key)} is better when higher in one row and when lower in another")
    groups, share = group_shares(keys)
    weights = np.concatenate([np.eye(len(keys)), share, share.mean(0, keepdims=True)])
    estimates = relative_changes(weights, [row[key] for key in keys], [base[key] for key in keys], "relative")
    changes = {key: estimate.value for key, estimate in zip(keys, estimates, strict=False)}
    return Comparison(
        dict(zip(keys, estimates[: len(keys)], strict=True)),
        dict(zip([*groups, DELTA_M], estimates[len(keys) :], strict=True)),
        {key: total_change({k: v for k, v in changes.items() if k != key}) for key in keys} if len(keys) > 1 else {},
        _robust(row, base, [key for key in keys if key not in near_floor]),
    )


def _robust(row: Mapping[Key, Measured], base: Mapping[Key, Measured], keys: Sequence[Key]) -> Estimate | None:
    if not keys:
        return None
    ours, theirs = [row[key] for key in keys], [base[key] for key in keys]
    return relative_changes(group_shares(keys)[1].mean(0, keepdims=True), ours, theirs, "log")[0]


def tells_nothing(
    rows: Mapping[str, Mapping[Key, Measured]], baseline: str, skip: Sequence[Key] = ()
) -> tuple[Key, ...]:
    """Metrics that the robust Δm leaves out: near their floor in the baseline, or not above 0 in some row."""
    keys = [key for key in rows[baseline] if key not in skip]
    return tuple(
        key for key in keys if is_near_floor(rows[baseline][key]) or min(row[key].mean for row in rows.values()) <= 0
    )


def is_near_floor(metric: Measured) -> bool:
    """Whether a value is within two errors of what an answer scores that knows nothing of the image.

    Where the floor of a metric that is better when higher is not known it is taken as 0.
    """
    floor = metric.floor if metric.floor is not None else 0.0 if metric.higher_is_better else None
    if floor is None or metric.stderr is None:
        return False
    above = metric.mean - floor if metric.higher_is_better else floor - metric.mean
    return above <= ERRORS_FROM_FLOOR * metric.stderr


def group_shares(keys: Sequence[Key]) -> tuple[list[str], np.ndarray]:
    """The groups of the metrics, and what share of each group a metric is: [G, T]."""
    groups = group_order([key[0] for key in keys])
    member = np.array([[float(key[0] == group) for key in keys] for group in groups])
    return groups, member / member.sum(1, keepdims=True)


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
    return Comparison(dict.fromkeys(keys, nothing), dict.fromkeys([*groups, DELTA_M], nothing), {}, nothing)


def group_order(groups: Sequence[str]) -> list[str]:
    """The groups that occur, the paper's in its order, others after them as they come."""
    seen = list(dict.fromkeys(groups))
    return [group for group in GROUPS if group in seen] + [group for group in seen if group not in GROUPS]


def _named(key: Key, names: Sequence[str]) -> bool:
    return any(name in (key[0], "/".join(key[:2]), "/".join(key)) for name in names)


def _names(keys: Sequence[Key] | set[Key]) -> str:
    names = sorted("/".join(key) for key in keys)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
