"""`measure`: numbers for adapters that exist, and cards that say them; the weights are left alone."""

import json
from pathlib import Path

import pytest
from small_recipes import image_folder, small_recipe
from small_teacher import SmallTeacher

from common.errors import guard
from common.recipes import dump
from featsharp_adapter.__main__ import main
from featsharp_adapter.compare import measure_command
from featsharp_adapter.training import teacher_data as teacher_data_module
from featsharp_adapter.training.teacher_data import open_teacher_data
from featsharp_adapter.training.train_one import train_one


def test_a_finished_adapter_is_measured_and_only_its_card_changes(tmp_path: Path, monkeypatch, capsys) -> None:
    for module in (teacher_data_module, measure_command):
        monkeypatch.setattr(module, "load_backbone", lambda node: SmallTeacher())
    recipe = small_recipe(image_folder(tmp_path / "images"))
    adapter, trained = train_one(recipe, open_teacher_data(recipe, [recipe]))
    folder = adapter.save_pretrained(tmp_path / "adapter")
    weights, card = (folder / "adapter.safetensors").read_bytes(), (folder / "README.md").read_text()
    (tmp_path / "recipe.yaml").write_text(dump(recipe.model_copy(update={"upsampler": "bilinear", "options": {}})))
    command = ["measure", str(folder), "--recipe", str(tmp_path / "recipe.yaml")]
    assert guard(main, command) == 0
    printed = capsys.readouterr().out
    assert (
        f"average downsampler: fidelity {trained['average'].ratio:.3f}" in printed and "learned downsampler" in printed
    )
    assert (folder / "README.md").read_text() == card
    assert guard(main, [*command, "--write"]) == 0
    assert (folder / "adapter.safetensors").read_bytes() == weights
    facts = json.loads((folder / "adapter.json").read_text())["fidelity"]
    assert facts["average"]["fidelity"] == pytest.approx(trained["average"].ratio, rel=1e-5)
    assert facts["learned"]["mse"] != pytest.approx(trained["learned"].mse, rel=1e-5)  # a downsampler of its own
    assert "on the finished adapter" in (folder / "README.md").read_text()


def test_an_adapter_of_another_teacher_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    for module in (teacher_data_module, measure_command):
        monkeypatch.setattr(module, "load_backbone", lambda node: SmallTeacher())
    (tmp_path / "recipe.yaml").write_text(dump(small_recipe(image_folder(tmp_path / "images"))))
    assert guard(main, ["measure", "builtin:tiny-clip-featup-2x", "--recipe", str(tmp_path / "recipe.yaml")]) == 2
    error = capsys.readouterr().err
    assert "other weights" in error and "Traceback" not in error
