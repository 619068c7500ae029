"""Feature maps as colours. All maps of one width that are drawn together share one basis, so equal colours are equal
features; a basis per map would make any two look alike or different by accident.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from common.atomic import replacing_file
from featsharp_adapter.model.phi_s import CovarianceStatistics

#: Standard deviations from the mean at which a colour is at its end.
REACH = 2.2


@dataclass(frozen=True)
class ColourBasis:
    """The three directions in which features vary most. axes [3, C], mean [C], spread [3] standard deviations."""

    axes: Tensor
    mean: Tensor
    spread: Tensor

    @classmethod
    def fit(cls, statistics: CovarianceStatistics) -> "ColourBasis":
        """Of all features that `statistics` has seen; narrower ones leave the last colours grey."""
        values, vectors = torch.linalg.eigh(statistics.covariance)
        axes = vectors[:, -3:].flip(1).T
        axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # eigenvectors have no sign
        return cls(axes, statistics.mean, values[-3:].flip(0).clamp(min=0).sqrt())

    def paint(self, features: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, 3, h, w] in [0, 1]."""
        centred = features.detach().double().cpu() - self.mean[:, None, None]
        projected = torch.einsum("oc,nchw->nohw", self.axes, centred)
        span = (REACH * self.spread).clamp(min=1e-12)[:, None, None]
        colours = ((projected / span + 1) / 2).clamp(0, 1).float()
        return F.pad(colours, (0, 0, 0, 0, 0, 3 - colours.shape[1]), value=0.5)


def shared_basis(maps: Mapping[str, Tensor]) -> ColourBasis:
    """One basis for maps [N, C, h, w] of any grids."""
    statistics = CovarianceStatistics(next(iter(maps.values())).shape[1])
    for features in maps.values():
        statistics.update(features)
    return ColourBasis.fit(statistics)


def to_pictures(colours: Tensor, size: tuple[int, int]) -> list[np.ndarray]:
    """[N, 3, h, w] in [0, 1] -> N pictures uint8 [*size, 3]; tokens stay visible squares."""
    enlarged = F.interpolate(colours.clamp(0, 1), size=size, mode="nearest")
    return list((enlarged * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())


def save_panels(columns: Mapping[str, Sequence[np.ndarray]], path: Path) -> Path:
    """A PNG with a column of N pictures under each title."""
    count = len(next(iter(columns.values())))
    height, width = next(iter(columns.values()))[0].shape[:2]
    cell = min(4.0, max(2.4, 12 / len(columns))) * min(1.0, width / height)
    figure = Figure(
        figsize=(cell * len(columns), (cell * height / width + 0.1) * count + 0.35), dpi=120, layout="compressed"
    )
    axes = figure.subplots(count, len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=8)
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture)
            axes[row, column].set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as temporary:
        figure.savefig(temporary)
    return path
