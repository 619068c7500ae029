"""One writer: who holds a lock, who is refused, and who may take it over. With real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from common import run_lock
from common.errors import UserError
from common.run_lock import LOCK, Owner, RunLock, read_owner

HOLD = """
import sys, time
from pathlib import Path
from common import run_lock
run_lock.BEAT_SECONDS = 0.2
with run_lock.RunLock(Path(sys.argv[1])):
    print("holding", flush=True)
    time.sleep(60)
"""
ONE_OF_MANY = """
import sys
from pathlib import Path
from common.errors import UserError
from common.run_lock import RunLock
print("ready", flush=True)
sys.stdin.readline()
try:
    with RunLock(Path(sys.argv[1])):
        print("in", flush=True)
        sys.stdin.readline()  # until all have tried
except UserError as error:
    print("refused", flush=True)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "holding\n"
    return process


def elsewhere(folder: Path, silent: float) -> Owner:
    """A lock of another machine, last touched so many seconds ago."""
    owner = replace(Owner.me(), host="other-machine", space="another boot", token="0123")
    (folder / LOCK).write_text(json.dumps(owner.__dict__))
    os.utime(folder / LOCK, (time.time() - silent,) * 2)
    return owner


def test_a_lock_comes_and_goes(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"):
        owner = read_owner(tmp_path / "run" / LOCK)
        assert owner is not None and owner.pid == os.getpid() and owner.lives()
    assert list((tmp_path / "run").iterdir()) == []


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    """Of the folder that is locked: beside a locked file others may be writing."""
    left = tmp_path / ".writing-host+1+00000000+log.jsonl"
    left.touch()
    with RunLock(tmp_path / "metrics.json", is_file=True):
        assert left.exists()
    with RunLock(tmp_path):
        assert not left.exists()


def test_a_file_has_its_lock_beside_it(tmp_path: Path) -> None:
    with RunLock(tmp_path / "metrics.json", is_file=True):
        assert [path.name for path in tmp_path.iterdir()] == [".metrics.json.lock"]


def test_a_living_owner_is_named_and_stays(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        said = rf"in use: process {process.pid} on .*, started \d{{4}}-"
        with pytest.raises(UserError, match=said), RunLock(tmp_path):
            raise AssertionError("two writers")
        with pytest.raises(UserError, match="stop it"), RunLock(tmp_path, take_over=True):
            raise AssertionError("what lives here is not taken over")
    finally:
        process.kill()
        process.wait()


def test_a_crash_leaves_a_lock_that_is_taken_over_with_a_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    process = holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with RunLock(tmp_path) as lock:
        assert lock.holds()
    assert f"taking over from process {process.pid}" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_another_machine_that_was_just_heard_of_is_refused(tmp_path: Path) -> None:
    elsewhere(tmp_path, silent=20)
    with pytest.raises(UserError, match=r"in use: .*on other-machine.*heard of (19|2\d) s ago"), RunLock(tmp_path):
        raise AssertionError("two writers")


def test_another_machine_that_is_silent_is_for_the_user_to_judge(tmp_path: Path) -> None:
    elsewhere(tmp_path, silent=run_lock.STALE_SECONDS + 10)
    with pytest.raises(UserError, match=r"silent for .*--take-over"), RunLock(tmp_path):
        raise AssertionError("two writers")
    with RunLock(tmp_path, take_over=True) as lock:
        assert lock.holds()


def test_who_is_taken_over_and_lives_ends(tmp_path: Path) -> None:
    process = holder(tmp_path)
    other = elsewhere(tmp_path, silent=0)
    assert process.wait(timeout=20) == 2
    assert read_owner(tmp_path / LOCK) == other


def test_of_many_at_once_one_gets_in(tmp_path: Path) -> None:
    """Over the lock of a process that is gone, which all of them would like to take over."""
    gone = holder(tmp_path)
    gone.kill()
    gone.wait()
    command = [sys.executable, "-c", ONE_OF_MANY, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    several = [subprocess.Popen(command, text=True, bufsize=1, **pipes) for _ in "12345"]
    assert [process.stdout.readline() for process in several] == 5 * ["ready\n"]
    for process in several:
        process.stdin.write("\n")
    said = [process.stdout.readline().strip() for process in several]
    for process in several:
        process.communicate(timeout=60)
    assert sorted(said) == ["in", "refused", "refused", "refused", "refused"]
