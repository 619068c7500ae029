"""An adapter whose matrix products are in bfloat16 against the same one in float32, on the shipped adapters."""

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.sharpening.backbone import load
from imagery.sources import open_source
from imagery.stream import to_float

#: |bf16 - fp32| / |fp32 - its mean over the map|, in the norm over a whole sharpened map: what docs/adapters.md states.
PARITY = {"featsharp": 0.01, "featup": 0.01, "ridge": 0.01}
NAMES = [
    "tiny-clip-featsharp-2x",
    "tiny-clip-featup-2x",
    "tiny-dino-featsharp-2x",
    "tiny-clip-ridge-2x",
    "tiny-dino-ridge-2x",
]


def scenes(size: int) -> Tensor:
    source = open_source(f"scenes:seed=11,count=2,size={size}")
    return to_float(torch.stack([torch.from_numpy(source.load(number)).permute(2, 0, 1) for number in range(2)]))


@pytest.mark.parametrize("name", NAMES)
def test_bf16_is_fp32_within_the_stated_share(name: str) -> None:
    exact, fast = load(f"builtin:{name}"), load(f"builtin:{name}", adapter_dtype="bfloat16")
    images = scenes(exact.spec.native_size[0])
    with torch.no_grad():
        ours, theirs = exact(images).spatial, fast(images).spatial
    assert theirs.dtype == torch.float32 and exact.spec.digest != fast.spec.digest
    apart = float((theirs - ours).norm() / (ours - ours.mean((0, 2, 3), keepdim=True)).norm())
    print(name, apart)
    assert 0 < apart < PARITY[name.split("-")[2]]


def test_what_is_no_matrix_product_of_the_upsampler_stays_exact() -> None:
    adapter = Adapter.from_pretrained("builtin:tiny-clip-featsharp-2x")
    spec = adapter.meta.teacher
    low = torch.randn(1, spec.spatial_dim, *spec.native_grid)
    exact = adapter.denoise(low)
    adapter.dtype = torch.bfloat16
    assert torch.equal(adapter.denoise(low), exact)


def test_other_types_are_refused() -> None:
    with pytest.raises(UserError, match="adapter_dtype is float32 or bfloat16"):
        load("builtin:tiny-clip-featsharp-2x", adapter_dtype="float16")
