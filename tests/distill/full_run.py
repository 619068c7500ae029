"""A small recipe with everything a student can have: what draws random numbers, keeps statistics, or averages."""

from pathlib import Path
from typing import Any

from small_run import small_recipe

STUDENT: dict[str, Any] = {
    "cpe": 64,
    "position_dropout": 0.2,
    "window_train": [2, 4],
    "global_blocks": 1,
    "spectral": True,
    "damp": 0.1,
    "drop_path": 0.2,
    "registers": 1,
    "head": "attention",
}


def full_recipe(out: Path, **changes: Any) -> dict[str, Any]:
    """The small recipe with all of it, as plain data; every checkpoint is kept."""
    data = small_recipe(out) | {
        "loss": {"summary": "angular", "shift": True, "mesa": 0.5, "drop_teachers": 0.3},
        "ema": {"decay": 0.9, "export": True},
        "checkpoint": {"every": 1, "keep": 9},
    }
    data["student"] = data["student"] | STUDENT
    data["optim"] = data["optim"] | {"steps": 5}
    return data | changes
