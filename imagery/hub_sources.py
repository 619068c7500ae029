"""Images of Hugging Face data sets: from the Hub, from a folder that `save_to_disk` wrote, from parquet or image files.

`HubSource` reaches any image at once; `HubStream` reads in sequence, from where the data lie, and resumes exactly.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.digests import digest_bytes, short
from common.errors import UserError
from common.keyed_random import mix, permute
from imagery.contracts import Content, Item
from imagery.hub_values import content_of, decode_value, digest_value, image_column, stored_lengths, undecoded
from imagery.identity import PREFIX, SAMPLED_IMAGES
from imagery.left_out import LeftOut

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

WINDOW = 1024  # undecoded images held and shuffled when streaming; 100-200 MB of typical photographs
_SAMPLED_SHARDS = 4  # of a stream: each costs a connection at the start
_SHARDS_OF_LOCAL = 64


@dataclass(frozen=True)
class HubDataset:
    """Which data set: a Hub name or a local path, and what `datasets.load_dataset` needs to know about it."""

    name: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    data_files: str | None = None

    def open(self, *, streaming: bool) -> "Dataset | IterableDataset":
        """UserError if there is no such data set, split or configuration, or if it cannot be reached."""
        try:
            return self._open(streaming)
        except UserError:
            raise
        except Exception as error:
            # Hub, network, file formats: no common base class. The library's first line says what is wrong.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"cannot open the data set {self.name} (split {self.split}): {reason}") from error

    def _open(self, streaming: bool) -> "Dataset | IterableDataset":
        from datasets import load_dataset

        path = Path(self.name).expanduser()
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = self._open_saved(path)
            return saved.to_iterable_dataset(max(1, min(_SHARDS_OF_LOCAL, len(saved)))) if streaming else saved
        if path.suffix == ".parquet":
            return load_dataset("parquet", data_files=str(path), split="train", streaming=streaming)
        if self.name.startswith(("/", ".", "~")) and not path.exists():
            raise UserError(f"no such data set: {path}")
        return load_dataset(
            str(path) if path.exists() else self.name,
            self.config,
            split=self.split,
            revision=self.revision,
            data_files=self.data_files,
            streaming=streaming,
        )

    def _open_saved(self, path: Path) -> "Dataset":
        from datasets import DatasetDict, load_from_disk

        saved = load_from_disk(str(path))
        if not isinstance(saved, DatasetDict):
            return saved
        if self.split not in saved:
            raise UserError(f'{path} has no split "{self.split}"; it has: {", ".join(saved)}')
        return saved[self.split]


class HubSource:
    """A data set that can be read at any index."""

    def __init__(self, dataset: HubDataset, column: str | None) -> None:
        self.name = f"hf:{dataset.name}"
        opened = dataset.open(streaming=False)
        self.column = image_column(self.name, opened, column)
        self._rows = undecoded(opened, self.column)
        self._short = Path(dataset.name).name
        self.problems: list[str] = []
        self.lost_share = 0.0
        self.left_out = LeftOut()
        if not len(self):
            raise UserError(f"{self.name} (split {dataset.split}) holds no images")
        self.fingerprint = self._fingerprint()

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Content:
        return content_of(self._rows[index][self.column])

    def load(self, index: int) -> np.ndarray:
        return decode_value(self._rows[index][self.column])

    def key(self, index: int) -> str:
        return f"{self._short}[{index}]"

    def _fingerprint(self) -> str:
        """From every image's size where the table tells it, and the whole content of some."""
        lengths = stored_lengths(self._rows, self.column)
        listing = digest_bytes(str(len(self)).encode(), b"" if lengths is None else lengths.tobytes())
        key, count = int(short(listing), 16), len(self)
        places = [permute(number, count, key) for number in range(min(count, SAMPLED_IMAGES))]
        samples = [digest_value(self._rows[place][self.column]) for place in places]
        return PREFIX + digest_bytes(listing.encode(), *samples)


class HubStream:
    """A data set read in sequence: nothing is downloaded beforehand. Shards are shuffled, then windows within them."""

    def __init__(self, dataset: HubDataset, column: str | None, window: int) -> None:
        if window < 1:
            raise UserError(f"hf: window is at least 1, got {window}")
        self.name = f"hf:{dataset.name} (streaming)"
        self.window = window
        opened = dataset.open(streaming=True)
        first = self._first(opened)
        self.column = image_column(self.name, opened, column, first)
        self._rows = undecoded(opened, self.column)
        self._short = Path(dataset.name).name
        self.problems: list[str] = []
        self.lost_share = 0.0
        self.left_out = LeftOut()
        self.fingerprint = self._fingerprint()

    def open_epoch(self, epoch: int, seed: int, *, shuffle: bool, state: dict[str, Any] | None) -> "HubReader":
        count = self._rows.num_shards
        key = mix(seed, epoch)
        order = [permute(place, count, key) if shuffle else place for place in range(count)]
        return HubReader(self, self._rows, order, state)

    def describe(self, shard: int, record: int) -> str:
        return f"{self._short}[shard {shard}, record {record}]"

    def _fingerprint(self) -> str:
        """From the number of shards and the first image of some: more would have to be downloaded."""
        count = self._rows.num_shards
        numbers = sorted({place * count // _SAMPLED_SHARDS for place in range(_SAMPLED_SHARDS)})
        shards = [self._rows.shard(num_shards=count, index=number) for number in numbers]
        rows = [next(guarded(self.name, iter(shard)), None) for shard in shards]
        samples = [b"" if row is None else digest_value(row[self.column]) for row in rows]
        return f"{PREFIX}{digest_bytes(*samples)} of {count} shards, window {self.window}"

    def _first(self, rows: "IterableDataset") -> dict[str, Any]:
        for row in guarded(self.name, iter(rows)):
            return row
        raise UserError(f"{self.name} holds no images")


class HubReader:
    """One pass over a stream, shard by shard, so that the order of shards and the place within one are ours to keep."""

    def __init__(
        self, stream: HubStream, rows: "IterableDataset", order: list[int], state: dict[str, Any] | None
    ) -> None:
        self._stream, self._rows, self._order = stream, rows, order
        start = state or {"place": 0, "record": 0, "shard": None}
        self._place, self._record, self._shard_state = start["place"], start["record"], start["shard"]
        self._shard: IterableDataset | None = None
        self._iterator: Iterator[dict[str, Any]] | None = None

    def read(self, count: int) -> list[Item]:
        items: list[Item] = []
        while len(items) < count and self._place < len(self._order):
            row = next(self._opened(), None)
            if row is None:
                self._place, self._record, self._shard_state = self._place + 1, 0, None
                self._shard, self._iterator = None, None
                continue
            key = self._stream.describe(self._order[self._place], self._record)
            items.append(Item(key, partial(content_of, row[self._stream.column])))
            self._record += 1
        return items

    def state(self) -> dict[str, Any]:
        shard = self._shard_state if self._shard is None else self._shard.state_dict()
        return {"place": self._place, "record": self._record, "shard": shard}

    def _opened(self) -> Iterator[dict[str, Any]]:
        if self._iterator is None:
            self._shard = self._rows.shard(num_shards=len(self._order), index=self._order[self._place])
            if self._shard_state is not None:
                self._shard.load_state_dict(self._shard_state)
            self._iterator = guarded(self._stream.name, iter(self._shard))
        return self._iterator


def guarded(name: str, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Pass rows on; whatever stops the library from reading further becomes a UserError."""
    try:
        yield from rows
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name}: reading stopped: {reason}") from error
