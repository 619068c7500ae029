"""Names of tensors in the authors' checkpoints, and what they are called here."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from featsharp_adapter.convert.image_scale import ImageScale
from featsharp_adapter.convert.official_type import ParsedType, parse_type
from featsharp_adapter.model.jbu import prime_factors
from featsharp_adapter.upsamplers.featsharp import RGB_DIM


@dataclass(frozen=True)
class Found:
    """An upsampler of the table, its options, and its state dict."""

    upsampler: str
    factor: int
    options: dict[str, Any]
    tensors: dict[str, Tensor]


#: Factors of the kernels that normalising cancels.
_INERT = ("range_alpha", "spatial_alpha")
#: Weights of a whole fusion block: published name -> ours.
_WHOLE = {
    "ls1.gamma": "scale1",
    "ls2.gamma": "scale2",
    **{f"norm{i}.{part}": f"norm{i}.{part}" for i in (1, 2) for part in ("weight", "bias")},
    "attn.qkv.weight": "attention.qkv.weight",
    **{f"attn.proj.{part}": f"attention.proj.{part}" for part in ("weight", "bias")},
    **{f"mlp.{layer}.{part}": f"mlp.{layer}.{part}" for layer in ("w12", "w3") for part in ("weight", "bias")},
}
#: Layers of a block that is an attention or a SwiGLU alone; what is around them in its names is not documented.
_BRANCH = {"no_attention": ("w12", "w3"), "no_ffn": ("qkv", "proj")}


def featsharp_names(
    kind: str, state: Mapping[str, Tensor], *, heads: int, factor: Any, image: ImageScale, source: Path
) -> Found:
    """From the names in `upsampler.` of a FeatSharp checkpoint of this type ("featsharp.no-ln.inputs-jbu-tiles")."""
    if all(name.startswith("inner.") for name in state):
        return _stand_alone(kind, state, factor, image, source)
    parsed = parse_type(kind, source)
    levels = _split_levels(state, source)
    steps = _factors(levels, factor, parsed.progressive, source)
    tensors: dict[str, Tensor] = {}
    for level, names in levels.items():
        before = math.prod(steps[:level])
        for name, value in _level(names, parsed, before, image, source).items():
            tensors[f"levels.{level}.{name}"] = value
    return Found("featsharp", math.prod(steps), _options(parsed, tensors, heads), tensors)


def _options(parsed: ParsedType, tensors: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
    """Of the upsampler; widths are read off the weights."""
    options: dict[str, Any] = {
        "inputs": parsed.inputs,
        "progressive": parsed.progressive,
        "block": parsed.block,
        "norm": parsed.norm,
        "published_guidance": True,
    }
    attention = "branch" if parsed.block == "no_ffn" else "attention"
    qkv = tensors.get(f"levels.0.block.{attention}.qkv.weight")
    if qkv is not None:
        options |= {"heads": heads, "window": parsed.window, "head_dim": qkv.shape[0] // (3 * heads)}
    last = tensors.get(f"levels.0.block.{'branch' if parsed.block == 'no_attention' else 'mlp'}.w3.weight")
    return options if last is None else options | {"hidden": last.shape[1]}


def _split_levels(state: Mapping[str, Tensor], source: Path) -> dict[int, dict[str, Tensor]]:
    """Tensors of each fusion level, without its prefix `ups.N.`."""
    levels: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        match = re.fullmatch(r"ups\.(\d+)\.(.+)", name)
        if match is None:
            raise UserError(f"{source}: unknown tensor upsampler.{name}")
        levels.setdefault(int(match[1]), {})[match[2]] = value
    if sorted(levels) != list(range(len(levels))):
        raise UserError(f"{source}: levels {sorted(levels)} of its upsampler are not all there")
    return dict(sorted(levels.items()))


def _factors(levels: Mapping[int, Mapping[str, Tensor]], said: Any, progressive: bool, source: Path) -> list[int]:
    """Of each level, from its tile positions; UserError where the file says another factor."""
    if any("tile_pos" not in names for names in levels.values()):
        raise UserError(f"{source}: its fusion reads no tiles (no tile_pos); only one that does can be converted")
    steps = [names["tile_pos"].shape[-1] for names in levels.values()]
    whole = math.prod(steps)
    if said is not None and str(said) != str(whole):
        raise UserError(f"{source}: its tile positions are for factor {whole}, it says {said}")
    if steps != (prime_factors(whole) if progressive else [whole]):
        raise UserError(f"{source}: {len(steps)} levels of factors {steps} are not what its type builds for {whole}")
    return steps


def _level(
    names: Mapping[str, Tensor], parsed: ParsedType, before: int, image: ImageScale, source: Path
) -> dict[str, Tensor]:
    """One fusion level under our names. before: how often the map it is given has been enlarged already."""
    # Positions are per tile of the level's own input: each covers before x before tiles of the teacher's size.
    position = names["tile_pos"].repeat_interleave(before, dim=2).repeat_interleave(before, dim=3)
    tensors = {"position.embedding": position}
    rgb: dict[str, Tensor] = {}
    for name, value in names.items():
        if name.startswith("jbu.ups."):
            tensors |= _jbu_tensor(name.removeprefix("jbu.ups."), value, "jbu.levels.", source)
        elif name.startswith("block."):
            tensors[f"block.{_block_name(name.removeprefix('block.'), parsed.block, source)}"] = value
        elif "rgb" in parsed.inputs and value.shape in ((RGB_DIM, 3, 1, 1), (RGB_DIM,)):
            rgb[name.rpartition(".")[2]] = value
        elif name != "tile_pos":
            raise UserError(f"{source}: this package has no equal of upsampler.ups.N.{name}")
    if rgb:
        tensors |= {"rgb.weight": rgb["weight"], "rgb.bias": rgb.get("bias", torch.zeros(RGB_DIM))}
    return image.fold(tensors)


def _block_name(name: str, kind: str, source: Path) -> str:
    """Our name of a tensor of the fusion block."""
    if kind == "full":
        if name in _WHOLE:
            return _WHOLE[name]
    else:
        layer, _, part = name.rpartition(".")
        last = layer.rpartition(".")[2]
        if last in _BRANCH[kind]:
            return f"branch.{last}.{part}"
        if re.fullmatch(r"norm\d?", last):
            return f"norm.{part}"
    raise UserError(f"{source}: this package has no equal of upsampler.ups.N.block.{name}")


def featup_names(state: Mapping[str, Tensor], source: Path) -> Found:
    """From a FeatUp checkpoint's `upsampler.up1...` to `upsampler.upN...` and `upsampler.fixup_proj`."""
    tensors: dict[str, Tensor] = {}
    levels: set[int] = set()
    for name, value in state.items():
        match = re.fullmatch(r"(?:upsampler\.)?up(\d+)\.(.+)", name)
        if match is not None:
            level, rest = int(match[1]) - 1, match[2]
            levels.add(level)
            tensors |= _published_level(rest, value, f"levels.{level}.", source)
        elif re.fullmatch(r"(?:upsampler\.)?fixup_proj\.1\.(weight|bias)", name):
            tensors[f"fixup.1.{name.rpartition('.')[2]}"] = value
    if not levels or levels != set(range(len(levels))) or "fixup.1.weight" not in tensors:
        raise UserError(f"{source}: not a complete FeatUp JBU stack (levels {sorted(level + 1 for level in levels)})")
    return Found("featup_published", 2 ** len(levels), {}, tensors)


#: Of the conditional bias, a ViT block of timm: published name -> ours.
_CONDITIONAL = {"attn.qkv": "qkv", "attn.proj": "proj", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2"}
_CONDITIONAL |= {"norm1": "norm1", "norm2": "norm2"}
#: Its last layers and the LayerScale behind each, which is multiplied into them.
_SCALED = {"proj": "ls1.gamma", "mlp.2": "ls2.gamma"}


def conditional_names(state: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """`cond_bias_transform.*` of a FeatSharp checkpoint as the state of a `ConditionalBias`."""
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        layer, _, part = name.rpartition(".")
        if layer in _CONDITIONAL:
            tensors[f"{_CONDITIONAL[layer]}.{part}"] = value
        elif name not in _SCALED.values():
            raise UserError(f"{source}: this package has no equal of cond_bias_transform.{name}")
    if "qkv.weight" not in tensors:
        raise UserError(f"{source}: its conditional bias has no attention")
    tensors.setdefault("qkv.bias", tensors["qkv.weight"].new_zeros(len(tensors["qkv.weight"])))
    for layer, scale in _SCALED.items():
        for part in ("weight", "bias"):
            scaled = tensors.get(f"{layer}.{part}")
            if scale in state and scaled is not None:
                tensors[f"{layer}.{part}"] = scaled * state[scale].reshape(-1, *[1] * (scaled.dim() - 1))
    return tensors


def _stand_alone(kind: str, state: Mapping[str, Tensor], factor: Any, image: ImageScale, source: Path) -> Found:
    """FeatSharp's port of FeatUp alone, `jbu_stack`; its weights do not tell its factor."""
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        rest = name.removeprefix("inner.ups.")
        if rest == name:
            raise UserError(f"{source}: upsampler {kind} has tensors this package has no equal of ({name})")
        tensors |= _jbu_tensor(rest, value, "jbu.levels.", source)
    if not isinstance(factor, int) or isinstance(factor, bool) or factor < 2:
        raise UserError(f"{source} does not say its factor (upsample_args.factor is {factor!r})")
    return Found("featup", factor, {}, image.fold(tensors))


def _jbu_tensor(name: str, value: Tensor, prefix: str, source: Path) -> dict[str, Tensor]:
    """One tensor of FeatSharp's JBU: "J.rest". The width is stored as its logarithm here; its sign never mattered."""
    level, _, rest = name.partition(".")
    if rest in _INERT:
        return {}
    plain = {"range_temp": "log_temperature", "sigma_spatial": "log_sigma"}
    plain |= {f"range_proj.{i}.{part}": f"key.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    if rest not in plain:
        raise UserError(f"{source}: unknown tensor of a joint bilateral level: {rest}")
    return {f"{prefix}{level}.{plain[rest]}": value.abs().log() if rest == "sigma_spatial" else value}


def _published_level(name: str, value: Tensor, prefix: str, source: Path) -> dict[str, Tensor]:
    """One tensor of a level of FeatUp's own stack."""
    if name == "sigma_spatial":
        return {f"{prefix}log_sigma": value.abs().log()}
    plain = {"range_temp": "log_temperature"}
    for theirs, ours in (("range_proj", "key"), ("fixup_proj", "fixup")):
        plain |= {f"{theirs}.{i}.{part}": f"{ours}.{i}.{part}" for i in (0, 3) for part in ("weight", "bias")}
    if name not in plain:
        raise UserError(f"{source}: unknown tensor of a joint bilateral level: {name}")
    return {f"{prefix}{plain[name]}": value}
