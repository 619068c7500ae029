"""What a result is known by: a record and a receipt are of one suite, whatever field of it changes."""

from pathlib import Path
from typing import Any

import pytest

from eval_suite.recorded import _prefix
from eval_suite.suite import load_suite

SUITES = Path(__file__).parents[2] / "recipes" / "suites"
FILES = ("embedded", "embedded_debug", "upsampler", "vlm")


def changed(value: Any) -> Any:
    """Another value of the same kind; the key does not ask whether it makes sense."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list | tuple):
        return [*value, 1]
    if isinstance(value, dict):
        return {**value, "x": 1}
    return 1


@pytest.mark.parametrize("file", FILES)
def test_every_field_of_every_probe_and_of_the_data_makes_another_key(file: str) -> None:
    suite = load_suite(SUITES / f"{file}.yaml")
    keys = {_prefix(suite)}
    count = 1
    nodes = [("probes", name, node) for name, node in suite.probes.items()]
    nodes += [("data", name, node) for name, node in suite.data.items()]
    for where, name, node in nodes:
        for field in type(node).model_fields:
            other = node.model_copy(update={field: changed(getattr(node, field))})
            nodes_there = {**getattr(suite, where), name: other}
            keys.add(_prefix(suite.model_copy(update={where: nodes_there})))
            count += 1
    for field in ("name", "seed", "batch_size"):
        keys.add(_prefix(suite.model_copy(update={field: changed(getattr(suite, field))})))
        count += 1
    assert len(keys) == count > 20


def test_a_language_model_that_changed_in_its_folder_is_another_one(tmp_path: Path) -> None:
    from eval_suite.vlm.language import language_digest
    from eval_suite.vlm.recipe import VlmRecipe

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "tokenizer.json").write_text("{}")
    node = VlmRecipe.model_validate(
        {"language_model": str(tmp_path), "tune": "none", "stage1": {"data": "a", "prompt": "v1"}}
    )
    digests = [language_digest(node)]
    for name, content in (("model.safetensors", b"Weights"), ("tokenizer.json", b"[]"), ("config.json", b"{}")):
        (tmp_path / name).write_bytes(content)
        digests.append(language_digest(node))
    assert len(set(digests)) == 4
