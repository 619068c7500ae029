"""A data set that is opened once: several probes, and the naming of test sets, ask for the same thing."""

from typing import Any

from eval_suite.provenance import contents_of
from eval_suite.readers.contracts import (
    CaptionedImages,
    ClassifiedImages,
    ConversationImages,
    DenseImages,
    ImagePairs,
    InstanceImages,
    KeypointImages,
    LabelledData,
    QuestionImages,
    RankedImages,
)


class Remembered(LabelledData):
    """Whatever the data set answered once for a kind of label and a split, it answers again."""

    def __init__(self, data: LabelledData) -> None:
        self.name = data.name
        self._data = data
        self._found: dict[tuple[str, str], Any] = {}
        self._contents: dict[tuple[str, str, tuple[str, ...]], dict[str, str]] = {}

    def classes(self, split: str) -> ClassifiedImages:
        return self._ask("classes", split)

    def dense(self, split: str) -> DenseImages:
        return self._ask("dense", split)

    def captions(self, split: str) -> CaptionedImages:
        return self._ask("captions", split)

    def pairs(self, split: str) -> ImagePairs:
        return self._ask("pairs", split)

    def keypoints(self, split: str) -> KeypointImages:
        return self._ask("keypoints", split)

    def instances(self, split: str) -> InstanceImages:
        return self._ask("instances", split)

    def questions(self, split: str) -> QuestionImages:
        return self._ask("questions", split)

    def conversations(self, split: str) -> ConversationImages:
        return self._ask("conversations", split)

    def ranked(self, split: str) -> RankedImages:
        return self._ask("ranked", split)

    def contents(self, kind: str, split: str, labels: tuple[str, ...]) -> dict[str, str]:
        """Digests of its images and labels, by what to call them; see `provenance.contents_of`."""
        asked = kind, split, labels
        if asked not in self._contents:
            self._contents[asked] = contents_of(self, kind, split, labels)
        return self._contents[asked]

    def _ask(self, kind: str, split: str) -> Any:
        if (kind, split) not in self._found:
            self._found[kind, split] = getattr(self._data, kind)(split)
        return self._found[kind, split]
