"""What is not there is listed at once, with the command that makes it; --prepare runs the commands."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from common.errors import UserError
from common.recipes import load_recipe
from distill import preflight as missing
from distill.preflight import Missing, find_missing, make, refuse
from distill.recipe import Recipe, read, read_arms
from distill.recipe_engine import EvalNode
from eval_suite.suite import load_suite
from featsharp_adapter.recipe import AdapterRecipe

ROOT = Path(__file__).parents[2]
NOWHERE = "runs/adapters/of/nowhere"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def quickstart(*overrides: str) -> Recipe:
    return read(ROOT / "recipes" / "quickstart.yaml", overrides)


def test_the_quickstart_needs_nothing() -> None:
    assert find_missing([quickstart()]) == []
    for name in ("quickstart.yaml", "ablations/quickstart_upsamplers.yaml"):
        assert find_missing(read_arms(ROOT / "recipes" / name, ["seeds=[]"]).values()) == []
    refuse([])


@pytest.mark.parametrize(
    ("upsampler", "factor", "extra"),
    [("featsharp", 2, ()), ("featup", 2, ("upsampler=featup",)), ("featsharp", 4, ("factor=4",))],
)
def test_an_adapter_comes_with_its_command(upsampler: str, factor: int, extra: tuple[str, ...]) -> None:
    recipe = quickstart(
        f"teachers.clip.upsampler={upsampler}",
        f"teachers.clip.factor={factor}",
        f"teachers.clip.adapters.{upsampler}={NOWHERE}",
    )
    (found,) = find_missing([recipe, recipe])
    assert found.what.startswith(f"teachers.clip: no adapter at {NOWHERE}")
    assert found.command == (
        "-m",
        "featsharp_adapter.train",
        "adapters/tiny_clip.yaml",
        f"out={NOWHERE}",
        *extra,
    )


def test_a_command_leaves_out_what_another_upsampler_was_told() -> None:
    """The recipe is FeatSharp's, with options that ridge does not have; the command must be one that starts."""
    wanted = ["teachers.dfn_clip.upsampler=ridge", f"teachers.dfn_clip.adapters.ridge={NOWHERE}"]
    found = missing.missing_adapters(read(ROOT / "recipes" / "radio_l.yaml", wanted))
    (command,) = {each.command for each in found if NOWHERE in each.what}
    assert command is not None
    made = load_recipe(AdapterRecipe, command[2], command[3:])
    assert (made.upsampler, made.factor, made.options, made.out) == ("ridge", 3, {}, NOWHERE)


def test_all_is_listed_at_once() -> None:
    recipe = quickstart(
        f"teachers.dino.adapters.featsharp={NOWHERE}", "student.weights=gone.safetensors", "data.train=imagefolder:gone"
    )
    with pytest.raises(UserError) as told:
        refuse(find_missing([recipe]))
    said = str(told.value)
    assert "accelerate launch -m featsharp_adapter.train adapters/tiny_dino.yaml" in said
    assert "no file and no folder gone.safetensors" in said and "data.train:" in said and "--prepare" in said


def test_an_unknown_teachers_adapter_has_no_command(write_recipe: Callable[..., Path]) -> None:
    overrides = ["teachers.coarse.upsampler=featsharp", f"teachers.coarse.adapters.featsharp={NOWHERE}"]
    (found,) = find_missing([read(write_recipe(), overrides)])
    assert found.command is None
    with pytest.raises(UserError) as told:
        refuse([found])
    assert "--prepare" not in str(told.value)


def test_preparing_runs_the_commands_and_leaves_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With plain scripts in the place of an adapter's training."""
    monkeypatch.setattr(missing, "LAUNCH", ())
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("import pathlib, sys; pathlib.Path(sys.argv[1]).touch()")
    bad.write_text("raise SystemExit(1)")
    by_hand = Missing("data", None)
    assert make([by_hand, Missing("adapter", (str(good), str(tmp_path / "made")))]) == [by_hand]
    assert (tmp_path / "made").exists()
    with pytest.raises(UserError, match="could not be prepared: adapter"):
        make([Missing("adapter", (str(bad),))])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--prepare is for one process"):
        make([])


def test_the_real_recipes_look_where_the_adapter_recipes_write() -> None:
    """The command that makes an adapter of radio_l is its adapter recipe as it stands, in both partitions."""
    recipes = [read(ROOT / "recipes" / name) for name in ("radio_l.yaml", "c_radio_v4.yaml")]
    commands = [each.command for recipe in recipes for each in missing.missing_adapters(recipe)]
    assert {command[2:] for command in commands if command} == {
        (f"adapters/{name}.yaml",) for name in ("dfn_clip_h14_378", "siglip_so400m_14_384", "siglip2_g_384")
    }
    assert all(commands)


def problems(*overrides: str) -> str:
    return "\n".join(map(str, find_missing([quickstart(*overrides)])))


def test_a_suite_that_cannot_be_read_is_told_before_training(tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text("name: s\ndata: {}\nprobes: {}\n", encoding="utf-8")
    assert "eval.suite: " in problems(f"eval.suite={suite}")


def test_missing_data_of_the_suite_is_told_before_training() -> None:
    said = problems("eval.suite=recipes/suites/photographs.yaml")
    assert "eval.suite: data" in said and "python -m eval_suite data check" in said


def test_an_adaptor_that_the_student_will_not_have_is_told_before_training() -> None:
    said = problems('eval.overrides=["probes.retrieval.adaptor=dfn_clip"]')
    assert 'probe retrieval asks for adaptor "dfn_clip", the student has clip' in said
    assert "eval.overrides=[probes.retrieval.adaptor=NAME]" in said


def adaptors_asked_in_vain(recipe: Recipe, suite: Path, *overrides: str) -> set[str]:
    """Probes of a suite that ask for an adaptor the recipe's student will not have."""
    asked = recipe.model_copy(update={"eval": EvalNode(suite=str(suite), overrides=list(overrides))})
    told = "\n".join(map(str, missing.suite_problems(asked)))
    assert "eval.suite: recipes" not in told  # the suite could be read
    return set(re.findall(r'probe (\w+) asks for adaptor "', told))


@pytest.mark.parametrize("suite", sorted((ROOT / "recipes" / "suites").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_suite_is_checked_against_every_shipped_recipe(suite: Path) -> None:
    """No probe that would drop out is passed over, and what the message says to do mends it."""
    probes = load_suite(suite).probes
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        recipe = read(path)
        adaptors = {name: getattr(probe, "adaptor", None) for name, probe in probes.items()}
        wanted = {name for name, adaptor in adaptors.items() if adaptor not in (None, *recipe.teachers)}
        assert adaptors_asked_in_vain(recipe, suite) == wanted, path
        if wanted and wanted < set(probes):
            assert not adaptors_asked_in_vain(recipe, suite, *(f"probes.{name}=null" for name in wanted))


@pytest.mark.parametrize("name", ["radio_b", "radio_l", "radio_h", "c_radio_v4"])
def test_a_flagships_head_says_how_to_ask_the_real_suite(name: str) -> None:
    """# Probing    eval={suite: recipes/suites/radio.yaml, overrides: [...]}"""
    path = ROOT / "recipes" / f"{name}.yaml"
    head = path.read_text() if "# Probing" in path.read_text() else (ROOT / "recipes" / "radio_l.yaml").read_text()
    said = re.search(r"^# Probing +'?eval=(\{.*?\})", head, flags=re.M | re.S)
    assert said is not None
    node = EvalNode.model_validate(yaml.safe_load(said[1].replace("\n#", "")))
    assert not adaptors_asked_in_vain(read(path), Path(node.suite), *node.overrides)


@pytest.mark.parametrize("content", [b"no weights", None])
def test_student_weights_are_loaded_before_teachers(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "start.safetensors"
    if content:
        path.write_bytes(content)
    else:
        save_file({"pos_embed": torch.zeros(1, 5, 7)}, path)
    assert "student.weights" in problems(f"student.weights={path}")


def test_a_full_disk_ahead_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(ROOT)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    assert "checkpoints need at least" in problems()
