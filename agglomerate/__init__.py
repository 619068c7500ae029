"""The whole program as a dozen functions, for those who have a Python program of their own.

    import agglomerate

    sharp = agglomerate.sharpen("photo.jpg", "builtin:tiny-clip-featsharp-2x")   # summary [1, S], spatial [1, C, h, w]
    agglomerate.distil("quickstart.yaml", "optim.steps=50", "name=first")        # runs/first, with its report
    agglomerate.load_backbone("run:runs/first")(images)                           # images [B, 3, H, W] in [0, 1]

Everything else is in the rooms: teachers, featsharp_adapter, distill, eval_suite, imagery. A mistake of the caller's is
`agglomerate.UserError`, a line or two of words. Importing this costs nothing: a part is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agglomerate.backbones import known_teachers, load_adapter, load_backbone, load_student, sharpen, sharpened
    from agglomerate.evaluation import build_table, probe
    from agglomerate.training import ablate, distil, plan, shipped_recipes, train_adapter
    from common.errors import UserError

_HOMES = {
    "agglomerate.backbones": (
        "known_teachers", "load_adapter", "load_backbone", "load_student", "sharpen", "sharpened",
    ),
    "agglomerate.training": ("ablate", "distil", "plan", "shipped_recipes", "train_adapter"),
    "agglomerate.evaluation": ("build_table", "probe"),
    "common.errors": ("UserError",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "UserError", "ablate", "build_table", "distil", "known_teachers", "load_adapter", "load_backbone", "load_student",
    "plan", "probe", "sharpen", "sharpened", "shipped_recipes", "train_adapter",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module agglomerate has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
