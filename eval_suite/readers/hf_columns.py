"""`reader: hf`: a Hugging Face data set, local or on the Hub, whose columns are named in the recipe."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from common.errors import UserError, unknown
from common.recipes import Node, Pixels
from eval_suite.readers.captions import caption_text
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
from eval_suite.readers.label_files import FILL, ClassNumbers
from eval_suite.readers.label_maps import DecodedMaps
from eval_suite.readers.label_values import to_classes, to_depth
from eval_suite.readers.nodes import ReaderNode, expanded, rows_of, split_of
from eval_suite.readers.photo_sizes import Orientation, PhotoSize, as_stored, photo_size
from eval_suite.readers.question_files import answers_of, option_of, said
from eval_suite.readers.rasters import Raster, read_picture
from imagery.decode import BadImage, decode_image


class MaskColumn(ClassNumbers):
    """A column of class maps stored as images."""

    column: str  #: its name


class DepthColumn(Node):
    """A column of depth maps stored as images or arrays; metres = scale x value (floats are metres without one)."""

    column: str  #: its name
    scale: float | None = Field(default=None, gt=0)  #: metres of one stored unit
    invalid: tuple[float, ...] = (0.0,)  #: stored values that mean: no depth


class HfNode(ReaderNode):
    """Columns by what they mean; those that are not named do not exist for the probes."""

    reader: Literal["hf"]
    path: str  #: Hub name, folder of parquet files, or what save_to_disk wrote
    config: str | None = None  #: configuration of the data set; None: its default
    revision: str | None = None  #: commit or tag on the Hub; None: the newest
    cache_dir: str | None = None  #: where the library keeps its copies
    #: train, test -> the name of that split in this layout
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: "train", TEST: "validation"})
    size: Pixels | tuple[Pixels, Pixels] = 224  #: of the images that probes see: one side, or height and width
    fit: Mode = "crop"  #: how photographs come to that size
    orientation: Orientation | None = None  #: whether labels belong to photographs as turned by their tags or stored
    limit: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)  #: split -> at most so many rows
    image: str = "image"  #: column of the images
    label: str | None = None  #: class numbers, or names
    label_names: tuple[str, ...] | None = None  #: where the column does not say them
    caption: str | None = None  #: a caption or a list of them
    question: str | None = None  #: column of the questions
    answer: str | None = None  #: an answer, a list of them, or the right option
    options: str | None = None  #: a list of options
    #: how the right option is given; None: whatever it can be, refused where two readings differ
    answer_is: Literal["text", "letter", "number", "number_from_1"] | None = None
    kind: str | None = None  #: column that says which kind of question it is
    rule: str = "exact"  #: how replies are scored
    masks: dict[str, MaskColumn] = Field(default_factory=dict)  #: label name -> column of class maps
    depth: DepthColumn | None = None

    @model_validator(mode="after")
    def _paired(self) -> "HfNode":
        if (self.question is None) != (self.answer is None):
            raise ValueError("question and answer go together")
        if self.answer_is is not None and self.options is None:
            raise ValueError("answer_is says how an option is named; name the column of options too")
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
            numbers = [_class_number(value) for value in values]
            known = [*values, *self._other_labels(split)] if names is None else []
            names = names or tuple(str(n) for n in range(max((_class_number(v) or 0 for v in known), default=0) + 1))
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
        texts = [self._captions_of(said, row) for row, said in enumerate(part.table[self.node.caption])]
        return CaptionedImages(part.images, rows_of(len(part.images)), texts)

    def dense(self, split: str) -> DenseImages:
        part, maps, names = self._split(split), {}, {}
        for label, node in self.node.masks.items():
            names[label] = node.names
            maps[label] = part.maps(_mask_decoder(part, node), self.node.fitting, FILL["classes"], node.column)
        if self.node.depth is not None:
            maps["depth"] = part.maps(
                _depth_decoder(part, self.node.depth), self.node.fitting, 0, self.node.depth.column
            )
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
        if node.options and (bare := next((row for row, some in enumerate(options) if not some), None)) is not None:
            raise UserError(f'data "{self.name}": row {bare} of {split} has no options in column "{node.options}"')
        asked = [
            hf_question(row, str(kind), question, answer, tuple(some or ()), node.answer_is)
            for row, (kind, question, answer, some) in enumerate(
                zip(kinds, table[node.question], table[node.answer], options, strict=True)
            )
        ]
        return QuestionImages(part.images, asked, node.rule)

    def _captions_of(self, said: Any, row: int) -> list[str]:
        some = said if isinstance(said, list) else [said]
        where = f'data "{self.name}": row {row} of column "{self.node.caption}"'
        if not some:
            raise UserError(f"{where} has no caption")
        return [caption_text(one, where) for one in some]

    def _other_labels(self, split: str) -> list[Any]:
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
        members = members_of(node, table, split_of(split, node.splits))
        rows: Sequence[int] = range(len(table))
        if (most := node.limit.get(split)) is not None and most < len(table):
            rows = [step * len(table) // most for step in range(most)]
            table = table.select(rows)
        images = [node.image, *(mask.column for mask in node.masks.values())]
        if node.depth is not None and isinstance(table.features[node.depth.column], ImageColumn):
            images.append(node.depth.column)
        for column in images:
            try:
                table = table.cast_column(column, ImageColumn(decode=False))
            except Exception as error:  # arrow raises many kinds
                raise UserError(f'data "{name}": column "{column}" of {node.path} does not hold images') from error
        self.name = name
        self.node = node
        self.table = table
        self.members = [members[row] for row in rows]
        self.key = f"{name}-{split}-{table._fingerprint}"

    @cached_property
    def images(self) -> MadeImages:
        """The image column, decoded when read."""
        key = f"{self.key}-stored" if self.node.orientation == "stored" else self.key
        return MadeImages(key, len(self.table), self._image, self.node.fitting, self.members)

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

    def maps(self, decode: Any, fit: Fit, fill: float, column: str) -> DecodedMaps:
        """Label maps of a column."""
        return DecodedMaps(decode, fit, fill, lambda row: self.where(row, column), self.photo)

    def where(self, row: int, column: str) -> str:
        """What to call a cell in an error."""
        return f'data "{self.name}": row {row} of column "{column}"'

    def photo(self, row: int) -> PhotoSize:
        """The size of an image, from its header."""
        try:
            return photo_size(self.bytes_of(row, self.node.image), self.node.orientation)
        except UserError:
            raise
        except Exception as error:  # decoders raise nearly anything on damaged files
            raise UserError(f'data "{self.name}": the image of row {row} cannot be read ({error})') from error

    def _image(self, row: int) -> np.ndarray:
        content = self.bytes_of(row, self.node.image)
        try:
            pixels = decode_image(content)
        except BadImage as error:
            raise UserError(f'data "{self.name}": the image of row {row} cannot be read ({error})') from error
        return as_stored(pixels, content) if self.node.orientation == "stored" else pixels


def load(node: HfNode, name: str, split: str) -> Any:
    """The table of a split; UserError in one line for whatever the library dislikes."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    own = split_of(split, node.splits)
    folder = expanded(node.path)
    try:
        if is_saved(node):
            saved = load_from_disk(str(folder))
            return saved[own] if isinstance(saved, DatasetDict) else saved
        path = str(folder) if folder.is_dir() else node.path
        return load_dataset(path, node.config, split=own, revision=node.revision, cache_dir=node.cache_dir)
    except Exception as error:  # the library raises many kinds: no such name, no network, no such split
        reason = " ".join(str(error).split())[:200]
        raise UserError(f'data "{name}": cannot open split "{own}" of {node.path}: {reason}') from error


def members_of(node: HfNode, table: Any, own: str) -> list[str]:
    """What to call every row, the same in every slice of a split: "row 812 of train of PATH".

    Train and test are compared by these names, so that train[:80%] and train[70%:] are seen to overlap. A split that
    was saved by itself knows nothing of the whole; its rows are named after its own digest.
    """
    from datasets import ReadInstruction

    sizes = {name: info.num_examples for name, info in (table.info.splits or {}).items()}
    try:
        parts = ReadInstruction.from_spec(own).to_absolute(sizes)
    except (ValueError, AssertionError, KeyError):  # a name of save_to_disk that is none of these splits
        parts = []
    names = [f"row {row} of {part.splitname} of {node.path}" for part in parts for row in _rows_of_part(part, sizes)]
    whole = len(names) == len(table) and not is_saved(node)
    return names if whole else [f"row {row} of {node.path} ({table._fingerprint})" for row in range(len(table))]


def _rows_of_part(part: Any, sizes: Mapping[str, int]) -> range:
    """The rows that an absolute slice of a split takes; None is its beginning or end, below 0 counts from the end."""
    return range(sizes[part.splitname])[part.from_ : part.to]


def is_saved(node: HfNode) -> bool:
    """Whether the data is what save_to_disk wrote."""
    folder = expanded(node.path)
    return folder.is_dir() and any((folder / mark).exists() for mark in ("dataset_dict.json", "state.json"))


def hf_question(
    row: int, kind: str, question: str, answer: Any, options: tuple[Any, ...], answer_is: str | None = None
) -> AskedQuestion:
    """A row of a question table; with options the answer (number, letter or text) becomes its letter."""
    where = f'the question "{said(question, f"row {row}")[:60]}" (row {row})'
    if options:
        letter = option_of(answer, options, where, answer_is)
        return AskedQuestion(row, kind, question, letter, (), tuple(str(option) for option in options))
    first, *others = answers_of(answer, where)
    return AskedQuestion(row, kind, question, first, tuple(others))


def _class_number(value: Any) -> int | None:
    """A class number; None for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _mask_decoder(part: HfSplit, node: MaskColumn) -> Any:
    def decode(row: int) -> np.ndarray:
        where = part.where(row, node.column)
        raster = read_picture(part.bytes_of(row, node.column), where)
        return to_classes(raster, len(node.names), where, first=node.first, ignore=node.ignore)

    return decode


def _depth_decoder(part: HfSplit, node: DepthColumn) -> Any:
    from datasets import Image as ImageColumn

    stored = isinstance(part.table.features[node.column], ImageColumn)

    def decode(row: int) -> np.ndarray:
        where = part.where(row, node.column)
        if stored:
            raster = read_picture(part.bytes_of(row, node.column), where)
        else:
            raster = Raster(_array(part.table[row][node.column], where))
        return to_depth(raster, where, scale=node.scale, invalid=node.invalid)

    return decode


def _array(cell: Any, where: str) -> np.ndarray:
    try:
        return np.asarray(cell)
    except ValueError as error:  # rows of different lengths
        raise UserError(f"{where} holds no depth map; name another column") from error
