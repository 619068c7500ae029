"""`python -m eval_suite data check`: what is found, what is missing, and with which exit code."""

from pathlib import Path

import layout_fixtures as make
import pytest

from common.errors import guard
from eval_suite.__main__ import main

SUITE = """
name: own
data:
  pets: {{reader: class_folders, root: {root}/pets, size: 32}}
  ade: {{reader: ade20k, root: {root}/ade, size: 32}}
  spare: {{reader: class_folders, root: {root}/nowhere}}
  scenes: {{reader: scenes, seed: 1, train: 4, test: 2, pairs: 0, points: 5, size: 32, label_stride: 1}}
probes:
  knn: {{probe: knn, data: pets, k: 1}}
  seg: {{probe: segmentation, data: ade, labels: semantic}}
  world: {{probe: knn, data: scenes}}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    make.class_tree(tmp_path / "pets")
    make.ade20k(tmp_path / "ade")
    return make.text(tmp_path / "suite.yaml", SUITE.format(root=tmp_path))


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    code = guard(main, ["data", "check", *arguments])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def test_says_what_is_there(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = check(capsys, str(suite))
    assert code == 0 and len(lines) == 6 and all(line.startswith("ok") for line in lines)
    assert "4 images, 64x48 px, 2 of 2 classes" in lines[0]
    assert "2 images, 64x48 px, 1 of 2 classes" in lines[1]
    assert "semantic: 2 of 150 classes seen" in lines[2]
    assert "no probe of the suite uses it" in lines[4] and "rendered when asked for: 4 train" in lines[5]


def test_names_every_problem_at_once(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = suite.parent
    (root / "ade/ADEChallengeData2016/annotations/training/ADE_train_00000002.png").unlink()
    (root / "pets/test/tabby_cat/0.JPEG").write_bytes(b"")
    code, lines, error = check(capsys, str(suite))
    problems = [line for line in lines if line.startswith("PROBLEM")]
    assert code == 2 and "2 of 6 sets cannot be used" in error and "Traceback" not in error
    assert "ADE_train_00000002.png" in problems[1] and "0.JPEG cannot be read as an image" in problems[0]


def test_only_a_thorough_look_sees_all_files(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = suite.parent / "pets/train/tabby_cat"
    for number in range(140):
        make.photo(folder / f"x{number:03d}.png", number)
    bad = folder / "x003.png"
    bad.write_bytes(b"")
    code, lines, _ = check(capsys, str(suite))
    assert code == 0 and "144 images (32 of 144 looked at)" in lines[0]
    code, lines, _ = check(capsys, str(suite), "--thorough")
    assert code == 2 and any(str(bad) in line for line in lines)


def test_a_small_set_is_looked_at_whole(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = suite.parent / "pets/train/tabby_cat"
    for number in range(29):
        make.photo(folder / f"x{number:02d}.png", number)
    assert "33 images, 64x48 px" in check(capsys, str(suite))[1][0]
    (folder / "x07.png").write_bytes(b"")
    assert check(capsys, str(suite))[0] == 2


def test_a_missing_root_says_which_field_to_set(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = check(capsys, str(suite), "data.ade.root=/nowhere/ade")
    assert code == 2 and any("set data.ade.root to where it lies" in line for line in lines)
