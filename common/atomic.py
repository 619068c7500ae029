"""Files and folders that are whole or as they were before, whatever fails or is killed in between.

New content is written under a temporary name beside the target, flushed to the disk, and put in the target's place by
one rename; then the folder's own entries are flushed. A folder cannot be renamed over a folder that holds something:
where the system can exchange two names in one call (Linux, `renameat2`), that is used; elsewhere (network file
systems) the old folder steps aside first, and `recover` puts it back if nothing followed. Readers of such folders call
`recover`.
"""

import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WRITING = ".writing-"  #: prefix of what is not complete yet
REPLACED = ".replaced-"  #: prefix of an old folder that stepped aside
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_CANNOT_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM}


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to; when the block ends it takes the place of `path`, when it raises it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        with suppress(OSError):
            temporary.chmod(0o644)  # libraries create private files; what we write is for sharing
        flush_file(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace a file by `content`, whole or not at all."""
    with replacing_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Replace a file by UTF-8 `text`, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


@contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder to fill; when the block ends it takes the place of `folder`, when it raises it is removed."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    temporary = _beside(folder)
    try:
        temporary.mkdir()
        yield temporary
        flush_tree(temporary)
        exchange_folder(temporary, folder)
    finally:
        # After success this is the old content, or nothing; after a failure it is the unfinished new content.
        shutil.rmtree(temporary, ignore_errors=True)


def exchange_folder(new: Path, folder: Path) -> None:
    """Give the complete folder `new` the name `folder`; an old one ends under the name `new` or is removed."""
    if not folder.exists():
        os.rename(new, folder)
    elif not _exchange(new, folder):
        aside = folder.with_name(REPLACED + folder.name)
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder, aside)
        try:
            os.rename(new, folder)
        except BaseException:
            os.rename(aside, folder)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    flush_folder(folder.parent)


def recover(folder: str | Path) -> Path:
    """`folder`, put back first if a kill left it aside in the middle of a replacement."""
    folder = Path(folder)
    aside = folder.with_name(REPLACED + folder.name)
    if not folder.exists() and aside.is_dir():
        with suppress(FileNotFoundError):  # another reader was faster
            os.rename(aside, folder)
    return folder


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove what killed writers left unfinished directly in `folder`; call it where nobody else writes."""
    found = sorted(folder.glob(f"{WRITING}*"))
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


def flush_file(path: Path) -> None:
    """Have a file's content on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Have every file below `folder`, and the folders, on the disk."""
    for path in folder.rglob("*"):
        (flush_folder if path.is_dir() else flush_file)(path)
    flush_folder(folder)


def _beside(path: Path) -> Path:
    return path.with_name(f"{WRITING}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one call; False where the system or the file system has no such call."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))
