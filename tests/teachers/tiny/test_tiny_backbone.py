"""The shipped teachers: that they load, are what their cards say, and have features rich enough to judge by."""

import json

import pytest
import torch

from common.errors import UserError
from imagery.scenes import render_scene
from teachers.contracts import capability, fit_images, state_digest
from teachers.registry import load_backbone
from teachers.tiny.card import SHIPPED
from tools.tiny_teachers.scores import rankme

NAMES = ("clip", "dino", "sam")


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """[12, 3, 224, 224] of scenes no teacher was trained on."""
    scenes = [render_scene(424242, index, 224, 224, labels=False).rgb for index in range(12)]
    return torch.stack([torch.from_numpy(rgb).permute(2, 0, 1).float() / 255 for rgb in scenes])


def card_of(name: str) -> dict:
    return json.loads((SHIPPED / f"{name}.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_are_what_the_card_describes(name: str) -> None:
    backbone, card = load_backbone(f"tiny:{name}"), card_of(name)
    assert state_digest(backbone.network) == card["digest"] == backbone.spec.digest
    assert sum(p.numel() for p in backbone.network.parameters()) == card["parameters"]
    assert backbone.spec.licence == "Apache-2.0" and not backbone.training
    assert (SHIPPED / f"{name}.safetensors").stat().st_size < 6e6


@pytest.mark.parametrize("name", NAMES)
def test_shapes_keep_what_the_spec_promises(name: str, pictures: torch.Tensor) -> None:
    backbone = load_backbone(f"tiny:{name}")
    images = fit_images(pictures[:2], backbone.spec)
    with torch.no_grad():
        features = backbone(images)
        again = backbone(images)
    assert features.spatial.shape == (2, backbone.spec.spatial_dim, *backbone.spec.native_grid)
    assert torch.equal(features.spatial, again.spatial)
    if name == "sam":
        assert features.summary is None and backbone.spec.summary_dim is None
    else:
        assert features.summary is not None and features.summary.shape == (2, backbone.spec.summary_dim)
    assert backbone.spec.native_grid == ((14, 14) if name == "sam" else (7, 7))


@pytest.mark.parametrize("name", NAMES)
def test_intermediate_maps_come_in_the_order_asked_and_end_in_the_output(name: str, pictures: torch.Tensor) -> None:
    backbone = load_backbone(f"tiny:{name}")
    images, last = fit_images(pictures[:2], backbone.spec), backbone.num_blocks - 1
    with torch.no_grad():
        late, early = backbone.intermediate(images, [last, 0])
        torch.testing.assert_close(late, backbone(images).spatial)
    assert early.shape == late.shape and not torch.allclose(early, late)
    with pytest.raises(UserError, match="blocks 0 to"):
        backbone.intermediate(images, [last + 1])


@pytest.mark.parametrize("name", NAMES)
def test_features_fill_their_space(name: str, pictures: torch.Tensor) -> None:
    backbone = load_backbone(f"tiny:{name}")
    with torch.no_grad():
        spatial = backbone(fit_images(pictures, backbone.spec)).spatial
    assert rankme(spatial.flatten(2).transpose(1, 2).flatten(0, 1)) > 30
    assert card_of(name)["scores"]["rankme"] > 36  # what the prototype's best teacher reached


def test_text_finds_its_scene_better_than_chance() -> None:
    backbone = load_backbone("tiny:clip")
    scenes = [render_scene(424243, index, 112, 112) for index in range(24)]
    images = torch.stack([torch.from_numpy(scene.rgb).permute(2, 0, 1).float() / 255 for scene in scenes])
    with torch.no_grad():
        pictures = torch.nn.functional.normalize(backbone(images).summary, dim=1)
        texts = torch.nn.functional.normalize(backbone.encode_text([scene.captions[0] for scene in scenes]), dim=1)
    hits = (pictures @ texts.T).argmax(1) == torch.arange(24)
    assert hits.float().mean() > 6 / 24  # chance is 1 / 24


def test_only_clip_reads_text_and_it_reads_any_string() -> None:
    assert capability(load_backbone("tiny:dino"), "encode_text") is None
    clip = load_backbone("tiny:clip")
    odd = ["", "zeppelin über 東京 🙂", "a red ball " * 100, "A"]
    with torch.no_grad():
        texts = clip.encode_text(odd)
    assert texts.shape == (4, clip.spec.summary_dim) and bool(texts.isfinite().all())


def test_a_text_reads_the_same_alone_and_beside_a_longer_one() -> None:
    clip = load_backbone("tiny:clip")
    with torch.no_grad():
        alone, beside = (
            clip.encode_text(["a red ball"]),
            clip.encode_text(["a red ball", "a blue box on the left " * 4]),
        )
    torch.testing.assert_close(alone[0], beside[0], atol=1e-5, rtol=1e-4)


def test_a_wrong_size_name_folder_or_weight_is_told(tmp_path) -> None:
    with pytest.raises(UserError, match="112x112"):
        load_backbone("tiny:clip")(torch.zeros(1, 3, 224, 224))
    with pytest.raises(UserError, match=r'did you mean "dino"'):
        load_backbone("tiny:dinno")
    with pytest.raises(UserError, match="no such weights folder"):
        load_backbone({"spec": "tiny:dino", "weights": str(tmp_path / "nowhere")})
    (tmp_path / "dino.safetensors").write_bytes((SHIPPED / "clip.safetensors").read_bytes())
    with pytest.raises(UserError, match="card"):
        load_backbone({"spec": "tiny:dino", "weights": str(tmp_path)})
    (tmp_path / "dino.json").write_text(json.dumps(card_of("clip") | {"digest": "sha256:0"}))
    with pytest.raises(UserError, match="digest"):
        load_backbone({"spec": "tiny:dino", "weights": str(tmp_path)})
