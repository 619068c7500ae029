"""Does a backbone of yours keep the contract? Call `check_backbone` from your own tests; it raises with what is wrong.

from teachers.conformance import check_backbone
check_backbone(MyEncoder(weights))
"""

import torch
from torch import Tensor

from teachers.contracts import Backbone, BackboneSpec, Features

TOLERANCE = 1e-4  #: of the largest value; batched matrix products differ in their last bits


@torch.no_grad()
def check_backbone(backbone: Backbone, batch: int = 3) -> None:
    """AssertionError unless the backbone gives what its spec says: widths, grid, finite float32 numbers, the same for
    an image whatever stands beside it, and the same again when it is asked again.
    """
    spec = getattr(backbone, "spec", None)
    assert isinstance(spec, BackboneSpec), "set self.spec = teachers.contracts.BackboneSpec(...)"
    assert not backbone.training, "hand it over in eval mode: backbone.eval()"
    device = next((parameter.device for parameter in backbone.parameters()), torch.device("cpu"))
    images = torch.rand(batch, 3, *spec.native_size, generator=torch.Generator().manual_seed(0)).to(device)
    features = backbone(images)
    _check_shapes(features, spec, images)
    again, alone = backbone(images), backbone(images[1:2])
    for name, together, repeated, single in zip(("summary", "spatial"), features, again, alone, strict=True):
        if together is not None:
            assert torch.equal(together, repeated), f"{name} differs when the same images are shown again"
            assert _close(together[1:2], single), f"{name} of an image depends on the images beside it"
    assert not _close(features.spatial[:1], features.spatial[1:2]), "two different images have the same map"


def _check_shapes(features: object, spec: BackboneSpec, images: Tensor) -> None:
    assert isinstance(features, Features), f"forward gives a {type(features).__name__}, not Features(summary, spatial)"
    grid = spec.native_grid
    wanted = (len(images), spec.spatial_dim, *grid)
    assert tuple(features.spatial.shape) == wanted, (
        f"spatial is {tuple(features.spatial.shape)}, the spec says {wanted}"
    )
    if spec.summary_dim is None:
        assert features.summary is None, "the spec has no summary_dim, but there is a summary"
    else:
        assert features.summary is not None, "the spec has a summary_dim, but summary is None"
        shape, said = tuple(features.summary.shape), (len(images), spec.summary_dim)
        assert shape == said, f"summary is {shape}, the spec says {said}"
    for name, values in zip(("summary", "spatial"), features, strict=True):
        if values is not None:
            assert values.dtype == torch.float32, f"{name} is {values.dtype}, not float32"
            assert bool(torch.isfinite(values).all()), f"{name} holds values that are not finite"


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= TOLERANCE * one.abs().max())
