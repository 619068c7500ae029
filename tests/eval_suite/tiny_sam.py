"""A real SamModel of transformers, small and random, saved as its checkpoints are."""

from pathlib import Path

import torch
from transformers import SamConfig, SamModel
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

WIDTH, CANVAS = 32, 128


def tiny_sam(folder: Path, seed: int = 0) -> SamModel:
    """Two blocks of 24 channels, a decoder of 32; 128 px, 8x8 cells."""
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=24, output_channels=WIDTH, num_hidden_layers=2, num_attention_heads=2, image_size=CANVAS,
            patch_size=16, window_size=4, global_attn_indexes=[1], num_pos_feats=WIDTH // 2, mlp_dim=48,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=WIDTH, image_size=CANVAS, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=WIDTH, mlp_dim=64, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=32
        ),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SamModel(config).eval()
        for parameter in model.parameters():  # the library's own start hardly tells one place from another
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    return model
