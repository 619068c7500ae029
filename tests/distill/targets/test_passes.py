"""`passes`: a distillation's teacher encodes the tiles that its budget allows, over the batch, and no more."""

from pathlib import Path

import pytest
import torch

from common.errors import UserError
from distill.recipe_models import TeacherNode
from distill.schedule import views
from distill.targets.targets import TeacherTarget
from distill.targets.teacher_views import batch_views
from featsharp_adapter.adapter.adapter import make_untrained
from teachers.frozen import FrozenBackbone
from teachers.registry import load_backbone


def target_of(folder: Path, passes: float | None, upsampler: str = "ridge") -> TeacherTarget:
    teacher = load_backbone("tiny:clip")
    adapter = make_untrained(upsampler, teacher.spec, 2, teacher_node="tiny:clip")
    torch.nn.init.normal_(adapter.upsampler.linear.weight, std=0.01)
    adapter.save_pretrained(folder)
    node = TeacherNode(
        backbone="tiny:clip", upsampler=upsampler, factor=2, adapters={upsampler: str(folder)}, passes=passes
    )
    return TeacherTarget("clip", node, FrozenBackbone(teacher, None, 64), [node])


@torch.no_grad()
def test_the_budget_counts_over_the_batch(tmp_path: Path) -> None:
    images, encoded = torch.rand(2, 3, 224, 224), []
    target = target_of(tmp_path / "a", 0.5)
    target.backbone.register_forward_hook(lambda module, given, found: encoded.append(len(given[0])))
    seen = target.views(batch_views(images, "", None), target.node, 16)
    assert sum(encoded) == 5 and int(seen.chosen.sum()) == 3  # 2.5 passes each: two small views and three tiles
    found = target.from_views(seen, images, target.node).spatial
    whole = target_of(tmp_path / "b", None)
    whole.load_state_dict(target.state_dict())
    everything = whole.views(batch_views(images, "", None), whole.node, 16)
    full = whole.from_views(everything, images, whole.node).spatial
    cells = seen.chosen[:, None].repeat_interleave(7, dim=2).repeat_interleave(7, dim=3).expand_as(found)
    assert torch.allclose(found[cells], full[cells], atol=1e-4) and not torch.allclose(found, full, atol=1e-3)


def test_the_plan_counts_what_is_left() -> None:
    spec = load_backbone("tiny:clip").spec
    node = TeacherNode(backbone="tiny:clip", upsampler="ridge", factor=2, passes=0.5)
    assert [(view.what, view.per_image) for view in views(node, spec, (224, 224), 16, (2,))] == [
        ("small", 1),
        ("of 4 tiles", 1.5),
    ]


def test_a_budget_without_tiles_is_refused() -> None:
    with pytest.raises(ValueError, match="passes is a budget of tiles"):
        TeacherNode(backbone="tiny:clip", passes=0.5)
    teacher = load_backbone("tiny:clip")
    node = TeacherNode(backbone="tiny:clip", upsampler="tile", factor=2, passes=0.5)
    with pytest.raises(UserError, match="passes: tile needs all of its tiles"):
        TeacherTarget("clip", node, FrozenBackbone(teacher, None, 64), [node])
