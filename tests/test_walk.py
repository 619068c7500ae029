"""docs/walk.md names files and functions that exist, and the way to a loss is five files."""

import ast
import itertools
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEP = re.compile(r"^\d+\. `([\w/]+\.py)` `(\w+)`", re.MULTILINE)


def walks() -> dict[str, list[tuple[str, str]]]:
    """Title -> (file, name) of every step."""
    _, *parts = (ROOT / "docs" / "walk.md").read_text(encoding="utf-8").split("\n## ")
    return {part.splitlines()[0]: STEP.findall(part) for part in parts}


def test_every_file_and_name_exists() -> None:
    assert [len(steps) for steps in walks().values()] == [5, 5, 3, 4]
    for steps in walks().values():
        for file, name in steps:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
            assert name in defined, file


def test_each_file_on_the_way_to_a_loss_imports_the_next() -> None:
    steps = [file for file, _ in walks()["From a recipe to a loss: five files"]]
    for file, following in itertools.pairwise(steps):
        module = following.removesuffix(".py").replace("/", ".")
        assert f"from {module} import" in (ROOT / file).read_text(encoding="utf-8"), f"{file} -> {following}"
