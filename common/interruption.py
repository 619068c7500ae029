"""Being asked to stop: SIGTERM and Ctrl-C end a training after the running update, SIGUSR1 has it saved at once.

    with watching_signals():              around a program: a signal ends it in one line, with exit code 143 or 130
    with heeding() as wishes:             a loop that looks at `wishes` after every update, and ends by itself
        ...

What Python does in answer to a signal waits for the main thread, which may be waiting itself, for another process say.
So a thread hears of the signal too: some seconds later it ends the program, whatever that is doing. Schedulers kill
without asking after 30 seconds; ending before that leaves time for a line that says what is lost.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

GRACE_SECONDS = 27.0
STOPPING = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """The program was asked to stop. Not an Exception, so that nothing that mends errors swallows it."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass
class Wishes:
    """What signals asked of this process; `stop` is the signal's number, 0 for none."""

    stop: int = 0
    save: bool = False


_heeded: Wishes | None = None  # while a loop looks at it
_grace = GRACE_SECONDS


@contextmanager
def watching_signals() -> Iterator[None]:
    """Inside, signals are answered in words; in a thread that is not the main one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, told = os.pipe()
    os.set_blocking(told, False)
    wakeup = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_end_in_time, args=(heard,), name="signals", daemon=True)
    watcher.start()
    before = {number: signal.signal(number, _answer) for number in (*STOPPING, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.write(told, b"\0")
        watcher.join()
        os.close(heard)
        os.close(told)


def signal_name(number: int) -> str:
    """15 -> "SIGTERM"."""
    return signal.Signals(number).name


@contextmanager
def heeding(grace: float = GRACE_SECONDS) -> Iterator[Wishes]:
    """Signals are kept in the wishes this gives, for a loop that looks at them. grace: seconds it may take to end."""
    global _heeded, _grace
    before, _grace = _grace, grace
    _heeded = Wishes()
    try:
        yield _heeded
        last = _heeded
    finally:
        _heeded, _grace = None, before
    if last.stop:
        raise Stopped(last.stop, f"stopped by {signal.Signals(last.stop).name}; start again to go on")


def _answer(number: int, frame: FrameType | None) -> None:
    if number not in STOPPING:
        if _heeded is not None:
            _heeded.save = True
        else:
            print(f"{signal.Signals(number).name}: nothing to save now", file=sys.stderr, flush=True)
    elif _heeded is None or (_heeded.stop == signal.SIGINT == number):  # outside of a loop, or Ctrl-C a second time
        raise Stopped(number, f"stopped by {signal.Signals(number).name}; start again to go on")
    elif not _heeded.stop:
        _heeded.stop = number


def _end_in_time(heard: int) -> None:
    number = -1
    while number not in (0, *STOPPING):
        number = os.read(heard, 1)[0]
    ends = time.monotonic() + _grace
    while number and (left := ends - time.monotonic()) > 0:
        if select.select([heard], [], [], left)[0] and os.read(heard, 1)[0] == 0:
            number = 0
    if number:
        name = signal.Signals(number).name
        print(f"{name}: not done after {_grace:.0f} s; the last checkpoint stays as it is", file=sys.stderr, flush=True)
        os._exit(128 + number)
