"""One writer for a folder: a lock that holds on shared file systems and that a crash does not leave standing for ever.

The lock is a file made by a hard link, which one process alone can succeed in, over NFS too (file locks of the system
are not to be relied on there). It says who holds it: host, process and its start, the boot of the machine. Its owner
touches it every few seconds, and ends when it finds that another took over. Of a process on this machine we can see
whether it lives; of another machine's we see its last touch, by the clock of the file system: both times that are
compared were written by it.
"""

import argparse
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil

from common.atomic import remove_leftovers
from common.errors import UserError

LOCK = ".run.lock"
BEAT_SECONDS = 10.0
#: Another machine's lock without a touch for this long is not refused outright. File systems may show times late.
STALE_SECONDS = 180.0
_CLAIM_SECONDS = 5.0


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. `space`: the boot and the process-id namespace in which `pid` means something."""

    token: str
    host: str
    pid: int
    born: float
    space: str
    since: str
    command: str

    @classmethod
    def me(cls) -> "Owner":
        """This process."""
        return cls(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            born=psutil.Process().create_time(),
            space=_space(),
            since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
            command=" ".join(sys.argv)[:200],
        )

    @property
    def here(self) -> bool:
        """Whether this machine can say if it lives."""
        return self.space == _space()

    def lives(self) -> bool:
        """Whether the process is still there; only where it is `here`. A number used again has another birth."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.born) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.since}"


class RunLock:
    """The lock of the folder, or with `is_file` of the file, at `path`; a context manager.

    What killed writers left unfinished directly in the folder is removed: nobody else writes there now.
    UserError when another holds it. take_over: the user is sure that another machine's owner is gone.
    """

    def __init__(self, path: Path, *, is_file: bool = False, take_over: bool = False) -> None:
        self.what, self.take_over = str(path), take_over
        self.path = path.with_name(f".{path.name}.lock") if is_file else path / LOCK
        self.owner: Owner | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "RunLock":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._acquire(Owner.me())
        except OSError as error:
            raise UserError(f"cannot write to {self.path.parent}: {error.strerror}") from error
        if self.path.name == LOCK:
            remove_leftovers(self.path.parent)
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(OSError):
            if self.holds():
                self.path.unlink()

    def holds(self) -> bool:
        """Whether the lock is still this process's: another may have taken it over."""
        found = read_owner(self.path)
        return found is not None and self.owner is not None and found.token == self.owner.token

    def _acquire(self, me: Owner) -> None:
        while not _link_new(me, self.path):
            found = read_owner(self.path)
            if found is None and not self.path.exists():
                continue  # let go in between
            self._refuse_living(found)
            if self._replace(me, found):
                break
        self.owner = me

    def _refuse_living(self, found: Owner | None) -> None:
        """UserError unless the owner is certainly gone, or the user says so."""
        if found is not None and found.here:
            if found.lives():
                raise UserError(
                    f"{self.what} is in use: {found} ({found.command}). Wait, stop it, or choose another name"
                )
            print(f"{self.what}: taking over from {found}, which is gone", file=sys.stderr)
            return
        who = str(found) if found is not None else "an unreadable lock file"
        silent = _age(self.path)
        if self.take_over:
            print(f"{self.what}: taking over from {who}, as told", file=sys.stderr)
        elif silent < STALE_SECONDS:
            raise UserError(
                f"{self.what} is in use: {who}, last heard of {silent:.0f} s ago. If it is gone: --take-over"
            )
        else:
            raise UserError(
                f"{self.what} was in use: {who}, silent for {silent:.0f} s. This machine cannot see whether it still "
                "writes; if you know that it does not, add --take-over"
            )

    def _replace(self, me: Owner, found: Owner | None) -> bool:
        """Take the place of `found`; False where somebody else was faster: only one can claim an owner's place."""
        token = found.token if found is not None else "unreadable"
        claim = self.path.with_name(f"{self.path.name}.after-{token}")
        if not _link_new(me, claim):
            with suppress(FileNotFoundError):
                if _age(claim) > _CLAIM_SECONDS:  # left by a crash in the middle
                    claim.unlink()
            time.sleep(0.1)
            return False
        try:
            now = read_owner(self.path)
            if (now.token if now is not None else "unreadable") != token:
                return False
            os.replace(_written(me, self.path), self.path)
            return True
        finally:
            claim.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):
                other = read_owner(self.path)
                if self.holds():
                    os.utime(self.path)
                elif other is not None:
                    # Somebody was sure that this process is gone. Two writers would be the end of both runs.
                    print(f"{self.what} was taken over by {other}; this process ends", file=sys.stderr, flush=True)
                    os._exit(UserError.exit_code)


def add_take_over_flag(parser: argparse.ArgumentParser) -> None:
    """`--take-over`, for those who know that a lock's owner on another machine is gone."""
    parser.add_argument(
        "--take-over", action="store_true", help="go on though another machine seems to write here: it is surely gone"
    )


@contextmanager
def maybe_locked(path: Path | None, *, is_file: bool = False, take_over: bool = False) -> Iterator[RunLock | None]:
    """A lock where there is something to lock."""
    if path is None:
        yield None
        return
    with RunLock(path, is_file=is_file, take_over=take_over) as lock:
        yield lock


def read_owner(path: Path) -> Owner | None:
    """Who a lock file names; None where it is not there or says nothing."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _space() -> str:
    """Where process ids are comparable: this boot of this machine, in this namespace of processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _written(me: Owner, path: Path) -> Path:
    temporary = path.with_name(f"{path.name}.{me.token}-{secrets.token_hex(2)}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(asdict(me), file)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _link_new(me: Owner, path: Path) -> bool:
    """Make `path`, whole, unless it is there already: False then."""
    temporary = _written(me, path)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links; the file may be seen before its content is
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(asdict(me), file)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _age(path: Path) -> float:
    """Seconds since a file was touched, by the clock of its own file system."""
    probe = path.with_name(f"{path.name}.clock-{secrets.token_hex(4)}")
    try:
        probe.touch()
        return max(0.0, probe.stat().st_mtime - path.stat().st_mtime)
    finally:
        probe.unlink(missing_ok=True)
