"""Adapters: raw units in and out with PHI-S and bias in between, as folders, and only ever for their own teacher."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter, make_untrained
from featsharp_adapter.adapter.description import AdapterMeta
from featsharp_adapter.adapter.folder import TRAINED, WEIGHTS, find_folder
from featsharp_adapter.model.bias import BiasBuffer
from featsharp_adapter.model.phi_s import CovarianceStatistics, PhiS
from featsharp_adapter.model.views import Views, teacher_views


def views_and_adapter(teacher, upsampler: str = "featsharp") -> tuple[torch.Tensor, Views, Adapter]:
    """A fitted adapter with every parameter away from zero, and something to use it on."""
    images = torch.rand(3, 3, 64, 48)
    with torch.no_grad():
        views = teacher_views(teacher, images, (2,))
    statistics = CovarianceStatistics(8)
    statistics.update(views.low)
    options = {"heads": 2} if upsampler == "featsharp" else {}
    meta = AdapterMeta(teacher.spec, "test:small0", upsampler, 2, options=options, training={"steps": 0})
    adapter = Adapter.build(meta, PhiS.fit(statistics))
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return images, views, adapter.eval()


def test_phi_s_and_bias_come_before_upsampling_and_phi_s_is_undone_after(teacher) -> None:
    images, views, adapter = views_and_adapter(teacher)
    bias = adapter.bias.buffer
    low = adapter.normaliser.normalise(views.low) + bias
    tiles = adapter.normaliser.normalise(views.tiles[2])
    rows, columns = teacher.spec.native_grid
    for row in range(2):
        for column in range(2):
            tiles[:, :, row * rows : (row + 1) * rows, column * columns : (column + 1) * columns] += bias
    expected = adapter.upsampler(low, {2: tiles}, images)
    assert torch.allclose(adapter.forward_normalised(views, images), expected, atol=1e-6)
    assert torch.allclose(adapter(views, images), adapter.normaliser.denormalise(expected), atol=1e-6)
    assert torch.allclose(adapter.denoise(views.low), adapter.normaliser.denormalise(low), atol=1e-6)


def test_bias_fits_other_grids_by_interpolation() -> None:
    bias = BiasBuffer(3, (4, 5))
    torch.nn.init.normal_(bias.buffer)
    zeros = torch.zeros(1, 3, 2 * 6, 2 * 9)
    resized = F.interpolate(bias.buffer, size=(6, 9), mode="bilinear", align_corners=False)
    assert torch.allclose(bias(zeros, 2)[:, :, 6:, 9:], resized)


def test_a_folder_brings_back_the_same_adapter(teacher, tmp_path: Path) -> None:
    images, views, adapter = views_and_adapter(teacher)
    folder = adapter.save_pretrained(tmp_path / "new" / "adapter")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "adapter.json", "adapter.safetensors"]
    loaded = Adapter.from_pretrained(folder, teacher.spec)
    assert not loaded.training and loaded.meta == adapter.meta
    assert torch.equal(loaded(views, images), adapter(views, images))
    card = (folder / "README.md").read_text()
    assert teacher.spec.digest in card and "featsharp 2x for test:small0" in card


def test_a_flipped_bit_in_the_weights_is_refused(teacher, tmp_path: Path) -> None:
    _, _, adapter = views_and_adapter(teacher)
    folder = adapter.save_pretrained(tmp_path / "adapter")
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged: adapter\.safetensors is not as it was written"):
        Adapter.from_pretrained(folder)
    description = json.loads((folder / "adapter.json").read_text())
    del description["checksum"]  # changed on purpose, or written before there were checksums
    (folder / "adapter.json").write_text(json.dumps(description))
    Adapter.from_pretrained(folder)


def test_the_folder_of_a_training_stands_for_its_adapter(teacher, tmp_path: Path) -> None:
    _, _, adapter = views_and_adapter(teacher)
    adapter.save_pretrained(tmp_path / "runs" / TRAINED)
    assert (
        find_folder(str(tmp_path / "runs"))
        == tmp_path / "runs" / TRAINED
        == find_folder(str(tmp_path / "runs" / TRAINED))
    )
    Adapter.from_pretrained(tmp_path / "runs", teacher.spec)


def test_saving_again_replaces_the_folder_and_leaves_nothing_else(teacher, tmp_path: Path) -> None:
    _, _, adapter = views_and_adapter(teacher)
    adapter.save_pretrained(tmp_path / "adapter")
    torch.nn.init.zeros_(adapter.bias.buffer)
    adapter.save_pretrained(tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert not Adapter.from_pretrained(tmp_path / "adapter").bias.buffer.any()


def test_a_failed_save_leaves_the_old_folder(teacher, tmp_path: Path) -> None:
    _, _, adapter = views_and_adapter(teacher)
    adapter.save_pretrained(tmp_path / "adapter")
    before = (tmp_path / "adapter" / "adapter.json").read_text()
    adapter.meta = replace(adapter.meta, training={"not JSON": object()})
    with pytest.raises(TypeError):
        adapter.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_other_teachers_are_refused(teacher, tmp_path: Path) -> None:
    _, _, adapter = views_and_adapter(teacher)
    folder = adapter.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"other weights.*train one"):
        Adapter.from_pretrained(folder, replace(teacher.spec, name="timm:other", digest="sha256:0"))
    with pytest.raises(UserError, match="px"):
        Adapter.from_pretrained(folder, replace(teacher.spec, native_size=(64, 48)))
    assert teacher.spec.reads is None
    Adapter.from_pretrained(folder, replace(teacher.spec, reads="final"))  # its file is older than this fact
    adapter.meta = replace(adapter.meta, teacher=replace(teacher.spec, reads="final"))
    folder = adapter.save_pretrained(tmp_path / "adapter")
    for other, words in (({"reads": "level:1"}, "spatial final, this one has level:1"), ({"std": (1.0,) * 3}, "std")):
        with pytest.raises(UserError, match=words):
            Adapter.from_pretrained(folder, replace(adapter.meta.teacher, **other))


def test_missing_and_damaged_folders_are_explained(teacher, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Adapter.from_pretrained(tmp_path / "nothing")
    with pytest.raises(UserError, match="built-in adapter"):
        Adapter.from_pretrained("builtin:no-such-adapter")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"cannot read adapter\.json"):
        Adapter.from_pretrained(tmp_path / "empty")
    _, _, adapter = views_and_adapter(teacher)
    folder = adapter.save_pretrained(tmp_path / "adapter")
    weights = folder / "adapter.safetensors"
    complete = weights.read_bytes()
    weights.write_bytes(complete[: len(complete) // 2])
    with pytest.raises(UserError, match=r"is damaged: adapter\.safetensors has \d+ bytes of \d+"):
        Adapter.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        Adapter.from_pretrained(folder)
    weights.write_bytes(complete)
    description = json.loads((folder / "adapter.json").read_text())
    for change, message in [
        ({"upsampler": "featup", "options": {}}, "do not fit"),
        ({"options": {"window": "x"}}, "cannot be"),
        ({"upsampler": "featshrap"}, "did you mean"),
        ({"format": 9}, "format"),
    ]:
        (folder / "adapter.json").write_text(json.dumps({**description, **change}))
        with pytest.raises(UserError, match=message):
            Adapter.from_pretrained(folder)
    (folder / "adapter.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Adapter.from_pretrained(folder)


def test_untrained_adapters_for_upsamplers_without_weights(teacher) -> None:
    images, views, _ = views_and_adapter(teacher)
    adapter = make_untrained("bilinear", teacher.spec, 2)
    expected = F.interpolate(views.low, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(adapter(views, images), expected, atol=1e-5)
    statistics = CovarianceStatistics(8)
    statistics.update(views.low)
    fitted = make_untrained("bilinear", teacher.spec, 2, statistics)
    assert torch.allclose(fitted(views, images), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["bilinear", "ridge", "featsharp"])
@torch.no_grad()
def test_sharpening_compiles_to_one_graph(name: str, teacher) -> None:
    adapter = make_untrained(name, teacher.spec, 2)
    for parameter in adapter.upsampler.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    for grid in ((4, 3), (20, 18)):  # one block, and several
        views = Views(None, torch.randn(1, 8, *grid), {2: torch.randn(1, 8, 2 * grid[0], 2 * grid[1])})
        images = torch.rand(1, 3, 16 * grid[0], 16 * grid[1])
        compiled = torch.compile(adapter.forward, fullgraph=True, backend="eager", dynamic=False)
        assert torch.allclose(compiled(views, images), adapter(views, images), atol=1e-5)
