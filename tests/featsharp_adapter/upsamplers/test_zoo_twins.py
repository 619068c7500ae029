"""Every upsampler of the zoo against a slow twin: loops, unfolds and whole matrices in float64, with gradients.

A twin reads the paper's formula with the upsampler's own parameters; tolerance 1e-9, values and gradients.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_cases import build

from featsharp_adapter.upsamplers import parts
from featsharp_adapter.upsamplers.base import Upsampler

TOLERANCE = {"atol": 1e-9, "rtol": 1e-7}


def clamp(place: int, size: int) -> int:
    return min(max(place, 0), size - 1)


def replicated(maps: Tensor, conv: nn.Conv2d) -> Tensor:
    """A convolution by loops over its taps, the border continued."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    padded = F.pad(maps, (kernel // 2,) * 4, mode="replicate")
    rows, columns = ((padded.shape[side] - kernel) // stride + 1 for side in (2, 3))
    out = torch.zeros(len(maps), conv.out_channels, rows, columns, dtype=maps.dtype)
    for y in range(rows):
        for x in range(columns):
            patch = padded[:, :, stride * y : stride * y + kernel, stride * x : stride * x + kernel]
            out[:, :, y, x] = torch.einsum("bcij,dcij->bd", patch, conv.weight)
    return out if conv.bias is None else out + conv.bias[:, None, None]


def normed(maps: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Group normalisation from its definition."""
    grouped = maps.unflatten(1, (groups, -1)).flatten(2)
    centred = grouped - grouped.mean(dim=2, keepdim=True)
    out = (centred / (centred.square().mean(dim=2, keepdim=True) + 1e-5).sqrt()).view(maps.shape)
    return out if weight is None or bias is None else out * weight[:, None, None] + bias[:, None, None]


def silu(maps: Tensor) -> Tensor:
    return maps / (1 + (-maps).exp())


def tower(module: nn.Sequential, maps: Tensor) -> Tensor:
    maps = replicated(maps, module[0])
    for block in module[1:]:
        inner = maps
        for norm, _, conv in zip(*[iter(block.layers)] * 3, strict=True):
            inner = replicated(silu(normed(inner, norm.num_groups, norm.weight, norm.bias)), conv)
        maps = maps + inner
    return maps


def channel_normed(norm: nn.LayerNorm, maps: Tensor) -> Tensor:
    centred = maps - maps.mean(dim=1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=1, keepdim=True) + norm.eps).sqrt()
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Area pooling: cell i is the mean of rows floor(i*H/h) to ceil((i+1)*H/h)."""
    out = maps.new_zeros(*maps.shape[:2], *size)
    for y in range(size[0]):
        for x in range(size[1]):
            (top, bottom), (left, right) = (
                (i * n // k, -(-(i + 1) * n // k)) for i, n, k in zip((y, x), maps.shape[2:], size, strict=True)
            )
            out[:, :, y, x] = maps[:, :, top:bottom, left:right].mean(dim=(2, 3))
    return out


def bilinear(maps: Tensor, y: float, x: float) -> Tensor:
    """[B, C] at a place in cells, the border continued."""
    height, width = maps.shape[2:]
    total = maps.new_zeros(maps.shape[:2])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            weight = (1 - abs(y - row)) * (1 - abs(x - column))
            total = total + weight * maps[:, :, clamp(row, height), clamp(column, width)]
    return total


def reassembled(low: Tensor, logits: Tensor, factor: int) -> Tensor:
    """logits [B, K*K, k*g, k*g'] over the K x K coarse cells around a fine cell's own."""
    side = math.isqrt(logits.shape[1])
    height, width = low.shape[2:]
    weights = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    out = low.new_zeros(*low.shape[:2], factor * height, factor * width)
    for y in range(factor * height):
        for x in range(factor * width):
            total = low.new_zeros(low.shape[:2])
            for tap in range(side**2):
                row = clamp(y // factor + tap // side - side // 2, height)
                column = clamp(x // factor + tap % side - side // 2, width)
                total = total + weights[:, tap, y, x, None] * low[:, :, row, column]
            out[:, :, y, x] = total
    return out


def carafe(m: Any, low: Tensor, guidance: Tensor) -> Tensor:
    compressed = torch.einsum("bchw,dc->bdhw", low, m.compress.weight[:, :, 0, 0]) + m.compress.bias[:, None, None]
    coarse = replicated(compressed, m.predict)
    height, width = low.shape[2:]
    logits = low.new_zeros(len(low), m.kernel**2, m.factor * height, m.factor * width)
    for tap in range(m.kernel**2):
        for dy in range(m.factor):
            for dx in range(m.factor):
                channel = tap * m.factor**2 + dy * m.factor + dx
                logits[:, tap, dy :: m.factor, dx :: m.factor] = coarse[:, channel]
    return reassembled(low, logits, m.factor)


def sapa(m: Any, low: Tensor, guidance: Tensor) -> Tensor:
    height, width = low.shape[2:]
    size = (m.factor * height, m.factor * width)
    image = pooled(guidance, tuple(min(n, 2 * s) for n, s in zip(guidance.shape[2:], size, strict=True)))
    fine = replicated(channel_normed(m.encoder_norm, pooled(tower(m.encoder, image), size)), m.query)
    decoder = channel_normed(m.decoder_norm, low)
    keys = replicated(decoder, m.key)
    logits = low.new_zeros(len(low), m.kernel**2, *size)
    for y in range(size[0]):
        for x in range(size[1]):
            own = (..., y // m.factor, x // m.factor)
            query = fine[:, :, y, x]
            if m.gate is not None:
                gate = 1 / (1 + (-replicated(decoder, m.gate)[own]).exp())
                query = gate * query + (1 - gate) * replicated(decoder, m.decoder_query)[own]
            for tap in range(m.kernel**2):
                row = clamp(y // m.factor + tap // m.kernel - m.kernel // 2, height)
                column = clamp(x // m.factor + tap % m.kernel - m.kernel // 2, width)
                logits[:, tap, y, x] = (query * keys[:, :, row, column]).sum(dim=1)
    return reassembled(low, logits, m.factor)


def dysample(m: Any, low: Tensor, guidance: Tensor) -> Tensor:
    """Every fine value is a sum over all coarse cells of two tent functions of the moved place."""
    k, (height, width), groups = m.factor, low.shape[2:], m.groups
    source = low if m.style == "lp" else F.pixel_shuffle(low, k)
    raw = replicated(source, m.offset)
    raw = raw * (0.25 if m.scope is None else 0.5 / (1 + (-replicated(source, m.scope)).exp()))
    out = low.new_zeros(*low.shape[:2], k * height, k * width)
    per = low.shape[1] // groups
    for y in range(k * height):
        for x in range(k * width):
            for group in range(groups):
                moves = []
                for axis in (0, 1):
                    channel = 2 * group + axis
                    if m.style == "lp":
                        channel = channel * k * k + y % k * k + x % k
                        moves.append(raw[:, channel, y // k, x // k])
                    else:
                        moves.append(raw[:, channel, y, x])
                column = ((x + 0.5) / k - 0.5 + moves[0]).clamp(0, width - 1)
                row = ((y + 0.5) / k - 0.5 + moves[1]).clamp(0, height - 1)
                tents = [
                    (1 - (place[:, None] - torch.arange(n)).abs()).clamp(min=0)
                    for place, n in ((row, height), (column, width))
                ]
                part = slice(group * per, (group + 1) * per)
                out[:, part, y, x] = torch.einsum("bchw,bh,bw->bc", low[:, part], *tents)
    return out


def lift(m: Any, low: Tensor, guidance: Tensor) -> Tensor:
    def block(layers: nn.Sequential, maps: Tensor) -> Tensor:
        return normed(replicated(maps, layers[0]), 8, layers[1].weight, layers[1].bias).clamp(min=0)

    for prime in m.primes:
        level = m.levels[str(prime)]
        fine = pooled(guidance, tuple(4 * prime * side for side in low.shape[2:]))
        for layers in level.to_fine:
            fine = block(layers, fine)
        down, norm, _ = level.to_coarse
        cells = fine.unflatten(2, (-1, prime)).unflatten(4, (-1, prime))
        coarse = torch.einsum("bchiwj,dcij->bdhw", cells, down.weight) + down.bias[:, None, None]
        coarse = normed(coarse, 8, norm.weight, norm.bias).clamp(min=0)
        both = torch.cat([low, coarse], dim=1)
        up = torch.einsum("bchw,cdij->bdhiwj", both, level.up.weight).flatten(4).flatten(2, 3)
        maps = torch.cat([up + level.up.bias[:, None, None], fine], dim=1)
        for layers in level.mix:
            maps = block(layers, maps)
        low = replicated(maps, level.out)
    return low


def places(size: int) -> Tensor:
    return torch.tensor([(2 * i + 1) / size - 1 for i in range(size)], dtype=torch.float64)


def jafar(m: Any, low: Tensor, guidance: Tensor) -> Tensor:
    size = (m.factor * low.shape[2], m.factor * low.shape[3])
    image = pooled(guidance, tuple(min(n, 2 * s) for n, s in zip(guidance.shape[2:], size, strict=True)))
    image = tower(m.image, image)
    first, second = image.chunk(2, dim=1)
    rows, columns = (places(n) for n in image.shape[2:])
    angles = m.rotary.frequencies[0][:, None, None] * rows[:, None] + m.rotary.frequencies[1][:, None, None] * columns
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)  # one rotation per pair
    image = torch.cat([turned.real, turned.imag], dim=1)
    queries, keys = pooled(tower(m.query, image), size), pooled(tower(m.key, image), tuple(low.shape[2:]))
    gamma, beta = (
        torch.einsum("bchw,dc->bdhw", low, layer.weight[:, :, 0, 0]) for layer in (m.modulate.gamma, m.modulate.beta)
    )
    keys = gamma * normed(keys, 8) + beta

    def project(maps: Tensor, norm: nn.RMSNorm, layer: nn.Linear) -> Tensor:
        tokens = maps.flatten(2).transpose(1, 2)
        eps = torch.finfo(torch.float64).eps
        tokens = tokens / (tokens.square().mean(dim=2, keepdim=True) + eps).sqrt() * norm.weight
        return tokens @ layer.weight.T + layer.bias

    query, key = project(queries, m.query_norm, m.to_query), project(keys, m.key_norm, m.to_key)
    per = query.shape[2] // m.heads
    mean = 0
    for head in range(m.heads):
        part = slice(head * per, (head + 1) * per)
        logits = torch.einsum("bnd,btd->bnt", query[..., part], key[..., part]) / per**0.5
        mean = mean + logits.exp() / logits.exp().sum(dim=2, keepdim=True) / m.heads
    return torch.einsum("bnt,bct->bcn", mean, low.flatten(2)).unflatten(2, size)


def loftup(m: Any, low: Tensor, guidance: Tensor) -> Tensor:
    def fourier(module: Any, maps: Tensor) -> Tensor:
        waves = []
        for wave, phases in ((torch.sin, module.phases[0]), (torch.cos, module.phases[1])):
            for channel in range(maps.shape[1]):
                for number, frequency in enumerate(module.frequencies):
                    waves.append(wave(maps[:, channel] * frequency + phases[channel, number, 0, 0]))
        return torch.stack(waves, dim=1)

    def layer_normed(norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
        return channel_normed(norm, tokens.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)

    def grid_of(height: int, width: int) -> Tensor:
        rows, columns = torch.meshgrid(places(height), places(width), indexing="ij")
        return torch.stack([rows, columns]).expand(len(low), -1, -1, -1)

    size = (m.factor * low.shape[2], m.factor * low.shape[3])
    colours = 2 * pooled(guidance, size) - 1
    fine = torch.cat([fourier(m.fine_features, torch.cat([grid_of(*size), colours], dim=1)), colours], dim=1)
    fine = channel_normed(m.embed[0], fine)
    for conv, norm in ((m.embed[1], m.embed[2]), (m.embed[4], m.embed[5])):
        fine = normed(replicated(fine, conv), 1, norm.weight, norm.bias).clamp(min=0)
    queries = fine.flatten(2).transpose(1, 2)
    coarse = torch.cat([low, fourier(m.coarse_positions, grid_of(*low.shape[2:]))], dim=1).flatten(2).transpose(1, 2)
    for block in m.blocks:
        context = layer_normed(block.context_norm, coarse)
        query = layer_normed(block.query_norm, queries) @ block.query.weight.T
        key, value = context @ block.key.weight.T, context @ block.value.weight.T
        heads, per = [], query.shape[2] // block.heads
        for head in range(block.heads):
            part = slice(head * per, (head + 1) * per)
            logits = (query[..., part] @ key[..., part].transpose(1, 2)) / per**0.5
            heads.append(logits.exp() / logits.exp().sum(dim=2, keepdim=True) @ value[..., part])
        queries = queries + torch.cat(heads, dim=2) @ block.proj.weight.T + block.proj.bias
        hidden = layer_normed(block.mlp_norm, queries) @ block.mlp[0].weight.T + block.mlp[0].bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        queries = queries + hidden @ block.mlp[2].weight.T + block.mlp[2].bias
    out = layer_normed(m.norm, queries) @ m.out.weight.T + m.out.bias
    return out.transpose(1, 2).unflatten(2, size)


def resfu(m: Any, low: Tensor, guidance: Tensor) -> Tensor:
    k, side = m.factor, m.kernel
    height, width = size = (k * low.shape[2], k * low.shape[3])

    def upsampled(maps: Tensor) -> Tensor:
        out = maps.new_zeros(*maps.shape[:2], *size)
        for y in range(height):
            for x in range(width):
                out[:, :, y, x] = bilinear(maps, (y + 0.5) / k - 0.5, (x + 0.5) / k - 0.5)
        return out

    def box(maps: Tensor) -> Tensor:
        out = torch.empty_like(maps)
        for y in range(height):
            for x in range(width):
                out[:, :, y, x] = maps[:, :, max(y - 8, 0) : y + 9, max(x - 8, 0) : x + 9].mean(dim=(2, 3))
        return out

    def logits(module: Any, centres: Tensor, neighbours: Tensor) -> Tensor:
        centres, neighbours = (normed(t, 8, module.norm.weight, module.norm.bias) for t in (centres, neighbours))
        per_in, per_out = module.weight.shape[1], len(module.weight) // module.groups
        hidden = module.bias.expand(len(low), -1, height, width).clone()
        for y in range(height):
            for x in range(width):
                for tap in range(side**2):
                    row = clamp(y + (tap // side - side // 2) * k, height)
                    column = clamp(x + (tap % side - side // 2) * k, width)
                    difference = neighbours[:, :, row, column] - centres[:, :, y, x]
                    taps = module.weight[:, :, tap // side, tap % side].unflatten(0, (module.groups, per_out))
                    parts_ = torch.einsum("bgi,goi->bgo", difference.unflatten(1, (module.groups, per_in)), taps)
                    hidden[:, :, y, x] = hidden[:, :, y, x] + parts_.flatten(1)
        for layer in module.logits:
            hidden = layer(hidden)
        return hidden

    norm = m.feature_norm
    image = replicated(normed(pooled(guidance, size), 3, m.image_norm.weight, m.image_norm.bias), m.image_embed)
    coarse = replicated(normed(low, norm.num_groups, norm.weight, norm.bias), m.feature_embed)
    features, fine = upsampled(coarse), upsampled(low)
    slope = (box(image * features) - box(image) * box(features)) / (box(image**2) - box(image) ** 2 + 1e-3)
    guided = box(slope) * image + box(box(features) - slope * box(image))
    line = [math.exp(-0.5), 1.0, math.exp(-0.5)]
    smoothed = sum(
        line[i]
        * line[j]
        / sum(line) ** 2
        * F.pad(image, (1,) * 4, mode="replicate")[..., i : i + height, j : j + width]
        for i in range(3)
        for j in range(3)
    )
    total = logits(m.semantic, features, guided) + logits(m.detail, smoothed, image)
    out = torch.zeros_like(fine)
    for y in range(height):
        for x in range(width):
            weights, values = [], []
            for tap in range(side**2):
                row, column = y + (tap // side - side // 2) * k, x + (tap % side - side // 2) * k
                if 0 <= row < height and 0 <= column < width:
                    weights.append(total[:, tap, y, x].exp())
                    values.append(fine[:, :, row, column])
            out[:, :, y, x] = sum(w[:, None] * v for w, v in zip(weights, values, strict=True)) / sum(weights)[:, None]
    return out


TWINS: list[tuple[Callable[[Any, Tensor, Tensor], Tensor], int, dict[str, Any]]] = [
    (carafe, 2, {"width": 4}),
    (carafe, 3, {"width": 4, "kernel": 3}),
    (sapa, 2, {"width": 8, "kernel": 3}),
    (sapa, 3, {"width": 8, "kernel": 3, "gated": False}),
    (dysample, 3, {}),
    (dysample, 2, {"style": "pl", "groups": 2, "dynamic_scope": True}),
    (lift, 2, {}),
    (lift, 3, {}),
    (jafar, 2, {"width": 8, "heads": 2}),
    (loftup, 2, {"frequencies": 3, "heads": 2}),
    (resfu, 2, {"width": 8, "groups": 2}),
]


def gradients(out: Tensor, probe: Tensor, wanted: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad((out * probe).sum(), wanted, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted, strict=True)]


def check(upsampler: Upsampler, twin: Callable[[Any, Tensor, Tensor], Tensor], low: Tensor, guidance: Tensor) -> None:
    """Values, and gradients of features, image and every parameter."""
    wanted = [low.requires_grad_(), guidance.requires_grad_(), *upsampler.parameters()]
    fast, slow = upsampler(low, {}, guidance), twin(upsampler, low, guidance)
    assert torch.allclose(fast, slow, **TOLERANCE)
    probe = torch.randn_like(fast)
    for mine, theirs in zip(gradients(fast, probe, wanted), gradients(slow, probe, wanted), strict=True):
        assert torch.allclose(mine, theirs, **TOLERANCE)


@pytest.mark.parametrize(("twin", "factor", "options"), TWINS)
def test_the_twin_agrees(twin: Callable[[Any, Tensor, Tensor], Tensor], factor: int, options: dict[str, Any]) -> None:
    upsampler = build(twin.__name__, factor, options).double()
    check(upsampler, twin, torch.randn(2, 8, 3, 4, dtype=torch.float64), torch.rand(2, 3, 21, 19, dtype=torch.float64))


def test_attention_in_parts_is_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAFAR on maps too large for all of its logits: the same values and gradients."""
    upsampler = build("jafar", 2, {"width": 8, "heads": 2}).double()
    monkeypatch.setattr(parts, "LOGITS", 2 * 2 * 12 * 5)  # five queries at a time
    check(upsampler, jafar, torch.randn(2, 8, 3, 4, dtype=torch.float64), torch.rand(2, 3, 21, 19, dtype=torch.float64))
    with torch.no_grad():
        low, guidance = torch.randn(1, 8, 3, 4).double(), torch.rand(1, 3, 21, 19).double()
        assert torch.allclose(upsampler(low, {}, guidance), jafar(upsampler, low, guidance), **TOLERANCE)
