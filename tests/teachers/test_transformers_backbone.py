"""transformers models saved by save_pretrained and loaded as backbones give exactly transformers' own features."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from common.errors import UserError
from teachers.contracts import capability, state_digest
from teachers.registry import load_backbone

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
NAFLEX = {**{key: value for key, value in VISION.items() if key != "image_size"}, "num_patches": 16}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 12,
    "max_position_embeddings": 6,
    "projection_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SAM = {**VISION, "output_channels": 16, "window_size": 3, "global_attn_indexes": [1], "mlp_dim": 48}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
TEXTS = ["red cube", "green sphere on red grass"]


def build(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.02, std=0.2)
    return model.eval()


def save(model: Any, folder: Path, processor: Any = None) -> Path:
    """A folder as save_pretrained writes it: config, safetensors, image processor."""
    model.save_pretrained(folder)
    (processor or hf.ViTImageProcessor(image_mean=MEAN, image_std=STD)).save_pretrained(folder)
    return folder


def normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)


PLAIN = [
    ("dinov2", lambda: hf.Dinov2Model(hf.Dinov2Config(**VISION)), 1),
    (
        "registers",
        lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**VISION, num_register_tokens=4)),
        5,
    ),
    ("dinov3", lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**VISION, num_register_tokens=2)), 3),
    ("vit", lambda: hf.ViTModel(hf.ViTConfig(**VISION), add_pooling_layer=False), 1),
]


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (48, 24)], ids=["native", "other"])
@pytest.mark.parametrize(("make", "prefix"), [row[1:] for row in PLAIN], ids=[row[0] for row in PLAIN])
def test_models_with_a_class_token(make: Any, prefix: int, size: tuple[int, int], tmp_path: Path) -> None:
    model = build(make())
    backbone = load_backbone(f"transformers:{save(model, tmp_path / 'model')}")
    images = torch.rand(2, 3, *size)
    asked = {"interpolate_pos_encoding": True} if isinstance(model, hf.ViTModel) and size != (32, 32) else {}
    output = model(normalised(images), output_hidden_states=True, **asked)
    grid = (size[0] // 8, size[1] // 8)
    features = backbone(images)
    assert torch.equal(features.summary, output.last_hidden_state[:, 0])
    assert torch.equal(features.spatial, as_map(output.last_hidden_state[:, prefix:], *grid))
    blocks = backbone.intermediate(images, [2, 0])
    assert backbone.num_blocks == 3
    assert torch.equal(blocks[0], as_map(output.hidden_states[3][:, prefix:], *grid))
    assert torch.equal(blocks[1], as_map(output.hidden_states[1][:, prefix:], *grid))
    raw = load_backbone({"spec": f"transformers:{tmp_path}/model", "spatial": "last_block", "summary": "none"})
    assert torch.equal(raw(images).spatial, blocks[0]) and raw(images).summary is None
    spec = backbone.spec
    assert (spec.patch_size, spec.native_size, spec.resizable) == (8, (32, 32), True)
    assert spec.mean == tuple(MEAN) and spec.std == tuple(STD)
    assert spec.digest == state_digest(model)


@torch.no_grad()
def test_vits_pooler_is_read_when_it_is_there_and_missed_when_not(tmp_path: Path) -> None:
    model = build(hf.ViTModel(hf.ViTConfig(**VISION)))
    node = {"spec": f"transformers:{save(model, tmp_path / 'with')}", "summary": "pooled"}
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(load_backbone(node)(images).summary, model(normalised(images)).pooler_output)
    bare = build(hf.ViTModel(hf.ViTConfig(**VISION), add_pooling_layer=False))
    with pytest.raises(UserError, match=r"missing pooler\.dense\.bias"):
        load_backbone({**node, "spec": f"transformers:{save(bare, tmp_path / 'without')}"})


@torch.no_grad()
@pytest.mark.parametrize(("whole", "size"), [(True, (32, 32)), (False, (24, 40))], ids=["both towers", "vision only"])
def test_naflex_siglip2_through_the_librarys_own_processor(whole: bool, size: tuple[int, int], tmp_path: Path) -> None:
    text = {**TEXT, "vocab_size": 12}
    config = hf.Siglip2Config(vision_config=NAFLEX, text_config=text)
    model = build(hf.Siglip2Model(config) if whole else hf.Siglip2VisionModel(config.vision_config))
    processor = hf.Siglip2ImageProcessor(patch_size=8, max_num_patches=16, image_mean=MEAN, image_std=STD)
    backbone = load_backbone(f"transformers:{save(model, tmp_path / 'siglip2', processor)}")
    pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    inputs = processor([*pixels], return_tensors="pt", do_resize=False, max_num_patches=size[0] * size[1] // 64)
    output = (model.vision_model if whole else model)(**inputs)
    features = backbone(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    # The processor folds 1/255 into its mean and std, which rounds differently in the last place.
    torch.testing.assert_close(features.summary, output.pooler_output, rtol=1e-4, atol=1e-5)
    grid = (size[0] // 8, size[1] // 8)
    torch.testing.assert_close(features.spatial, as_map(output.last_hidden_state, *grid), rtol=1e-4, atol=1e-5)
    assert backbone.spec.native_size == (32, 32) and backbone.spec.resizable


@torch.no_grad()
def test_clip_summary_map_and_text(tmp_path: Path) -> None:
    config = hf.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=24)
    model = build(hf.CLIPModel(config))
    folder = save(model, tmp_path / "clip")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    backbone = load_backbone(f"transformers:{folder}")
    images = torch.rand(2, 3, 32, 32)
    output = model.vision_model(normalised(images))
    assert torch.equal(backbone(images).summary, model.visual_projection(output.pooler_output))
    assert torch.equal(backbone(images).spatial, as_map(output.last_hidden_state[:, 1:], 4, 4))
    assert backbone.spec.summary_dim == 24
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    text = model.text_projection(model.text_model(**tokens).pooler_output)
    assert torch.equal(backbone.encode_text(TEXTS), text)
    normed = load_backbone({"spec": f"transformers:{folder}", "spatial": "normed", "summary": "pooled"})
    tokens = model.vision_model.post_layernorm(output.last_hidden_state)
    assert torch.equal(normed(images).spatial, as_map(tokens[:, 1:], 4, 4))
    assert torch.equal(normed(images).summary, output.pooler_output)
    assert capability(normed, "encode_text") is None  # the text is not in the space of this summary


@torch.no_grad()
def test_siglip_text_is_padded_to_the_trained_length(tmp_path: Path) -> None:
    model = build(hf.SiglipModel(hf.SiglipConfig(vision_config=VISION, text_config=TEXT)))
    folder = save(model, tmp_path / "siglip")
    tokenizer = tiny_tokenizer(["input_ids"])  # SigLIP's own tokenizers give no mask: it was trained without
    tokenizer.save_pretrained(folder)
    ids = tokenizer(TEXTS, padding="max_length", max_length=6, return_tensors="pt")["input_ids"]
    assert torch.equal(load_backbone(f"transformers:{folder}").encode_text(TEXTS), model.text_model(ids).pooler_output)


def tiny_tokenizer(inputs: Sequence[str] = ("input_ids", "attention_mask")) -> Any:
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "red", "green", "cube", "sphere", "on", "grass"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_input_names=list(inputs),
    )


@torch.no_grad()
@pytest.mark.parametrize("whole", [True, False], ids=["whole SAM", "encoder only"])
def test_sam_before_and_after_the_neck(whole: bool, tmp_path: Path) -> None:
    encoder = hf.SamVisionConfig(**SAM)
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    prompts = {"hidden_size": 16, "image_size": 32, "patch_size": 8}
    config = hf.SamConfig(vision_config=encoder.to_dict(), prompt_encoder_config=prompts, mask_decoder_config=decoder)
    model = build(hf.SamModel(config) if whole else hf.SamVisionModel(encoder))
    processor = hf.SamImageProcessor(image_mean=MEAN, image_std=STD)
    node = {"spec": f"transformers:{save(model, tmp_path / 'sam', processor)}"}
    images = torch.rand(2, 3, 32, 32)
    output = model.vision_encoder(normalised(images), output_hidden_states=True)
    neck = load_backbone(node)
    assert torch.equal(neck(images).spatial, output.last_hidden_state)
    assert neck(images).summary is None and neck.spec.spatial_dim == 16 and not neck.spec.resizable
    before = load_backbone({**node, "spatial": "last_block"})
    assert torch.equal(before(images).spatial, output.hidden_states[-1].permute(0, 3, 1, 2))
    assert before.spec.spatial_dim == 32
    with pytest.raises(UserError, match="takes 32x32 px only"):
        neck(torch.rand(1, 3, 32, 40))
    with pytest.raises(UserError, match="takes one size only"):
        load_backbone({**node, "resizable": True})
    with pytest.raises(UserError, match="remove image_size"):
        load_backbone({**node, "image_size": 64})


def test_meta_needs_the_configuration_alone(tmp_path: Path) -> None:
    hf.SamVisionConfig(hidden_size=1280, num_hidden_layers=32, num_attention_heads=16).save_pretrained(tmp_path)
    node = {"spec": f"transformers:{tmp_path}", "device": "meta"}
    with pytest.raises(UserError, match="set mean and std"):
        load_backbone(node)
    backbone = load_backbone({**node, "mean": MEAN, "std": STD})
    assert (backbone.spec.spatial_dim, backbone.spec.native_grid) == (256, (64, 64))
    assert backbone.spec.digest == "meta" and all(parameter.is_meta for parameter in backbone.parameters())


@pytest.fixture
def dinov2(tmp_path: Path) -> Path:
    return save(build(hf.Dinov2Model(hf.Dinov2Config(**VISION))), tmp_path / "dinov2")


def test_pytorch_bin_is_read_without_running_code(dinov2: Path) -> None:
    before = load_backbone(f"transformers:{dinov2}").spec.digest
    state = hf.Dinov2Model.from_pretrained(dinov2).state_dict()
    (dinov2 / "model.safetensors").unlink()
    torch.save(state, dinov2 / "pytorch_model.bin")
    assert load_backbone(f"transformers:{dinov2}").spec.digest == before
    torch.save({"layer": Trap()}, dinov2 / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickle that needs code to load"):
        load_backbone(f"transformers:{dinov2}")
    assert not Trap.sprung


class Trap:
    """Unpickling this runs a function: a checkpoint that would execute code."""

    sprung = False

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return (spring, ())


def spring() -> None:
    Trap.sprung = True


def test_truncated_and_missing_weights(dinov2: Path) -> None:
    weights = dinov2 / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged or cut short"):
        load_backbone(f"transformers:{dinov2}")
    weights.unlink()
    with pytest.raises(UserError, match=r"no file named model\.safetensors"):
        load_backbone(f"transformers:{dinov2}")


def test_a_checkpoint_of_another_model_is_named(dinov2: Path) -> None:
    config = json.loads((dinov2 / "config.json").read_text())
    (dinov2 / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(UserError, match=r"missing encoder\.layer\.3"):
        load_backbone(f"transformers:{dinov2}")
    (dinov2 / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    with pytest.raises(UserError, match=r"does not fit|mismatch"):
        load_backbone(f"transformers:{dinov2}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"summary": "pooled"}, "known: cls, none"),
        ({"spatial": "neck"}, "known: final, last_block"),
        ({"patch_size": 8}, "remove patch_size"),
        ({"weights": "x"}, 'has no option "weights"'),
    ],
)
def test_options_a_family_does_not_have(dinov2: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone({"spec": f"transformers:{dinov2}", **options})


def test_unknown_families_and_folders(tmp_path: Path) -> None:
    hf.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r'unknown transformers model type .* "bert"'):
        load_backbone(f"transformers:{tmp_path}")
    with pytest.raises(UserError, match="there is no folder"):
        load_backbone("transformers:./nowhere")


REMOTE = """
import torch
from torch import nn
from transformers import PreTrainedModel, PretrainedConfig

class OwnConfig(PretrainedConfig):
    model_type = "own"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.post_init()
    def forward(self, pixels):
        tokens = self.patch(pixels).flatten(2).transpose(1, 2)
        return tokens.mean(dim=1), tokens
"""


@torch.no_grad()
def test_code_from_a_repository_runs_only_when_trusted(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(REMOTE)
    auto = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    patch = build(nn.Conv2d(3, 8, 4, 4))
    torch.save({f"patch.{key}": value for key, value in patch.state_dict().items()}, tmp_path / "pytorch_model.bin")
    node = {"spec": f"transformers:{tmp_path}", "image_size": 16, "patch_size": 4, "mean": MEAN, "std": STD}
    with pytest.raises(UserError, match="trust_remote_code: true"):
        load_backbone(node)
    with pytest.warns(UserWarning, match="running the model code"):
        backbone = load_backbone({**node, "trust_remote_code": True})
    images = torch.rand(2, 3, 16, 24)
    assert torch.equal(backbone(images).spatial, patch(normalised(images)))
    assert backbone.spec.summary_dim == 8 and capability(backbone, "intermediate") is None
    with pytest.warns(UserWarning), pytest.raises(UserError, match="set image_size and patch_size"):
        load_backbone({"spec": f"transformers:{tmp_path}", "trust_remote_code": True})
