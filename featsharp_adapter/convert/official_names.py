"""Names of tensors in the authors' checkpoints, and what they are called here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import UserError
from featsharp_adapter.model.jbu import prime_factors


@dataclass(frozen=True)
class Found:
    """An upsampler of the table, its options, and its state dict."""

    upsampler: str
    factor: int
    options: dict[str, Any]
    tensors: dict[str, Tensor]


#: Of one FeatSharp level: published name -> ours.
_BLOCK = {
    "tile_pos": "position.embedding",
    "block.ls1.gamma": "block.scale1",
    "block.ls2.gamma": "block.scale2",
    **{f"block.norm{i}.{part}": f"block.norm{i}.{part}" for i in (1, 2) for part in ("weight", "bias")},
    "block.attn.qkv.weight": "block.attention.qkv.weight",
    **{f"block.attn.proj.{part}": f"block.attention.proj.{part}" for part in ("weight", "bias")},
    **{
        f"block.mlp.{layer}.{part}": f"block.mlp.{layer}.{part}"
        for layer in ("w12", "w3")
        for part in ("weight", "bias")
    },
}
#: Factors of the kernels that normalising cancels.
_INERT = ("range_alpha", "spatial_alpha")
_INPUTS = ("jbu", "bilinear", "tiles")


def featsharp_names(
    kind: str, state: Mapping[str, Tensor], *, heads: int, window: int, factor: Any, source: Path
) -> Found:
    """From the names in `upsampler.` of a FeatSharp checkpoint of this type ("featsharp.no-ln.inputs-jbu-tiles")."""
    if all(name.startswith("inner.") for name in state):
        return _stand_alone(kind, state, factor, source)
    inputs, flags = _parse_type(kind, source)
    tensors: dict[str, Tensor] = {}
    steps: dict[int, list[int]] = {}
    for name, value in state.items():
        match = re.fullmatch(r"ups\.(\d+)\.(.+)", name)
        if match is None:
            raise UserError(f"{source}: unknown tensor upsampler.{name}")
        level, rest = int(match[1]), match[2]
        if rest.startswith("jbu.ups."):
            inner = rest.removeprefix("jbu.ups.")
            tensors |= _jbu_tensor(inner, value, f"levels.{level}.jbu.levels.", source)
        elif rest in _BLOCK:
            tensors[f"levels.{level}.{_BLOCK[rest]}"] = value
        else:
            raise UserError(f"{source}: this package has no equal of upsampler.{name}")
        steps.setdefault(level, [])
    whole = _factor(state, factor, source)
    if "tiles" not in inputs or "levels.0.block.attention.qkv.weight" not in tensors:
        raise UserError(f"{source}: {kind} is not a fusion of tiles by attention; only that can be converted")
    options = {
        "inputs": inputs,
        "progressive": len(steps) > 1,
        "norm": "no-ln" not in flags,
        "heads": heads,
        "window": window,
        "head_dim": tensors["levels.0.block.attention.qkv.weight"].shape[0] // (3 * heads),
        "hidden": tensors["levels.0.block.mlp.w3.weight"].shape[1],
        "published_guidance": True,
    }
    return Found("featsharp", whole, options, tensors)


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
            value = tensors.get(f"{layer}.{part}")
            if scale in state and value is not None:
                tensors[f"{layer}.{part}"] = value * state[scale].reshape(-1, *[1] * (value.dim() - 1))
    return tensors


def _stand_alone(kind: str, state: Mapping[str, Tensor], factor: Any, source: Path) -> Found:
    """FeatSharp's port of FeatUp alone, `jbu_stack`; its weights do not tell its factor."""
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        rest = name.removeprefix("inner.ups.")
        if rest == name:
            raise UserError(f"{source}: upsampler {kind} has tensors this package has no equal of ({name})")
        tensors |= _jbu_tensor(rest, value, "jbu.levels.", source)
    if not isinstance(factor, int) or isinstance(factor, bool) or factor < 2:
        raise UserError(f"{source} does not say its factor (upsample_args.factor is {factor!r})")
    return Found("featup", factor, {}, tensors)


def _factor(state: Mapping[str, Tensor], said: Any, source: Path) -> int:
    """From the shape of the last level's tile positions; UserError where the file says another."""
    positions = [value.shape[-1] for name, value in sorted(state.items()) if name.endswith(".tile_pos")]
    whole = max(positions, default=0)
    if not whole or (said is not None and int(said) != whole):
        raise UserError(f"{source}: its tile positions are for factor {whole or '?'}, it says {said}")
    levels = {name.split(".")[1] for name in state if name.startswith("ups.")}
    if len(levels) not in (1, len(prime_factors(whole))):
        raise UserError(f"{source}: {len(levels)} levels do not make a factor of {whole}")
    return whole


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


def _parse_type(kind: str, source: Path) -> tuple[list[str], set[str]]:
    """ "featsharp.no-ln.inputs-jbu-tiles" -> its inputs, in order, and its other flags."""
    name, *flags = kind.split(".")
    inputs = ["jbu", "tiles"]
    others = set()
    for flag in flags:
        if flag.startswith("inputs-"):
            inputs = flag.removeprefix("inputs-").split("-")
        else:
            others.add(flag)
    unknown = [item for item in inputs if item not in _INPUTS] + sorted(others - {"no-ln", "prog"})
    if name != "featsharp" or unknown:
        raise UserError(f"{source}: type {kind} has parts this package has no equal of ({', '.join(unknown) or name})")
    return inputs, others
