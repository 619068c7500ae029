"""The log: what is bad is taken out and told, what is good after it stays; truncation is whole or not at all."""

import json
from pathlib import Path

import pytest

from common.errors import UserError
from common.jsonl import Log, read_log
from tests.common.disk_faults import Fault, check_every_fault, run_under

GOOD = [{"step": step, "loss": 1.0 / step} for step in range(1, 6)]
BAD = [
    b"",
    b"{",
    b'{"step": 3, "lo',
    b"\x00\x00\x00\x00",
    b'{"step": "\xff\xfe"}',
    b"[1, 2]",
    b"3",
    b"null",
    b'{"loss": 1.0}',
    b'{"step": "three"}',
    b'{"step": true}',
    b"[" * 100_000,
]


def written(folder: Path, *, at: int | None = None, bad: bytes = b"") -> Log:
    lines = [json.dumps(line).encode() for line in GOOD]
    if at is not None:
        lines.insert(at, bad)
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return Log(folder / "log.jsonl")


@pytest.mark.parametrize("at", [0, 2, 5])
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: repr(bad)[:24])
def test_one_bad_line_takes_no_good_one_with_it(
    tmp_path: Path, at: int, bad: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    log = written(tmp_path, at=at, bad=bad)
    assert read_log(log.path) == GOOD
    log.truncate(4)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f"could not be read: {at + 1}" in said[0]
    assert log.path.read_bytes() == b"".join(json.dumps(line).encode() + b"\n" for line in GOOD[:4])
    log.truncate(4)
    assert capsys.readouterr().err == ""


def test_a_torn_last_line_is_no_fault_and_the_next_line_stands_alone(tmp_path: Path) -> None:
    log = written(tmp_path)
    torn = log.path.read_bytes()[:-4]
    for length in range(len(torn) - 20, len(torn)):
        log.path.write_bytes(torn[:length])
        log.write({"step": 9})
        assert read_log(log.path) == [*GOOD[:4], {"step": 9}]
    log.path.write_bytes(torn)
    log.truncate(9)
    assert read_log(log.path) == GOOD[:4]


def test_a_last_line_without_its_end_is_whole(tmp_path: Path) -> None:
    log = written(tmp_path)
    log.path.write_bytes(log.path.read_bytes()[:-1])
    assert read_log(log.path) == GOOD
    log.write({"step": 6})
    assert read_log(log.path) == [*GOOD, {"step": 6}]


def test_truncation_is_whole_at_every_fault(fast_folder: Path) -> None:
    check_every_fault(
        fast_folder, written, lambda folder: Log(folder / "log.jsonl").truncate(2), lambda f: read_log(f / "log.jsonl")
    )


def test_a_line_is_there_or_not_at_every_fault(fast_folder: Path) -> None:
    check_every_fault(
        fast_folder,
        written,
        lambda folder: Log(folder / "log.jsonl").write({"step": 6}),
        lambda folder: read_log(folder / "log.jsonl")[:6],  # the next write after a success comes once more
    )


def test_a_full_disk_is_told_in_words(tmp_path: Path) -> None:
    log = written(tmp_path)
    (tmp_path / "out").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot write"):
        Log(tmp_path / "out" / "log.jsonl").write({"step": 1})
    run_under(lambda: log.write({"step": 6}), Fault("fail", 1))
    assert read_log(log.path) == GOOD
