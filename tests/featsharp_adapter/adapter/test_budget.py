"""A budget of teacher passes: what is encoded, what comes out without a tile, and that all passes change nothing."""

from pathlib import Path

import pytest
import torch
from small_recipes import image_folder, small_recipe, small_teacher_data
from small_teacher import SmallTeacher
from torch import Tensor

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter, make_untrained
from featsharp_adapter.model.views import teacher_views
from featsharp_adapter.sharpening.backbone import SharpenedBackbone
from featsharp_adapter.sharpening.sharpener import Sharpener, SharpenSettings
from featsharp_adapter.training.train_one import fit_one


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    with pytest.MonkeyPatch.context() as patch:
        folder = image_folder(tmp_path_factory.mktemp("budget") / "images")
        recipe = small_recipe(folder, upsampler="ridge", options={"image_width": 4}, data__images=20)
        return fit_one(recipe, small_teacher_data(recipe, patch))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 64, 48)


@pytest.mark.parametrize("passes", [1, 1.75, 2.5, 0.5, 4, 5])
@torch.no_grad()
def test_only_what_the_budget_allows_is_encoded(
    passes: float, adapter: Adapter, images: Tensor, teacher: SmallTeacher
) -> None:
    before = teacher.seen
    views = adapter.views(teacher, images, passes=passes)
    allowed = passes * 5 if passes < 1 else passes
    assert teacher.seen - before == int(4 * allowed)
    whole = adapter.views(teacher, images)
    found, full = adapter(views, images), adapter(whole, images)
    if views.chosen is None:
        assert passes == 5 and torch.equal(found, full)
        return
    cells = views.chosen[:, None].repeat_interleave(4, dim=2).repeat_interleave(3, dim=3).expand_as(found)
    low = adapter.denoise_normalised(whole.low)
    alone = adapter.normaliser.denormalise(adapter.upsampler.upsample_low(low, images))
    assert torch.allclose(found, torch.where(cells, full, alone), atol=1e-4)


@torch.no_grad()
def test_the_tiles_with_the_largest_predicted_gain_are_taken(adapter: Adapter, images: Tensor, teacher) -> None:
    low = adapter.denoise_normalised(teacher_views(teacher, images, ()).low)
    gains = adapter.upsampler.gains(low, images)
    chosen = adapter.views(teacher, images, passes=2.5).chosen
    assert int(chosen.sum()) == 6 and gains[chosen].min() >= gains[~chosen].max()


@torch.no_grad()
def test_every_path_spends_the_same_passes(adapter: Adapter, images: Tensor, teacher: SmallTeacher) -> None:
    whole = SharpenedBackbone(teacher, adapter, "a")
    all_of_them = SharpenedBackbone(teacher, adapter, "a", passes=5)
    half = SharpenedBackbone(teacher, adapter, "a", passes=2.5)
    assert torch.equal(whole(images).spatial, all_of_them(images).spatial)
    assert len({backbone.spec.digest for backbone in (whole, all_of_them, half)}) == 3
    before = teacher.seen
    found = Sharpener(teacher, adapter, SharpenSettings(fit="squash", passes=2.5))(images).spatial
    assert teacher.seen - before == 10 and torch.allclose(found, half(images).spatial, atol=1e-5)
    plain = Sharpener(teacher, adapter, SharpenSettings(fit="squash"))(images).spatial
    assert torch.equal(Sharpener(teacher, adapter, SharpenSettings(fit="squash", passes=5))(images).spatial, plain)


def test_a_budget_survives_the_folder(adapter: Adapter, images: Tensor, teacher, tmp_path: Path) -> None:
    again = Adapter.from_pretrained(adapter.save_pretrained(tmp_path / "adapter"), teacher.spec)
    assert torch.equal(again.views(teacher, images, passes=3).chosen, adapter.views(teacher, images, passes=3).chosen)


def test_a_budget_that_cannot_be_is_refused(adapter: Adapter, images: Tensor, teacher: SmallTeacher) -> None:
    for passes in (0.1, 5.5):
        with pytest.raises(UserError, match="passes: from 1"):
            adapter.views(teacher, images, passes=passes)
    with pytest.raises(UserError, match="needs all of its tiles"):
        SharpenedBackbone(teacher, make_untrained("tile", teacher.spec, 2), "a", passes=2)(images)
    with pytest.raises(UserError, match="neither overlap nor max_memory"):
        SharpenSettings(passes=2, overlap=0.5)
