"""Checkpoints in the authors' formats, written from the list of their names: they load, and compute what ours does."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_timm import timm_folder
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from common.errors import UserError, guard
from featsharp_adapter.__main__ import main
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.description import AdapterMeta
from featsharp_adapter.convert.official import convert
from featsharp_adapter.model.normalisers import new_normaliser
from featsharp_adapter.model.phi_s import CovarianceStatistics, PhiS
from featsharp_adapter.model.views import Views
from featsharp_adapter.sharpening.backbone import SharpenedBackbone
from featsharp_adapter.sharpening.sharpener import Sharpener, SharpenSettings

DIM, HEADS, GRID = 8, 16, (4, 3)


def random(*shape: int) -> Tensor:
    return torch.randn(shape) * 0.3


def reparametrised(state: dict[str, Tensor], name: str, weight: Tensor, parts: int, *, versioned: bool = True) -> None:
    """Store `weight` as a spectral reparametrisation that computes to it."""
    base = f"{name}.parametrizations.weight"
    state[f"{base}.original"] = weight * 3.0  # the scale of the original does not matter
    for part, piece in enumerate(weight.chunk(parts)):
        u, s, vh = torch.linalg.svd(piece * 3.0, full_matrices=False)
        where = f"{base}.0." if parts == 1 else f"{base}.0.parts.{part}."
        wanted = s[0] / 3.0
        scale = torch.log(torch.expm1(wanted - 0.05)) if versioned else wanted
        state |= {f"{where}sn_scale": scale.view(1, 1), f"{where}_u": u[:, 0], f"{where}_v": vh[0]}
        if versioned:
            state[f"{where}_sn_version"] = torch.tensor(2)


def featsharp_checkpoint(
    path: Path,
    *,
    factor: int = 2,
    spectral: bool = False,
    ddp: bool = False,
    flags: str = "",
    mode: str = "phi-s",
    rgb: bool = False,
):
    """From the key list of the published program (facts on its layout, section 1.11); returns what it holds, plain."""
    prog = ".prog" in flags
    width, head = 2 * DIM + 16 * rgb, 4  # 16 heads of one channel, enlarged to four: a power of two
    steps = [2] * int(math.log2(factor)) if prog else [factor]
    plain: dict[str, Tensor] = {}
    stored: dict[str, Tensor] = {}
    for level, step in enumerate(steps):
        up = f"ups.{level}."
        plain[f"{up}tile_pos"] = random(1, DIM, step, step)  # per level: one for each tile of the map it is given
        for j in range(int(math.log2(step)) if ".inputs-bilinear" not in flags else 0):
            jbu = f"{up}jbu.ups.{j}."
            plain |= {f"{jbu}range_temp": torch.tensor(0.7), f"{jbu}sigma_spatial": torch.tensor(-0.8)}
            plain |= {f"{jbu}range_alpha": torch.tensor(0.1), f"{jbu}spatial_alpha": torch.tensor(0.2)}
            plain |= {f"{jbu}range_proj.0.weight": random(32, 3, 1, 1), f"{jbu}range_proj.0.bias": random(32)}
            plain |= {f"{jbu}range_proj.2.weight": random(32, 32, 1, 1), f"{jbu}range_proj.2.bias": random(32)}
        if rgb:
            plain |= {f"{up}rgb.weight": random(16, 3, 1, 1), f"{up}rgb.bias": random(16)}
        block = f"{up}block."
        attends, mixes = ".no-attn" not in flags, ".no-ffn" not in flags
        for i in (1, 2)[: 1 + (attends and mixes)] if ".no-ln" not in flags else ():
            plain |= {f"{block}norm{i}.weight": 1 + random(width), f"{block}norm{i}.bias": random(width)}
        if attends and mixes:  # the parts alone have no layer scale
            plain |= {f"{block}ls1.gamma": random(width), f"{block}ls2.gamma": random(DIM)}
        if attends:
            out = width if mixes else DIM
            plain[f"{block}attn.qkv.weight"] = random(3 * HEADS * head, width)
            plain |= {f"{block}attn.proj.weight": random(out, width), f"{block}attn.proj.bias": random(out)}
        if mixes:
            plain |= {f"{block}mlp.w12.weight": random(48, width), f"{block}mlp.w12.bias": random(48)}
            plain |= {f"{block}mlp.w3.weight": random(DIM, 24), f"{block}mlp.w3.bias": random(DIM)}
    for name, value in plain.items():
        layer, _, end = name.rpartition(".")
        last = layer.rpartition(".")[2]
        if spectral and end == "weight" and last in ("qkv", "proj", "w12", "w3"):
            reparametrised(stored, layer, value, {"qkv": 3, "w12": 2}.get(last, 1), versioned=last != "w3")
        else:
            stored[name] = value
    statistics = CovarianceStatistics(DIM)
    statistics.update(torch.randn(50, DIM) * torch.arange(1, DIM + 1))
    phi_s = PhiS.fit(statistics)
    normaliser = {
        "mean": phi_s.mean,
        "alpha": phi_s.alpha,
        "rotation": phi_s.rotation,
        "inv_rotation": phi_s.rotation.T,
    }
    bias, module = random(1, DIM, *GRID), "module." if ddp else ""
    state = {f"normalizer.{name}": value.contiguous() for name, value in normaliser.items()}
    state |= {f"upsampler.{module}{name}": value for name, value in stored.items()}
    state |= {f"bias_buffer.{module}buffer": bias, f"downsampler.{module}kernel_bias": random(49)}
    content = {
        "model_state": state,
        "optim_state": {},
        "global_step": 9000,
        "upsample_args": {"type": f"featsharp{flags}", "factor": factor, "normalizer": mode},
        "train_config": {"model_type": "test"},
    }
    torch.save(content, path)
    return plain, phi_s, bias


def published_level(
    plain: dict[str, Tensor],
    up: str,
    low: Tensor,
    tiles: Tensor,
    image: Tensor,
    inputs: list[str],
    radius: int,
    ln: bool,
) -> Tensor:
    """One FeatSharp level in float64 as the facts write it down, with the published, enlarged heads.

    image: standardised by the encoder's mean and std (the input conditioner comes before everything), any size.
    """
    p = {name.removeprefix(up): value.double() for name, value in plain.items() if name.startswith(up)}
    factor = tiles.shape[-1] // low.shape[-1]
    # Inside the level the image is first bilinearly resized to the level's own fine grid (facts 1.1, last lines).
    image = F.interpolate(image, size=tiles.shape[-2:], mode="bilinear", align_corners=False)
    source = low
    for j in range(int(math.log2(factor)) if "jbu" in inputs else 0):
        q = {name.removeprefix(f"jbu.ups.{j}."): value for name, value in p.items() if name.startswith(f"jbu.ups.{j}.")}
        source = published_jbu(q, source, F.adaptive_avg_pool2d(image, (source.shape[-2] * 2, source.shape[-1] * 2)))
    n = p["tile_pos"].shape[-1]
    rows, columns = (side // n for side in tiles.shape[-2:])
    maps = {
        "jbu": source,
        "bilinear": F.interpolate(low, size=tiles.shape[-2:], mode="bilinear", align_corners=False),
        "tiles": tiles + p["tile_pos"].repeat_interleave(rows, 2).repeat_interleave(columns, 3),
    }
    if "rgb" in inputs:
        maps["rgb"] = F.conv2d(image, p["rgb.weight"], p["rgb.bias"])
    x = torch.cat([maps[name] for name in inputs], 1).permute(0, 2, 3, 1)
    x1 = x
    if "block.attn.qkv.weight" in p:
        normed = layer_norm(x, p, "block.norm1") if ln else x
        out = published_attention(p, normed, radius)
        x1 = x + p["block.ls1.gamma"] * out if "block.ls1.gamma" in p else x[..., :DIM] + out
    if "block.mlp.w3.weight" not in p:
        return x1.permute(0, 3, 1, 2)
    last = "block.norm2" if "block.norm2.weight" in p else "block.norm1"
    hidden = (layer_norm(x1, p, last) if ln else x1) @ p["block.mlp.w12.weight"].T + p["block.mlp.w12.bias"]
    first, second = hidden.chunk(2, -1)
    y = (F.silu(first) * second) @ p["block.mlp.w3.weight"].T + p["block.mlp.w3.bias"]
    return (x1[..., :DIM] + p.get("block.ls2.gamma", 1.0) * y).permute(0, 3, 1, 2)


def layer_norm(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)


def published_jbu(q: dict[str, Tensor], source: Tensor, image: Tensor) -> Tensor:
    """One level of the kernel, its inert scalars included (facts 1.1, steps 1 to 6)."""
    size = image.shape[-2:]
    keys = F.conv2d(
        F.gelu(F.conv2d(image, q["range_proj.0.weight"], q["range_proj.0.bias"])),
        q["range_proj.2.weight"],
        q["range_proj.2.bias"],
    )
    near = F.unfold(F.pad(keys, (3,) * 4, mode="reflect"), 7).view(len(keys), 32, 49, -1)
    logits = (near * keys.flatten(2)[:, :, None]).sum(1) * q["range_temp"].exp()
    line = torch.linspace(-1, 1, 7).double()
    squared = (line[:, None] ** 2 + line[None] ** 2).flatten()
    kernel = q["range_alpha"].exp() * logits.softmax(1)
    kernel = kernel * (q["spatial_alpha"].exp() * torch.exp(-squared / (2 * q["sigma_spatial"] ** 2)))[None, :, None]
    kernel = kernel / kernel.sum(1, keepdim=True).clamp(min=1e-7)
    large = F.pad(F.interpolate(source, size=size, mode="bilinear"), (3,) * 4, mode="reflect")
    return (F.unfold(large, 7).view(len(keys), DIM, 49, -1) * kernel[:, None]).sum(2).unflatten(2, size)


def published_attention(p: dict[str, Tensor], x: Tensor, radius: int) -> Tensor:
    """[B, h, w, D] -> the same or C wide (facts 1.3): scale of D/16, ALiBi, window clipped, value sliced to D/16."""
    height, width, dim = x.shape[1:]
    query, key, value = (
        (x.flatten(1, 2) @ p["block.attn.qkv.weight"].T).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    )
    scores = query @ key.transpose(-1, -2) * (dim // HEADS) ** -0.5
    row, column = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    down, across = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    slopes = torch.tensor([2.0 ** -((h + 2) // 2) for h in range(HEADS)]).double()
    distance = torch.stack([down if h % 2 == 0 else across for h in range(HEADS)])
    outside = (down > radius) | (across > radius)
    scores = (scores - slopes[:, None, None] * distance).masked_fill(outside, float("-inf"))
    out = (scores.softmax(-1) @ value)[..., : dim // HEADS].transpose(1, 2).flatten(2)
    out = out @ p["block.attn.proj.weight"].T + p["block.attn.proj.bias"]
    return out.unflatten(1, (height, width))


FORMS: dict[str, dict[str, Any]] = {
    "paper": {},
    "spectral": {"spectral": True},
    "distributed, 4x": {"ddp": True, "factor": 4},
    "progressive": {"flags": ".prog", "factor": 4, "spectral": True},
    "window": {"flags": ".wnd-3"},
    "even window": {"flags": ".wnd-4"},
    "without layer norm": {"flags": ".no-ln"},
    "without attention": {"flags": ".no-attn"},
    "without feed-forward": {"flags": ".no-ffn"},
    "rgb": {"flags": ".inputs-jbu-tiles-rgb", "rgb": True},
    "bilinear": {"flags": ".inputs-bilinear-tiles"},
    "scalar alone": {"mode": "phi-s-onlyalpha"},
    "rotation alone": {"mode": "phi-s-noalpha"},
}


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_a_featsharp_checkpoint_computes_what_was_published(form: str, teacher, tmp_path: Path) -> None:
    how = FORMS[form]
    plain, phi_s, bias = featsharp_checkpoint(tmp_path / "last.pth.tar", **how)
    # y = alpha * rotation (x - mean); the modes leave one of the two out (facts 1.5).
    if how.get("mode") == "phi-s-onlyalpha":
        phi_s.rotation.copy_(torch.eye(DIM))
    if how.get("mode") == "phi-s-noalpha":
        phi_s.alpha.fill_(1.0)
    spec = replace(teacher.spec, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    adapter = convert(tmp_path / "last.pth.tar", spec, "test")
    again = Adapter.from_pretrained(adapter.save_pretrained(tmp_path / "adapter"), spec)
    factor, flags = how.get("factor", 2), how.get("flags", "")
    assert adapter.factor == factor and adapter.meta.published_views
    low, images = torch.randn(2, DIM, *GRID), torch.rand(2, 3, 32 * factor, 24 * factor)
    views = Views(None, low, {n: torch.randn(2, DIM, GRID[0] * n, GRID[1] * n) for n in adapter.tile_grids})
    assert torch.equal(again(views, images), adapter(views, images))
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (spec.mean, spec.std))
    inputs = flags.partition("inputs-")[2].split("-") if "inputs" in flags else ["jbu", "tiles"]
    radius = {".wnd-3": 1, ".wnd-4": 2}.get(flags, 3)
    expected = (phi_s.normalise(low) + bias).double()
    for level, n in enumerate(adapter.tile_grids):
        tiles = (phi_s.normalise(views.tiles[n]) + bias.repeat(1, 1, n, n)).double()
        image = (images.double() - mean) / std
        expected = published_level(
            plain, f"ups.{level}.", expected, tiles, image, inputs, radius, ln="no-ln" not in flags
        )
    expected = phi_s.double().denormalise(expected)
    assert (adapter(views, images).double() - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_the_image_is_standardised_before_everything(teacher, tmp_path: Path) -> None:
    """The published input conditioner applies the encoder's mean and std to the image once, for encoder and guide."""
    featsharp_checkpoint(tmp_path / "a")
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    standardised = convert(tmp_path / "a", replace(teacher.spec, mean=mean, std=std), "test")
    plain = convert(tmp_path / "a", replace(teacher.spec, mean=(0.0,) * 3, std=(1.0,) * 3), "test")
    views, images = Views(None, torch.randn(2, DIM, *GRID), {2: torch.randn(2, DIM, 8, 6)}), torch.rand(2, 3, 64, 48)
    before = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    expected = plain(views, before)
    assert torch.allclose(standardised(views, images), expected, atol=1e-5)
    assert not torch.allclose(plain(views, images), expected, atol=1e-2)


@torch.no_grad()
def test_the_teacher_sees_images_resized_as_published(teacher, tmp_path: Path) -> None:
    """Published views are resized bilinearly, align_corners off and without antialiasing (facts 1.2)."""
    featsharp_checkpoint(tmp_path / "a")
    images = torch.rand(1, 3, 256, 192)
    adapter, ours = (convert(tmp_path / "a", teacher.spec, "test", published_views=flag) for flag in (True, False))
    small = F.interpolate(images, size=(32, 24), mode="bilinear", align_corners=False)
    assert torch.allclose(adapter.views(teacher, images).low, teacher(small).spatial, atol=1e-5)
    assert not torch.allclose(ours.views(teacher, images).low, teacher(small).spatial, atol=1e-2)
    sharpener = Sharpener(teacher, adapter, SharpenSettings(fit="squash"))
    whole = SharpenedBackbone(teacher, adapter, "a")
    crop = images[:, :, :64, :48]
    assert torch.allclose(sharpener(crop).spatial, whole(crop).spatial, atol=1e-5)
    again = Adapter.from_pretrained(adapter.save_pretrained(tmp_path / "adapter"), teacher.spec)
    assert again.meta.published_views


@torch.no_grad()
def test_weights_of_our_own_module_come_back(teacher, tmp_path: Path) -> None:
    plain, _, _ = featsharp_checkpoint(tmp_path / "a")
    adapter = convert(tmp_path / "a", teacher.spec, "test")
    ours = adapter.upsampler.state_dict()
    assert torch.equal(ours["levels.0.block.attention.qkv.weight"], plain["ups.0.block.attn.qkv.weight"])
    assert float(ours["levels.0.jbu.levels.0.log_sigma"].exp()) == pytest.approx(0.8)


@torch.no_grad()
@pytest.mark.parametrize("spectral", [False, True])
def test_a_conditional_bias_is_the_block_of_timm_that_it_was(spectral: bool, teacher, tmp_path: Path) -> None:
    wide = replace(teacher.spec, spatial_dim=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "DIM", 32)
        _, phi_s, bias = featsharp_checkpoint(tmp_path / "a")
    content = torch.load(tmp_path / "a")
    without = convert(tmp_path / "a", wide, "test")
    block = Block(32, HEADS, init_values=1.0).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    state = dict(block.state_dict())
    if spectral:
        for name, parts in (("attn.qkv", 3), ("attn.proj", 1), ("mlp.fc1", 1), ("mlp.fc2", 1)):
            reparametrised(state, name, state.pop(f"{name}.weight"), parts)
    content["model_state"] |= {f"cond_bias_transform.{name}": value for name, value in state.items()}
    torch.save(content, tmp_path / "a")
    adapter = convert(tmp_path / "a", wide, "test")
    assert adapter.meta.conditional_heads == HEADS
    low, images = torch.randn(2, 32, *GRID), torch.rand(2, 3, 64, 48)
    tokens = (phi_s.normalise(low) + bias).flatten(2).transpose(1, 2)
    added = (block(tokens) - tokens).transpose(1, 2).unflatten(2, GRID)
    found = adapter.denoise_normalised(low) - without.denoise_normalised(low)
    assert torch.allclose(found, added, atol=1e-4, rtol=1e-3)
    again = Adapter.from_pretrained(adapter.save_pretrained(tmp_path / "adapter"), wide)
    views = Views(None, low, {2: torch.randn(2, 32, 8, 6)})
    assert torch.equal(again(views, images), adapter(views, images))


def published_featup(path: Path, levels: int = 2) -> nn.ModuleDict:
    """FeatUp's own stack by its own names, as a torch module, and its checkpoint."""

    def level() -> nn.ModuleDict:
        proj = nn.Sequential(nn.Conv2d(3, 32, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(32, 32, 1))
        fix = nn.Sequential(nn.Conv2d(52, 49, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(49, 49, 1))
        made = nn.ModuleDict({"range_proj": proj, "fixup_proj": fix})
        made.range_temp, made.sigma_spatial = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.9))
        return made

    parts = {f"up{i + 1}": level() for i in range(levels)}
    parts["fixup_proj"] = nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(DIM, DIM, 1))
    stack = nn.ModuleDict(parts).eval()
    state = {f"upsampler.{name}": value for name, value in stack.state_dict().items()}
    torch.save({"state_dict": state | {"model.0.weight": random(3)}, "epoch": 1}, path)
    return stack


@torch.no_grad()
def test_a_featup_checkpoint_computes_what_was_published(teacher, tmp_path: Path) -> None:
    stack = published_featup(tmp_path / "dino16_jbu_stack.ckpt")
    adapter = convert(tmp_path / "dino16_jbu_stack.ckpt", teacher.spec, "test")
    assert (adapter.meta.upsampler, adapter.factor, adapter.meta.normaliser) == ("featup_published", 4, "none")
    source, images = torch.randn(2, DIM, *GRID), torch.rand(2, 3, 128, 96)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = source
    for name in ("up1", "up2"):
        level, size = stack[name], (expected.shape[-2] * 2, expected.shape[-1] * 2)
        image = F.adaptive_avg_pool2d((images - mean) / std, size)
        keys = level["range_proj"](image)
        near = F.unfold(F.pad(keys, (3,) * 4, mode="reflect"), 7).view(2, 32, 49, *size)
        kernel = (level.range_temp.exp() * (near * keys[:, :, None]).sum(1)).softmax(1)
        x, y = torch.meshgrid(torch.linspace(-1, 1, 7), torch.linspace(-1, 1, 7), indexing="ij")
        kernel = kernel * torch.exp(-(x**2 + y**2) / (2 * level.sigma_spatial**2)).view(1, 49, 1, 1)
        kernel = kernel / kernel.sum(1, keepdim=True).clamp(min=1e-7)
        kernel = kernel + 0.1 * level["fixup_proj"](torch.cat([kernel, image], 1))
        large = F.pad(F.interpolate(expected, size=size, mode="bicubic"), (3,) * 4, mode="reflect")
        expected = (F.unfold(large, 7).view(2, DIM, 49, *size) * kernel[:, None]).sum(2)
    expected = stack["fixup_proj"](expected) * 0.1 + expected
    assert torch.allclose(adapter(Views(None, source, {}), images), expected, atol=1e-5)


@torch.no_grad()
def test_the_port_of_featup_alone(teacher, tmp_path: Path) -> None:
    meta = AdapterMeta(teacher.spec, "test", "featup", 2)
    ours = Adapter.build(meta, new_normaliser("none", DIM)).eval()
    for parameter in ours.upsampler.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs = {"log_temperature": "range_temp", "log_sigma": "sigma_spatial"}
    state = {}
    for name, value in ours.upsampler.state_dict().items():
        rest = name.removeprefix("jbu.levels.0.")
        rest = theirs.get(rest, rest.replace("key.", "range_proj."))
        state[f"upsampler.inner.ups.0.{rest}"] = value.exp() if rest == "sigma_spatial" else value
    # What it looks at is the standardised image: W' (x - mean) / std + b' = W x + b.
    first, (mean, std) = "upsampler.inner.ups.0.range_proj.0", (teacher.spec.mean[0], teacher.spec.std[0])
    weight = state[f"{first}.weight"]
    state |= {f"{first}.weight": weight * std, f"{first}.bias": state[f"{first}.bias"] + weight.sum((1, 2, 3)) * mean}
    torch.save({"model_state": state, "upsample_args": {"type": "jbu_stack", "factor": 2}}, tmp_path / "a")
    adapter = convert(tmp_path / "a", teacher.spec, "test")
    views, images = Views(None, torch.randn(1, DIM, *GRID), {}), torch.rand(1, 3, 64, 48)
    assert torch.allclose(adapter(views, images), ours(views, images), atol=1e-6)


def test_what_cannot_be_converted_is_said(teacher, tmp_path: Path) -> None:
    path = tmp_path / "a"

    def refused(content: Any, message: str, spec=teacher.spec) -> None:
        torch.save(content, path)
        with pytest.raises(UserError, match=message):
            convert(path, spec, "test")

    with pytest.raises(UserError, match="no checkpoint at"):
        convert(tmp_path / "missing", teacher.spec, "test")
    refused(nn.Linear(2, 2), "holds code")
    refused([1, 2], "no mapping")
    refused({"state_dict": {}}, "neither a FeatSharp")
    refused({"model_state": {"normalizer.mean": random(8)}}, "no upsampler")
    featsharp_checkpoint(path)
    good = torch.load(path)
    state = good["model_state"]
    refused(good, "8 wide", replace(teacher.spec, spatial_dim=16))

    def of(kind: str, mode: str = "phi-s", factor: int = 2) -> dict[str, Any]:
        return {**good, "upsample_args": {"type": kind, "factor": factor, "normalizer": mode}}

    refused(of("featsharp", factor=3), "factor 2, it says 3")
    refused(of("featsharp.prog", factor=4), "factor 2, it says 4")
    refused(of("featsharp.no-ln.inputs-jafar-tiles"), 'input "jafar": its weights are not documented')
    refused(of("featsharp.rope-qk"), "rope-qk: which channels its rotary positions turn")
    refused(of("featsharp.no-proj"), "no-proj")
    refused(of("featsharp.wnd-x"), "wnd-x: this package has no equal")
    refused(of("jafar"), "type jafar cannot be converted")
    refused(of("featsharp", "phi-s-new"), 'no equal of its normaliser "phi-s-new"')
    refused({**good, "upsample_args": {}}, "does not say what its upsampler is")
    conditional = {f"cond_bias_transform.{name}": random(1) for name in ("attn.qkv.weight", "attn.proj.weight")}
    refused({**good, "model_state": {**state, "cond_bias_transform.a": random(1)}}, "no equal of cond_bias_transform.a")
    refused({**good, "model_state": {**state, "cond_bias_transform.ls1.gamma": random(8)}}, "has no attention")
    refused({**good, "model_state": {**state, **conditional}}, "16 heads do not divide features 8 wide")
    refused({**good, "model_state": {**state, "upsampler.ups.0.extra": random(1)}}, "no equal of upsampler.ups.N.extra")
    refused({**good, "model_state": {**state, "normalizer.rotation": random(8, 8)}}, "not orthogonal")
    missing = {name: value for name, value in state.items() if not name.endswith("ls1.gamma")}
    refused({**good, "model_state": missing}, "does not fit")
    published_featup(path)
    whole = torch.load(path)["state_dict"]
    refused({"state_dict": whole | {"model.1.norm.weight": random(8)}}, "trained layer norm")
    refused({k: v for k, v in whole.items() if ".up1." not in k}, "not a complete")


def test_the_command_converts_or_says_why_not(tmp_path: Path, capsys) -> None:
    node = f"timm:{timm_folder(tmp_path / 'vit', 0)}"
    path = tmp_path / "x.ckpt"
    published_featup(path)
    assert guard(main, ["convert", str(path), "--teacher", node, "--out", str(tmp_path / "a")]) == 2
    assert "8 wide" in capsys.readouterr().err


DAMAGED: dict[str, tuple[str, Any, str]] = {
    "a bias of NaN": ("model_state", {"bias_buffer.buffer": torch.full((1, 8, 4, 3), math.nan)}, "NaN or infinite"),
    "a width of zero": ("model_state", {"upsampler.ups.0.jbu.ups.0.sigma_spatial": torch.tensor(0.0)}, "infinite"),
    "a scale of zero": ("model_state", {"normalizer.alpha": torch.tensor(0.0)}, "scale of its normaliser is 0"),
    "a turned scale": ("model_state", {"normalizer.alpha": torch.tensor(-1.0)}, "scale of its normaliser is -1"),
    "scales": ("model_state", {"normalizer.alpha": torch.ones(8)}, "not laid out"),
    "a rotation of NaN": ("model_state", {"normalizer.rotation": torch.full((8, 8), math.nan)}, "not orthogonal"),
    "half a rotation": ("model_state", {"normalizer.rotation": torch.eye(8)[:4]}, "not laid out"),
    "another way back": ("model_state", {"normalizer.inv_rotation": torch.eye(8).roll(1, 0)}, "undo each other"),
    "flat positions": ("model_state", {"upsampler.ups.0.tile_pos": torch.zeros(8, 2, 2)}, "not laid out"),
    "a name that is a number": ("model_state", {1: torch.ones(2)}, "not laid out"),
    "half a factor": ("upsample_args", {"factor": 2.5}, "it says 2.5"),
    "a factor in words": ("upsample_args", {"factor": "two"}, "it says two"),
    "a list of factors": ("upsample_args", {"factor": [2]}, "it says"),
    "two windows": ("upsample_args", {"type": "featsharp.wnd-3.wnd-7"}, "says wnd twice"),
    "another normaliser": ("upsample_args", {"normalizer": "none"}, 'says normalizer "none" and holds tensors of one'),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_checkpoints_are_refused_in_words(name: str, teacher, tmp_path: Path) -> None:
    part, change, words = DAMAGED[name]
    featsharp_checkpoint(tmp_path / "a")
    content = torch.load(tmp_path / "a", weights_only=True)
    content[part] |= change
    torch.save(content, tmp_path / "a")
    with pytest.raises(UserError, match=words):
        convert(tmp_path / "a", teacher.spec, "test")


def test_arguments_that_are_no_mapping_are_refused(teacher, tmp_path: Path) -> None:
    featsharp_checkpoint(tmp_path / "a")
    torch.save(torch.load(tmp_path / "a", weights_only=True) | {"upsample_args": ["featsharp"]}, tmp_path / "a")
    with pytest.raises(UserError, match="not laid out"):
        convert(tmp_path / "a", teacher.spec, "test")
