"""`class:PACKAGE.MODULE.NAME`: a user's own Backbone by its dotted path; nothing is edited here, nothing registered.

    backbone: {spec: class:my_lab.encoders.Radar, weights: radar.safetensors}

Every other field of the node is an argument of the class (or of a function that makes one).
"""

import importlib
from collections.abc import Callable
from typing import Any

from common.errors import UserError, nearest
from teachers.contracts import Backbone, BackboneSpec


def find(dotted: str) -> Callable[..., Any]:
    """What the dotted path names; UserError where there is no such module or name. Its own errors come through."""
    module, _, name = dotted.rpartition(".")
    if not module:
        raise UserError(f'a class is PACKAGE.MODULE.NAME, got "{dotted}"')
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f'cannot import "{module}": {error}; is the folder it is in on PYTHONPATH?') from error
    if not hasattr(loaded, name):
        raise UserError(f'module {module} has no "{name}"{nearest(name, vars(loaded))}')
    return getattr(loaded, name)


def check(dotted: str, made: object) -> Backbone:
    """`made`, seen to be a Backbone with a spec; UserError says what is missing."""
    if not isinstance(made, Backbone):
        raise UserError(f"{dotted} gives a {type(made).__name__}; a teacher is a teachers.contracts.Backbone")
    if "spec" not in vars(made) or not isinstance(made.spec, BackboneSpec):
        raise UserError(f"{dotted} has no `spec`: set self.spec = teachers.contracts.BackboneSpec(...) when it is made")
    return made
