"""`reader: questions`: questions and answers in JSON or JSON lines with named fields, and LLaVA conversations."""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from common.errors import UserError
from eval_suite.readers.contracts import (
    TEST,
    TRAIN,
    AskedQuestion,
    Conversation,
    ConversationImages,
    LabelledData,
    QuestionImages,
)
from eval_suite.readers.nodes import FileReaderNode, SkippingNode, split_of
from eval_suite.readers.text_files import lines_of, parse_json, read_text

IMAGE_MARK = "<image>"


class QuestionsNode(SkippingNode):
    """A file under `root` with one question an entry: a JSON list, an object with it in the field `under`, or lines.

    `format: llava` reads conversations (blip_laion_cc_sbu_558k.json, llava_v1_5_mix665k.json: a list of {"id", "image",
    "conversations": [{"from": "human"|"gpt", "value"}]}). A vision-language model trains on them whole; asked for
    questions, each human turn is one, the next turn its answer, and rows without an image are left out.
    """

    reader: Literal["questions"]
    fit: Literal["stretch", "crop", "pad"] = "pad"
    images: str = "."  #: folder under root
    file: str  #: may hold {split}
    format: Literal["fields", "llava"] = "fields"  #: entries with named fields, or LLaVA's conversations
    #: train, test -> the name of that split in this layout
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: TRAIN, TEST: TEST})
    under: str | None = None  #: field that holds the entries
    image: str = "image"  #: field of the image's file name
    suffix: str = ""  #: appended to the image field, e.g. .jpg
    question: str = "question"  #: field of the question
    answer: str = "answer"  #: a text or a list of them
    kind: str | None = None  #: field; None: all are of one kind
    rule: str = "exact"  #: how replies are scored

    def open(self, name: str) -> "QuestionFiles":
        self.folder(name)
        return QuestionFiles(name, self)


class QuestionFiles(LabelledData):
    """Questions by image file."""

    def __init__(self, name: str, node: QuestionsNode) -> None:
        self.name = name
        self.node = node

    def questions(self, split: str) -> QuestionImages:
        node, folder = self.node, self.node.folder(self.name)
        path = folder / node.file.replace("{split}", split_of(split, node.splits))
        entries = read_entries(path, node.under)
        if node.format == "llava":
            asked = [item for entry in entries for item in llava_questions(entry, self.name)]
        else:
            asked = [self._item(entry, path) for entry in entries]
        asked = node.there(self.name, split, asked, lambda item: [folder / node.images / item[0]])
        kept = [asked[at] for at in node.kept(len(asked), split)]
        return question_images(self.name, folder / node.images, kept, node, node.rule)

    def conversations(self, split: str) -> ConversationImages:
        """Whole conversations, those without an image included; UserError for any image that is missing."""
        node, folder = self.node, self.node.folder(self.name)
        if node.format != "llava":
            self._missing("conversations (they come with format: llava)", split)
        entries = read_entries(folder / node.file.replace("{split}", split_of(split, node.splits)), node.under)
        place = folder / node.images
        entries = node.there(self.name, split, entries, lambda entry: [place / file for file in images_of(entry)])
        kept = [entries[at] for at in node.kept(len(entries), split)]
        if not kept:
            raise UserError(f'data "{self.name}" holds no conversations')
        files = [images_of(entry) for entry in kept]
        rows = {file: row for row, file in enumerate(dict.fromkeys(file for some in files for file in some))}
        images = node.photographs(self.name, [folder / node.images / file for file in rows]) if rows else None
        return ConversationImages(
            images,
            [
                Conversation(tuple(rows[file] for file in some), tuple(turns_of(entry, self.name)))
                for entry, some in zip(kept, files, strict=True)
            ],
        )

    def _item(self, entry: Mapping[str, Any], path: Path) -> tuple[str, AskedQuestion]:
        node = self.node
        for field in filter(None, (node.image, node.question, node.answer, node.kind)):
            if field not in entry:
                raise UserError(f'{path}: an entry has no field "{field}"; it has: {", ".join(entry)}')
        first, *others = answers_of(entry[node.answer], f'{path}: the question "{str(entry[node.question])[:60]}"')
        kind = str(entry[node.kind]) if node.kind else self.name
        item = AskedQuestion(0, kind, said(entry[node.question], f"{path}: a question"), first, tuple(others))
        return posixpath.normpath(f"{entry[node.image]}{node.suffix}"), item


def question_images(
    name: str, folder: Path, asked: Sequence[tuple[str, AskedQuestion]], node: FileReaderNode, rule: str
) -> QuestionImages:
    """(image file, question) pairs -> each image once, its questions pointing at it."""
    if not asked:
        raise UserError(f'data "{name}" holds no questions')
    rows = {file: row for row, file in enumerate(dict.fromkeys(file for file, _ in asked))}
    images = node.photographs(name, [folder / file for file in rows])
    placed = [replace(item, row=rows[file]) for file, item in asked]
    return QuestionImages(images, placed, rule)


def images_of(entry: Mapping[str, Any]) -> list[str]:
    """Image files of a LLaVA conversation: none, one, or the several that later mixes list."""
    found = entry.get("image") or []
    return [found] if isinstance(found, str) else list(found)


def turns_of(entry: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    """(question, answer) of each exchange of a LLaVA conversation, `<image>` marks left in."""
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise UserError(f'data "{name}": entry {entry.get("id")} has no "conversations"; it has: {", ".join(entry)}')
    if turns[0].get("from") != "human":  # as LLaVA does: some of its conversations open with an answer
        turns = turns[1:]
    if (
        not turns
        or len(turns) % 2
        or any(turn.get("from") != ("human", "gpt")[at % 2] for at, turn in enumerate(turns))
    ):
        raise UserError(f'data "{name}": conversation {entry.get("id")} is not human and gpt in turn')
    values = [said(turn.get("value"), f'data "{name}": conversation {entry.get("id")}').strip() for turn in turns]
    return list(zip(values[::2], values[1::2], strict=True))


def llava_questions(entry: Mapping[str, Any], name: str) -> list[tuple[str, AskedQuestion]]:
    """Turns of a LLaVA conversation as questions; [] for a text-only row."""
    files = images_of(entry)
    return [
        (files[0], AskedQuestion(0, name, question.replace(IMAGE_MARK, "").strip(), answer))
        for question, answer in turns_of(entry, name)
        if files
    ]


def read_entries(path: Path, field: str | None = None) -> list[dict[str, Any]]:
    """Objects of a JSON list, of a list under `field`, or of JSON lines; UserError for anything else."""
    text = read_text(path, "the questions")
    lines = lines_of(path, "the questions")
    try:
        data = parse_json(text, str(path))
    except UserError:
        if len(lines) < 2 or not isinstance(_value(lines[0][1]), dict):
            raise  # JSON lines have an object on their first line
        data = [parse_json(line, f"{path} line {number}") for number, line in lines]
    if field is not None:
        if not isinstance(data, dict) or field not in data:
            raise UserError(f'{path} is no object with the field "{field}"')
        data = data[field]
    elif isinstance(data, dict):
        data = [data]  # one JSON line alone
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise UserError(f"{path} is not a list of objects")
    return data


def _value(text: str) -> Any:
    try:
        return parse_json(text, "")
    except UserError:
        return None


def said(value: Any, where: str) -> str:
    """A text or a number as text; UserError for nothing (null, NaN, "", a list)."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value or not str(value).strip():
        raise UserError(f"{where} holds {value!r} where a text belongs")
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)  # 3.0 is 3 in JSON


def answers_of(value: Any, where: str) -> list[str]:
    """An answer or a list of them, of which some people's may be empty; UserError where nobody answered."""
    found = list(value) if isinstance(value, list | tuple) else [value]
    if not any((isinstance(one, str) and one.strip()) or not isinstance(one, str) for one in found):
        raise UserError(f"{where} has no answer")
    return [one if one == "" else said(one, f"the answer of {where}") for one in found]


def option_of(answer: Any, options: Sequence[Any], where: str, kind: str | None = None) -> str:
    """The letter of the right option, from the option's text, its letter, or its number from 0.

    `kind` ("text", "letter", "number", "number_from_1") says which it is. Without it every reading is tried, and
    UserError where two of them name different options; a number has to be stored as one.
    """
    texts = [said(option, f"an option of {where}").strip() for option in options]
    letters, word = letters_of(texts), said(answer, f"the answer of {where}").strip()
    found = {name: read for name, read in _readings(answer, word, texts, letters).items() if kind in (None, name)}
    if kind is None:
        found.pop("number_from_1", None)
        if isinstance(answer, str):
            found.pop("number", None)
    named = {letter for some in found.values() for letter in some}
    if len(named) == 1:
        return named.pop()
    if not named:
        raise UserError(
            f'{where}: the answer "{word[:60]}" is none of the {len(texts)} options'
            + (
                "; if it is their number say answer_is: number or number_from_1"
                if word.isdigit() and kind is None
                else ""
            )
        )
    raise UserError(
        f'{where}: the answer "{word[:60]}" may be option {" or ".join(sorted(named))} '
        f"({', '.join(sorted(name for name, some in found.items() if some))}); say which with answer_is"
    )


def _readings(answer: Any, word: str, texts: Sequence[str], letters: Sequence[str]) -> dict[str, list[str]]:
    """Every way to read an answer -> letters of the options that it would name."""
    number = int(word) if word.isascii() and word.isdigit() else -1
    return {
        "text": [letter for letter, text in zip(letters, texts, strict=True) if text == word],
        "letter": [letter for letter in letters if letter == word.upper().strip("().")],
        "number": list(letters[number : number + 1]) if number >= 0 else [],
        "number_from_1": list(letters[number - 1 : number]) if number >= 1 else [],
    }


def letters_of(options: Sequence[str]) -> tuple[str, ...]:
    """A, B, C, ... for as many options."""
    return tuple(chr(ord("A") + at) for at in range(len(options)))
