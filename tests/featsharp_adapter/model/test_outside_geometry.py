"""Warps and homographies against Pillow, kornia, SciPy and torchvision: other people's conventions, the same pixels."""

import numpy as np
import pytest
import torch
from kornia.geometry.transform import warp_perspective
from PIL import Image
from scipy.ndimage import map_coordinates
from torchvision.transforms.functional import _get_perspective_coeffs

from featsharp_adapter.model.multiview import ViewSettings, homography_between, inside_share, random_homographies, warp

WILD = ViewSettings(zoom=(0.6, 1.4), perspective=(0.05, 0.15), rotation=30.0, shift=0.2)


def in_pixels(homography: torch.Tensor, height: int, width: int) -> np.ndarray:
    """[-1, 1] coordinates to pixel coordinates with corners at 0 and the side's length."""
    scale = np.array([[width / 2, 0, width / 2], [0, height / 2, height / 2], [0, 0, 1]])
    matrix = scale @ homography.double().numpy() @ np.linalg.inv(scale)
    return matrix / matrix[2, 2]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("height", "width"), [(24, 24), (17, 30)])
def test_warp_is_what_pillow_does(height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    homographies = random_homographies(1, WILD, generator, aspect=width / height)
    maps = torch.rand(1, 1, height, width, generator=generator)
    coefficients = in_pixels(homographies[0], height, width).flatten()[:8].tolist()
    picture = Image.fromarray(maps[0, 0].numpy()).transform(
        (width, height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR
    )
    inside = inside_share(homographies, (height, width))[0, 0] == 1
    inner = torch.zeros_like(inside)  # Pillow has another idea of the outermost half pixel
    inner[1:-1, 1:-1] = (torch.nn.functional.max_pool2d((~inside)[None].float(), 3, stride=1) == 0)[0]
    assert inner.sum() > 0.2 * height * width
    difference = (warp(maps, homographies)[0, 0] - torch.from_numpy(np.asarray(picture).copy())).abs()
    assert difference[inner].max() < 2e-4


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("height", "width"), [(24, 24), (17, 30)])
def test_warp_is_what_kornia_does(height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    homographies = random_homographies(2, WILD, generator, aspect=width / height)
    maps = torch.rand(2, 3, height, width, generator=generator)
    centres = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # kornia's pixels have their centres at whole numbers
    backwards = [np.linalg.inv(centres) @ in_pixels(one, height, width) @ centres for one in homographies]
    forwards = torch.from_numpy(np.linalg.inv(np.stack(backwards))).float()
    expected = warp_perspective(maps, forwards, (height, width), padding_mode="zeros", align_corners=True)
    inside = inside_share(homographies, (height, width)) == 1
    inner = torch.zeros_like(inside)  # half a pixel from the border kornia mixes in zeros
    inner[..., 1:-1, 1:-1] = torch.nn.functional.max_pool2d((~inside).float(), 3, stride=1) == 0
    inner = inner.expand_as(maps)
    assert inner.sum() > 0.2 * maps.numel()
    assert (warp(maps, homographies) - expected)[inner].abs().max() < 2e-4


@pytest.mark.parametrize("seed", range(3))
def test_warp_reflects_as_scipy_does(seed: int) -> None:
    height, width = 13, 18
    generator = torch.Generator().manual_seed(seed)
    homographies = random_homographies(1, WILD, generator, aspect=width / height)
    maps = torch.rand(1, 1, height, width, generator=generator)
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    mapped = in_pixels(homographies[0], height, width) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    places = (mapped[:2] / mapped[2])[::-1] - 0.5
    # "reflect" continues a b c with c b a, edges included: grid_sample's reflection about the outer edges.
    expected = map_coordinates(maps[0, 0].double().numpy(), places, order=1, mode="reflect").reshape(height, width)
    assert inside_share(homographies, (height, width)).min() < 0.5
    assert np.abs(warp(maps, homographies)[0, 0].numpy() - expected).max() < 2e-4


@pytest.mark.parametrize("seed", range(3))
def test_four_points_give_torchvisions_coefficients(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = torch.tensor([[0, 0], [40, 0], [40, 30], [0, 30]])
    end = start + torch.randint(-8, 9, (4, 2), generator=generator)
    # torchvision maps the output to the input, so from `end` to `start`.
    theirs = _get_perspective_coeffs(start.tolist(), end.tolist())
    ours = homography_between(end.double(), start.double()).flatten()[:8]
    assert torch.allclose(ours, torch.tensor(theirs, dtype=torch.float64), atol=1e-4)
