"""`reader: questions`: questions and answers in JSON or JSON lines with named fields, and LLaVA conversations."""

import json
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
from eval_suite.readers.image_files import FileImages
from eval_suite.readers.nodes import FileReaderNode, existing_file, split_of

IMAGE_MARK = "<image>"


class QuestionsNode(FileReaderNode):
    """A file under `root` with one question an entry: a JSON list, an object with it in the field `under`, or lines.

    `format: llava` reads conversations (blip_laion_cc_sbu_558k.json, llava_v1_5_mix665k.json: a list of {"id", "image",
    "conversations": [{"from": "human"|"gpt", "value"}]}). A vision-language model trains on them whole; asked for
    questions, each human turn is one, the next turn its answer, and rows without an image are left out.
    """

    reader: Literal["questions"]
    fit: Literal["stretch", "crop", "pad"] = "pad"
    images: str = "."
    file: str  #: may hold {split}
    format: Literal["fields", "llava"] = "fields"
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: TRAIN, TEST: TEST})
    under: str | None = None  #: field that holds the entries
    image: str = "image"
    suffix: str = ""  #: appended to the image field, e.g. .jpg
    question: str = "question"
    answer: str = "answer"  #: a text or a list of them
    kind: str | None = None  #: field; None: all are of one kind
    rule: str = "exact"

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
        kept = [asked[at] for at in node.kept(len(asked), split)]
        return question_images(self.name, folder / node.images, kept, node, node.rule)

    def conversations(self, split: str) -> ConversationImages:
        """Whole conversations, those without an image included; UserError for any image that is missing."""
        node, folder = self.node, self.node.folder(self.name)
        if node.format != "llava":
            self._missing("conversations (they come with format: llava)", split)
        entries = read_entries(folder / node.file.replace("{split}", split_of(split, node.splits)), node.under)
        kept = [entries[at] for at in node.kept(len(entries), split)]
        if not kept:
            raise UserError(f'data "{self.name}" holds no conversations')
        files = [images_of(entry) for entry in kept]
        rows = {file: row for row, file in enumerate(dict.fromkeys(file for some in files for file in some))}
        images = FileImages(self.name, [folder / node.images / file for file in rows], node.fitting) if rows else None
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
        answers = entry[node.answer] if isinstance(entry[node.answer], list) else [entry[node.answer]]
        kind = str(entry[node.kind]) if node.kind else self.name
        item = AskedQuestion(0, kind, str(entry[node.question]), str(answers[0]), tuple(map(str, answers[1:])))
        return f"{entry[node.image]}{node.suffix}", item


def question_images(
    name: str, folder: Path, asked: Sequence[tuple[str, AskedQuestion]], node: FileReaderNode, rule: str
) -> QuestionImages:
    """(image file, question) pairs -> each image once, its questions pointing at it."""
    if not asked:
        raise UserError(f'data "{name}" holds no questions')
    rows = {file: row for row, file in enumerate(dict.fromkeys(file for file, _ in asked))}
    images = FileImages(name, [folder / file for file in rows], node.fitting)
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
    values = [str(turn["value"]).strip() for turn in turns]
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
    text = existing_file(path, "the questions").read_text(encoding="utf-8-sig")
    try:
        data = json.loads(text)
    except ValueError:
        data = _lines(text, path)
    if field is not None:
        if not isinstance(data, dict) or field not in data:
            raise UserError(f'{path} is no object with the field "{field}"')
        data = data[field]
    elif isinstance(data, dict):
        data = [data]  # one JSON line alone
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise UserError(f"{path} is not a list of objects")
    return data


def letters_of(options: Sequence[str]) -> tuple[str, ...]:
    """A, B, C, ... for as many options."""
    return tuple(chr(ord("A") + at) for at in range(len(options)))


def _lines(text: str, path: Path) -> list[Any]:
    out = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                out.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path} line {number} is not JSON: {error}") from error
    return out
