"""What tests compare of a run's log."""

from typing import Any


def without_time(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What two runs of one recipe must agree on."""
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]
