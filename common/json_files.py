"""JSON files: written whole, read with words for what is wrong with them."""

import json
from pathlib import Path
from typing import Any

from common.atomic import write_text
from common.errors import UserError


def write_json(path: str | Path, value: Any) -> None:
    """Replace a file by plain data; ValueError for numbers that JSON has no form for (NaN, infinity)."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """What a file holds. UserError where it cannot be read, is not UTF-8, is no JSON or nests without end."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: it is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged, it is no JSON: {error}") from error


def read_json_object(path: str | Path) -> dict[str, Any]:
    """`read_json` of a file that must hold a mapping."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds no mapping")
    return found
