"""`log.jsonl`: a line per logged step. What the run decides is on top, what the clock decides under "time"."""

import json
import sys
from pathlib import Path
from typing import Any

from common.atomic import write_text
from common.errors import UserError


class Log:
    """Appends lines to log.jsonl; `truncate` takes it back to a checkpoint, so that a resumed log has no seam."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: dict[str, Any]) -> None:
        """Append one line and hand it to the system at once, so that a kill loses nothing that was logged."""
        content = (json.dumps(line) + "\n").encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+", buffering=0) as file:
                if file.seek(0, 2):
                    file.seek(-1, 2)
                    if file.read(1) != b"\n":  # a line torn by a full disk or a kill stays alone with its fault
                        content = b"\n" + content
                if file.write(content) != len(content):
                    raise OSError("the disk is full")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error

    def truncate(self, step: int) -> None:
        """Keep the lines up to `step`. Lines that cannot be read are taken out and told; those after them stay."""
        if not self.path.exists():
            return
        lines, bad = _read(self.path)
        if bad:
            print(f"{self.path}: repaired, {len(bad)} of its lines could not be read: {numbers(bad)}", file=sys.stderr)
        kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step)
        if kept.encode() != self.path.read_bytes():
            write_text(self.path, kept)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; those that a kill or a bad disk spoiled are left out."""
    return _read(path)[0]


def numbers(found: list[int], most: int = 5) -> str:
    """[3, 7] -> "3, 7"; long lists are cut."""
    return ", ".join(map(str, found[:most])) + (f", and {len(found) - most} more" if len(found) > most else "")


def _read(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The good lines, and the numbers (from 1) of the bad ones. A torn last line is no fault: kills leave it."""
    parts = path.read_bytes().split(b"\n")
    torn = parts.pop()  # empty where the last line is complete
    lines, bad = [], []
    for number, part in enumerate(parts, start=1):
        line = _parse(part)
        if line is None:
            bad.append(number)
        else:
            lines.append(line)
    last = _parse(torn)  # complete but for its end
    return lines + ([last] if last else []), bad


def _parse(part: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(part.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    step = line.get("step") if isinstance(line, dict) else None
    return line if isinstance(step, int) and not isinstance(step, bool) else None
