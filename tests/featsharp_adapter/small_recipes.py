"""Recipes and teacher data of a size for tests."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_teacher import SmallTeacher

from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.training import teacher_data as teacher_data_module
from featsharp_adapter.training.teacher_data import TeacherData, open_teacher_data


def image_folder(folder: Path, count: int = 8) -> Path:
    """Two-coloured pictures with an edge somewhere, 60 x 80 px."""
    folder.mkdir()
    for index in range(count):
        picture = Image.new("RGB", (80, 60), (30 * index % 256, 200 - 20 * index, 90))
        picture.paste((250 - 25 * index, 60, 30 * index % 256), (10 + 5 * index, 10, 60, 50))
        picture.save(folder / f"{index}.png")
    return folder


def small_recipe(folder: Path, **changes: Any) -> AdapterRecipe:
    """Eight steps of two images; the teacher is the SmallTeacher of conftest."""
    nodes: dict[str, Any] = {
        "teacher": "test:small0",
        "upsampler": "featsharp",
        "factor": 2,
        "options": {"heads": 2, "hidden": 16},
        "data": {
            "train": f"imagefolder:{folder}",
            "held_out": f"imagefolder:{folder}",
            "images": 6,
            "held_out_images": 4,
        },
        "views": {"count": 3, "per_step": 2},
        "downsampler": {"kernel": 5},
        "optim": {"steps": 8, "batch_size": 2, "lr": 1e-3, "lr_guide": 1e-2, "warmup": 2, "first_clip_steps": 1},
        "checkpoint": {"every": 3},
        "out": "unused",
    }
    for path, value in changes.items():
        node, _, field = path.rpartition("__")
        (nodes[node] if node else nodes)[field] = value
    return AdapterRecipe.model_validate(nodes)


def small_teacher_data(recipe: AdapterRecipe, monkeypatch: pytest.MonkeyPatch) -> TeacherData:
    """Teacher data of the SmallTeacher, which no registry knows."""
    monkeypatch.setattr(teacher_data_module, "load_backbone", lambda node: SmallTeacher())
    return open_teacher_data(recipe, [recipe])
