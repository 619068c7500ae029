"""Weights a student begins with: timm's, RADIO's, those of an exported student, a run, or one of its checkpoints.

All come out under timm's names. What is ours says too whose its summary tokens are, in order.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.checksums import check_weights
from common.errors import UserError
from common.step_folders import StepFolders, problem
from distill.recipe_models import StudentNode
from distill.student.spectral import fold_scales
from distill.training.engine_state import read_student

HINT = "give a file of timm's or RADIO's weights, an exported student, a run, run:NAME@STEP, or a checkpoint"
PRETRAINED = "pretrained"


@dataclass(frozen=True)
class Start:
    """What a name of weights stands for. `checkpoint` says that it holds a training, heads and moments included."""

    path: Path
    checkpoint: bool


@dataclass(frozen=True)
class Kin:
    """What a student of ours says of its ViT that its tensors do not."""

    teachers: list[str]  #: whose its summary tokens are, in order
    node: StudentNode  #: without the weights it began with
    grid: tuple[int, int]  #: rows and columns of its positions


def find_start(text: str) -> Start:
    """What `text` names: see HINT. UserError where it is not there, or damaged."""
    name, _, step = text.removeprefix("run:").rpartition("@") if "@" in text else (text.removeprefix("run:"), "", "")
    path = next((each for each in (Path(name), Path("runs") / name) if each.exists()), None)
    if path is None:
        raise UserError(f"{text}: no file and no folder {name}; {HINT}")
    if path.is_file():
        return Start(path, checkpoint=False)
    checkpoints = StepFolders(path / "checkpoints", keep=1)
    if step:
        if not step.isdigit() or not checkpoints.path(int(step)).is_dir():
            known = ", ".join(str(int(each.name[5:])) for each in checkpoints.all())
            raise UserError(f"{text}: no checkpoint of step {step} in {path}; there are: {known or 'none'}")
        return _whole(checkpoints.path(int(step)))
    if (path / "state.json").is_file():
        return _whole(path)
    if checkpoints.all():
        found = checkpoints.newest_whole(main=False)  # it may belong to a run that goes on: nothing is moved
        assert found is not None
        return Start(found, checkpoint=True)
    for folder in (path, path / "student"):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return Start(folder, checkpoint=False)
    raise UserError(f"{text}: {path} holds no weights; {HINT}")


def backbone_state(text: str, model: str) -> tuple[dict[str, Tensor], Kin | None]:
    """A ViT's state under timm's names, and for a student of ours what its tensors do not tell."""
    if text == PRETRAINED:
        try:
            return dict(timm.create_model(model, pretrained=True).state_dict()), None
        except (OSError, RuntimeError, HfHubHTTPError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"timm's weights of {model} cannot be had ({reason})") from error
    start = find_start(text)
    if start.path.is_file():
        return plain_names(_read(start.path), text), None
    if start.checkpoint:
        state = fold_scales(read_student(start.path))
    else:
        check_weights(start.path / "model.safetensors", _read_json(start.path / "config.json"))
        state = _read(start.path / "model.safetensors")
    vit = {name[4:]: t for name, t in state.items() if name.startswith("vit.")}
    try:
        return vit, kin_of(start, int(vit["patch_embed.proj.weight"].shape[-1]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{start.path} does not say what student it holds ({type(error).__name__}: {error})") from error


def kin_of(start: Start, patch: int) -> Kin:
    """Of a student of ours with patches of so many pixels."""
    if start.checkpoint:
        identity = _read_json(start.path / "state.json")["identity"]
        teachers = [name.split(".")[1] for name in identity if name.startswith("teachers.")]
        said = {name[8:]: value for name, value in identity.items() if name.startswith("student.")}
        size = identity["data.size"]
    else:
        config = _read_json(start.path / "config.json")
        teachers, said, size = config["teachers"], config["student"], config["size"]
    node = StudentNode.model_validate(dict(said) | {"weights": None})
    height, width = (node.cpe, node.cpe) if node.cpe else size
    return Kin(list(dict.fromkeys(teachers)), node, (height // patch, width // patch))


def plain_names(state: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """timm's names for a ViT's tensors, whatever stands before them; RADIO's for tokens and positions translated.

    RADIO's patches are Linear(3 p p -> D) over (channel, row, column), its tokens and positions in `patch_generator`
    (NVlabs/RADIO, radio/vit_patch_generator.py). UserError where no ViT is found.
    """
    first = next((name for name in state if name.endswith("blocks.0.attn.qkv.weight")), None)
    if first is None:
        raise UserError(f"{where} holds no ViT: no tensor is called ...blocks.0.attn.qkv.weight; {HINT}")
    prefix = first.removesuffix("blocks.0.attn.qkv.weight")
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    found = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    patches = found.pop("patch_generator.embedder.weight", None)
    if patches is None:
        return found
    side = round((patches.shape[1] / 3) ** 0.5)
    found["patch_embed.proj.weight"] = patches.unflatten(1, (3, side, side))
    found["patch_embed.proj.bias"] = found.pop("patch_generator.embedder.bias", torch.zeros(len(patches)))
    found["pos_embed"] = found.pop("patch_generator.pos_embed")
    tokens = found.pop("patch_generator.cls_token.token", None)
    if (
        tokens is not None
    ):  # its first ones are summaries, which has no meaning for other teachers: their mean starts all
        found["cls_token"] = tokens.mean(0)[None, None]
    width = len(patches)
    found.setdefault("norm.weight", torch.ones(width))  # RADIO's backbone has no last norm
    found.setdefault("norm.bias", torch.zeros(width))
    return {name: value for name, value in found.items() if not name.startswith("patch_generator.")}


def _whole(path: Path) -> Start:
    reason = problem(path)
    if reason is not None:
        raise UserError(f"{path} is damaged ({reason}); take another checkpoint")
    return Start(path, checkpoint=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # whatever another kind of file makes the unpickler raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is no file of weights that may be read ({reason})") from error
    if isinstance(loaded, Mapping):
        for key in ("model", "state_dict"):
            if isinstance(loaded.get(key), Mapping):
                return dict(loaded[key])
        return dict(loaded)
    raise UserError(f"{path} holds no state by name but a {type(loaded).__name__}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return dict(found)
