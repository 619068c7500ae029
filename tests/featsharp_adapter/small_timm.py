"""A random vision transformer as timm saves one: a teacher that the registry can load from a folder."""

from pathlib import Path

import timm
import torch
from timm.models import save_for_hf

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}


def timm_folder(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_for_hf(timm.create_model("vit_tiny_patch16_224", **TINY), str(folder), safe_serialization=True)
    return folder
