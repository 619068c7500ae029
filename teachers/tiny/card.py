"""A teacher on disk: NAME.safetensors (fp16), NAME.json (the card), and for clip the vocabulary inside the card."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import UserError, unknown
from teachers.contracts import state_digest
from teachers.tiny.model import Architecture, TinyNetwork
from teachers.tiny.text import Tokenizer

SHIPPED = Path(__file__).parent / "weights"
LICENCE = "Apache-2.0"


def save_teacher(folder: Path, name: str, network: TinyNetwork, facts: dict[str, Any]) -> dict[str, Any]:
    """Write weights and card; rounds the network to fp16 in place, so that what was measured next is what loads."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {key: tensor.detach().half().contiguous() for key, tensor in network.state_dict().items()}
    network.load_state_dict({key: tensor.float() for key, tensor in half.items()})
    card = {
        "name": f"tiny:{name}",
        "licence": LICENCE,
        "digest": state_digest(network),
        "architecture": network.architecture.to_dict(),
        "parameters": sum(tensor.numel() for tensor in half.values()),
    } | facts
    if network.text is not None:
        card["vocabulary"] = list(network.text.tokenizer.vocabulary)
    save_file(half, folder / f"{name}.safetensors")
    write_card(folder, name, card)
    return card


def write_card(folder: Path, name: str, card: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def load_teacher(folder: Path, name: str) -> tuple[TinyNetwork, dict[str, Any]]:
    """The network in fp32 and eval mode, and its card. UserError where a file is missing or the two do not belong."""
    known = sorted(path.stem for path in folder.glob("*.safetensors"))
    if not folder.is_dir():
        raise UserError(f"no such weights folder: {folder}")
    if name not in known:
        raise unknown(f"tiny teacher in {folder}:", name, known)
    try:
        card = json.loads((folder / f"{name}.json").read_text())
        state: dict[str, Tensor] = load_file(folder / f"{name}.safetensors")
    except FileNotFoundError as error:
        raise UserError(f"{folder / name}.json, the card of {name}.safetensors, is missing") from error
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"the weights or the card of {name} in {folder} are damaged: {error}") from error
    tokenizer = Tokenizer(card["vocabulary"]) if "vocabulary" in card else None
    network = TinyNetwork(Architecture(**card["architecture"]), tokenizer)
    network.load_state_dict({key: tensor.to(torch.float32) for key, tensor in state.items()})
    if state_digest(network) != card["digest"]:
        raise UserError(f"{name}.safetensors in {folder} is not what its card describes (digest differs)")
    return network.eval(), card
