"""A hub name loads from the hub's own cache with no network, as on a cluster node, and equals the folder."""

from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import timm
import torch
import transformers as hf
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file
from timm.models import save_for_hf

from teachers.registry import load_backbone

CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def save_timm(folder: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    save_for_hf(model, str(folder), safe_serialization=True)


def save_open_clip(folder: Path) -> None:
    model = open_clip.CLIP(**CLIP)
    model.visual.image_mean, model.visual.image_std = [0.5] * 3, [0.25] * 3
    save_config_for_hf(model, folder / "open_clip_config.json", CLIP)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


def save_transformers(folder: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    hf.Dinov2Model(hf.Dinov2Config(**sizes)).save_pretrained(folder)
    hf.BitImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(folder)


@torch.no_grad()
@pytest.mark.parametrize(
    ("library", "save"), [("timm", save_timm), ("open_clip", save_open_clip), ("transformers", save_transformers)]
)
def test_cached_hub_repository(library: str, save: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    torch.manual_seed(0)
    save(snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cached = load_backbone(f"{library}:org/name")
    local = load_backbone(f"{library}:{snapshot}")
    images = torch.rand(1, 3, 32, 32)
    assert cached.spec.source == "hf-hub:org/name"
    assert cached.spec.digest == local.spec.digest
    assert torch.equal(cached(images).spatial, local(images).spatial)
    assert torch.equal(cached(images).summary, local(images).summary)
