"""What is in one tar shard: the images' names and byte ranges, and all that is not shown, by reason.

Nothing is ever extracted: an image is a byte range of its shard, so names with "..", links and devices have no effect.
A link inside a shard is another name of a member; it is followed there and nowhere else. A damaged shard gives what
lies before the damage, a truncated member is left out; both are problems.
"""

import io
import json
import posixpath
import tarfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagery.decode import MAX_FILE_BYTES, SUFFIXES, why_no_image
from imagery.left_out import LeftOut
from imagery.samples import Extensions, extensions_of
from imagery.tar_members import BLOCK, Damage, Member, Read, members

VERSION = 1
LOOKS = 8  #: images whose headers are looked at before an index counts
_HOPS = 8  # of links that lead to links


@dataclass
class ShardIndex:
    """The images of one shard: names, where their bytes lie, their extensions; and what was found beside them."""

    names: list[str] = field(default_factory=list)
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    extensions: Extensions = field(default_factory=Extensions)
    problem: str = ""
    lost_bytes: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)


def index_shard(read: Read, size: int) -> ShardIndex:
    """Read the headers of a shard of `size` bytes, no data. Damage ends up in the index, not in an exception."""
    index, found = ShardIndex(), _Found()
    try:
        for member in members(read):
            if member.kind == "file" and member.offset + member.size > size:
                raise Damage(member.offset - 512, f"is cut in the middle of {member.name}")
            found.add(member, index.left_out)
    except Damage as damage:
        index.problem = f"damaged at byte {damage.offset} ({damage}), what follows is lost"
        index.lost_bytes = max(0, size - damage.offset)
    images = found.images(index.left_out)
    index.names = list(images)
    index.offsets = np.array([where[0] for where in images.values()], np.int64)
    index.sizes = np.array([where[1] for where in images.values()], np.int64)
    index.extensions = extensions_of(index.names, dots_in_names=False)
    return index


class _Found:
    """Members as they come; links wait until all are known."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[int, int]] = {}
        self.links: dict[str, str] = {}
        self.order: list[str] = []

    def add(self, member: Member, left_out: LeftOut) -> None:
        name = member.name
        if member.kind == "folder":
            return
        if member.kind in ("sparse", "other"):
            left_out.add("sparse files" if member.kind == "sparse" else "devices, pipes and unknown members", name)
            return
        if name in self.files or name in self.links:  # `tar -r` and concatenation: both are data, and both are shown
            name = self._unused(name)
        if member.kind == "file":
            self.files[name] = member.offset, member.size
        else:
            folder = posixpath.dirname(name) if member.kind == "symbolic link" else ""
            self.links[name] = posixpath.normpath(posixpath.join(folder, member.target))
        self.order.append(name)

    def images(self, left_out: LeftOut) -> dict[str, tuple[int, int]]:
        """Name -> (offset, size) of every image, in order; all else is counted."""
        by_path = {posixpath.normpath(name): where for name, where in self.files.items()}
        links = {posixpath.normpath(name): target for name, target in self.links.items()}
        images: dict[str, tuple[int, int]] = {}
        for name in self.order:
            reason = why_no_image(posixpath.basename(name))
            where = self.files.get(name) or _followed(self.links[name], links, by_path)
            if reason is None and where is None:
                reason = "links that lead to no file of their shard"
            if reason is None and where is not None and where[1] > MAX_FILE_BYTES:
                reason = f"files larger than {MAX_FILE_BYTES} bytes"
            if reason is not None or where is None:
                left_out.add(reason or "", name)
            else:
                images[name] = where
        return images

    def _unused(self, name: str) -> str:
        folder, base = posixpath.split(name)
        number = 2
        while (tried := posixpath.join(folder, f"{number}~{base}")) in self.files or tried in self.links:
            number += 1
        return tried


def _followed(target: str, links: dict[str, str], files: dict[str, tuple[int, int]]) -> tuple[int, int] | None:
    for _ in range(_HOPS):
        if target in files:
            return files[target]
        if target not in links:
            return None
        target = links[target]
    return None


def to_bytes(index: ShardIndex, shard: dict[str, Any]) -> bytes:
    """An index as the file that is kept; `shard` says of which shard it is (size, date)."""
    names = [name.encode("utf-8", "surrogateescape") for name in index.names]
    extensions = index.extensions
    about = {
        "version": VERSION,
        "shard": shard,
        "suffixes": sorted(SUFFIXES),
        "problem": index.problem,
        "lost_bytes": index.lost_bytes,
        "left_out": index.left_out.counts,
        "extensions": extensions.names,
        "companions": sorted(extensions.companions),
        "undecided": extensions.undecided,
    }
    file = io.BytesIO()
    np.savez_compressed(
        file,
        about=np.frombuffer(json.dumps(about).encode("utf-8", "surrogateescape"), np.uint8),
        names=np.frombuffer(b"".join(names), np.uint8),
        lengths=np.array([len(name) for name in names], np.int64),
        offsets=index.offsets,
        sizes=index.sizes,
        extension=np.array(extensions.of, np.int32),
    )
    return file.getvalue()


def from_bytes(content: bytes, shard: dict[str, Any]) -> ShardIndex | None:
    """The index in a file; None if it is damaged, of another version, or of a shard of which `shard` is not true."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            about = json.loads(stored["about"].tobytes().decode("utf-8", "surrogateescape"))
            same = all(about["shard"].get(fact) == value for fact, value in shard.items())
            if not same or (about["version"], about["suffixes"]) != (VERSION, sorted(SUFFIXES)):
                return None
            ends = np.cumsum(stored["lengths"])
            if not _possible(stored, about, about["shard"]["size"]):
                return None
            text = stored["names"].tobytes()
            names = [
                text[end - length : end].decode("utf-8", "surrogateescape")
                for end, length in zip(ends.tolist(), stored["lengths"].tolist(), strict=True)
            ]
            extensions = Extensions(
                about["extensions"], stored["extension"].tolist(), set(about["companions"]), about["undecided"]
            )
            return ShardIndex(
                names,
                stored["offsets"],
                stored["sizes"],
                extensions,
                about["problem"],
                about["lost_bytes"],
                LeftOut(about["left_out"]),
            )
    except Exception:  # whatever can be wrong with a file that somebody else may have written
        return None


def _possible(stored: Any, about: dict[str, Any], size: int) -> bool:
    """Whether an index says one thing of each image, and nothing of bytes that a shard of `size` bytes has not."""
    offsets, sizes, extension = stored["offsets"], stored["sizes"], stored["extension"]
    kinds = {each.dtype.kind for each in (offsets, sizes, extension, stored["lengths"])}
    if kinds != {"i"} or {offsets.shape, sizes.shape, extension.shape} != {stored["lengths"].shape}:
        return False
    if not len(offsets):
        return True
    inside = offsets.min() >= BLOCK and sizes.min() >= 0 and (offsets + sizes).max() <= size
    named = extension.min() >= 0 and extension.max() < len(about["extensions"])
    return bool(inside and named and stored["lengths"].min() >= 0)


def agrees(index: ShardIndex, read: Read) -> bool:
    """Whether headers stand where an index says, of some images: a shard's size and date may outlive its content."""
    for place in np.unique(np.linspace(0, len(index.names) - 1, LOOKS).astype(int)) if index.names else ():
        try:
            header = tarfile.TarInfo.frombuf(read(int(index.offsets[place]) - BLOCK, BLOCK), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return False
        if header.size != index.sizes[place]:
            return False
    return True
