"""`class:PACKAGE.MODULE.NAME`: a user's own Backbone by its dotted path; nothing is edited here, nothing registered.

    backbone: {spec: class:my_lab.encoders.Radar, weights: radar.safetensors}

Every other field of the node is an argument of the class (or of a function that makes one).
"""

from common.errors import UserError
from teachers.contracts import Backbone, BackboneSpec


def check(dotted: str, made: object) -> Backbone:
    """`made`, seen to be a Backbone with a spec; UserError says what is missing."""
    if not isinstance(made, Backbone):
        raise UserError(f"{dotted} gives a {type(made).__name__}; a teacher is a teachers.contracts.Backbone")
    if "spec" not in vars(made) or not isinstance(made.spec, BackboneSpec):
        raise UserError(f"{dotted} has no `spec`: set self.spec = teachers.contracts.BackboneSpec(...) when it is made")
    return made
