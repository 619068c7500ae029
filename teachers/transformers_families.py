"""The families of transformers models that can teach: one explicit table, by the configuration's `model_type`.

A checkpoint may hold more than an image tower (a language model, a decoder): `PARTS` says where the tower's
configuration and weights are in it, so that only they are read.
"""

from dataclasses import dataclass, replace
from typing import Any

from common.errors import UserError, unknown
from teachers.transformers_sam import Sam2Tower, Sam3Tower, SamTower
from teachers.transformers_towers import (
    TEXT_AND_IMAGE,
    ClipTower,
    ClsTower,
    InterpolatingTower,
    NaFlexTower,
    RadioTower,
    RegisterTower,
    ViTTower,
)


@dataclass(frozen=True)
class Family:
    """A kind of model: its tower, the summaries and maps it gives (first: default), how it takes other sizes."""

    tower: type[Any]
    summaries: tuple[str, ...]
    spatials: tuple[str, ...]
    resizable: bool
    other_sizes: str
    grid_of_patches: bool = False  #: the configuration states a number of patches instead of a size
    own_normalisation: bool = False  #: the configuration states mean and std


INTERPOLATED = "any multiple of the patch: position embeddings are interpolated"
ROTARY = "any multiple of the patch: rotary positions, nothing to interpolate"
FIXED = "one size only: its position embeddings and windows are made for it"
HIERA = "one size at a time, named by image_size, in steps of 32 px: eight cells of 4 px to a window"
TILED = "one square size at a time, named by image_size: positions are tiled, rotary ones scaled to it"

_PLAIN = ("final", "last_block")
_SIGLIP_VISION = ("pooled", "none")
_CLIP = ("final", "normed")
FAMILIES: dict[str, Family] = {
    "siglip": Family(InterpolatingTower, ("embedding", "none"), _PLAIN, True, INTERPOLATED),
    "siglip_vision_model": Family(InterpolatingTower, _SIGLIP_VISION, _PLAIN, True, INTERPOLATED),
    "siglip2": Family(NaFlexTower, ("embedding", "none"), _PLAIN, True, INTERPOLATED, grid_of_patches=True),
    "siglip2_vision_model": Family(NaFlexTower, _SIGLIP_VISION, _PLAIN, True, INTERPOLATED, grid_of_patches=True),
    "clip": Family(ClipTower, ("embedding", "pooled", "cls", "none"), _CLIP, True, INTERPOLATED),
    "clip_vision_model": Family(ClipTower, ("pooled", "cls", "none"), _CLIP, True, INTERPOLATED),
    "dinov2": Family(ClsTower, ("cls", "none"), _PLAIN, True, INTERPOLATED),
    "dinov2_with_registers": Family(RegisterTower, ("cls", "none"), _PLAIN, True, INTERPOLATED),
    "dinov3_vit": Family(RegisterTower, ("cls", "none"), _PLAIN, True, ROTARY),
    "vit": Family(ViTTower, ("cls", "pooled", "none"), _PLAIN, True, INTERPOLATED),
    "radio": Family(RadioTower, ("pooled", "none"), ("final",), True, INTERPOLATED, own_normalisation=True),
    "sam": Family(SamTower, ("none",), _PLAIN, False, FIXED),
    "sam_vision_model": Family(SamTower, ("none",), _PLAIN, False, FIXED),
    "sam2_vision_model": Family(Sam2Tower, ("none",), _PLAIN, False, HIERA),
    "sam3_vision_model": Family(Sam3Tower, ("none",), _PLAIN, False, TILED),
}


@dataclass(frozen=True)
class Part:
    """Where an image tower is in a larger model: the path to its configuration, and the name its weights begin with."""

    config: tuple[str, ...]
    weights: str


_ENCODER = Part(("vision_config",), "vision_encoder.")
_LANGUAGE = Part(("vision_config",), "vision_tower.")
PARTS: dict[str, Part] = {
    "sam2": _ENCODER,
    "sam2_video": _ENCODER,
    "sam3": _ENCODER,
    "sam3_video": Part(("detector_config", "vision_config"), "vision_encoder."),
    "paligemma": _LANGUAGE,
    "llava": _LANGUAGE,
    "llava_next": _LANGUAGE,
    "llava_onevision": _LANGUAGE,
}


def part_config(config: Any) -> Any:
    """The configuration of the image tower that is loaded: a part's own, or the whole one."""
    if config.model_type not in PARTS:
        return config
    for name in PARTS[config.model_type].config:
        config = getattr(config, name)
    return config


def family_of(name: str, config: Any) -> Family:
    """The family of a configuration; UserError for a model type of neither table.

    A vision-language model has its tower's family, and one map more: "selected", first, the hidden states its language
    model reads. A tower that was saved without its pooling head (PaliGemma's) has no summary.
    """
    tower = part_config(config)
    if tower.model_type not in FAMILIES:
        raise unknown(f"transformers model type (of {name})", tower.model_type, [*FAMILIES, *PARTS])
    family = FAMILIES[tower.model_type]
    summaries, spatials = family.summaries, family.spatials
    if not tower.to_dict().get("vision_use_head", True):
        summaries = ("none",)
    if selected_layers(config):
        spatials = ("selected", *spatials)
    return replace(family, summaries=summaries, spatials=spatials)


def selected_layers(config: Any) -> tuple[int, ...]:
    """The hidden states of the image tower that a vision-language model reads; () where none are named."""
    found = config.to_dict().get("vision_feature_layer")
    if found is None:
        return ()
    return (found,) if isinstance(found, int) else tuple(found)


def vision_config(config: Any) -> Any:
    """The image tower's part of a configuration, or the configuration itself where it has only that."""
    tower = part_config(config)
    return tower.vision_config if tower.model_type in (*TEXT_AND_IMAGE, "sam") else tower


def pixel_sizes(name: str, family: Family, config: Any, spatial: str) -> tuple[Any, int]:
    """Image size (int or pair) and patch of an image tower's configuration; the patch is that of the map `spatial`."""
    vision = vision_config(config)
    if family.tower is Sam2Tower:
        return vision.backbone_config.image_size, 32 if spatial == "last_block" else 16
    if family.tower is Sam3Tower:
        return vision.backbone_config.image_size, _one(name, vision.backbone_config.patch_size)
    patch = _one(name, vision.patch_size)
    return (round(vision.num_patches**0.5) * patch if family.grid_of_patches else vision.image_size), patch


def _one(name: str, patch: Any) -> int:
    """A patch side; UserError for patches that are not square."""
    sides = {patch} if isinstance(patch, int) else set(patch)
    if len(sides) != 1:
        raise UserError(f"{name} has patches of {patch} px; only square ones are known")
    return int(sides.pop())


def at_size(family: Family, config: Any, size: tuple[int, int]) -> None:
    """Write another native size into a configuration that is built for one; UserError where the model cannot."""
    if family.tower is not Sam3Tower:
        return
    if size[0] != size[1]:
        raise UserError(f"SAM3's rotary positions are made for square images, got {size[0]}x{size[1]}")
    vision_config(config).backbone_config.image_size = size[0]
