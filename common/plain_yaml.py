"""YAML as untrusted text: plain data of bounded size, or one line that says what is wrong with it.

Whoever writes a recipe may be a program, or somebody else. Refused in words, before anything is built from them: text
that is not UTF-8, keys that come twice (YAML lets the last one win), aliases that expand without end, depths that
overflow a stack, numbers that are not finite or that YAML reads in bases of 8 and 60, dates and other tagged values,
characters that no name holds.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml

from common.errors import UserError

MOST_BYTES = 256 << 10
MOST_NODES = 100_000  #: after aliases are written out
MOST_DEPTH = 40
LARGEST, SMALLEST = 1e30, 1e-20  #: of numbers but 0; beyond, somebody slipped
MOST_INTEGER = 2**53  #: JSON and floats hold integers up to here

_ODD_NUMBER = re.compile(r"[-+]?0[0-7_]+|.*:.*")

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """The safe loader, which also refuses keys that come twice and does not make dates of text."""

    yaml_implicit_resolvers: ClassVar[Any] = {
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else "?"
                if name in seen and key.tag != "tag:yaml.org,2002:merge":
                    raise UserError(f'"{name}" comes twice, the second time in line {key.start_mark.line + 1}')
                seen.add(name)
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found


def _plain_number(loader: Any, node: Any) -> Any:
    """A number, unless YAML 1.1 reads it otherwise than people do: 010 is 8 to it, and 1:30 is 90."""
    kind = node.tag.rpartition(":")[2]
    number = getattr(loader, f"construct_yaml_{kind}")(node)
    if _ODD_NUMBER.fullmatch(node.value):
        where = node.start_mark.line + 1
        raise UserError(f"{node.value} in line {where} is {number} to YAML; write {number}, or text in quotes")
    return number


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _plain_number)


def read_yaml(path: Path) -> Any:
    """What a file holds; UserError names the file and what is wrong with it."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file")
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} has {path.stat().st_size} bytes; a recipe has at most {MOST_BYTES}")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read recipe {path}: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise UserError(f"cannot read recipe {str(path)!r}: {error}") from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Plain data: None, bool, int, float, str, lists, and mappings with text or integer keys."""
    if len(text) > MOST_BYTES:
        raise UserError(f"{source}: {len(text)} characters; at most {MOST_BYTES} are read")
    try:
        _check_depth(text)
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            _measure(node, {}, ())
        data = yaml.load(text, Loader=_Loader)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        raise UserError(f"{source} is not valid YAML: {str(error).splitlines()[0]}") from error
    check_plain(data, source)
    return data


def check_plain(data: Any, source: str) -> None:
    """UserError for a value or key that no recipe holds, with its place."""
    for where, problem in _problems(data, ""):
        raise UserError(f"{source}: {where or 'the whole'}: {problem}")


def _problems(data: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(data, dict):
        for key, value in data.items():
            if isinstance(key, bool) or not isinstance(key, str | int):
                yield where, f"the key {key!r:.40} is no text; write it in quotes"
            elif problem := _problem(key):
                yield where, f"a key: {problem}"
            yield from _problems(value, f"{where}.{key}".lstrip("."))
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _problems(value, f"{where}.{number}".lstrip("."))
    elif problem := _problem(data):
        yield where, problem


def _problem(value: Any) -> str | None:
    if isinstance(value, str):
        return _problem_of_text(value)
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if abs(value) <= MOST_INTEGER else "the integer is larger than 2^53"
    if isinstance(value, float):
        if not math.isfinite(value):
            return f"{value} is not a finite number"
        if value and not SMALLEST <= abs(value) <= LARGEST:
            return f"{value} is a number beyond {SMALLEST:g} to {LARGEST:g}"
        return None
    return f"a {type(value).__name__} is no plain value; write it as text in quotes"


def _problem_of_text(value: str) -> str | None:
    if any(ord(letter) < 32 and letter not in "\n\t" for letter in value) or "\x7f" in value:
        return f"{value!r:.60} holds a control character"
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        return f"{value!r:.60} holds half a character"
    return None


def _check_depth(text: str) -> None:
    """Before anything recursive: the C composer would overflow its stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_Base):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MOST_DEPTH:
                where = f" in line {event.start_mark.line + 1}" if event.start_mark else ""
                raise UserError(f"nested more than {MOST_DEPTH} deep{where}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _measure(node: Any, known: dict[int, tuple[int, int]], above: tuple[int, ...]) -> tuple[int, int]:
    """Nodes that a node stands for with all aliases written out, and their depth."""
    if id(node) in above:
        raise UserError(f"an alias in line {node.start_mark.line + 1} stands for what it is in")
    if id(node) not in known:
        pairs = isinstance(node, yaml.MappingNode)
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        children = [child for pair in parts for child in pair] if pairs else parts
        found = [_measure(child, known, (*above, id(node))) for child in children]
        count, depth = 1 + sum(n for n, _ in found), 1 + max((d for _, d in found), default=0)
        if count > MOST_NODES:
            raise UserError(f"more than {MOST_NODES} values once its aliases are written out")
        if depth > MOST_DEPTH:
            raise UserError(f"nested more than {MOST_DEPTH} deep once its aliases are written out")
        known[id(node)] = count, depth
    return known[id(node)]
