"""A bar on a terminal, and elsewhere a line now and then."""

import contextlib
import os
import pty
import subprocess
import sys
import termios

import pytest

from common import progress
from common.progress import ProgressBar

WORK = """
from common.progress import ProgressBar
with ProgressBar(4, "reading", "image", start=1) as bar:
    for number in range(3):
        bar.note(loss=f"{number / 10}")
        bar.update()
"""


def test_off_a_terminal_it_writes_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    bar = ProgressBar(4, "reading", "image", start=1)
    bar.note(loss="0.5")
    assert list(bar.over("abc")) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"reading: {done} of 4 images, loss 0.5, about 0 min left" for done in (2, 3, 4)]
    with ProgressBar(2, "reading", "image", shown=False) as hidden:
        hidden.update()
    assert capsys.readouterr().err == "" and hidden.done == 1


def test_a_line_comes_once_a_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = ProgressBar(600, "reading", "image")
    for _ in range(300):
        now[0] += 1
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" of ")[0] for line in lines] == [f"reading: {done}" for done in (60, 120, 180, 240, 300)]
    assert lines[-1].endswith("about 5 min left")


def test_on_a_terminal_it_is_a_bar() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    done = subprocess.run([sys.executable, "-c", WORK], stderr=theirs, timeout=100, check=True)
    os.close(theirs)
    shown = ""
    with contextlib.suppress(OSError):  # a terminal that nobody writes to any more
        while part := os.read(ours, 10000):
            shown += part.decode()
    os.close(ours)
    assert done.returncode == 0 and "reading:" in shown and "4/4" in shown and "of 4 images" not in shown
