"""Whole files and folders: old or new, at every fault, and the next write works."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.atomic import (
    REPLACED,
    WRITING,
    recover,
    remove_leftovers,
    replacing_file,
    replacing_folder,
    write_text,
)
from common.tensor_files import write_tensors
from tests.common.disk_faults import Fault, check_every_fault, run_under


def write_folder(folder: Path, word: str) -> None:
    with replacing_folder(folder / "out") as new:
        (new / "a").write_text(word)
        (new / "below").mkdir()
        (new / "below" / "b").write_text(word)


def read_folder(folder: Path) -> list[str] | None:
    out = recover(folder / "out")
    return [(out / "a").read_text(), (out / "below" / "b").read_text()] if out.exists() else None


def test_a_file_is_old_or_new_at_every_fault(fast_folder: Path) -> None:
    found = check_every_fault(
        fast_folder,
        lambda folder: write_text(folder / "out.txt", "old"),
        lambda folder: write_text(folder / "out.txt", "new content"),
        lambda folder: (folder / "out.txt").read_text(),
    )
    assert found >= 3 * 6  # create, chmod, write, fsync, rename, fsync of the folder


def test_a_first_file_is_there_whole_or_not_at_all(fast_folder: Path) -> None:
    check_every_fault(
        fast_folder,
        lambda folder: None,
        lambda folder: write_text(folder / "below" / "out.txt", "new"),
        lambda folder: (folder / "below" / "out.txt").read_text() if (folder / "below" / "out.txt").exists() else None,
    )


def test_tensors_are_old_or_new_at_every_fault(fast_folder: Path) -> None:
    check_every_fault(
        fast_folder,
        lambda folder: write_tensors(folder / "x.safetensors", {"x": torch.zeros(5)}),
        lambda folder: write_tensors(folder / "x.safetensors", {"x": torch.ones(9)}),
        lambda folder: load_file(folder / "x.safetensors")["x"].tolist(),
    )


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("old", [True, False])
def test_a_folder_is_old_or_new_at_every_fault(fast_folder: Path, exchange: bool, old: bool) -> None:
    found = check_every_fault(
        fast_folder,
        lambda folder: write_folder(folder, "old") if old else None,
        lambda folder: write_folder(folder, "new"),
        read_folder,
        exchange=exchange,
    )
    assert found >= 3 * 10


def test_the_fallback_is_really_used(tmp_path: Path) -> None:
    write_folder(tmp_path, "old")
    with_it = run_under(lambda: write_folder(tmp_path, "new"), Fault())
    without = run_under(lambda: write_folder(tmp_path, "newer"), Fault(exchange=False))
    assert "renameat2" in with_it.calls and "rename" not in with_it.calls
    assert without.calls.count("rename") == 3 and read_folder(tmp_path) == ["newer", "newer"]


def test_a_raise_in_the_block_leaves_the_old_and_no_litter(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "old")
    write_folder(tmp_path, "old")
    with pytest.raises(KeyError), replacing_file(tmp_path / "f") as new:
        new.write_text("half")
        raise KeyError
    with pytest.raises(KeyError), replacing_folder(tmp_path / "out") as new:
        (new / "a").write_text("half")
        raise KeyError
    assert (tmp_path / "f").read_text() == "old" and read_folder(tmp_path) == ["old", "old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "out"]


def test_what_a_killed_writer_left_goes_with_the_next_one_and_a_living_writers_stays(tmp_path: Path) -> None:
    run_under(lambda: write_folder(tmp_path, "killed"), Fault("kill", 4))
    assert len(list(tmp_path.glob(f"{WRITING}*"))) == 1
    with replacing_folder(tmp_path / "out") as living:
        (living / "a").write_text("x")
        assert list(tmp_path.glob(f"{WRITING}*")) == [living]
        run_under(lambda: write_folder(tmp_path, "another"), Fault())
        assert living.exists()


def test_an_old_folder_that_stepped_aside_comes_back(tmp_path: Path) -> None:
    write_folder(tmp_path, "old")
    (tmp_path / "out").rename(tmp_path / f"{REPLACED}out")
    assert read_folder(tmp_path) == ["old", "old"] and not (tmp_path / f"{REPLACED}out").exists()
    assert recover(tmp_path / "never") == tmp_path / "never"


def test_names_keep_their_end_and_long_names_fit(tmp_path: Path) -> None:
    with replacing_file(tmp_path / "a.npz") as new:
        assert new.suffix == ".npz"
        new.write_bytes(b"x")
    write_text(tmp_path / ("n" * 255), "x")
    assert (tmp_path / ("n" * 255)).read_text() == "x"


def test_files_have_the_rights_the_user_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o640


def test_leftovers_are_removed_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / f"{WRITING}a").mkdir()
    (tmp_path / f"{WRITING}a" / "x").write_text("x")
    (tmp_path / f"{WRITING}b").write_text("x")
    (tmp_path / "kept").write_text("x")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
