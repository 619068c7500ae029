"""Every example runs, from a folder of the user's own."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
RUNS = {
    "own_teacher.py": ([], "in the teacher's units"),
    "own_upsampler.py": ([], "a student of teachers sharpened by it"),
    "segmentation_head.py": (["--train", "4", "--test", "2", "--steps", "3"], "sharpened 2x  14x14 tokens"),
    "distil_a_folder.py": (["photos", "--steps", "2"], "gives a map of"),
}


def test_each_file_is_run_and_listed() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert files == {*RUNS, "sharpen_your_images.ipynb"}
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"`{name}`" in listed for name in files)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", RUNS)
def test_a_script_runs(name: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(8):
        Image.effect_noise((240, 260), 20 + number).convert("RGB").save(photos / f"{number}.jpg")
    arguments, said = RUNS[name]
    path = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert said in done.stdout


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code as a program, in order; the notebook's server is not needed for that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(EXAMPLES / "sharpen_your_images.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 3 and all(not cell.get("outputs") for cell in notebook.cells)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for source in cells:
        exec(compile(source, "sharpen_your_images.ipynb", "exec"), namespace)
    assert namespace["features"].spatial.shape[0] == 1  # type: ignore[attr-defined]
