"""The reference of recipes and suites as Markdown, made from the schema: every field, its type, default and comment.

    python -m tools.docs.recipe_reference > recipes.md      (`make docs` puts it into the site)

Fields are documented where they are declared, by a `#:` comment; this reads the source, so that nothing is said twice.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from common.recipes import Node
from distill.recipe import Recipe
from eval_suite.suite import Suite
from featsharp_adapter.recipe import AdapterRecipe

ROOTS: dict[str, tuple[type[BaseModel], str]] = {
    "A distillation": (Recipe, "`distill/run.py` and `distill/ablate.py`; shipped ones lie in `recipes/`."),
    "An adapter": (
        AdapterRecipe,
        "`featsharp_adapter/train.py` and `compare`; shipped ones lie in `recipes/adapters/`.",
    ),
    "A suite": (
        Suite,
        "`python -m eval_suite run`, and a recipe's `eval.suite`; shipped ones lie in `recipes/suites/`.",
    ),
}


@dataclass(frozen=True)
class FieldLine:
    """One field as it stands in the source."""

    name: str
    kind: str
    default: str
    comment: str


def reference() -> str:
    """The whole page."""
    parts = [
        "# Recipes and suites",
        "",
        "Every field that a YAML file may have. An unknown field is an error that names the nearest one.",
        "",
    ]
    for title, (root, where) in ROOTS.items():
        parts += [f"## {title}", "", f"Read by {where}", ""]
        for node in nodes_below(root):
            parts += section(node)
    return "\n".join(parts)


def nodes_below(root: type[BaseModel]) -> list[type[BaseModel]]:
    """The node and all nodes that its fields can hold, each once, in reading order."""
    found: list[type[BaseModel]] = []
    waiting = [root]
    while waiting:
        node = waiting.pop(0)
        if node in found:
            continue
        found.append(node)
        for field in node.model_fields.values():
            waiting += list(models_in(field.annotation))
    return found


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Node classes anywhere in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def section(node: type[BaseModel]) -> list[str]:
    """A heading, the class's own words, and a table of its fields."""
    lines = [f"### {node.__name__}", "", inspect.cleandoc(node.__doc__ or "").split("\n\n")[0].replace("\n", " "), ""]
    rows = [
        f"| `{field.name}` | {_code(field.kind)} | {_code(field.default) or 'required'} | {field.comment} |"
        for field in fields_of(node)
    ]
    return lines + (["| field | type | default | |", "|---|---|---|---|", *rows, ""] if rows else [])


def fields_of(node: type[BaseModel]) -> list[FieldLine]:
    """The fields of a node, its parents' first, each once; one that is declared again keeps its parents' comment."""
    found: dict[str, FieldLine] = {}
    for owner in reversed([base for base in node.__mro__ if issubclass(base, Node) and base is not Node]):
        for field in _declared(owner):
            if field.name in node.model_fields:
                before = found.get(field.name)
                comment = field.comment or (before.comment if before else "") or _of_type(node, field.name)
                found[field.name] = replace(field, comment=comment)
    return list(found.values())


def _declared(owner: type[BaseModel]) -> Iterator[FieldLine]:
    """The fields that this class itself declares."""
    source = textwrap.dedent(inspect.getsource(owner))
    lines = source.splitlines()
    body = next(part for part in ast.parse(source).body if isinstance(part, ast.ClassDef)).body
    for statement in body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            default = "" if statement.value is None else _default(ast.unparse(statement.value))
            kind = ast.unparse(statement.annotation)
            yield FieldLine(statement.target.id, kind, default, _comment(lines, statement))


def _of_type(node: type[BaseModel], name: str) -> str:
    """What the type says: a node's own first line; a name that only this kind of node has."""
    annotation = node.model_fields[name].annotation
    below = models_in(annotation)
    if len(below) == 1:
        return _escaped(inspect.cleandoc(below[0].__doc__ or "").splitlines()[0])
    if get_origin(annotation) is Literal and len(get_args(annotation)) == 1:
        return "says that it is of this kind"
    return ""


def _default(text: str) -> str:
    """`Field(0.5, gt=0)` -> `0.5, gt=0`; `Field(gt=0)` has no default; other values as they are."""
    if not text.startswith("Field("):
        return text
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    values = [ast.unparse(argument) for argument in call.args if ast.unparse(argument) != "..."]
    named = {str(keyword.arg): ast.unparse(keyword.value) for keyword in call.keywords}
    start = values or [named.pop(key) for key in ("default", "default_factory") if key in named]
    named.pop("description", None)
    return ", ".join(start + [f"{key}={value}" for key, value in named.items()]) if start else ""


def _comment(lines: list[str], statement: ast.stmt) -> str:
    """The `#:` comment at the end of a field's last line, or on the lines above it."""
    _, mark, text = lines[(statement.end_lineno or statement.lineno) - 1].partition("#:")
    if mark:
        return _escaped(text)
    above: list[str] = []
    row = statement.lineno - 2
    while row >= 0 and lines[row].strip().startswith("#:"):
        above.insert(0, lines[row].strip().removeprefix("#:").strip())
        row -= 1
    return _escaped(" ".join(above))


def _escaped(text: str) -> str:
    return text.strip().replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{_escaped(text)}`" if text else ""


if __name__ == "__main__":
    print(reference())
