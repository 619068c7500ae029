"""From a backbone node of a recipe, or a short form PREFIX:REST, to a loaded backbone.

The prefix is the name of a Python entry point in the group `teachers.backbones`, so a user's own package adds teachers
without an edit of ours. What it points to is a callable `load(name, **options) -> Backbone`: REST is the name, every
other field of the node an option, and an option it does not take is an error. A class or function of the user's that
is in no package's entry points goes by its dotted path: `class:my_lab.encoders.Radar`.

One option every node takes: `digest`, the "sha256:..." of the weights it must turn out to have.
"""

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from common.errors import UserError, nearest, unknown
from common.plugins import find, subclass_of
from teachers.contracts import Backbone
from teachers.known import KNOWN
from teachers.user_class import check

GROUP = "teachers.backbones"
_NUMBERS = ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)
#: what libraries raise for values they did not expect
_WRONG_VALUES = (TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError, RuntimeError)
CLASS = "class"
OWN = (EntryPoint("torch_hub", "teachers.hub_checkout:load", GROUP),)  #: of this room, beside the installed ones


def loaders() -> dict[str, EntryPoint]:
    """Entry points by prefix, not yet imported."""
    return {point.name: point for point in (*OWN, *entry_points(group=GROUP))}


def parse_spec(node: str | Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """A short form or a node {spec: PREFIX:REST, option: value, ...} -> (prefix, rest, options).

    The spec may also be a short name of teachers/known.py; options given here win over those of its row.
    """
    options = {} if isinstance(node, str) else dict(node)
    short = node if isinstance(node, str) else options.pop("spec", None)
    if isinstance(short, str) and short in KNOWN:
        options = {**KNOWN[short].options, **options}
        short = KNOWN[short].spec
    if not isinstance(short, str) or not short.partition(":")[2]:
        hint = nearest(short, KNOWN) if isinstance(short, str) else ""
        raise UserError(f'a backbone is PREFIX:NAME (e.g. "timm:vit_small_patch16_224"), got {short!r}{hint}')
    prefix, rest = short.split(":", 1)
    known = [*loaders(), CLASS]
    if prefix not in known:
        raise unknown("backbone library", prefix, known)
    return prefix, rest, options


def plain_node(prefix: str, rest: str, options: Mapping[str, Any]) -> str | dict[str, Any]:
    """The node that `parse_spec` took apart, in its shortest form."""
    return {"spec": f"{prefix}:{rest}", **options} if options else f"{prefix}:{rest}"


def check_types(name: str, load: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """UserError for an option of another type than the loader's signature says."""
    try:
        hints = get_type_hints(load)
    except (NameError, TypeError):  # of a user's class, e.g. imported for type checkers alone
        return
    for option, value in options.items():
        try:
            wanted = TypeAdapter(hints[option], config=_NUMBERS) if option in hints else None
        except PydanticUserError:  # a type that is none of plain data
            continue
        try:
            if wanted is not None:
                wanted.validate_python(value)
                if isinstance(value, bool) and wanted.validate_python(value) is not value:
                    raise UserError(f"{name}: option {option} takes no true or false")
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{name}: option {option}: {first['msg']} (got {value!r:.80})") from error


def load_backbone(node: str | Mapping[str, Any]) -> Backbone:
    """Load a backbone in eval mode. UserError for an unknown library or option and for missing or other weights.

    Random numbers are fixed around it and untouched by it: a backbone of random weights is one and the same network in
    whatever process and order it is loaded, so what was trained for it fits it again.
    """
    with torch.random.fork_rng(devices=()):  # models are built on the CPU
        torch.default_generator.manual_seed(0)
        return _load(node)


def _load(node: str | Mapping[str, Any]) -> Backbone:
    prefix, rest, options = parse_spec(node)
    digest = options.pop("digest", None)
    load: Callable[..., Any] = find(rest) if prefix == CLASS else loaders()[prefix].load()
    arguments = [] if prefix == CLASS else [rest]
    if inspect.isclass(load) and issubclass(load, Backbone):
        subclass_of(Backbone, load, f"{prefix}:{rest}")  # type: ignore[type-abstract]
    parameters = inspect.signature(load).parameters.values()
    accepted = [parameter.name for parameter in parameters][len(arguments) :]
    for option in options:
        if option not in accepted:
            raise UserError(
                f'{prefix}:{rest} has no option "{option}"{nearest(option, accepted)}; it takes: {accepted}'
            )
    check_types(f"{prefix}:{rest}", load, options)
    try:
        inspect.signature(load).bind(*arguments, **options)
    except TypeError as error:
        raise UserError(
            f"{prefix}:{rest}: {error}; give it in the node: {{spec: {prefix}:{rest}, OPTION: ...}}"
        ) from error
    try:
        made = load(*arguments, **options)
    except _WRONG_VALUES as error:
        if prefix == CLASS:  # a user's own code: its own errors come through
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{prefix}:{rest} cannot be made with these options ({options}): {said}") from error
    backbone = check(f"{prefix}:{rest}", made).eval()
    backbone.node = plain_node(prefix, rest, options)
    if digest is not None and backbone.spec.digest not in (digest, "meta"):
        raise UserError(f"{backbone.spec.name} has other weights ({backbone.spec.digest}) than the recipe's ({digest})")
    return backbone
