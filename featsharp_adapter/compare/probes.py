"""What probes say of features sharpened by freshly trained adapters: the teacher sees the images of the probes once."""

import hashlib
from collections.abc import Callable

from torch import Tensor

from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.sharpening.backbone import SharpenedBackbone
from teachers.contracts import Backbone, Features

#: Results of an evaluation suite on a backbone, by name; larger or smaller is better as the metric has it.
Probes = Callable[[Backbone], dict[str, float]]


class RememberingBackbone(Backbone):
    """A frozen backbone that answers a batch it has seen before from memory.

    Upsamplers that are compared ask the same images of the same teacher, batch by batch; a batch is known by the
    SHA-256 of its pixels, so that only the very same one is taken for it. Everything stays in memory: a token map
    of 784 x 256 numbers is 0.8 MB an image.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.spec = backbone, backbone.spec
        self._known: dict[str, Features] = {}

    def forward(self, images: Tensor) -> Features:
        """[B, 3, H, W] in [0, 1] -> Features, on the device of the images."""
        pixels = images.detach().cpu().contiguous()
        key = f"{tuple(pixels.shape)} {hashlib.sha256(pixels.numpy().data).hexdigest()}"
        if key not in self._known:
            self._known[key] = self.backbone(images)
        return self._known[key]


def probe_adapter(
    probes: Probes, teacher: Backbone, adapter: Adapter, name: str, *, passes: float | None = None
) -> dict[str, float]:
    """The probes' results on the teacher sharpened by the adapter, on a budget of passes if there is one."""
    return probes(SharpenedBackbone(teacher, adapter, name, passes=passes))
