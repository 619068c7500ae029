"""The reference page of recipes and suites: every field says what it means."""

import pytest
from pydantic import BaseModel

from tools.docs.recipe_reference import ROOTS, fields_of, nodes_below, reference


@pytest.mark.parametrize("root", [root for root, _ in ROOTS.values()], ids=lambda root: root.__name__)
def test_every_field_has_a_meaning(root: type[BaseModel]) -> None:
    silent = [
        f"{node.__name__}.{field.name}" for node in nodes_below(root) for field in fields_of(node) if not field.comment
    ]
    assert not silent, "say what it means in a `#:` comment"


def test_every_field_stands_once() -> None:
    for root, _ in ROOTS.values():
        for node in nodes_below(root):
            names = [field.name for field in fields_of(node)]
            assert sorted(names) == sorted(node.model_fields), node.__name__


def test_the_page_shows_type_default_and_meaning() -> None:
    page = reference()
    assert "| `batch_size` | `Count` | required | over all processes |" in page
    assert "| `optim` | `OptimNode` | required | The optimiser," in page
