"""Typed recipes: every room reads its YAML through here.

A recipe is YAML with an optional `extends:` (a path, or a list of paths, relative to the file), dotted overrides on the
command line where `*` stands for every key of a mapping, and one pydantic schema whose unknown keys are errors that
suggest the nearest name.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import UserError, nearest
from common.plain_yaml import check_plain, parse_yaml, read_yaml
from common.shipped import find_recipe, is_there

MOST_FILES = 64  #: that one recipe extends, however they stand to each other
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+=-]{0,99}")


def safe_name(name: str) -> str:
    """A name that may become a file's: ValueError for anything that could leave its folder or hide in it."""
    if not NAME.fullmatch(name) or name.endswith((" ", ".")):
        raise ValueError(f'"{name}" is no name; take letters, digits and . _ + = - in it, a letter or digit first')
    return name


def safe_place(place: str) -> str:
    """A folder or file: ValueError for a blank one, and for characters that no screen shows."""
    if not place.strip() or not place.isprintable():
        raise ValueError(f"{place!r} is no place on a disk: it is blank, or has characters that cannot be seen")
    return place


Place = Annotated[str, AfterValidator(safe_place)]
Name = Annotated[str, AfterValidator(safe_name)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]  #: products of it stay within what random generators take
Count = Annotated[int, Field(ge=1, le=10**9)]  #: of steps, images, ...
Pixels = Annotated[int, Field(ge=1, le=2**15)]  #: of a side
Threads = Annotated[int, Field(ge=1, le=1024)]  #: more end in crashes of the libraries that start them
Workers = Annotated[int, Field(ge=0, le=1024)]
Rate = Annotated[float, Field(gt=0, le=1e3)]  #: of learning
Norm = Annotated[float, Field(ge=1e-8)]  #: largest norm of a gradient; less stops all learning


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """ValueError where one comes twice."""
    if len(set(values)) != len(values):
        raise ValueError(f"{list(values)} names one twice")
    return values


Distances = Annotated[tuple[Annotated[float, Field(gt=0, le=1e6)], ...], AfterValidator(distinct)]


class Node(BaseModel):
    """Base of every recipe node: unknown keys are errors, values are not changed after loading.

    Numbers are finite, and `true` is no number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, data: Any) -> Any:
        for name, field in cls.model_fields.items() if isinstance(data, dict) else ():
            if _holds_bool(data.get(name)) and not _takes_bool(field.annotation):
                raise ValueError(f"{name} takes no true or false")
        return data


N = TypeVar("N", bound=Node)


def read_recipe(
    path: str | Path, overrides: Sequence[str] = (), files: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The plain mapping of a recipe file, its parents merged under it and the overrides laid over it.

    files: dotted fields that name another recipe file -> the folder of the shipped ones. A relative name is looked for
    beside the file that states it, else (as an override's) seen from the working directory, else among those that ship.
    """
    data = _read(find_recipe(path), (), list(files or {}), [])
    for override in overrides:
        apply_override(data, override)
    for field, folder in (files or {}).items():
        if (named := _get(data, field)) is not None:
            apply_override(data, f"{field}={json.dumps(str(find_recipe(named, folder)))}")
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
        missing = [".".join(map(str, each["loc"])) for each in error.errors() if each["type"] == "missing"]
        if first["type"] == "missing":
            given = _other_names(schema, data, first["loc"])
            raise UserError(f"{source}: set {', '.join(missing)}; there is no default{given}") from error
        said = first["msg"].removeprefix("Value error, ")
        if isinstance(first["input"], dict) and first["type"] == "value_error":  # of several fields: it names them
            raise UserError(f"{source}: {where + ': ' if where else ''}{said}") from error
        raise UserError(f"{source}: {where or 'recipe'}: {said} (got {first['input']!r:.80})") from error
    except (ArithmeticError, RecursionError, TypeError, AttributeError) as error:  # a check that met another type
        raise UserError(f"{source}: a value of another kind than its field takes ({error})") from error


def dump(node: Node) -> str:
    """A resolved recipe as YAML that loads back to the same node."""
    return yaml.safe_dump(node.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in place; the value is YAML; `*` stands for every key of the mapping it meets."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise UserError(f'an override is path=value, got "{override}"')
    value = parse_yaml(text, f'override "{override:.80}"')
    check_plain(path, f'override "{override:.80}"')
    if not _set(data, path.split("."), value):
        raise UserError(f'override "{override}": "*" meets no entries there')


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, mappings merged key by key, everything else replaced."""
    out = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def _read(path: Path, seen: tuple[Path, ...], files: Sequence[str], all_read: list[Path]) -> dict[str, Any]:
    try:
        path = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL in the name
        raise UserError(f"cannot read recipe {str(path)!r:.200}: {error}") from error
    if path in seen:
        raise UserError(f"{path}: extends itself through {' -> '.join(str(p) for p in seen)}")
    all_read.append(path)
    if len(all_read) > MOST_FILES:
        raise UserError(f"{all_read[0]} extends more than {MOST_FILES} files")
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no mapping; a recipe is `field: value` lines")
    for field in files:
        if (named := _get(data, field)) is not None and is_there(path.parent / named):
            apply_override(data, f"{field}={json.dumps(str(path.parent / named))}")
    parents = data.pop("extends", None) or []
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise UserError(f"{path}: extends: a path or a list of paths is wanted (got {parents!r:.80})")
    merged: dict[str, Any] = {}
    for parent in parents:
        merged = merge(merged, _read(path.parent / parent, (*seen, path), files, all_read))
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


def _other_names(schema: type[BaseModel], data: Any, location: Sequence[int | str]) -> str:
    """Where a user's own name was given to a node that lacks a field: the other names there, for it may be misspelt."""
    *above, name, _ = ["", *location] if len(location) > 1 else ["", "", *location]
    for part in above[1:]:
        data = data.get(part) if isinstance(data, dict) else None
    if not above or not isinstance(data, dict) or str(name) in _known_fields(schema, above[1:]):
        return ""
    others = [str(each) for each in data if each != name]
    return f'; {above[-1]} has {", ".join(others)}, and "{name}" is new' if others else ""


def _holds_bool(value: Any) -> bool:
    """Whether a plain value is true or false, or a list or mapping of which one is."""
    if isinstance(value, dict):
        return any(map(_holds_bool, value.values()))
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_bool, value)))


def _takes_bool(annotation: Any) -> bool:
    """Whether a field may hold one; the fields of nodes in it are asked themselves."""
    if annotation in (bool, Any) or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return True
    return any(map(_takes_bool, get_args(annotation)))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)]
