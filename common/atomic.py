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
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WRITING = ".writing-"  #: prefix of what is not complete yet
REPLACED = ".replaced-"  #: prefix of an old folder that stepped aside
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_CANNOT_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM}


@contextmanager
def replacing_file(path: str | Path, *, flush: bool = True) -> Iterator[Path]:
    """A temporary path to write to; when the block ends it takes the place of `path`, when it raises it is removed.

    Without `flush` a crash of the machine may leave an empty or torn file: for what is checked and can be made again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode  # as the user's umask wants it; libraries keep what they write to the owner
        yield temporary
        temporary.chmod(mode)
        if flush:
            flush_file(temporary)
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    if flush:
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
    remove_abandoned(folder)
    temporary = _beside(folder)
    try:
        temporary.mkdir()
        yield temporary
        exchange_folder(temporary, folder)
    finally:
        remove(temporary)  # after success the old content, if there was any; after a failure the unfinished new one


def exchange_folder(new: Path, folder: Path) -> None:
    """Give the complete `new` the name `folder`; an old one then has the name `new`, for the caller to remove."""
    flush_tree(new)
    if not os.path.lexists(folder):
        os.rename(new, folder)
    elif not _exchange(new, folder):
        aside = _aside(folder)
        if aside.exists():  # of a kill; under that name it must be whole or not there
            os.rename(aside, doomed := _beside(folder))
            remove(doomed)
        os.rename(folder, aside)
        try:
            os.rename(new, folder)
        except BaseException:
            recover(folder)
            raise
        os.rename(aside, new)
    flush_folder(folder.parent)


def recover(folder: str | Path) -> Path:
    """`folder`, put back first if a kill left it aside in the middle of a replacement.

    Where it cannot be put back (a disk that is read-only), the path under which the content lies.
    """
    folder = Path(folder)
    if not folder.name:  # "." and "/" are never replaced
        return folder
    aside = _aside(folder)
    if os.path.lexists(folder) or not aside.is_dir():
        return folder
    try:
        os.rename(aside, folder)
    except OSError:
        return folder if folder.exists() or not aside.is_dir() else aside
    return folder


def recover_all(parent: Path) -> None:
    """`recover` for every folder in `parent`."""
    for aside in parent.glob(f"{REPLACED}*"):
        recover(parent / aside.name.removeprefix(REPLACED))


def remove_abandoned(path: Path) -> None:
    """Remove what writers of `path` left unfinished when they were killed: those of this machine that do not live."""
    for found in path.parent.glob(f"{WRITING}*"):
        host, pid, _, name = [*found.name.removeprefix(WRITING).split("+", 3), "", "", ""][:4]
        if name == path.name[-_LONGEST:] and host == _host() and pid.isdigit() and not _alive(int(pid)):
            remove(found)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left unfinished directly in `folder`; call it where nobody else writes."""
    for path in folder.glob(f"{WRITING}*"):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that goes; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


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
        if not path.is_symlink():
            (flush_folder if path.is_dir() else flush_file)(path)
    flush_folder(folder)


_LONGEST = 40  #: characters of a target's name in a temporary one: names have an end (255 bytes), and a suffix


def _beside(path: Path) -> Path:
    """A new name in the same folder that ends like `path`'s, because libraries read formats from suffixes."""
    unique = f"{WRITING}{_host()}+{os.getpid()}+{secrets.token_hex(4)}+{path.name[-_LONGEST:]}"
    return path.with_name(unique)


def _host() -> str:
    return socket.gethostname().replace("+", "-").replace("/", "-")[:40]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _aside(folder: Path) -> Path:
    return folder.with_name(REPLACED + folder.name)


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
