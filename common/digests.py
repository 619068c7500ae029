"""Digests: one way to say "the same" of values, files and bytes. All are "sha256:..." of 64 hexadecimal digits."""

import hashlib
import json
from pathlib import Path
from typing import Any

PREFIX = "sha256:"


def digest_bytes(*parts: bytes) -> str:
    """Of byte strings, each with its length, so that ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return PREFIX + digest.hexdigest()


def digest_value(value: Any) -> str:
    """Of plain data: mappings in key order. TypeError for anything that JSON has no form for; nothing is guessed."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return PREFIX + hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def digest_file(path: str | Path) -> str:
    """Of a file's content."""
    with open(path, "rb") as file:
        return PREFIX + hashlib.file_digest(file, "sha256").hexdigest()


def short(digest: str, length: int = 16) -> str:
    """The first `length` hexadecimal digits, for names of files and folders."""
    return digest.removeprefix(PREFIX)[:length]
