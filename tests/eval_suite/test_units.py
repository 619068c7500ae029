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


def test_a_list_names_the_scenes_of_numbered_images(tmp_path: Path) -> None:
    """NYUv2's labelled images are numbered; which scene each is of stands in the data set's own table."""
    listed = tmp_path / "scenes.txt"
    listed.write_bytes("\ufeff0001\tkitchen_0004\r\n0002\tkitchen_0004\r\n\r\n0003\toffice_0001\r\n".encode())
    files = [tmp_path / "images" / f"{name}.png" for name in ("0003", "0001", "0002")]
    rule = UnitRule(name="scene", list="scenes.txt")
    found = units_of_files(rule, files, tmp_path)
    assert found.name == "scene" and found.of.tolist() == [0, 1, 1]
    with pytest.raises(UserError, match="does not name 0009"):
        units_of_files(rule, [tmp_path / "0009.png"], tmp_path)
    for wrong, said in (("0001 kitchen\n", "line 1: an image, a tab"), ("a\tb\na\tc\n", "a stands there twice")):
        listed.write_text(wrong)
        with pytest.raises(UserError, match=said):
            units_of_files(rule, files, tmp_path)
    with pytest.raises(UserError, match="cannot read the list"):
        units_of_files(UnitRule(name="scene", list="none.txt"), files, tmp_path)
    for fields in ({}, {"pattern": "(a)", "list": "b"}):
        with pytest.raises(ValueError, match="one of them"):
            UnitRule(name="scene", **fields)
