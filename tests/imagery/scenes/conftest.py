"""Scenes that several tests look at, drawn once."""

import sys
from pathlib import Path

import pytest

from imagery.scenes import Scene, render_scene

sys.path.insert(0, str(Path(__file__).parent))  # for solids.py beside the tests


@pytest.fixture(scope="session")
def many() -> list[Scene]:
    """A hundred and sixty scenes at 112 pixels."""
    return [render_scene(21, index, 112, 112) for index in range(160)]


@pytest.fixture(scope="session")
def few() -> list[Scene]:
    """Eight scenes at 160 pixels with their second view."""
    return [render_scene(33, index, 160, 160, second_view=True) for index in range(8)]
