"""The ceiling of a comparison: the teacher itself, shown the whole image at k times its size, against its views.

No upsampler makes more of an image than its teacher does. Where even this map does not explain what the teacher says of
other views (a convolutional network's map at stride 32 changes with the scale of objects), there is nothing to win.
"""

import torch
from torch import Tensor

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.description import AdapterMeta
from featsharp_adapter.compare.variants import TRUE_RESOLUTION
from featsharp_adapter.model.downsampler import AverageDownsampler
from featsharp_adapter.model.normalisers import fit_normaliser
from featsharp_adapter.model.views import Views
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.training.evaluation import Fidelity
from featsharp_adapter.training.teacher_data import TeacherData
from featsharp_adapter.training.train_one import evaluate
from teachers.contracts import Backbone

NAME = TRUE_RESOLUTION


class TrueResolution(Adapter):
    """Encodes the image, at k times the native size, instead of sharpening anything."""

    backbone: Backbone

    def forward_normalised(self, views: Views, guidance: Tensor) -> Tensor:
        """guidance: [B, 3, k*R, k*R']."""
        return self.denoise_normalised(self.backbone(guidance).spatial)


@torch.no_grad()
def evaluate_true_resolution(recipe: AdapterRecipe, data: TeacherData) -> tuple[Adapter, dict[str, Fidelity]]:
    """On the held-out images; UserError for a teacher that takes one size only."""
    if not data.spec.resizable:
        raise UserError(f"{NAME}: {data.spec.name} takes one size only, so there is no map of it at {recipe.factor}x")
    meta = AdapterMeta(data.spec, recipe.teacher, "bilinear", recipe.factor, normaliser=recipe.normaliser)
    normaliser = fit_normaliser(recipe.normaliser, data.statistics)
    plain = Adapter.build(meta, normaliser)
    made = TrueResolution(plain.normaliser, plain.bias, plain.upsampler, meta)
    object.__setattr__(made, "backbone", data.backbone)  # not a part of it: it stays frozen and where it is
    return evaluate(made.to(data.device), AverageDownsampler(recipe.factor), data)
