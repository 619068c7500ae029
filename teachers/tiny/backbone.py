"""Entry point `tiny`: the shipped small teachers as backbones."""

from pathlib import Path

from teachers.contracts import Backbone, BackboneSpec
from teachers.tiny.card import SHIPPED, load_teacher
from teachers.tiny.model import MEAN, STD, TinyBackbone, TinyTextBackbone


def load(name: str, weights: str | None = None) -> Backbone:
    """`tiny:clip`, `tiny:dino` or `tiny:sam`; `weights` is a folder that tools.tiny_teachers.train wrote."""
    folder = SHIPPED if weights is None else Path(weights)
    network, card = load_teacher(folder, name)
    architecture = network.architecture
    spec = BackboneSpec(
        name=f"tiny:{name}",
        library="tiny",
        patch_size=architecture.patch,
        spatial_dim=architecture.dim,
        summary_dim=None if architecture.summary is None else network.summary_dim,
        native_size=(architecture.image_size, architecture.image_size),
        resizable=False,
        mean=MEAN,
        std=STD,
        licence=card["licence"],
        source="shipped with the package" if weights is None else str(folder),
        digest=card["digest"],
        other_sizes="one size only",
    )
    return (TinyBackbone if network.text is None else TinyTextBackbone)(network, spec).eval()
