"""What the launcher was told and the recipe says otherwise is refused."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
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


def test_another_process_that_cannot_be_met_is_said(tmp_path: Path) -> None:
    """The second of two, whose first is not there: nobody listens at that port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe(tmp_path) | {"engine": {"patience": 0.05}}))
    told = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "distill.run", str(recipe)]
    ended = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 2, ended.stderr
    assert "cannot be reached" in ended.stderr and f"They meet at 127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr
