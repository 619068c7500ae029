"""Checkpoints of the authors' programs, as adapters of ours: FeatSharp's `last.pth.tar` and FeatUp's JBU `.ckpt`.

Only tensors and plain containers are read: nothing in a file is executed. Names and shapes decide what a tensor is;
what this package has no equal of is refused by name.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.description import AdapterMeta
from featsharp_adapter.convert.image_scale import ImageScale
from featsharp_adapter.convert.official_names import conditional_names, featsharp_names, featup_names
from featsharp_adapter.convert.official_spectral import bake_official
from featsharp_adapter.model.normalisers import AffineNormaliser, LayerNormaliser, Normaliser, new_normaliser
from featsharp_adapter.model.phi_s import PhiS
from teachers.contracts import BackboneSpec

HEADS = 16
#: Largest deviation from orthogonality at which a stored rotation is taken for one.
ORTHOGONAL = 1e-3


def convert(path: Path, teacher: BackboneSpec, node: str | dict[str, Any], *, published_views: bool = True) -> Adapter:
    """The adapter in a published-format checkpoint, for the teacher it was trained with. UserError for anything else.

    published_views: resize what a FeatSharp's teacher sees without antialiasing, as in its training.
    """
    content = read_checkpoint(path)
    try:
        adapter = _converted(content, teacher, node, published_views, path)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is not laid out as the published programs write it ({said})") from error
    wrong = [name for name, value in adapter.state_dict().items() if not bool(torch.isfinite(value).all())]
    if wrong:
        raise UserError(f"{path}: values are NaN or infinite (of what becomes {wrong[0]}); the file is damaged")
    return adapter


def _converted(
    content: Mapping[str, Any], teacher: BackboneSpec, node: str | dict[str, Any], published_views: bool, path: Path
) -> Adapter:
    if isinstance(content.get("model_state"), Mapping):
        return _from_featsharp(content, teacher, node, published_views, path)
    state = content.get("state_dict", content)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if any(".range_temp" in name and ".ups." not in name for name in tensors):
        return _from_featup(tensors, teacher, node, path)
    raise UserError(f"{path} is neither a FeatSharp checkpoint (model_state) nor a FeatUp JBU one (upsampler.up1...)")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What is in the file, read without executing anything; UserError when it cannot be."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {path}") from error
    except Exception as error:  # a damaged or unsafe file makes the unpickler raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as plain tensors ({reason}); it is damaged or holds code") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no mapping of names to tensors")
    return content


def _from_featsharp(
    content: Mapping[str, Any], teacher: BackboneSpec, node: str | dict[str, Any], published_views: bool, path: Path
) -> Adapter:
    modules = split_modules(content["model_state"])
    arguments = content.get("upsample_args") or {}
    kind = str(arguments.get("type", ""))
    upsampler = bake_official(modules.get("upsampler", {}))
    bias = modules.get("bias_buffer", {}).get("buffer")
    _check_width(upsampler, bias, modules, teacher, path)
    conditional = modules.get("cond_bias_transform")
    added = None if conditional is None else conditional_names(bake_official(conditional), path)
    if not kind:
        raise UserError(f"{path} does not say what its upsampler is (upsample_args.type)")
    image = ImageScale(teacher.mean, teacher.std)
    found = featsharp_names(kind, upsampler, heads=HEADS, factor=arguments.get("factor"), image=image, source=path)
    normaliser, name = _normaliser(modules.get("normalizer", {}), str(arguments.get("normalizer", "")), teacher, path)
    meta = AdapterMeta(
        teacher=teacher,
        teacher_node=node,
        upsampler=found.upsampler,
        factor=found.factor,
        options=found.options,
        normaliser=name,
        conditional_heads=None if added is None else HEADS,
        published_views=published_views,
        training={"converted from": path.name, "type": kind},
    )
    adapter = _filled(meta, normaliser, found.tensors, bias, path)
    if added is not None and adapter.conditional is not None:
        _fill(adapter.conditional, added, "conditional bias", path)
    return adapter


def _from_featup(
    tensors: Mapping[str, Tensor], teacher: BackboneSpec, node: str | dict[str, Any], path: Path
) -> Adapter:
    found = featup_names(tensors, path)
    width = found.tensors["fixup.1.weight"].shape[0]
    if width != teacher.spatial_dim:
        raise UserError(f"{path} is for features {width} wide, {teacher.name} has {teacher.spatial_dim}")
    norms = {name: value for name, value in tensors.items() if name.startswith("model.1.norm.")}
    for name, value in norms.items():
        plain = torch.ones_like(value) if name.endswith("weight") else torch.zeros_like(value)
        if not torch.equal(value, plain):
            raise UserError(f"{path}: {name} is a trained layer norm, which no normaliser of this package is")
    name = "layer_norm" if norms else "none"
    meta = AdapterMeta(
        teacher=teacher,
        teacher_node=node,
        upsampler="featup_published",
        factor=found.factor,
        normaliser=name,
        training={"converted from": path.name, "type": "FeatUp JBU stack"},
    )
    return _filled(meta, new_normaliser(name, width), found.tensors, None, path)


def _filled(
    meta: AdapterMeta, normaliser: Normaliser, tensors: Mapping[str, Tensor], bias: Tensor | None, path: Path
) -> Adapter:
    adapter = Adapter.build(meta, normaliser)
    _fill(adapter.upsampler, tensors, meta.upsampler, path)
    if bias is not None:
        with torch.no_grad():
            adapter.bias.buffer.copy_(_resized_bias(bias, adapter.bias.buffer))
    return adapter.eval()


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], what: str, path: Path) -> None:
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the {what} it says it is: {error}") from error


def split_modules(state: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Tensors by the first part of their name, without the `module.` that distributed training puts after it."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        module, _, rest = name.partition(".")
        if isinstance(value, Tensor):
            modules.setdefault(module, {})[rest.removeprefix("module.")] = value
    return modules


#: Of the published normaliser's modes: whether the rotation and the scalar are used.
_PHI_S = {"phi-s": (True, True), "phi-s-noalpha": (True, False), "phi-s-onlyalpha": (False, True)}


def _normaliser(module: Mapping[str, Tensor], mode: str, teacher: BackboneSpec, path: Path) -> tuple[Normaliser, str]:
    """Of a mode: PHI-S, its parts alone (the affine map that they are), layer normalisation, or none."""
    if mode in ("layernorm", "none"):
        if module:
            raise UserError(f'{path} says normalizer "{mode}" and holds tensors of one ({", ".join(sorted(module))})')
        return (
            (LayerNormaliser(teacher.spatial_dim), "layer_norm")
            if mode == "layernorm"
            else (AffineNormaliser(teacher.spatial_dim), "none")
        )
    if not mode and not module:
        return AffineNormaliser(teacher.spatial_dim), "none"
    if mode not in _PHI_S:
        known = ", ".join((*_PHI_S, "layernorm", "none"))
        raise UserError(f'{path}: this package has no equal of its normaliser "{mode}" (of: {known})')
    if not {"mean", "alpha", "rotation"} <= module.keys():
        raise UserError(f"{path}: its normaliser {mode} lacks mean, alpha or rotation; the file is damaged")
    rotates, scales = _PHI_S[mode]
    dim = module["mean"].shape[0]
    alpha = module["alpha"].reshape(()).float() if scales else torch.ones(())
    rotation = module["rotation"].float() if rotates else torch.eye(dim)
    if not (rotation @ rotation.T - torch.eye(dim)).abs().max() <= ORTHOGONAL:
        raise UserError(f"{path}: the rotation of its normaliser is not orthogonal; the file is damaged")
    back = module.get("inv_rotation")
    if rotates and back is not None and not (rotation @ back.float() - torch.eye(dim)).abs().max() <= ORTHOGONAL:
        raise UserError(f"{path}: rotation and inv_rotation of its normaliser do not undo each other")
    if not 0 < float(alpha) < math.inf:
        raise UserError(f"{path}: the scale of its normaliser is {float(alpha):g}; the file is damaged")
    phi_s = PhiS(dim)
    for name, value in (("mean", module["mean"]), ("alpha", alpha), ("rotation", rotation)):
        getattr(phi_s, name).copy_(value.reshape(getattr(phi_s, name).shape))
    return phi_s, "phi_s"


def _check_width(
    upsampler: Mapping[str, Tensor], bias: Tensor | None, modules: Mapping[str, Any], teacher: BackboneSpec, path: Path
) -> None:
    if not upsampler:
        raise UserError(f"{path} has no upsampler in its model_state (has: {', '.join(sorted(modules)) or 'nothing'})")
    widths = {int(bias.shape[1])} if bias is not None else set()
    if "mean" in modules.get("normalizer", {}):
        widths.add(int(modules["normalizer"]["mean"].shape[0]))
    for width in widths:
        if width != teacher.spatial_dim:
            raise UserError(f"{path} is for features {width} wide, {teacher.name} has {teacher.spatial_dim}")


def _resized_bias(bias: Tensor, like: Tensor) -> Tensor:
    """The published module resizes its map to the grid it meets; so does ours, once."""
    if bias.shape == like.shape:
        return bias
    return nn.functional.interpolate(bias, size=like.shape[-2:], mode="bilinear", align_corners=False)
