"""A disk that is full is said in a line, whoever met it; other errors of files are not swallowed."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import guard

WRITE = """
import resource, signal, sys, torch
from pathlib import Path
from common.errors import guard
from common.tensor_files import write_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
sys.exit(guard(lambda _: write_tensors(Path(sys.argv[1]), {"weights": torch.ones(1000)}), []))
"""


def test_tensors_that_find_no_room(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / "a")], capture_output=True, text=True)
    assert done.returncode == 2 and "cannot write" in done.stderr and os.strerror(errno.EFBIG) in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_only_such_errors(capsys: pytest.CaptureFixture[str]) -> None:
    def full(_: list[str]) -> int:
        raise OSError(errno.ENOSPC, "full", "some/file")

    def other(_: list[str]) -> int:
        raise FileNotFoundError(errno.ENOENT, "gone", "some/file")

    assert guard(full, []) == 2
    assert "cannot write some/file: No space left" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        guard(other, [])
