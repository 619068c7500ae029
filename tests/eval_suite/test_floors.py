"""Every metric knows what an answer scores that has not seen the image: a constant lands there."""

import math
from types import SimpleNamespace

import pytest
import torch
from test_probes_ceiling_and_floor import PROBES
from toy_world import Constant, ToyData, probed

from eval_suite.metrics.answer_rules import RULES, blind_replies, score_replies
from eval_suite.metrics.blind import MapTally
from eval_suite.metrics.boundaries import Boundaries
from eval_suite.metrics.classification import top_k
from eval_suite.metrics.depth import Depth
from eval_suite.metrics.normals import Normals
from eval_suite.metrics.saliency import Saliency
from eval_suite.metrics.score import Tally

#: what a constant backbone's trained head says is the constant that the floor is of, on labels it was trained on
EXACT = {"miou", "semantic_miou", "saliency_maxf", "mean", "normals_mean", "depth_rmse"}


class Learnt(ToyData):
    """Judged on what was learnt, so that the best constant of one is that of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.sources["test"] = self.sources["train"]


@pytest.mark.parametrize("name", list(PROBES))
def test_a_constant_backbone_lands_at_the_floor(name: str) -> None:
    for result in PROBES[name].run(probed(Constant()), Learnt(), seed=0):
        assert result.floor is not None, result.metric
        if result.metric in EXACT or result.metric.startswith(("text_to", "image_to")):
            assert result.value == pytest.approx(result.floor, rel=0.02), result.metric
        elif name == "vlm":  # it does see which square is asked about
            assert result.value == pytest.approx(result.floor, abs=12)
        elif result.higher_is_better:
            assert result.value <= result.floor + 1e-6, result.metric
        else:
            assert result.value >= result.floor - 1e-6, result.metric


def labels(channels: int, seed: int = 0) -> torch.Tensor:
    """Maps [6, C, 16, 16] with some pixels that do not count."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand(6, channels, 16, 16, generator=generator) * 4 + 0.5
    if channels == 3:
        found = torch.nn.functional.normalize(found - 2, dim=1)
    return found * (torch.rand(6, 1, 16, 16, generator=generator) > 0.1)


@pytest.mark.parametrize("pool", ["pixel", "image"])
@pytest.mark.parametrize("align", ["none", "scale_shift"])
def test_no_constant_depth_is_better_than_the_floor(pool: str, align: str) -> None:
    truth = labels(1)[:, 0]
    floors = floors_of(Depth(pool=pool, align=align), truth.clone(), truth)  # type: ignore[arg-type]
    for metres in torch.linspace(0.3, 5, 48).tolist():
        blind = Depth(pool=pool, align=align)  # type: ignore[arg-type]
        blind.update(torch.full_like(truth, metres), truth)
        for key, score in blind.scores().items():
            higher, slack = key in ("d1", "d2", "d3"), 0.04 * floors[key]  # the floor tries twenty constants
            assert (score.value < floors[key] + slack) if higher else (score.value > floors[key] - slack), (key, metres)
    mean = Depth(pool="pixel")
    mean.update(torch.full_like(truth, float(truth[truth > 0].mean())), truth)
    if (pool, align) == ("pixel", "none"):
        assert mean.scores()["rmse"].value == pytest.approx(floors["rmse"], rel=1e-6)
        assert floors["rmse"] == pytest.approx(float(truth[truth > 0].std(correction=0)), rel=1e-6)


@pytest.mark.parametrize("pool", ["pixel", "image"])
def test_no_constant_normal_is_better_than_the_floor(pool: str) -> None:
    truth = labels(3)
    truth[:4, :, :12] = torch.tensor([0.0, 0.6, 0.8]).view(1, 3, 1, 1)  # a floor that most pixels see
    floors = floors_of(Normals(pool=pool), truth.clone(), truth)  # type: ignore[arg-type]
    for turn in range(60):
        direction = torch.randn(3, generator=torch.Generator().manual_seed(turn))
        direction = torch.tensor([0.0, 0.6, 0.8]) if not turn else direction
        blind = Normals(pool=pool)  # type: ignore[arg-type]
        blind.update(direction.view(1, 3, 1, 1).expand_as(truth), truth)
        for key, score in blind.scores().items():
            lower = key in ("mean", "rmse")
            assert (score.value > floors[key] * 0.97) if lower else (score.value < floors[key] * 1.03 + 1), key


def floors_of(metric: MapTally, said: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """The floors after two batches, one of them from another tally."""
    other = metric.fresh()
    judged = [metric, other]
    for part, one in enumerate(judged):
        rows = slice(3 * part, 3 * part + 3)
        one.update(said[rows], truth[rows])  # type: ignore[attr-defined]
    metric.merge(other)
    found = {name: score.floor for name, score in metric.scores().items()}
    assert all(floor is not None and math.isfinite(floor) for floor in found.values())
    return {name: float(floor or 0.0) for name, floor in found.items()}


@pytest.mark.parametrize("make", [Saliency, Boundaries])
def test_one_strength_everywhere_is_the_floor_of_saliency_and_boundaries(make: type[Tally]) -> None:
    truth = torch.zeros(3, 40, 48, dtype=torch.uint8)
    truth[:, 10:14, 5:30], truth[0, :, 20], truth[1, :5] = 1, 1, 255
    metric = make()  # type: ignore[call-arg]
    metric.update(torch.full(truth.shape, 0.5), truth)  # type: ignore[attr-defined]
    (score,) = metric.scores().values()
    assert score.floor is not None and 0 < score.floor < 60
    assert score.value == pytest.approx(score.floor)


def test_the_most_frequent_classes_are_the_floor_of_the_first_k() -> None:
    truth = torch.tensor([0, 0, 0, 1, 1, 2])
    assert top_k(torch.tensor([[3.0, 2.0, 1.0]]).repeat(6, 1), truth, 2).value == pytest.approx(500 / 6)
    assert top_k(torch.randn(6, 3), truth, 2).floor == pytest.approx(500 / 6)


def asked(rule: str) -> list[SimpleNamespace]:
    """Nine questions that the rule understands."""
    words = {"pope": "yes no", "pope_llava": "yes no", "mme": "Yes No", "anls": "hello world"}
    letters = ("letter", "letter_or_exact", "ai2d", "seed", "mmmu")
    said = words.get(rule, "A B" if rule in letters else "12 red").split()
    kind = "existence" if rule == "mme" else "any"
    options = ("cat", "dog", "cow") if rule in letters else ()
    out = []
    for at in range(9):
        answer = said[at % 3 == 0]
        others = (answer,) * 9 if rule == "vqa" else ()  # ten people each
        out.append(SimpleNamespace(row=at // 2, kind=kind, answer=answer, others=others, options=options))
    return out


@pytest.mark.parametrize("rule", list(RULES))
def test_one_reply_to_everything_lands_at_the_floor_of_every_rule(rule: str) -> None:
    questions = asked(rule)
    answers = sorted({item.answer for item in questions})
    constant = [score_replies(rule, [answer] * 9, questions) for answer in answers]
    right = score_replies(rule, [item.answer for item in questions], questions)
    for name, score in right.items():
        best = max(found[name].value for found in constant)
        assert score.floor == best == blind_replies(rule, questions)[name]
        assert 0 < best < score.value
