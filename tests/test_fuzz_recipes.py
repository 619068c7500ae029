"""Recipes and suites as untrusted text: whatever is changed in a shipped one, words or a recipe that makes sense."""

from pathlib import Path

import pytest

from common.errors import UserError
from common.recipes import load_recipe
from distill.recipe import read
from eval_suite.suite import load_suite
from featsharp_adapter.recipe import AdapterRecipe
from tests.fuzz_recipes import RECIPES, SLOW_SECONDS, TEXTS, command_of, fuzz


def test_a_few_mutations_are_answered_in_words() -> None:
    found = fuzz(60, seed=7)
    assert [each for each in found if each.error] == []
    assert all(0 < len(each.said.splitlines()) <= 3 for each in found if not each.accepted)


@pytest.mark.slow
def test_a_thousand_mutations(capsys: pytest.CaptureFixture[str]) -> None:
    found = fuzz(1000, seed=0)
    with capsys.disabled():
        print("\n".join(f"accepted: {each.what}" for each in found if each.accepted))
    assert [each for each in found if each.error or each.seconds > SLOW_SECONDS] == []


@pytest.mark.parametrize("file", ["debug.yaml", "adapters/tiny_clip.yaml", "suites/embedded.yaml"])
def test_every_hostile_text_is_refused(tmp_path: Path, file: str) -> None:
    _, load = command_of(RECIPES / file)
    for number, text in enumerate(TEXTS):
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(
            text.format(path=path.name).encode("utf-8", "surrogatepass")
            if "{path}" in text
            else text.encode("utf-8", "surrogatepass")
        )
        with pytest.raises(UserError):
            load(path, [])


DISTILL = [
    ("name=../../up", "no name"),
    ("name=", "name"),
    ("optim.steps=true", "true or false"),
    ("optim.warmup_steps=13", "only 12 steps"),
    ("optim.freeze_body_steps=12", "never learns"),
    ("optim.clip=1e-30", "beyond|greater"),
    ("optim.clip=0.000000000001", "greater than or equal"),
    ("loss.beta=.inf", "finite"),
    ("loss.beta=inf", "finite"),
    ("optim.lr=nan", "finite"),
    ("optim.betas=[0.9, .nan]", "finite"),
    ("optim.betas=[0.9, 1]", "less than 1"),
    ("engine.threads=1000000", "less than or equal to 1024"),
    ("seed=-1", "greater than or equal"),
    ("data.size=[0, 32]", "greater than or equal"),
    ("teachers.keys={backbone: 'tiny:clip'}", "cannot name"),
    ("teachers.train={backbone: 'tiny:clip'}", "cannot name"),
    ("teachers.fine.backbone=nowhere", "PREFIX:NAME"),
    ("teachers.fine.backbone={spec: [1]}", "PREFIX:NAME"),
    ("data={train: x, train: y}", "comes twice"),
]


@pytest.mark.parametrize(("override", "message"), DISTILL)
def test_nonsense_in_a_distillation_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(RECIPES / "debug.yaml", [override])


ADAPTER = [
    ("optim.warmup=301", "only 300 steps"),
    ("optim.clip=1e-12", "greater than or equal"),
    ("data.zoom=[0, 2]", "zoom"),
    ("views.shift=2", "less than or equal"),
    ("views.zoom=[2, 1]", "zoom is a range"),
    ("seed=true", "true or false"),
    ("chunk=.inf", "finite"),
]


@pytest.mark.parametrize(("override", "message"), ADAPTER)
def test_nonsense_in_an_adapter_recipe_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(AdapterRecipe, RECIPES / "adapters" / "tiny_clip.yaml", [override])


SUITE = [
    ("name=../../up", "no name"),
    ("seed=true", "true or false"),
    ("probes.knn.k=true", "true or false"),
    ("probes.knn.temperature=.inf", "finite"),
    ("data.scenes.workers=1000000", "less than or equal to 1024"),
    ("data.scenes.size=1000000000", "less than or equal"),
]


@pytest.mark.parametrize(("override", "message"), SUITE)
def test_nonsense_in_a_suite_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_suite(RECIPES / "suites" / "embedded.yaml", [override])


def test_files_that_extend_without_end_are_refused(tmp_path: Path) -> None:
    for number in range(20):  # each reads the next one twice: a million files
        (tmp_path / f"{number}.yaml").write_text(f"extends: [{number + 1}.yaml, {number + 1}.yaml]\n")
    (tmp_path / "20.yaml").write_text("a: 1\n")
    with pytest.raises(UserError, match="more than 64 files"):
        read(tmp_path / "0.yaml")
    for parent in ("/dev/zero", str(tmp_path), "nul\\0l", "x" * 5000):
        (tmp_path / "x.yaml").write_text(f'extends: "{parent}"\n')
        with pytest.raises(UserError):
            read(tmp_path / "x.yaml")
