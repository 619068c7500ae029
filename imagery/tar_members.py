"""The members of a tar archive, header by header, in bounded memory, over anything that gives bytes at an offset.

Python's tarfile reads the name of a member into memory whatever length its header claims, takes the end of a file for
the end of the archive, and stops at the zeros between archives that were put behind one another. Here a name has a
limit, the end has to be there (two blocks of zeros, POSIX pax, "ustar Interchange Format"), and what follows it is
read. Long names and sizes come from GNU headers (L, K) and pax headers (x, g).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

BLOCK = 512
MAX_HEADER_BYTES = 1 << 20
_READ_OF_ZEROS = 1 << 20
_EMPTY = bytes(BLOCK)

Read = Callable[[int, int], bytes]
"""(offset, size) -> the bytes there; fewer only where the archive ends. Offsets never fall."""


Kind = Literal["file", "hard link", "symbolic link", "sparse", "folder", "other"]


class Damage(Exception):
    """The archive cannot be read beyond byte `offset`."""

    def __init__(self, offset: int, words: str) -> None:
        super().__init__(words)
        self.offset = offset


@dataclass(frozen=True)
class Member:
    """One entry: a file of `size` bytes at `offset`, a link to `target`, or something else."""

    name: str
    kind: Kind
    offset: int
    size: int
    target: str = ""


_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hard link",
    b"2": "symbolic link",
    b"5": "folder",
    b"S": "sparse",
}
_WITHOUT_DATA = b"123456"
_ABOUT_THE_NEXT = (b"L", b"K", b"x", b"X", b"g")


def members(read: Read) -> Iterator[Member]:
    """Every member in order, of archives behind one another too. Damage where the rest cannot be read."""
    offset, ended = 0, False
    always: dict[str, str] = {}  # what a global pax header says
    said: dict[str, str] = {}  # what the headers before the next member say of it
    while header := read(offset, BLOCK):
        if header == _EMPTY:
            offset, ended = _after_zeros(read, offset)
            continue
        kind, size = _checked(header, offset)
        data, ended = offset + BLOCK, False
        if kind in _ABOUT_THE_NEXT:
            (always if kind == b"g" else said).update(_about_the_next(read, kind, size, offset))
            offset = data + _padded(size)
            continue
        facts, said = always | said, {}
        size = _size(facts["size"], offset) if "size" in facts else size
        data += BLOCK * _blocks_of_sparse_map(read, kind, header, data)
        yield _member(kind, header, data, size, facts)
        offset = data if kind in _WITHOUT_DATA else data + _padded(size)
    if not ended:
        words = "ends without the mark of an end, so it may have been cut" if offset else "is empty"
        raise Damage(offset, words)


def _after_zeros(read: Read, offset: int) -> tuple[int, bool]:
    """Where the zeros that begin at `offset` stop, in whole blocks, and whether they are the mark of an end."""
    start = offset
    while chunk := read(offset, _READ_OF_ZEROS):
        rest = chunk.lstrip(b"\0")
        offset += (len(chunk) - len(rest)) // BLOCK * BLOCK if rest else len(chunk)
        if rest:
            break
    return offset, offset - start >= 2 * BLOCK


def _checked(header: bytes, offset: int) -> tuple[bytes, int]:
    """Kind and size of a header whose checksum is right."""
    if len(header) < BLOCK:
        raise Damage(offset, "ends within a header")
    plain = header[:148] + b" " * 8 + header[156:]
    signed = sum(plain) - 256 * sum(byte > 127 for byte in plain)  # as some old programs summed
    if _number(header[148:156], offset) not in (sum(plain), signed):
        raise Damage(offset, "has a damaged header")
    return header[156:157], _number(header[124:136], offset)


def _about_the_next(read: Read, kind: bytes, size: int, offset: int) -> dict[str, str]:
    """What a header without a file of its own says of the member that follows it, in the words of pax."""
    if size > MAX_HEADER_BYTES:
        raise Damage(offset, f"has a name or header of {size} bytes")
    text = read(offset + BLOCK, size)
    if kind in (b"L", b"K"):
        return {"path" if kind == b"L" else "linkpath": _text(text)}
    records: dict[str, str] = {}
    while text.strip(b"\0"):  # "LENGTH KEY=VALUE\n", the length being the record's own
        length, _, _ = text.partition(b" ")
        if not length.isdigit() or not len(length) + 3 <= int(length) <= len(text):
            raise Damage(offset, "has a damaged pax header")
        key, _, value = text[len(length) + 1 : int(length) - 1].partition(b"=")
        records[_text(key)] = _text(value)
        text = text[int(length) :]
    return records


def _blocks_of_sparse_map(read: Read, kind: bytes, header: bytes, data: int) -> int:
    """How many blocks of an old GNU sparse file's map follow its header."""
    count, more = 0, kind == b"S" and header[482] != 0
    while more:
        block = read(data + count * BLOCK, BLOCK)
        count, more = count + 1, len(block) == BLOCK and block[504] != 0
    return count


def _member(kind: bytes, header: bytes, data: int, size: int, facts: dict[str, str]) -> Member:
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
        name = f"{prefix}/{name}"
    found: Kind = _KINDS.get(kind, "other")
    if any(key.startswith("GNU.sparse") for key in facts):
        found = "sparse"
    name = facts.get("path", name)
    if found == "file" and name.endswith("/"):  # of before POSIX
        found = "folder"
    return Member(name, found, data, size, facts.get("linkpath", _text(header[157:257])))


def _number(field: bytes, offset: int) -> int:
    """Octal digits, or base 256 where the first bit is set (GNU)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise Damage(offset, "has a damaged header") from None


def _size(text: str, offset: int) -> int:
    if not text.isdigit() or len(text) > 18:
        raise Damage(offset, "has a damaged pax header")
    return int(text)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
