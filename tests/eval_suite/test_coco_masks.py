"""COCO's masks against pycocotools, on random and on awkward inputs."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from common.errors import UserError
from eval_suite.readers.coco_masks import instance_mask
from eval_suite.readers.photo_sizes import PhotoSize
from eval_suite.readers.rle import decode_rle


@pytest.mark.parametrize("seed", range(4))
def test_run_length_masks_agree_with_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((23, 31)) < (0.02, 0.5, 0.98, 0.0)[seed]
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(decode_rle(packed["counts"], 23, 31), mask)
    assert np.array_equal(decode_rle(packed["counts"].decode(), 23, 31), mask)
    with pytest.raises(UserError, match="damaged"):
        decode_rle(packed["counts"][:-1] + b"o", 23, 31)  # "o" says that more follows


def test_polygons_cover_what_pycocotools_says_to_a_pixel_along_the_edge() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        angles = np.sort(rng.random(12)) * 2 * np.pi
        radius = rng.uniform(15, 40, 12)
        polygon = np.stack([60 + radius * np.cos(angles), 50 + radius * np.sin(angles)], 1).ravel().tolist()
        theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon], 100, 120))).astype(bool)
        ours = instance_mask([polygon], PhotoSize(100, 120), "a polygon")
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.9
