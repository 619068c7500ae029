"""Files of ours may come from anywhere: what they name does not run, and nothing that they choose is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from common.checksums import entry_of, write_manifest
from common.errors import UserError
from distill.exported import from_pretrained
from distill.recipe_models import StudentNode
from distill.student.model import HeadSpec, Student
from distill.training.export import write_student
from distill.training.nan_replay import replay
from eval_suite.vlm.saved import load_vlm
from featsharp_adapter.adapter.folder import find_folder
from teachers.registry import load_backbone

CODE = {"spec": "class:os.mkdir", "path": "ran"}  # makes a folder if it ever runs


pytestmark = pytest.mark.usefixtures("nothing_runs")


def test_the_node_would_run_if_a_user_typed_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gives a NoneType"):
        load_backbone(CODE)
    (tmp_path / "ran").rmdir()


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A student folder whose teacher reads text, named by a harmless node."""
    teacher = load_backbone("tiny:clip")
    node = StudentNode(model="vit_tiny_patch16_224", patch_size=8, embed_dim=24, depth=1, num_heads=2)
    head = HeadSpec(teacher.spec.summary_dim, teacher.spec.spatial_dim)
    entry = {
        "backbone": "tiny:clip",
        "spec": teacher.spec.to_dict(),
        "head": head.to_dict(),
        "encodes_text": True,
        "upsampler": "none",
        "factor": 1,
        "adapter": None,
    }
    config = {
        "schema": 1,
        "name": "s",
        "step": 1,
        "student": node.model_dump(mode="json"),
        "averaged": None,
        "size": [32, 32],
        "teachers": {"clip": entry},
        "identity": {},
    }
    write_student(tmp_path / "student", Student(node, (32, 32), {"clip": head}).state_dict(), config)
    return tmp_path / "student"


def rewrite(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_student_may_name_a_teacher_of_a_library(student: Path) -> None:
    assert from_pretrained(student).adaptor("clip").encode_text(["a red ball"]).shape[0] == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "node", [CODE, "timm:/etc", {"spec": "tiny:clip", "weights": "x.pth"}, {"spec": "torch_hub:x:y"}]
)
def test_a_student_s_teachers(student: Path, node: Any) -> None:
    rewrite(student / "config.json", lambda c: c["teachers"]["clip"].update(backbone=node))
    loaded = from_pretrained(student)  # its own tokens need no teacher
    assert loaded(torch.rand(1, 3, 32, 32)).spatial.shape == (1, 24, 4, 4)
    with pytest.raises(UserError, match=r"a file may not name.*text_teachers: \{clip: NODE\}"):
        loaded.adaptor("clip").encode_text(["a"])  # type: ignore[attr-defined]
    typed = load_backbone({"spec": f"run:{student}", "text_teachers": {"clip": "tiny:clip"}})
    assert typed.adaptor("clip").encode_text(["a"]).shape[0] == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["student"].update(weights="/etc/passwd"),
        lambda c: c["student"].update(weights="pretrained"),
        lambda c: c["student"].update(model="hf-hub:evil/model"),
        lambda c: c["student"].update(model="https://evil.org/x"),
        lambda c: c["student"].update(unknown=1),
        lambda c: c["student"].update(depth="many"),
        lambda c: c["student"].update(depth=2),
        lambda c: c.update(student=None),
        lambda c: c.update(teachers=[]),
        lambda c: c.update(teachers={"clip": None}),
        lambda c: c.update(size=[32]),
        lambda c: c.update(schema=None),
        lambda c: c["teachers"]["clip"].update(head={"spatial_dim": 8}),
        lambda c: c["teachers"]["clip"].update(spec={}),
    ],
)
def test_a_damaged_or_hostile_config_is_refused_in_words(student: Path, change: Any) -> None:
    rewrite(student / "config.json", change)
    with pytest.raises(UserError, match=r"config\.json"):
        from_pretrained(student)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_none(student: Path, content: bytes) -> None:
    (student / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        from_pretrained(student)


@pytest.mark.parametrize("node", [CODE, "timm:../vit", {"spec": "transformers:x/y", "trust_remote_code": True}])
def test_an_adapter_s_teacher(tmp_path: Path, node: Any) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(find_folder("builtin:tiny-clip-featup-2x"), folder)
    rewrite(folder / "adapter.json", lambda c: c.update(teacher_node=node))
    with pytest.raises(UserError, match=r"a file may not name.*teacher: NODE"):
        load_backbone(f"sharp:{folder}")
    assert load_backbone({"spec": f"sharp:{folder}", "teacher": "tiny:clip"}).spec.library == "sharp"


def test_an_adapter_s_upsampler_is_of_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(find_folder("builtin:tiny-clip-featup-2x"), folder)
    rewrite(folder / "adapter.json", lambda c: c.update(upsampler="class:os.mkdir", options={"path": "ran"}))
    with pytest.raises(UserError):
        load_backbone(f"sharp:{folder}")


def test_a_vision_language_model_s_card(tmp_path: Path) -> None:
    folder = tmp_path / "vlm"
    folder.mkdir()
    card = {
        "schema": 2,
        "backbone": CODE,
        "backbone_digest": "x",
        "recipe": {},
        "seed": 0,
        "digest": "x",
        "last": ["", 0],
    }
    (folder / "vlm.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"vlm\.json names a backbone that a file may not name"):
        load_vlm(folder)


def test_a_kept_update_s_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "nan" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "update.json").write_text(json.dumps({"step": 1}))
    recipe = yaml.safe_load(Path(__file__).parents[1].joinpath("recipes/debug.yaml").read_text())
    recipe["teachers"] = {"coarse": {"backbone": CODE}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_manifest(folder, {path.name: entry_of(path) for path in folder.iterdir()})
    with pytest.raises(UserError, match=r"a file may not name.*--replay: teachers\.coarse\.backbone=NODE"):
        replay(folder, torch.device("cpu"))
