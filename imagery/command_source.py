"""Tar shards that commands write to their output (`webdataset:pipe:COMMAND`), read in sequence.

A command runs because the user typed it in the recipe; no file of ours or of a data set can name one. Braces make
several commands, one a shard: their order is shuffled, and images within windows. To go on in the middle of a shard its
command runs again and what was seen is passed over, so a command has to write the same each time.
"""

import os
import posixpath
import signal
import subprocess
from collections.abc import Generator, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from common.digests import digest_bytes
from common.errors import UserError
from common.keyed_random import mix, permute
from imagery.contracts import Content, Item
from imagery.decode import MAX_FILE_BYTES, BadImage, why_no_image
from imagery.identity import PREFIX
from imagery.left_out import LeftOut
from imagery.patterns import expand_braces
from imagery.samples import EVERY, split
from imagery.tar_members import Damage, members

_PIECE = 1 << 20


class CommandSource:
    """The images of shards that commands write. pick: as for shards; companions are seen per sample."""

    def __init__(self, pattern: str, *, pick: str | None, window: int) -> None:
        if window < 1:
            raise UserError(f"webdataset: window is at least 1, got {window}")
        self.name = f"webdataset:pipe:{pattern}"
        self.commands = expand_braces(pattern)
        self.window = window
        self.picked = None if pick is None else {each.strip().lower().removeprefix(".") for each in pick.split(",")}
        self.problems: list[str] = []
        self.lost_share = 0.0
        self.left_out = LeftOut()
        images = self.shard(0)
        first = next(images, None)
        images.close()
        if first is None:
            raise UserError(f"{self.name} holds no images")
        self.left_out = LeftOut()  # the look at the first image is no pass over the data
        sample = first[1] if isinstance(first[1], bytes) else b""
        self.fingerprint = f"{PREFIX}{digest_bytes(sample)} of {len(self.commands)} shards, window {window}"
        if self.picked is not None:  # it decides which members are images, and so where a run is in a shard
            self.fingerprint += f", pick {','.join(sorted(self.picked))}"

    def open_epoch(self, epoch: int, seed: int, *, shuffle: bool, state: dict[str, Any] | None) -> "CommandReader":
        count, key = len(self.commands), mix(seed, epoch)
        order = [permute(place, count, key) if shuffle else place for place in range(count)]
        return CommandReader(self, order, state or {"place": 0, "record": 0})

    def shard(self, number: int) -> Generator[tuple[str, Content], None, None]:
        """(name, content) of every image of one shard. UserError if its command fails or writes no whole archive."""
        command = self.commands[number]
        # In a session of its own: Ctrl-C asks the run to stop after its update, for which the command has to go on.
        with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, start_new_session=True) as process:
            assert process.stdout is not None
            output = _Forward(process.stdout)
            beside: tuple[str, str] = ("", "")
            try:
                for member in members(output.read):
                    key, extension = split(member.name)
                    reason = why_no_image(posixpath.basename(member.name))
                    if member.kind == "folder":
                        continue
                    if member.kind != "file":
                        reason = "links, devices and sparse files, which a stream cannot follow"
                    elif reason is None and member.size > MAX_FILE_BYTES:
                        reason = f"files larger than {MAX_FILE_BYTES} bytes"
                    elif reason is None and not self._is_picked(key, extension, beside):
                        reason = f".{extension} pictures stand beside the images of samples"
                    if reason is not None:
                        self.left_out.add(reason, member.name)
                        continue
                    beside = key, extension
                    yield member.name, output.read(member.offset, member.size)
            except Damage as damage:
                process.stdout.close()  # a command that still writes would wait for a reader
                code = process.wait()
                said = f"; it ended with exit code {code}" if code > 0 else ""
                raise UserError(f"what `{command}` wrote {damage} (byte {damage.offset}){said}") from damage
            except GeneratorExit:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # what the shell has started too
                raise
            if process.wait():
                raise UserError(f"`{command}` ended with exit code {process.returncode}")

    def _is_picked(self, key: str, extension: str, beside: tuple[str, str]) -> bool:
        """Whether a picture is an image, `beside` being the last image before it."""
        if self.picked is not None:
            return EVERY in self.picked or extension in self.picked
        if beside[0] == key:
            raise UserError(
                f"{self.name}: samples have several pictures ({key}.{beside[1]} and {key}.{extension}); say which are "
                f"images by their extension, e.g. ?pick={min(beside[1], extension, key=len)}, or ?pick=* for all"
            )
        return True


class CommandReader:
    """One pass over the shards."""

    def __init__(self, source: CommandSource, order: list[int], state: dict[str, Any]) -> None:
        self._source, self._order = source, order
        self._place, self._record = state["place"], state["record"]
        self._shard: Iterator[tuple[str, Content]] | None = None

    def read(self, count: int) -> list[Item]:
        items: list[Item] = []
        while len(items) < count and self._place < len(self._order):
            found = next(self._opened(), None)
            if found is None:
                self._place, self._record, self._shard = self._place + 1, 0, None
                continue
            name, content = found
            items.append(Item(f"shard {self._order[self._place]}:{name}", partial(_given, content)))
            self._record += 1
        return items

    def state(self) -> dict[str, Any]:
        return {"place": self._place, "record": self._record}

    def _opened(self) -> Iterator[tuple[str, Content]]:
        if self._shard is None:
            self._shard = self._source.shard(self._order[self._place])
            for _ in range(self._record):
                if next(self._shard, None) is None:
                    raise UserError(
                        f"{self._source.name} gave fewer images than before; a command has to repeat itself"
                    )
        return self._shard


def _given(content: Content) -> Content:
    if not isinstance(content, bytes) or not content:
        raise BadImage("an empty file")
    return content


class _Forward:
    """Bytes at offsets of a stream that goes forward alone."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._reached = stream, 0
        self._held, self._start = b"", 0  # the last bytes given: a header is looked at, then read on from its end

    def read(self, offset: int, size: int) -> bytes:
        while self._reached < offset:
            passed = self._stream.read(min(_PIECE, offset - self._reached))
            if not passed:
                return b""
            self._reached += len(passed)
        return self._back(offset, size) if offset < self._reached else self._on(size)

    def _on(self, size: int) -> bytes:
        self._start, self._held = self._reached, self._stream.read(size)
        self._reached += len(self._held)
        return self._held

    def _back(self, offset: int, size: int) -> bytes:
        known = self._held[offset - self._start :][:size]
        if len(known) == size:
            return known
        more = self._stream.read(size - len(known))
        self._start, self._held = offset, known + more
        self._reached += len(more)
        return self._held
