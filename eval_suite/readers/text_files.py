"""Text files of a user: UTF-8 and nothing else, lines end where the file format ends them, JSON without double keys."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError


def existing_file(path: Path, what: str) -> Path:
    """The path itself; UserError unless it is a file."""
    if not path.is_file():
        raise UserError(f"{path} is missing: {what}")
    return path


def read_text(path: Path, what: str) -> str:
    """The text, a byte order mark left out; UserError where the file is not there or not UTF-8."""
    try:
        with existing_file(path, what).open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); save it as UTF-8 "
            "(iconv -f LATIN1 -t UTF-8, if it is Latin-1)"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def lines_of(path: Path, what: str) -> list[tuple[int, str]]:
    """(number from 1, line) of the lines that are not blank; only \\n and \\r end one, U+2028 and U+0085 are text."""
    text = read_text(path, what).replace("\r\n", "\n").replace("\r", "\n")
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def read_list(path: Path, what: str) -> list[str]:
    """One name a line; UserError for a name that stands there twice."""
    names = [line.strip() for _, line in lines_of(path, what)]
    if len(set(names)) < len(names):
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise UserError(f'{path} lists "{twice}" twice; take one out')
    return names


def read_json(path: Path, what: str) -> Any:
    """A JSON file; UserError where it is not one, or names a field twice."""
    return parse_json(read_text(path, what), str(path))


def read_json_lines(path: Path, what: str) -> Iterator[tuple[int, Any]]:
    """(line number, value) of a file with one JSON value a line."""
    for number, line in lines_of(path, what):
        yield number, parse_json(line, f"{path} line {number}")


def parse_json(text: str, where: str) -> Any:
    """A JSON value; UserError in one line for anything else."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise UserError(f'{where} has the field "{next(n for n in names if names.count(n) > 1)}" twice')
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error


def read_table(path: Path, columns: tuple[str, ...], what: str) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of a comma-separated file with a header; UserError unless every row has the columns filled."""
    reader = csv.reader(io.StringIO(read_text(path, what), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for column in columns:
            if header.count(column) != 1:
                found = "no" if column not in header else "more than one"
                raise UserError(f'{path} line 1 has {found} "{column}"; it has: {", ".join(header)}')
        rows = []
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{path} line {reader.line_num} has {len(cells)} cells, its header {len(header)}; "
                    "cells with commas stand in quotes"
                )
            row = dict(zip(header, cells, strict=True))
            for column in columns:
                if not row[column].strip():
                    raise UserError(f'{path} line {reader.line_num} has nothing in "{column}"')
            rows.append((reader.line_num, row))
        return rows
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num} is not a comma-separated line: {error}") from error
