"""The one error a user can cause, and the guard that turns it into a line and exit code 2."""

import argparse
import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable

from safetensors import SafetensorError

from common.interruption import Stopped, watching_signals
from common.launcher import end_with_launcher, tell_launcher

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
#: What torch.save says where a file takes no more; the system's number is lost.
_TORCH_CANNOT_WRITE = ("iostream error", "unexpected pos", "PytorchStreamWriter failed")


class UserError(Exception):
    """Something the user can put right; the message says what is wrong and what to do, in one or two lines."""

    exit_code = 2


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean "x"?)' for the closest known word, or '' when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f' (did you mean "{close[0]}"?)' if close else ""


def unknown(kind: str, word: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a table: names the nearest one and lists them all."""
    names = sorted(known)
    return UserError(f'unknown {kind} "{word}"{nearest(word, names)}; known: {", ".join(names) or "none"}')


def add_debug_flag(parser: argparse.ArgumentParser) -> None:
    """`--debug`, which `guard` reads: show the traceback of an error instead of its message alone."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of a user error")


def guard(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Run `main(argv)`; a user error prints its message and gives its exit code, `--debug` lets it through.

    A signal ends it in a line too, with 130 or 143, and so does the end of the launcher that started this process.
    """
    argv = sys.argv[1:] if argv is None else argv
    end_with_launcher()
    try:
        with watching_signals():
            return main(argv) or 0
    except Stopped as stopped:
        if str(stopped):
            print(stopped, file=sys.stderr)
        return stopped.exit_code
    except (UserError, OSError, SafetensorError, RuntimeError) as caught:
        error = caught if isinstance(caught, UserError) else _of_a_full_disk(caught)
        if error is None or "--debug" in argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        tell_launcher(f"error: {error}")
        return error.exit_code


def _of_a_full_disk(error: BaseException | None) -> UserError | None:
    """In words, where a disk is full or turned read-only, or such an error led to this one.

    safetensors tells the system's number in its text alone, and torch.save has texts of its own.
    """
    while error is not None:
        found = error.errno if isinstance(error, OSError) else None
        if isinstance(error, SafetensorError):
            found = next((number for number in _NO_ROOM if f"(os error {number})" in str(error)), None)
        if found in _NO_ROOM:
            where = f" {error.filename}" if isinstance(error, OSError) and error.filename else ""
            return UserError(f"cannot write{where}: {os.strerror(found)}. Make room, and start again")
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _TORCH_CANNOT_WRITE):
            reason = next(text for text in _TORCH_CANNOT_WRITE if text in str(error))
            return UserError(f"cannot write a file of tensors ({reason}): is the disk full? Make room, and start again")
        error = error.__cause__ or error.__context__
    return None
