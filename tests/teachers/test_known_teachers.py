"""The papers' teachers build on the meta device, with no weights and no network, as the table states them."""

from pathlib import Path

import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode

from common.errors import UserError
from teachers.known import KNOWN, NORMALISATIONS, KnownTeacher, gating_of
from teachers.library import LibraryBackbone
from teachers.registry import load_backbone

WIDE = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
GIANT = {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 40, "num_attention_heads": 16}
HIERA_L = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 144,
    "embed_dim_per_stage": [144, 288, 576, 1152],
    "blocks_per_stage": [2, 6, 36, 4],
    "global_attention_blocks": [23, 33, 43],
    "num_attention_heads_per_stage": [2, 4, 8, 16],
    "window_size_per_stage": [8, 4, 16, 8],
}
SAM_H = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16}
SEVEN_BILLION = {
    "hidden_size": 4096,
    "intermediate_size": 8192,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_register_tokens": 4,
    "use_gated_mlp": True,
    "query_bias": False,
    "value_bias": False,
    "hidden_act": "silu",
}


def paligemma() -> hf.PaliGemmaConfig:
    vision = {
        "model_type": "siglip_vision_model",
        **WIDE,
        "patch_size": 14,
        "image_size": 448,
        "vision_use_head": False,
    }
    return hf.PaliGemmaConfig(vision_config=vision)


def sam2_large() -> hf.Sam2Config:
    return hf.Sam2Config(
        vision_config=hf.Sam2VisionConfig(backbone_config=HIERA_L, backbone_channel_list=[1152, 576, 288, 144])
    )


# The configurations of repositories that cannot be asked here: the library's own defaults where those are the model.
CONFIGS = {
    "sam3": hf.Sam3VideoConfig,
    "sam2_t": hf.Sam2Config,
    "sam2_l": sam2_large,
    "llava_1_5_7b": hf.LlavaConfig,
    "paligemma_448": paligemma,
    "sam_h_hf": lambda: hf.SamVisionConfig(**SAM_H, global_attn_indexes=[7, 15, 23, 31]),
    "dinov3_7b_hf": lambda: hf.DINOv3ViTConfig(**SEVEN_BILLION, image_size=224, patch_size=16),
    "siglip2_g_384_hf": lambda: hf.SiglipVisionConfig(**GIANT, image_size=384, patch_size=16),
}
OFFLINE = [row for row in KNOWN.values() if not row.own_code]
FAST = ("dfn_clip_h", "dinov2_g_reg", "sam_h", "sam3", "llava_1_5_7b", "paligemma_448")


def build(row: KnownTeacher, folder: Path) -> LibraryBackbone:
    """The row's node on the meta device; a transformers repository is stood in for by its configuration."""
    node = {"spec": row.short, "device": "meta"}
    if row.short in CONFIGS:
        CONFIGS[row.short]().save_pretrained(folder)
        mean, std = NORMALISATIONS[row.norm]
        node = {**row.node(), "spec": f"transformers:{folder}", "mean": mean, "std": std, "device": "meta"}
    return load_backbone(node)


def check(row: KnownTeacher, backbone: LibraryBackbone) -> None:
    spec = backbone.spec
    assert spec.native_size == (row.native, row.native)
    assert (spec.patch_size, spec.spatial_dim, spec.summary_dim) == (row.patch, row.spatial_dim, row.summary_dim)
    assert (spec.mean, spec.std) == NORMALISATIONS[row.norm]
    assert spec.digest == "meta" and spec.other_sizes
    if row.short not in CONFIGS:
        assert spec.licence != "unknown" and spec.source == f"hf-hub:{row.repository}"
    parameters = sum(parameter.numel() for parameter in backbone.tower.image_part.parameters())
    assert parameters / 1e6 == pytest.approx(row.parameters, abs=0.06)


@pytest.mark.parametrize("short", FAST)
def test_teachers_are_as_the_table_says(short: str, tmp_path: Path) -> None:
    check(KNOWN[short], build(KNOWN[short], tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("row", OFFLINE, ids=lambda row: row.short)
def test_every_teacher_is_as_the_table_says(row: KnownTeacher, tmp_path: Path) -> None:
    backbone = build(row, tmp_path).requires_grad_(False)
    check(row, backbone)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.tower(torch.empty(1, 3, row.native, row.native, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(row.gflops, abs=0.06)


def test_grids_and_tiling_arithmetic_of_the_sharpened_teachers() -> None:
    sharpened = [row for row in KNOWN.values() if row.role == "CLIP, sharpened"]
    grids = {row.short: row.native // row.patch for row in sharpened}
    assert grids == {"dfn_clip_h": 27, "siglip_so400m": 27, "siglip2_g_384": 24, "siglip2_g_384_hf": 24}
    assert [3 * grid for grid in grids.values()] == [81, 81, 72, 72]


def test_options_win_over_the_rows_and_a_misspelt_name_is_helped() -> None:
    spec = load_backbone({"spec": "vit_s", "device": "meta", "image_size": 256, "resizable": False}).spec
    assert spec.native_grid == (16, 16) and not spec.resizable
    with pytest.raises(UserError, match='did you mean "siglip_so400m"'):
        load_backbone("siglip_so400")


def test_a_gated_teacher_says_what_to_accept_and_where() -> None:
    said = gating_of("transformers:facebook/sam3")
    assert "accept the terms at https://huggingface.co/facebook/sam3 first" in said and "SAM License" in said
    assert gating_of("sam3") == said and gating_of("dfn_clip_h") == ""


def test_radios_own_code_runs_only_when_the_recipe_says_so() -> None:
    rows = [row for row in KNOWN.values() if row.own_code]
    assert {row.short for row in rows} >= {"radio_v25_l", "c_radio_v3_h", "c_radio_v4_h"}
    assert not any("trust_remote_code" in row.options for row in KNOWN.values())
