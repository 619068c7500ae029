"""From sampled labels to dense targets. A sub-cell map at s sub-cells per patch side is [B, K, g*s, g*s]."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.tiny_teachers.crops import SAMPLES, Crops

DEPTH_JUMP = 0.08  #: a depth edge is a step of the log depth by more than this


class Masked(NamedTuple):
    """Values [B, K, h, w] and where they hold [B, 1, h, w] (share of valid samples or 0/1)."""

    value: Tensor
    weight: Tensor


def histogram(labels: Tensor, classes: int, sub: int) -> Tensor:
    """Labels [B, g*n, g*n] -> share of every class in every sub-cell [B, classes, g*sub, g*sub]."""
    hot = F.one_hot(labels, classes).permute(0, 3, 1, 2).float()
    return F.avg_pool2d(hot, SAMPLES // sub)


def masked_mean(value: Tensor, valid: Tensor, sub: int) -> Masked:
    """Mean of `value` [B, K, g*n, g*n] over the valid samples [B, 1, g*n, g*n] of every sub-cell."""
    share = F.avg_pool2d(valid.float(), SAMPLES // sub)
    mean = F.avg_pool2d(value * valid, SAMPLES // sub) / share.clamp_min(1e-6)
    return Masked(mean, share)


def log_depth(crops: Crops, sub: int) -> Masked:
    """Mean log of the depth in metres, not of the crop's apparent depth: [B, 1, g*sub, g*sub]."""
    depth = crops.depth.unsqueeze(1)
    return masked_mean(depth.clamp_min(0.1).log(), depth > 0, sub)


def normals(crops: Crops, sub: int) -> Masked:
    """Mean surface normal in camera axes (shorter than 1 where it varies): [B, 3, g*sub, g*sub]."""
    valid = crops.normals.square().sum(1, keepdim=True) > 0.5
    return masked_mean(crops.normals, valid, sub)


def colours(images: Tensor, grid: int, sub: int) -> Tensor:
    """Mean colour of every sub-cell in [-1, 1]: [B, 3, g*sub, g*sub]."""
    return 2 * F.avg_pool2d(images, images.shape[-1] // (grid * sub)) - 1


def segments(crops: Crops) -> Tensor:
    """Ids of objects and of background surfaces, which never share a number: int64 [B, g*n, g*n]."""
    return torch.where(crops.instance > 0, crops.instance + 256, crops.semantic)


def changes(differs_down: Tensor, differs_right: Tensor, sub: int) -> Tensor:
    """[B, H-1, W] and [B, H, W-1] bool -> 1 where a sub-cell contains a change: [B, 1, g*sub, g*sub]."""
    down = F.pad(differs_down.float(), (0, 0, 0, 1))
    right = F.pad(differs_right.float(), (0, 1, 0, 0))
    return F.max_pool2d(torch.maximum(down, right).unsqueeze(1), SAMPLES // sub)


def edges(ids: Tensor, sub: int) -> Tensor:
    """Boundaries of an id map [B, g*n, g*n] -> [B, 1, g*sub, g*sub] of 0 and 1."""
    return changes(ids[:, 1:] != ids[:, :-1], ids[:, :, 1:] != ids[:, :, :-1], sub)


def depth_edges(crops: Crops, sub: int) -> Tensor:
    """Where the log depth jumps -> [B, 1, g*sub, g*sub] of 0 and 1."""
    log = torch.where(crops.depth > 0, crops.depth, torch.full_like(crops.depth, 100.0)).clamp_min(0.1).log()
    down, right = (log[:, 1:] - log[:, :-1]).abs(), (log[:, :, 1:] - log[:, :, :-1]).abs()
    return changes(down > DEPTH_JUMP, right > DEPTH_JUMP, sub)


def at_centres(samples: Tensor) -> Tensor:
    """The sample at every patch centre: [B, g*n, g*n] -> [B, g, g]."""
    return samples[:, SAMPLES // 2 :: SAMPLES, SAMPLES // 2 :: SAMPLES]


def object_geometry(crops: Crops) -> Masked:
    """Of the object at the patch centre: way to its centroid (x, y in patches) and log spread (x, y): [B, 4, g, g]."""
    ids, side = crops.instance, crops.instance.shape[-1]
    axis = (torch.arange(side) + 0.5) / SAMPLES
    x, y = axis.expand(side, side).flatten(), axis.unsqueeze(1).expand(side, side).flatten()
    flat = ids.flatten(1)
    moments = torch.stack([torch.ones_like(x), x, y, x * x, y * y]).expand(len(ids), 5, -1)
    sums = torch.zeros(len(ids), 5, int(ids.max()) + 1).scatter_add_(2, flat.unsqueeze(1).expand(-1, 5, -1), moments)
    mean = sums[:, 1:] / sums[:, :1].clamp_min(1)
    spread = (mean[:, 2:] - mean[:, :2].square()).clamp_min(0.01).sqrt().log()
    table = torch.cat([mean[:, :2], spread], dim=1)
    centre = at_centres(ids)
    picked = table.gather(2, centre.flatten(1).unsqueeze(1).expand(-1, 4, -1)).unflatten(2, centre.shape[1:])
    here = torch.stack([at_centres(v.view(1, side, side)) for v in (x, y)], dim=1)
    offset = (picked[:, :2] - here).clamp(-2, 2)
    return Masked(torch.cat([offset, picked[:, 2:]], dim=1), (centre > 0).unsqueeze(1).float())


def largest_kind(crops: Crops) -> Tensor:
    """Coarse class of the object that covers most of the crop: int64 [B], -100 where there is no object."""
    flat = crops.instance.flatten(1)
    size = int(flat.max()) + 1
    area = torch.zeros(len(flat), size).scatter_add_(1, flat, torch.ones(flat.shape))
    area[:, 0] = 0
    kinds = torch.zeros(len(flat), size, dtype=torch.long).scatter_reduce_(1, flat, crops.coarse.flatten(1), "amax")
    best = area.argmax(1, keepdim=True)
    return torch.where(area.amax(1) > 0, kinds.gather(1, best).squeeze(1), torch.full_like(best[:, 0], -100))


def object_count(crops: Crops) -> Tensor:
    """log(1 + number of objects that show), [B]."""
    flat = crops.instance.flatten(1)
    seen = torch.zeros(len(flat), int(flat.max()) + 1).scatter_(1, flat, 1.0)
    return seen[:, 1:].sum(1).log1p()


def window_masks(ids: Tensor, sub: int = 4) -> tuple[Tensor, Tensor]:
    """For every patch the mask, over its 3 x 3 neighbourhood, of what lies at its centre.

    Ids [B, g*n, g*n] -> target [B, (3*sub)^2, g, g] of 0 and 1, and where the window is inside the image, same shape.
    """
    step = SAMPLES // sub
    coarse = ids[:, step // 2 :: step, step // 2 :: step].float().unsqueeze(1)
    padded = F.pad(coarse, (sub, sub, sub, sub), value=-1.0)
    windows = F.unfold(padded, 3 * sub, stride=sub).unflatten(2, (ids.shape[1] // SAMPLES, -1))
    centre = at_centres(ids).unsqueeze(1).float()
    return (windows == centre).float(), (windows >= 0).float()
