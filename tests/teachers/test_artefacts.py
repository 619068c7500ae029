"""What a file may name as a backbone, and what only a user may type."""

import pytest

from common.errors import UserError
from teachers.artefacts import check_artefact_name, check_artefact_node, portable, portable_node

HARMLESS = [
    "tiny:clip",
    "dfn_clip_h",
    "timm:vit_small_patch14_dinov2.lvd142m",
    "open_clip:ViT-B-32:laion2b_s34b_b79k",
    "transformers:google/siglip2-base-patch16-224",
    "sharp:builtin:tiny-clip-featsharp-2x",
    "run:runs/first",
    {"spec": "timm:vit_tiny_patch16_224", "pretrained": False, "model_args": {"pad_type": "same", "depth": 2}},
    {"spec": "timm:vit_small_patch16_224", "mean": [0.5, 0, 1], "licence": "CC BY, see x.org", "digest": "sha256:ab"},
]  # fmt: skip
HARMFUL = [
    "class:subprocess.Popen",
    {"spec": "class:subprocess.Popen", "args": ["touch", "ran"]},
    {"spec": "torch_hub:~/evil:entry", "trust_remote_code": True},
    {"spec": "transformers:evil/model", "trust_remote_code": True},
    {"spec": "transformers:evil/model", "trust_remote_code": False},
    {"spec": "timm:vit_tiny_patch16_224", "weights": "evil.pth"},
    {"spec": "timm:vit_tiny_patch16_224", "model_args": {"checkpoint_path": "evil.pth"}},
    {"spec": "timm:vit_tiny_patch16_224", "model_args": {"pretrained_cfg": {"url": "x"}}},
    {"spec": "timm:vit_tiny_patch16_224", "model_args": {"x": "https://evil.org/x"}},
    {"spec": "timm:vit_tiny_patch16_224", "device": "cuda"},
    "timm:/etc/model",
    "timm:../model",
    "timm:a/../../model",
    "timm:C:\\model",
    "timm:https://evil.org/model",
    "transformers:~/model",
    "sharp:/elsewhere/adapter",
    "sharp:../adapter",
    "run:hub:evil/student",
    "run:https://evil.org/x",
    "unknown_library:x",
    "no_prefix",
    {"spec": 7},
    {1: 2},
    7,
    None,
    ["tiny:clip"],
]


@pytest.mark.parametrize("node", HARMLESS, ids=str)
def test_a_file_may_name_models_and_settings(node: object) -> None:
    assert check_artefact_node(node, "config.json", "Type it.") == node


@pytest.mark.parametrize("node", HARMFUL, ids=str)
def test_a_file_may_not_name_code_files_or_addresses(node: object) -> None:
    with pytest.raises(UserError, match=r"config\.json names a backbone that a file may not name.*Type it"):
        check_artefact_node(node, "config.json", "Type it.")


def test_names_of_models_in_files() -> None:
    assert check_artefact_name("Qwen/Qwen2.5-0.5B", "vlm.json", "") == "Qwen/Qwen2.5-0.5B"
    for name in ("/home/x/model", "../model", "~/model", "https://evil.org/model", "C:\\model"):
        with pytest.raises(UserError, match="a file may not choose"):
            check_artefact_name(name, "vlm.json", "")


def test_what_is_written_names_no_folder_of_this_machine() -> None:
    node = {"spec": "timm:vit_tiny_patch16_224", "weights": "/home/me/weights/dino.safetensors", "image_size": 224}
    assert portable_node(node) == node | {"weights": "<local>/dino.safetensors"}
    assert portable_node("transformers:/home/me/siglip") == "transformers:<local>/siglip"
    assert portable_node("open_clip:ViT-B-32:laion2b_s34b_b79k") == "open_clip:ViT-B-32:laion2b_s34b_b79k"


def test_paths_are_found_at_any_depth() -> None:
    facts = {
        "source": "/home/me/w.pt",
        "options": [{"at": "~/x/y"}, 3],
        "data": "webdataset:/data/{0..9}.tar",
        "n": None,
    }
    expected = {"source": "<local>/w.pt", "options": [{"at": "<local>/y"}, 3], "data": "webdataset:<local>/{0..9}.tar"}
    assert portable(facts) == expected | {"n": None}
