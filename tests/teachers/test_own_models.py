"""A user's own models: a class by dotted path, a torch.hub checkout; and weights that a recipe pins."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from common.errors import UserError
from teachers.contracts import Backbone, BackboneSpec, Features, state_digest
from teachers.frozen import FrozenBackbone
from teachers.registry import load_backbone


class Radar(Backbone):
    """A user's encoder, found as class:test_own_models.Radar."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.spec = BackboneSpec(
            name="radar",
            library="class",
            patch_size=8,
            spatial_dim=width,
            summary_dim=None,
            native_size=(32, 32),
            resizable=True,
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
            licence="MIT",
            source="here",
            digest=state_digest(self.patch),
        )

    def forward(self, images: Tensor) -> Features:
        return Features(None, self.patch(images))


class Speechless(Radar):
    """One whose author forgot the spec."""

    def __init__(self) -> None:
        super().__init__()
        del self.spec


class Blind(Backbone):
    """One whose author forgot `forward`."""


class Liar(Radar):
    """One whose maps are wider than it says."""

    def forward(self, images: Tensor) -> Features:
        return Features(None, super().forward(images).spatial.repeat(1, 2, 1, 1))


def test_what_it_promised_is_held_to_what_it_gives() -> None:
    with pytest.raises(UserError, match="radar says spatial_dim=4 and gives 8"):
        FrozenBackbone(load_backbone("class:test_own_models.Liar"))(torch.rand(1, 3, 16, 24))


def test_a_class_by_dotted_path_with_its_own_options() -> None:
    backbone = load_backbone({"spec": "class:test_own_models.Radar", "width": 6})
    assert isinstance(backbone, Radar) and not backbone.training
    assert backbone(torch.rand(1, 3, 16, 24)).spatial.shape == (1, 6, 2, 3)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"spec": "class:test_own_models.Radr"}, r'has no "Radr" \(did you mean "Radar"\?\)'),
        ({"spec": "class:no_such_lab.Radar"}, "No module named 'no_such_lab'; is the folder it is in on PYTHONPATH"),
        ({"spec": "class:test_own_models.Blind"}, "lacks forward"),
        ({"spec": "class:Radar"}, "PACKAGE.MODULE.NAME"),
        ({"spec": "class:test_own_models.Radar", "widht": 6}, 'did you mean "width"'),
        ({"spec": "class:torch.nn.Identity"}, "gives a Identity; a teacher is a"),
        ({"spec": "class:test_own_models.Speechless"}, "has no `spec`"),
    ],
)
def test_what_can_be_wrong_with_a_class(node: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone(node)


def test_a_pinned_digest_is_checked() -> None:
    digest = load_backbone("class:test_own_models.Radar").spec.digest
    assert load_backbone({"spec": "class:test_own_models.Radar", "digest": digest}).spec.digest == digest
    other = "sha256:" + 64 * "0"
    with pytest.raises(UserError, match=f"has other weights .{digest}. than the recipe's .{other}"):
        load_backbone({"spec": "class:test_own_models.Radar", "digest": other})


# A checkout whose model has the methods of DINOv2's and DINOv3's, and one that returns a pair, as RADIO's does.
HUBCONF = """
dependencies = ["torch"]
import torch
from torch import nn


class Dino(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.n_blocks = 2
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.cls = nn.Parameter(torch.randn(1, 3, width))
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.norm = nn.LayerNorm(width)

    def states(self, x):
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), self.patch(x).flatten(2).transpose(1, 2)], dim=1)
        out = []
        for block in self.blocks:
            tokens = tokens + block(tokens).tanh()
            out.append(tokens)
        return out

    def forward_features(self, x):
        raw = self.states(x)[-1]
        normed = self.norm(raw)
        return {"x_norm_clstoken": normed[:, 0], "x_norm_patchtokens": normed[:, 3:], "x_prenorm": raw}

    def get_intermediate_layers(self, x, n, reshape, norm):
        assert reshape and not norm
        height, width = x.shape[-2] // 8, x.shape[-1] // 8
        maps = [state[:, 3:].transpose(1, 2).reshape(len(x), -1, height, width) for state in self.states(x)]
        return tuple(maps[i] for i in n)


class Pair(Dino):
    def forward(self, x):
        found = self.forward_features(x)
        return found["x_norm_clstoken"], found["x_norm_patchtokens"]


def dino_tiny(pretrained=True, width=16):
    assert not pretrained, "this would fetch"
    return Dino(width)


def radio_tiny(width=16):
    return Pair(width)
"""
FACTS = {"image_size": 32, "patch_size": 8, "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    return tmp_path


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:running the code")
def test_a_checkout_of_dinos_kind_with_weights_from_a_file(checkout: Path) -> None:
    model = torch.hub.load(str(checkout), "dino_tiny", source="local", pretrained=False, width=24).eval()
    save_file(model.state_dict(), checkout / "w.safetensors")
    torch.save({"model": model.state_dict()}, checkout / "w.pth")
    node = {"spec": f"torch_hub:{checkout}:dino_tiny", "output": "dino", "trust_remote_code": True, **FACTS}
    node |= {"model_args": {"pretrained": False, "width": 24}, "weights": str(checkout / "w.safetensors")}
    backbone = load_backbone(node)
    images = torch.rand(2, 3, 32, 40)
    expected = model.forward_features((images - 0.5) / 0.25)
    features = backbone(images)
    assert torch.equal(features.summary, expected["x_norm_clstoken"])
    assert torch.equal(features.spatial.flatten(2), expected["x_norm_patchtokens"].transpose(1, 2))
    raw = load_backbone({**node, "spatial": "last_block", "weights": str(checkout / "w.pth")})
    assert torch.equal(raw(images).spatial.flatten(2), expected["x_prenorm"][:, 3:].transpose(1, 2))
    assert torch.equal(raw.intermediate(images, [1, 0])[0], raw(images).spatial)
    assert raw.spec.digest == backbone.spec.digest == state_digest(model)
    with pytest.raises(UserError, match="does not fit the model: other shapes"):
        load_backbone({**node, "model_args": {"pretrained": False}})


@torch.no_grad()
def test_a_checkout_that_returns_a_pair_says_loudly_that_it_runs_code(checkout: Path) -> None:
    node = {"spec": f"torch_hub:{checkout}:radio_tiny", "output": "pair", **FACTS}
    with pytest.raises(UserError, match="trust_remote_code: true"):
        load_backbone(node)
    with pytest.warns(UserWarning, match="running the code of"):
        backbone = load_backbone({**node, "trust_remote_code": True})
    images = torch.rand(1, 3, 32, 32)
    summary, tokens = backbone.tower.model((images - 0.5) / 0.25)
    assert torch.equal(backbone(images).summary, summary)
    assert torch.equal(backbone(images).spatial.flatten(2), tokens.transpose(1, 2))


@pytest.mark.filterwarnings("ignore:running the code")
@pytest.mark.parametrize(
    ("entry", "options", "message"),
    [
        ("dino_tinny", {}, 'has no entry "dino_tinny"'),
        ("radio_tiny", {"output": "triple"}, "known: dino, pair"),
        ("radio_tiny", {"spatial": "last_block", "output": "pair"}, "known: final"),
        ("radio_tiny", {"weights": "/no/such.pth"}, "no such file"),
    ],
)
def test_what_can_be_wrong_with_a_checkout(
    entry: str, options: dict[str, object], message: str, checkout: Path
) -> None:
    node = {"spec": f"torch_hub:{checkout}:{entry}", "output": "dino", "trust_remote_code": True, **FACTS, **options}
    with pytest.raises(UserError, match=message):
        load_backbone(node)


def test_a_folder_without_hubconf() -> None:
    with pytest.raises(UserError, match=r"no FOLDER:ENTRY with a hubconf\.py"):
        load_backbone({"spec": "torch_hub:/nowhere:entry", "output": "dino", **FACTS})
