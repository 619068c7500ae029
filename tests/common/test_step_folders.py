"""Checkpoints as folders: every kind of damage is seen, the newest whole one is used, other names are left alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.checksums import MANIFEST, Damaged, check_folder, entry_of, write_checked
from common.errors import UserError
from common.step_folders import StepFolders


def save(folders: StepFolders, step: int) -> Path:
    """A checkpoint of a tensor file and a text."""
    folder = folders.writing(step)
    content = torch.arange(3000.0) + step
    entries = {
        "engine/weights.pt": write_checked(folder / "engine" / "weights.pt", lambda file: torch.save(content, file)),
        "state.json": write_checked(folder / "state.json", lambda file: file.write(b'{"step": 1}')),
    }
    return folders.commit(step, entries)


@pytest.fixture
def folders(tmp_path: Path) -> StepFolders:
    return StepFolders(tmp_path / "checkpoints", keep=2)


def flip(path: Path, place: int) -> None:
    """One bit of a file."""
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << (place % 8)
    path.write_bytes(content)


def test_what_is_written_is_read_and_known(folders: StepFolders) -> None:
    path = save(folders, 1)
    check_folder(path)
    assert torch.equal(torch.load(path / "engine" / "weights.pt", weights_only=True), torch.arange(3000.0) + 1)
    assert entry_of(path / "state.json")[0] == 11


def test_only_the_newest_are_kept(folders: StepFolders) -> None:
    for step in (1, 2, 10):
        save(folders, step)
    assert sorted(path.name for path in folders.folder.iterdir()) == ["step-00000002", "step-00000010"]


def test_steps_of_more_than_eight_digits_come_after_the_others(folders: StepFolders) -> None:
    for step in (99_999_999, 100_000_000, 1_000_000_000):
        save(folders, step)
    assert [path.name for path in folders.all()] == ["step-100000000", "step-1000000000"]
    assert folders.newest_whole() == folders.path(1_000_000_000)


@pytest.mark.parametrize("name", ["engine/weights.pt", "state.json", MANIFEST])
def test_any_flipped_bit_is_seen(folders: StepFolders, name: str) -> None:
    """At 40 places spread over the file, its first and last bytes among them."""
    path = save(folders, 1)
    whole = (path / name).read_bytes()
    for place in {0, len(whole) - 1, *range(0, len(whole), max(1, len(whole) // 38))}:
        flip(path / name, place)
        with pytest.raises(Damaged):
            check_folder(path)
        (path / name).write_bytes(whole)
    check_folder(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a file is missing": lambda path: (path / "state.json").unlink(),
    "the manifest is missing": lambda path: (path / MANIFEST).unlink(),
    "half a file": lambda path: (path / "engine" / "weights.pt").write_bytes(
        (path / "engine" / "weights.pt").read_bytes()[:5000]
    ),
    "an empty file": lambda path: (path / "engine" / "weights.pt").write_bytes(b""),
    "a longer file": lambda path: (path / "state.json").write_bytes((path / "state.json").read_bytes() + b" "),
    "an empty manifest": lambda path: (path / MANIFEST).write_bytes(b""),
    "a manifest of something else": lambda path: (path / MANIFEST).write_text("[1, 2]"),
    "a file of zeros": lambda path: (path / "engine" / "weights.pt").write_bytes(
        bytes((path / "engine" / "weights.pt").stat().st_size)
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_one_before_is_used_and_that_is_said(
    folders: StepFolders, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    older, newer = save(folders, 3), save(folders, 6)
    DAMAGE[kind](newer)
    assert folders.newest_whole() == older
    said = capsys.readouterr().err
    assert str(newer) in said and "is damaged (" in said and "going on from step-00000003" in said
    assert sorted(path.name for path in folders.folder.iterdir()) == ["damaged-step-00000006", "step-00000003"]
    assert folders.newest_whole() == older and capsys.readouterr().err == ""
    DAMAGE[kind](older)
    with pytest.raises(UserError, match=r"no older checkpoint is whole; to begin anew delete"):
        folders.newest_whole()


def test_foreign_names_and_leftovers(folders: StepFolders) -> None:
    path = save(folders, 3)
    for name in ("step-00000012.bak", "step-13", "step-99999999999", "notes", "step-00000014"):
        (folders.folder / name).mkdir()
    (folders.folder / "step-00000014").rmdir()
    (folders.folder / "step-00000014").write_text("a file")
    for name in (".writing-step-00000006", ".removing-step-00000001"):
        (folders.folder / name / "engine").mkdir(parents=True)
    folders.tidy()
    assert folders.newest_whole() == path
    left = {each.name for each in folders.folder.iterdir()}
    assert left == {
        path.name,
        "step-00000012.bak",
        "step-13",
        "step-99999999999",
        "notes",
        "step-00000014",
    }


def test_a_step_saved_again_takes_the_place_of_the_one_before(folders: StepFolders) -> None:
    save(folders, 3)
    path = save(folders, 3)
    check_folder(path)
    assert [each.name for each in folders.folder.iterdir()] == [path.name]
