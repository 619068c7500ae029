"""What the launcher was told and the recipe says otherwise is refused."""

import pytest
from small_run import small_recipe

from common.errors import UserError
from common.recipes import validate
from distill.recipe import Recipe
from distill.training.engine import refuse_launch_options


def test_a_recipe_that_says_the_same_is_no_contradiction(monkeypatch: pytest.MonkeyPatch) -> None:
    def recipe(**more: object) -> dict[str, Recipe]:
        data = small_recipe(None)  # type: ignore[arg-type]
        data["out"], data["optim"] = "runs", data["optim"] | more.pop("optim", {})  # type: ignore[operator]
        data["engine"] = data["engine"] | more.pop("engine", {})  # type: ignore[operator]
        return {"a": validate(Recipe, data, "test")}

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    refuse_launch_options(recipe(engine={"precision": "bf16"}))
    with pytest.raises(UserError, match=r"set engine\.precision instead"):
        refuse_launch_options(recipe(engine={"precision": "fp32"}))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    refuse_launch_options(recipe(optim={"accumulate": 2}))
    with pytest.raises(UserError, match=r"set optim\.accumulate instead"):
        refuse_launch_options(recipe())
