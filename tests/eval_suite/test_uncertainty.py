"""Error bars: what they do with few units, several runs and one run. The simulations that take longer are slow tests;
`python -m pytest tests/eval_suite/test_uncertainty.py -m slow -s` prints the tables of docs/statistics.md."""

import numpy as np
import pytest
import torch
from statistical_worlds import WORLDS, World, run_of
from table_files import metrics

from eval_suite.delta_m import DELTA_M, compare, measure
from eval_suite.metrics.score import clustered_mean, mean_at
from eval_suite.power import power_lines, runs_needed, times_of_units
from eval_suite.results import Metrics
from eval_suite.table import build_table, caption
from eval_suite.table_formats import render
from eval_suite.uncertainty import Estimate


def comparison(world: World, seed: int, n: int, gain: float = 0.0, *, paired: bool = True) -> Estimate:
    """A network against one of the gain 0, both on n units."""
    rng = np.random.default_rng([seed, n])
    hard, other = rng.normal(size=n), rng.normal(size=n)
    ours = run_of(world.rows(rng, hard, gain), world, "ours", "set")
    theirs = run_of(world.rows(rng, hard if paired else other), world, "base", "set" if paired else "other")
    return compare(measure([ours], "ours"), measure([theirs], "base")).columns[DELTA_M]


def test_two_pairs_make_no_star() -> None:
    """The case that was printed as +300 ± 100 *: two pairs of images, hundreds of points in each."""
    world = World(lambda *_: np.zeros((2, 2)), mean_at(0, weight=1, scale=100.0))
    ours = run_of(torch.tensor([[80.0, 100.0], [80.0, 100.0]], dtype=torch.float64), world, "a", "set")
    theirs = run_of(torch.tensor([[15.0, 100.0], [25.0, 100.0]], dtype=torch.float64), world, "b", "set")
    table = build_table({"b": [theirs], "a": [ours]}, "b")
    cell = table.rows["a"].columns["g"]
    assert cell.value == pytest.approx(300.0) and cell.units == 2 and cell.claim == "none"
    assert cell.ci95 is not None and cell.ci95[0] < 0  # one degree of freedom
    assert "Fewest independent units of a metric: 2 (g/t/m); below 20 nothing is marked" in caption(table)
    assert not any(mark in render(table, "md").split("Relative")[0] for mark in "*°" if mark != "*")


def test_both_sides_count_in_an_unpaired_comparison() -> None:
    """Welch: as many degrees of freedom as both sides have together where they are alike."""
    estimate = comparison(WORLDS["recall"], 1, 25, paired=False)
    paired = comparison(WORLDS["recall"], 1, 25)
    assert not estimate.paired and paired.paired and estimate.units == paired.units == 25
    assert estimate.ci95 is not None and estimate.stderr is not None
    assert 1.99 < (estimate.ci95[1] - estimate.value) / estimate.stderr < 2.07


def test_one_run_and_several_runs_claim_different_things() -> None:
    def runs(change: float) -> list[Metrics]:
        return [metrics(change=change + shift, seed=seed) for seed, shift in enumerate((-0.1, 0.0, 0.1))]

    one = build_table({"base": [metrics()], "better": [metrics(change=30.0)]}, "base")
    several = build_table({"base": runs(0.0), "better": runs(30.0)}, "base")
    two = build_table({"base": runs(0.0)[:2], "better": runs(30.0)[:2]}, "base")
    assert two.rows["better"].columns[DELTA_M].claim == "networks"  # intervals of two runs a side hold too little
    half = build_table({"base": [metrics()], "better": runs(30.0)}, "base")
    assert one.rows["better"].columns[DELTA_M].claim == "networks"
    assert several.rows["better"].columns[DELTA_M].claim == "method"
    assert half.rows["better"].columns[DELTA_M].claim == "networks"  # the baseline's own luck is not known
    assert "° these two networks differ" in caption(one) and "* the method" not in caption(one)
    assert "* the method helps or harms" in caption(several) and "°" not in caption(several)
    for form, mark, other in (("md", "°", r"\*"), ("tex", r"^{\circ}", "^{*}"), ("html", "°", "</td>*")):
        assert mark in render(one, form) and other not in render(one, form)
        assert mark not in render(several, form)
    for form in ("csv", "json"):
        assert "networks" in render(one, form) and "method" in render(several, form)


def test_metrics_near_their_floor_are_named_and_left_out_of_the_robust_mean() -> None:
    def with_guess(value: float, floor: float | None) -> Metrics:
        whole = metrics(change=4.0 if value > 10.5 else 0.0)
        guess = whole.results[0].model_copy(update={"task": "guess", "value": value, "stderr": 1.0, "floor": floor})
        return whole.model_copy(update={"results": (*whole.results, guess)})

    table = build_table({"base": [with_guess(10.0, 9.0)], "ours": [with_guess(15.0, 9.0)]}, "base")
    assert table.near_floor == (("classification", "guess", "top1"),)
    robust = table.rows["ours"].robust
    assert robust is not None and robust.value == pytest.approx(100 * (np.log(1.04) - np.log(0.96)) / 2, abs=1e-9)
    assert "classification/guess/top1" in caption(table)
    assert table.to_dict()["near_floor"] == ["classification/guess/top1"]
    above = build_table({"base": [with_guess(10.0, 5.0)], "ours": [with_guess(15.0, 5.0)]}, "base")
    assert above.near_floor == () and above.rows["ours"].robust is not None
    lost = build_table({"base": [with_guess(10.0, 5.0)], "ours": [with_guess(0.0, 5.0)]}, "base")
    assert lost.near_floor == (("classification", "guess", "top1"),)  # no logarithm of nothing


def test_what_runs_and_units_share_is_counted_once() -> None:
    """Crossed runs and units with known variances: the printed error is that of the mean difference."""
    world = WORLDS["top-1"]
    rng = np.random.default_rng(0)
    errors, values = [], []
    for _ in range(150):
        hard = rng.normal(size=60)

        def runs(name: str, hard: np.ndarray = hard) -> list[Metrics]:
            rows = [world.rows(rng, hard, 0.05 * rng.normal()) for _ in range(4)]
            return [run_of(row, world, f"{name}{seed}", "set") for seed, row in enumerate(rows)]

        estimate = compare(measure(runs("a"), "a"), measure(runs("b"), "b")).columns[DELTA_M]
        errors.append(estimate.stderr or 0.0)
        values.append(estimate.value)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(float(np.std(values)), rel=0.2)


def test_power_says_how_many_runs_and_units_a_difference_needs() -> None:
    def runs(change: float) -> list[Metrics]:
        return [metrics(change=change + shift, seed=seed) for seed, shift in enumerate((-1.0, 0.0, 1.0))]

    one = build_table({"base": [metrics()], "row": [metrics(change=3.0)]}, "base")
    assert "cannot be said from one run a row" in power_lines(one, 1.0)[0]
    several = build_table({"base": runs(0.0), "row": runs(3.0)}, "base")
    assert "runs a row on 1x the test units" in power_lines(several, 20.0)[0]
    assert "more than 200 runs a row on 1x" in power_lines(several, 0.5)[0]  # the test set is too small for it
    # Cohen's tables for two groups, 5 % two-sided, power 0.8: 17 each to see one standard deviation, 6 to see two
    assert runs_needed(spread=2.0, sampling=0.0, wished=1.0) == 17
    assert runs_needed(spread=2.0, sampling=0.0, wished=2.0) == 6
    assert times_of_units(variance=1.0, wished=2.8016) == pytest.approx(1.0, rel=1e-3)


def test_items_of_one_cluster_are_one_draw() -> None:
    score = clustered_mean(torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([7, 7, 9, 9]))
    assert score.units == 2 and score.n == 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("n", [25, 50, 100, 400])
@pytest.mark.parametrize("name", WORLDS)
def test_intervals_cover_as_often_as_they_say(name: str, n: int, capsys: pytest.CaptureFixture[str]) -> None:
    """95 % intervals of a true difference hold it in 93 to 97 % of 2,000 test sets of 25 and more units."""
    world, gain = WORLDS[name], 0.2
    value, base = world.truth(gain), world.truth(0.0)
    true = 100 * (value - base) / base * (1 if world.higher_is_better else -1)
    line, shares = [f"| {name} | {n} |"], []
    for paired in (True, False):
        found = [comparison(world, seed, n, gain, paired=paired) for seed in range(2000)]
        shares.append(np.mean([e.ci95 is not None and e.ci95[0] <= true <= e.ci95[1] for e in found]))
        line.append(f" {100 * shares[-1]:.1f} |")
    with capsys.disabled():
        print("".join(line))
    assert all(0.93 <= share <= 0.97 for share in shares), (name, n, shares)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_networks_of_one_law_rarely_get_the_mark_of_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    """Training luck alone: one-run rows rightly say that two networks differ; several runs see through it."""
    world, rng = WORLDS["top-1"], np.random.default_rng(5)
    for count in (1, 2, 3, 5):
        claims = {"networks": 0, "method": 0, "none": 0}
        for _ in range(1500):
            hard = rng.normal(size=400)

            def runs(name: str, hard: np.ndarray = hard, count: int = count) -> list[Metrics]:
                rows = [world.rows(rng, hard, 0.15 * rng.normal()) for _ in range(count)]
                return [run_of(row, world, f"{name}{seed}", "set") for seed, row in enumerate(rows)]

            claims[compare(measure(runs("a"), "a"), measure(runs("b"), "b")).columns[DELTA_M].claim] += 1
        with capsys.disabled():
            shares = " | ".join(f"{100 * claims[claim] / 1500:.1f}" for claim in ("networks", "method"))
            print(f"| {count} | {shares} |")
        assert claims["method"] / 1500 <= 0.06
        assert count > 1 or claims["networks"] / 1500 > 0.2  # they do differ


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_ratio_is_biased_near_the_floor_and_its_logarithm_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    """Two networks of one law that are right on a share of 400 questions, a guess being right on none."""
    rng = np.random.default_rng(3)
    for share in (0.02, 0.05, 0.1, 0.3):
        ours, theirs = (rng.binomial(400, share, size=200_000) / 400 for _ in range(2))
        kept = (ours > 0) & (theirs > 0)
        ratio = 100 * (ours - theirs)[kept] / theirs[kept]
        log = 100 * np.log(ours[kept] / theirs[kept])
        floor = 0.5 * share  # a guess is right on half as many
        above = kept & (theirs > floor)
        gain = 100 * ((ours - floor)[above] / (theirs - floor)[above] - 1)
        with capsys.disabled():
            print(f"| {100 * share:.0f} % | {ratio.mean():+.2f} | {log.mean():+.2f} | {gain.mean():+.2f} |")
        assert abs(log.mean()) < 0.3 and ratio.mean() > 2 * abs(log.mean())
