"""A vision-language model in a folder: what it was made of, how far it was trained. lmms-eval loads it there."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common.digests import digest_value
from common.errors import UserError
from common.json_files import read_json_object, write_json
from common.recipes import validate
from eval_suite.readers.contracts import ConversationImages
from eval_suite.vlm.checkpoints import WEIGHTS, Checkpoints, Progress, load_learned
from eval_suite.vlm.language import language_digest
from eval_suite.vlm.model import Llava
from eval_suite.vlm.recipe import VlmRecipe
from teachers.artefacts import check_artefact_name, check_artefact_node
from teachers.contracts import Backbone, identity_of
from teachers.registry import load_backbone

CARD = "vlm.json"
SCHEMA = 2  #: 2 knows the language model by its content


def training_digest(
    backbone: Backbone, recipe: VlmRecipe, language: str, told: Mapping[str, ConversationImages], seed: int
) -> str:
    """16 hex digits over all that decides the weights: backbone, language model, recipe, seed, pictures and texts.

    language: `language_digest` of the recipe's.
    """
    decides = [identity_of(backbone), recipe.model_dump(mode="json"), language, seed]
    digest = hashlib.sha256(digest_value(decides).encode())
    for name, data in told.items():
        digest.update(f"|{name}|{None if data.images is None else data.images.key}".encode())
        for item in data.conversations:
            digest.update(repr(item).encode())
    return digest.hexdigest()[:16]


def describe(
    folder: Path,
    backbone: Backbone,
    node: str | dict[str, Any] | None,
    recipe: VlmRecipe,
    seed: int,
    digest: str,
    language: str,
    last: Progress,
) -> None:
    """Write the card; UserError where the folder holds the training of something else."""
    path = folder / CARD
    if path.is_file():
        if _read(path).get("digest") != digest:
            raise UserError(
                f"{folder} holds the training of another recipe, backbone, language model or data; "
                "name another folder or delete it"
            )
        return
    card = {
        "schema": SCHEMA,
        "backbone": node or backbone.spec.name,
        "backbone_digest": backbone.spec.digest,
        "backbone_map": _map_of(backbone),
        "recipe": recipe.model_dump(mode="json"),
        "seed": seed,
        "digest": digest,
        "language_digest": language,
        "last": [last.stage, last.step],
    }
    write_json(path, card)


def _map_of(backbone: Backbone) -> dict[str, Any]:
    """What decides the map that a model of vision and language reads, beside the weights; as JSON gives it back."""
    spec = backbone.spec
    sizes = {"patch_size": spec.patch_size, "width": spec.spatial_dim}
    return {"reads": spec.reads, **sizes, "mean": list(spec.mean), "std": list(spec.std)}


def load_vlm(
    folder: str | Path,
    device: str = "cpu",
    backbone: str | dict[str, Any] | None = None,
    language_model: str | None = None,
) -> Llava:
    """The model that a training left in a folder; UserError where it is not there, not finished, or other weights.

    `backbone` and `language_model` are needed where the card's own do not load any more, e.g. after a move, and where
    they are paths of the machine it was trained on: a file may not choose what is read.
    """
    folder = Path(folder)
    if not (folder / CARD).is_file():
        raise UserError(f"{folder} holds no {CARD}; train one with: python -m eval_suite vlm --out {folder}")
    card = _read(folder / CARD)
    kept = Checkpoints(folder, str(card["digest"]))
    reached = kept.reached()
    if [reached.stage, reached.step] != card["last"]:
        raise UserError(
            f"{folder} was trained up to {reached.stage or 'nothing'} step {reached.step} of {card['last']}; "
            "run its training again, it goes on from there"
        )
    remedy = "Type it: load_vlm(folder, backbone=NODE)"
    loaded = load_backbone(backbone or check_artefact_node(card["backbone"], str(folder / CARD), remedy))
    if loaded.spec.digest != card["backbone_digest"]:
        raise UserError(f"{folder} was trained on other weights of {card['backbone']}; name them with backbone=")
    learnt, now = card.get("backbone_map"), _map_of(loaded)  # cards of before do not say it
    if learnt is not None and (wrong := [what for what in now if learnt.get(what) != now[what]]):
        raise UserError(
            f"{folder} was trained on another map of the same weights: {wrong[0]} was {learnt.get(wrong[0])}, the one "
            f"named has {now[wrong[0]]}"
        )
    recipe = validate(VlmRecipe, card["recipe"], str(folder / CARD))
    if language_model is None:
        remedy = "Type it: load_vlm(folder, language_model=NAME_OR_FOLDER)"
        check_artefact_name(recipe.language_model, str(folder / CARD), remedy)
    else:
        recipe = recipe.model_copy(update={"language_model": language_model})
    if language_digest(recipe) != card["language_digest"]:
        raise UserError(f"{folder} was trained on another language model than {recipe.language_model} is now")
    model = Llava(loaded, recipe, torch.device(device), card["seed"])
    assert kept.newest is not None  # or it would not have been reached
    load_learned(model, kept.newest / WEIGHTS)
    model.learn("none")
    return model


def _read(path: Path) -> dict[str, Any]:
    found = read_json_object(path)
    if found.get("schema") != SCHEMA:
        raise UserError(f"{path} is no card of a vision-language model of this version")
    return found
