"""Δm: the formula, its intervals against simulation, and that nothing goes missing in silence."""

import numpy as np
import pytest
from scipy.stats import t as student
from table_files import NUMBERS, metrics, without

from common.errors import UserError
from eval_suite.delta_m import DELTA_M, Comparison, compare, measure
from eval_suite.results import Key, Metrics
from eval_suite.table import Table, build_table
from eval_suite.uncertainty import Measured


def compared(row: list[Metrics], base: list[Metrics]) -> Comparison:
    return compare(measure(row, "row"), measure(base, "base"))


def test_group_means_are_plain_and_groups_weigh_the_same() -> None:
    """+10 and +20 % in one group, +10 % of a lower-is-better metric in the other: the mean of 15 and 10."""
    base, row = metrics(), metrics(change=10.0)
    better = row.results[1].model_copy(update={"value": 72.0})
    columns = compared([row.model_copy(update={"results": (row.results[0], better, row.results[2])})], [base]).columns
    assert columns["classification"].value == pytest.approx(15.0)
    assert columns["nyudv2"].value == pytest.approx(10.0)
    assert columns[DELTA_M].value == pytest.approx(12.5)


def test_lower_is_better_turns_the_sign() -> None:
    base = {("g", "t", "rmse"): Measured((0.50,), None, False)}
    row = {("g", "t", "rmse"): Measured((0.45,), None, False)}
    assert compare(row, base).columns["g"].value == pytest.approx(10.0)
    assert compare(base, row).columns["g"].value == pytest.approx(-100 / 9)


def test_the_papers_total_is_the_mean_of_its_seven_groups() -> None:
    changes = (0.06, 0.16, 0.83, 0.13, 0.17, 0.93, 0.43)
    base: dict[Key, Measured] = {(f"g{i}", "t", "m"): Measured((100.0,), None, True) for i in range(7)}
    row: dict[Key, Measured] = {
        (f"g{i}", "t", "m"): Measured((100.0 + change,), None, True) for i, change in enumerate(changes)
    }
    assert compare(row, base).columns[DELTA_M].value == pytest.approx(0.387, abs=5e-4)


def test_error_from_sampling_agrees_with_simulation() -> None:
    rng = np.random.default_rng(0)
    value, error = np.array([entry[3] for entry in NUMBERS]), np.array([entry[5] for entry in NUMBERS])
    sign = np.array([1.0 if entry[4] else -1.0 for entry in NUMBERS])
    better = value * (1 + 0.05 * sign)
    ours, theirs = (rng.normal(center, error, (200_000, 3)) for center in (better, value))
    change = 100 * sign * (ours - theirs) / theirs
    total = (change[:, :2].mean(1) + change[:, 2]) / 2
    columns = compared([metrics(change=5.0)], [metrics()]).columns
    assert columns["classification"].stderr == pytest.approx(change[:, :2].mean(1).std(), rel=0.02)
    assert columns[DELTA_M].stderr == pytest.approx(total.std(), rel=0.02)
    low, high = columns[DELTA_M].ci95 or (0.0, 0.0)
    assert high - low == pytest.approx(2 * 1.96 * total.std(), rel=0.02)


def test_spread_of_runs_is_taken_on_the_change_itself() -> None:
    """Runs whose metrics rise and fall together: the group is as uncertain as one metric, not less by sqrt(2)."""
    runs = [metrics(change=change, stderr=False, seed=seed) for seed, change in enumerate((4.0, 6.0, 8.0))]
    columns = compared(runs, [metrics(), metrics(seed=1)]).columns
    spread_only = compared(runs, [metrics(stderr=False), metrics(stderr=False, seed=1)]).columns
    assert columns["classification"].value == pytest.approx(6.0)
    assert spread_only["classification"].stderr == pytest.approx(2.0 / 3**0.5)
    assert spread_only[DELTA_M].stderr == pytest.approx(2.0 / 3**0.5)
    low, high = spread_only[DELTA_M].ci95 or (0.0, 0.0)
    assert high - 6.0 == pytest.approx(student.ppf(0.975, 2) * 2.0 / 3**0.5)
    assert low == pytest.approx(12.0 - high)
    assert (columns["classification"].stderr or 0) > 2.0 / 3**0.5  # the baseline's test set is finite too


def test_more_runs_on_one_test_set_do_not_shrink_its_error() -> None:
    one = compared([metrics(change=5.0)], [metrics()]).columns[DELTA_M]
    many = compared([metrics(change=5.0, seed=s) for s in range(8)], [metrics(seed=s) for s in range(8)]).columns[
        DELTA_M
    ]
    assert many.stderr == pytest.approx(one.stderr)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Three runs a row with a spread of their own, and a finite test set shared by the runs of a row."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        shift = rng.normal(0, 0.5, 2)  # the test set's share of luck, one for each row
        row = tuple(105 + shift[0] + rng.normal(0, 1.0, 3))
        base = tuple(100 + shift[1] + rng.normal(0, 1.0, 3))
        key: Key = ("g", "t", "m")
        estimate = compare({key: Measured(row, 0.25, True)}, {key: Measured(base, 0.25, True)}).columns["g"]
        low, high = estimate.ci95 or (0.0, 0.0)
        hits += low <= 5.0 <= high
    assert 0.92 <= hits / 400 <= 0.985


def test_probe_seeds_of_one_run_add_their_spread() -> None:
    results = [result for seed in range(4) for result in metrics(seed=seed, change=seed, stderr=True).results]
    row = measure([metrics().model_copy(update={"results": tuple(results)})], "row")
    knn = row["classification", "knn", "top1"]
    assert knn.mean == pytest.approx(80 * 1.015)
    assert knn.variance == pytest.approx(1.0 + np.var(0.8 * np.arange(4), ddof=1) / 4)


def test_an_unknown_error_stays_unknown() -> None:
    row = metrics(change=3.0)
    blind = row.results[2].model_copy(update={"stderr": None})
    columns = compared([row.model_copy(update={"results": (*row.results[:2], blind)})], [metrics()]).columns
    assert columns["nyudv2"].stderr is None
    assert columns[DELTA_M].ci95 is None
    assert columns["classification"].stderr is not None


def build(row: Metrics, *allowed: str, base: Metrics | None = None) -> Table:
    return build_table({"base": [base or metrics()], "row": [row], "other": [metrics(change=1.0)]}, "base", allowed)


def test_a_missing_group_is_an_error_on_either_side() -> None:
    lacking = without(metrics(change=2.0), "nyudv2", {"nyudv2/depth": "the data has no depth"})
    with pytest.raises(UserError, match=r'row "row" has no nyudv2/depth/rmse.*\(the data has no depth\)'):
        build(lacking)
    with pytest.raises(UserError, match='row "base" has no nyudv2/depth/rmse'):
        build(metrics(), base=lacking)


@pytest.mark.parametrize("name", ["nyudv2", "nyudv2/depth", "nyudv2/depth/rmse"])
def test_what_may_be_missing_is_left_out_of_every_row_and_said(name: str) -> None:
    table = build(without(metrics(change=2.0), "nyudv2"), name)
    assert table.columns == ("classification", DELTA_M)
    assert table.left_out == (("nyudv2", "depth", "rmse"),)
    assert table.rows["other"].columns[DELTA_M].value == pytest.approx(1.0)
    assert table.to_dict()["left_out"] == ["nyudv2/depth/rmse"]


def test_naming_something_else_does_not_help() -> None:
    lacking = without(metrics(), "nyudv2")
    with pytest.raises(UserError, match="has no nyudv2"):
        build(lacking, "classification/knn")
    with pytest.raises(UserError, match='no row has the "nyud"'):
        build(lacking, "nyud")


def test_what_is_allowed_but_present_still_counts() -> None:
    assert build(metrics(change=4.0), "nyudv2").columns == ("classification", "nyudv2", DELTA_M)


def test_a_baseline_of_zero_is_refused_unless_named() -> None:
    base = metrics()
    zero = base.model_copy(update={"results": (base.results[0].model_copy(update={"value": 0.0}), *base.results[1:])})
    with pytest.raises(UserError, match="classification/knn/top1 = 0"):
        build(metrics(), base=zero)
    assert build(metrics(change=2.0), "classification/knn", base=zero).rows["row"].columns[
        "classification"
    ].value == pytest.approx(2.0)


def test_directions_suites_and_run_sets_must_agree() -> None:
    turned = [result.model_copy(update={"higher_is_better": True}) for result in metrics().results]
    with pytest.raises(UserError, match="better when higher in one row"):
        build(metrics().model_copy(update={"results": tuple(turned)}))
    with pytest.raises(UserError, match="different suites"):
        build(metrics(suite="large"))
    with pytest.raises(UserError, match="differ in their metrics"):
        measure([metrics(), without(metrics(), "nyudv2")], "row")
