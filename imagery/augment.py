"""Crop, zoom, stretch and mirror: one antialiased resampling from the source pixels, decided by (seed, position).

The base is what FeatSharp trains on (arXiv 2502.16025): bring the smallest side to the output size, zoom by a uniform
factor, crop at random. Crop and resize are one operation, so pixels are interpolated once.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from common.errors import UserError
from common.keyed_random import mix
from imagery.contracts import Content
from imagery.crop import Box, decode_crop

_AUGMENT = 0xA06  # keeps these random numbers apart from the other uses of (seed, position)


@dataclass(frozen=True)
class Augment:
    """What may happen to an image on its way to height x width; the default is a random crop and nothing else.

    zoom: range of the uniform factor by which the picture is enlarged beyond the smallest fit (1 = smallest side fits).
    aspect: range of the stretch width : height, log-uniform (1 = none).
    hflip: probability of a mirror image.
    random_crop: a random window; False takes the centre.
    """

    zoom: tuple[float, float] = (1.0, 1.0)
    aspect: tuple[float, float] = (1.0, 1.0)
    hflip: float = 0.0
    random_crop: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.zoom[0] <= self.zoom[1] <= 100:
            raise UserError(f"augment.zoom is a range low, high with 1 <= low <= high <= 100, got {self.zoom}")
        if not 0.01 <= self.aspect[0] <= self.aspect[1] <= 100:
            raise UserError(f"augment.aspect is a range low, high with 0.01 <= low <= high <= 100, got {self.aspect}")
        if not 0 <= self.hflip <= 1:
            raise UserError(f"augment.hflip is a probability, got {self.hflip}")

    def apply(self, image: Content, height: int, width: int, *, seed: int, position: int) -> np.ndarray:
        """An encoded image, or uint8 [H, W, 3] -> uint8 [height, width, 3]; (seed, position) alone decides the window.

        BadImage where an encoded image cannot be decoded.
        """
        random = np.random.Generator(np.random.PCG64(mix(seed, position, _AUGMENT)))

        def choose(source_height: int, source_width: int) -> Box:
            return self.box(source_height, source_width, height, width, random)

        if isinstance(image, bytes):
            pixels = decode_crop(image, choose, height, width)
        else:
            # BICUBIC in Pillow widens its kernel when it shrinks: antialiased, unlike a plain interpolation.
            box = choose(image.shape[0], image.shape[1])
            pixels = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box))
        return pixels[:, ::-1] if random.random() < self.hflip else pixels

    def box(self, source_height: int, source_width: int, height: int, width: int, random: np.random.Generator) -> Box:
        """The window (left, top, right, bottom) of the source, in source pixels, that becomes height x width."""
        zoom = random.uniform(*self.zoom)
        stretch = float(np.exp(random.uniform(*np.log(self.aspect))))
        across, down = random.random(2) if self.random_crop else (0.5, 0.5)
        # A picture stretched in width shows less of its width: the window is narrower than the output's shape.
        shape = width / height / stretch
        box_height = min(source_height, source_width / shape) / zoom
        box_width = min(source_width, source_height * shape) / zoom
        left, top = across * (source_width - box_width), down * (source_height - box_height)
        return left, top, min(left + box_width, source_width), min(top + box_height, source_height)


PLAIN = Augment(random_crop=False)
"""No augmentation: smallest side to the output size, centre crop."""
