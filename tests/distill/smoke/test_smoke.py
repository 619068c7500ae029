"""The smoke runs every part for real and holds it to the plan; here at the sizes of a debug overlay."""

from pathlib import Path

import pytest
import torch

from common.errors import UserError
from distill.planning.counting import Cost
from distill.planning.plan import Plan
from distill.recipe import Recipe, read
from distill.smoke.measured import Part, as_table
from distill.smoke.smoke import smoke
from distill.smoke.stand_in import StandIn, stand_in_node
from distill.smoke.student_parts import smoke_recipe, student_parts
from distill.smoke.teacher_parts import teacher_parts
from teachers.registry import load_backbone

OVERLAY = Path(__file__).parents[3] / "recipes" / "debug_overlays" / "radio_l_debug.yaml"
#: Of what the plan says: FLOPs exactly, memory to the small change of what a kernel asks for beside its results.
MEMORY = 0.15
CPU = torch.device("cpu")


def recipe(tmp_path: Path, *changes: str) -> Recipe:
    return read(OVERLAY, [f"out={tmp_path}", "engine.threads=1", *changes])


def assert_as_planned(parts: list[Part]) -> None:
    compared = [(part, part.real, part.planned) for part in parts]
    assert any(planned for _, _, planned in compared)
    for part, real, planned in compared:
        if real is not None and planned is not None:
            assert real.flops == pytest.approx(planned.flops, rel=0.02), part
            assert real.peak == pytest.approx(planned.peak, rel=MEMORY), part


def test_a_teacher_and_its_adapter_are_as_planned(tmp_path: Path) -> None:
    """The adapter is not trained yet: one of the upsampler's own options stands for it, and trains a step."""
    made = list(teacher_parts(recipe(tmp_path, "teachers.dfn_clip.upsampler=featsharp"), "dfn_clip", CPU, bf16=False))
    assert_as_planned(made)
    shown = [part.what for part in made]
    assert shown[1] == "dfn_clip: one pass of small at 32x32 px"
    assert "featsharp, 4x4 to 12x12 tokens, 32 wide" in shown[2] and "a step of training that adapter" in shown[3]


def test_a_stand_in_has_its_teachers_shapes() -> None:
    node = {"name": "x", "patch_size": 14, "spatial_dim": 20, "summary_dim": 6, "native_size": [58, 30]}
    made = StandIn(**node, resizable=False)
    again = load_backbone(stand_in_node(made.spec))
    assert again.spec.spatial_dim == 20 and again.spec.native_size == (58, 30)  # no multiple of the patch, as SigLIP's
    found = again(torch.rand(2, 3, 58, 30))
    assert found.summary is not None and found.summary.shape == (2, 6) and found.spatial.shape == (2, 20, 4, 2)


def test_the_table_says_how_far_the_plan_was_off() -> None:
    text = as_table("title", [Part("a", 1.26, Cost(3e12, 2**30), Cost(2e12, 2**31), "note", 3 * 2**29)])
    assert text.splitlines()[-1] == "| a (note) | 1.3 | 1 | 2 | -50.0 % | 1.50 | 3 | 2 | +50.0 % |"
    with pytest.raises(UserError, match="--part nobody: the parts of radio_l_debug are student, dfn_clip"):
        smoke(recipe(Path("unused")), ["nobody"])


def test_what_went_through_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another recipe that shows the teacher the same takes its rows too; one that shows it other sizes does not."""
    first = smoke(recipe(tmp_path), ["dinov2", "dinov2"])  # asked for twice, measured and shown once
    assert len(set(first.splitlines())) == len(first.splitlines())
    assert "measured before" not in capsys.readouterr().out
    again = smoke(
        recipe(tmp_path, "name=other", "student.embed_dim=16", "teachers.dinov2.adapters={tile: x}"), ["dinov2"]
    )
    assert "dinov2: measured before" in capsys.readouterr().out
    assert again.splitlines()[2:] == first.splitlines()[2:]
    smoke(recipe(tmp_path, "stages.first.partitions.low.sizes=[24]"), ["dinov2"])
    assert "measured before" not in capsys.readouterr().out


def test_a_run_that_begins_with_another_is_tried_without_it(tmp_path: Path) -> None:
    small = smoke_recipe(recipe(tmp_path, "start_from=run:elsewhere", "start_optimiser=true"), tmp_path)
    assert small.start_from is None and not small.start_optimiser


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_student_trains_resumes_and_is_exported(tmp_path: Path) -> None:
    small = smoke_recipe(recipe(tmp_path), tmp_path)
    made = {part.what: part for part in student_parts(small)}
    whole = made["student: 3 updates"]
    assert whole.real is not None and whole.planned is not None
    # Fitting PHI-S takes products of its own that no plan counts: 1 % of radio_b's smoke, 7 % of one this small.
    assert whole.planned.flops < whole.real.flops < 1.1 * whole.planned.flops
    # On a CPU the copy of weights and moments that a thread writes may live while the last update runs.
    copied = 12 * Plan(small, 1, bf16=False).parameters
    assert (1 - MEMORY) * whole.planned.peak < whole.real.peak < (1 + MEMORY) * (whole.planned.peak + copied)
    assert {f"features at {side}x{side} px" for side in (16, 32, 64)} < set(made)
    assert (tmp_path / "radio_l_debug-smoke" / "student" / "model.safetensors").is_file()
