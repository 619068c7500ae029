"""Images of any size and shape: what each way of fitting gives, blending, grids between factors, memory, mistakes."""

import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo_cases import CASES

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter, make_untrained
from featsharp_adapter.adapter.description import AdapterMeta
from featsharp_adapter.model.phi_s import CovarianceStatistics, PhiS
from featsharp_adapter.model.views import stitch, tile_images
from featsharp_adapter.sharpening.backbone import SharpenedBackbone
from featsharp_adapter.sharpening.max_memory import parse_memory
from featsharp_adapter.sharpening.peak_memory import PeakMemory
from featsharp_adapter.sharpening.sharpener import Sharpener, SharpenSettings, choose_fit, resample
from featsharp_adapter.sharpening.tile_maps import tile_map, tile_starts
from teachers.contracts import Backbone, Features, resize_images


class PatchTeacher(Backbone):
    """Looks at each patch of 8 px alone: no context, so that it says the same of a patch in whatever tile it is."""

    def __init__(self, spec, *, resizable: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.spec = replace(spec, resizable=resizable)

    def forward(self, images: Tensor) -> Features:
        maps = self.patches(images)
        return Features(maps.mean(dim=(2, 3)), maps)


def fitted(backbone: Backbone, upsampler: str, factor: int, **options) -> Adapter:
    """An adapter with every parameter away from zero."""
    statistics = CovarianceStatistics(8)
    with torch.no_grad():
        statistics.update(backbone(torch.rand(8, 3, *backbone.spec.native_size)).spatial)
    meta = AdapterMeta(backbone.spec, "test", upsampler, factor, options=options)
    adapter = Adapter.build(meta, PhiS.fit(statistics)).eval()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return adapter


def sharpen(backbone: Backbone, adapter: Adapter, images: Tensor, **how) -> Features:
    return Sharpener(backbone, adapter, SharpenSettings(**how))(images)


@torch.no_grad()
@pytest.mark.parametrize("upsampler", ["featsharp", "featup", "s2", "none"])
@pytest.mark.parametrize("chunk", [1, 64])
def test_squashed_it_is_the_sharpened_backbone(teacher, upsampler: str, chunk: int) -> None:
    factor = 1 if upsampler == "none" else 2
    adapter = fitted(teacher, upsampler, factor, **({"heads": 2} if upsampler == "featsharp" else {}))
    images = torch.rand(3, 3, 32 * factor, 24 * factor)
    expected = SharpenedBackbone(teacher, adapter, "x")(images)
    features = sharpen(teacher, adapter, images, fit="squash", chunk=chunk)
    assert torch.allclose(features.spatial, expected.spatial, atol=1e-5)
    assert torch.allclose(features.summary, expected.summary, atol=1e-6)


@torch.no_grad()
def test_resizable_teachers_keep_the_shape_of_the_image(teacher) -> None:
    backbone = PatchTeacher(teacher.spec, resizable=True)
    adapter = fitted(backbone, "tile", 3)
    torch.nn.init.zeros_(adapter.bias.buffer)
    images = torch.rand(2, 3, 3 * 40, 3 * 88)
    features = sharpen(backbone, adapter, images)
    assert features.spatial.shape == (2, 8, 15, 33)
    assert torch.allclose(features.spatial, backbone(images).spatial, atol=1e-4)
    odd = sharpen(backbone, adapter, torch.rand(1, 3, 101, 333))  # a third: 34 x 111 px, in patches 32 x 112
    assert odd.spatial.shape == (1, 8, 12, 42)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 200), (150, 48), (97, 131), (20, 60)])
def test_windows_cover_every_shape_without_distortion(teacher, size: tuple[int, int]) -> None:
    backbone = PatchTeacher(teacher.spec, resizable=False)
    adapter = fitted(backbone, "tile", 2)
    torch.nn.init.zeros_(adapter.bias.buffer)
    images = torch.rand(1, 3, *size)
    spatial = sharpen(backbone, adapter, images, fit="windows").spatial
    rows, columns = spatial.shape[-2:]
    assert rows >= 8 and columns >= 6 and abs(rows / columns * size[1] / size[0] - 1) < 0.15
    expected = backbone(resize_images(images, (rows * 8, columns * 8))).spatial
    assert torch.allclose(spatial, expected, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("overlap", [0.3, 0.5])
def test_overlapping_tiles_of_a_teacher_without_context_change_nothing(teacher, overlap: float) -> None:
    backbone = PatchTeacher(teacher.spec, resizable=False)
    adapter = fitted(backbone, "featsharp", 2, heads=2)
    torch.nn.init.zeros_(adapter.bias.buffer)
    images = torch.rand(2, 3, 64, 48)
    plain = sharpen(backbone, adapter, images, fit="squash").spatial
    assert torch.allclose(sharpen(backbone, adapter, images, fit="squash", overlap=overlap).spatial, plain, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.floats(0, 0.95))
def test_tiles_cover_the_side_and_overlap_enough(grid: int, n: int, overlap: float) -> None:
    starts = tile_starts(grid, n, overlap)
    assert starts[0] == 0 and starts[-1] == (n - 1) * grid and starts == sorted(set(starts))
    shared = [first + grid - second for first, second in pairwise(starts)]
    assert all(tokens >= min(round(overlap * grid), grid - 1) - 1 and tokens >= 0 for tokens in shared)
    if overlap == 0:
        assert starts == [grid * i for i in range(n)]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9))
def test_tile_maps_without_overlap_are_stitched_tiles(n: int, height: int, width: int, chunk: int) -> None:
    images = torch.rand(2, 3, n * height * 2, n * width * 2)

    def look(pixels: Tensor) -> Tensor:
        assert len(pixels) <= max(chunk, 2)
        return F.avg_pool2d(pixels, 2) - pixels.mean(dim=(2, 3), keepdim=True)  # it sees which tile it is in

    expected = stitch(look_all(look, tile_images(images, n)), n)
    assert torch.allclose(tile_map(look, images, (height, width), n, overlap=0.0, chunk=max(chunk, 2)), expected)


def look_all(look, tiles: Tensor) -> Tensor:
    return torch.cat([look(tile[None]) for tile in tiles])


def test_blending_leaves_no_seam() -> None:
    """A teacher that sees each tile's own brightness jumps at borders; blended, no step is larger than the others'."""
    images = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)

    def look(pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3), keepdim=True).expand(-1, -1, 16, 16)

    steps = {
        overlap: tile_map(look, images, (16, 16), 4, overlap=overlap, chunk=4)[0, 0, 30].diff().abs().max()
        for overlap in (0.0, 0.5)
    }
    assert steps[0.5] < 0.2 * steps[0.0]


def test_grids_between_factors_are_resampled_once_and_antialiased(teacher) -> None:
    adapter = fitted(teacher, "s2", 3)
    images = torch.rand(1, 3, 96, 72)
    whole = sharpen(teacher, adapter, images, fit="squash").spatial
    found = sharpen(teacher, adapter, images, fit="squash", grid=(10, 7)).spatial
    expected = F.interpolate(whole, size=(10, 7), mode="bilinear", antialias=True)
    assert torch.allclose(found, expected, atol=1e-6)
    wide = torch.randn(2, 200, 6, 6)
    assert torch.allclose(resample(wide, (5, 4)), F.interpolate(wide, size=(5, 4), mode="bilinear", antialias=True))
    with pytest.raises(UserError, match="larger factor"):
        sharpen(teacher, adapter, images, fit="squash", grid=(13, 7))


def test_gradients_reach_the_images_and_the_adapter(teacher) -> None:
    adapter = fitted(teacher, "featsharp", 2, heads=2)
    images = torch.rand(1, 3, 90, 70, requires_grad=True)
    for how in ({"fit": "squash"}, {"fit": "windows"}, {"fit": "squash", "overlap": 0.4, "grid": (7, 5)}):
        sharpen(teacher, adapter, images, **how).spatial.square().sum().backward()
        for tensor in (images, *adapter.parameters()):
            assert tensor.grad.abs().max() > 0
            tensor.grad = None


@torch.no_grad()
@pytest.mark.parametrize(("upsampler", "share"), [("featsharp", 0.8), ("featsharp", 0.65), ("featup", 0.6)])
def test_a_memory_budget_is_kept_and_changes_nothing(teacher, upsampler: str, share: float) -> None:
    keeps_a_budget(PatchTeacher(teacher.spec, resizable=True), upsampler, share, (640, 320))  # 80 x 40 tokens


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("upsampler", ["featsharp", "featup"])
def test_a_memory_budget_is_kept_on_a_photograph_of_three_megapixels(teacher, upsampler: str) -> None:
    keeps_a_budget(PatchTeacher(teacher.spec, resizable=True), upsampler, 0.7, (1536, 2048))


def keeps_a_budget(backbone: Backbone, upsampler: str, share: float, size: tuple[int, int]) -> None:
    """The same map as without a limit, from at most `share` of what that takes."""
    adapter = fitted(backbone, upsampler, 4, **({"heads": 2, "hidden": 128} if upsampler == "featsharp" else {}))
    images = torch.rand(1, 3, *size)
    with PeakMemory() as free:
        expected = sharpen(backbone, adapter, images).spatial
    budget = int(share * free.peak)
    with PeakMemory() as bounded:
        found = sharpen(backbone, adapter, images, max_memory=budget).spatial
    assert torch.allclose(found, expected, atol=1e-4)
    assert bounded.peak <= budget


WHOLE = [(name, options) for name, options in CASES if options or name in ("lift", "dysample")]


@torch.no_grad()
@pytest.mark.parametrize(
    ("upsampler", "options"),
    [("featup", {}), ("featsharp", {"heads": 2}), ("s2", {}), ("featup_published", {}), *WHOLE],
)
def test_a_budget_that_is_too_small_says_what_would_do(teacher, upsampler: str, options: dict[str, Any]) -> None:
    """What the words ask for is enough (teacher and upsampler may each ask), and is kept."""
    backbone = PatchTeacher(teacher.spec, resizable=True)
    adapter, images, budget = fitted(backbone, upsampler, 2, **options), torch.rand(1, 3, 256, 320), 100_000
    for _ in range(3):
        try:
            with PeakMemory() as memory:
                found = sharpen(backbone, adapter, images, max_memory=budget).spatial
            break
        except UserError as error:
            told = re.fullmatch(r"max_memory of .* MiB is too little: ([\d.]+) MiB are needed, .*", str(error))
            budget = int(float(told[1]) * 2**20)
    assert budget > 100_000 and memory.peak <= 1.1 * budget
    assert torch.allclose(found, sharpen(backbone, adapter, images).spatial, atol=1e-4)


@pytest.mark.parametrize(("text", "expected"), [("100", 100), ("2K", 2048), ("1.5 MiB", 1572864), ("4g", 4 * 2**30)])
def test_amounts_of_memory(text: str, expected: int) -> None:
    assert parse_memory(text) == expected
    with pytest.raises(UserError, match="amount of memory"):
        parse_memory(text + "x")


def test_auto_asks_the_teacher_and_the_image(teacher) -> None:
    fixed, free = teacher.spec, replace(teacher.spec, resizable=True)
    assert choose_fit("auto", free, torch.zeros(1, 3, 9, 9)) == "resize"
    assert choose_fit("auto", fixed, torch.zeros(1, 3, 400, 300)) == "squash"
    assert choose_fit("auto", fixed, torch.zeros(1, 3, 300, 400)) == "windows"


def test_bad_input_is_answered_in_words(teacher) -> None:
    adapter = make_untrained("bilinear", teacher.spec, 2)
    with pytest.raises(UserError, match="smaller than one patch"):
        sharpen(teacher, adapter, torch.rand(1, 3, 7, 90))
    broken = torch.rand(1, 3, 64, 48)
    broken[0, 0, 3, 3] = float("nan")
    with pytest.raises(UserError, match="image holds values"):
        sharpen(teacher, adapter, broken)
    with pytest.raises(UserError, match="one size only"):
        sharpen(teacher, adapter, torch.rand(1, 3, 64, 48), fit="resize")
    for how, message in [({"fit": "crop"}, "fit is one of"), ({"overlap": 1.0}, "overlap"), ({"chunk": 0}, "chunk")]:
        with pytest.raises(UserError, match=message):
            SharpenSettings(**how)
    other = replace(teacher.spec, digest="sha256:0")
    with pytest.raises(UserError, match="other weights"):
        Sharpener(teacher, make_untrained("bilinear", other, 2), SharpenSettings())
    torch.nn.init.constant_(teacher.patches.weight, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        sharpen(teacher, adapter, torch.rand(1, 3, 64, 48))


@pytest.mark.slow
def test_a_budget_holds_for_the_whole_process() -> None:
    """1536x2048 px at factor 4: live tensors and resident memory well within 10 % of the budget, and the same map."""
    script = Path(__file__).parents[3] / "benchmarks" / "max_memory.py"

    def measured(budget: int) -> list[float]:
        command = [sys.executable, str(script), "--threads", "1", "--bytes", str(budget)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [float(word) for word in done.stdout.split()]

    free = measured(0)
    for share in (0.7, 0.5):
        budget = share * free[0]
        tensors, resident, _, *sums = measured(int(budget * 2**20))
        assert tensors < budget and resident < 1.05 * budget
        assert sums == pytest.approx(free[3:], rel=1e-4)


def test_images_that_are_none_are_refused(teacher) -> None:
    sharpener = Sharpener(teacher, make_untrained("bilinear", teacher.spec, 2), SharpenSettings())
    images = torch.rand(2, 3, 64, 48)
    for wrong, words in (
        (images * 255, "these go from"),
        ((images - 0.5) / 0.22, "these go from"),
        ((images * 255).to(torch.uint8), "uint8"),
        (images[:0], r"float32 \[0, 3, 64, 48\]"),
        (images[:, :1], r"float32 \[2, 1, 64, 48\]"),
        (images[0], r"float32 \[3, 64, 48\]"),
    ):
        with pytest.raises(UserError, match=words):
            sharpener(wrong)
