"""An exported student in other people's programs: transformers' AutoModel, torch.export, ONNX."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import ROOT
from transformers import AutoModel

from common.errors import UserError
from distill.exported import ExportedStudent, from_pretrained
from distill.hub_model import AgglomerateModel, FeaturesOnly

SIZES = [(32, 32), (48, 40)]
#: The same sums in another order, in fp32.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def student(trained: Path) -> ExportedStudent:
    return from_pretrained(trained)


def images(size: tuple[int, int], count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_auto_model_is_the_student(student: ExportedStudent, trained: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(trained / "student")
    assert type(model) is AgglomerateModel
    for size in SIZES:
        out, wanted = model(images(size)), student(images(size))
        assert torch.equal(out.last_hidden_state, wanted.spatial.flatten(2).transpose(1, 2))
        assert torch.equal(out.pooler_output, wanted.summary)
    model.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again", dtype=torch.bfloat16)
    assert again.dtype == torch.bfloat16 and again.student.spec.digest == student.spec.digest
    with pytest.raises(UserError, match="takes no quantization_config; it takes dtype"):
        AutoModel.from_pretrained(trained / "student", quantization_config={"a": 1})


def test_a_stranger_needs_two_lines(trained: Path) -> None:
    """In a process of its own, which knows nothing of ours but the import."""
    lines = "import distill.hub_model, sys, transformers as t; print(type(t.AutoModel.from_pretrained(sys.argv[1])))"
    command = [sys.executable, "-c", lines, str(trained / "student")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert "AgglomerateModel" in done.stdout, done.stderr[-2000:]


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_torch_export_computes_the_same(student: ExportedStudent, size: tuple[int, int]) -> None:
    program = torch.export.export(FeaturesOnly(student), (images(size),))
    found, wanted = program.module()(images(size)), student(images(size))
    torch.testing.assert_close(found[0], wanted.summary, **TOLERANCE)
    torch.testing.assert_close(found[1], wanted.spatial, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_onnx_computes_the_same(student: ExportedStudent, size: tuple[int, int], tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "student.onnx"
    names = {"input_names": ["images"], "output_names": ["summary", "spatial"]}
    torch.onnx.export(FeaturesOnly(student), (images(size),), path, dynamo=True, verbose=False, **names)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    summary, spatial = session.run(None, {"images": images(size).numpy()})
    wanted = student(images(size))
    torch.testing.assert_close(torch.from_numpy(summary), wanted.summary, **TOLERANCE)
    torch.testing.assert_close(torch.from_numpy(spatial), wanted.spatial, **TOLERANCE)
