"""What lies among the images and is not shown: counted by reason, so that a run can say it when it starts."""

from typing import Any

MAX_REASONS = 50  # a hostile archive must not fill memory with reasons of its own
LINES = 10
_OTHER = "other reasons"


class LeftOut:
    """Reason -> how many, and the first of them by name."""

    def __init__(self, counts: dict[str, Any] | None = None) -> None:
        self.counts: dict[str, tuple[int, str]] = {
            why: (int(n), str(name)) for why, (n, name) in (counts or {}).items()
        }

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Count `count` more of a reason."""
        if reason not in self.counts and len(self.counts) >= MAX_REASONS:
            reason = _OTHER
        known, first = self.counts.get(reason, (0, example))
        self.counts[reason] = known + count, first

    def merge(self, other: "LeftOut") -> None:
        """Add another's counts."""
        for reason, (count, example) in other.counts.items():
            self.add(reason, example, count)

    def lines(self) -> list[str]:
        """'12 left out: .heic pictures are not read (first: a/b.heic)', the largest counts first."""
        ranked = sorted(self.counts.items(), key=lambda entry: -entry[1][0])
        lines = [f"{count} left out: {why} (first: {example})" for why, (count, example) in ranked[:LINES]]
        if rest := ranked[LINES:]:
            lines.append(f"{sum(count for _, (count, _) in rest)} left out for {len(rest)} more reasons")
        return lines
