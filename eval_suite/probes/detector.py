"""Faster R-CNN on a frozen map: ViTDet's simple feature pyramid, torchvision's region proposals and box head."""

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.errors import UserError
from eval_suite.features import ProbedBackbone
from teachers.contracts import fit_images

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

CHANNELS = 256  #: of the pyramid; the box head has four times as many
SCALES = (4.0, 2.0, 1.0, 0.5)  #: of the frozen grid; a max-pooled fifth level follows (ViTDet)
ANCHORS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  #: of the image's side: 32 to 512 px at 1024
SHAPES = (0.5, 1.0, 2.0)
POOLED = 7  #: cells of a side that a proposal's features are pooled to


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of [B, C, h, w]."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values.movedim(1, -1)).movedim(-1, 1)


class SimpleFeaturePyramid(nn.Module):
    """One map [B, C, h, w] -> `channels` at 4, 2, 1 and 1/2 times its grid, and a pooled map (Li et al. 2022)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(self._level(width, channels, scale) for scale in SCALES)
        self.pool = nn.MaxPool2d(1, 2)

    @staticmethod
    def _level(width: int, channels: int, scale: float) -> nn.Sequential:
        resize: list[nn.Module] = []
        if scale == 4.0:
            half, quarter = max(1, width // 2), max(1, width // 4)
            resize = [nn.ConvTranspose2d(width, half, 2, 2), ChannelNorm(half), nn.GELU()]
            resize.append(nn.ConvTranspose2d(half, quarter, 2, 2))
            width = quarter
        elif scale == 2.0:
            resize = [nn.ConvTranspose2d(width, max(1, width // 2), 2, 2)]
            width = max(1, width // 2)
        elif scale == 0.5:
            resize = [nn.MaxPool2d(2, 2)]
        return nn.Sequential(
            *resize, nn.Conv2d(width, channels, 1, bias=False), ChannelNorm(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), ChannelNorm(channels),
        )  # fmt: skip

    def forward(self, spatial: Tensor) -> "OrderedDict[str, Tensor]":
        maps = [level(spatial) for level in self.levels]
        return OrderedDict((str(at), values) for at, values in enumerate([*maps, self.pool(maps[-1])]))


class FrozenMaps(nn.Module):
    """What torchvision calls a backbone: images in, a pyramid out; only the pyramid learns and is saved."""

    def __init__(self, probed: ProbedBackbone, channels: int) -> None:
        super().__init__()
        self._probed = [probed]  # in a list, so that the frozen weights are no part of this module
        self.out_channels = channels
        self.pyramid = SimpleFeaturePyramid(probed.spec.spatial_dim, channels)
        self.register_buffer("mean", torch.tensor(probed.spec.mean).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """[B, 3, S, S], the backbone's mean subtracted so that padding has its colour -> five maps."""
        probed = self._probed[0]
        with torch.no_grad():
            spatial = probed.backbone(fit_images(images + self.mean, probed.spec)).spatial.float()  # type: ignore[operator]
        if not spatial.isfinite().all():
            raise UserError(f"{probed.spec.name} gives NaN or infinite features; check its weights")
        return self.pyramid(spatial)


def frozen_faster_rcnn(
    probed: ProbedBackbone, categories: int, side: int, *, seed: int, channels: int = CHANNELS
) -> "FasterRCNN":
    """The detector on the backbone's device; an image's long side becomes `side`, the rest of the square is padding."""
    # here, because torchvision takes seconds to import, which other probes need not wait
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = FasterRCNN(
            FrozenMaps(probed, channels),
            min_size=side,
            max_size=side,
            size_divisible=side,
            image_mean=list(probed.spec.mean),
            image_std=[1.0, 1.0, 1.0],
            rpn_anchor_generator=AnchorGenerator(
                tuple((max(1, round(part * side)),) for part in ANCHORS), (SHAPES,) * len(ANCHORS)
            ),
            box_roi_pool=MultiScaleRoIAlign([str(at) for at in range(len(SCALES))], POOLED, 2),
            box_head=TwoMLPHead(channels * POOLED**2, 4 * channels),
            box_predictor=FastRCNNPredictor(4 * channels, 1 + categories),
        )
    return detector.to(probed.device)
