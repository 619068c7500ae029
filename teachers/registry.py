"""From a backbone node of a recipe, or a short form PREFIX:REST, to a loaded backbone.

The prefix is the name of a Python entry point in the group `teachers.backbones`, so a user's own package adds teachers
without an edit of ours. What it points to is a callable `load(name, **options) -> Backbone`: REST is the name, every
other field of the node an option, and an option it does not take is an error.
"""

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from teachers.contracts import Backbone
from teachers.errors import UserError, nearest, unknown
from teachers.known import KNOWN

GROUP = "teachers.backbones"


def loaders() -> dict[str, Any]:
    """Entry points by prefix, not yet imported."""
    return {point.name: point for point in entry_points(group=GROUP)}


def parse_spec(node: str | Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """A short form or a node {spec: PREFIX:REST, option: value, ...} -> (prefix, rest, options).

    The spec may also be a short name of teachers/known.py; options given here win over those of its row.
    """
    options = {} if isinstance(node, str) else dict(node)
    short = node if isinstance(node, str) else options.pop("spec", None)
    if isinstance(short, str) and short in KNOWN:
        options = {**KNOWN[short].options, **options}
        short = KNOWN[short].spec
    if not isinstance(short, str) or ":" not in short:
        hint = nearest(short, KNOWN) if isinstance(short, str) else ""
        raise UserError(f'a backbone is PREFIX:NAME (e.g. "timm:vit_small_patch16_224"), got {short!r}{hint}')
    prefix, rest = short.split(":", 1)
    known = loaders()
    if prefix not in known:
        raise unknown("backbone library", prefix, known)
    return prefix, rest, options


def load_backbone(node: str | Mapping[str, Any]) -> Backbone:
    """Load a backbone in eval mode. UserError for an unknown library or option and for missing weights."""
    prefix, rest, options = parse_spec(node)
    load: Callable[..., Backbone] = loaders()[prefix].load()
    accepted = list(inspect.signature(load).parameters)[1:]
    for option in options:
        if option not in accepted:
            raise UserError(
                f'{prefix}:{rest} has no option "{option}"{nearest(option, accepted)}; it takes: {accepted}'
            )
    return load(rest, **options).eval()
