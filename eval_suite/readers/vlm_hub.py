"""`reader: vlm_hub`: the question benchmarks as lmms-eval keeps them on the Hub, images inside parquet columns.

Columns are those that lmms_eval/tasks/*/utils.py and its upload scripts (upload_{ai2d,chartqa,ocrbench}.py) name.
"""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from common.errors import UserError
from eval_suite.readers.contracts import TEST, AskedQuestion, LabelledData, QuestionImages
from eval_suite.readers.fitting import Fit, Mode
from eval_suite.readers.hf_columns import HfNode, hf_question, load
from eval_suite.readers.image_files import MadeImages
from eval_suite.readers.nodes import ReaderNode, expanded
from eval_suite.readers.question_files import option_of
from eval_suite.readers.vlm_benchmarks import BENCHMARKS, BenchmarkName
from imagery.decode import BadImage, decode_image

Row = Mapping[str, Any]
Place = tuple[int, str, int]  #: table row, image column, position in it


class VlmHubNode(ReaderNode):
    """One benchmark. `path`: Hub name (default: lmms-eval's), a folder of its parquet files, or save_to_disk's."""

    reader: Literal["vlm_hub"]
    benchmark: BenchmarkName  #: which one
    path: str | None = None  #: Hub name or folder; None: lmms-eval's copy
    config: str | None = None  #: configuration of the data set; None: the benchmark's
    split: str | None = None  #: None: the benchmark's
    revision: str | None = None  #: commit or tag on the Hub; None: the newest
    cache_dir: str | None = None  #: where the library keeps its copies
    size: Annotated[int, Field(gt=0)] = 224  #: side in px of the images that probes see
    fit: Mode = "pad"  #: how photographs come to that size
    #: at most so many questions of `test`
    limit: dict[Literal["test"], Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    ocr_tokens: bool = False  #: TextVQA: OCR words in the question

    def open(self, name: str) -> "VlmHub":
        if self.ocr_tokens and self.benchmark != "textvqa":
            raise UserError(f'data "{name}": only textvqa has ocr_tokens')
        return VlmHub(name, self)


@dataclass(frozen=True)
class HubForm:
    """Where a benchmark lies and how a row becomes a question; `same`: the column that tells pictures apart."""

    path: str
    config: str | None
    split: str
    question: Callable[[Row], AskedQuestion]
    columns: tuple[str, ...]  #: what has to be there
    same: str | None = None
    images: Callable[[Row], list[tuple[str, int]]] = field(default=lambda row: [("image", 0)])


class VlmHub(LabelledData):
    """Test questions with their pictures."""

    def __init__(self, name: str, node: VlmHubNode) -> None:
        self.name = name
        self.node = node

    def questions(self, split: str) -> QuestionImages:
        if split != TEST:
            raise UserError(f'data "{self.name}" is a benchmark: it has test questions only; train on other data')
        node, form = self.node, FORMS[self.node.benchmark]
        table = open_table(self.name, node, node.config or form.config)
        for column in form.columns:
            if column not in table.column_names:
                raise UserError(
                    f'data "{self.name}": no column "{column}" for {node.benchmark}; '
                    f"there are: {', '.join(table.column_names)}"
                )
        most = node.limit.get("test", len(table))
        if most < len(table):
            table = table.select([step * len(table) // most for step in range(most)])
        pictures = table
        if node.benchmark == "gqa" and "image" not in table.column_names:
            pictures = open_table(self.name, node, "testdev_balanced_images")
        return self._asked(table, pictures, form)

    def _asked(self, table: Any, pictures: Any, form: HubForm) -> QuestionImages:
        """Each picture once where a column tells them apart, its questions pointing at it."""
        texts = table.remove_columns([name for name in IMAGE_COLUMNS if name in table.column_names])
        by_id = {key: at for at, key in enumerate(pictures["id"])} if pictures is not table else None
        rows: dict[Any, int] = {}
        places: list[Place] = []
        asked = []
        for at, row in enumerate(texts):
            item = form.question(row)
            if self.node.ocr_tokens:
                item = replace(item, question=f"{item.question}\nReference OCR token: {', '.join(row['ocr_tokens'])}")
            shown = []
            for column, position in self._shown(form, row, table, at):
                own = (row[form.same] if form.same else at, column, position)
                if own not in rows:
                    rows[own] = len(places)
                    source = at if by_id is None else by_id.get(row["imageId"])
                    if source is None:
                        raise UserError(f'data "{self.name}": there is no image {row["imageId"]}')
                    places.append((source, column, position))
                shown.append(rows[own])
            asked.append(replace(item, row=shown[0], more=tuple(shown[1:])))
        if not asked:
            raise UserError(f'data "{self.name}" holds no questions')
        images = HubImages(self.name, pictures, places, Fit(self.node.size, self.node.size, self.node.fit))
        return QuestionImages(images.source, asked, BENCHMARKS[self.node.benchmark].rule, self.node.benchmark)

    def _shown(self, form: HubForm, row: Row, table: Any, at: int) -> list[tuple[str, int]]:
        if self.node.benchmark == "seed":  # a picture, or the frames of a video
            return [("image", position) for position in range(len(raw(table, "image")[at]["image"]))]
        found = form.images(row)
        if not found:
            raise UserError(f'data "{self.name}": row {at} names no image')
        return found


class HubImages:
    """Pictures in the cells of a table, decoded when read."""

    def __init__(self, name: str, table: Any, places: list[Place], fit: Fit) -> None:
        self.name, self.table, self.places = name, table, places
        self._raw: dict[str, Any] = {}
        self.source = MadeImages(f"{name}-{table._fingerprint}-{len(places)}", len(places), self._picture, fit)

    def _picture(self, number: int) -> np.ndarray:
        row, column, position = self.places[number]
        if column not in self._raw:
            self._raw[column] = raw(self.table, column)
        cell = self._raw[column][row][column]
        cell = cell[position] if isinstance(cell, list) else cell
        if not cell or (cell.get("bytes") is None and not cell.get("path")):
            raise UserError(f'data "{self.name}": row {row} has no image in column "{column}"')
        data = cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"]).read_bytes()
        try:
            return decode_image(data)
        except BadImage as error:
            raise UserError(f'data "{self.name}": the image of row {row} cannot be read ({error})') from error


IMAGE_COLUMNS = ("image", *(f"image_{number}" for number in range(1, 8)))


def raw(table: Any, column: str) -> Any:
    """The table with one image column left, undecoded."""
    from datasets import Image, List

    alone = table.select_columns([column])
    many = isinstance(alone.features[column], List | list)
    return alone.cast_column(column, List(Image(decode=False)) if many else Image(decode=False))


def open_table(name: str, node: VlmHubNode, config: str | None) -> Any:
    """The split of a benchmark: parquet files under a folder (in a folder per configuration too), or the Hub."""
    form = FORMS[node.benchmark]
    split, path = node.split or form.split, node.path or form.path
    folder = expanded(path)
    if (
        node.path is not None
        and folder.is_dir()
        and not any((folder / m).exists() for m in ("dataset_dict.json", "state.json"))
    ):
        inner = folder / config if config and (folder / config).is_dir() else folder
        files = sorted(str(file) for file in inner.rglob(f"{split}-*.parquet"))
        if not files:
            raise UserError(f'data "{name}": {inner} has no {split}-*.parquet; set data.{name}.path to where they lie')
        return load_files(name, files, node)
    options = {"reader": "hf", "path": path, "config": config, "revision": node.revision, "cache_dir": node.cache_dir}
    return load(HfNode.model_validate({**options, "splits": {TEST: split}}), name, TEST)


def load_files(name: str, files: list[str], node: VlmHubNode) -> Any:
    """Parquet files as one table."""
    from datasets import load_dataset

    try:
        return load_dataset("parquet", data_files=files, split="train", cache_dir=node.cache_dir)
    except Exception as error:  # the library raises many kinds
        raise UserError(f'data "{name}": cannot read {files[0]}: {" ".join(str(error).split())[:200]}') from error


def _options(kind: str, letters: str, question: str = "question") -> Callable[[Row], AskedQuestion]:
    """Options in columns choice_a, choice_b, ...; the answer is a letter."""

    def ask(row: Row) -> AskedQuestion:
        options = tuple(str(row[f"choice_{letter}"]) for letter in letters if row.get(f"choice_{letter}") is not None)
        letter = option_of(row["answer"], options, str(row[question])[:60], "letter")
        return AskedQuestion(0, str(row.get(kind, "seed")), row[question], letter, (), options)

    return ask


def _mmmu(row: Row) -> AskedQuestion:
    """Options and several answers are lists written as text; a question's subject stands in its id."""
    options = tuple(str(option) for option in listed(row["options"]))
    answers = [str(answer) for answer in listed(row["answer"])]
    kind = "_".join(str(row["id"]).split("_")[1:-1]) or "mmmu"
    if row["question_type"] == "multiple-choice":
        letter = option_of(answers[0], options, f"MMMU question {row['id']}", "letter")
        return AskedQuestion(0, kind, row["question"], letter, (), options)
    return AskedQuestion(0, kind, row["question"], answers[0], tuple(answers[1:]))


def listed(text: Any) -> list[Any]:
    """A list, a list written as text, or the text alone."""
    if isinstance(text, list):
        return text
    if str(text).startswith("["):
        try:
            found = ast.literal_eval(str(text))
        except (ValueError, SyntaxError):
            return [text]
        return found if isinstance(found, list) else [text]
    return [text]


def _mmmu_images(row: Row) -> list[tuple[str, int]]:
    """The images that question and options name as <image 1>, ..., in the order of their numbers."""
    text = f"{row['question']} {row['options']}"
    return [(f"image_{number}", 0) for number in range(1, 8) if f"<image {number}>" in text] or [("image_1", 0)]


def _answered(kind: str | None, answer: str = "answer", question: str = "question") -> Callable[[Row], AskedQuestion]:
    """A question and its answer, or list of answers; `kind` is a column."""
    return lambda row: hf_question(0, str(row[kind]) if kind else "", row[question], row[answer], ())


def _chartqa(row: Row) -> AskedQuestion:
    return AskedQuestion(0, str(row["type"]).removesuffix("_test"), row["question"], str(row["answer"]))


def _ai2d(row: Row) -> AskedQuestion:
    return hf_question(0, "ai2d", row["question"], row["answer"], tuple(row["options"]), "number")


def _ocrbench(row: Row) -> AskedQuestion:
    kind = "HME100k" if row["dataset"] == "HME100k" else str(row["question_type"])
    return hf_question(0, kind, row["question"], row["answer"], ())


ASK = ("question", "answer", "image")
FORMS: dict[str, HubForm] = {
    "ai2d": HubForm("lmms-lab/ai2d", None, "test", _ai2d, (*ASK, "options")),
    "chartqa": HubForm("lmms-lab/ChartQA", None, "test", _chartqa, (*ASK, "type")),
    "docvqa": HubForm("lmms-lab/DocVQA", "DocVQA", "validation", _answered(None, "answers"),
                      ("question", "answers", "image")),
    "infovqa": HubForm("lmms-lab/DocVQA", "InfographicVQA", "validation", _answered(None, "answers"),
                       ("question", "answers", "image")),
    "gqa": HubForm("lmms-lab/GQA", "testdev_balanced_instructions", "testdev", _answered(None),
                   ("question", "answer", "imageId"), "imageId"),
    "mme": HubForm("lmms-lab/MME", None, "test", _answered("category"), (*ASK, "category", "question_id"),
                   "question_id"),
    "mmmu": HubForm("lmms-lab/MMMU", None, "validation", _mmmu, ("id", "question", "options", "answer", "question_type",
                                                                 "image_1"), None, _mmmu_images),
    "ocrbench": HubForm("echo840/OCRBench", None, "test", _ocrbench, (*ASK, "dataset", "question_type")),
    "pope": HubForm("lmms-lab/POPE", None, "test", _answered("category"), (*ASK, "category", "image_source"),
                    "image_source"),
    "seed": HubForm("lmms-lab/SEED-Bench", None, "test", _options("question_type_id", "abcd"),
                    (*ASK, "choice_a", "choice_b")),
    "textvqa": HubForm("lmms-lab/textvqa", None, "validation", _answered(None, "answers"),
                       ("question", "answers", "image", "image_id"), "image_id"),
}  # fmt: skip
