"""How far a long work is: a bar on a terminal, and a line a minute where there is none, as in the log of a cluster."""

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

SECONDS = 60.0  #: between two lines


class Progress:
    """`with Progress(total, "title", "image") as progress: ... progress.update(n)`. start: how much was done before."""

    def __init__(self, total: int, title: str, unit: str, *, start: int = 0) -> None:
        self.total, self.title, self.unit, self.done, self.start = total, title, unit, start, start
        self._bar: Any = tqdm(total=total, initial=start, desc=title, unit=unit, disable=None)
        self._note = ""
        self._began = self._said = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def note(self, **values: str) -> None:
        """What stands behind it from now on, such as a loss."""
        self._note = "".join(f", {name} {value}" for name, value in values.items())
        self._bar.set_postfix(values)

    def update(self, count: int = 1) -> None:
        """So much more is done."""
        self.done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now - self._said >= SECONDS:
            self._said = now
            left = (now - self._began) / max(1, self.done - self.start) * (self.total - self.done)
            line = f"{self.title}: {self.done} of {self.total} {self.unit}s{self._note}, about {left / 60:.0f} min left"
            print(line, file=sys.stderr, flush=True)
