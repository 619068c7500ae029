"""A teacher's place without the teacher: its widths, patch and sizes around a network that costs nothing."""

from collections.abc import Sequence

from torch import Tensor, nn

from teachers.contracts import Backbone, BackboneSpec, Features, check_size, state_digest

WIDTH = 8


class StandIn(Backbone):
    """Features of the right shapes from one convolution of random weights."""

    def __init__(
        self,
        name: str,
        patch_size: int,
        spatial_dim: int,
        native_size: Sequence[int],
        resizable: bool,
        summary_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, patch_size, patch_size)
        self.widen = nn.Conv2d(WIDTH, spatial_dim, 1)
        self.pool = nn.Linear(WIDTH, summary_dim) if summary_dim else None
        self.spec = BackboneSpec(
            name=f"stand-in of {name}",
            library="none",
            patch_size=patch_size,
            spatial_dim=spatial_dim,
            summary_dim=summary_dim,
            native_size=(native_size[0], native_size[1]),
            resizable=resizable,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            licence="none",
            source="random initialisation",
            digest=state_digest(self),
        )
        self.eval()

    def forward(self, images: Tensor) -> Features:
        """[B, 3, H, W] in [0, 1] -> Features."""
        check_size(self.spec, images)
        patches = self.patches(images)[..., : images.shape[-2] // self.spec.patch_size, :]
        summary = None if self.pool is None else self.pool(patches.mean(dim=(2, 3)))
        return Features(summary, self.widen(patches))


def stand_in_node(spec: BackboneSpec) -> dict[str, object]:
    """The backbone node of a stand-in for a teacher of this spec."""
    return {
        "spec": f"class:{StandIn.__module__}.{StandIn.__name__}",
        "name": spec.name,
        "patch_size": spec.patch_size,
        "spatial_dim": spec.spatial_dim,
        "summary_dim": spec.summary_dim,
        "native_size": list(spec.native_size),
        "resizable": spec.resizable,
    }
