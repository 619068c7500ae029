"""A data set that is opened once: several probes, and the naming of test sets, ask for the same thing."""

from typing import Any

from common.errors import UserError
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
    """Whatever the data set answered once for a kind of label and a split, it answers again.

    UserError where the other split had the same images, or the same questions on them: whatever the reader, here both
    pass.
    """

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
            found = getattr(self._data, kind)(split)
            for (known, other), before in self._found.items():
                if other != split:
                    _check_apart(self.name, (known, before), (kind, found))
            self._found[kind, split] = found
        return self._found[kind, split]


def _check_apart(name: str, one: tuple[str, Any], other: tuple[str, Any]) -> None:
    """UserError where two splits share what is learnt and judged; labels of different kinds may be of one image."""
    alike = one[0] == other[0] or {one[0], other[0]} == {"questions", "conversations"}
    if not alike or one[0] in ("pairs", "ranked"):
        return
    seen = set(_items(*one, whole=one[0] != other[0]))
    shared = [item for item in _items(*other, whole=one[0] != other[0]) if item in seen]
    if shared:
        what = other[0] if other[0] in ("questions", "conversations") else "images"
        raise UserError(
            f'data "{name}": train and test share {len(shared)} {what}, e.g. {shared[0]}; give each split its own: '
            "{split} in the paths and a name for each in `splits`, or `every: n` or `lists` where the reader has them, "
            "or two sets with `reader: joined`"
        )


def _items(kind: str, found: Any, *, whole: bool) -> list[str]:
    """What must not be in both splits: images; of questions, a question on an image; or the `whole` set of images."""
    if found.images is None:
        return []
    if whole:
        return [found.images.key]
    members = found.images.members()
    if kind == "questions":
        return [f'"{item.question}" on {members[item.row]}' for item in found.questions]
    if kind == "conversations":
        return [f"{item.turns} on {[members[row] for row in item.rows]}" for item in found.conversations]
    return list(members)
