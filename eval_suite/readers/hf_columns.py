"""`reader: hf`: a Hugging Face data set, local or on the Hub, whose columns are named in the recipe."""

import io
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator

from common.errors import UserError, unknown
from common.recipes import Node
from eval_suite.readers.contracts import (
    TEST,
    TRAIN,
    AskedQuestion,
    CaptionedImages,
    ClassifiedImages,
    DenseImages,
    LabelledData,
    QuestionImages,
)
from eval_suite.readers.fitting import Fit, Mode
from eval_suite.readers.image_files import MadeImages
from eval_suite.readers.label_files import FILL, RASTER_FORMATS, DecodedMaps, to_classes
from eval_suite.readers.nodes import ReaderNode, expanded, rows_of, split_of
from eval_suite.readers.question_files import letters_of
from imagery.decode import MAX_PIXELS, BadImage, decode_image


class MaskColumn(Node):
    """A column of class maps stored as images."""

    column: str
    classes: int | tuple[str, ...]
    first: int = 0
    ignore: tuple[int, ...] = (255,)


class DepthColumn(Node):
    """A column of depth maps stored as images or arrays; metres = scale x value."""

    column: str
    scale: float = Field(default=1.0, gt=0)


class HfNode(ReaderNode):
    """Columns by what they mean; those that are not named do not exist for the probes."""

    reader: Literal["hf"]
    path: str  #: Hub name, folder of parquet files, or what save_to_disk wrote
    config: str | None = None
    revision: str | None = None
    cache_dir: str | None = None  #: where the library keeps its copies
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: "train", TEST: "validation"})
    size: int | tuple[int, int] = 224
    fit: Mode = "crop"
    limit: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    image: str = "image"
    label: str | None = None  #: class numbers, or names
    label_names: tuple[str, ...] | None = None  #: where the column does not say them
    caption: str | None = None  #: a caption or a list of them
    question: str | None = None
    answer: str | None = None  #: an answer, a list of them, an option number or letter
    options: str | None = None  #: a list of options
    kind: str | None = None  #: column that says which kind of question it is
    rule: str = "exact"  #: how replies are scored
    masks: dict[str, MaskColumn] = Field(default_factory=dict)
    depth: DepthColumn | None = None

    @model_validator(mode="after")
    def _paired(self) -> "HfNode":
        if (self.question is None) != (self.answer is None):
            raise ValueError("question and answer go together")
        return self

    def open(self, name: str) -> "HfData":
        return HfData(name, self)

    @property
    def fitting(self) -> Fit:
        """The size as the fitting of images wants it."""
        return Fit(self.size, self.size, self.fit) if isinstance(self.size, int) else Fit(*self.size, self.fit)


class HfData(LabelledData):
    """A data set of the `datasets` library."""

    def __init__(self, name: str, node: HfNode) -> None:
        self.name = name
        self.node = node
        self._splits: dict[str, HfSplit] = {}

    def classes(self, split: str) -> ClassifiedImages:
        part = self._split(split)
        if self.node.label is None:
            self._missing("class labels", split)
        values = list(part.table[self.node.label])
        names = self.node.label_names or part.class_names(self.node.label)
        if values and isinstance(values[0], str):
            names = names or tuple(sorted({str(value) for value in (*values, *self._other_labels(split))}))
            numbers = [names.index(value) if value in names else None for value in values]
        else:
            numbers = [value if isinstance(value, int) and value >= 0 else None for value in values]
            names = names or tuple(str(number) for number in range(max((n or 0 for n in numbers), default=0) + 1))
        for row, (number, value) in enumerate(zip(numbers, values, strict=True)):
            if number is None or number >= len(names):
                raise UserError(
                    f'data "{self.name}": row {row} of {split} has the label {value!r} in column "{self.node.label}", '
                    f"which is none of the {len(names)} classes; name another column, or set label_names"
                )
        return ClassifiedImages(part.images, rows_of(len(part.images)), torch.tensor(numbers), names)

    def captions(self, split: str) -> CaptionedImages:
        part = self._split(split)
        if self.node.caption is None:
            self._missing("captions", split)
        texts = [[said] if isinstance(said, str) else list(said) for said in part.table[self.node.caption]]
        return CaptionedImages(part.images, rows_of(len(part.images)), texts)

    def dense(self, split: str) -> DenseImages:
        part, maps, names = self._split(split), {}, {}
        for label, node in self.node.masks.items():
            count = node.classes if isinstance(node.classes, int) else len(node.classes)
            names[label] = tuple(map(str, range(count))) if isinstance(node.classes, int) else node.classes
            maps[label] = part.maps(_mask_decoder(part, node, count), self.node.fitting, FILL["classes"])
        if self.node.depth is not None:
            maps["depth"] = part.maps(_depth_decoder(part, self.node.depth), self.node.fitting, 0)
        if not maps:
            self._missing("label maps", split)
        return DenseImages(part.images, rows_of(len(part.images)), maps, names, {})

    def questions(self, split: str) -> QuestionImages:
        node, part = self.node, self._split(split)
        if node.question is None or node.answer is None:
            self._missing("questions", split)
        table = part.table
        kinds = table[node.kind] if node.kind else [self.name] * len(table)
        options = table[node.options] if node.options else [()] * len(table)
        asked = [
            hf_question(row, str(kind), question, answer, tuple(some or ()))
            for row, (kind, question, answer, some) in enumerate(
                zip(kinds, table[node.question], table[node.answer], options, strict=True)
            )
        ]
        return QuestionImages(part.images, asked, node.rule)

    def _other_labels(self, split: str) -> list[str]:
        return [
            value for other in self.node.splits if other != split for value in self._split(other).table[self.node.label]
        ]

    def _split(self, split: str) -> "HfSplit":
        if split not in self._splits:
            self._splits[split] = HfSplit(self.name, self.node, split)
        return self._splits[split]


class HfSplit:
    """One split, opened, its images undecoded."""

    def __init__(self, name: str, node: HfNode, split: str) -> None:
        from datasets import Image as ImageColumn

        table = load(node, name, split)
        columns = [node.image, node.label, node.caption, node.question, node.answer, node.options, node.kind]
        columns += [mask.column for mask in node.masks.values()] + ([node.depth.column] if node.depth else [])
        for column in filter(None, columns):
            if column not in table.column_names:
                raise unknown(f'column of data "{name}"', column, table.column_names)
        if (most := node.limit.get(split)) is not None and most < len(table):
            table = table.select([step * len(table) // most for step in range(most)])
        for column in [node.image, *(mask.column for mask in node.masks.values())]:
            try:
                table = table.cast_column(column, ImageColumn(decode=False))
            except Exception as error:  # arrow raises many kinds
                raise UserError(f'data "{name}": column "{column}" of {node.path} does not hold images') from error
        self.name = name
        self.node = node
        self.table = table
        self.key = f"{name}-{split}-{table._fingerprint}"

    @cached_property
    def images(self) -> MadeImages:
        """The image column, decoded when read."""
        return MadeImages(self.key, len(self.table), self._image, self.node.fitting)

    def bytes_of(self, row: int, column: str) -> bytes:
        """The file in an image column."""
        cell: Mapping[str, Any] | None = self.table[row][column]
        if not cell or (cell.get("bytes") is None and not cell.get("path")):
            raise UserError(f'data "{self.name}": row {row} has no image in column "{column}"')
        if cell.get("bytes") is not None:
            return cell["bytes"]
        try:
            return Path(cell["path"]).read_bytes()
        except OSError as error:
            raise UserError(
                f'data "{self.name}": row {row} has no image in column "{column}" but "{str(cell["path"])[:60]}" '
                f"({error.strerror}); name the column that holds images"
            ) from error

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Names of a class column that knows them."""
        names = getattr(self.table.features[column], "names", None)
        return None if names is None else tuple(str(name).replace("_", " ") for name in names)

    def maps(self, decode: Any, fit: Fit, fill: float) -> DecodedMaps:
        """Label maps of a column."""
        return DecodedMaps(decode, fit, fill, lambda row: f"{self.key}[{row}]")

    def _image(self, row: int) -> np.ndarray:
        try:
            return decode_image(self.bytes_of(row, self.node.image))
        except BadImage as error:
            raise UserError(f'data "{self.name}": the image of row {row} cannot be read ({error})') from error


def load(node: HfNode, name: str, split: str) -> Any:
    """The table of a split; UserError in one line for whatever the library dislikes."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    own = split_of(split, node.splits)
    folder = expanded(node.path)
    try:
        if folder.is_dir() and any((folder / mark).exists() for mark in ("dataset_dict.json", "state.json")):
            saved = load_from_disk(str(folder))
            return saved[own] if isinstance(saved, DatasetDict) else saved
        path = str(folder) if folder.is_dir() else node.path
        return load_dataset(path, node.config, split=own, revision=node.revision, cache_dir=node.cache_dir)
    except Exception as error:  # the library raises many kinds: no such name, no network, no such split
        reason = " ".join(str(error).split())[:200]
        raise UserError(f'data "{name}": cannot open split "{own}" of {node.path}: {reason}') from error


def hf_question(row: int, kind: str, question: str, answer: Any, options: tuple[str, ...]) -> AskedQuestion:
    """A row of a question table; with options the answer (number, letter or text) becomes its letter."""
    if options:
        return AskedQuestion(row, kind, question, _letter(row, answer, options), (), options)
    answers = [str(answer)] if not isinstance(answer, list | tuple) else [str(one) for one in answer]
    if not answers:
        raise UserError(f'the question "{question[:60]}" (row {row}) has no answer')
    return AskedQuestion(row, kind, question, answers[0], tuple(answers[1:]))


def _letter(row: int, answer: Any, options: tuple[str, ...]) -> str:
    """The letter of the right option, which a table gives as a number from 0, a letter or the option itself."""
    letters, said = letters_of(options), str(answer).strip()
    if said.isdigit() and int(said) < len(options):
        return letters[int(said)]
    if said.upper() in letters:
        return said.upper()
    if said in options:
        return letters[options.index(said)]
    raise UserError(f'the answer of row {row}, "{said[:60]}", is none of its {len(options)} options')


def _mask_decoder(part: HfSplit, node: MaskColumn, classes: int) -> Any:
    def decode(row: int) -> np.ndarray:
        content = part.bytes_of(row, node.column)
        where = f'data "{part.name}": the mask of row {row} in column "{node.column}"'
        try:
            with Image.open(io.BytesIO(content), formats=RASTER_FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise UserError(
                        f"{where} has {picture.width}x{picture.height} pixels, more than a label map should"
                    )
                raw = np.asarray(picture)
        except UserError:
            raise
        except Exception as error:  # decoders raise nearly anything on damaged files
            raise UserError(f"{where} cannot be read ({error}); fetch it again") from error
        return to_classes(raw, classes, where, first=node.first, ignore=node.ignore)

    return decode


def _depth_decoder(part: HfSplit, node: DepthColumn) -> Any:
    def decode(row: int) -> np.ndarray:
        try:
            values = np.asarray(part.table[row][node.column], dtype=np.float32) * node.scale
        except (TypeError, ValueError):
            values = np.zeros(0)
        if values.ndim != 2:
            raise UserError(f'data "{part.name}": row {row} has no depth map in column "{node.column}"; name another')
        return np.where(np.isfinite(values) & (values > 0), values, 0.0).astype(np.float32)

    return decode
