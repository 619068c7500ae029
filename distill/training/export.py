"""The trained student as a folder: weights, config and a card. PHI-S is undone in the heads' last layer.

What only training needs (spectral scales, noise) is gone: the weights are those of a plain ViT and its heads.
The student answers in PHI-S space. The inverse map is affine, so it is folded into the spatial heads (PHI-S,
arXiv 2410.01680, A.6): W = Theta W', b = Theta b' + mu. What the exported adaptors say is in the teacher's own units.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.atomic import recover, replacing_folder, write_text
from common.checksums import CHECKSUM, entry_of
from common.json_files import read_json_object, write_json
from common.tensor_files import write_tensors
from distill.recipe import Recipe
from distill.recipe_models import StudentNode
from distill.student.heads import last_layer
from distill.student.model import timm_options
from distill.student.spectral import fold_scales
from distill.targets.targets import Targets
from featsharp_adapter.model.phi_s import PhiS
from teachers.artefacts import portable
from teachers.contracts import capability

SCHEMA = 1
MODEL_TYPE = "agglomerate"  #: what `transformers` knows it by (`distill.hub_model`)
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def export_student(
    folder: Path, state: Mapping[str, Tensor], recipe: Recipe, targets: Targets, identity: Mapping[str, Any], step: int
) -> None:
    """Write the student folder: a reader sees the old one, or all of the new one."""
    weights = fold_scales(state)
    for name, target in targets.teachers.items():
        if target.head.spatial_dim is not None:
            fold_normaliser(weights, last_layer(recipe.student.head, name), target.normaliser)
    write_student(folder, weights, describe_student(recipe, targets, identity, step))


def write_student(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Replace a student folder, whole or not at all; its config tells the checksum of the weights."""
    with replacing_folder(folder) as new:
        write_tensors(new / WEIGHTS, weights)
        write_json(new / CONFIG, dict(config) | {CHECKSUM: entry_of(new / WEIGHTS)})
        write_text(new / CARD, card(config))


def fold_normaliser(weights: dict[str, Tensor], layer: str, normaliser: PhiS) -> None:
    """Replace the weights of a last layer that speaks PHI-S by those of one that speaks raw units, in float64.

    A head that upsamples has a group of C rows for each of its pixels; each group is folded alike.
    """
    theta = (normaliser.rotation.double().T / normaliser.alpha.double()).cpu()
    mean = normaliser.mean.double().cpu()
    weight, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
    groups = [
        (theta @ rows.double().cpu(), theta @ offset.double().cpu() + mean)
        for rows, offset in zip(weight.split(normaliser.dim), bias.split(normaliser.dim), strict=True)
    ]
    weights[f"{layer}.weight"] = torch.cat([rows for rows, _ in groups]).to(weight.dtype)
    weights[f"{layer}.bias"] = torch.cat([offset for _, offset in groups]).to(bias.dtype)


def describe_student(recipe: Recipe, targets: Targets, identity: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The content of config.json: all that is needed to build the student again, and where it comes from.

    It goes into the world: names of files lose the folders of this machine. A checkpoint keeps them as they are.
    """
    facts: dict[str, Any] = portable(
        {
            "schema": SCHEMA,
            "model_type": MODEL_TYPE,
            "name": recipe.name,
            "step": step,
            "student": recipe.student.model_dump(mode="json") | {"weights": None, "spectral": False, "damp": 0.0},
            "averaged": recipe.ema.decay if recipe.ema.export and step else None,
            "size": list(recipe.data.size),
            "teachers": {
                name: {
                    "backbone": target.node.backbone,
                    "spec": target.spec.to_dict(),
                    "head": target.head.to_dict(),
                    "encodes_text": capability(target.backbone, "encode_text") is not None,
                    "upsampler": target.node.upsampler,
                    "factor": target.node.effective_factor,
                    "adapter": target.target_upsampler.digest,
                }
                for name, target in targets.teachers.items()
            },
        }
    )
    return facts | {"identity": portable_identity(identity)}


def portable_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as a student folder has it: a place in it, or in a field's name (a mixture's), as its last part.

    What lay at the place is in it by digest, but for weights that a student began with.
    """
    mixture = "data.train."
    return {
        mixture + portable(name.removeprefix(mixture)) if name.startswith(mixture) else name: portable(value)
        for name, value in identity.items()
    }


def exported_identity(folder: Path) -> dict[str, Any] | None:
    """The identity of the run that wrote a student folder (`portable_identity`), None where there is none yet."""
    path = recover(folder) / CONFIG
    return read_json_object(path).get("identity", {}) if path.is_file() else None


def card(config: Mapping[str, Any]) -> str:
    """README.md of a student folder: what it is, whom it learned from and under which licences."""
    rows = [
        f"| {name} | {t['spec']['name']} | {t['upsampler']} {t['factor']}x | {(t['adapter'] or 'none')[:19]} "
        f"| {t['spec']['licence']} | {t['spec']['source']} |"
        for name, t in config["teachers"].items()
    ]
    student, size = config["student"], config["size"]
    named = ("patch_size", "embed_dim", "depth", "num_heads")
    sizes = "".join(f", {key} {student[key]}" for key in named if student[key] is not None)
    first = next(iter(config["teachers"]))
    average = config.get("averaged")
    kind = f" They are a moving average over training (decay {average})." if average is not None else ""
    return "\n".join(
        [
            f"# {config['name']}",
            "",
            f"An agglomerative vision student ({student['model']}{sizes}), distilled for {config['step']} steps at "
            f"{size[0]}x{size[1]} px from the teachers below. Its weights inherit the terms of all of them.{kind}",
            "",
            "| teacher | weights | upsampler | adapter | licence | source |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "```python",
            "from distill.exported import from_pretrained",
            "",
            'student = from_pretrained("THIS_FOLDER")  # or run:THIS_FOLDER wherever a backbone is named',
            "summary, spatial = student(images)  # images [B, 3, H, W] in [0, 1], sides multiples of the patch",
            f'theirs = student.adaptor("{first}").project(student(images))  # in the units of teacher {first}',
            "```",
            "",
            "Spatial adaptor outputs are in the teacher's raw units. Summaries are trained by their direction alone "
            "(cosine or angle): their length means nothing.",
            "",
            *timm_section(config),
        ]
    )


def timm_section(config: Mapping[str, Any]) -> list[str]:
    """How to have the student's tokens from timm alone."""
    node = StudentNode.model_validate(config["student"])
    options = timm_options(node, len(config["teachers"]), config["size"] if node.cpe is None else (node.cpe,) * 2)
    first, last = len(config["teachers"]), options["reg_tokens"]
    lines = [
        "## timm",
        "",
        f"`vit.*` in {WEIGHTS} is the state of a plain timm model. It takes images normalised with the mean and "
        f"standard deviation of `{node.model}`. Of its tokens the first {first} are the summaries, in the order of the "
        f"table, and those from {last} on the patches.",
        "",
        "```python",
        "import timm",
        "from safetensors.torch import load_file",
        "",
        f'state = {{name[4:]: t for name, t in load_file("{WEIGHTS}").items() if name.startswith("vit.")}}',
        f'model = timm.create_model("{node.model}", **{options!r})',
        "model.load_state_dict(state)",
        "tokens = model.eval().forward_features(normalised)",
        "```",
        "",
    ]
    if node.cpe is not None:
        lines += [
            "Away from that image size timm resamples positions in its own way. "
            "`distill.student.timm_export.to_timm(FOLDER, size)` makes a timm model with its tokens at that size.",
            "",
        ]
    if node.window is not None:
        lines += [f"The student attends in windows of {node.window} tokens, timm's model globally.", ""]
    return lines
