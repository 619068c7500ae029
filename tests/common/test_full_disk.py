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


SAVE = """
import os, resource, signal, sys, torch
from pathlib import Path
from common.checksums import write_checked
from common.errors import guard
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for case in sys.argv[1:]:
    path, limit, elements = case.split(":")
    content = {"weights": torch.ones(int(elements))}
    save = lambda file: torch.save(content, file)
    for write in (save, lambda path: write_checked(Path(path), save)):
        soft = int(limit) or resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
        code = guard(lambda _: write(path) and None, [])
        print(case, code)
"""


def test_torch_that_finds_no_room(tmp_path: Path) -> None:
    """A device that is always full, files that may not grow; at the start and in the middle of one."""
    cases = [f"{tmp_path}/a:500:10", f"{tmp_path}/b:500:1000000", f"{tmp_path}/c:1000000:1000000"]
    cases += ["/dev/full:0:10", "/dev/full:0:100000"] if Path("/dev/full").exists() else []
    done = subprocess.run([sys.executable, "-c", SAVE, *cases], capture_output=True, text=True)
    assert done.stdout.split("\n")[:-1] == [f"{case} 2" for case in cases for _ in range(2)], done.stderr
    assert done.stderr.count("error: cannot write") == 2 * len(cases) == done.stderr.count("Make room")


def test_what_followed_from_a_full_disk(capsys: pytest.CaptureFixture[str]) -> None:
    """An error of a program's own while it cleans up is not what the user must read; its cause is."""

    def cleaning_up(_: list[str]) -> int:
        try:
            raise OSError(errno.ENOSPC, "full", "some/file")
        except OSError:
            raise RuntimeError("cannot finish") from None

    def other(_: list[str]) -> int:
        raise RuntimeError("shapes do not fit")

    assert guard(cleaning_up, []) == 2
    assert "cannot write some/file" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        guard(other, [])


def test_only_such_errors(capsys: pytest.CaptureFixture[str]) -> None:
    def full(_: list[str]) -> int:
        raise OSError(errno.ENOSPC, "full", "some/file")

    def other(_: list[str]) -> int:
        raise FileNotFoundError(errno.ENOENT, "gone", "some/file")

    assert guard(full, []) == 2
    assert "cannot write some/file: No space left" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        guard(other, [])
