"""timm models as backbones: `timm:NAME`, NAME a timm model, a folder saved by timm, or a hub repository ORG/NAME.

Vision transformers, SAM's encoder and convolutional networks alike: whatever has `forward_intermediates`.
"""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from common.errors import UserError
from teachers.contracts import Features
from teachers.library import (
    RANDOM,
    Facts,
    LibraryBackbone,
    Size,
    Tower,
    as_channels,
    as_size,
    assemble,
    check_choice,
    to_map,
    without_warnings,
)
from teachers.preprocessing import check_timm
from teachers.weights import check_checkpoint, loading

SUMMARIES = ("pooled", "cls", "none")
SPATIALS = ("final", "last_block")
#: "level:2" is the map after block 2 of a transformer, or stage 2 of a convolutional network, from 0.
LEVEL = "level:"


class TimmTower(Tower):
    """A timm model; features are what its `forward_features` and `forward_head(pre_logits=True)` give."""

    def __init__(self, model: nn.Module, summary: str, spatial: str) -> None:
        super().__init__()
        self.model = model
        self.summary = summary
        self.spatial = spatial

    def forward(self, pixels: Tensor) -> Features:
        """[B, 3, H, W] -> Features."""
        if self.spatial == "final":
            final = self.model.forward_features(pixels)
            return Features(self._summary(final), feature_map(self.model, final, pixels))
        indices = [_level(self.spatial, 0)] if self.spatial.startswith(LEVEL) else 1
        final, maps = self.model.forward_intermediates(pixels, indices=indices)
        return Features(self._summary(final), maps[0])

    def _summary(self, final: Tensor) -> Tensor | None:
        if self.summary == "none":
            return None
        return final[:, 0] if self.summary == "cls" else self.model.forward_head(final, pre_logits=True)

    def block_maps(self, pixels: Tensor, blocks: Sequence[int] | None) -> list[Tensor]:
        """[B, 3, H, W] -> [B, C, h, w] after each block of a transformer, or stage of a convolutional network."""
        return take_blocks(self.model, pixels, blocks)


def feature_map(model: Any, final: Tensor, pixels: Tensor) -> Tensor:
    """What timm's `forward_features` returned, tokens or a map, as [B, C, h, w] without prefix tokens."""
    if final.ndim == 4:
        channels_last = hasattr(model, "output_fmt") and str(model.output_fmt) == "NHWC"
        return final.permute(0, 3, 1, 2).contiguous() if channels_last else final
    laid_out = hasattr(model, "patch_embed") and hasattr(model.patch_embed, "dynamic_feat_size")
    if not laid_out or not hasattr(model, "num_prefix_tokens"):
        raise UserError(f"{type(model).__name__} of timm does not say how its tokens lie on the image")
    grid = model.patch_embed.dynamic_feat_size((pixels.shape[-2], pixels.shape[-1]))
    return to_map(final, model.num_prefix_tokens, grid)


def take_blocks(model: Any, pixels: Tensor, blocks: Sequence[int] | None) -> list[Tensor]:
    """[B, C, h, w] of each of a timm model's blocks, in the order asked for (timm sorts them)."""
    wanted = None if blocks is None else sorted(set(blocks))
    maps = model.forward_intermediates(pixels, indices=wanted, intermediates_only=True)
    return maps if blocks is None or wanted is None else [maps[wanted.index(block)] for block in blocks]


def load(
    name: str,
    weights: str | None = None,
    pretrained: bool = True,
    image_size: int | Sequence[int] | None = None,
    summary: str = "pooled",
    spatial: str = "final",
    resizable: bool | None = None,
    model_args: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    licence: str = "unknown",
    device: str = "cpu",
) -> LibraryBackbone:
    """A timm model with its published weights, those of `weights` (a file or folder), or random ones.

    Args:
        summary: "pooled" (timm's forward_head(pre_logits=True)), "cls" (first token after the norm) or "none".
        spatial: "final" (forward_features, without prefix tokens) or "last_block" (before the final norm; of SAM:
            before the neck), or "level:N" (after block N of a transformer, or
            stage N of a convolutional network, from 0).
        resizable: whether to take other sizes than the native one; by default what timm's configuration says. True for
            SAM, whose configuration says no, interpolates its position embeddings.
        image_size: another native size; position embeddings are interpolated to it as timm does.
        model_args: further arguments of timm.create_model, e.g. {pad_type: same}.
        mean, std: normalisation of pixels in [0, 1]; needed with `weights` when NAME has no tag to state it.
        device: "cpu", or "meta" to build without weights.

    Raises UserError for an unknown model, missing or misfit weights, an option the model cannot honour.
    """
    _check_options(summary, spatial, weights, pretrained)
    full = _with_source(name)
    from_hub = full.startswith("hf-hub:")
    scout = _scout(name, full, summary, spatial, dict(model_args or {}))
    config = scout.pretrained_cfg
    native, free, arguments = _sizes(scout, image_size, resizable, dict(model_args or {}))
    untold = weights is not None and "." not in name  # then timm's configuration is about other weights
    if untold and (mean is None or std is None):
        raise UserError(f"nothing says how {weights} normalises its images; set mean and std, or name timm's tag")
    file = None if weights is None or device == "meta" else check_checkpoint(weights)

    def build(where: str) -> Tower:
        read = pretrained and where != "meta"
        with loading(weights or name, fetch=from_hub or (read and file is None)):
            model = _create(full, arguments, where, read, file)
        return TimmTower(model, summary, spatial)

    facts = Facts(
        name=f"timm:{name}",
        library="timm",
        patch_size=int(scout.feature_info[_level(spatial, -1)]["reduction"]),
        native_size=native,
        resizable=free,
        mean=as_channels(mean if mean is not None else config["mean"], "mean"),
        std=as_channels(std if std is not None else config["std"], "std"),
        licence=licence if licence != "unknown" or untold else config.get("license") or "unknown",
        source=_source(full, config, weights, pretrained),
        other_sizes=_other_sizes(scout, free),
        reads=_reads(spatial, model_args or {}),
    )
    return assemble(facts, build, lambda _: None, device)


def _check_options(summary: str, spatial: str, weights: str | None, pretrained: bool) -> None:
    """UserError for what no model can honour."""
    check_choice("summary", summary, SUMMARIES)
    if not (spatial.startswith(LEVEL) and spatial.removeprefix(LEVEL).isdigit()):
        check_choice("spatial", spatial, (*SPATIALS, f"{LEVEL}N"))
    if weights is not None and not pretrained:
        raise UserError("weights and pretrained: false contradict each other; name one")


def _scout(name: str, full: str, summary: str, spatial: str, arguments: dict[str, Any]) -> Any:
    """The model without weights, for its configuration; UserError where it cannot give what is asked for."""
    with loading(name, fetch=full.startswith("hf-hub:")), without_warnings():
        scout = _create(full, arguments, "meta")
    check_timm(scout.pretrained_cfg, f"timm:{name}")
    _check_summary(name, scout, summary)
    _check_level(name, scout, spatial)
    return scout


def _sizes(
    scout: Any, image_size: int | Sequence[int] | None, resizable: bool | None, arguments: dict[str, Any]
) -> tuple[Size, bool, dict[str, Any]]:
    """Native size, whether others are taken, and the arguments of timm.create_model with what that needs."""
    config = scout.pretrained_cfg
    fixed = bool(config["fixed_input_size"])
    dynamic = "dynamic_img_size" in inspect.signature(type(scout).__init__).parameters
    free = (dynamic or not fixed) if resizable is None else resizable
    native = as_size(image_size) if image_size is not None else as_size(tuple(config["input_size"][1:]))
    if fixed and image_size is not None:
        arguments["img_size"] = native
    if dynamic and free:
        arguments["dynamic_img_size"] = True
    return native, free, arguments


def _create(
    full: str, arguments: dict[str, Any], where: str, pretrained: bool = False, file: Path | None = None
) -> Any:
    """timm.create_model on a device; a file goes through timm's own checkpoint filter, as a download would."""
    overlay = {"file": str(file), "source": "", "custom_load": False} if file else None
    try:
        with torch.device(where):
            return timm.create_model(full, pretrained=pretrained, pretrained_cfg_overlay=overlay, **arguments)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise UserError(f"{full} does not take these model_args: {error}") from error


def _with_source(name: str) -> str:
    """`name` with timm's prefix for a folder or a hub repository; UserError for a name that is neither, nor a model."""
    if name.startswith(("hf-hub:", "local-dir:")):
        return name
    if Path(name).expanduser().is_dir():
        if not (Path(name).expanduser() / "config.json").is_file():
            raise UserError(f"{name} has no config.json; name the architecture instead and give `weights: {name}`")
        return f"local-dir:{Path(name).expanduser()}"
    if name.startswith((".", "/", "~")):
        raise UserError(f"there is no folder {name}; a weight file goes with its architecture: `weights: FILE`")
    if "/" in name:
        return f"hf-hub:{name}"
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        raise UserError(f'timm has no model "{architecture}"' + (f' (did you mean "{close[0]}"?)' if close else ""))
    tags = [entry.partition(".")[2] for entry in timm.list_pretrained(f"{architecture}.*")]
    if "." in name and name.partition(".")[2] not in tags:
        raise UserError(f'timm has no weights "{name}"; of {architecture}: {", ".join(filter(None, tags)) or "none"}')
    return name


def _level(spatial: str, otherwise: int) -> int:
    """The block or stage that `spatial` names."""
    return int(spatial.removeprefix(LEVEL)) if spatial.startswith(LEVEL) else otherwise


def _check_level(name: str, scout: Any, spatial: str) -> None:
    """UserError for a level that the model does not have."""
    if spatial.startswith(LEVEL):
        levels = len(scout.feature_info)
        if _level(spatial, 0) >= levels:
            raise UserError(f"timm:{name} has levels 0 to {levels - 1}, not {_level(spatial, 0)}")


def _check_summary(name: str, model: nn.Module, summary: str) -> None:
    if summary == "cls" and (not hasattr(model, "cls_token") or model.cls_token is None):
        raise UserError(f'timm:{name} has no class token; use summary: "pooled" or "none"')
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"timm:{name} has no forward_intermediates in this timm, so its maps cannot be read")


def _other_sizes(model: nn.Module, free: bool) -> str:
    """How a timm model takes other sizes, in words."""
    if not free:
        return "one size only, named by image_size: position embeddings are interpolated when it is built"
    if hasattr(model, "rope") and model.rope is not None:
        return "any multiple of the patch: rotary positions, nothing to interpolate"
    if hasattr(model, "pos_embed"):
        return "any multiple of the patch: position embeddings are interpolated"
    return "any multiple of the stride: it has no positions"


def _reads(spatial: str, model_args: Mapping[str, Any]) -> str:
    """The map, and the arguments that the model was made with."""
    return " ".join([spatial, *(f"{name}={value}" for name, value in sorted(model_args.items()))])


def _source(full: str, config: Mapping[str, Any], weights: str | None, pretrained: bool) -> str:
    if weights is not None:
        return str(weights)
    if not pretrained:
        return RANDOM
    if full.startswith(("local-dir:", "hf-hub:")):
        return full
    return f"hf-hub:{config['hf_hub_id']}" if config.get("hf_hub_id") else str(config.get("url") or "timm")
