"""How many images were read, and which of them were bad: what a run reports at its end, and when it gives up."""

from collections.abc import Iterable
from typing import Any

from common.errors import UserError

MIN_READ_TO_JUDGE = 100  # below this many reads one bad file would already be a large share
MAX_KEYS_LISTED = 1000


class ReadCounts:
    """Counts of one rank. `bad_reasons`: key of a bad image -> what is wrong with it, for the first thousand."""

    def __init__(self, name: str, max_bad_share: float) -> None:
        self.name, self.max_bad_share = name, max_bad_share
        self.read, self.bad = 0, 0
        self.bad_reasons: dict[str, str] = {}

    def add(self, good: int, found: Iterable[tuple[str, str]]) -> None:
        """Add `good` images and the bad ones (key, reason); UserError, and nothing added, if too much is bad."""
        found = list(found)
        read, bad = self.read + good + len(found), self.bad + len(found)
        if read >= MIN_READ_TO_JUDGE and bad > self.max_bad_share * read:
            raise UserError(
                f"{bad} of {read} images read from {self.name} are bad, more than {self.max_bad_share:.0%} "
                f"(max_bad_share), e.g. {examples(self.bad_reasons | dict(found))}"
            )
        self.read, self.bad = read, bad
        for key, reason in found:
            if len(self.bad_reasons) < MAX_KEYS_LISTED:
                self.bad_reasons[key] = reason

    def state_dict(self) -> dict[str, Any]:
        return {"read": self.read, "bad": self.bad, "bad_reasons": dict(self.bad_reasons)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.read, self.bad = state["read"], state["bad"]
        self.bad_reasons = dict(state["bad_reasons"])


def examples(reasons: dict[str, str]) -> str:
    """Three of them, for a message."""
    return "; ".join(f"{key} ({reason})" for key, reason in list(reasons.items())[:3])
