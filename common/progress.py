"""How far a long work is: a bar on a terminal, and a line a minute where there is none, as in the log of a cluster."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

SECONDS = 60.0  #: between two lines


class ProgressBar:
    """`with ProgressBar(total, "title", "image") as bar: ... bar.update(n)`, or `for item in bar.over(items)`.

    start: how much was done before. shown: whether anything is written. leave: a bar stays on the terminal at its end.
    """

    def __init__(
        self, total: int, title: str, unit: str, *, start: int = 0, shown: bool = True, leave: bool = True
    ) -> None:
        self.total, self.title, self.unit, self.done, self.start = total, title, unit, start, start
        disable = None if shown else True
        self._bar: Any = tqdm(total=total, initial=start, desc=title, unit=unit, disable=disable, leave=leave)
        self._lines = shown and self._bar.disable
        self._note = ""
        self._began = self._said = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """The work is over."""
        self._bar.close()

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; each is done when the next one is asked for."""
        with self:
            for item in items:
                yield item
                self.update()

    def note(self, **values: str) -> None:
        """What stands behind it from now on, such as a loss."""
        self._note = "".join(f", {name} {value}" for name, value in values.items())
        self._bar.set_postfix(values, refresh=False)

    def update(self, count: int = 1) -> None:
        """So much more is done."""
        self.done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._lines and now - self._said >= SECONDS:
            self._said = now
            left = (now - self._began) / max(1, self.done - self.start) * (self.total - self.done)
            line = f"{self.title}: {self.done} of {self.total} {self.unit}s{self._note}, about {left / 60:.0f} min left"
            print(line, file=sys.stderr, flush=True)
