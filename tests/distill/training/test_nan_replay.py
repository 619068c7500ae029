"""An update that comes out NaN is kept, and looked at again it names the term and the module where it began."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import train
from test_run import script

from common.checksums import entry_of, read_manifest, write_manifest
from common.errors import UserError
from common.jsonl import read_log
from distill.recipe import read


def test_a_nan_is_kept_and_replayed(write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A weight that is infinite from step 4 on; two micro-batches, stochastic depth."""
    recipe = read(write_recipe(), ["optim.accumulate=2", "student.drop_path=0.1"])
    folder = train(recipe)
    shutil.rmtree(folder / "student")
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    checkpoint = folder / "checkpoints" / "step-00000003"
    weights = checkpoint / "engine" / "student.pt"
    state = torch.load(weights, weights_only=True)
    state["vit.blocks.1.mlp.fc1.weight"][3, 5] = float("inf")
    torch.save(state, weights)
    write_manifest(checkpoint, read_manifest(checkpoint) | {"engine/student.pt": entry_of(weights)})
    with pytest.raises(UserError, match=r"step 4: loss nan.*not finite: coarse/summary.*\n.*--replay"):
        train(recipe)
    assert [line["step"] for line in read_log(folder / "log.jsonl")] == [1, 2, 3, 4]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000003"]

    kept = folder / "nan" / "step-00000004"
    facts = json.loads((kept / "update.json").read_text())
    assert facts["student"] == "before the update" and len(facts["keys"][0]["all"]) == 4
    assert all(torch.equal(state[name], tensor) for name, tensor in load_file(kept / "student.safetensors").items())
    rank = load_file(kept / "rank-0.safetensors")
    assert rank["all"].dtype == torch.uint8 and rank["all"].shape == (4, 3, 32, 32)
    moments = torch.load(kept / "engine" / "optimiser.pt", weights_only=True)["state"]
    before = torch.load(weights.parent / "optimiser.pt", weights_only=True)["state"]
    assert all(torch.equal(moments[key]["exp_avg"], entry["exp_avg"]) for key, entry in before.items())

    capsys.readouterr()
    assert script("--replay", kept) == 0
    said = capsys.readouterr().out
    assert "micro-batch 1, all: loss nan (coarse/summary nan" in said
    assert "first module whose output is not finite: student.vit.blocks.1.mlp.fc1" in said
    assert "parameters without a finite gradient:" in said and "(48 of 48)" in said

    content = bytearray((kept / "student.safetensors").read_bytes())
    content[-1] ^= 1
    (kept / "student.safetensors").write_bytes(content)
    assert script("--replay", kept) == 2
    assert "student.safetensors" in (said := capsys.readouterr().err) and "is damaged" in said


def test_a_replay_of_something_else_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("--replay", tmp_path) == 2
    assert "holds no update to replay" in capsys.readouterr().err
