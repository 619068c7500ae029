"""Typed recipes: every room reads its YAML through here.

A recipe is YAML with an optional `extends:` (a path, or a list of paths, relative to the file), dotted overrides on the
command line where `*` stands for every key of a mapping, and one pydantic schema whose unknown keys are errors that
suggest the nearest name.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import UserError, nearest
from common.shipped import find_recipe


class Node(BaseModel):
    """Base of every recipe node: unknown keys are errors, values are not changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


N = TypeVar("N", bound=Node)


def read_recipe(path: str | Path, overrides: Sequence[str] = (), files: Sequence[str] = ()) -> dict[str, Any]:
    """The plain mapping of a recipe file, its parents merged under it and the overrides laid over it.

    files: dotted fields that name another recipe file. A relative name is looked for beside the file that states it,
    else (as an override's) seen from the working directory, else among those that ship.
    """
    data = _read(find_recipe(path), (), files)
    for override in overrides:
        apply_override(data, override)
    for field in files:
        if (named := _get(data, field)) is not None:
            apply_override(data, f"{field}={json.dumps(str(find_recipe(named)))}")
    return data


def load_recipe(schema: type[N], path: str | Path, overrides: Sequence[str] = ()) -> N:
    """`read_recipe`, validated."""
    return validate(schema, read_recipe(path, overrides), str(path))


def validate(schema: type[N], data: Any, source: str) -> N:
    """Build `schema` from plain data; UserError names the field, the file, and the nearest known name."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            word = str(first["loc"][-1])
            hint = nearest(word, _known_fields(schema, first["loc"][:-1]))
            raise UserError(f'{source}: unknown field "{where}"{hint}') from error
        raise UserError(f"{source}: {where or 'recipe'}: {first['msg']} (got {first['input']!r:.80})") from error


def dump(node: Node) -> str:
    """A resolved recipe as YAML that loads back to the same node."""
    return yaml.safe_dump(node.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in place; the value is YAML; `*` stands for every key of the mapping it meets."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise UserError(f'an override is path=value, got "{override}"')
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f'override "{override}": the value is not YAML') from error
    if not _set(data, path.split("."), value):
        raise UserError(f'override "{override}": "*" meets no entries there')


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, mappings merged key by key, everything else replaced."""
    out = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def _read(path: Path, seen: tuple[Path, ...], files: Sequence[str]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path}: extends itself through {' -> '.join(str(p) for p in seen)}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read recipe {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no mapping; a recipe is `field: value` lines")
    for field in files:
        if (named := _get(data, field)) is not None and (path.parent / named).is_file():
            apply_override(data, f"{field}={json.dumps(str(path.parent / named))}")
    parents = data.pop("extends", None) or []
    merged: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = merge(merged, _read(path.parent / parent, (*seen, path), files))
    return merge(merged, data)


def _get(data: Any, field: str) -> str | None:
    """The text in a dotted field, None where there is none."""
    for part in field.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data if isinstance(data, str) else None


def _set(data: dict[str, Any], parts: list[str], value: Any) -> bool:
    head, rest = parts[0], parts[1:]
    keys = list(data) if head == "*" else [head]
    hit = False
    for key in keys:
        if not rest:
            data[key] = value
            hit = True
            continue
        child = data.get(key)
        if not isinstance(child, dict):
            if head == "*":
                continue
            child = data[key] = {}
        hit = _set(child, rest, value) or hit
    return hit


def _known_fields(schema: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Field names of the node at `location`, found by walking the annotations; [] where that is not possible."""
    models = [schema]
    for part in location:
        inner: list[type[BaseModel]] = []
        for model in models:
            field = model.model_fields.get(str(part))
            inner += _models_in(field.annotation) if field else [model]
        models = inner
    return [name for model in models for name in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)]
