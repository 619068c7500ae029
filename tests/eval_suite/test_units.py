"""The error is over what was drawn: objects rather than their pairs, sequences rather than their frames."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from eval_suite.metrics.correspondence import pck
from eval_suite.metrics.score import cluster_rows, clustered_mean, mean_at, score_of
from eval_suite.readers.navi import NaviNode
from eval_suite.readers.revisited import RevisitedNode
from eval_suite.readers.rgbd_pairs import RgbdPairsNode, ScanNet1500Node
from eval_suite.results import Result
from eval_suite.sample_scores import Samples, by_unit
from eval_suite.units import UnitRule, units_of_files


def pck_of_drawn_objects(seed: int, *, shared: bool) -> tuple[float, float]:
    """PCK and its error on 200 pairs of 15 objects, whose own ease decides most of whether a point is found."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(size=15)
    ends = torch.from_numpy(rng.integers(0, 15, size=(200, 2)))
    chance = 1 / (1 + np.exp(-2 * (ease[ends[:, 0]] + ease[ends[:, 1]])))
    found = torch.from_numpy(rng.random((200, 8)) < chance[:, None])
    pairs = torch.arange(200).repeat_interleave(8)
    errors = 1.0 - found.flatten().double()
    score = pck(errors, torch.ones(1600), pairs=pairs, alpha=0.5, ends=ends if shared else None)
    return score.value, score.stderr or 0.0


def test_the_error_of_pck_is_the_spread_over_drawn_objects() -> None:
    found = [pck_of_drawn_objects(seed, shared=True) for seed in range(120)]
    spread = float(np.std([value for value, _ in found]))
    printed = float(np.sqrt(np.mean([error**2 for _, error in found])))
    by_pairs = float(np.sqrt(np.mean([pck_of_drawn_objects(seed, shared=False)[1] ** 2 for seed in range(20)])))
    assert spread == pytest.approx(printed, rel=0.25)
    assert spread > 2.5 * by_pairs  # what was printed before


def test_frames_of_a_sequence_are_one_draw() -> None:
    """Samples of frames, added up by sequence, give the jackknife over whole sequences."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=40).repeat(25)
    rows = torch.from_numpy(np.stack([np.exp(level + 0.2 * rng.normal(size=1000)), np.ones(1000)], 1))
    sequence = torch.arange(40).repeat_interleave(25)
    statistic = mean_at(0, weight=1, root=True)
    frames = score_of(rows, statistic, 1000)
    exact = score_of(cluster_rows(rows, sequence), statistic, 1000)
    assert frames.samples is not None and frames.stderr is not None
    samples, stderr = by_unit(frames.samples, frames.value, sequence.numpy())
    assert samples is not None and len(samples.units) == 40
    assert stderr == pytest.approx(exact.stderr, rel=0.05) and stderr > 2.6 * frames.stderr
    assert float(samples.scores.mean()) == pytest.approx(frames.value)


def test_one_sequence_says_nothing_of_others() -> None:
    assert by_unit(Samples(np.arange(5), np.random.default_rng(0).random(5)), 0.5, np.zeros(5, np.int64)) == (
        None,
        None,
    )


def test_a_result_is_told_its_units_and_pairs_only_with_equal_ones() -> None:
    score = clustered_mean(torch.arange(6), None)
    result = Result.of(score, group="g", task="t", metric="m")
    frames, sequences = result.scored_on("set"), result.scored_on("set", "sequence", np.array([0, 0, 1, 1, 2, 2]))
    assert (frames.unit, frames.units, sequences.unit, sequences.units) == ("image", 6, "sequence", 3)
    assert frames.samples and sequences.samples and frames.samples.test_set != sequences.samples.test_set


@pytest.mark.parametrize(
    ("node", "path", "unit"),
    [
        (ScanNet1500Node, "scannet_test_1500/scene0707_00/color/15.jpg", ("scene", "scene0707")),
        (NaviNode, "3d_dollhouse_sink/wild_set/images/000.jpg", ("object", "3d_dollhouse_sink")),
        (RevisitedNode, "jpg/all_souls_000013.jpg", ("landmark", "all_souls")),
        (RevisitedNode, "jpg/paris_defense_000605.jpg", ("landmark", "paris_defense")),
        (RgbdPairsNode, "seq-01/frame-000001.color.png", ("sequence", "seq-01/")),
        (RgbdPairsNode, "frame-000001.color.png", ("sequence", "")),
    ],
)
def test_published_layouts_know_their_unit(node: type, path: str, unit: tuple[str, str]) -> None:
    rule = node.layout_unit
    found = re.search(rule.pattern, path)
    assert found is not None and (rule.name, found[1]) == unit


def test_a_users_rule_is_checked_and_must_fit_every_file() -> None:
    rule = UnitRule(name="video", pattern=r"(.+)_\d+\.png$")
    root = Path("/data")
    units = units_of_files(rule, [root / "a_1.png", root / "b_1.png", root / "a_2.png"], root)
    assert units.of.tolist() == [0, 1, 0] and units.name == "video"
    with pytest.raises(UserError, match=r"does not fit c\.png"):
        units_of_files(rule, [root / "c.png"], root)
    for pattern in ("no group", "(two)(groups)", "(unclosed"):
        with pytest.raises(ValueError, match=r"group|regular expression"):
            UnitRule(name="video", pattern=pattern)
