"""Every way that reading weights fails is one short UserError, and nothing in a file is executed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub
from safetensors.torch import save_file
from torch import nn

from common.errors import UserError
from teachers.registry import load_backbone
from teachers.weights import check_checkpoint, explain, find_checkpoint, hub_in_reach, loading, shorten


class Trap:
    """Unpickling this would run a function."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


def test_a_whole_file_passes_and_is_found_in_its_folder(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.ones(3)}, tmp_path / "other.pth")
    assert check_checkpoint(tmp_path) == tmp_path / "model.safetensors"
    assert check_checkpoint(tmp_path / "other.pth") == tmp_path / "other.pth"
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "third.pth")
    with pytest.raises(UserError, match=r"other\.pth, third\.pth; name the file"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
def test_truncated_files(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    state = {"a": torch.rand(1000)}
    save_file(state, file) if name.endswith("safetensors") else torch.save(state, file)
    file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(UserError, match="damaged or cut short"):
        check_checkpoint(file)
    file.write_bytes(b"")
    with pytest.raises(UserError, match=str(file)):
        check_checkpoint(file)


def test_pickles_with_code_are_refused_before_a_model_is_built(tmp_path: Path) -> None:
    torch.save({"a": Trap()}, tmp_path / "w.pth")
    node = {"spec": "timm:vit_tiny_patch16_224.augreg_in21k", "weights": str(tmp_path / "w.pth")}
    with pytest.raises(UserError, match="pickle that needs code to load, which is refused"):
        load_backbone(node)


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("weights")
    with pytest.raises(UserError, match="known endings"):
        check_checkpoint(tmp_path / "w.txt")
    with pytest.raises(UserError, match="no such file or folder"):
        check_checkpoint(tmp_path / "absent.pth")


def test_state_that_does_not_fit_names_the_keys(tmp_path: Path) -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)])
    state = {f"x{key}" if key.endswith("bias") else key: value for key, value in model.state_dict().items()}
    state["0.weight"] = torch.ones(3, 2)
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(state)
    assert explain("w.pth", caught.value) == (
        "w.pth does not fit the model: missing 0.bias, 1.bias, 2.bias and 2 more; "
        "unexpected x0.bias, x1.bias, x2.bias and 2 more; other shapes 0.weight [3, 2] for [2, 2]"
    )
    assert shorten(["a", "b"]) == "a, b"


RESPONSE = SimpleNamespace(headers={}, request=None)  # all that the hub's errors read of an HTTP response


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub.GatedRepoError("gated", response=RESPONSE), "accept its terms at https://huggingface.co/org/name"),
        (hub.RepositoryNotFoundError("none", response=RESPONSE), "does not exist on the hub"),
        (hub.OfflineModeIsEnabled("offline"), "the hub cannot be reached: fetch it where there is a network"),
        (ConnectionRefusedError("no route"), "the hub cannot be reached"),
        (hub.LocalEntryNotFoundError("not cached"), "the hub cannot be reached"),
    ],
)
def test_hub_errors_say_what_to_do_even_when_a_library_wraps_them(error: Exception, message: str) -> None:
    assert message in explain("org/name", error)
    wrapped = OSError("a library's own long story")
    wrapped.__cause__ = error
    assert message in explain("org/name", wrapped)


@pytest.mark.parametrize(
    "spec",
    [
        "timm:vit_tiny_patch16_224.augreg_in21k",
        "timm:some-org/some-model",
        "open_clip:ViT-B-32:laion2b_s34b_b79k",
        "open_clip:hf-hub:some-org/some-model",
        "transformers:some-org/some-model",
    ],
)
def test_no_network_is_one_message_from_every_library(
    spec: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"is not on this machine and the hub cannot be reached") as caught:
        load_backbone(spec)
    assert len(str(caught.value)) < 300


def test_a_hub_out_of_reach_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    hub_in_reach.cache_clear()
    assert not hub_in_reach()
    with pytest.raises(UserError, match="hub cannot be reached"), loading("org/name", fetch=True):
        assert huggingface_hub.constants.HF_HUB_OFFLINE  # or the hub would try again and again
        huggingface_hub.hf_hub_download("org/name", "config.json")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    hub_in_reach.cache_clear()
