"""The comparison: one budget for all, and a table that says what was measured."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_recipes import image_folder, small_recipe
from small_teacher import SmallTeacher

from common.digests import digest_value
from common.errors import UserError, guard
from common.recipes import dump
from common.run_lock import RunLock
from featsharp_adapter.__main__ import main
from featsharp_adapter.compare import outcomes
from featsharp_adapter.compare.ablations import ABLATIONS
from featsharp_adapter.compare.compare import compare, draw
from featsharp_adapter.compare.outcomes import Outcome, append_outcome, read_outcomes, setting_of
from featsharp_adapter.compare.table import mean_and_error, summarise, tables_of, write_tables
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

    kept: list[Outcome] = []
    trained = compare(recipe, teacher_data, names, [0, 1], probes, kept.append)
    outcomes = trained.outcomes
    assert kept == outcomes
    asked = teacher.seen - looked  # by the probes, of two images and their tiles
    probes(SharpenedBackbone(teacher, trained.adapters["featsharp"], "again"))
    # Nobody asks the teacher again: not the trainings, and the probes once for each set of tile grids.
    assert asked == 2 + (teacher.seen - looked - asked) and torch.equal(probed[-1], probed[2])
    assert [outcome.probes["spread"] for outcome in outcomes] == [float(maps.detach().std()) for maps in probed[:-1]]
    assert [(outcome.upsampler, outcome.seed) for outcome in outcomes] == [(n, s) for s in (0, 1) for n in names]
    bilinear = [outcome for outcome in outcomes if outcome.upsampler == "bilinear"]
    assert bilinear[0].parameters == 0 and bilinear[0].mse_learned != bilinear[1].mse_learned
    table = write_tables(outcomes, tmp_path / "tables" / "t")
    assert (tmp_path / "tables" / "t.md").read_text() == table and table.count("\n") == 7
    assert "| spread |" in table
    stored = json.loads((tmp_path / "tables" / "t.json").read_text())
    assert [row["upsampler"] for row in stored["tables"][0]["rows"]] == names

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
    measured = {"mse_average": mse, "mse_learned": 2 * mse, "fidelity": 1 / mse, "tv": mse, "crf": mse, "mmd": mse}
    cost = {"parameters": 0, "seconds": 1.0, "milliseconds": 2.0, "mebibytes": 3.0 + seed}
    setting = {"teacher": "t", "factor": 2}
    return Outcome(setting, "tile", "digest", seed, passes=5.0, steps=3, **measured, **cost)


def test_rows_are_means_with_standard_errors() -> None:
    (row,) = summarise([outcome(seed, mse) for seed, mse in enumerate((0.1, 0.2, 0.3))])
    assert row.mse_average == pytest.approx((0.2, 0.1 / 3**0.5))
    assert row.mse_learned == pytest.approx((0.4, 0.2 / 3**0.5))
    assert row.fidelity[0] == pytest.approx((10 + 5 + 10 / 3) / 3)
    assert row.mebibytes == 5.0 and row.milliseconds == 2.0
    assert mean_and_error([3.0]) == (3.0, None)


def test_a_budget_of_passes_is_a_row_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_data_module, "load_backbone", lambda node: SmallTeacher())
    recipe = small_recipe(image_folder(tmp_path / "images"), optim__steps=1, optim__warmup=1)
    names = ["bilinear", "ridge:inputs=low+tiles"]
    data = open_teacher_data(recipe, recipes_of(recipe, names))
    asked = []

    def probes(backbone: Backbone) -> dict[str, float]:
        asked.append(backbone.passes)
        return {"probe": 1.0}

    made = compare(recipe, data, names, [0], probes, passes=[0.5, 1, 5]).outcomes
    found = [(each.upsampler[:5], each.passes, each.steps) for each in made]
    assert found == [("bilin", 1.0, 1), ("ridge", 5.0, 0), ("ridge", 2.5, 0), ("ridge", 1.0, 0)]
    assert asked == [None, None, 2.5, 1.0]
    whole, half, one = made[1:]
    assert len({whole.mse_average, half.mse_average, one.mse_average}) == 3 and half.mse_learned is None
    assert [row.passes for row in summarise(made)] == [1.0, 5.0, 2.5, 1.0]


def test_results_are_lines_that_others_can_add_to(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    for seed in (0, 1):
        append_outcome(ours, outcome(seed, 0.1))
    for seed, mse in ((1, 0.1 + 1e-5), (2, 0.3)):  # another machine's last digits differ
        append_outcome(theirs, outcome(seed, mse))
    found = read_outcomes([ours, theirs])
    assert [(each.seed, each.mse_average) for each in found] == [(0, 0.1), (1, 0.1), (2, 0.3)]
    (table,) = tables_of(found)
    assert table.rows[0].seeds == 3
    other = outcome(0, 0.2)
    other.setting["factor"] = 4
    append_outcome(theirs, other)
    assert [len(table.rows) for table in tables_of(read_outcomes([ours, theirs]))] == [1, 1]
    for line, words in (
        ("{}", "no result of a comparison"),
        ("nonsense", "line 1"),
        ('{"schema": 7}', "another schema"),
    ):
        (tmp_path / "bad.jsonl").write_text(line)
        with pytest.raises(UserError, match=words):
            read_outcomes([tmp_path / "bad.jsonl"])


def test_two_results_of_one_thing_that_differ_are_refused(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    append_outcome(ours, outcome(0, 0.1))
    for changed, words in (
        (
            outcome(0, 0.3),
            r"ours.jsonl, line 1 and .*theirs.jsonl, line 1 measured the same .* 0.1 and 0.3",
        ),
        (replace(outcome(0, 0.1), steps=900), "steps 3 and 900"),
        (replace(outcome(0, 0.1), mse_learned=None), "mse_learned 0.2 and None"),
        (replace(outcome(0, 0.1), probes={"kind miou": 30.0}), "kind miou None and 30.0"),
    ):
        theirs.unlink(missing_ok=True)
        append_outcome(theirs, changed)
        with pytest.raises(UserError, match=words):
            read_outcomes([ours, theirs])
    assert len(read_outcomes([ours, ours])) == 1


def test_a_line_has_to_hold_what_a_line_holds(tmp_path: Path) -> None:
    good, path = {"schema": 1, **asdict(outcome(0, 0.1))}, tmp_path / "theirs.jsonl"
    for name, value in (
        ("mse_average", "0.1"),
        ("mse_average", math.nan),
        ("tv", None),
        ("seed", "0"),
        ("seed", 0.5),
        ("passes", "all"),
        ("probes", {"kind": "high"}),
        ("setting", {"factor": 2}),
        ("setting", ["teacher"]),
        ("upsampler", 3),
        ("seconds", math.inf),
        ("better", True),
    ):
        path.write_text(json.dumps(good | {name: value}) + "\n")
        with pytest.raises(UserError, match="line 1 is no result of a comparison"):
            read_outcomes([path])
    path.write_text(json.dumps(good | {"passes": 5}) + "\n")  # a whole number is one too
    assert read_outcomes([path]) == [outcome(0, 0.1)] and read_outcomes([path])[0].key == outcome(0, 0.1).key
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {"seed": 1})[:90])  # what a kill leaves
    assert read_outcomes([path]) == [outcome(0, 0.1)]
    with pytest.raises(UserError, match="finite number"):
        append_outcome(tmp_path / "own.jsonl", outcome(0, math.nan))
    some = [replace(outcome(0, 0.1), probes={"kind": 1.0}), outcome(1, 0.1)]
    with pytest.raises(UserError, match="seed 1: its line has no kind"):
        summarise(some)


def test_a_measurement_counts_once_however_often_it_is_asked_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(teacher_data_module, "load_backbone", lambda node: SmallTeacher())
    recipe = small_recipe(image_folder(tmp_path / "images"), optim__steps=1, optim__warmup=1)
    ridge = "ridge:inputs=low+tiles"
    data = open_teacher_data(recipe, recipes_of(recipe, [ridge]))
    kept: list[Outcome] = []
    compare(recipe, data, [ridge], [0], keep=kept.append)
    compare(recipe, data, [ridge], [0], keep=kept.append, passes=[0.5], known=tuple(kept))
    assert [(row.passes, row.seeds) for row in summarise(kept)] == [(5.0, 1), (2.5, 1)]
    for upsamplers, seeds, words in (([ridge], [0, 1, 0], "seeds: 0 is named"), ([ridge, ridge], [0], "upsamplers")):
        with pytest.raises(UserError, match=words):
            compare(recipe, data, upsamplers, seeds)
    with pytest.raises(UserError, match=r"none of bilinear can do with 2\.5 passes"):
        compare(recipe, data, ["bilinear"], [0], passes=[2.5])


def test_what_the_same_weights_are_asked_for_is_part_of_the_setting(tmp_path: Path, monkeypatch) -> None:
    recipe = small_recipe(image_folder(tmp_path / "images"), optim__steps=1, optim__warmup=1)

    def title_and_key(reads: str | None = None, **changes: object) -> tuple[str, str]:
        teacher = SmallTeacher()
        teacher.spec = replace(teacher.spec, reads=reads)
        monkeypatch.setattr(teacher_data_module, "load_backbone", lambda node: teacher)
        changed = recipe.model_copy(update=changes)
        setting = setting_of(changed, open_teacher_data(changed, [changed]))
        return tables_of([replace(outcome(0, 0.1), setting=setting)])[0].title, digest_value(setting)

    found = [
        title_and_key(),
        title_and_key("level:1"),
        title_and_key("level:2"),
        title_and_key(teacher={"spec": "test:small0", "depth": 2}),
        title_and_key(teacher_dtype="bfloat16"),
        title_and_key(data=recipe.data.model_copy(update={"cache_gib": 0.0})),
    ]
    assert len({key for _, key in found}) == len(found)
    assert found[1][0].startswith("test:small0 (level:1), 2x")
    assert title_and_key() == found[0]


def test_a_result_of_other_code_or_another_suite_is_of_another_setting(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(teacher_data_module, "load_backbone", lambda node: SmallTeacher())
    recipe = small_recipe(image_folder(tmp_path / "images"))
    data, suite = teacher_data_module.open_teacher_data(recipe, [recipe]), tmp_path / "suite.yaml"

    def key(*changes: str) -> str:
        return digest_value(setting_of(recipe, data, [str(suite), *changes]))

    suite.write_text("data: {steps: 1}\n")
    first = key()
    assert key() == first != key("data.steps=2")
    suite.write_text("data: {steps: 3}\n")
    assert key() != first
    suite.write_text("data: {steps: 1}\n")
    monkeypatch.setattr(outcomes, "REVISION", outcomes.REVISION + 1)
    assert key() != first


def test_a_line_may_hold_what_only_some_call_the_end_of_a_line(tmp_path: Path) -> None:
    one = outcome(0, 0.1)
    one.setting["teacher"] = "a\u2028b"
    line = json.dumps({"schema": 1, **asdict(one)}, ensure_ascii=False)
    (tmp_path / "theirs.jsonl").write_text(line + "\r\n", encoding="utf-8", newline="")
    assert read_outcomes([tmp_path / "theirs.jsonl"]) == [one]


def test_the_command_trains_tabulates_and_draws(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(teacher_data_module, "load_backbone", lambda node: SmallTeacher())
    recipe = small_recipe(image_folder(tmp_path / "images"), optim__steps=1, optim__warmup=1)
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    arguments = ["compare", str(tmp_path / "recipe.yaml"), "--upsamplers", "bilinear", "s2", "--seeds", "0"]
    assert guard(main, [*arguments, "--pictures", "2", "--out", str(tmp_path / "out" / "t")]) == 0
    printed = capsys.readouterr().out
    assert "| test:small0 | s2 |" in printed
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["t-test-small0.png", "t.html", "t.json", "t.jsonl", "t.md"]
    assert "data:image/png" in (tmp_path / "out" / "t.html").read_text()
    before = (tmp_path / "out" / "t.jsonl").read_text()
    assert guard(main, [*arguments, "--pictures", "2", "--out", str(tmp_path / "out" / "t")]) == 0
    assert capsys.readouterr().out.count(": known") == 2 and (tmp_path / "out" / "t.jsonl").read_text() == before
    assert guard(main, [*arguments, "--pictures", "0", "--out", str(tmp_path / "out" / "v1.0")]) == 0
    assert {"v1.0.jsonl", "v1.0.md", "v1.0.json", "v1.0.html"} <= {path.name for path in (tmp_path / "out").iterdir()}
    with RunLock(tmp_path / "out" / "t.jsonl", is_file=True):
        assert guard(main, [*arguments, "--out", str(tmp_path / "out" / "t")]) == 2
    assert "is in use" in capsys.readouterr().err
    assert guard(main, [*arguments[:2], "--upsamplers", "featsharp:blok=linear", "--out", "x"]) == 2
    assert 'did you mean "block"' in capsys.readouterr().err
    assert guard(main, [*arguments[:2], "--upsamplers", "bilinar", "--out", "x"]) == 2
    assert 'did you mean "bilinear"' in capsys.readouterr().err
