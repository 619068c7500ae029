"""A new run begins with another student: from a run, a checkpoint, an export, timm's or RADIO's weights."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from small_run import train

from common.errors import UserError
from common.jsonl import read_log
from distill.recipe import read
from distill.student.starting_weights import backbone_state, find_start, plain_names
from distill.training.engine_state import read_student

SHORT = ("optim.steps=1", "optim.warmup_steps=1")

ROOT = Path(__file__).parents[3]
SIZES = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


def first_loss(folder: Path) -> float:
    return float(read_log(folder / "log.jsonl")[0]["loss"])


def test_a_checkpoint_goes_on_in_a_new_run_with_heads_and_normalisers(
    trained: Path, write_recipe: Callable[..., Path]
) -> None:
    """Its first loss is no worse than the last one of the run it begins with, at another rate and other images."""
    folder = train(read(write_recipe(), [f"start_from=run:{trained}@6", "name=onward", "optim.lr=0.0001"]))
    last = read_log(trained / "log.jsonl")[-1]["loss"]
    assert first_loss(folder) < 1.1 * last < 0.8 * first_loss(trained)
    theirs, ours = (
        load_file(run / "checkpoints" / "step-00000006" / "targets.safetensors") for run in (trained, folder)
    )
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_with_the_optimiser_it_is_the_run_itself(trained: Path, write_recipe: Callable[..., Path]) -> None:
    """The moments go along: the first update from step 3, at a rate of nearly nothing, leaves their counts at 4."""
    settings = [f"start_from=run:{trained}@3", "start_optimiser=true", "name=moments", *SHORT]
    folder = train(read(write_recipe(), settings))
    path = folder / "checkpoints" / "step-00000001" / "engine" / "optimiser.pt"
    state = torch.load(path, weights_only=True)["state"]
    assert {float(each["step"]) for each in state.values()} == {4.0}


def test_an_exported_student_starts_the_body_and_its_tokens(trained: Path, write_recipe: Callable[..., Path]) -> None:
    """With other teachers in another order: tokens go by name; heads are new."""
    changes = [f"student.weights={trained / 'student'}", "optim.lr=1e-9", *SHORT, "name=body"]
    folder = train(read(write_recipe(), changes))
    theirs, ours = (
        load_file(trained / "student" / "model.safetensors"),
        read_student(folder / "checkpoints" / "step-00000001"),
    )
    vit = [name for name in theirs if name.startswith("vit.")]
    assert vit and all(torch.allclose(theirs[name], ours[name], atol=1e-6) for name in vit)


def test_positions_of_a_rectangle_stay_where_they_are(write_recipe: Callable[..., Path]) -> None:
    wide = ["data.size=[32,48]", "data.train=scenes:seed=1,count=16,size=32x48", "optim.lr=1e-12", *SHORT]
    first = train(read(write_recipe(), [*wide, "name=wide"]))
    before = read_student(first / "checkpoints" / "step-00000001")["vit.pos_embed"]
    for start in ("student", "checkpoints/step-00000001"):
        again = train(read(write_recipe(), [*wide, f"name=again-{start[:3]}", f"student.weights={first / start}"]))
        assert torch.allclose(read_student(again / "checkpoints" / "step-00000001")["vit.pos_embed"], before, atol=1e-6)
    high = ["data.size=[48,32]", *wide[1:], "name=high", f"start_from={first}"]
    turned = read_student(train(read(write_recipe(), high)) / "checkpoints" / "step-00000001")["vit.pos_embed"]
    rows, columns = 4, 6
    square = before.unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
    expected = F.interpolate(square, size=(columns, rows), mode="bicubic", antialias=True)
    assert torch.allclose(turned, expected.flatten(2).transpose(1, 2), atol=1e-6)


def test_what_fits_and_would_be_read_as_something_else_is_refused(
    trained: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    for change, message in (
        ("student.num_heads=4", "attention heads 2, this recipe's 4"),
        ("student.depth=3", r"do not fit .*Missing key[^\n]*$"),
    ):
        with pytest.raises(UserError, match=message):
            train(read(write_recipe(), [f"start_from={trained}", change, "name=refused", *SHORT]))
    vit = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), class_token=False, global_pool="", **SIZES)
    torch.save(vit.state_dict(), tmp_path / "wide.pt")
    with pytest.raises(UserError, match="24 positions are those of no square"):
        train(read(write_recipe(), [f"student.weights={tmp_path / 'wide.pt'}", "name=refused", *SHORT]))


def test_another_map_of_the_same_teacher_takes_neither_heads_nor_normalisers(
    trained: Path, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    change = "teachers.fine.backbone.spatial=last_block"
    train(read(write_recipe(), [f"start_from={trained}", change, "name=other-map", *SHORT]))
    assert "heads and normalisers are new" in capsys.readouterr().out


def test_what_cannot_be_a_start_is_said(trained: Path, tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.pt")
    (tmp_path / "text.safetensors").write_text("no weights")
    cases = {
        "runs/nowhere": "no file and no folder",
        f"run:{trained}@5": "no checkpoint of step 5 .*there are: 3, 6",
        str(tmp_path): "holds no weights",
    }
    for text, message in cases.items():
        with pytest.raises(UserError, match=message):
            find_start(text)
    for name, message in {"other.pt": "holds no ViT", "text.safetensors": "cannot be read"}.items():
        with pytest.raises(UserError, match=message):
            backbone_state(str(tmp_path / name), "vit_tiny_patch16_224")
    with pytest.raises(UserError, match="both say"):
        read(write_recipe(), [f"start_from={trained}", "student.weights=pretrained"])
    with pytest.raises(UserError, match="is no checkpoint"):
        train(read(write_recipe(), [f"start_from={trained / 'student'}", "start_optimiser=true", "name=refused"]))


def test_a_prefix_and_radios_names_are_understood(tmp_path: Path) -> None:
    """The same ViT under RADIO's names: patches as a matrix, tokens and positions in the patch generator."""
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, class_token=False, global_pool="", **SIZES)
    state = dict(vit.state_dict())
    state["patch_embed.proj.bias"].zero_()
    state["norm.weight"].fill_(1)
    theirs = {f"radio_model.model.{name}": tensor for name, tensor in state.items() if name.startswith("blocks.")}
    generator = "radio_model.model.patch_generator."
    theirs[f"{generator}embedder.weight"] = state["patch_embed.proj.weight"].flatten(1)
    theirs[f"{generator}pos_embed"] = state["pos_embed"]
    theirs[f"{generator}cls_token.token"] = torch.zeros(4, SIZES["embed_dim"])
    theirs["radio_model.input_conditioner.norm_mean"] = torch.zeros(3)
    save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, tmp_path / "radio.safetensors")
    found, teachers = backbone_state(str(tmp_path / "radio.safetensors"), "unused")
    assert teachers is None
    assert torch.equal(found.pop("cls_token"), torch.zeros(1, 1, SIZES["embed_dim"]))
    missing = vit.load_state_dict(found, strict=False)
    assert not missing.unexpected_keys and all("head" in name or "fc_norm" in name for name in missing.missing_keys)
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    assert plain_names(wrapped, "here").keys() == state.keys()


@pytest.mark.slow
def test_the_command_printed_after_a_divergence_works(write_recipe: Callable[..., Path]) -> None:
    """Rates that explode after a checkpoint, then exactly what the message says."""
    recipe = write_recipe(stages={"calm": {"steps": 3}, "wild": {"steps": 3, "lr": 1e30}})
    with pytest.raises(UserError) as caught:
        train(read(recipe, ["checkpoint.every=1", "optim.steps=null", "optim.clip=1e30"]))
    said = str(caught.value)
    command = shlex.split(said.split("e.g.: ", 1)[1].splitlines()[0])
    # The first wild update left weights that are finite and useless, and were saved.
    assert any(word.startswith("start_from=") and word.endswith("step-00000003") for word in command)
    command = [*command, "stages.wild.lr=0.001"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *command[2:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
