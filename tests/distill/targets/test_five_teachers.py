"""Five teachers of five libraries' classes at five native sizes, two of them sharpened, teach one student together."""

import json
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import transformers as hf
import yaml
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file
from small_run import small_recipe, train
from timm.models import save_for_hf

from distill.exported import load
from distill.recipe import read

VIT = {"num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8, "hidden_size": 32, "intermediate_size": 32}
CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def save_clip(folder: Path) -> str:
    folder.mkdir()
    model = open_clip.CLIP(**CLIP)
    model.visual.image_mean, model.visual.image_std = (0.5,) * 3, (0.25,) * 3
    save_config_for_hf(model, folder / "open_clip_config.json", CLIP)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"open_clip:{folder}"


def save_timm(folder: Path) -> str:
    sizes = {"img_size": 40, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    save_for_hf(timm.create_model("vit_small_patch14_reg4_dinov2", **sizes), str(folder), safe_serialization=True)
    return f"timm:{folder}"


def save_hf(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    hf.ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(folder)
    return f"transformers:{folder}"


def five(folder: Path) -> dict[str, Any]:
    """Teacher nodes; native sizes 16, 24, 40, 48 and 64 px with a student at 48."""
    torch.manual_seed(0)
    sam = {**VIT, "image_size": 64, "output_channels": 16, "window_size": 3, "global_attn_indexes": [0], "mlp_dim": 32}
    siglip = save_hf(hf.SiglipVisionModel(hf.SiglipVisionConfig(**VIT, image_size=24)), folder / "siglip")
    dinov3 = save_hf(hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**VIT, image_size=48)), folder / "dinov3")
    encoder = save_hf(hf.SamVisionModel(hf.SamVisionConfig(**sam)), folder / "sam")
    return {
        "clip": {"backbone": save_clip(folder / "clip"), "upsampler": "tile", "factor": 3},
        "siglip": {"backbone": {"spec": siglip, "resizable": False}, "upsampler": "s2", "factor": 2},
        "dinov2": {"backbone": {"spec": save_timm(folder / "dinov2"), "image_size": 40, "resizable": False}},
        "dinov3": {"backbone": dinov3},
        "sam": {"backbone": {"spec": encoder, "spatial": "last_block"}, "weight": {"summary": 0}},
    }


def test_five_teachers_at_five_sizes(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path / "runs") | {"teachers": five(tmp_path)}
    recipe["data"] |= {"train": "scenes:seed=3,count=8,size=48,cache=false", "size": [48, 48]}
    recipe["optim"] |= {"steps": 4, "batch_size": 2}
    (tmp_path / "five.yaml").write_text(yaml.safe_dump(recipe))
    folder = train(read(tmp_path / "five.yaml"))
    steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [value for step in steps for value in step.values() if isinstance(value, float)]
    assert len(steps) == 4 and torch.isfinite(torch.tensor(losses)).all()
    student = load(str(folder))
    specs = {name: entry["spec"] for name, entry in student.teachers.items()}
    assert [specs[name]["native_size"][0] for name in recipe["teachers"]] == [16, 24, 40, 48, 64]
    assert all(spec["digest"].startswith("sha256:") and spec["other_sizes"] for spec in specs.values())
    features = student(torch.rand(1, 3, 48, 64))
    for name, width in (("clip", 32), ("siglip", 32), ("dinov2", 16), ("dinov3", 32), ("sam", 32)):
        assert student.adaptor(name).project(features).spatial.shape == (1, width, 6, 8)
