"""Determinism, absent capabilities, and the small pieces of the probes."""

import math

import pytest
import torch
import torch.nn.functional as F
from toy_world import GRID, SIZE, Constant, Dumb, Oracle, ToyData, probed

from common.errors import UserError
from eval_suite.maps import resize_map
from eval_suite.probes.classification import KnnProbe, ZeroShotProbe
from eval_suite.probes.correspondence import KeypointProbe, draw_pairs
from eval_suite.probes.dense import SegmentationProbe
from eval_suite.probes.geometry import DepthProbe, ValidDepth
from eval_suite.probes.heads import LinearHead, Standardise, batches
from eval_suite.probes.losses import balanced_loss, class_loss, depth_loss, normal_loss
from eval_suite.probes.matching import match_pairs
from eval_suite.probes.multitask import MultitaskProbe
from eval_suite.probes.retrieval import RetrievalProbe
from eval_suite.probes.ridge import fit_ridge
from eval_suite.probes.vlm_model import (
    ANSWER,
    END,
    NO_TARGET,
    UNKNOWN,
    Prompts,
    VisionLanguageModel,
    Vocabulary,
    encode_questions,
    right_answers,
)
from eval_suite.readers.contracts import KeypointObject, LabelledData
from eval_suite.text import AbsentError, text_path
from teachers.contracts import Features

SHORT = {"steps": 5, "batch": 4, "label_size": 8}


@pytest.fixture(scope="module")
def data() -> ToyData:
    return ToyData(train=16, test=8)


def segmentation() -> SegmentationProbe:
    return SegmentationProbe(probe="segmentation", name="s", data="toy", labels="semantic", learning_rate=0.05, **SHORT)


def multitask(**changes: object) -> MultitaskProbe:
    fields = {"tasks": {"semantic": 1, "depth": 1}, "hidden": 8, **SHORT, **changes}
    return MultitaskProbe(probe="multitask", name="m", group="nyudv2", data="toy", **fields)


@pytest.mark.parametrize("probe", [segmentation(), multitask()], ids=["segmentation", "multitask"])
def test_same_seed_same_numbers_whatever_the_global_state(probe: SegmentationProbe, data: ToyData) -> None:
    torch.manual_seed(1)
    first = probe.run(probed(Oracle()), data, seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert probe.run(probed(Oracle()), data, seed=3) == first
    assert torch.equal(torch.get_rng_state(), state)
    other = probe.run(probed(Oracle()), data, seed=4)
    assert [result.value for result in other] != [result.value for result in first]


def test_knn_wants_a_summary_unless_told_otherwise(data: ToyData) -> None:
    strict = KnnProbe(probe="knn", name="k", data="toy", k=3)
    with pytest.raises(AbsentError, match="no summary"):
        strict.run(probed(Dumb()), data, 0)
    told = KnnProbe(probe="knn", name="k", data="toy", k=3, vector="summary_or_mean")
    assert len(told.run(probed(Dumb()), data, 0)) == 1


@pytest.mark.parametrize(
    "probe",
    [
        ZeroShotProbe(probe="zero_shot", name="z", data="toy", templates=("a {}",)),
        RetrievalProbe(probe="retrieval", name="r", data="toy"),
    ],
    ids=["zero_shot", "retrieval"],
)
def test_no_text_tower_is_absent_with_a_reason(probe: ZeroShotProbe, data: ToyData) -> None:
    with pytest.raises(AbsentError, match="no text tower"):
        probe.run(probed(Dumb()), data, 0)


class Student(Dumb):
    """A backbone with heads: `clip` doubles as an oracle, `mute` has no text tower, others are unknown."""

    def adaptor(self, name: str) -> object:
        if name not in ("clip", "mute"):
            raise UserError(f'no head "{name}"; it has: clip, mute')
        return _Head() if name == "clip" else _Mute()


class _Mute:
    name = "mute"

    def project(self, features: Features) -> Features:
        return Features(features.spatial.mean((2, 3)), features.spatial)


class _Head(_Mute):
    name = "clip"

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return torch.eye(6)[: len(texts)]


def test_a_student_speaks_through_its_adaptor() -> None:
    table = probed(Student()).features(ToyData(train=4).sources["train"])
    path = text_path(probed(Student()), "clip")
    assert torch.allclose(path.images(table).norm(dim=1), torch.ones(4))
    assert path.texts(["a", "b"]).shape == (2, 6)


@pytest.mark.parametrize(("head", "reason"), [("siglip", "no head"), ("mute", "no text tower")])
def test_a_missing_adaptor_is_absent_with_a_reason(head: str, reason: str) -> None:
    with pytest.raises(AbsentError, match=reason):
        text_path(probed(Student()), head)


def test_class_prototypes_average_unit_vectors() -> None:
    class Scaled(Oracle):
        def encode_text(self, texts: list[str]) -> torch.Tensor:
            out = torch.zeros(len(texts), 64)
            for row, text in enumerate(texts):
                out[row, 0 if "long" in text else 1] = 100.0 if "long" in text else 1.0
            return out

    path = text_path(probed(Scaled()), "clip")
    prototype = path.classes(["red"], ["a long {}", "a {}"])
    assert torch.allclose(prototype[0, :2], torch.full((2,), math.sqrt(0.5)))


def test_data_without_a_kind_of_label_says_so() -> None:
    class Bare(LabelledData):
        name = "bare"

    with pytest.raises(UserError, match='data "bare" has no captions'):
        RetrievalProbe(probe="retrieval", name="r", data="bare").run(probed(Oracle()), Bare(), 0)


def test_unknown_label_or_group_names_those_that_exist(data: ToyData) -> None:
    probe = SegmentationProbe(probe="segmentation", name="s", data="toy", labels="semantik", **SHORT)
    with pytest.raises(UserError, match=r'no "semantik" labels.*semantic'):
        probe.run(probed(Oracle()), data, 0)
    with pytest.raises(UserError, match=r'no group "odd".*even'):
        multitask(subset="odd").run(probed(Oracle()), data, 0)
    with pytest.raises(UserError, match='group "none" is empty'):
        multitask(subset="none").run(probed(Oracle()), data, 0)


def test_a_subset_sees_only_its_images(data: ToyData) -> None:
    whole, even = data.dense("test"), data.dense("test").subset("even")
    assert even.rows.tolist() == [0, 2, 4, 6]
    rows = torch.tensor([1, 3])
    assert torch.equal(even.labels("semantic")[rows], whole.labels("semantic")[torch.tensor([2, 6])])
    results = multitask(subset="even").run(probed(Oracle()), data, 0)
    assert {result.n for result in results} == {4}


def test_probes_take_any_token_grid() -> None:
    """The same features on a coarser or an oblong grid still give numbers."""

    class Oblong(Dumb):
        def forward(self, images: torch.Tensor) -> Features:
            return Features(None, resize_map(super().forward(images).spatial, (2, 3)))

    data = ToyData(train=16, test=8)
    depth = DepthProbe(probe="depth", name="d", data="toy", fit_size=4)
    for probe in (
        segmentation(),
        multitask(),
        depth,
        KeypointProbe(probe="keypoints", name="k", data="toy", smallest=1),
    ):
        assert all(math.isfinite(result.value) for result in probe.run(probed(Oblong()), data, 0))


def test_batches_are_full_and_cover_everything() -> None:
    seen = list(batches(10, 4, 5, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in seen] == [4] * 5
    assert sorted(torch.cat(seen).tolist()) == sorted(list(range(10)) * 2)
    assert len(next(batches(3, 8, 1, torch.Generator()))) == 3


def test_linear_head_is_normalisation_then_one_convolution() -> None:
    spatial = 5 + 3 * torch.randn(20, 6, 4, 4)
    head = LinearHead(spatial, 2)
    normal = Standardise(spatial)(spatial)
    assert torch.allclose(normal.mean((0, 2, 3)), torch.zeros(6), atol=1e-5)
    assert torch.allclose(normal.std((0, 2, 3)), torch.ones(6), atol=1e-3)
    assert head(spatial, (8, 8)).shape == (20, 2, 8, 8)


def test_a_channel_that_was_dead_in_training_says_nothing_later() -> None:
    """As of a ReLU that fires on test images alone: what rounding left of it must not become its unit."""
    torch.manual_seed(0)
    spatial = torch.randn(6, 4, 5, 5)
    spatial[:, 2] = 1e-7 * torch.randn(6, 5, 5)
    normalise = Standardise(spatial)
    alive = normalise(spatial + 6.0 * torch.tensor([0.0, 0.0, 1.0, 0.0]).view(1, 4, 1, 1))
    assert torch.equal(alive, normalise(spatial)) and (alive[:, 2] == 0).all()
    assert torch.isfinite(Standardise(torch.ones(2, 3, 4, 4))(spatial[:, :3])).all()  # nothing varies at all


def test_ridge_finds_a_linear_map_and_leaves_invalid_pixels_out() -> None:
    generator = torch.Generator().manual_seed(0)
    spatial = torch.randn(40, 5, 4, 4, generator=generator)
    truth = torch.randn(5, 2, generator=generator)
    targets = torch.einsum("bchw,ct->bthw", spatial, truth) + 7.0
    masks = torch.rand(40, 4, 4, generator=generator) > 0.3
    poisoned = torch.where(masks[:, None], targets, torch.tensor(1e4))
    head = fit_ridge(spatial, poisoned, masks, (4, 4))
    assert torch.allclose(head.predict(spatial, (4, 4)), targets, atol=1e-2)


def test_ridge_agrees_with_scikit_learn() -> None:
    """On features and targets at token resolution the normal equations are plain ridge regression."""
    from sklearn.linear_model import Ridge

    generator = torch.Generator().manual_seed(1)
    spatial = torch.randn(40, 5, 4, 4, generator=generator)
    targets = spatial[:, :1] * 2 + torch.randn(40, 1, 4, 4, generator=generator)
    head = fit_ridge(spatial, targets, torch.ones(40, 4, 4), (4, 4))
    flat = Standardise(spatial)(spatial).movedim(1, -1).flatten(0, 2).numpy()
    outside = Ridge(alpha=head.penalty * len(flat)).fit(flat, targets.flatten().numpy()).predict(flat)
    assert torch.allclose(head.predict(spatial, (4, 4)).flatten(), torch.from_numpy(outside).float(), atol=1e-4)


def test_valid_depth_is_positive() -> None:
    assert ValidDepth(torch.tensor([[[0.0, 2.0]]]))[torch.tensor([0])].tolist() == [[[False, True]]]


def test_losses_leave_out_what_does_not_count() -> None:
    logits = torch.tensor([[[[5.0, -5.0]], [[-5.0, 5.0]]]])
    assert float(class_loss(logits, torch.tensor([[[0, 255]]], dtype=torch.uint8))) < 1e-3
    assert float(depth_loss(torch.tensor([[[[3.0, 9.0]]]]), torch.tensor([[[2.0, 0.0]]]))) == pytest.approx(1.0)
    normals = torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]]])
    assert float(normal_loss(torch.tensor([[[[4.0, 1.0]], [[0.0, 5.0]], [[0.0, 0.0]]]]), normals)) == pytest.approx(0.0)


def test_balanced_loss_weighs_both_classes_the_same() -> None:
    labels = torch.tensor([[[1, 0, 0, 0, 0, 0, 0, 0, 0, 255]]], dtype=torch.uint8)
    wrong_positive = torch.full((1, 1, 1, 10), -2.0)
    wrong_negative = torch.full((1, 1, 1, 10), 2.0)
    assert float(balanced_loss(wrong_positive, labels)) == pytest.approx(float(balanced_loss(wrong_negative, labels)))


def test_identical_views_match_everywhere() -> None:
    spatial = F.normalize(torch.randn(2, 32, GRID, GRID, generator=torch.Generator().manual_seed(0)), dim=1)
    points = torch.tensor([[[4.0, 12.0], [28.0, 4.0]], [[12.0, 12.0], [20.0, 28.0]]])
    assert torch.equal(match_pairs(spatial, spatial, points, GRID, (SIZE, SIZE)), points)


def test_of_equally_similar_places_the_first_is_taken() -> None:
    """Enlarging 2 cells to 8 copies the outermost ones: two columns and two rows are exactly alike in each corner."""
    spatial = torch.eye(4).view(1, 4, 2, 2)
    corners = torch.tensor([[[4.0, 4.0], [28.0, 4.0], [4.0, 28.0], [28.0, 28.0]]])
    found = match_pairs(spatial, spatial, corners, 8, (32, 32))
    assert found.tolist() == [[[2.0, 2.0], [26.0, 2.0], [2.0, 26.0], [26.0, 26.0]]]


def test_pairs_are_of_one_kind_in_different_images_and_share_points() -> None:
    box = (0.0, 0.0, 10.0, 4.0)
    objects = [
        KeypointObject(0, "cone", {"tip": (1.0, 1.0)}, box),
        KeypointObject(1, "cone", {"tip": (1.0, 1.0), "foot": (2.0, 2.0)}, box),
        KeypointObject(1, "cone", {"foot": (2.0, 2.0)}, box),
        KeypointObject(2, "cone", {"tip": (1.0, 1.0)}, (0.0, 0.0, 3.0, 3.0)),
        KeypointObject(3, "box", {"tip": (1.0, 1.0)}, box),
    ]
    drawn = draw_pairs(objects, smallest=5, count=10, seed=0)
    assert {(source.row, target.row) for _, source, target in drawn} == {(0, 1), (1, 0)}
    assert all(source.kind == target.kind == "cone" for _, source, target in drawn)
    assert len(draw_pairs(objects, smallest=1, count=2, seed=0)) == 2


def test_nothing_to_match_is_an_error(data: ToyData) -> None:
    probe = KeypointProbe(probe="keypoints", name="k", data="toy", smallest=100)
    with pytest.raises(UserError, match="no two objects"):
        probe.run(probed(Constant()), data, 0)


def test_questions_become_tokens_and_targets() -> None:
    vocabulary = Vocabulary(["what is it ?", "a box", "cone"])
    prompts = encode_questions(vocabulary, [("what is it?", "a box"), ("what?", "cone")])
    names = [[vocabulary.words[token] for token in row] for row in prompts.tokens.tolist()]
    assert names[0] == ["what", "is", "it", "?", "<answer>", "a", "box"]
    assert names[1] == ["what", "?", "<answer>", "cone", "<pad>", "<pad>", "<pad>"]
    asked = [[t for t in row if t != NO_TARGET] for row in prompts.targets.tolist()]
    assert [[vocabulary.words[t] for t in row] for row in asked] == [["a", "box", "<end>"], ["cone", "<end>"]]
    assert prompts.tokens[0, 4] == ANSWER and prompts.targets[0, 6] == END
    assert vocabulary.encode("zebra") == [UNKNOWN]


def test_an_answer_is_right_only_if_every_word_is() -> None:
    targets = torch.tensor([[[NO_TARGET, 5, 3], [NO_TARGET, UNKNOWN, 3]]])
    logits = F.one_hot(torch.tensor([[[0, 5, 3], [0, UNKNOWN, 3]]]), 8).float()
    assert right_answers(logits, targets).tolist() == [[True, False]]
    logits[0, 0, 2] = F.one_hot(torch.tensor(4), 8).float()
    assert right_answers(logits, targets).tolist() == [[False, False]]


def test_questions_of_one_image_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    spatial = torch.randn(2, 6, 5, 7)
    model = VisionLanguageModel(spatial, 20, side=2, merge=2, width=32, layers=2, longest=6).eval()
    tokens = torch.randint(4, 20, (2, 3, 6))
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] - 3) % 16 + 4
    alone = tokens[:, 1:2]
    with torch.no_grad():
        before, after, single = (model(spatial, Prompts(t, t)) for t in (tokens, changed, alone))
        moved = model(spatial.flip(0), Prompts(tokens, tokens))
    assert torch.allclose(before[:, 1:], after[:, 1:], atol=1e-5)
    assert torch.allclose(before[:, 1], single[:, 0], atol=1e-5)
    assert not torch.allclose(before[:, 0], after[:, 0], atol=1e-3)
    assert not torch.allclose(before, moved, atol=1e-4)  # and they do see the image


def test_questions_of_any_length_are_answered_as_if_alone() -> None:
    """Padding is left out before the model sees it; one question at a time, without any, is the slow twin."""
    torch.manual_seed(0)
    spatial = torch.randn(2, 6, 5, 7)
    model = VisionLanguageModel(spatial, 20, side=2, merge=2, width=32, layers=2, longest=6).eval()
    tokens = torch.randint(4, 20, (2, 3, 6))
    for image, asked, length in ((0, 0, 2), (0, 2, 4), (1, 0, 5), (1, 1, 1), (1, 2, 3)):
        tokens[image, asked, length:] = 0
    logits = model(spatial, Prompts(tokens, tokens))
    weights = torch.randn(logits.shape) * (tokens != 0)[..., None]
    together = torch.autograd.grad((logits * weights).sum(), list(model.parameters()))
    total = torch.zeros(())
    for image in range(2):
        for asked in range(3):
            words = tokens[image, asked][tokens[image, asked] != 0]
            one = model(spatial[image : image + 1], Prompts(words[None, None], words[None, None]))[0, 0]
            torch.testing.assert_close(logits[image, asked, : len(words)], one, atol=1e-5, rtol=1e-5)
            assert not logits[image, asked, len(words) :].any()
            total = total + (one * weights[image, asked, : len(words)]).sum()
    for ours, twin in zip(together, torch.autograd.grad(total, list(model.parameters())), strict=True):
        # Sums in another order: within 1e-5 of each gradient's largest value, on every processor tried.
        torch.testing.assert_close(ours, twin, atol=1e-5 * max(1.0, float(twin.abs().max())), rtol=1e-4)
