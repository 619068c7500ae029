"""Feature pictures: one basis for all panels, so equal colours are equal features."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distill.evaluation.pictures import draw, enlarge, pca_colours, save_sheet
from distill.exported import load
from distill.recipe import read


def test_equal_features_have_equal_colours_in_every_panel() -> None:
    torch.manual_seed(0)
    low = torch.randn(2, 8, 3, 4)
    sharp = torch.cat([low, torch.randn(2, 8, 3, 4)], dim=3)
    colours = pca_colours({"low": low, "sharp": sharp})
    assert torch.allclose(colours["low"], colours["sharp"][..., :4], atol=1e-6)
    assert colours["sharp"].shape == (2, 3, 3, 8)
    assert colours["low"].min() >= 0 and colours["low"].max() <= 1


def test_the_main_axes_carry_the_colour() -> None:
    """Three directions with all the variance must be shown; a fourth with almost none must not."""
    torch.manual_seed(0)
    strong = torch.randn(1, 3, 16, 16) * torch.tensor([9.0, 5.0, 3.0]).view(1, 3, 1, 1)
    weak = 0.01 * torch.randn(1, 1, 16, 16)
    colours = pca_colours({"a": torch.cat([strong, weak], 1)})["a"]
    inside = (colours > 0) & (colours < 1)
    for row in range(3):
        keep = inside[0, row]
        together = torch.stack([colours[0, row][keep], strong[0, row][keep]])
        assert torch.corrcoef(together)[0, 1].abs() > 0.99


def test_a_run_is_drawn_with_teachers_upsamplers_and_students(trained: Path, tmp_path: Path) -> None:
    recipe = read(trained / "recipe.yaml")
    sheets = draw({"tile": recipe}, {"tile": load(str(trained))}, torch.rand(2, 3, 32, 32))
    assert [(sheet.teacher, sheet.grids) for sheet in sheets] == [("coarse", "2x2 -> 4x4"), ("fine", "4x4")]
    assert list(sheets[0].rows) == ["image", "teacher coarse, 2x2", "tile 2x, 4x4", "student, tile, 4x4"]
    assert list(sheets[1].rows) == ["image", "teacher fine, 4x4", "student, tile, 4x4"]
    assert all(
        picture.shape == (32, 32, 3) and picture.dtype == np.uint8 for p in sheets[0].rows.values() for picture in p
    )
    path = save_sheet(sheets[0], tmp_path / "sheet.png")
    assert np.asarray(Image.open(path).convert("RGB")).std() > 10


def test_tokens_stay_visible_squares() -> None:
    colours = torch.rand(1, 3, 2, 2)
    picture = torch.from_numpy(enlarge(colours, (8, 6))[0]).float() / 255
    assert torch.allclose(picture[:4, 3:], colours[0, :, 0, 1].expand(4, 3, 3), atol=1 / 255)
