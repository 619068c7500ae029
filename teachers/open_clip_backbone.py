"""open_clip models as backbones: `open_clip:ARCH:TAG`, a folder with open_clip_config.json, or a hub name.

CLIP, SigLIP and whatever else open_clip builds; all of them take one size only. `ARCH` alone goes with
`weights: FILE` (or `pretrained: false`) and then needs `mean` and `std`, because only a tag states them.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.model import CLIPVisionCfg
from open_clip.pretrained import download_pretrained_from_hf, get_pretrained_cfg
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from teachers.contracts import Features
from teachers.library import (
    RANDOM,
    Facts,
    LibraryBackbone,
    Size,
    TextEncoder,
    Tower,
    as_channels,
    as_size,
    assemble,
    check_choice,
    without_warnings,
)
from teachers.preprocessing import check_open_clip
from teachers.text_cleaning import is_siglip2
from teachers.timm_backbone import feature_map, take_blocks
from teachers.weights import check_checkpoint, loading

SUMMARIES = ("embedding", "none")
SPATIALS = ("final", "last_block")


class OpenClipTower(Tower):
    """An open_clip model; the summary is `encode_image` (not normalised), the map the patch tokens before pooling."""

    def __init__(self, model: nn.Module, summary: str, spatial: str) -> None:
        super().__init__()
        self.model = model
        self.summary = summary
        self.spatial = spatial

    @property
    def image_part(self) -> nn.Module:
        """The image tower."""
        return self.model.visual

    def drop_text(self) -> None:
        """Keep the image tower alone."""
        self.model = nn.ModuleDict({"visual": self.model.visual})

    def forward(self, pixels: Tensor) -> Features:
        """[B, 3, H, W] -> Features."""
        visual = self.model.visual
        if isinstance(visual, TimmModel):
            final = visual.trunk.forward_features(pixels)
            embedding = visual.head(visual.trunk.forward_head(final))
            spatial = feature_map(visual.trunk, final, pixels)
            if self.spatial == "last_block":
                spatial = self.block_maps(pixels, None)[-1]
        else:
            found = self._intermediates(pixels, 1, normalise=self.spatial == "final" and norm_before_pool(visual))
            embedding, spatial = found["image_features"], found["image_intermediates"][0]
        return Features(embedding if self.summary == "embedding" else None, spatial)

    def _intermediates(self, pixels: Tensor, indices: int, normalise: bool) -> dict[str, Any]:
        return self.model.visual.forward_intermediates(pixels, indices=indices, normalize_intermediates=normalise)

    def block_maps(self, pixels: Tensor, blocks: Sequence[int] | None) -> list[Tensor]:
        """[B, 3, H, W] -> [B, C, h, w] after each block, before the tower's final norm."""
        visual = self.model.visual
        if isinstance(visual, TimmModel):
            return take_blocks(visual.trunk, pixels, blocks)
        wanted = None if blocks is None else sorted(set(blocks))
        maps = visual.forward_intermediates(pixels, indices=wanted, intermediates_only=True)["image_intermediates"]
        return maps if blocks is None or wanted is None else [maps[wanted.index(block)] for block in blocks]


def norm_before_pool(visual: nn.Module) -> bool:
    """Whether the tower hands normalised tokens to its pooling (OpenAI's CLIP does; CoCa does not)."""
    return isinstance(visual, VisionTransformer) and visual.attn_pool is None and not visual.final_ln_after_pool


class Text:
    """`encode_text` of an open_clip model. The tokenizer may be a download, so it is made at the first call."""

    def __init__(self, model: nn.Module, full: str) -> None:
        self.model: Any = model
        self.full = full
        self.tokenizer: Any = None

    def __call__(self, texts: list[str]) -> Tensor:
        """N texts -> [N, S], in the space of `encode_image`, not normalised."""
        if self.tokenizer is None:
            with loading(f"the tokenizer of {self.full}", fetch=not self.full.startswith("local-dir:")):
                self.tokenizer = open_clip.get_tokenizer(self.full)
            if isinstance(self.tokenizer, HFTokenizer) and is_siglip2(self.tokenizer.tokenizer):
                self.tokenizer.clean_fn = str.lower  # open_clip's would take punctuation out as well
        device = next(self.model.parameters()).device
        return self.model.encode_text(self.tokenizer(texts).to(device))


def load(
    name: str,
    weights: str | None = None,
    pretrained: bool = True,
    image_size: int | Sequence[int] | None = None,
    summary: str = "embedding",
    spatial: str = "final",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    licence: str = "unknown",
    device: str = "cpu",
) -> LibraryBackbone:
    """An open_clip model with the weights of its tag or folder, those of `weights` (file or folder), or random ones.

    Args:
        summary: "embedding" (encode_image, before L2 normalisation) or "none".
        spatial: "final" (patch tokens as they enter the pooling: after the final norm where the tower normalises
            first) or "last_block" (before that norm).
        image_size: another native size (SigLIP-384 is run at 378); position embeddings are interpolated by open_clip.
        device: "cpu", or "meta" to build without weights.

    Raises UserError for an unknown architecture or tag, missing or misfit weights, unknown normalisation.
    """
    check_choice("summary", summary, SUMMARIES)
    check_choice("spatial", spatial, SPATIALS)
    full, tag = _split(name)
    size = None if image_size is None else as_size(image_size)
    config, preprocess = _configuration(full, tag)
    file = _weight_file(name, full, tag, weights, pretrained, device)
    published = tag if pretrained and file is None else None

    def build(where: str) -> Tower:
        with loading(weights or name, fetch=where != "meta" and pretrained and file is None):
            model = _create(full, published, file, size, where)
        return OpenClipTower(model, summary, spatial)

    def text_of(tower: Tower) -> TextEncoder | None:
        return Text(tower.model, full) if summary == "embedding" else None

    vision = CLIPVisionCfg(**config["vision_cfg"])
    if mean is None or std is None:
        check_open_clip(preprocess, f"open_clip:{name}", vision.image_size if size is None else None)
    _check_square(name, vision, size)
    facts = Facts(
        name=f"open_clip:{name}",
        library="open_clip",
        patch_size=_patch(vision),
        native_size=size or as_size(vision.image_size),
        resizable=False,
        mean=_channels(name, "mean", mean, preprocess),
        std=_channels(name, "std", std, preprocess),
        licence=licence,
        source=_source(full, tag, weights, pretrained),
        other_sizes="one size only, named by image_size: position embeddings are interpolated when it is built",
        reads=spatial,
    )
    return assemble(facts, build, text_of, device)


def _split(name: str) -> tuple[str, str | None]:
    """ARCH:TAG, ARCH, a folder or ORG/REPO -> open_clip's model name and the tag."""
    if name.startswith(("hf-hub:", "local-dir:")):
        return name, None
    if Path(name).expanduser().is_dir():
        return f"local-dir:{Path(name).expanduser()}", None
    if name.startswith((".", "/", "~")):
        raise UserError(f"there is no folder {name}; a weight file goes with its architecture: `weights: FILE`")
    if "/" in name:
        return f"hf-hub:{name}", None
    arch, _, tag = name.partition(":")
    if arch not in open_clip.list_models():
        close = difflib.get_close_matches(arch, open_clip.list_models(), n=1)
        raise UserError(f'open_clip has no model "{arch}"' + (f' (did you mean "{close[0]}"?)' if close else ""))
    return arch, tag or None


def _configuration(full: str, tag: str | None) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The model's configuration and what is known of its preprocessing."""
    if full.startswith(("local-dir:", "hf-hub:")):
        with loading(full.partition(":")[2], fetch=full.startswith("hf-hub:")):
            if full.startswith("local-dir:"):
                file = Path(full.removeprefix("local-dir:")) / "open_clip_config.json"
            else:
                file = Path(download_pretrained_from_hf(full.removeprefix("hf-hub:"), filename="open_clip_config.json"))
            stored = json.loads(file.read_text(encoding="utf-8"))
            return stored["model_cfg"], stored.get("preprocess_cfg", {})
    config = open_clip.get_model_config(full)
    if tag is None:
        return config, {}
    published = get_pretrained_cfg(full, tag)
    if not published:
        tags = open_clip.list_pretrained_tags_by_model(full)
        raise UserError(f'open_clip has no weights "{tag}" for {full}; it has: {", ".join(tags) or "none"}')
    if published.get("quick_gelu", False) != config.get("quick_gelu", False):
        other = f"{full}-quickgelu" if published.get("quick_gelu", False) else full.removesuffix("-quickgelu")
        raise UserError(f"{full}:{tag} differ in their activation (QuickGELU or GELU); use {other}:{tag}")
    return config, published


def _weight_file(
    name: str, full: str, tag: str | None, weights: str | None, pretrained: bool, device: str
) -> Path | None:
    """The local file to read, None where open_clip fetches one or none is wanted."""
    if weights is not None and not pretrained:
        raise UserError("weights and pretrained: false contradict each other; name one")
    if device == "meta" or not pretrained:
        return None
    if weights is not None:
        return check_checkpoint(weights)
    if full.startswith("local-dir:"):
        return check_checkpoint(full.removeprefix("local-dir:"))
    if tag is None and not full.startswith("hf-hub:"):
        raise UserError(
            f"open_clip:{name} names no weights; add a tag (ARCH:TAG), `weights: FILE` or `pretrained: false`"
        )
    return None


def _create(full: str, tag: str | None, file: Path | None, size: Size | None, where: str) -> Any:
    """open_clip.create_model on a device; `file` wins over `tag`, and neither means no weights."""
    wanted = where != "meta" and (file is not None or tag is not None or full.startswith("hf-hub:"))
    in_folder = full.startswith("local-dir:")
    forced = size[0] if size and size[0] == size[1] else size  # its residual networks take an int only
    with torch.device(where):
        model = open_clip.create_model(
            full,
            pretrained=None if not wanted or in_folder else str(file or tag or "") or None,
            load_weights=wanted and not in_folder,
            device=where,
            force_image_size=forced,
            pretrained_text=False,
            require_pretrained=wanted and not in_folder,
        )
    if wanted and in_folder:
        open_clip.load_checkpoint(model, str(file), strict=True)
    return model


def _check_square(name: str, vision: CLIPVisionCfg, size: Size | None) -> None:
    """UserError for another shape than a square of a network that open_clip builds for those alone."""
    if size and size[0] != size[1] and isinstance(vision.layers, Sequence):
        raise UserError(f"open_clip:{name} is a residual network, which open_clip builds for square sizes only")


def _patch(vision: CLIPVisionCfg) -> int:
    """Pixels per token side, from the configuration or from the timm model that it names."""
    if vision.timm_model_name:
        with torch.device("meta"), without_warnings():
            made: Any = timm.create_model(vision.timm_model_name, pretrained=False)
            return int(made.feature_info[-1]["reduction"])
    if isinstance(vision.layers, Sequence):
        return 32  # open_clip's ModifiedResNet halves the size five times, whatever its configuration
    return int(vision.patch_size)


def _channels(
    name: str, option: str, given: Sequence[float] | None, preprocess: Mapping[str, Any]
) -> tuple[float, ...]:
    value = given if given is not None else preprocess.get(option)
    if value is None:
        raise UserError(f"nothing says how open_clip:{name} normalises its images; add a tag, or `{option}: [r, g, b]`")
    return as_channels(value, option)


def _source(full: str, tag: str | None, weights: str | None, pretrained: bool) -> str:
    if weights is not None:
        return str(weights)
    if not pretrained:
        return RANDOM
    if tag is None:
        return full
    published = get_pretrained_cfg(full, tag)
    return f"hf-hub:{published['hf_hub']}".rstrip("/") if published.get("hf_hub") else str(published.get("url"))
