"""Parts that a user adds: `class:PACKAGE.MODULE.NAME`, or a name that an installed package registers as an entry point.

Nothing here is edited and nothing is imported before it is named. Only what a user typed may name such a part; what
came with a file never does (teachers/artefacts.py).
"""

import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from pydantic import BaseModel

from common.errors import UserError, nearest

CLASS = "class:"
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


def registered(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group by name, not yet imported."""
    return {point.name: point for point in entry_points(group=group)}


def is_plugin(name: object, group: str) -> bool:
    """Whether a name means a user's own part rather than one of ours."""
    return isinstance(name, str) and (name.startswith(CLASS) or name in registered(group))


def load_plugin(name: str, group: str) -> Any:
    """What `class:...` or a registered name stands for; UserError where there is no such thing."""
    if name.startswith(CLASS):
        return find(name.removeprefix(CLASS))
    return registered(group)[name].load()


def find(dotted: str) -> Callable[..., Any]:
    """What the dotted path names; UserError where there is no such module or name. Its own errors come through."""
    module, _, name = dotted.rpartition(".")
    if not module:
        raise UserError(f'a class is PACKAGE.MODULE.NAME, got "{dotted}"')
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        its_own = error.name is not None and f"{module}.".startswith(f"{error.name}.")
        hint = "is the folder it is in on PYTHONPATH?" if its_own else f"{module} imports what is not installed"
        raise UserError(f'cannot import "{module}": {error}; {hint}') from error
    if not hasattr(loaded, name):
        raise UserError(f'module {module} has no "{name}"{nearest(name, vars(loaded))}')
    return getattr(loaded, name)


def subclass_of(base: type[T], found: object, name: str) -> type[T]:
    """`found`, seen to be a class below `base` with nothing left undone; UserError says what is missing."""
    home = f"{base.__module__}.{base.__name__}"
    if not inspect.isclass(found) or not issubclass(found, base):
        what = f"the class {found.__name__}" if inspect.isclass(found) else f"a {type(found).__name__}"
        raise UserError(f"{name} is {what}, which is not below {home}")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise UserError(f"{name} lacks {', '.join(missing)}; see {home} for what they give")
    return found


def validate_plugin(base: type[M], kind: str, group: str, value: Any, ours: Callable[[Any], M]) -> M:
    """A recipe node whose field `kind` names a user's class below `base`; any other node goes to `ours`.

    The class declares the field too (`kind: str`), as it is a recipe node like all others.
    """
    name = value.get(kind) if isinstance(value, dict) else None
    if not isinstance(name, str) or not is_plugin(name, group):
        return ours(value)
    found = subclass_of(base, load_plugin(name, group), name)
    if kind not in found.model_fields:
        raise UserError(f"{name} lacks the field `{kind}: str`, in which its own name stands")
    return found.model_validate(value)
