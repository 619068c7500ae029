"""Paired comparison: per-sample scores survive the disk, and the paired error is that of a bootstrap over samples."""

from pathlib import Path

import numpy as np
import pytest
import torch
from table_files import metrics

from common.errors import UserError
from eval_suite.delta_m import DELTA_M, compare, measure
from eval_suite.metrics.classification import mean_class_accuracy, top1
from eval_suite.metrics.correspondence import pck, recall_at
from eval_suite.metrics.depth import Depth
from eval_suite.metrics.score import Score, clustered_mean, jackknife, mean_at, score_of
from eval_suite.metrics.segmentation import Segmentation
from eval_suite.results import BackboneName, Metrics, Result, read_metrics, samples_of, write_metrics
from eval_suite.sample_scores import Samples, SetSamples, samples_path
from eval_suite.table import build_table, caption
from eval_suite.table_formats import render
from eval_suite.table_rows import read_rows
from eval_suite.uncertainty import Measured

IMAGES = 300


def world(seed: int, gain: float, luck: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Right answers (0 or 1) and squared errors of each image; hard images are hard for every row of a seed."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 1.5, IMAGES)
    own = np.random.default_rng([seed, 1 + round(100 * gain), 1 + luck])
    right = (hard + own.normal(0, 0.5, IMAGES) < 0.5 + gain).astype(float)
    squares = np.exp(0.6 * hard - 2 * gain + own.normal(0, 0.1, IMAGES))
    return right, squares


def scores(right: np.ndarray, squares: np.ndarray) -> tuple[Score, Score]:
    pixels = torch.stack([torch.from_numpy(squares) * 50, torch.full((IMAGES,), 50.0, dtype=torch.float64)], 1)
    accuracy = clustered_mean(torch.from_numpy(right), None, scale=100.0)
    return accuracy, score_of(pixels, mean_at(0, weight=1, root=True), IMAGES)


def row(name: str, seed: int, gain: float, test_set: str = "images", luck: int = 0) -> Metrics:
    accuracy, rmse = scores(*world(seed, gain, luck))
    results = (
        Result.of(accuracy, group="classification", task="knn", metric="top1", seed=0).scored_on(test_set),
        Result.of(rmse, group="3d", task="depth", metric="rmse", higher_is_better=False, seed=0).scored_on(test_set),
    )
    return Metrics(schema=1, backbone=BackboneName(name=name, digest="x"), suite="small", results=results)


def bootstrap_of_delta(seed: int, gain: float, draws: int = 3000) -> float:
    """Standard deviation of Δm when whole images are drawn again, the same ones for both rows and both metrics."""
    (a, b), (c, d) = world(seed, gain), world(seed, 0.0)
    rng = np.random.default_rng(7)
    out = []
    for _ in range(draws):
        rows = rng.integers(0, IMAGES, IMAGES)
        accuracy = 100 * (a[rows].mean() - c[rows].mean()) / c[rows].mean()
        ours, theirs = np.sqrt(b[rows].mean()), np.sqrt(d[rows].mean())
        out.append((accuracy + -100 * (ours - theirs) / theirs) / 2)
    return float(np.std(out))


def test_the_paired_error_is_that_of_a_bootstrap_over_images() -> None:
    paired = compare(measure([row("a", 0, 0.05)], "a"), measure([row("b", 0, 0.0)], "b")).columns[DELTA_M]
    assert paired.paired and paired.stderr == pytest.approx(bootstrap_of_delta(0, 0.05), rel=0.1)


def test_pairing_sees_what_the_unpaired_comparison_cannot() -> None:
    ours, theirs = measure([row("a", 0, 0.1)], "a"), measure([row("b", 0, 0.0)], "b")
    other = measure([row("b", 0, 0.0, "other images")], "b")
    paired, unpaired = compare(ours, theirs).columns[DELTA_M], compare(ours, other).columns[DELTA_M]
    assert paired.value == unpaired.value
    assert paired.is_real and not unpaired.is_real and not unpaired.paired
    assert (paired.stderr or 0) < 0.5 * (unpaired.stderr or 0)


def test_the_paired_interval_covers_no_change_as_often_as_it_says() -> None:
    """Rows that differ by luck alone: the interval may miss 0 in about one of twenty worlds."""
    hits = 0
    for seed in range(200):
        ours = measure([row("a", seed, 0.0, luck=1)], "a")
        low, high = compare(ours, measure([row("b", seed, 0.0)], "b")).columns[DELTA_M].ci95 or (0.0, 0.0)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_metrics_of_the_same_images_are_not_independent() -> None:
    """One metric under two names in two groups: Δm is as uncertain as the metric, not less by sqrt 2."""
    one = scores(*world(3, 0.2))[0]
    base = scores(*world(3, 0.0))[0]

    def twice(score: Score) -> dict[tuple[str, str, str], Measured]:
        samples = None if score.samples is None else SetSamples("images", score.value, score.samples)
        entry = Measured((score.value,), (score.stderr or 0) ** 2, True, 0.0, samples)
        return {("g", "t", "m"): entry, ("h", "t", "m"): entry}

    columns = compare(twice(one), twice(base)).columns
    assert columns[DELTA_M].stderr == pytest.approx(columns["g"].stderr)


def test_probe_seeds_still_add_their_spread() -> None:
    accuracy = scores(*world(4, 0.1))[0]
    results = []
    for seed, shift in enumerate((-1.0, 0.0, 1.0)):
        moved = Score(accuracy.value + shift, accuracy.n, accuracy.stderr, accuracy.samples)
        results.append(Result.of(moved, group="g", task="t", metric="m", seed=seed).scored_on("images"))
    backbone = BackboneName(name="a", digest="x")
    row_of_seeds = Metrics(schema=1, backbone=backbone, suite="s", results=tuple(results))
    base = Metrics(schema=1, backbone=backbone, suite="s", results=(results[1],))
    against = compare(measure([row_of_seeds], "a"), measure([base], "b")).columns["g"]
    spread = 100 / accuracy.value * (1.0 / 3) ** 0.5
    assert against.stderr == pytest.approx(spread, rel=1e-6)  # the images cancel wholly, the seeds do not


def test_samples_survive_the_disk_and_never_stand_beside_other_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    ours = row("a", 0, 0.1)
    write_metrics(path, ours)
    again = read_metrics(path)
    assert "samples" not in path.read_text() and samples_path(path).is_file()
    for before, after in zip(ours.results, again.results, strict=True):
        assert after.samples is not None and before.samples is not None
        assert np.array_equal(after.samples.samples.units, before.samples.samples.units)
        assert np.allclose(after.samples.samples.scores, before.samples.samples.scores, rtol=1e-6)
    write_metrics(tmp_path / "plain.json", {**ours.to_dict(), "samples": samples_of(ours)})
    assert read_metrics(tmp_path / "plain.json").results[0].samples is not None
    theirs = samples_path(path).read_bytes()
    write_metrics(path, metrics())
    assert not samples_path(path).exists()  # the old samples went with the old metrics
    samples_path(path).write_bytes(theirs)
    with pytest.raises(UserError, match="does not belong to the metrics beside it"):
        read_metrics(path)
    samples_path(path).write_bytes(theirs[:50])
    with pytest.raises(UserError, match="is damaged"):
        read_metrics(path)


def test_every_metric_gives_samples_whose_error_is_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (40, 8, 8), generator=generator)
    guess = torch.where(torch.rand(40, 8, 8, generator=generator) < 0.7, labels, torch.zeros_like(labels))
    segmentation, depth = Segmentation(3), Depth(pool="pixel")
    segmentation.update(guess[:20], labels[:20])
    segmentation.update(guess[20:], labels[20:])
    metres = torch.rand(40, 8, 8, generator=generator) + 1
    metres[7] = 0  # nothing to score there
    depth.update(metres + 0.1 * torch.randn(40, 8, 8, generator=generator), metres)
    errors = torch.rand(30, 5, generator=generator)
    found = {
        "miou": segmentation.scores()["miou"],
        "rmse": depth.scores()["rmse"],
        "top1": top1(guess[:, 0, 0], labels[:, 0, 0]),
        "class": mean_class_accuracy(guess[:, 0, 0], labels[:, 0, 0], 3),
        "recall": recall_at(errors, errors < 0.9, [0.5])[0.5],
        "pck": pck(errors.flatten(), torch.full((150,), 3.0), pairs=torch.arange(30).repeat_interleave(5)),
    }
    for name, score in found.items():
        assert score.samples is not None, name
        own = score.samples.scores
        assert float(own.std(ddof=1)) / len(own) ** 0.5 == pytest.approx(score.stderr, rel=1e-9), name
    assert found["rmse"].samples is not None and 7 not in found["rmse"].samples.units.tolist()
    assert len(found["rmse"].samples.units) == 39


def test_pseudo_values_of_a_mean_are_the_samples_themselves() -> None:
    values = torch.tensor([0.0, 1, 1, 0, 1], dtype=torch.float64)
    score = clustered_mean(values, None, scale=100.0)
    assert isinstance(score.samples, Samples) and np.allclose(score.samples.scores, 100 * values.numpy())
    assert jackknife(torch.stack([values, torch.ones(5)], 1), mean_at(0, weight=1))[0] == pytest.approx(0.6)


def test_tables_mark_what_is_real_and_say_what_hangs_on_one_metric() -> None:
    table = build_table({"base": [row("b", 0, 0.0)], "better": [row("a", 0, 0.4)]}, "base")
    cell = table.to_dict()["rows"]["better"][DELTA_M]
    assert cell["is_real"] is True and cell["paired"] is True
    assert "rows compared sample by sample" in caption(table)
    without = table.to_dict()["delta_m_without"]["better"]
    better = table.rows["better"].columns
    assert without["3d/depth/rmse"] == pytest.approx(better["classification"].value)
    assert without["classification/knn/top1"] == pytest.approx(better["3d"].value)
    assert "How much hangs on one metric: better +" in caption(table)
    assert "delta_m_is_real" in render(table, "csv") and ",true" in render(table, "csv")
    assert "°" in render(table, "md") and r"^{\circ}" in render(table, "tex")
    assert "sample by sample" in render(table, "html") and '"is_real": true' in render(table, "json")


def test_leave_one_metric_out_agrees_with_a_table_built_without_it() -> None:
    ours, theirs = metrics(change=5.0), metrics()
    changed = ours.results[2].model_copy(update={"value": 0.3})
    ours = ours.model_copy(update={"results": (*ours.results[:2], changed)})
    whole = compare(measure([ours], "a"), measure([theirs], "b"))
    for key, value in whole.without.items():
        rest = compare(measure([ours], "a"), measure([theirs], "b"), [key])
        assert value == pytest.approx(rest.columns[DELTA_M].value)
    assert whole.strongest is not None and whole.strongest[0] == ("nyudv2", "depth", "rmse")


def test_a_papers_table_is_imported_as_it_stands(tmp_path: Path) -> None:
    table = (
        "row,classification/knn/top1,3d/depth/rmse (-)\n"
        "base,80.0,0.50\n"
        "ours,84.0 ± 0.4,0.45 +- 0.01\n"
        "blind,82.0,\n"
    )  # fmt: skip
    path = tmp_path / "paper.csv"
    path.write_text(table, encoding="utf-8")
    rows = read_rows([str(path)])
    assert [result.stderr for result in rows["ours"][0].results] == [0.4, 0.01]
    assert [result.higher_is_better for result in rows["ours"][0].results] == [True, False]
    built = build_table({name: rows[name] for name in ("base", "ours")}, "base")
    assert built.rows["ours"].columns["classification"].value == pytest.approx(5.0)
    assert built.rows["ours"].columns["3d"].value == pytest.approx(10.0)
    assert [result.key[1] for result in rows["blind"][0].results] == ["knn"]
    path.write_text(table.replace("84.0", "many"), encoding="utf-8")
    with pytest.raises(UserError, match=r'line 3: classification/knn/top1 is "many ± 0.4", not a number'):
        read_rows([str(path)])
