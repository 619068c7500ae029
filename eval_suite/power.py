"""How many training runs and test images a wished-for difference needs."""

from scipy.special import ndtri, stdtrit

from eval_suite.delta_m import DELTA_M
from eval_suite.table import Table
from eval_suite.uncertainty import Estimate

POWER = 0.8  #: chance of seeing the difference where it is there
MOST_RUNS = 200
SIZES = (1, 2, 4)  #: times as many independent test units


def power_lines(table: Table, wished: float) -> list[str]:
    """What every row needs for a Δm of `wished` percent to be marked, four times in five; one line a row."""
    rows = {name: row.columns[DELTA_M] for name, row in table.rows.items() if name != table.baseline}
    return [f"{name}: {_needs(estimate, wished)}" for name, estimate in rows.items()]


def _needs(estimate: Estimate, wished: float) -> str:
    if estimate.sampling_variance is None or estimate.run_variance is None:
        return "no standard errors are known, so nothing can be said"
    if estimate.runs < 2:
        times = times_of_units(estimate.sampling_variance, wished)
        return (
            f"to tell these two networks apart by {wished:g} %: {times:.2g} times the test units; "
            "how many runs a method needs cannot be said from one run a row (give two or more of each)"
        )
    spread = estimate.run_variance * estimate.runs  # of one run on each side, where both have equally many
    parts = []
    for size in SIZES:
        runs = runs_needed(spread, estimate.sampling_variance / size, wished)
        parts.append(f"{'more than ' + str(MOST_RUNS) if runs is None else runs} runs a row on {size}x the test units")
    return f"to see a Δm of {wished:g} %: {', '.join(parts)}"


def times_of_units(variance: float, wished: float) -> float:
    """How many times as many units bring the squared error down to what a difference needs."""
    return variance * float(ndtri(0.975) + ndtri(POWER)) ** 2 / wished**2


def runs_needed(spread: float, sampling: float, wished: float) -> int | None:
    """Fewest runs a row, at least two; None where not even `MOST_RUNS` do: then test units are what lacks.

    `spread`: squared error that one run a side leaves open; `sampling`: what the test set does.
    """
    for runs in range(2, MOST_RUNS + 1):
        reach = float(stdtrit(2 * (runs - 1), 0.975) + stdtrit(2 * (runs - 1), POWER))
        if reach**2 * (spread / runs + sampling) <= wished**2:
            return runs
    return None
