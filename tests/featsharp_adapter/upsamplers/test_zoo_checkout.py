"""AnyUp and NAF from a user's checkout: run only when asked, in words when not possible, saved and loaded again.

The checkouts here are written by the tests. They are small, but real: a hubconf.py, a package beside it, weights of
their own, and a joint filter that upsamples any features by the colours of the image.
"""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from small_recipes import image_folder, small_recipe, small_teacher_data
from small_teacher import SmallTeacher
from small_timm import timm_folder

from common.errors import UserError, guard
from featsharp_adapter import train
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.adapter.description import AdapterMeta
from featsharp_adapter.training.train_one import train_one
from featsharp_adapter.upsamplers.checkout import CONSENT, MEAN, STD
from featsharp_adapter.upsamplers.table import build_upsampler
from teachers.contracts import state_digest

HUBCONF = """
from pathlib import Path
from {package}.model import ColourFilter
dependencies = {dependencies}
(Path(__file__).parent / "ran").touch()

def {entry}(pretrained=True, device="cpu"):
    model = ColourFilter().to(device)
    if pretrained:
        model.sharpness.data.fill_(5.0)
    return model

def broken(pretrained=True):
    raise ConnectionError("no way to the weights\\nsecond line")

def number(pretrained=True):
    return 7
"""
MODEL = """
import torch
import torch.nn.functional as F

class ColourFilter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.sharpness = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, image, features, output_size=None):
        fine = F.adaptive_avg_pool2d(image, output_size).flatten(2).transpose(1, 2)
        coarse = F.adaptive_avg_pool2d(image, features.shape[-2:]).flatten(2).transpose(1, 2)
        weights = (-self.sharpness * torch.cdist(fine, coarse)).softmax(dim=-1)
        return (weights @ features.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, output_size)
"""
ENTRIES = {"anyup": "anyup_multi_backbone", "naf": "naf"}


def write_checkout(folder: Path, name: str, dependencies: str = '["torch"]') -> Path:
    package = f"{name}_stand_in"
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").touch()
    (folder / package / "model.py").write_text(MODEL)
    hubconf = HUBCONF.format(package=package, entry=ENTRIES[name], dependencies=dependencies)
    (folder / "hubconf.py").write_text(hubconf)
    return folder


def build(name: str, **options):
    return build_upsampler(name, dim=8, factor=3, grid=(5, 4), **options)


def refused(name: str, **options) -> str:
    with pytest.raises(UserError) as caught:
        build(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["anyup", "naf"])
def test_their_model_gets_imagenet_colours_and_raw_features(name: str, tmp_path: Path) -> None:
    upsampler = build(name, checkout=str(write_checkout(tmp_path / "c", name)), trust_remote_code=True)
    low, guidance = torch.randn(2, 8, 3, 7), torch.rand(2, 3, 93, 71)
    out = upsampler(low, {}, guidance)
    colours = torch.nn.functional.adaptive_avg_pool2d(guidance, (36, 71))  # never more than four times the target
    colours = (colours - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert torch.equal(out, upsampler.model(colours, low, (9, 21))) and upsampler.model.sharpness == 5
    assert torch.allclose(upsampler(low[:, :, :1, :1].expand_as(low), {}, guidance)[..., 0, 0], low[..., 0, 0])
    assert not any(parameter.requires_grad for parameter in upsampler.parameters())
    assert not upsampler.train().model.training


@pytest.mark.parametrize("name", ["anyup", "naf"])
def test_nothing_runs_without_consent(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkout(tmp_path / "c", name)
    assert "trust_remote_code=true" in refused(name, checkout=str(folder))
    assert not (folder / "ran").exists()
    monkeypatch.setenv(CONSENT, "1")
    build(name, checkout=str(folder))
    assert (folder / "ran").exists()


@pytest.mark.parametrize("name", ["anyup", "naf"])
def test_what_is_missing_is_said(name: str, tmp_path: Path) -> None:
    assert "git clone https://github.com/" in refused(name)
    assert "no hubconf.py there" in refused(name, checkout=str(tmp_path / "nowhere"), trust_remote_code=True)
    needy = write_checkout(tmp_path / "needy", name, '["a_package_that_nobody_has"]')
    assert "a_package_that_nobody_has" in refused(name, checkout=str(needy), trust_remote_code=True)
    folder = str(write_checkout(tmp_path / "c", name))
    assert "Cannot find callable naff" in refused(name, checkout=folder, trust_remote_code=True, entry="naff")
    assert "no way to the weights (" in refused(name, checkout=folder, trust_remote_code=True, entry="broken")
    assert "gives a int" in refused(name, checkout=folder, trust_remote_code=True, entry="number")


@pytest.mark.parametrize("name", ["anyup", "naf"])
def test_what_their_code_cannot_do_is_said_by_its_name(name: str, tmp_path: Path, monkeypatch) -> None:
    """natten, for one, refuses grids smaller than its window when it is called, not when it is built."""
    folder = write_checkout(tmp_path / "c", name)
    model = folder / f"{name}_stand_in" / "model.py"
    for module in ("", ".model"):  # other tests have loaded theirs
        monkeypatch.delitem(sys.modules, f"{name}_stand_in{module}", raising=False)
    refusal = "if features.shape[-1] < 4: raise ValueError('window larger than the map\\nand so on')"
    model.write_text(model.read_text().replace("fine = F", f"{refusal}\n        fine = F"))
    upsampler = build(name, checkout=str(folder), trust_remote_code=True)
    with pytest.raises(UserError, match=r"cannot upsample 5x3 tokens 3 times: window larger than the map") as caught:
        upsampler(torch.randn(1, 8, 5, 3), {}, torch.rand(1, 3, 40, 32))
    assert "\n" not in str(caught.value) and ("natten" in str(caught.value)) == (name == "naf")
    assert upsampler(torch.randn(1, 8, 5, 4), {}, torch.rand(1, 3, 40, 32)).shape == (1, 8, 15, 12)


def test_the_entry_points_are_called_as_their_repositories_have_them(tmp_path: Path) -> None:
    """wimmerth/anyup 6f46da1b: anyup(use_natten, pretrained, device); valeoai/NAF f63aadff: naf(pretrained, device)."""
    for name, signature in (("anyup", "use_natten=False, pretrained=True"), ("naf", "pretrained=True")):
        folder = write_checkout(tmp_path / name, name)
        hubconf = folder / "hubconf.py"
        hubconf.write_text(
            hubconf.read_text().replace('(pretrained=True, device="cpu")', f'({signature}, device="cpu")')
        )
        assert build(name, checkout=str(folder), trust_remote_code=True).model.sharpness == 5


def test_the_torch_hub_cache_is_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "found none" in refused("anyup", checkout="hub", trust_remote_code=True)
    write_checkout(tmp_path / "wimmerth_anyup_main", "anyup")
    assert build("anyup", checkout="hub", trust_remote_code=True).model.sharpness == 5
    (tmp_path / "wimmerth_anyup_other").mkdir()
    assert "wimmerth_anyup_main, " in refused("anyup", checkout="hub", trust_remote_code=True)


def test_weights_are_read_from_a_file_and_no_code_with_them(tmp_path: Path) -> None:
    options = {"checkout": str(write_checkout(tmp_path / "c", "naf")), "trust_remote_code": True}
    torch.save({"sharpness": torch.tensor(2.0)}, tmp_path / "w.pth")
    save_file({"sharpness": torch.tensor(3.0)}, tmp_path / "w.safetensors")
    for file, value in (("w.pth", 2), ("w.safetensors", 3)):
        assert build("naf", weights=str(tmp_path / file), **options).model.sharpness == value
    assert "cannot read" in refused("naf", weights=str(tmp_path / "none.pth"), **options)
    torch.save({"sharpness": Path("x")}, tmp_path / "code.pth")
    assert "more than tensors" in refused("naf", weights=str(tmp_path / "code.pth"), **options)
    torch.save({"sharp": torch.tensor(2.0)}, tmp_path / "other.pth")
    assert "do not fit" in refused("naf", weights=str(tmp_path / "other.pth"), **options)


@pytest.mark.parametrize("finetune", [False, True])
def test_it_trains_and_a_folder_asks_for_consent_again(finetune: bool, tmp_path: Path, monkeypatch) -> None:
    options = {"checkout": str(write_checkout(tmp_path / "c", "anyup")), "trust_remote_code": True}
    recipe = small_recipe(
        image_folder(tmp_path / "images"), upsampler="anyup", options=options | {"finetune": finetune}
    )
    adapter, fidelity = train_one(recipe, small_teacher_data(recipe, monkeypatch))
    assert fidelity["average"].mse > 0 and adapter.bias.buffer.any()
    assert (adapter.upsampler.model.sharpness != 5) == finetune
    folder = adapter.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=CONSENT):
        Adapter.from_pretrained(folder)
    monkeypatch.setenv(CONSENT, "1")
    assert state_digest(Adapter.from_pretrained(folder)) == state_digest(adapter)


def test_a_description_cannot_consent() -> None:
    meta = AdapterMeta(SmallTeacher().spec, "t", "anyup", 2, options={"checkout": "x", "trust_remote_code": True})
    assert AdapterMeta.from_dict(meta.to_dict(), "here").options == {"checkout": "x"}


def test_the_command_ends_with_two_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = f"timm:{timm_folder(tmp_path / 'vit', 0)}"
    recipe = small_recipe(image_folder(tmp_path / "images"), teacher=teacher, out=str(tmp_path / "out"))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert guard(train.main, [str(path), "upsampler=anyup", "options={}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "options.checkout" in error and "CC-BY-4.0" in error
