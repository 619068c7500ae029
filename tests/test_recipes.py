"""Every recipe in the repository loads, validates and says what it must; the big ones build on the meta device."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import Sam3VideoConfig

from common.recipes import load_recipe
from distill.recipe import Recipe, read, read_arms, runs_of
from distill.student.model import HeadSpec, Student
from eval_suite.suite import Suite
from featsharp_adapter.recipe import AdapterRecipe
from teachers.contracts import Backbone
from teachers.known import KNOWN
from teachers.registry import load_backbone

ROOT = Path(__file__).parents[1] / "recipes"
ALL = sorted(ROOT.rglob("*.yaml"))
SUITES = [path for path in ALL if path.parent.name == "suites"]
ADAPTERS = [path for path in ALL if path.parent.name == "adapters"]
RUNS = [path for path in ALL if path not in SUITES and path not in ADAPTERS]
NAMES = ("radio_b", "radio_l", "c_radio_v4", "dfn_clip_h14_378", "siglip_so400m_14_384")
REAL = [path for path in ALL if path.stem in NAMES]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def head(path: Path) -> str:
    """The comment a recipe opens with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def on_meta(node: str | Mapping[str, object]) -> Backbone:
    fields = {"spec": node} if isinstance(node, str) else dict(node)
    return load_backbone({**fields, "device": "meta"})


def test_all_kinds_are_found() -> None:
    assert len(SUITES) >= 1 and len(ADAPTERS) >= 4 and len(RUNS) >= 4 and len(REAL) == len(NAMES)


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_runs_validate(path: Path) -> None:
    recipe = read(path)
    if recipe.arms:
        assert set(read_arms(path)) == {run for runs in runs_of(recipe).values() for run in runs}


@pytest.mark.parametrize("path", SUITES, ids=name)
def test_suites_validate(path: Path) -> None:
    assert load_recipe(Suite, path).probes


@pytest.mark.parametrize("path", ADAPTERS, ids=name)
def test_adapters_validate(path: Path) -> None:
    assert load_recipe(AdapterRecipe, path).factor >= 2


@pytest.mark.parametrize("path", REAL, ids=name)
def test_heads_of_real_recipes_say_what_they_cost(path: Path) -> None:
    said = head(path).lower()
    for word in ("command", "hardware", "cost", "unverified"):
        assert word in said


@pytest.fixture(scope="module")
def radio_l() -> Recipe:
    return read(ROOT / "radio_l.yaml")


# (native side, patch, spatial width, summary width): the teachers' own papers and configurations.
RADIO_TEACHERS = {
    "dfn_clip": (378, 14, 1280, 1024),
    "siglip": (378, 14, 1152, 1152),
    "dinov2": (896, 14, 1536, 1536),
    "sam": (1024, 16, 1280, None),
}


@pytest.mark.parametrize("teacher", RADIO_TEACHERS)
def test_radio_teachers_build_at_their_true_size(radio_l: Recipe, teacher: str) -> None:
    spec = on_meta(radio_l.teachers[teacher].backbone).spec
    side, patch, spatial, summary = RADIO_TEACHERS[teacher]
    assert (spec.native_size, spec.patch_size) == ((side, side), patch)
    assert (spec.spatial_dim, spec.summary_dim) == (spatial, summary)
    assert spec.digest == "meta"
    assert spec.resizable or radio_l.teachers[teacher].input != "match"


def test_tiles_of_the_clip_teachers_outgrow_the_student(radio_l: Recipe) -> None:
    """FeatSharp, section 4.5: 3x is the smallest factor whose grid (81) exceeds the student's (64)."""
    student = radio_l.data.size[0] // 16
    for teacher in ("dfn_clip", "siglip"):
        rows = on_meta(radio_l.teachers[teacher].backbone).spec.native_grid[0]
        assert rows == 27
        assert 2 * rows < student == 64 < radio_l.teachers[teacher].factor * rows == 81


@pytest.fixture(scope="module")
def c_radio_v4() -> Recipe:
    return read(ROOT / "c_radio_v4.yaml")


@pytest.mark.parametrize(
    ("teacher", "pixels", "patch", "widths"),
    [("siglip2", 384, 16, (1536, 1536)), ("dinov3", 1152, 16, (4096, 4096)), ("sam3", 1008, 14, (1024, None))],
)
def test_c_radio_v4s_teachers_meet_on_the_students_grid(
    c_radio_v4: Recipe, teacher: str, pixels: int, patch: int, widths: tuple[int, int | None], tmp_path: Path
) -> None:
    """C-RADIOv4, section 3: 24 x 3, 1152/16 and 1008/14 are all 72, the student's grid at 1152 px."""
    node = c_radio_v4.teachers[teacher].backbone
    if teacher == "sam3":  # a gated repository: its configuration is the library's default
        Sam3VideoConfig().save_pretrained(tmp_path)
        row = KNOWN["sam3"]
        assert row.short == node
        node = {**row.options, "spec": f"transformers:{tmp_path}", "mean": [0.5] * 3, "std": [0.5] * 3}
    spec = on_meta(node).spec
    assert (spec.native_size, spec.patch_size) == ((pixels, pixels), patch)
    assert (spec.spatial_dim, spec.summary_dim) == widths
    assert spec.resizable or c_radio_v4.teachers[teacher].input != "match"
    assert spec.native_grid[0] * c_radio_v4.teachers[teacher].effective_factor == 72 == c_radio_v4.data.size[0] // 16


def test_c_radio_v4s_student_builds_on_meta(c_radio_v4: Recipe) -> None:
    heads = {"siglip2": HeadSpec(1536, 1536), "dinov3": HeadSpec(4096, 4096), "sam3": HeadSpec(None, 1024)}
    with torch.device("meta"):
        student = Student(c_radio_v4.student, c_radio_v4.data.size, heads)
    assert (student.vit.embed_dim, len(student.vit.blocks)) == (1280, 32)
    assert student.vit.patch_embed.grid_size == (128, 128)  # of 2048 px, of which it sees crops


@pytest.mark.parametrize(("recipe", "width", "depth"), [("radio_l", 1024, 24), ("radio_b", 768, 12)])
def test_radio_students_build_on_meta(recipe: str, width: int, depth: int) -> None:
    loaded = read(ROOT / f"{recipe}.yaml", ["student.weights=null"])
    heads = {key: HeadSpec(summary, spatial) for key, (_, _, spatial, summary) in RADIO_TEACHERS.items()}
    with torch.device("meta"):
        student = Student(loaded.student, loaded.data.size, heads)
    assert (student.vit.embed_dim, len(student.vit.blocks)) == (width, depth)
    assert student.vit.patch_embed.grid_size == (128, 128)  # of 2048 px, of which it sees crops
    answer = student(torch.zeros(1, 3, *loaded.data.size, device="meta"))
    assert answer["dfn_clip"].spatial.shape == (1, 1280, 64, 64)
