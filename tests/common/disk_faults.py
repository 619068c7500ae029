"""Fails, and kills, a write at every single system call that changes the disk, and looks at what is left.

The write runs in a forked process under a seccomp filter (Linux) whose decisions this process makes, so that calls from
C++ and Rust (torch, safetensors) are met like Python's own. Three faults for every call: it fails and the program goes
on; the process is killed before it; it fails, and the process is killed at the next one (while it cleans up).
"""

import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

#: Names of the calls that change the disk -> their numbers on x86_64 and aarch64 (None: not there).
CALLS = {
    "write": (1, 64), "pwrite64": (18, 68), "writev": (20, 66), "pwritev": (296, 70), "open": (2, None),
    "openat": (257, 56), "openat2": (437, 437), "creat": (85, None), "fsync": (74, 82), "fdatasync": (75, 83),
    "truncate": (76, 45), "ftruncate": (77, 46), "fallocate": (285, 47), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None),
    "unlinkat": (263, 35), "link": (86, None), "linkat": (265, 37), "chmod": (90, None), "fchmod": (91, 52),
    "fchmodat": (268, 53), "fchmodat2": (452, 452), "copy_file_range": (326, 285), "sendfile": (40, 71),
}  # fmt: skip
MACHINES = ("x86_64", "aarch64")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1

Kind = Literal["none", "fail", "kill", "fail, kill"]


@dataclass(frozen=True)
class Fault:
    """What happens at the call of that number (the first is 0)."""

    kind: Kind = "none"
    at: int = 0
    exchange: bool = True  #: False: the file system has no renameat2 exchange


@dataclass(frozen=True)
class Outcome:
    """calls: names of the disk-changing calls that were made. done: the write returned without an error."""

    calls: list[str]
    done: bool
    killed: bool


def check_every_fault(
    folder: Path,
    prepare: Callable[[Path], Any],
    write: Callable[[Path], Any],
    state: Callable[[Path], Any],
    *,
    exchange: bool = True,
    stride: int = 1,
) -> int:
    """Assert that every fault (every `stride`-th) in `write` leaves the old state or the new, and the next write works.

    `prepare` makes a folder as it is before; `state` reads it as the program does. Returns the number of faults.
    """
    whole = folder / "whole"
    whole.mkdir(parents=True)
    prepare(whole)
    old = state(whole)
    calls = run_under(lambda: write(whole), Fault(exchange=exchange))
    assert calls.done, "the write fails without a fault"
    new = state(whole)
    assert old != new, "a write that changes nothing proves nothing"
    faults = list(_faults(len(calls.calls), exchange))[::stride]
    for number, fault in enumerate(faults):
        here = folder / str(number)
        here.mkdir()
        prepare(here)
        assert state(here) == old
        outcome = run_under(lambda here=here: write(here), fault)  # type: ignore[misc]
        what = f"{fault} in {calls.calls}: {outcome}"
        assert state(here) == new if outcome.done else state(here) in (old, new), what
        write(here)
        assert state(here) == new, f"the write after {what}"
    return len(faults)


def _faults(calls: int, exchange: bool) -> Iterator[Fault]:
    kinds: tuple[Kind, ...] = ("fail", "kill", "fail, kill")
    for kind in kinds:
        for at in range(calls):
            yield Fault(kind, at, exchange)


def run_under(write: Callable[[], Any], fault: Fault) -> Outcome:
    """Run `write` in a child process that meets `fault`. Skips the test where the system has no such filter."""
    if platform.system() != "Linux" or platform.machine() not in MACHINES:
        pytest.skip("system calls are watched by seccomp, on Linux")
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        _be_the_child(write, theirs)
    theirs.close()
    try:
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        if not descriptors:
            os.waitpid(child, 0)
            pytest.skip("this system does not let a process watch its system calls")
        calls = _decide(descriptors[0], child, fault)
        _, status = os.waitpid(child, 0)
        os.close(descriptors[0])
    finally:
        ours.close()
    killed = os.WIFSIGNALED(status)
    assert killed or os.WEXITSTATUS(status) in (0, 1), f"the child ended with {status}"
    return Outcome(calls, not killed and os.WEXITSTATUS(status) == 0, killed)


def _be_the_child(write: Callable[[], Any], socket_: socket.socket) -> None:
    code = 3
    try:
        listener = _install_filter()
        if listener < 0:
            socket_.send(b"-")
            os._exit(2)
        socket.send_fds(socket_, [b"+"], [listener])
        os.close(listener)
        code = 1
        write()
        code = 0
    except BaseException:
        pass
    finally:
        os._exit(code)


def _install_filter() -> int:
    """Have the parent asked about the calls that change the disk; returns the descriptor to ask on, or -1."""
    column = MACHINES.index(platform.machine())
    numbers = [entry[column] for entry in CALLS.values() if entry[column] is not None]
    # Load the call's number; a jump to the notification for each of ours; allow the rest.
    program = [(0x20, 0, 0, 0)]
    program += [(0x15, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
    program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x7FC00000)]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    lines = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(lines))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    return int(libc.syscall(_SECCOMP[platform.machine()], 1, 8, header))


def _decide(listener: int, child: int, fault: Fault) -> list[str]:
    """Answer the child's calls until it ends; returns the names of those that change the disk."""
    column = MACHINES.index(platform.machine())
    names = {entry[column]: name for name, entry in CALLS.items()}
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    seen: list[str] = []
    while True:
        events = poll.poll(60_000)
        assert events, f"the child hangs after {seen}"
        if not events[0][1] & select.POLLIN:
            return seen
        request = bytearray(80)
        try:
            fcntl.ioctl(listener, _RECEIVE, request)
        except OSError:
            continue
        identity, _, _, number = struct.unpack_from("QIIi", request)
        arguments = struct.unpack_from("6Q", request, 32)
        error = 0
        if _changes_the_disk(names[number], arguments):
            if names[number] == "renameat2" and not fault.exchange and arguments[4]:
                error = errno.EINVAL
            else:
                error = _fault_now(fault, len(seen), child)
                seen.append(names[number])
        if error < 0:
            return seen
        answer = struct.pack("QqiI", identity, 0, -error, 0 if error else _CONTINUE)
        try:
            fcntl.ioctl(listener, _SEND, bytearray(answer))
        except OSError as problem:
            assert problem.errno == errno.ENOENT, problem  # the child is gone


def _fault_now(fault: Fault, number: int, child: int) -> int:
    """The error for a call; -1 where the child was killed instead; 0 lets it happen."""
    kill_at = {"kill": fault.at, "fail, kill": fault.at + 1}.get(fault.kind)
    if number == kill_at:
        os.kill(child, signal.SIGKILL)
        return -1
    fails = fault.kind in ("fail", "fail, kill") and number == fault.at
    return errno.ENOSPC if fails else 0


def _changes_the_disk(name: str, arguments: tuple[int, ...]) -> bool:
    if name in ("write", "writev"):
        return arguments[0] > 2
    if name in ("open", "openat"):
        return bool(arguments[1 if name == "open" else 2] & _WRITES)
    return name != "openat2"  # its flags lie in memory; nothing of ours uses it
