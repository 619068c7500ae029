"""`python -m teachers fetch`: from a hub over HTTP into a folder, from which the teachers load with no network."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants
from small_hub import serve
from tiny_families import CASES, randomised

from common.errors import guard
from common.recipes import read_recipe
from teachers.__main__ import main
from teachers.fetch import caches_in, local_paths, wanted
from teachers.registry import load_backbone
from teachers.weights import hub_in_reach

NAMES = {"timm-vit-registers": "lab/vit", "open_clip": "lab/clip", "hf-dinov2": "lab/dino", "hf-paligemma": "lab/vlm"}
RECIPE = {
    "student": {"model": "vit_tiny_patch16_224"},
    "teachers": {
        "vit": {"backbone": "timm:lab/vit", "adapters": {"featsharp": "adapters/none-yet", "tile": "builtin:x"}},
        "clip": {"backbone": {"spec": "open_clip:lab/clip", "summary": "none"}},
        "dino": {"backbone": "transformers:lab/dino"},
        "vlm": {"backbone": "transformers:lab/vlm"},
    },
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a hub: a repository of each library, one in shards of which the last is not there."""
    root = tmp_path_factory.mktemp("hub")
    for family, repository in NAMES.items():
        (root / "lab").mkdir(exist_ok=True)
        CASES[family].save(randomised(CASES[family].make()), root / repository)
    return root


@pytest.fixture
def online(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub's client speaks to the small hub; `lab/vlm` is gated when the test's name says so."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "untouched"))
    with serve(hub, frozenset({"lab/gated"})) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        huggingface_hub.close_session()
        hub_in_reach.cache_clear()
        yield
    huggingface_hub.close_session()
    hub_in_reach.cache_clear()


@torch.no_grad()
def test_a_folder_that_works_offline(
    hub: Path, online: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "fetched"
    recipe.write_text(yaml.safe_dump(RECIPE))
    assert guard(main, ["fetch", str(recipe), "--to", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f"export HF_HOME={folder}" in printed and "adapters/none-yet: not there yet" in printed
    assert not (tmp_path / "untouched").exists()
    record = json.loads((folder / "fetched.json").read_text())
    assert set(record) == {f"teachers.{name}.backbone" for name in RECIPE["teachers"]}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # and a hub that would refuse every call
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    with caches_in(folder):
        for place, entry in record.items():
            library, repository = place.split(".")[1], entry["node"]
            backbone = load_backbone(repository)
            local = dict(repository) if isinstance(repository, dict) else {"spec": repository}
            prefix, _, name = local["spec"].partition(":")
            same = load_backbone({**local, "spec": f"{prefix}:{hub / name}"})
            assert backbone.spec.digest == same.spec.digest == entry["spec"]["digest"], library
    cached = list((folder / "hub" / "models--lab--vlm" / "snapshots").glob("*/*"))
    assert "model-00003-of-00003.safetensors" not in {file.name for file in cached}  # the language model's


def test_what_cannot_be_fetched_is_a_line_each_and_the_rest_is_there(
    hub: Path, online: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (hub / "lab" / "gated").mkdir(exist_ok=True)
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "fetched"
    nodes = {"good": "timm:lab/vit", "secret": "transformers:lab/gated", "lost": "timm:lab/nothing"}
    data = {"teachers": {name: {"backbone": node} for name, node in nodes.items()}}
    recipe.write_text(yaml.safe_dump(data, sort_keys=False))
    assert guard(main, ["fetch", str(recipe), "teachers.more.backbone=timm:./nowhere", "--to", str(folder)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[0] == "error: 3 of 4 could not be fetched"
    assert "teachers.secret.backbone: lab/gated is gated: accept its terms" in lines[1]
    assert "teachers.lost.backbone: lab/nothing does not exist on the hub" in lines[2]
    assert "teachers.more.backbone: there is no folder ./nowhere" in lines[3]
    assert list(json.loads((folder / "fetched.json").read_text())) == ["teachers.good.backbone"]


def test_without_a_network_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "r.yaml").write_text("teachers: {sam3: {backbone: sam3}}\n")
    assert guard(main, ["fetch", str(tmp_path / "r.yaml"), "--to", str(tmp_path / "f")]) == 2
    error = capsys.readouterr().err
    assert "the hub cannot be reached" in error and "accept the terms at https://huggingface.co/facebook/sam3" in error


def test_what_a_recipe_needs() -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    real = read_recipe(recipes / "radio_l.yaml")
    assert set(wanted(real)) == {"student", *(f"teachers.{name}.backbone" for name in real["teachers"])}
    assert wanted(real)["student"] == "timm:vit_large_patch16_224"
    assert "runs/adapters/dfn-clip-h14-378-featsharp-3x" in local_paths(real)
    assert set(wanted(read_recipe(recipes / "adapters" / "siglip_so400m_14_384.yaml"))) == {"teacher"}
