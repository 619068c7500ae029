"""Fixtures of the room: a small random teacher, and the same random numbers for every test."""

import pytest
import torch
from small_teacher import SmallTeacher


@pytest.fixture
def teacher() -> SmallTeacher:
    return SmallTeacher()


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
