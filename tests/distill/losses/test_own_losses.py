"""A user's own loss, by dotted path: trained with like ours, and told what is missing where it is wrong."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_run import small_recipe, train

from common.errors import UserError
from common.jsonl import read_log
from common.recipes import validate
from distill.losses.conformance import check_loss
from distill.losses.losses import cosine, hybrid, mse, position_loss, spatial_loss, summary_loss
from distill.preflight import find_missing
from distill.recipe import Recipe
from distill.recipe_training import LossNode

LOSSES = """
import torch.nn.functional as F


def l1(student, teacher):
    return F.l1_loss(student, teacher)


def l1_at_positions(student, teacher):
    return (student - teacher).abs().mean(1)


l1.positions = l1_at_positions


def far(student, teacher):
    return 1 - F.cosine_similarity(student, teacher).mean()


def of_one(student):
    return student.mean()


def map_of(student, teacher):
    return (student - teacher).abs().mean(1)
"""


@pytest.fixture(autouse=True)
def my_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_losses.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(str(tmp_path))


def node(**fields: object) -> LossNode:
    return validate(LossNode, fields, "loss")


def test_the_named_function_is_the_loss() -> None:
    one, other = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    chosen = node(spatial="class:my_losses.l1", summary="class:my_losses.far")
    assert torch.equal(spatial_loss(chosen)(one, other), F.l1_loss(one, other))
    assert torch.equal(position_loss(chosen)(one, other), (one - other).abs().mean(1))
    vectors = one[..., 0, 0], other[..., 0, 0]
    assert torch.allclose(summary_loss(chosen, None)(*vectors), cosine(*vectors))


@pytest.mark.parametrize("spatial", ["class:my_losses.nothing", "class:my_losses.F", "class:my_losses.of_one"])
def test_what_is_no_loss_is_refused(spatial: str) -> None:
    with pytest.raises(UserError, match="my_losses"):
        spatial_loss(node(spatial=spatial))


def test_a_loss_that_gives_a_map_is_told_so() -> None:
    chosen = spatial_loss(node(spatial="class:my_losses.map_of"))
    with pytest.raises(UserError, match=r"my_losses.map_of gave \[2, 4, 4\]; a loss takes .* gives a scalar"):
        chosen(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4))


def test_a_wrong_loss_is_found_before_the_first_image(tmp_path: Path) -> None:
    plain = small_recipe(tmp_path) | {"loss": {"spatial": "class:my_losses.of_one"}}
    (missing,) = find_missing([validate(Recipe, plain, "recipe")])
    assert missing.what.startswith("loss.spatial: class:my_losses.of_one: ") and "a loss takes" in missing.what


def test_unknown_names_and_missing_positions() -> None:
    with pytest.raises(UserError, match=r'unknown loss "hybird" .did you mean "hybrid"'):
        node(spatial="hybird")
    with pytest.raises(UserError, match="has no `positions`"):
        position_loss(node(spatial="class:my_losses.far"))


def test_the_checks_that_users_call() -> None:
    for good in (mse, hybrid):
        check_loss(good)
    check_loss(cosine, summary=True)
    for bad, message in (
        (lambda s, t: (s - t).square().sum(), "no mean over the batch"),
        (lambda s, t: (s - t).square(), "one number"),
        (lambda s, t: -(s - t).square().mean(), "no smaller loss"),
        (lambda s, t: 0 * s.mean(), "no finite gradient"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_loss(bad)


@pytest.mark.parametrize("shift", [False, True])
def test_a_student_learns_by_it(tmp_path: Path, shift: bool) -> None:
    recipe = small_recipe(tmp_path)
    recipe["optim"] |= {"steps": 2, "warmup_steps": 0}
    recipe["loss"] = {"spatial": "class:my_losses.l1", "shift": shift}
    by_l1 = read_log(train(validate(Recipe, recipe, "test")) / "log.jsonl")
    recipe |= {"loss": {"spatial": "mse", "shift": shift}, "name": "other"}
    by_mse = read_log(train(validate(Recipe, recipe, "test")) / "log.jsonl")
    assert by_l1[0]["losses"]["coarse/summary"] == by_mse[0]["losses"]["coarse/summary"]
    assert by_l1[0]["losses"]["coarse/spatial"] != by_mse[0]["losses"]["coarse/spatial"]
