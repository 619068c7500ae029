"""Preparing images and texts: what a checkpoint's processor does is what our mean and std do, or it is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from teachers.open_clip_backbone import Text
from teachers.preprocessing import (
    OPEN_CLIP_FIELDS,
    TRANSFORMERS_FIELDS,
    check_open_clip,
    check_timm,
    transformers_normalisation,
)
from teachers.registry import load_backbone
from teachers.transformers_text import HubText

BYTES = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
SIXTEENTHS = st.integers(1, 32).map(lambda value: value / 16)


@settings(max_examples=40, deadline=None)
@given(
    rescale=st.booleans(),
    factor=st.sampled_from([1 / 255, 1 / 127.5, 1 / 256, 1.0]),
    normalise=st.booleans(),
    mean=st.lists(SIXTEENTHS, min_size=3, max_size=3),
    std=st.lists(SIXTEENTHS, min_size=3, max_size=3),
    kind=st.sampled_from(["SiglipImageProcessor", "CLIPImageProcessor", "BitImageProcessor", "ViTImageProcessor"]),
)
def test_mean_and_std_do_what_the_processor_does(
    rescale: bool, factor: float, normalise: bool, mean: list[float], std: list[float], kind: str
) -> None:
    processor = getattr(transformers, kind)(
        do_resize=False, do_center_crop=False, do_rescale=rescale, rescale_factor=factor, do_normalize=normalise,
        image_mean=mean, image_std=std,
    )  # fmt: skip
    wanted = processor(BYTES, return_tensors="pt")["pixel_values"][0].float()
    ours_mean, ours_std = (
        torch.tensor(part).view(3, 1, 1) for part in transformers_normalisation(processor.to_dict(), "x", None)
    )
    ours = (torch.from_numpy(BYTES).permute(2, 0, 1) / 255 - ours_mean) / ours_std
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-4)


def test_an_offset_is_folded_in() -> None:
    processor = transformers.EfficientNetImageProcessor(
        do_resize=False, do_center_crop=False, rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False,
        include_top=False,
    )  # fmt: skip
    wanted = processor(BYTES, return_tensors="pt")["pixel_values"][0].float()
    mean, std = (
        torch.tensor(part).view(3, 1, 1) for part in transformers_normalisation(processor.to_dict(), "x", None)
    )
    torch.testing.assert_close((torch.from_numpy(BYTES).permute(2, 0, 1) / 255 - mean) / std, wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"include_top": True}, "include_top"),
        ({"do_grayscale": True}, "do_grayscale"),
        ({"a_field_of_next_year": 3}, "a_field_of_next_year"),
        ({"image_mean": [0.5]}, "not three numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "set mean and std"),
        ({"rescale_factor": 0}, "set mean and std"),
        ({"patch_size": 14}, "patches of 14 px"),
        ({"do_rescale": False, "offset": True}, "offset without do_rescale"),
    ],
)
def test_what_cannot_be_done_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        transformers_normalisation({**transformers.SiglipImageProcessor().to_dict(), **change}, "x", 16)


@pytest.mark.parametrize(
    "change", [{"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"do_normalize": False}, {"image_mean": 0.25}]
)
def test_features_of_a_folder_are_the_librarys(change: dict[str, Any], tmp_path: Path) -> None:
    config = transformers.SiglipVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    model = transformers.SiglipVisionModel(config).eval()
    processor = transformers.SiglipImageProcessor(size={"height": 16, "width": 16}, **change)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    wanted = model(**processor(picture, return_tensors="pt")).last_hidden_state
    images = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    ours = load_backbone(f"transformers:{tmp_path}")(images).spatial.flatten(2).mT
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


def test_open_clip_and_timm_see_rgb_or_are_refused() -> None:
    check_open_clip({"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bicubic", "resize_mode": "squash"}, "x", 8)
    for wrong, message in (({"mode": "L"}, "sees L"), ({"gamma": 2}, "gamma"), ({"size": 9}, "set image_size")):
        with pytest.raises(UserError, match=message):
            check_open_clip(wrong, "x", 8)
    with pytest.raises(UserError, match="4 channels"):
        check_timm({"input_size": (4, 8, 8)}, "x")


#: Of timm's pretrained_cfg: what the adapter of timm's models reads of it, and what is left to the recipe.
TIMM_FIELDS = (
    "mean",
    "std",
    "input_size",
    "fixed_input_size",
    "license",
    "hf_hub_id",
    "url",
    "interpolation",
    "crop_pct",
    "crop_mode",
    "test_input_size",
    "test_crop_pct",
    "min_input_size",
)


def test_the_page_names_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "preprocessing.md").read_text(encoding="utf-8")
    known = {*TRANSFORMERS_FIELDS, *TIMM_FIELDS, *OPEN_CLIP_FIELDS}
    shown = {field for field in known if f"`{field}`" in page}
    assert known - shown == {name for name, does in TRANSFORMERS_FIELDS.items() if does == "names"}


def gemma(folder: Path) -> Path:
    """A tokenizer of SigLIP2's class, whose vocabulary is letters and marks in both cases."""
    signs = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?'-".replace(" ", "▁")
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocab = {piece: number for number, piece in enumerate([*names, *signs])}
    transformers.GemmaTokenizer(vocab=vocab, merges=[], add_bos_token=False, add_eos_token=True).save_pretrained(folder)
    return folder


class Ids(torch.nn.Module):
    """A text tower that answers with the tokens it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        text = transformers.Siglip2TextConfig(max_position_embeddings=24)
        self.config = transformers.Siglip2Config(text_config=text.to_dict())

    def get_text_features(self, input_ids: torch.Tensor, **given: Any) -> torch.Tensor:
        assert not given
        return input_ids.float()

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.float()


TEXTS = ["A photo of Dogs, cats.", "don't stop - IT'S fine!"]


def test_siglip2_texts_are_lowered_and_keep_their_marks_in_both_loaders(tmp_path: Path) -> None:
    """Reference: big_vision's `lower` before `tok`; one checkpoint must have one text tower."""
    folder, model = gemma(tmp_path), Ids()
    hub = HubText(model, str(folder))(TEXTS)
    text = {
        "context_length": 24,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2",
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert torch.equal(hub, Text(model, f"local-dir:{folder}")(TEXTS))
    read = transformers.AutoTokenizer.from_pretrained(folder)
    assert read.decode(hub[0].long(), skip_special_tokens=True).strip() == TEXTS[0].lower()
