"""`log.jsonl`: a line per logged step. What the run decides is on top, what the clock decides under "time"."""

import json
import os
from pathlib import Path
from typing import Any


class Log:
    """Appends lines to log.jsonl; `truncate` takes it back to a checkpoint, so that a resumed log has no seam."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: dict[str, Any]) -> None:
        """Append one line and hand it to the system at once, so that a kill loses nothing that was logged."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def truncate(self, step: int) -> None:
        """Keep the lines up to `step`; a torn last line goes too."""
        if not self.path.exists():
            return
        kept = [line for line in read_log(self.path) if line["step"] <= step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that was torn by a kill ends it."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def without_time(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What two runs of one recipe must agree on."""
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]
