"""Fixtures of the small run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_run import small_recipe, train

from distill.recipe import read


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write the small recipe, changed by keyword, as a file."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(small_recipe(tmp_path / "runs") | changes), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished small run, shared by the tests that only look at it."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(small_recipe(folder / "runs")), encoding="utf-8")
    return train(read(path), export_untrained=True)
