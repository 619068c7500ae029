"""An exported student: the same features as in training, adaptors in the teachers' own units, any size, a card."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_run import small_recipe
from torch import Tensor

from common.errors import UserError
from common.recipes import validate
from distill.recipe import Recipe
from distill.recipe_models import StudentNode
from distill.student.model import HeadSpec, Student
from distill.student.starting_weights import backbone_state
from distill.targets.targets import Targets
from distill.training.arms import UNTRAINED
from distill.training.engine_state import read_student
from teachers.contracts import Backbone, Features, capability
from teachers.frozen import FrozenBackbone
from teachers.registry import load_backbone


@pytest.fixture
def student(trained: Path) -> Backbone:
    return load_backbone(f"run:{trained}")


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_round_trip_equals_the_trained_student(trained: Path, student: Backbone, images: Tensor) -> None:
    """Against the last checkpoint's weights in a student built by hand, and PHI-S undone by hand."""
    from safetensors.torch import load_file

    node = StudentNode(model="vit_tiny_patch16_224", patch_size=8, embed_dim=24, depth=2, num_heads=2)
    net = Student(node, (32, 32), {"coarse": HeadSpec(24, 24), "fine": HeadSpec(None, 12)}).eval()
    checkpoint = trained / "checkpoints" / "step-00000006"
    net.load_state_dict(read_student(checkpoint))
    features = student(images)
    tokens, spatial = net.tokens(images)
    assert torch.equal(features.spatial, spatial) and torch.equal(features.summary, tokens[:, 0])
    targets = Targets(validate(Recipe, small_recipe(Path("unused")), "test"), torch.device("cpu"))
    targets.load_normalisers(load_file(checkpoint / "targets.safetensors"))
    for name, answer in net(images).items():
        raw = targets.teachers[name].normaliser.denormalise(answer.spatial)
        ours = student.adaptor(name).project(features)
        assert torch.allclose(ours.spatial, raw, atol=1e-4)
        assert (ours.summary is None) == (answer.summary is None)
    assert torch.equal(student.adaptor("coarse").project(features).summary, net(images)["coarse"].summary)


@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
def test_spec_and_shapes(student: Backbone, size: tuple[int, int]) -> None:
    spec = student.spec
    assert (spec.library, spec.patch_size, spec.native_size, spec.resizable) == ("run", 8, (32, 32), True)
    features = student(torch.rand(2, 3, *size))
    assert features.spatial.shape == (2, spec.spatial_dim, size[0] // 8, size[1] // 8)
    assert features.summary.shape == (2, spec.summary_dim)
    with pytest.raises(UserError, match="multiples of 8"):
        student(torch.rand(2, 3, 30, 32))


@torch.no_grad()
def test_intermediate_maps_come_in_the_order_asked(student: Backbone, images: Tensor) -> None:
    assert student.num_blocks == 2
    last, first, again = student.intermediate(images, [1, 0, 0])
    assert torch.allclose(last, student(images).spatial, atol=1e-6)
    assert torch.equal(first, again) and not torch.equal(first, last)


def test_unknown_adaptors_and_folders(student: Backbone, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'unknown adaptor "coarsse".*did you mean "coarse"'):
        student.adaptor("coarsse")
    assert capability(student.adaptor("coarse"), "encode_text") is None  # the timm teacher reads no text
    with pytest.raises(UserError, match="no exported student"):
        load_backbone(f"run:{tmp_path}")


def test_damaged_weights_are_named(trained: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((trained / "student" / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["student"]["depth"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"does not fit its config.json"):
        load_backbone(f"run:{tmp_path}")


def test_the_untrained_student_is_another_one_of_the_same_kind(
    trained: Path, student: Backbone, images: Tensor
) -> None:
    untrained = load_backbone(f"run:{trained / UNTRAINED}")
    assert untrained.spec.digest != student.spec.digest
    assert untrained.spec.summary_dim == student.spec.summary_dim
    features: Features = untrained.adaptor("fine").project(untrained(images))
    assert features.spatial.shape == (3, 12, 4, 4)


def test_the_card_names_teachers_and_licences(trained: Path) -> None:
    card = (trained / "student" / "README.md").read_text()
    assert "| coarse | timm:vit_tiny_patch16_224 | tile 2x |" in card and "licence" in card


def test_in_bf16_its_adaptors_answer_in_float32(trained: Path, student: Backbone, images: Tensor) -> None:
    half = FrozenBackbone(load_backbone(f"run:{trained}"), "bfloat16")
    exact = student.adaptor("fine").project(student(images)).spatial
    found = half.adaptor("fine").project(half(images)).spatial
    assert found.dtype == torch.float32
    assert 0 < float((found - exact).norm() / exact.norm()) < 0.03


def test_a_flipped_bit_in_the_weights_is_refused(trained: Path, tmp_path: Path) -> None:
    """By whoever reads the folder: as a backbone, or to begin another student with."""
    folder = tmp_path / "student"
    shutil.copytree(trained / "student", folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    for read in (load_backbone, lambda node: backbone_state(node.removeprefix("run:"), "vit_tiny_patch16_224")):
        with pytest.raises(UserError, match=r"is damaged: model\.safetensors is not as it was written"):
            read(f"run:{folder}")
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("checksum") is not None
    (folder / "config.json").write_text(json.dumps(config))
    load_backbone(f"run:{folder}")  # changed on purpose
