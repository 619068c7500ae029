"""transformers models as backbones: `transformers:NAME`, NAME a hub repository or a folder of `save_pretrained`.

SigLIP, SigLIP2 (fixed and NaFlex), CLIP, DINOv2 (with and without registers), DINOv3, ViT, RADIO, the image encoders of
SAM, SAM2 and SAM3 and the image towers of PaliGemma and LLaVA: the families of teachers/transformers_families.py. Code
from a repository runs only with `trust_remote_code: true` (teachers/remote_code.py).
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from common.errors import UserError
from teachers.checkpoint_part import read_part
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
from teachers.preprocessing import transformers_normalisation
from teachers.remote_code import RemoteTower
from teachers.transformers_families import (
    FIXED,
    PARTS,
    Family,
    at_size,
    family_of,
    part_config,
    pixel_sizes,
    selected_layers,
    vision_config,
)
from teachers.transformers_text import HubText
from teachers.transformers_towers import TokenTower
from teachers.weights import loading, shorten

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
REMOTE = Family(RemoteTower, ("pooled", "none"), ("final",), True, "any multiple of the patch, says its recipe")


def load(
    name: str,
    pretrained: bool = True,
    image_size: int | Sequence[int] | None = None,
    patch_size: int | None = None,
    summary: str | None = None,
    spatial: str | None = None,
    resizable: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    licence: str = "unknown",
    trust_remote_code: bool = False,
    device: str = "cpu",
) -> LibraryBackbone:
    """A transformers model from the hub or a folder, with its weights or, with `pretrained: false`, random ones.

    Args:
        summary: "embedding" (image-text space; CLIP and SigLIP), "pooled" (the library's pooler_output), "cls", "none";
            by default the family's first one.
        spatial: "final" (last_hidden_state without prefix tokens; SAM, SAM2, SAM3: after the neck), "last_block"
            (before the final norm; SAM, SAM2, SAM3: before the neck), "normed" (CLIP only: last_hidden_state through
            post_layernorm), "selected" (LLaVA and its like, their default: the hidden states the language model reads).
        image_size: the size to call native, for models that take others; for code from a repository, a required fact.
        patch_size: a required fact for code from a repository, refused otherwise.
        trust_remote_code: run the repository's own model code.
        device: "cpu", or "meta" to build from the configuration alone.

    Raises UserError for an unknown family, missing or misfit weights, an option the model cannot honour.
    """
    config = _config(name, trust_remote_code)
    family = _family(name, config, trust_remote_code)
    summary, spatial = _outputs(family, summary, spatial)
    free = family.resizable if resizable is None else resizable
    native, patch = _sizes(name, family, config, spatial, image_size, patch_size)
    mean, std = _normalisation(name, config, mean, std, family, patch)

    def build(where: str) -> Tower:
        with loading(name, fetch=not _is_folder(name)):
            model = _model(name, config, summary, trust_remote_code, where, pretrained)
        return _tower(family, model, summary, spatial, patch, config)

    def text_of(tower: Tower) -> TextEncoder | None:
        return _text(name, tower.model) if summary == "embedding" else None

    facts = Facts(
        name=f"transformers:{name}",
        library="transformers",
        patch_size=patch,
        native_size=native,
        resizable=free,
        mean=as_channels(mean, "mean"),
        std=as_channels(std, "std"),
        licence=licence,
        source=_source(name, pretrained),
        other_sizes=family.other_sizes if free == family.resizable else "one size only: its recipe says so",
        reads=spatial,
    )
    return assemble(facts, build, text_of, device)


def _config(name: str, trust_remote_code: bool) -> Any:
    if name.startswith((".", "/", "~")) and not _is_folder(name):
        raise UserError(f"there is no folder {name}; save_pretrained makes one")
    try:
        with loading(name, fetch=not _is_folder(name)):
            return transformers.AutoConfig.from_pretrained(_path(name), trust_remote_code=trust_remote_code)
    except UserError as error:
        if "trust_remote_code" in str(error.__cause__):
            raise UserError(
                f"{name} brings its own model code; read it, then say trust_remote_code: true to run it"
            ) from error
        raise


def _family(name: str, config: Any, trust_remote_code: bool) -> Family:
    if trust_remote_code and "AutoModel" in (config.to_dict().get("auto_map") or {}):
        warnings.warn(f"running the model code that comes with {name}", stacklevel=2)
        return REMOTE
    return family_of(name, config)


def _outputs(family: Family, summary: str | None, spatial: str | None) -> tuple[str, str]:
    """The summary and the map, the family's first ones where none is named; UserError for one it does not give."""
    summary = family.summaries[0] if summary is None else summary
    spatial = family.spatials[0] if spatial is None else spatial
    check_choice("summary", summary, family.summaries)
    check_choice("spatial", spatial, family.spatials)
    return summary, spatial


def _tower(family: Family, model: nn.Module, summary: str, spatial: str, patch: int, config: Any) -> Tower:
    tower: Tower = family.tower(model, summary, spatial, patch)
    if spatial == "selected":
        assert isinstance(tower, TokenTower)  # of which alone a language model selects
        tower.layers = selected_layers(config)
    return tower


def _sizes(
    name: str, family: Family, config: Any, spatial: str, image_size: Any, patch_size: int | None
) -> tuple[Size, int]:
    """Native size and patch, from the configuration, or from the options where no configuration says them."""
    if family is REMOTE:
        if image_size is None or patch_size is None:
            raise UserError(f"nothing says the size and patch of {name}: set image_size and patch_size")
        return as_size(image_size), patch_size
    if patch_size is not None:
        raise UserError(f"the configuration of {name} says its patch; remove patch_size")
    if image_size is not None and family.other_sizes == FIXED:
        raise UserError(f"{name} takes one size only, that of its configuration; remove image_size")
    own, patch = pixel_sizes(name, family, config, spatial)
    if image_size is None:
        return as_size(own if isinstance(own, int) else tuple(own), "image_size of the configuration"), patch
    at_size(family, config, as_size(image_size))
    return as_size(image_size), patch


def _normalisation(
    name: str, config: Any, mean: Sequence[float] | None, std: Sequence[float] | None, family: Family, patch: int
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of pixels in [0, 1]: the options, else what the configuration or the image processor says."""
    if mean is not None and std is not None:
        return mean, std
    if family.own_normalisation:
        return mean or config.norm_mean, std or config.norm_std
    missing = UserError(
        f"nothing says how transformers:{name} normalises its images (it has no image processor); set mean and std"
    )
    if family is REMOTE:
        raise missing
    try:
        with loading(name, fetch=not _is_folder(name)):
            processor = transformers.AutoImageProcessor.from_pretrained(_path(name))
    except UserError as error:
        raise missing from error
    own_mean, own_std = transformers_normalisation(processor.to_dict(), f"transformers:{name}", patch)
    return mean or own_mean, std or own_std


def _model(name: str, config: Any, summary: str, trust: bool, where: str, pretrained: bool) -> nn.Module:
    """The model of the configuration's class: empty on "meta", random, or with every one of its weights found."""
    kind, part = _class(config), PARTS.get(config.model_type)
    whole = kind is transformers.AutoModel
    own = part_config(config) if whole else vision_config(config)
    extra: dict[str, Any] = {"add_pooling_layer": summary == "pooled"} if config.model_type == "vit" else {}
    if where == "meta" or not pretrained:
        with torch.device(where):
            return kind.from_config(own, trust_remote_code=trust, **extra) if whole else kind(own)
    if part is not None:
        with torch.device("meta"):
            kind = type(kind.from_config(own))
        extra["state_dict"] = read_part(name, part.weights)
    elif whole:
        extra["trust_remote_code"] = trust
    path = None if part is not None else _path(name)
    with without_warnings():  # the library's table of what a part leaves over; what is missing is said below
        model, report = kind.from_pretrained(path, config=own, dtype=torch.float32, output_loading_info=True, **extra)
    _check_report(name, report)
    # The tensors still lie in the mapped file, at any offset; the last bits of a matrix product depend on the offset.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def _class(config: Any) -> Any:
    """AutoModel, or for a whole SAM its image encoder alone."""
    return transformers.SamVisionModel if config.model_type == "sam" else transformers.AutoModel


def _check_report(name: str, report: dict[str, Any]) -> None:
    """UserError when weights of the model are missing or misshapen; heads we do not use may be left over."""
    problems = [
        f"{title} {shorten(sorted(str(key) for key in report[kind]))}"
        for kind, title in (("missing_keys", "missing"), ("mismatched_keys", "other shapes"))
        if report[kind]
    ]
    if problems:
        left = sorted(report["unexpected_keys"])
        raise UserError(
            f"{name} does not fit the model: {'; '.join(problems)}" + (f"; unexpected {shorten(left)}" if left else "")
        )


def _text(name: str, model: nn.Module) -> TextEncoder | None:
    """`encode_text`, or None where the model has no text tower or its tokenizer files are not there."""
    if not hasattr(model, "get_text_features"):
        return None
    folder = Path(name).expanduser()
    if folder.is_dir() and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        return None
    return HubText(model, _path(name))


def _source(name: str, pretrained: bool) -> str:
    if not pretrained:
        return RANDOM
    return _path(name) if _is_folder(name) else f"hf-hub:{name}"


def _is_folder(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def _path(name: str) -> str:
    return str(Path(name).expanduser()) if _is_folder(name) else name
