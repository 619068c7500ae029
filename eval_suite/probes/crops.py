"""Training crops of the linear segmentation protocols: random scale, crop, flip, photometric distortion."""

import torch
import torch.nn.functional as F
from torch import Tensor

from eval_suite.readers.contracts import IGNORE

MOST_OF_ONE_CLASS = 0.75  #: a crop with more of a single class is drawn again, up to ten times
TRIES = 10
LONG_OVER_SHORT = 4  #: the (2048, 512) rule: the long side is at most four times the short side's target


def keep_ratio(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(height, width) with the short side `short`, unless the long side would pass 4 x short."""
    scale = min(short / min(size), LONG_OVER_SHORT * short / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def training_crop(image: Tensor, labels: Tensor, crop: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Photograph [3, H, W] in [0, 1] and classes [H, W] -> a crop of both, padded (black, IGNORE) where it must be.

    Scale 0.5 to 2 of short side = crop, crop with at most 75 % of one class, flip, brightness, contrast, saturation and
    hue: mmsegmentation's order (RandomResize, RandomCrop, RandomFlip, PhotoMetricDistortion).
    """
    scale = 0.5 + 1.5 * float(torch.rand((), generator=generator))
    size = keep_ratio((image.shape[-2], image.shape[-1]), max(1, round(crop * scale)))
    image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
    labels = F.interpolate(labels[None, None].float(), size=size, mode="nearest-exact")[0, 0].to(labels.dtype)
    image, labels = _cut(image, labels, crop, generator)
    if float(torch.rand((), generator=generator)) < 0.5:
        image, labels = image.flip(-1), labels.flip(-1)
    image = distort(image, generator)
    missing = (0, crop - image.shape[-1], 0, crop - image.shape[-2])
    return F.pad(image, missing), F.pad(labels, missing, value=IGNORE)


def _cut(image: Tensor, labels: Tensor, crop: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    height, width = labels.shape
    for _ in range(TRIES):
        top = int(torch.randint(max(height - crop, 0) + 1, (), generator=generator))
        left = int(torch.randint(max(width - crop, 0) + 1, (), generator=generator))
        part = labels[top : top + crop, left : left + crop]
        counts = torch.bincount(part[part != IGNORE].long().flatten())
        if (counts > 0).sum() > 1 and float(counts.max() / counts.sum()) < MOST_OF_ONE_CLASS:
            break
    return image[:, top : top + crop, left : left + crop], part


def distort(image: Tensor, generator: torch.Generator) -> Tensor:
    """[3, H, W] in [0, 1]: brightness +-32/255, contrast and saturation 0.5 to 1.5, hue +-18 degrees, each half the
    time. Contrast comes before or after saturation and hue, by another coin.
    """
    from torchvision.transforms.v2 import functional as colour  # torchvision takes seconds to import

    coins = torch.rand(5, generator=generator).tolist()
    values = torch.rand(4, generator=generator).tolist()
    if coins[0] < 0.5:
        image = image + (2 * values[0] - 1) * 32 / 255
    early = coins[1] < 0.5
    strength = 0.5 + values[1]
    if early and coins[2] < 0.5:
        image = image * strength
    image = image.clamp(0, 1)
    if coins[3] < 0.5:
        image = colour.adjust_saturation(image, 0.5 + values[2])
    if coins[4] < 0.5:
        image = colour.adjust_hue(image, (2 * values[3] - 1) * 18 / 360)
    if not early and coins[2] < 0.5:
        image = image * strength
    return image.clamp(0, 1)
