"""Every family of every library, every summary and map it offers, at every kind of size: exactly the library's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import CASES, Case, Size, normalised, randomised, sam3_reference, sam3_vision
from torch import nn

from common.errors import UserError
from teachers.contracts import Backbone
from teachers.registry import load_backbone
from teachers.transformers_families import FAMILIES, PARTS

SETTINGS = [  # every summary and every map of every family at least once; the shorter list begins again
    pytest.param(name, case.summaries[row % len(case.summaries)], case.spatials[row % len(case.spatials)])
    for name, case in CASES.items()
    for row in range(max(len(case.summaries), len(case.spatials)))
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Family -> its model and the spec that loads it, made once."""
    made: dict[str, tuple[nn.Module, str]] = {}

    def of(name: str) -> tuple[nn.Module, str]:
        if name not in made:
            model = randomised(CASES[name].make())
            made[name] = model, CASES[name].save(model, tmp_path_factory.mktemp(name))
        return made[name]

    return of


@torch.no_grad()
@pytest.mark.parametrize(("name", "summary", "spatial"), SETTINGS)
def test_the_librarys_own_features(name: str, summary: str, spatial: str, saved: Any) -> None:
    case: Case = CASES[name]
    model, spec = saved(name)
    node = {"spec": spec, "summary": summary, "spatial": spatial, **case.options}
    backbone = load_backbone(node)
    assert backbone.spec.native_size == case.native and backbone.spec.other_sizes
    assert attention(backbone.tower) <= {"sdpa", True}
    for size in (case.native, *case.others):
        check(backbone, case, model, summary, spatial, size)
    for size in case.named:
        with pytest.raises(UserError, match=f"px only .*got {size[0]}x{size[1]}"):
            backbone(torch.rand(1, 3, *size))
        check(load_backbone({**node, "image_size": list(size)}), case, model, summary, spatial, size)


def attention(tower: nn.Module) -> set[object]:
    """How its attention is computed: transformers says it in its configurations, timm in its modules."""
    said: set[object] = {module.config._attn_implementation for module in tower.modules() if hasattr(module, "config")}
    return said | {module.fused_attn for module in tower.modules() if hasattr(module, "fused_attn")}


def check(backbone: Backbone, case: Case, model: nn.Module, summary: str, spatial: str, size: Size) -> None:
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    expected_summary, expected = case.reference(model, normalised(images), summary, spatial)
    found = backbone(images)
    assert torch.equal(found.spatial, expected)
    assert found.spatial.shape[1] == backbone.spec.spatial_dim
    if expected_summary is None:
        assert found.summary is None and backbone.spec.summary_dim is None
    else:
        assert torch.equal(found.summary, expected_summary)
        assert found.summary.shape[1] == backbone.spec.summary_dim


def test_every_family_of_the_table_is_in_the_test() -> None:
    kinds = {type(case.make()).config_class.model_type for name, case in CASES.items() if name.startswith("hf-")}
    towers = {"siglip_vision_model", "siglip2_vision_model", "clip_vision_model", "sam_vision_model"}
    # The same code as their neighbours: a tower saved alone, a video model around the encoder, other LLaVAs.
    alike = towers | {"sam2_video", "sam3", "sam3_video", "llava_next", "llava_onevision"}
    assert {*FAMILIES, *PARTS} - kinds <= alike


@torch.no_grad()
def test_sam3_at_another_size_is_built_for_it(saved: Any) -> None:
    model, spec = saved("hf-sam3")
    larger = type(model)(sam3_vision(96)).eval()
    larger.load_state_dict(model.state_dict())
    backbone = load_backbone({"spec": spec, "image_size": 96})
    images = torch.rand(1, 3, 96, 96)
    _, expected = sam3_reference(larger, normalised(images), "none", "final")
    assert torch.equal(backbone(images).spatial, expected)
    with pytest.raises(UserError, match="square images"):
        load_backbone({"spec": spec, "image_size": [96, 64]})


def test_sam2_refuses_a_size_its_windows_do_not_fit(saved: Any) -> None:
    with pytest.raises(UserError, match=r"cannot run at 80x64 px: .* in steps of 32 px"):
        load_backbone({"spec": saved("hf-sam2")[1], "image_size": [80, 64]})


def test_a_part_that_is_not_there(saved: Any, tmp_path: Path) -> None:
    model, spec = saved("hf-llava-two-layers")
    folder = Path(spec.partition(":")[2])
    (folder / "model-00001-of-00003.safetensors").rename(tmp_path / "kept")
    with pytest.raises(UserError, match=r"lacks model-00001-of-00003\.safetensors"):
        load_backbone(spec)
    (tmp_path / "kept").rename(folder / "model-00001-of-00003.safetensors")
    CASES["hf-llava"].save(model.model.language_model, tmp_path / "language")
    config = (folder / "config.json").read_text()
    (tmp_path / "language" / "config.json").write_text(config)
    with pytest.raises(UserError, match="holds no weights under vision_tower"):
        load_backbone(f"transformers:{tmp_path}/language")
