"""The comparison: one budget for all, and a table that says what was measured."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_recipes import image_folder, small_recipe
from small_teacher import SmallTeacher

from common.errors import UserError, guard
from common.recipes import dump
from featsharp_adapter.__main__ import main
from featsharp_adapter.compare.ablations import ABLATIONS
from featsharp_adapter.compare.compare import Outcome, compare, draw, mean_and_error, summarise, write_table
from featsharp_adapter.compare.variants import parse_variant, recipes_of
from featsharp_adapter.sharpening.backbone import SharpenedBackbone
from featsharp_adapter.training import teacher_data as teacher_data_module
from featsharp_adapter.training.teacher_data import open_teacher_data
from teachers.contracts import Backbone


def test_compare_trains_every_upsampler_on_the_same_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = SmallTeacher()
    monkeypatch.setattr(teacher_data_module, "load_backbone", lambda node: teacher)
    recipe = small_recipe(image_folder(tmp_path / "images"), optim__steps=2)
    names = ["bilinear", "tile", "featsharp"]
    teacher_data = open_teacher_data(recipe, recipes_of(recipe, names))
    looked = teacher.seen
    probed = []

    def probes(backbone: Backbone) -> dict[str, float]:
        maps = backbone(
            torch.rand(2, 3, *backbone.spec.native_size, generator=torch.Generator().manual_seed(0))
        ).spatial
        probed.append(maps)
        return {"spread": float(maps.detach().std())}

    kept: list[int] = []
    trained = compare(recipe, teacher_data, names, [0, 1], probes, lambda found: kept.append(len(found)))
    outcomes = trained.outcomes
    assert kept == [1, 2, 3, 4, 5, 6]
    asked = teacher.seen - looked  # by the probes, of two images and their tiles
    probes(SharpenedBackbone(teacher, trained.adapters["featsharp"], "again"))
    # Nobody asks the teacher again: not the trainings, and the probes once for each set of tile grids.
    assert asked == 2 + (teacher.seen - looked - asked) and torch.equal(probed[-1], probed[2])
    assert [outcome.probes["spread"] for outcome in outcomes] == [float(maps.detach().std()) for maps in probed[:-1]]
    assert [(outcome.upsampler, outcome.seed) for outcome in outcomes] == [(n, s) for s in (0, 1) for n in names]
    bilinear = [outcome for outcome in outcomes if outcome.upsampler == "bilinear"]
    assert bilinear[0].parameters == 0 and bilinear[0].mse_learned != bilinear[1].mse_learned
    table = write_table(outcomes, tmp_path / "tables" / "t")
    assert (tmp_path / "tables" / "t.md").read_text() == table and table.count("\n") == 5
    assert "| spread |" in table
    stored = json.loads((tmp_path / "tables" / "t.json").read_text())
    assert [row["upsampler"] for row in stored["rows"]] == names and len(stored["outcomes"]) == 6

    picture = draw(trained.adapters, teacher_data, 2, tmp_path / "tables" / "t.png")
    with Image.open(picture) as drawn:
        assert drawn.width > drawn.height > 100  # image, teacher and three upsamplers beside each other
    for outcome in outcomes:
        assert outcome.milliseconds > 0 and outcome.mebibytes > 0 and outcome.tv > 0 and outcome.crf > 0
    tv = {outcome.upsampler: outcome.tv for outcome in outcomes}
    assert tv["bilinear"] < tv["tile"]


def test_arms_are_upsamplers_with_options_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_data_module, "load_backbone", lambda node: SmallTeacher())
    recipe = small_recipe(image_folder(tmp_path / "images"), optim__steps=1, optim__warmup=1)
    variant = parse_variant("featsharp:inputs=bilinear+tiles,window=3,norm=false", recipe)
    assert variant.options == {**recipe.options, "inputs": ["bilinear", "tiles"], "window": 3, "norm": False}
    assert parse_variant("featsharp:inputs=tiles", recipe).options["inputs"] == ["tiles"]
    assert parse_variant("s2:tile_share=0.25", recipe).options == {"tile_share": 0.25}
    with pytest.raises(UserError, match="key=value"):
        parse_variant("featsharp:window", recipe)
    names = ["featsharp:block=linear", "featsharp:inputs=bilinear"]
    teacher_data = open_teacher_data(recipe, recipes_of(recipe, names))
    trained = compare(recipe, teacher_data, names, [0])
    assert [found.upsampler for found in trained.outcomes] == names
    assert trained.adapters[names[0]].meta.options["block"] == "linear"
    assert open_teacher_data(recipe, recipes_of(recipe, names[1:])).store.gather(torch.arange(1)).views.tiles == {}


def test_arms_may_differ_in_how_they_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_data_module, "load_backbone", lambda node: SmallTeacher())
    recipe = small_recipe(image_folder(tmp_path / "images"), optim__steps=2)
    names = ["tile", "tile/bias=false", "bilinear/normaliser=standardise,losses.tv=0.5", "tile/conditional.heads=2"]
    trained = compare(recipe, open_teacher_data(recipe, recipes_of(recipe, names)), names, [0])
    adapters = [trained.adapters[name] for name in names]
    assert [adapter.meta.normaliser for adapter in adapters] == ["phi_s", "phi_s", "standardise", "phi_s"]
    assert adapters[0].bias.buffer.abs().max() > 0 and adapters[1].bias.buffer.abs().max() == 0
    assert adapters[2].meta.training["losses"]["tv"] == 0.5 and adapters[3].conditional is not None
    for text, message in {
        "tile/data.images=3": 'cannot differ in "data"',
        "tile/normalizer=none": 'did you mean "normaliser"',
        "tile/losses.tw=1": 'unknown field "losses.tw"',
        "tile/bias": "key=value",
    }.items():
        with pytest.raises(UserError, match=message):
            parse_variant(text, recipe)


def test_every_arm_of_the_ablations_can_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_data_module, "load_backbone", lambda node: SmallTeacher())
    recipe = small_recipe(image_folder(tmp_path / "images"), optim__steps=1, optim__warmup=1)
    names = list(dict.fromkeys(name for names in ABLATIONS.values() for name in names))
    trained = compare(recipe, open_teacher_data(recipe, recipes_of(recipe, names)), names, [0])
    assert len(trained.outcomes) == len(names)
    assert all(math.isfinite(found.fidelity) and found.fidelity > 0 for found in trained.outcomes)


def outcome(seed: int, mse: float) -> Outcome:
    return Outcome("t", "tile", seed, mse, 2 * mse, 1 / mse, mse, mse, mse, 0, 1.0, 2.0, 3.0 + seed)


def test_rows_are_means_with_standard_errors() -> None:
    (row,) = summarise([outcome(seed, mse) for seed, mse in enumerate((0.1, 0.2, 0.3))])
    assert row.mse_average == pytest.approx((0.2, 0.1 / 3**0.5))
    assert row.mse_learned == pytest.approx((0.4, 0.2 / 3**0.5))
    assert row.fidelity[0] == pytest.approx((10 + 5 + 10 / 3) / 3)
    assert row.mebibytes == 5.0 and row.milliseconds == 2.0
    assert mean_and_error([3.0]) == (3.0, None)


def test_the_command_trains_tabulates_and_draws(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(teacher_data_module, "load_backbone", lambda node: SmallTeacher())
    recipe = small_recipe(image_folder(tmp_path / "images"), optim__steps=1, optim__warmup=1)
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    arguments = ["compare", str(tmp_path / "recipe.yaml"), "--upsamplers", "bilinear", "s2", "--seeds", "0"]
    assert guard(main, [*arguments, "--pictures", "2", "--out", str(tmp_path / "out" / "t")]) == 0
    printed = capsys.readouterr().out
    assert "| test:small0 | s2 |" in printed
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["t-test-small0.png", "t.json", "t.md"]
    assert guard(main, [*arguments[:2], "--upsamplers", "featsharp:blok=linear", "--out", "x"]) == 2
    assert 'did you mean "block"' in capsys.readouterr().err
    assert guard(main, [*arguments[:2], "--upsamplers", "bilinar", "--out", "x"]) == 2
    assert 'did you mean "bilinear"' in capsys.readouterr().err
