"""maxF against torchmetrics' curve, and the published variant with its second sigmoid."""

import pytest
import torch
from torchmetrics.classification import BinaryPrecisionRecallCurve

from common.errors import UserError
from eval_suite.metrics.saliency import BETA_SQUARED, THRESHOLDS, Saliency


def maxf(probability: torch.Tensor, target: torch.Tensor, variant: str = "plain") -> float:
    metric = Saliency(variant=variant)  # type: ignore[arg-type]
    metric.update(probability, target)
    return metric.scores()["maxf"].value


def maps(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(5, 8, 8, generator=generator) < 0.3).long()
    probability = (0.25 * target + 0.75 * torch.rand(target.shape, generator=generator)).double()
    return probability, target


def outside_maxf(probability: torch.Tensor, target: torch.Tensor) -> float:
    curve = BinaryPrecisionRecallCurve(thresholds=THRESHOLDS)
    precision, recall, _ = curve(probability, target)
    precision, recall = precision[:-1], recall[:-1]
    f = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
    return 100 * float(f.nan_to_num(0.0).max())  # nan: nothing found at that threshold


@pytest.mark.parametrize("seed", range(4))
def test_plain_equals_torchmetrics(seed: int) -> None:
    probability, target = maps(seed)
    assert maxf(probability, target) == pytest.approx(outside_maxf(probability, target), rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_published_variant_is_the_plain_one_after_a_sigmoid(seed: int) -> None:
    """torchmetrics applies no sigmoid to values in [0, 1], so the second sigmoid is ours to apply."""
    probability, target = maps(seed)
    assert maxf(probability, target, "mlore") == pytest.approx(outside_maxf(probability.sigmoid(), target), rel=1e-5)


def test_published_variant_can_only_try_five_thresholds() -> None:
    """Salient at 0.19, the rest at 0.10: the plain meter separates them, the published one cannot."""
    target = (torch.arange(100) < 30).long().view(1, 10, 10)
    probability = torch.where(target == 1, 0.19, 0.10)
    assert maxf(probability, target) == pytest.approx(100.0)
    assert maxf(probability, target, "mlore") == pytest.approx(35.78, abs=0.01)


@pytest.mark.parametrize("variant", ["plain", "mlore"])
def test_toy_values(variant: str) -> None:
    target = (torch.arange(100) < 30).long().view(1, 10, 10)
    assert maxf(target.double(), target, variant) == pytest.approx(100.0)
    flat = 1.3 * 0.3 * 1 / (0.3 * 0.3 + 1)
    assert maxf(torch.full((1, 10, 10), 0.9), target, variant) == pytest.approx(100 * flat)


def test_ignored_pixels_have_no_influence() -> None:
    probability, target = maps()
    ignored = torch.cat([target, torch.full_like(target, 255)], 2)
    doubled = torch.cat([probability, 1 - probability], 2)
    assert maxf(doubled, ignored) == pytest.approx(maxf(probability, target))


def test_logits_are_refused() -> None:
    probability, target = maps()
    with pytest.raises(UserError, match="probabilities"):
        maxf(8 * probability - 4, target)
