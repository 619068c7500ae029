"""A run with everything on: resumed anywhere, beside other arms and exported, it is the run it would have been."""

import copy
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import yaml
from full_run import full_recipe
from launching import start as launch_script
from run_logs import without_time
from safetensors.torch import load_file, save_file
from small_run import train

from common.errors import UserError
from common.jsonl import read_log
from distill.exported import ExportedStudent, from_pretrained
from distill.recipe import Recipe, read, read_arms
from distill.student.model import timm_options
from distill.student.spectral import fold_scales
from distill.student.timm_export import to_timm
from distill.targets import statistics as known_statistics
from distill.targets.targets import Targets
from distill.training.arm_groups import group, upstream
from distill.training.arms import Arm, run_together
from distill.training.engine import start
from distill.training.engine_state import read_student
from imagery.sources import open_source
from teachers.registry import load_backbone


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(full_recipe(folder / "runs", **changes)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished run, with every checkpoint kept."""
    return train(read(write(tmp_path_factory.mktemp("full"))))


def assert_equal_runs(ours: Path, theirs: Path, steps: int = 5) -> None:
    """Logs but for the clock; weights, average, statistics, moments, random states and places to the bit."""
    assert without_time(read_log(ours / "log.jsonl")) == without_time(read_log(theirs / "log.jsonl"))
    last = f"checkpoints/step-{steps:08d}"
    names = sorted(path.relative_to(theirs) for path in (theirs / last).rglob("*") if path.is_file())
    assert {"average.safetensors", "targets.safetensors", "rank-0.json"} <= {name.name for name in names}
    for file in [Path("student/model.safetensors"), *names]:
        one, other = (contents(folder / file) for folder in (ours, theirs))
        assert same(one, other), file


def contents(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix in (".bin", ".pkl", ".pt"):
        return torch.load(path, weights_only=False)  # files of our own making: numpy's random state is among them
    return path.read_text(encoding="utf-8")


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool((one == other).all()) if hasattr(one, "all") else bool(one == other)


def test_everything_is_in_the_report(whole: Path) -> None:
    lines = read_log(whole / "log.jsonl")
    assert all(set(line["losses"]) == {"coarse/summary", "coarse/spatial", "fine/spatial", "mesa"} for line in lines)
    assert all(line["loss"] == pytest.approx(sum(line["losses"].values()), rel=1e-5) for line in lines)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
def test_going_on_after_any_step_changes_nothing(whole: Path, tmp_path: Path, step: int) -> None:
    shutil.copytree(whole, tmp_path / "runs" / "small")
    recipe = read(whole / "recipe.yaml", [f"out={tmp_path / 'runs'}"])
    for path in [*sorted((recipe.folder / "checkpoints").iterdir())[step:], recipe.folder / "student"]:
        shutil.rmtree(path)
    train(recipe)
    assert_equal_runs(recipe.folder, whole)


CHANGES = {
    "student.cpe=128": "student.cpe: 64 -> 128",
    "student.damp=0.2": "student.damp: 0.1 -> 0.2",
    "loss.shift=false": "loss.shift: True -> False",
    "loss.mesa=1": "loss.mesa: 0.5 -> 1.0",
    "ema.decay=0.5": "ema.decay: 0.9 -> 0.5",
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_recipe_does_not_go_on(whole: Path, change: str) -> None:
    recipe = read(whole / "recipe.yaml", [change])
    with pytest.raises(UserError, match=CHANGES[change].replace(".", r"\.").replace("[", r"\[")):
        train(recipe)


def test_beside_another_arm_it_is_the_same_run(whole: Path, tmp_path: Path) -> None:
    arms = {
        "other": ["student.seed=3", "student.damp=0.3", "loss.mesa=0", "ema.decay=0.5", "teachers.coarse.upsampler=s2"],
        "small": [],
    }
    recipes = read_arms(write(tmp_path, arms=arms, baseline="other", name="arms"))
    accelerators = start(recipes)
    made = [Arm(name, recipe, accelerators[name]) for name, recipe in recipes.items()]
    (members,) = group((arm, arm.recipe) for arm in made)
    run_together(members, open_source(recipes["small"].data.train), untrained=None)
    assert_equal_runs(recipes["small"].folder, whole)
    other = read_log(recipes["other"].folder / "log.jsonl")
    assert without_time(other) != without_time(read_log(whole / "log.jsonl"))
    unshifted = recipes["small"].model_copy(update={"loss": recipes["small"].loss.model_copy(update={"shift": False})})
    assert upstream(unshifted) != upstream(recipes["small"])  # its teachers see other crops


# Export


@pytest.fixture(scope="module")
def student(whole: Path) -> ExportedStudent:
    return from_pretrained(whole)


IMAGES = torch.rand(2, 3, 40, 24, generator=torch.Generator().manual_seed(2))


def test_the_average_is_exported_baked(whole: Path, student: ExportedStudent) -> None:
    average = load_file(whole / "checkpoints" / "step-00000005" / "average.safetensors")
    state, baked = student.net.state_dict(), fold_scales(average)
    bodies = [name for name in baked if name.startswith("vit.")]
    assert len(bodies) < len([name for name in average if name.startswith("vit.")])
    assert all(torch.equal(state[name], baked[name]) for name in bodies)
    trained = read_student(whole / "checkpoints" / "step-00000005")
    assert not torch.equal(trained["vit.norm.weight"], state["vit.norm.weight"])
    assert student.config["averaged"] == 0.9 and not student.config["student"]["spectral"]
    assert "moving average over training (decay 0.9)" in (whole / "student" / "README.md").read_text()


@torch.no_grad()
def test_intermediate_maps_of_an_exported_student(student: ExportedStudent) -> None:
    first, last = student.intermediate(IMAGES, [0, 1])
    assert torch.equal(last, student(IMAGES).spatial) and first.shape == last.shape == (2, 24, 5, 3)
    with pytest.raises(UserError, match="has blocks 0 to 1, no block 2"):
        student.intermediate(IMAGES, [2])


@torch.no_grad()
def test_a_saved_student_is_the_same_again(student: ExportedStudent, tmp_path: Path) -> None:
    folder = student.save_pretrained(tmp_path / "again")
    again = load_backbone(f"run:{folder}")
    assert again.spec.digest == student.spec.digest and torch.equal(again(IMAGES).summary, student(IMAGES).summary)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}


@torch.no_grad()
def test_timm_gives_the_same_tokens(student: ExportedStudent) -> None:
    """With cropped positions: laid out for one size, odd ones too; the state loads into what timm itself makes."""
    for images in (IMAGES, torch.rand(1, 3, 32, 32)):
        size = tuple(images.shape[-2:])
        model = to_timm(student, size)
        assert type(model).__module__.startswith("timm.")
        tokens = model.forward_features((images - student.net.mean) / student.net.std)
        features = student(images)
        assert torch.allclose(
            tokens[:, model.num_prefix_tokens :].transpose(1, 2), features.spatial.flatten(2), atol=1e-5
        )
        assert torch.allclose(tokens[:, 0], features.summary, atol=1e-5)
        fresh = timm.create_model(student.net.node.model, **timm_options(student.net.node, 2, size))
        fresh.load_state_dict(model.state_dict())


@torch.no_grad()
def test_the_cards_own_lines_load_the_student_into_timm(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student without cropped positions: the snippet as it stands in the card, at a size it was not trained at."""
    folder = trained / "student"
    snippet = (folder / "README.md").read_text().split("## timm")[1].split("```python\n")[1].split("```")[0]
    plain = from_pretrained(folder)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"normalised": (IMAGES - plain.net.mean) / plain.net.std}
    exec(snippet, names)
    tokens, features = names["tokens"], plain(IMAGES)
    patches = tokens[:, names["model"].num_prefix_tokens :]
    assert torch.equal(patches.transpose(1, 2), features.spatial.flatten(2)) and torch.equal(
        tokens[:, 0], features.summary
    )


def test_windows_have_no_timm_form(student: ExportedStudent) -> None:
    windowed = copy.deepcopy(student)
    windowed.net.vit.node = windowed.net.node.model_copy(update={"window": 2})
    with pytest.raises(UserError, match="attends in windows of 2 tokens at 32x32 px"):
        to_timm(windowed)


def test_a_student_on_the_hub_goes_by_name(
    student: ExportedStudent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's own cache without a network, as on a cluster node; what is not there is said."""
    repository = tmp_path / "models--org--student"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    student.save_pretrained(repository / "snapshots" / ("a" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for found in (from_pretrained("org/student"), load_backbone("run:hub:org/student")):
        assert found.spec.name == "run:hub:org/student" and found.spec.digest == student.spec.digest
    with pytest.raises(UserError, match="no student at org/other"):
        from_pretrained("org/other")
    with pytest.raises(UserError, match="no exported student"):
        from_pretrained(tmp_path)


# Statistics of another run


def test_statistics_of_another_run_are_taken_as_they_are(whole: Path, tmp_path: Path) -> None:
    file = whole / "checkpoints" / "step-00000005" / "targets.safetensors"
    assert known_statistics.find(file.parent) == known_statistics.find(file) == file
    fitted = known_statistics.find(whole)  # kept as soon as it is fitted, before the first checkpoint
    assert fitted == whole / "normaliser" / "targets.safetensors" and same(load_file(fitted), load_file(file))
    recipe = read(write(tmp_path), [f"normaliser.load={whole}", "optim.steps=1", "optim.warmup_steps=1"])
    folder = train(recipe)
    ours = load_file(folder / "checkpoints" / "step-00000001" / "targets.safetensors")
    assert same(ours, load_file(file))
    first = without_time(read_log(folder / "log.jsonl"))[0]
    assert first["loss"] == read_log(whole / "log.jsonl")[0]["loss"]  # estimated or loaded, the numbers are the same


def test_statistics_of_others_are_refused(whole: Path, tmp_path: Path) -> None:
    def load(path: Path, *overrides: str) -> dict[str, torch.Tensor]:
        recipe: Recipe = read(whole / "recipe.yaml", list(overrides))
        return known_statistics.load(path, Targets(recipe, torch.device("cpu")))

    with pytest.raises(UserError, match=r"no targets\.safetensors at .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="other weights of teacher fine"):
        load(whole, "teachers.fine.backbone.model_args.depth=2")
    state = load_file(whole / "checkpoints" / "step-00000005" / "targets.safetensors")
    save_file({name: tensor for name, tensor in state.items() if "fine" not in name}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match="no statistics of teacher fine"):
        load(tmp_path / "part.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "broken.safetensors")


# Several processes


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 2, 3])
def test_two_processes_go_on_to_the_bit(tmp_path: Path, stage: int | None) -> None:
    """Plain data parallelism, ZeRO-2 and ZeRO-3: the last two checkpoints and the student taken away, and on again."""
    path = write(tmp_path)
    launch_script("distill/run.py", str(path), processes=2, stage=stage)
    folder, first = tmp_path / "runs" / "small", tmp_path / "first"
    shutil.copytree(folder, first)
    for gone in ("checkpoints/step-00000005", "checkpoints/step-00000004", "student"):
        shutil.rmtree(folder / gone)
    launch_script("distill/run.py", str(path), processes=2, stage=stage)
    assert without_time(read_log(folder / "log.jsonl")) == without_time(read_log(first / "log.jsonl"))
    for file in ("student/model.safetensors", "checkpoints/step-00000005/average.safetensors"):
        assert same(load_file(folder / file), load_file(first / file)), file


@pytest.mark.slow
def test_the_average_is_the_same_under_every_engine(tmp_path: Path) -> None:
    """ZeRO-3 gathers the student for the average's step; without chance and shifts, all engines agree."""
    changes = ["student.drop_path=0", "student.damp=0", "student.cpe=null", "student.position_dropout=0",
               "student.window_train=null", "loss.shift=false", "loss.drop_teachers=0"]  # fmt: skip
    path, found = write(tmp_path), {}
    for stage in (None, 3):
        launch_script("distill/run.py", str(path), f"name=zero{stage}", *changes, processes=2, stage=stage)
        found[stage] = load_file(
            tmp_path / "runs" / f"zero{stage}" / "checkpoints" / "step-00000005" / "average.safetensors"
        )
    assert all(torch.allclose(tensor, found[3][name], rtol=1e-3, atol=1e-4) for name, tensor in found[None].items())
