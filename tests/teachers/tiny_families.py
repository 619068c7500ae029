"""A tiny random model of every family that a loader knows, saved as its library does, beside the library's own call.

A reference is written with nothing of ours: it says what the library itself gives for a summary and a map. What stands
before a final norm is caught at that norm's input, not read from a list of hidden states.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import transformers as hf
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
Size = tuple[int, int]
Reference = Callable[[nn.Module, Tensor, str, str], tuple[Tensor | None, Tensor]]

WIDTH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION = {**WIDTH, "image_size": 32, "patch_size": 8}
TEXT = {**WIDTH, "num_hidden_layers": 1, "vocab_size": 12, "max_position_embeddings": 6, "pad_token_id": 0}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "projection_size": 32}
LANGUAGE = {**WIDTH, "num_hidden_layers": 1, "vocab_size": 64, "num_key_value_heads": 1, "head_dim": 16}
HIERA = {
    "model_type": "sam2_hiera_det_model",
    "image_size": [64, 64],
    "hidden_size": 16,
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [16, 32, 64, 128],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [8, 4, 2, 2],
    "global_attention_blocks": [3],
    "window_positional_embedding_background_size": [3, 3],
}
SAM3_VIT = {
    **WIDTH,
    "model_type": "sam3_vit_model",
    "layer_scale_init_value": 1.0,
    "image_size": 64,
    "patch_size": 8,
    "window_size": 4,
    "global_attn_indexes": [1],
    "pretrain_image_size": 32,
}
SMALL = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}


@dataclass(frozen=True)
class Case:
    """One family: how to make and save it, what the library gives, and what is asked of it."""

    make: Callable[[], nn.Module]
    save: Callable[[nn.Module, Path], str]  #: -> the spec that loads it
    reference: Reference
    summaries: tuple[str, ...]
    spatials: tuple[str, ...]
    native: Size
    others: tuple[Size, ...] = ()  #: sizes the loaded model takes as it is
    named: tuple[Size, ...] = ()  #: sizes it must be loaded for, by image_size
    options: dict[str, Any] = field(default_factory=dict)


def randomised(model: nn.Module) -> nn.Module:
    """Values large enough that a wrong order of operations shows."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.02, std=0.2)
    return model.eval()


def normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def grid(tokens: Tensor, pixels: Tensor, patch: int = 8) -> Tensor:
    """Tokens [B, h*w, C] -> [B, C, h, w]."""
    height, width = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)


def before(norm: nn.Module, run: Callable[[], Any]) -> tuple[Tensor, Any]:
    """What goes into `norm` while `run` runs, and what `run` gives."""
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    output = run()
    hook.remove()
    return seen[-1], output


# transformers


def save_hf(processor: Any = None) -> Callable[[nn.Module, Path], str]:
    def save(model: Any, folder: Path) -> str:
        model.save_pretrained(folder)
        (processor or hf.ViTImageProcessor(image_mean=MEAN, image_std=STD)).save_pretrained(folder)
        return f"transformers:{folder}"

    return save


def token_reference(
    norm: str, prefix: int, interpolate: bool, part: str = ""
) -> Callable[[Any, Tensor, str, str], tuple[Tensor | None, Tensor]]:
    """Of a vision transformer: its output, or what enters the norm named `norm`; `part` is the image tower's name."""

    def reference(model: Any, pixels: Tensor, summary: str, spatial: str) -> tuple[Tensor | None, Tensor]:
        tower = model.get_submodule(part) if part else model
        asked = {"interpolate_pos_encoding": True} if interpolate else {}
        raw, output = before(tower.get_submodule(norm), lambda: tower(pixels, **asked))
        tokens = raw if spatial == "last_block" else output.last_hidden_state
        if spatial == "normed":
            tokens = tower.post_layernorm(tokens)
        given = {"none": None, "cls": output.last_hidden_state[:, 0], "pooled": output.pooler_output}
        given["embedding"] = output.pooler_output
        if summary == "embedding" and hasattr(model, "visual_projection"):
            given["embedding"] = model.visual_projection(output.pooler_output)
        return given[summary], grid(tokens[:, prefix:], pixels)

    return reference


def naflex_reference(model: Any, pixels: Tensor, summary: str, spatial: str) -> tuple[Tensor | None, Tensor]:
    tower = model.vision_model if hasattr(model, "vision_model") else model
    height, width = pixels.shape[-2] // 8, pixels.shape[-1] // 8
    rows = [
        pixels[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].permute(0, 2, 3, 1).flatten(1)
        for row in range(height)
        for column in range(width)
    ]
    mask = torch.ones(len(pixels), height * width, dtype=torch.int32)
    shapes = torch.tensor([[height, width]] * len(pixels))
    raw, output = before(tower.post_layernorm, lambda: tower(torch.stack(rows, dim=1), mask, shapes))
    tokens = raw if spatial == "last_block" else output.last_hidden_state
    return None if summary == "none" else output.pooler_output, grid(tokens, pixels)


def radio_reference(model: Any, pixels: Tensor, summary: str, spatial: str) -> tuple[Tensor | None, Tensor]:
    """It normalises for itself, with the mean and std of its configuration; here that is done already."""
    assert model.config.norm_mean == MEAN and model.config.norm_std == STD
    model.input_conditioner = nn.Identity()
    output = model(pixels)
    return None if summary == "none" else output.summary, grid(output.features, pixels)


def sam_reference(model: Any, pixels: Tensor, summary: str, spatial: str) -> tuple[Tensor | None, Tensor]:
    encoder = model.vision_encoder
    raw, output = before(encoder.neck, lambda: encoder(pixels))
    return None, raw.permute(0, 3, 1, 2) if spatial == "last_block" else output.last_hidden_state


def sam2_reference(model: Any, pixels: Tensor, summary: str, spatial: str) -> tuple[Tensor | None, Tensor]:
    encoder = model.vision_encoder if hasattr(model, "vision_encoder") else model
    stages, output = before(encoder.neck, lambda: encoder(pixels))
    return None, stages[-1].permute(0, 3, 1, 2) if spatial == "last_block" else output.fpn_hidden_states[2]


def sam3_reference(model: Any, pixels: Tensor, summary: str, spatial: str) -> tuple[Tensor | None, Tensor]:
    raw, output = before(model.neck, lambda: model(pixels))
    return None, raw if spatial == "last_block" else output.fpn_hidden_states[2]


def llava_reference(model: Any, pixels: Tensor, summary: str, spatial: str) -> tuple[Tensor | None, Tensor]:
    """What the projector of the whole model reads, caught at its entrance."""
    output = model.model.vision_tower(pixels, interpolate_pos_encoding=True)
    given = {"none": None, "cls": output.last_hidden_state[:, 0], "pooled": output.pooler_output}
    tokens = output.last_hidden_state[:, 1:]
    if spatial == "selected":
        tokens, _ = before(model.model.multi_modal_projector, lambda: model.get_image_features(pixel_values=pixels))
    return given[summary], grid(tokens, pixels)


def paligemma_reference(model: Any, pixels: Tensor, summary: str, spatial: str) -> tuple[Tensor | None, Tensor]:
    tower = model.model.vision_tower
    raw, output = before(tower.post_layernorm, lambda: tower(pixels, interpolate_pos_encoding=True))
    return None, grid(raw if spatial == "last_block" else output.last_hidden_state, pixels)


def make_sam() -> nn.Module:
    vision = {**VISION, "output_channels": 16, "window_size": 3, "global_attn_indexes": [1], "mlp_dim": 48}
    prompts = {"hidden_size": 16, "image_size": 32, "patch_size": 8}
    return hf.SamModel(hf.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=SMALL))


def sam2_vision() -> Any:
    sizes = [[16, 16], [8, 8], [4, 4]]
    return hf.Sam2VisionConfig(
        backbone_config=HIERA,
        backbone_channel_list=[128, 64, 32, 16],
        fpn_hidden_size=16,
        backbone_feature_sizes=sizes,
    )


def make_sam2() -> nn.Module:
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 16}
    config = hf.Sam2Config(vision_config=sam2_vision(), prompt_encoder_config=prompts, mask_decoder_config=SMALL)
    return hf.Sam2Model(config)


def sam3_vision(pixels: int = 64) -> Any:
    sizes = [[32, 32], [16, 16], [8, 8]]
    vit = {**SAM3_VIT, "image_size": pixels}
    return hf.Sam3VisionConfig(backbone_config=vit, fpn_hidden_size=16, backbone_feature_sizes=sizes)


def save_sam3_video(model: Any, folder: Path) -> str:
    """The form of facebook/sam3: the whole video model's configuration, the encoder below `detector_model`."""
    config = hf.Sam3VideoConfig(detector_config=hf.Sam3Config(vision_config=model.config.to_dict()).to_dict())
    config.save_pretrained(folder)
    state = {f"detector_model.vision_encoder.{key}": value for key, value in model.state_dict().items()}
    save_file({**state, "tracker_model.weight": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    hf.ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return f"transformers:{folder}"


def save_in_shards(model: Any, folder: Path) -> str:
    """As large models are saved: an index and several files. The one without the image tower is not there."""
    spec = save_hf()(model, folder)
    (folder / "model.safetensors").rename(folder / "all.safetensors")
    state = {key: value.clone() for key, value in hf.modeling_utils.load_state_dict(folder / "all.safetensors").items()}
    (folder / "all.safetensors").unlink()
    image = sorted(key for key in state if "vision_tower." in key)
    files = {key: f"model-0000{1 + number % 2}-of-00003.safetensors" for number, key in enumerate(image)}
    for name in set(files.values()):
        save_file({key: state[key] for key in image if files[key] == name}, folder / name, {"format": "pt"})
    files |= {key: "model-00003-of-00003.safetensors" for key in state if key not in files}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return spec


def make_llava(layers: int | list[int]) -> nn.Module:
    vision = {"model_type": "clip_vision_model", **VISION}
    text = {"model_type": "llama", **LANGUAGE}
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=60, vision_feature_layer=layers)
    )


def make_paligemma() -> nn.Module:
    vision = {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}
    text = {"model_type": "gemma", **LANGUAGE}
    return hf.PaliGemmaForConditionalGeneration(
        hf.PaliGemmaConfig(vision_config=vision, text_config=text, projection_dim=32, image_token_index=60)
    )


def make_radio() -> nn.Module:
    sizes = {key: value for key, value in VISION.items() if key != "intermediate_size"}
    return hf.RadioModel(hf.RadioConfig(**sizes, max_img_size=64, num_registers=2, norm_mean=MEAN, norm_std=STD))


# timm


def save_timm(model: Any, folder: Path) -> str:
    model.pretrained_cfg |= {"mean": MEAN, "std": STD}
    model.pretrained_cfg["input_size"] = (
        3,
        *(model.patch_embed.img_size if hasattr(model, "patch_embed") else (64, 64)),
    )
    save_for_hf(model, str(folder), safe_serialization=True)
    return f"timm:{folder}"


def timm_reference(norm: str) -> Reference:
    def reference(model: Any, pixels: Tensor, summary: str, spatial: str) -> tuple[Tensor | None, Tensor]:
        raw, final = before(model.get_submodule(norm), lambda: model.forward_features(pixels))
        tokens = raw if spatial == "last_block" else final
        given = {"none": None, "cls": final[:, 0], "pooled": model.forward_head(final, pre_logits=True)}
        return given[summary], grid(tokens[:, model.num_prefix_tokens :], pixels)

    return reference


def timm_sam_reference(model: Any, pixels: Tensor, summary: str, spatial: str) -> tuple[Tensor | None, Tensor]:
    raw, final = before(model.neck, lambda: model.forward_features(pixels))
    return None, raw if spatial == "last_block" else final


def timm_map_reference(model: Any, pixels: Tensor, summary: str, spatial: str) -> tuple[Tensor | None, Tensor]:
    final = model.forward_features(pixels)
    spatial_map = final.permute(0, 3, 1, 2) if str(getattr(model, "output_fmt", "NCHW")) == "NHWC" else final
    return None if summary == "none" else model.forward_head(final, pre_logits=True), spatial_map


TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}


def timm_vit(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **{**TIMM, "dynamic_img_size": True, **options})


def make_timm_sam() -> nn.Module:
    sizes = {**TIMM, "img_size": 64, "window_size": 3, "global_attn_indexes": (1,), "neck_chans": 16}
    return timm.create_model("samvit_base_patch16", **sizes)


# open_clip

CLIP = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def save_open_clip(model: Any, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    model.visual.image_mean, model.visual.image_std = MEAN, STD
    save_config_for_hf(model, folder / "open_clip_config.json", CLIP)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"open_clip:{folder}"


def open_clip_reference(model: Any, pixels: Tensor, summary: str, spatial: str) -> tuple[Tensor | None, Tensor]:
    if pixels.shape[-2:] != (32, 32):  # open_clip's own resampling, into a model made for the size
        small, model = model, open_clip.CLIP(**{**CLIP, "vision_cfg": {**CLIP["vision_cfg"], "image_size": (48, 24)}})
        state = small.state_dict()
        open_clip.model.resize_pos_embed(state, model)
        model.load_state_dict(state)
        model.eval()
    raw, embedding = before(model.visual.ln_post, lambda: model.encode_image(pixels))
    tokens = raw if spatial == "last_block" else model.visual.ln_post(raw)
    return None if summary == "none" else embedding, grid(tokens[:, 1:], pixels)


OTHERS = ((48, 24),)
PLAIN = ("final", "last_block")
SIGLIP_TEXT = {"vision_config": VISION, "text_config": TEXT}
NAFLEX = {**{key: value for key, value in VISION.items() if key != "image_size"}, "num_patches": 16}
CASES: dict[str, Case] = {
    "hf-dinov2": Case(
        lambda: hf.Dinov2Model(hf.Dinov2Config(**VISION)),
        save_hf(),
        token_reference("layernorm", 1, interpolate=False),
        ("cls", "none"),
        PLAIN,
        (32, 32),
        OTHERS,
    ),
    "hf-dinov2-registers": Case(
        lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**VISION, num_register_tokens=4)),
        save_hf(),
        token_reference("layernorm", 5, interpolate=False),
        ("cls", "none"),
        PLAIN,
        (32, 32),
        OTHERS,
    ),
    "hf-dinov3": Case(
        lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**VISION, num_register_tokens=2)),
        save_hf(),
        token_reference("norm", 3, interpolate=False),
        ("cls", "none"),
        PLAIN,
        (32, 32),
        OTHERS,
    ),
    "hf-vit": Case(
        lambda: hf.ViTModel(hf.ViTConfig(**VISION)),
        save_hf(),
        token_reference("layernorm", 1, interpolate=True),
        ("cls", "pooled", "none"),
        PLAIN,
        (32, 32),
        OTHERS,
    ),
    "hf-clip": Case(
        lambda: hf.CLIPModel(hf.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=24)),
        save_hf(),
        token_reference("post_layernorm", 1, interpolate=True, part="vision_model"),
        ("embedding", "pooled", "cls", "none"),
        ("final", "normed"),
        (32, 32),
        OTHERS,
    ),
    "hf-siglip": Case(
        lambda: hf.SiglipModel(hf.SiglipConfig(**SIGLIP_TEXT)),
        save_hf(),
        token_reference("post_layernorm", 0, interpolate=True, part="vision_model"),
        ("embedding", "none"),
        PLAIN,
        (32, 32),
        OTHERS,
    ),
    "hf-siglip2-naflex": Case(
        lambda: hf.Siglip2Model(hf.Siglip2Config(vision_config=NAFLEX, text_config=TEXT)),
        save_hf(),
        naflex_reference,
        ("embedding", "none"),
        PLAIN,
        (32, 32),
        OTHERS,
    ),
    "hf-radio": Case(make_radio, save_hf(), radio_reference, ("pooled", "none"), ("final",), (32, 32), OTHERS),
    "hf-sam": Case(make_sam, save_hf(), sam_reference, ("none",), PLAIN, (32, 32)),
    "hf-sam2": Case(make_sam2, save_hf(), sam2_reference, ("none",), PLAIN, (64, 64), named=((96, 64),)),
    "hf-sam2-encoder": Case(
        lambda: hf.Sam2VisionModel(sam2_vision()), save_hf(), sam2_reference, ("none",), PLAIN, (64, 64)
    ),
    "hf-sam3": Case(lambda: hf.Sam3VisionModel(sam3_vision()), save_hf(), sam3_reference, ("none",), PLAIN, (64, 64)),
    "hf-sam3-video": Case(
        lambda: hf.Sam3VisionModel(sam3_vision()), save_sam3_video, sam3_reference, ("none",), PLAIN, (64, 64)
    ),
    "hf-llava": Case(
        lambda: make_llava(-2),
        save_hf(),
        llava_reference,
        ("pooled", "cls", "none"),
        ("selected", "final"),
        (32, 32),
    ),
    "hf-llava-two-layers": Case(
        lambda: make_llava([-2, 1]), save_in_shards, llava_reference, ("none",), ("selected",), (32, 32)
    ),
    "hf-paligemma": Case(make_paligemma, save_in_shards, paligemma_reference, ("none",), PLAIN, (32, 32), OTHERS),
    "timm-vit-registers": Case(
        timm_vit("vit_tiny_patch16_224", reg_tokens=2),
        save_timm,
        timm_reference("norm"),
        ("pooled", "cls", "none"),
        PLAIN,
        (32, 32),
        OTHERS,
    ),
    "timm-dinov2": Case(
        timm_vit("vit_small_patch14_reg4_dinov2"),
        save_timm,
        timm_reference("norm"),
        ("pooled", "cls", "none"),
        PLAIN,
        (32, 32),
        OTHERS,
    ),
    "timm-dinov3": Case(
        timm_vit("vit_small_patch16_dinov3"),
        save_timm,
        timm_reference("norm"),
        ("pooled", "cls", "none"),
        PLAIN,
        (32, 32),
        OTHERS,
    ),
    "timm-sam": Case(
        make_timm_sam,
        save_timm,
        timm_sam_reference,
        ("none",),
        PLAIN,
        (64, 64),
        ((48, 96),),
        options={"resizable": True},
    ),
    "timm-convolutional": Case(
        lambda: timm.create_model("mobilenetv2_035", num_classes=0),
        save_timm,
        timm_map_reference,
        ("pooled", "none"),
        ("final",),
        (64, 64),
        ((64, 96),),
    ),
    "open_clip": Case(
        lambda: open_clip.CLIP(**CLIP),
        save_open_clip,
        open_clip_reference,
        ("embedding", "none"),
        PLAIN,
        (32, 32),
        named=((48, 24),),
    ),
}
