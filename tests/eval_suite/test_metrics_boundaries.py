"""odsF: against brute-force matching on small maps, and the toy checks."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial.distance import cdist

from common.errors import UserError
from eval_suite.metrics.boundaries import NYUD, PASCAL, Boundaries, f_scores, suppressed
from eval_suite.metrics.pairing import Pairing
from eval_suite.metrics.thinning import thin, thin_levels


def brute_matches(drawn: np.ndarray, lines: np.ndarray, reach: float) -> int:
    """Most one-to-one pairs within reach, from the whole distance table."""
    left, right = np.argwhere(drawn), np.argwhere(lines)
    if not len(left) or not len(right):
        return 0
    distance = np.linalg.norm(left[:, None] - right[None], axis=-1)
    rows, columns = linear_sum_assignment(distance <= reach + 1e-9, maximize=True)
    return int((distance[rows, columns] <= reach + 1e-9).sum())


def thin_by_hand(mask: np.ndarray) -> np.ndarray:
    """Guo and Hall's two passes, pixel by pixel."""
    out = np.pad(mask.astype(int), 1)  # integers: the sum of two numpy truths is a truth, not 2
    while True:
        before = out.copy()
        for first in (True, False):
            gone = []
            for r in range(1, out.shape[0] - 1):
                for c in range(1, out.shape[1] - 1):
                    e, ne, n, nw = out[r, c + 1], out[r - 1, c + 1], out[r - 1, c], out[r - 1, c - 1]
                    w, sw, s, se = out[r, c - 1], out[r + 1, c - 1], out[r + 1, c], out[r + 1, c + 1]
                    crossings = (
                        (not e and (ne or n)) + (not n and (nw or w)) + (not w and (sw or s)) + (not s and (se or e))
                    )
                    pairs = min(
                        (e or ne) + (n or nw) + (w or sw) + (s or se), (ne or n) + (nw or w) + (sw or s) + (se or e)
                    )
                    side = ((ne or n or not se) and e) if first else ((sw or s or not nw) and w)
                    if out[r, c] and crossings == 1 and 2 <= pairs <= 3 and not side:
                        gone.append((r, c))
            for place in gone:
                out[place] = 0
        if (out == before).all():
            return out[1:-1, 1:-1] == 1


def random_maps(seed: int, side: int = 14) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    strength = rng.random((side, side)) * (rng.random((side, side)) < 0.5)
    return strength, (rng.random((side, side)) < 0.25).astype(np.int64)


@pytest.mark.parametrize("seed", range(12))
def test_matching_agrees_with_brute_force(seed: int) -> None:
    strength, lines = random_maps(seed)
    reach = (0.5, 1.0, 1.5, 2.3)[seed % 4]
    pairing = Pairing(lines == 1, strength > 0, reach)
    for threshold in (0.0, 0.3, 0.6, 0.95, 0.4):
        drawn = strength > threshold
        assert pairing.matched(drawn) == brute_matches(drawn, lines == 1, reach)


@pytest.mark.parametrize("seed", range(8))
def test_pairing_drawing_after_drawing_agrees_with_scipy(seed: int) -> None:
    """Crowded maps, and long lines along which a pair too few has to be looked for far away."""
    rng = np.random.default_rng(seed)
    if seed % 2:
        possible, lines = rng.random((2, 50, 50)) < 0.3
    else:
        possible, lines = np.zeros((2, 9, 160), dtype=bool)
        lines[4], possible[4], possible[6] = True, rng.random(160) < 0.8, rng.random(160) < 0.2
    reach = (2.3, 1.0, 2.3, 3.1)[seed // 2]
    places, labels = np.argwhere(possible), np.argwhere(lines)
    near = csr_matrix(cdist(places, labels) <= reach + 1e-9)
    pairing = Pairing(lines, possible, reach)
    for share in (0.9, 0.8, 0.95, 0.5, 1.0, 0.1):
        drawn = rng.random(len(places)) < share
        wanted = int((maximum_bipartite_matching(near[drawn], perm_type="column") >= 0).sum())
        picture = np.zeros_like(possible)
        picture[tuple(places[drawn].T)] = True
        assert pairing.matched(picture) == wanted


def test_nothing_to_pair_is_no_pair() -> None:
    empty, full = np.zeros((5, 6), dtype=bool), np.ones((5, 6), dtype=bool)
    assert Pairing(empty, full, 2.0).matched(full) == 0
    assert Pairing(full, empty, 2.0).matched(empty) == 0
    assert Pairing(full, full, 2.0).matched(full) == 30


@pytest.mark.parametrize("seed", range(4))
def test_odsf_agrees_with_brute_force(seed: int) -> None:
    levels = (0.1, 0.4, 0.7)
    metric = Boundaries(farthest=0.1, thresholds=levels)
    sums = np.zeros(12)
    for image in range(3):
        strength, lines = random_maps(10 * seed + image)
        metric.update(torch.from_numpy(strength)[None], torch.from_numpy(lines)[None])
        top, label = suppressed(strength), thin_by_hand(lines == 1)
        drawn = [thin_by_hand(top > level) for level in levels]
        reach = 0.1 * np.hypot(*strength.shape)
        hits = [brute_matches(d, label, reach) for d in drawn]
        sums += [*hits, *(d.sum() for d in drawn), *hits, *[label.sum()] * 3]
    assert np.array_equal(metric.rows[:, :12].sum(0).numpy(), sums)  # behind them is what drawing everything gives
    hit, found, _, labelled = np.split(sums, 4)
    best = max(2 * h / (f + n) for h, f, n in zip(hit, found, labelled, strict=True))
    assert metric.scores()["odsf_py"].value == pytest.approx(100 * best)


@pytest.mark.parametrize("seed", range(6))
def test_thinning_agrees_with_pixel_by_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((18, 15)) < (0.3, 0.5, 0.8)[seed % 3]
    assert np.array_equal(thin(mask), thin_by_hand(mask))


@pytest.mark.parametrize("count", [1, 40, 64, 101])
def test_thinning_all_levels_at_once_agrees_with_one_by_one(count: int) -> None:
    levels = np.random.default_rng(count).integers(0, count + 1, (21, 17))
    at_once = thin_levels(levels, count)
    assert at_once.shape == (count, 21, 17)
    for level in range(0, count, max(1, count // 6)):
        assert np.array_equal(at_once[level], thin_by_hand(levels > level))


def test_thinning_leaves_lines_and_keeps_the_pieces() -> None:
    from scipy.ndimage import label

    block = np.zeros((30, 40), dtype=bool)
    block[5:12, 3:35] = True
    block[20:27, 8:30] = True
    lines = thin(block)
    assert label(lines, np.ones((3, 3)))[1] == 2 and lines.sum() < 80
    once = np.zeros((9, 9), dtype=bool)
    once[4, 1:8] = True
    assert np.array_equal(thin(once), once)


def circle(shape: tuple[int, int], shift: int = 0) -> torch.Tensor:
    y, x = np.mgrid[: shape[0], : shape[1]]
    ring = np.abs(np.hypot(y - shape[0] / 2, x - shape[1] / 2 - shift) - min(shape) / 3) < 0.5
    return torch.from_numpy(thin(ring).astype(np.float32))[None]


@pytest.mark.parametrize(("shape", "farthest", "within"), [((512, 512), PASCAL, 5), ((425, 560), NYUD, 7)])
def test_a_perfect_line_scores_100_and_so_does_one_shifted_within_reach(
    shape: tuple[int, int], farthest: float, within: int
) -> None:
    """0.0075 x 724 = 5.4 px at 512 x 512; 0.011 x 703 = 7.7 px at 425 x 560."""
    for shift, wanted in ((0, 100.0), (1, 100.0), (within, 100.0), (60, 40.0)):
        metric = Boundaries(farthest=farthest, thresholds=(0.5,), suppress=False)
        metric.update(circle(shape, shift), circle(shape).long())
        value = metric.scores()["odsf_py"].value
        assert value == pytest.approx(100.0, abs=0.5) if wanted == 100.0 else value < wanted


def test_one_prediction_is_not_matched_twice() -> None:
    """Two label lines within reach of one predicted line: recall one half, not one."""
    target = torch.zeros(1, 40, 40, dtype=torch.int64)
    target[0, 10:30, 18] = target[0, 10:30, 22] = 1
    drawn = torch.zeros(1, 40, 40)
    drawn[0, 10:30, 20] = 1.0
    metric = Boundaries(farthest=3 / np.hypot(40, 40), thresholds=(0.5,), suppress=False)
    metric.update(drawn, target)
    assert metric.scores()["odsf_py"].value == pytest.approx(100 * 2 * 0.5 / 1.5)


def test_suppression_thins_a_blurred_line_to_its_ridge() -> None:
    y = np.arange(40)[:, None] + np.zeros((1, 40))
    ridge = suppressed(np.exp(-((y - 20.0) ** 2) / 8))
    assert (ridge[20] > 0.9).all() and (ridge[[17, 18, 22, 23]] == 0).all()


def test_constant_maps_and_ignored_pixels() -> None:
    target = circle((64, 64)).long()
    nothing = Boundaries(thresholds=(0.5,))
    nothing.update(torch.zeros(1, 64, 64), target)
    assert nothing.scores()["odsf_py"].value == 0
    hidden = target.clone()
    hidden[0, :, 32:] = 255
    half = Boundaries(thresholds=(0.5,), suppress=False)
    half.update(circle((64, 64)), hidden)
    assert half.scores()["odsf_py"].value > 95  # what lies where the label is unknown is no mistake
    assert float(f_scores(torch.zeros(4)).max()) == 0
    with pytest.raises(UserError, match="sigmoid"):
        nothing.update(torch.full((1, 64, 64), 3.0), target)


def test_every_drawing_judges_by_itself() -> None:
    """The benchmark's counts, by hand: a line that one of two people drew is right, and half of the lines are found."""
    first, second = torch.zeros(2, 1, 40, 40, dtype=torch.uint8)
    first[0, 10], second[0, 30] = 1, 1
    nobody = torch.full((1, 40, 40), 255, dtype=torch.uint8)
    people = torch.stack([first[0], second[0], nobody[0]])[None]
    metric = Boundaries(suppress=False, thresholds=(0.5,))
    metric.update((first == 1).float(), people)
    assert metric.rows[:, :4].tolist() == [[40, 40, 40, 80]]
    assert metric.scores()["odsf_py"].value == pytest.approx(100 * 2 * 0.5 / 1.5)
    both = Boundaries(suppress=False, thresholds=(0.5,))
    both.update(((first + second) == 1).float(), people)
    assert both.scores()["odsf_py"].value == pytest.approx(100)  # all that is said was drawn by one of them
    alone, plain = (Boundaries(suppress=False, thresholds=(0.5,)) for _ in range(2))
    alone.update((first == 1).float(), people[:, :1])
    plain.update((first == 1).float(), first)
    assert alone.rows.tolist() == plain.rows.tolist()
