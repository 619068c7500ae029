"""A distillation small enough for tests: two teachers of random weights, one low-resolution, and a tiny student."""

from pathlib import Path
from typing import Any

from distill.recipe import Recipe
from distill.training.arms import Arm, run_arm
from distill.training.engine import start
from imagery.sources import open_sources


def small_vit(pixels: int, width: int, **options: Any) -> dict[str, Any]:
    """A backbone node: a timm ViT of random weights, patch 8, one size only."""
    sizes = {"patch_size": 8, "embed_dim": width, "depth": 1, "num_heads": 2}
    node = {"spec": "timm:vit_tiny_patch16_224", "pretrained": False, "image_size": pixels, "resizable": False}
    return node | {"model_args": sizes} | options


def small_recipe(out: Path) -> dict[str, Any]:
    """A recipe as plain data."""
    return {
        "name": "small",
        "out": str(out),
        "data": {"train": "scenes:seed=3,count=24,size=32,cache=true", "size": [32, 32]},
        "student": {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
        "teachers": {
            "coarse": {"backbone": small_vit(16, 24), "upsampler": "tile", "factor": 2},
            "fine": {"backbone": small_vit(32, 12, summary="none"), "weight": {"summary": 0}},
        },
        "normaliser": {"batches": 3},
        "optim": {"steps": 6, "batch_size": 4, "lr": 0.003, "warmup_steps": 2},
        "checkpoint": {"every": 3},
        "engine": {"threads": 1},
    }


def train(recipe: Recipe, *, export_untrained: bool = False) -> Path:
    """Run one arm to its end in this process; returns the folder of the run."""
    accelerator = start({recipe.name: recipe})[recipe.name]
    run_arm(Arm(recipe.name, recipe, accelerator), open_sources(recipe.data.train), export_untrained=export_untrained)
    return recipe.folder
