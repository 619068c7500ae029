"""How sure a relative change is: what runs and test images leave open, in one interval.

Two sources, crossed (every run saw the same images):
  runs     the spread of the runs' own changes, so that metrics that rise and fall together are not mistaken for
           independent ones;
  sampling what a finite test set leaves open, which more runs on the same test set do not reduce. Where both rows have
           per-unit scores on the same test set the comparison is paired: images that are hard for both rows cancel, and
           metrics that share images are correlated as they are (the jackknife form of the bootstrap over units).
           Otherwise the metrics' standard errors are taken as independent between metrics and rows.
With per-unit scores of every run their interaction, which is in both spreads, is counted once: the two-way analysis of
variance of multi-reader multi-case studies (Dorfman, Berbaum & Metz 1992; Gallas 2006).

Intervals use Student's t. The degrees of freedom are Welch and Satterthwaite's over all parts; those of a part with
per-unit scores are 2 / (2 / (n - 1) + k / n), k >= 0 the excess kurtosis of the units, because the variance itself is
known less well where tails are heavy (Box 1953). docs/statistics.md has the simulations.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # scipy.stats takes a second to import

from eval_suite.sample_scores import SetSamples

FEWEST_RUNS = 3  #: below it no difference is the method's: two runs a side mark 8 % of equal methods
FEWEST_UNITS = 20  #: below it no difference is called one: t intervals of so few units are not to be trusted
Array = NDArray[np.float64]
Scale = Literal["relative", "log"]
Claim = Literal["method", "networks", "none"]


@dataclass(frozen=True)
class Measured:
    """One metric of one row."""

    runs: tuple[float, ...]  #: one value per run, the mean over its probe seeds
    variance: float | None  #: of the mean of `runs`, as far as its spread over runs does not show it
    higher_is_better: bool
    seed_variance: float = 0.0  #: the part of `variance` that comes from several probe seeds on one backbone
    samples: SetSamples | None = None  #: mean over the runs, where all of them have samples on one test set
    by_run: tuple[SetSamples, ...] = ()  #: of every run, where `samples` is their mean
    units: int | None = None  #: independent draws behind the variance; None where that is not known
    floor: float | None = None  #: the value of an answer that knows nothing of the image
    probe_seeds: int = 1
    items: int | None = None

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
class Estimate:
    """A relative change in percent; `stderr` and `ci95` are None where an error of a metric is not known.

    `paired`: both rows were compared unit by unit in every metric of it. `units`: how many independent units it rests
    on (of several metrics, those of their mean), None where that is not known. `runs`: of the row that has fewer.
    `run_variance` and `sampling_variance` are the parts of the squared error.
    """

    value: float
    stderr: float | None
    ci95: tuple[float, float] | None
    paired: bool = False
    units: float | None = None
    runs: int = 1
    run_variance: float | None = None
    sampling_variance: float | None = None

    @property
    def is_real(self) -> bool:
        """Whether the 95 % interval excludes no change, and rests on enough units to say so."""
        if self.ci95 is None or (self.units is not None and round(self.units) < FEWEST_UNITS):
            return False
        return self.ci95[0] > 0 or self.ci95[1] < 0

    @property
    def claim(self) -> Claim:
        """ "networks": these two networks differ; "method": three runs or more on both sides say the method does."""
        if not self.is_real:
            return "none"
        return "method" if self.runs >= FEWEST_RUNS else "networks"


@dataclass(frozen=True)
class _Part:
    """One independent part of an error: its variance, its degrees of freedom, and the units it was taken over."""

    variance: float
    freedom: float
    units: float | None = None


def relative_changes(weights: Array, row: Sequence[Measured], base: Sequence[Measured], scale: Scale) -> list[Estimate]:
    """Weighted sums [K, T] of the T metrics' relative changes in percent, with their errors.

    scale "relative": 100 (-1)^l (M - B) / B, the paper's; "log": 100 (-1)^l ln(M / B), the same for small changes.
    """
    ours, theirs = (np.array([metric.runs for metric in side]).T for side in (row, base))
    mean, reference = ours.mean(0), theirs.mean(0)
    sign = np.array([100.0 if metric.higher_is_better else -100.0 for metric in row])
    if scale == "relative":
        changes, by_ours, by_theirs = (mean - reference) / reference, sign / reference, -sign * mean / reference**2
    else:
        changes, by_ours, by_theirs = np.log(mean / reference), sign / mean, -sign / reference
    estimates = []
    for share in weights:
        used = [at for at in range(len(share)) if share[at] > 0]
        sides = [(row, share * by_ours, ours), (base, share * by_theirs, theirs)]
        runs = [_run_part(values, gradient) for _, gradient, values in sides if len(values) > 1]
        parts = list(_sampling_parts(used, sides[0][:2], sides[1][:2]))
        shared = sum(_interaction(used, side, gradient) for side, gradient, _ in sides)
        paired = all(are_paired(row[at], base[at]) for at in used)
        fewest = min(len(ours), len(theirs))
        estimates.append(_estimate(float(share @ (sign * changes)), runs, parts, shared, paired, fewest))
    return estimates


def are_paired(one: Measured, other: Measured) -> bool:
    """Whether both have scores of the same units of the same test set."""
    left, right = one.samples, other.samples
    if left is None or right is None or left.test_set != right.test_set:
        return False
    return np.array_equal(left.samples.units, right.samples.units)


def _estimate(
    value: float, runs: list[_Part], sampling: list[_Part], shared: float, paired: bool, fewest: int
) -> Estimate:
    of_runs, of_sampling = (sum(part.variance for part in parts) for parts in (runs, sampling))
    if np.isnan(of_sampling):
        return Estimate(value, None, None, paired, runs=fewest)
    variance = float(max(of_runs + of_sampling - shared, of_runs, of_sampling))
    doubt = sum(part.variance**2 / part.freedom for part in (*runs, *sampling))
    freedom = (of_runs + of_sampling) ** 2 / doubt if doubt > 0 else np.inf
    reach = float(stdtrit(freedom, 0.975)) * variance**0.5
    interval = (value - reach, value + reach)
    return Estimate(
        value, variance**0.5, interval, paired, _units_of(sampling), fewest, float(of_runs), float(of_sampling)
    )


def _units_of(parts: Sequence[_Part]) -> float | None:
    """Units of a mean of several parts: (sum v)^2 / sum(v^2 / n); of one part its own. None where one is not known."""
    known = [(part.variance, part.units) for part in parts if part.units is not None]
    if len(known) < len(parts) or not parts:
        return None
    total = sum(variance for variance, _ in known)
    doubt = sum(variance**2 / units for variance, units in known)
    return float(total**2 / doubt) if doubt > 0 else float(min(units for _, units in known))


def _run_part(runs: Array, gradient: Array) -> _Part:
    """Variance of the mean over runs [R, T] of one linear combination [T]."""
    count = len(runs)
    spread = (((runs - runs.mean(0)) @ gradient) ** 2).sum()
    return _Part(float(spread) / (count * (count - 1)), count - 1)


Side = tuple[Sequence[Measured], Array]  #: the metrics of a row, and what the change takes of each


def _sampling_parts(used: Sequence[int], ours: Side, theirs: Side) -> Iterator[_Part]:
    """The independent parts of a change's sampling error: one a test set where rows are paired, else one a metric."""
    deviations: dict[str, Array] = {}
    for at in used:
        one, other = ours[0][at], theirs[0][at]
        if are_paired(one, other):
            assert one.samples is not None and other.samples is not None
            own = ours[1][at] * _deviations(one.samples) + theirs[1][at] * _deviations(other.samples)
            _add(deviations, one.samples, own)
            for metric, gradient in ((one, ours[1][at]), (other, theirs[1][at])):
                if metric.seed_variance:
                    yield _Part(gradient**2 * metric.seed_variance, metric.probe_seeds - 1, np.inf)
        else:
            yield _unpaired_part(one, other, ours[1][at], theirs[1][at])
    for own in deviations.values():
        present = own[~np.isnan(own)]
        yield _Part(float((present**2).sum()), _freedom(present), len(present))


def _unpaired_part(one: Measured, other: Measured, by_one: float, by_other: float) -> _Part:
    parts = []
    for metric, gradient in ((one, by_one), (other, by_other)):
        if metric.variance is None:
            return _Part(np.nan, np.inf)
        if metric.samples is not None:
            freedom = _freedom(_deviations(metric.samples))
        else:
            freedom = np.inf if metric.units is None else max(metric.units - 1, 1e-9)
        seeds = gradient**2 * metric.seed_variance
        parts.append(_Part(gradient**2 * metric.variance - seeds, freedom, metric.units))
        if seeds:
            parts.append(_Part(seeds, metric.probe_seeds - 1))
    total = sum(part.variance for part in parts)
    doubt = sum(part.variance**2 / part.freedom for part in parts)
    counts = [metric.units for metric in (one, other) if metric.units is not None]
    return _Part(total, total**2 / doubt if doubt > 0 else np.inf, min(counts) if len(counts) == 2 else None)


def _interaction(used: Sequence[int], side: Sequence[Measured], gradient: Array) -> float:
    """What runs and units have in common in a row's error, and both of its parts count: MS(run x unit) / (R n)."""
    runs = min((len(side[at].by_run) for at in used), default=0)
    if runs < 2:
        return 0.0
    by_run: list[dict[str, Array]] = [{} for _ in range(runs)]
    for at in used:
        for table, entry in zip(by_run, side[at].by_run, strict=True):
            _add(table, entry, gradient[at] * _deviations(entry))
    total = 0.0
    for test_set in by_run[0]:
        stacked = np.stack([found[test_set] for found in by_run])
        total += float(np.nansum((stacked - stacked.mean(0)) ** 2)) / (runs * (runs - 1))
    return total


def _add(tables: dict[str, Array], entry: SetSamples, own: Array) -> None:
    """Add deviations of some units of a test set to those already there; nan: a unit nobody scored."""
    units = entry.samples.units
    table = tables.get(entry.test_set, np.zeros(0))
    if (missing := int(units.max()) + 1 - len(table)) > 0:
        table = np.pad(table, (0, missing), constant_values=np.nan)
    table[units] = np.nan_to_num(table[units]) + own
    tables[entry.test_set] = table


def _deviations(entry: SetSamples) -> Array:
    """Of each unit, so that the sum of squares is the squared standard error of the mean."""
    scores = entry.samples.scores
    return np.asarray((scores - scores.mean()) / np.sqrt(len(scores) * (len(scores) - 1)))


def _freedom(deviations: Array) -> float:
    """Degrees of freedom of the sum of squares of n deviations, fewer where their tails are heavy."""
    count, squares = len(deviations), deviations**2
    if count < 2 or squares.sum() == 0:
        return max(count - 1.0, 1e-9)
    excess = max(0.0, float(count * (squares**2).sum() / squares.sum() ** 2) - 3.0)
    return 2.0 / (2.0 / (count - 1) + excess / count)
