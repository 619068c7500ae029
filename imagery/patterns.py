"""Shell-like braces in paths, for lists of shards or folders: {000..127}, {train,val}."""

import itertools
import math
import re

from common.errors import UserError

MAX_PATHS = 1_000_000
_GROUP = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> list[str]:
    """'a{08..10}{x,y}' -> ['a08x', 'a08y', 'a09x', ...]; a range keeps the width of its first number.

    Braces around neither a list nor a range stay as they are, as in a shell: `${HOME}`, `awk '{print}'`, `xargs -I{}`.
    """
    parts: list[list[str]] = []
    end = 0
    for group in _GROUP.finditer(pattern):
        parts += [[pattern[end : group.start()]], _alternatives(group[1])]
        end = group.end()
    parts.append([pattern[end:]])
    count = math.prod(len(part) for part in parts)
    if count > MAX_PATHS:
        raise UserError(f'"{pattern}" names {count} paths, more than {MAX_PATHS}')
    return ["".join(choice) for choice in itertools.product(*parts)]


def _alternatives(group: str) -> list[str]:
    numbers = _RANGE.fullmatch(group)
    if numbers is None:
        return group.split(",") if "," in group else [f"{{{group}}}"]
    low, high, digits = int(numbers[1]), int(numbers[2]), len(numbers[1])
    if not low <= high < low + MAX_PATHS:
        raise UserError(f"{{{group}}} is not a range of at most {MAX_PATHS} paths, low number first")
    return [str(number).zfill(digits) for number in range(low, high + 1)]
