"""The toy checks a probe suite has to pass: each on synthetic input, with the numbers worked out by hand.

Elsewhere: a linear map is learnt and batch normalisation keeps its statistics (test_linear_protocols), boundaries
shifted by a pixel (test_metrics_boundaries), Δm (test_delta_m), fidelity (tests/featsharp_adapter/test_fidelity.py).
"""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from toy_world import Constant, Squares, cells_of, probed

from common.errors import UserError
from eval_suite.metrics.answers import anls, mme_score, relaxed, soft_vqa
from eval_suite.metrics.classification import cosine_logits, knn_predict, top1, zero_shot_weights
from eval_suite.metrics.correspondence import pck, recall_at
from eval_suite.metrics.depth import Depth
from eval_suite.metrics.detection import LEVELS, SIZES, Boxes, box_ap, overlaps
from eval_suite.metrics.instance_retrieval import average_precision, mean_average_precision
from eval_suite.metrics.normals import Normals
from eval_suite.metrics.retrieval import recall_at_k
from eval_suite.metrics.saliency import Saliency
from eval_suite.metrics.segmentation import Segmentation
from eval_suite.probes.matching import match_pairs
from eval_suite.probes.probe3d_views import Probe3dViewsProbe
from eval_suite.probes.windows import slide, window_starts
from eval_suite.readers.contracts import ImagePairs, LabelledData, PairGeometry
from teachers.contracts import Features


def test_knn_close_votes_dominate_and_sklearn_agrees() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(4)
    bank = torch.eye(3)[labels] + 0.05 * torch.randn(12, 3, generator=generator)
    queries = torch.eye(3) + 0.05 * torch.randn(3, 3, generator=generator)
    assert knn_predict(bank, labels, queries, classes=3, k=10).tolist() == [0, 1, 2]  # k beyond the class size
    assert float(torch.tensor((1.0 - 0.5) / 0.07).exp()) == pytest.approx(1265, rel=0.01)
    bank, queries = torch.randn(80, 6, generator=generator), torch.randn(50, 6, generator=generator)
    labels = torch.randint(0, 4, (80,), generator=generator)
    outside = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(bank, labels)
    assert knn_predict(bank, labels, queries, classes=4, k=20).tolist() == outside.predict(queries.numpy()).tolist()


def test_zero_shot_prototypes_and_scale() -> None:
    weights = zero_shot_weights(torch.eye(4)[:, None].repeat(1, 3, 1))
    for scale in (0.01, 1.0, 100.0):
        predicted = cosine_logits(scale * torch.eye(4), weights).argmax(1)
        assert top1(predicted, torch.arange(4)).value == 100.0


def test_sliding_windows_start_where_they_should_and_cover_everything() -> None:
    assert window_starts(600, 512, 341) == [0, 88] and window_starts(800, 512, 341) == [0, 288]
    assert window_starts(512, 512, 341) == [0] and window_starts(300, 512, 341) == [0]
    asked = []

    def constant(window: torch.Tensor) -> torch.Tensor:
        asked.append(tuple(window.shape[-2:]))
        return torch.ones(1, 2, *window.shape[-2:])

    out = slide(constant, torch.zeros(3, 600, 800), 2, 512, 341, (600, 800))
    assert torch.allclose(out, torch.ones(2, 600, 800)) and asked == [(512, 512)] * 4
    asked.clear()
    slide(constant, torch.zeros(3, 300, 400), 2, 512, 341, (300, 400))
    assert asked == [(300, 300)] * 2  # both sides smaller than the crop: it shrinks to the shorter


def test_overlapping_windows_are_averaged() -> None:
    image = torch.arange(8.0).expand(3, 4, 8)
    out = slide(lambda window: window[:, :1] - window[:, :1].mean(), image, 1, 4, 2, (4, 8))
    expected = torch.tensor([-1.5, -0.5, -0.5, -0.5, -0.5 + 1, 1 - 0.5, 0.5, 1.5])
    by_hand = torch.zeros(8)
    count = torch.zeros(8)
    for start in (0, 2, 4):
        by_hand[start : start + 4] += torch.arange(4.0) - 1.5
        count[start : start + 4] += 1
    assert torch.allclose(out[0, 0], by_hand / count) and expected.shape == (8,)


def test_miou_of_the_hand_example() -> None:
    metric = Segmentation(3)
    metric.update(torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[[0, 0], [1, 255]]]))
    assert metric.scores()["miou"].value == pytest.approx(50.0)


def boxes(
    *corners: tuple[float, ...], score: tuple[float, ...] | None = None, crowd: tuple[bool, ...] | None = None
) -> Boxes:
    return Boxes(
        np.array(corners, dtype=float).reshape(-1, 4), np.zeros(len(corners), dtype=int),
        None if score is None else np.array(score), None if crowd is None else np.array(crowd),
    )  # fmt: skip


def test_average_precision_of_one_box() -> None:
    truth = boxes((0, 0, 100, 100))
    assert box_ap([boxes((0, 0, 100, 100), score=(0.9,))], [truth]).value == pytest.approx(100.0)
    shifted = boxes((0, 0, 62, 100), score=(0.9,))  # IoU 0.62: 0.50, 0.55 and 0.60 pass
    assert box_ap([shifted], [truth]).value == pytest.approx(30.0)
    assert box_ap([boxes(score=())], [truth]).value == 0.0
    assert set(SIZES) == {"all", "small", "medium", "large"} and len(LEVELS) == 10


def test_average_precision_counts_doubles_crowds_and_sizes() -> None:
    truth = boxes((0, 0, 100, 100))
    twice = boxes((0, 0, 100, 100), (0, 0, 100, 100), score=(0.9, 0.8))
    assert box_ap([twice], [truth]).value == pytest.approx(100.0)  # the double comes after full recall
    wrong_first = boxes((200, 200, 300, 300), (0, 0, 100, 100), score=(0.9, 0.8))
    assert box_ap([wrong_first], [truth]).value == pytest.approx(50.0)
    crowd = boxes((0, 0, 100, 100), (200, 200, 400, 400), crowd=(False, True))
    assert box_ap([wrong_first], [crowd]).value == pytest.approx(100.0)  # inside a crowd it is no mistake
    small = boxes((0, 0, 20, 20), (50, 50, 250, 250))
    said = boxes((0, 0, 20, 20), score=(0.5,))
    assert box_ap([said], [small], "small").value == pytest.approx(100.0)
    assert box_ap([said], [small], "large").value == 0.0
    with pytest.raises(UserError, match="no labelled box of size medium"):
        box_ap([said], [small], "medium")


def test_average_precision_interpolates_at_101_recalls() -> None:
    """Random hits and misses of one class, against precision at each recall found by looking at every rank."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        corners = [(20.0 * n, 0.0, 20.0 * n + 10, 10.0) for n in range(12)]
        kept = rng.random(12) < 0.6
        guesses = [c if keep else (c[0], 500.0, c[2], 510.0) for c, keep in zip(corners, kept, strict=True)]
        score = rng.random(12)
        value = box_ap([boxes(*guesses, score=tuple(score))], [boxes(*corners)]).value
        hits = kept[np.argsort(-score)]
        recall, precision = np.cumsum(hits) / 12, np.cumsum(hits) / np.arange(1, 13)
        best = [
            max([p for p, r in zip(precision, recall, strict=True) if r >= level - 1e-12], default=0.0)
            for level in np.linspace(0, 1, 101)
        ]
        assert value == pytest.approx(100 * np.mean(best))
        assert average_precision_score(hits, -np.arange(12)) >= 0  # the unlike rule: no interpolation


def test_overlap_of_boxes_agrees_with_torchvision() -> None:
    from torchvision.ops import box_iou

    generator = torch.Generator().manual_seed(0)
    low, sides = torch.rand(2, 9, 2, generator=generator) * 50
    corners = torch.cat([low, low + sides], 1)
    assert np.allclose(
        overlaps(corners.numpy(), corners.numpy()[:5], np.zeros(5, bool)),
        box_iou(corners, corners[:5]).numpy(),
        atol=1e-6,
    )


def test_depth_too_far_by_a_factor() -> None:
    truth = 1 + torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    for scale, plain, aligned in ((1.0, (100.0, 100.0), 100.0), (1.3, (0.0, 100.0), 100.0)):
        raw, fitted = Depth(), Depth(align="scale_shift")
        raw.update(scale * truth, truth)
        fitted.update(scale * truth, truth)
        found = raw.scores()
        assert (found["d1"].value, found["d2"].value) == plain
        assert fitted.scores()["d1"].value == aligned
    assert found["rmse"].value > 0


def test_normals_turned_by_twenty_degrees() -> None:
    truth = torch.zeros(1, 3, 4, 4)
    truth[:, 2] = -1
    turned = torch.zeros_like(truth)
    turned[:, 2], turned[:, 0] = -np.cos(np.radians(20)), np.sin(np.radians(20))
    metric = Normals()
    metric.update(turned, truth)
    found = {name: score.value for name, score in metric.scores().items()}
    assert found["recall_11.25"] == 0 and found["recall_22.5"] == 100
    assert found["rmse"] == pytest.approx(20.0) and found["mean"] == pytest.approx(20.0)


def test_correspondence_of_equal_features_and_of_shuffled_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 32, 8, 8, generator=generator)
    points = (torch.cartesian_prod(torch.arange(8), torch.arange(8)).flip(1) + 0.5).float()[None].repeat(2, 1, 1) * 4
    valid = torch.ones(2, 64, dtype=torch.bool)
    same = (match_pairs(maps, maps, points, 8, (32, 32)) - points).norm(dim=-1)
    assert all(score.value == 100 for score in recall_at(same, valid, (0.5, 2, 5)).values())
    shuffled = maps.flatten(2)[..., torch.randperm(64, generator=generator)].unflatten(2, (8, 8))
    lost = (match_pairs(maps, shuffled, points, 8, (32, 32)) - points).norm(dim=-1)
    assert recall_at(lost, valid, (0.5,))[0.5].value < 10


def test_pck_just_inside_and_just_outside() -> None:
    sides, pairs = torch.tensor([100.0, 100.0]), torch.tensor([0, 1])
    assert pck(torch.tensor([5.0, 5.0]), sides, pairs=pairs).value == 100
    assert pck(torch.tensor([15.0, 15.0]), sides, pairs=pairs).value == 0


def test_recall_at_one_with_five_captions_an_image() -> None:
    owner = torch.arange(10).repeat_interleave(5)
    similarity = torch.eye(10)[:, owner].clone()
    found = recall_at_k(similarity, owner, 1)
    assert found.text_to_image.value == found.image_to_text.value == 100
    similarity[3, 0] = 2.0  # one caption of image 0 now prefers image 3
    similarity[3, 15] = 3.0  # which still has a caption of its own in front
    found = recall_at_k(similarity, owner, 1)
    assert found.text_to_image.value == pytest.approx(98.0) and found.image_to_text.value == 100


def test_revisited_average_precision_is_by_trapezoids() -> None:
    assert average_precision(torch.tensor([0, 2]), 2) == pytest.approx(0.7917, abs=1e-4)  # at the hits: 0.8333
    assert average_precision(torch.tensor([], dtype=torch.int64), 2) == 0


def test_junk_is_taken_out_of_the_ranking() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    positive, nothing = torch.tensor([[False, True, False, True]]), torch.zeros(1, 4, dtype=torch.bool)
    junk = torch.tensor([[True, False, False, False]])
    assert mean_average_precision(similarity, positive, junk).value == pytest.approx(79.17, abs=0.01)
    assert mean_average_precision(similarity, positive, nothing).value < 60
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):  # against the definition, rank by rank
        scores, relevant = torch.rand(6, 30, generator=generator), torch.rand(6, 30, generator=generator) < 0.2
        relevant[:, 0] = True
        junk = (torch.rand(6, 30, generator=generator) < 0.2) & ~relevant
        expected = []
        for query in range(6):
            order = [g for g in scores[query].argsort(descending=True).tolist() if not junk[query, g]]
            hits = np.array([bool(relevant[query, g]) for g in order])
            precision = np.concatenate([[1.0], np.cumsum(hits) / np.arange(1, len(hits) + 1)])
            recall = np.concatenate([[0.0], np.cumsum(hits) / hits.sum()])
            expected.append(np.trapezoid(precision, recall))
        assert mean_average_precision(scores, relevant, junk).value == pytest.approx(100 * np.mean(expected))
    with pytest.raises(UserError, match="no query has a positive"):
        mean_average_precision(similarity, nothing, nothing)


def test_answers_of_the_hand_examples() -> None:
    assert anls(["hallo", "xyz"], [["hello"], ["hello"]]).tolist() == [0.8, 0.0]
    assert relaxed(["104", "106", "50%", "0.5"], ["100", "100", "0.5", "50%"]).tolist() == [1, 0, 1, 1]
    assert mme_score(torch.tensor([1, 1]), torch.tensor([0, 0])).value == 200
    assert mme_score(torch.tensor([1, 0]), torch.tensor([0, 0])).value == 50


def test_saliency_with_the_doubled_sigmoid() -> None:
    target = torch.zeros(1, 10, 10, dtype=torch.int64)
    target[:, :3] = 1
    for variant in ("plain", "mlore"):
        sure = Saliency(variant=variant)
        sure.update(target.float(), target)
        assert sure.scores()["maxf"].value == pytest.approx(100.0)
        flat = Saliency(variant=variant)
        flat.update(torch.full((1, 10, 10), 0.9), target)
        assert flat.scores()["maxf"].value == pytest.approx(100 * 1.3 * 0.3 / (0.3 * 0.3 + 1), abs=0.01)


class SameWorld(LabelledData):
    """Two views from one place: what a cell of the first shows, the same cell of the second shows."""

    name = "same"

    def pairs(self, split: str) -> ImagePairs:
        y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        points = torch.stack([0.1 * x, 0.1 * y, torch.ones(8, 8)], -1)  # 10 cm apart, 1 m away
        known = PairGeometry(points, points, torch.eye(4), torch.eye(3))
        views = [Squares(name, cells_of(2, 0)) for name in ("first", "second")]
        nothing = torch.zeros(2, 1, 2)
        return ImagePairs(*views, nothing, nothing, nothing[..., 0] == 0, (32, 32), lambda row, cells: known)


class Marks(Constant):
    """A random vector for each of 8x8 cells; shuffled over the cells in the views of the second set."""

    def __init__(self, shuffled: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(32, 64, generator=generator)
        self.second = self.first[:, torch.randperm(64, generator=generator)] if shuffled else self.first
        self.asked = 0

    def forward(self, images: torch.Tensor) -> Features:
        self.asked += 1
        maps = (self.first if self.asked == 1 else self.second).unflatten(1, (8, 8))
        return Features(None, maps.expand(len(images), -1, -1, -1))


def test_equal_features_at_one_pose_and_shuffled_ones_in_centimetres() -> None:
    task = Probe3dViewsProbe(probe="probe3d_views", name="v", data="same", cells=8, kept=64, pixels=(1.0,))
    same = task.run(probed(Marks(shuffled=False)), SameWorld(), 0)
    assert {result.metric for result in same} == {"recall_1cm", "recall_2cm", "recall_5cm", "recall_1px"}
    assert all(result.value == 100 for result in same)
    lost = {result.metric: result.value for result in task.run(probed(Marks(shuffled=True)), SameWorld(), 0)}
    assert lost["recall_2cm"] < 10  # chance is one of 64


def test_vqa_accuracy_leaves_one_person_out() -> None:
    for equal, value in ((2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)):
        assert soft_vqa(["cat"], [["cat"] * equal + ["dog"] * (10 - equal)]).tolist() == [pytest.approx(value)]
