"""What a checkpoint's own files say of preparing images: every field is used, left to the recipe, or refused.

A backbone here takes RGB in [0, 1] and normalises by itself, so rescaling, offset and normalisation of a processor fold
into one mean and one std. How a photograph comes to a size (resize, crop, pad, filter) is no part of a backbone: suites
and training recipes say it for all backbones alike. docs/preprocessing.md has these tables for people.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import UserError

Channels = tuple[float, ...]

#: preprocessor_config.json of transformers; the values are what a field does here
TRANSFORMERS_FIELDS: Mapping[str, str] = {
    **dict.fromkeys(
        ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "rescale_offset", "offset"), "used"
    ),
    "patch_size": "checked",
    **dict.fromkeys(
        ("do_resize", "size", "resample", "crop_size", "do_center_crop", "crop_pct", "do_pad", "pad_size",
         "size_divisor", "image_grid_pinpoints", "max_num_patches", "keep_aspect_ratio", "ensure_multiple_of",
         "default_to_square", "do_convert_rgb", "mask_size", "mask_pad_size"), "recipe",
    ),
    **dict.fromkeys(
        ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "_processor_class",
         "data_format", "input_data_format", "return_tensors", "device", "disable_grouping", "_valid_processor_keys",
         "image_seq_length", "vision_feature_select_strategy", "num_image_tokens"), "names",
    ),
}  # fmt: skip
#: preprocess_cfg of open_clip, and its table of published weights
OPEN_CLIP_FIELDS: Mapping[str, str] = {
    **dict.fromkeys(("mean", "std", "quick_gelu", "hf_hub", "url"), "used"),
    **dict.fromkeys(("mode", "size"), "checked"),
    **dict.fromkeys(("interpolation", "resize_mode", "fill_color"), "recipe"),
}


def transformers_normalisation(processor: Mapping[str, Any], name: str, patch: int | None) -> tuple[Channels, Channels]:
    """(mean, std) on pixels in [0, 1] that do what an image processor does to bytes; UserError for what it cannot be.

    A processor computes (factor x byte - offset - mean) / std, with factor 1 where it does not rescale, and mean 0, std
    1 where it does not normalise.
    """
    for field, value in processor.items():
        if field not in TRANSFORMERS_FIELDS and value not in (None, False):
            raise UserError(
                f"the image processor of {name} says {field}: {str(value)[:60]}, which is not known here; "
                "work out what it does to pixels, then set mean and std"
            )
    if patch is not None and processor.get("patch_size") not in (None, patch):
        raise UserError(
            f"the image processor of {name} cuts patches of {processor['patch_size']} px, its model {patch}"
        )
    mean: Channels = (0.0, 0.0, 0.0)
    std: Channels = (1.0, 1.0, 1.0)
    if processor.get("do_normalize"):
        mean = _three(processor.get("image_mean"), "image_mean", name)
        std = _three(processor.get("image_std"), "image_std", name)
    factor = float(processor.get("rescale_factor") or 0) if processor.get("do_rescale") else 1.0
    if not factor > 0 or min(std) <= 0:
        raise UserError(f"the image processor of {name} rescales by {factor:g} and divides by {std}; set mean and std")
    full = 255.0 * factor  # what a white pixel becomes before the offset
    full = 1.0 if abs(full - 1.0) < 1e-9 else full
    offset = 1.0 if processor.get("rescale_offset") or processor.get("offset") else 0.0
    if offset and not processor.get("do_rescale"):
        raise UserError(f"the image processor of {name} has an offset without do_rescale; set mean and std")
    return tuple((value + offset) / full for value in mean), tuple(value / full for value in std)


def check_timm(config: Mapping[str, Any], name: str) -> None:
    """UserError where a timm model does not see RGB."""
    channels = config["input_size"][0]
    if channels != 3:
        raise UserError(f"{name} sees {channels} channels; only models of RGB images are known here")


def check_open_clip(preprocess: Mapping[str, Any], name: str, size: int | Sequence[int] | None) -> None:
    """UserError for an open_clip preprocessing that is not of RGB, of another size, or has fields unknown here.

    `size` is that of the model as its configuration builds it, None where the recipe names another.
    """
    if unknown := sorted(set(preprocess) - OPEN_CLIP_FIELDS.keys()):
        raise UserError(
            f"the preprocessing of {name} says {', '.join(unknown)}, which is not known here; set mean and std"
        )
    if preprocess.get("mode", "RGB") != "RGB":
        raise UserError(f"{name} sees {preprocess['mode']} images; only models of RGB images are known here")
    told = preprocess.get("size")
    if told is not None and size is not None and _pair(told) != _pair(size):
        raise UserError(f"{name} is built for {_pair(size)} px but prepares images of {_pair(told)} px; set image_size")


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))


def _three(value: Any, field: str, name: str) -> Channels:
    """One number for all channels, or three."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (float(value),) * 3
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3:
        raise UserError(
            f"the image processor of {name} normalises with {field}: {value!r}, not three numbers; set mean and std"
        )
    return tuple(float(number) for number in value)
