"""COCO-format JSON, checked once when it is read: whose annotation is whose, and what each one has to say."""

import math
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from eval_suite.readers.text_files import read_json

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class CocoFile:
    """Images in the order of their ids, annotations by image id, categories by id."""

    path: Path
    images: Sequence[Entry]
    notes: Mapping[Any, Sequence[Entry]]
    categories: Mapping[Any, Entry]
    numbers: Mapping[Any, int]  #: category id -> position in the list

    def category(self, note: Entry) -> Entry:
        """The category of an annotation or segment; UserError where there is none or it is not listed."""
        found = note.get("category_id")
        if found is None:
            raise UserError(f"{self.where(note)} has no category_id")
        if found not in self.categories:
            hint = _other_type(found, self.categories)
            raise UserError(f"{self.where(note)} is of category {found!r}, which is not listed{hint}")
        return self.categories[found]

    def number(self, note: Entry) -> int:
        """The position of its category in the list."""
        self.category(note)
        return self.numbers[note["category_id"]]

    def where(self, note: Entry) -> str:
        """What to call an annotation in an error."""
        named = f"annotation {note['id']!r}" if "id" in note else "an annotation"
        return f"{self.path}: {named}" + (f" of image {note['image_id']!r}" if "image_id" in note else "")

    def need(self, note: Entry, *fields: str) -> None:
        """UserError unless the annotation has the fields, filled."""
        if missing := [field for field in fields if note.get(field) is None]:
            raise UserError(f"{self.where(note)} has no {', '.join(missing)}; complete it, or take it out")

    def crowd(self, note: Entry) -> bool:
        """Whether an annotation is a region of many objects."""
        found = note.get("iscrowd", 0)
        if found not in (0, 1):
            raise UserError(f"{self.where(note)} has iscrowd {found!r}; it is 0 or 1")
        return bool(found)

    def number_in(self, note: Entry, field: str, value: Any) -> float:
        """A finite number out of a field; UserError for anything else."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{self.where(note)} has {value!r} in {field}, which is no number")
        return float(value)

    def names(self) -> tuple[str, ...]:
        """Names of the categories; UserError where there are none."""
        if not self.categories:
            raise UserError(f"{self.path} lists no categories, so nothing says what its annotations are of")
        return tuple(str(category["name"]) for category in self.categories.values())


def read_coco(path: Path, *, orphans: bool = False) -> CocoFile:
    """A COCO-format JSON; UserError for what is missing, for ids that are no ids, and for those that do not meet.

    An annotation of an image that is not listed is refused, or left out where `orphans`.
    """
    data = read_json(path, "the COCO annotations")
    if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
        raise UserError(f"{path} is not COCO annotations: it lacks images or annotations")
    lists = [data["images"], data["annotations"], data.get("categories") or []]
    for what, some in zip(("images", "annotations", "categories"), lists, strict=True):
        if not isinstance(some, list) or not all(isinstance(entry, dict) for entry in some):
            raise UserError(f"{path}: {what} is not a list of objects")
    images, notes, categories = lists
    if not notes:
        raise UserError(f"{path} has no annotations at all")
    _identified(path, "image", images, ("file_name",))
    _identified(path, "category", categories, ("name",))
    _once(path, "image", "file_name", (posixpath.normpath(image["file_name"]) for image in images))
    _once(path, "category", "name", (category["name"] for category in categories))
    for category in categories:
        if isinstance(names := category.get("keypoints"), list):
            _once(path, f"the keypoints of category {category['name']!r}", "name", map(str, names))
    _once(path, "annotation", "id", (note["id"] for note in notes if "id" in note))
    by_image: dict[Any, list[Entry]] = {image["id"]: [] for image in images}
    for note in notes:
        owner = note.get("image_id")
        if owner in by_image:
            by_image[owner].append(note)
        elif not orphans:
            raise UserError(
                f"{path}: an annotation is of image {owner!r}, which is not among the {len(images)} listed"
                f"{_other_type(owner, by_image)}; correct the ids, or say missing: skip to leave such ones out"
            )
    if not any(by_image.values()):
        raise UserError(f"{path}: no annotation is of a listed image{_other_type(notes[0].get('image_id'), by_image)}")
    ordered = sorted(images, key=lambda image: image["id"])
    by_id = {category["id"]: category for category in categories}
    return CocoFile(path, ordered, by_image, by_id, {one: at for at, one in enumerate(by_id)})


def _identified(path: Path, what: str, entries: Sequence[Entry], fields: Sequence[str]) -> None:
    """Every entry has an id of one type, which no other has, and the named fields as texts."""
    for entry in entries:
        if not isinstance(entry.get("id"), int | str) or isinstance(entry["id"], bool):
            raise UserError(
                f"{path}: the id of {what} {str(dict(entry))[:60]} is {entry.get('id')!r}, no number or text"
            )
        if missing := [field for field in fields if not isinstance(entry.get(field), str) or not entry[field]]:
            raise UserError(f"{path}: {what} {entry['id']!r} has no {', '.join(missing)}")
    if len({type(entry["id"]) for entry in entries}) > 1:
        raise UserError(f"{path}: some ids of its {what} list are numbers and some texts; write them all alike")
    _once(path, what, "id", (entry["id"] for entry in entries))


def _once(path: Path, what: str, field: str, values: Iterable[Any]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise UserError(f"{path}: {len(twice)} times two of {what} have one {field}, the first is {twice[0]!r}")


def _other_type(value: Any, known: Mapping[Any, Any]) -> str:
    """A word on an id that is there, but as a text where it is a number or the other way round."""
    if str(value) in {str(key) for key in known}:
        return f" (there is {value!r} as a {'number' if isinstance(value, str) else 'text'})"
    return ""
