"""`reader: vlm_benchmark`: question benchmarks in the files their authors publish, each with its scoring rule.

Layouts as the sources named at each function read them. Re-packs with images inside parquet files: `reader: vlm_hub`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from common.errors import UserError
from eval_suite.readers.contracts import TEST, AskedQuestion, LabelledData, QuestionImages
from eval_suite.readers.nodes import FileReaderNode
from eval_suite.readers.question_files import answers_of, option_of, question_images, read_entries, said
from eval_suite.readers.text_files import existing_file, lines_of, read_json, read_list
from imagery.decode import SUFFIXES

Found = list[tuple[str, AskedQuestion]]  #: (image file under the root, question)
BenchmarkName = Literal[
    "textvqa", "docvqa", "infovqa", "chartqa", "gqa", "pope", "mme", "seed", "ocrbench", "ai2d", "mmmu"
]


class VlmBenchmarkNode(FileReaderNode):
    """One benchmark, as unpacked. `ocr_tokens` puts TextVQA's OCR words into the question (LLaVA-1.5's prompt file),
    which is worth 8 to 14 points: name it with the score."""

    reader: Literal["vlm_benchmark"]
    benchmark: BenchmarkName  #: which one
    fit: Literal["stretch", "crop", "pad"] = "pad"
    ocr_tokens: bool = False  #: TextVQA: OCR words in the question

    def open(self, name: str) -> "VlmBenchmark":
        self.folder(name)
        if self.ocr_tokens and self.benchmark != "textvqa":
            raise UserError(f'data "{name}": only textvqa has ocr_tokens')
        return VlmBenchmark(name, self)


class VlmBenchmark(LabelledData):
    """Test questions; benchmarks have no training split of their own."""

    def __init__(self, name: str, node: VlmBenchmarkNode) -> None:
        self.name = name
        self.node = node

    def questions(self, split: str) -> QuestionImages:
        if split != TEST:
            raise UserError(f'data "{self.name}" is a benchmark: it has test questions only; train on other data')
        root, layout = self.node.folder(self.name), BENCHMARKS[self.node.benchmark]
        try:
            found = textvqa(root, self.node.ocr_tokens) if self.node.benchmark == "textvqa" else layout.read(root)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(
                f'data "{self.name}": the files of {self.node.benchmark} in {root} are not as its authors publish them '
                f"({error!r}); fetch them again"
            ) from error
        kept = [found[at] for at in self.node.kept(len(found), split)]
        images = question_images(self.name, root, kept, self.node, layout.rule)
        return replace(images, benchmark=self.node.benchmark)


@dataclass(frozen=True)
class Layout:
    """How a benchmark is read, and the rule of metrics.answer_rules that scores it."""

    read: Callable[[Path], Found]
    rule: str


def textvqa(root: Path, ocr_tokens: bool = False) -> Found:
    """TextVQA_0.5.1_val.json (ten answers a question) and train_images/<image_id>.jpg (LLaVA docs/Evaluation.md)."""
    path = one_of(root, "TextVQA_0.5.1_val.json", "textvqa/TextVQA_0.5.1_val.json")
    folder = path.parent.relative_to(root) / "train_images"
    out = []
    tokens = _ocr(path.parent) if ocr_tokens else {}
    for entry in read_entries(path, "data"):
        text = entry["question"]
        if ocr_tokens:
            text += f"\nReference OCR token: {', '.join(tokens.get(entry['image_id'], []))}"
        answers = tuple(answers_of(entry["answers"], f"{path}: {entry['question'][:60]}"))
        item = AskedQuestion(0, "textvqa", text, answers[0], answers[1:])
        out.append(((folder / f"{entry['image_id']}.jpg").as_posix(), item))
    return out


def document_vqa(root: Path, kind: str, files: tuple[str, ...], image_fields: tuple[str, ...], folder: str) -> Found:
    """DocVQA and InfoVQA: {"data": [{question, answers, image}]}; the image lies beside the file or in `folder`.

    The challenge's files; InfoVQA names its image in image_local_name. Older downloads lack `_withQT` in their names.
    """
    path = one_of(root, *files)
    out = []
    for entry in read_entries(path, "data"):
        if not entry.get("answers"):
            raise UserError(f"{path} has no answers; the test split is scored by a server, use the validation split")
        image = next(str(entry[field]) for field in image_fields if field in entry)
        place = path.parent / image
        place = place if place.is_file() else path.parent / folder / Path(image).name
        answers = tuple(answers_of(entry["answers"], f"{path}: {entry['question'][:60]}"))
        item = AskedQuestion(0, kind, entry["question"], answers[0], answers[1:])
        out.append((place.relative_to(root).as_posix(), item))
    return out


def chartqa(root: Path) -> Found:
    """ChartQA: test/{test_human,test_augmented}.json with imgname, query, label, and test/png.

    vis-nlp/ChartQA README and mmpretrain's ChartQA; the files are lists, in lmms-eval's copy under "data".
    """
    base = root / "ChartQA Dataset" if (root / "ChartQA Dataset").is_dir() else root
    folder = base / "test"
    out = []
    for kind in ("human", "augmented"):
        path = folder / f"test_{kind}.json"
        for entry in _under_data(read_entries(path), path):
            image = (folder / "png" / entry["imgname"]).relative_to(root).as_posix()
            out.append((image, AskedQuestion(0, kind, entry["query"], str(entry["label"]))))
    return out


def _under_data(entries: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The entries themselves where the file holds {"data": entries}."""
    return read_entries(path, "data") if len(entries) == 1 and "data" in entries[0] else entries


def gqa(root: Path) -> Found:
    """GQA: testdev_balanced_questions.json (by question id: question, imageId, answer) and images/."""
    path = one_of(root, "testdev_balanced_questions.json", "data/testdev_balanced_questions.json",
                  "questions1.2/testdev_balanced_questions.json")  # fmt: skip
    folder = next((n for n in ("images", "data/images") if (root / n).is_dir()), "images")
    data = read_object(path)
    return [
        (f"{folder}/{entry['imageId']}.jpg", AskedQuestion(0, "gqa", entry["question"], entry["answer"]))
        for entry in data.values()
    ]


def pope(root: Path) -> Found:
    """POPE: coco_pope_{random,popular,adversarial}.json (JSON lines) and COCO's val2014 images."""
    out = []
    for kind in ("random", "popular", "adversarial"):
        path = one_of(root, f"coco/coco_pope_{kind}.json", f"coco_pope_{kind}.json", f"pope/coco/coco_pope_{kind}.json")
        folder = next((n for n in ("val2014", "coco/val2014", "images") if (root / n).is_dir()), "val2014")
        for entry in read_entries(path):
            out.append((f"{folder}/{entry['image']}", AskedQuestion(0, kind, entry["text"], entry["label"])))
    return out


def mme(root: Path) -> Found:
    """MME: <category>/*.txt, lines "question<TAB>Yes"; images beside them, or images/ and questions_answers_YN/.

    Newer archives nest MME_Benchmark in MME_Benchmark_release_version; eval_tool beside the categories is passed over.
    """
    base = root
    for inner in ("MME_Benchmark_release_version", "MME_Benchmark"):
        base = base / inner if (base / inner).is_dir() else base
    out: Found = []
    for folder in sorted(path for path in base.iterdir() if path.is_dir()):
        texts, pictures = folder / "questions_answers_YN", folder / "images"
        texts, pictures = (texts, pictures) if texts.is_dir() else (folder, folder)
        for path in sorted(texts.glob("*.txt")):
            image = next((p for p in sorted(pictures.glob(f"{path.stem}.*")) if p.suffix.lower() in SUFFIXES), None)
            if image is None:
                raise UserError(f"{path} has no image {path.stem}.* in {pictures}")
            lines = [line.split("\t") for _, line in lines_of(path, "the questions of an image")]
            if len(lines) != 2 or any(len(line) != 2 for line in lines):
                raise UserError(f"{path}: MME asks two questions an image, one line each, question<TAB>answer")
            for question, answer in lines:
                place = image.relative_to(root).as_posix()
                out.append((place, AskedQuestion(0, folder.name, question.strip(), answer.strip())))
    return out


def seed(root: Path) -> Found:
    """SEED-Bench: SEED-Bench.json, and SEED-Bench-image/; of its questions those about images (data_type "image").

    The videos come in archives of their own; with LLaVA's middle frames in SEED-Bench-video-image/ (<data_id>.jpg or
    <question_id>.png) the video questions are asked too, about that frame, and the score is that of all questions.
    """
    path = one_of(root, "SEED-Bench.json", "seed_bench/SEED-Bench.json")
    data = read_object(path)
    kinds = {number: name for name, number in data.get("question_type", {}).items()}
    out = []
    frames = path.parent / "SEED-Bench-video-image"
    for entry in data["questions"]:
        video = entry.get("data_type", "image") != "image"
        if video and not frames.is_dir():
            continue
        options = tuple(str(entry[f"choice_{letter}"]) for letter in "abcd" if f"choice_{letter}" in entry)
        kind = str(kinds.get(entry.get("question_type_id"), "seed"))
        place = _frame(frames, entry) if video else path.parent / "SEED-Bench-image" / entry["data_id"]
        letter = option_of(entry["answer"], options, f"{path}: {entry['question'][:60]}", "letter")
        item = AskedQuestion(0, kind, entry["question"], letter, (), options)
        out.append((place.relative_to(root).as_posix(), item))
    return out


def _frame(folder: Path, entry: dict[str, Any]) -> Path:
    """The picture that stands for a video; UserError where there is none."""
    names = [f"{entry.get('question_id')}.png", f"{entry['data_id']}.jpg", f"{entry['data_id']}.png"]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    return found or existing_file(folder / names[0], "a video's frame; without that folder videos are left out")


def ocrbench(root: Path) -> Found:
    """OCRBench: OCRBench.json, a list of {dataset_name, type, image_path, question, answers}; OCRBench_Images/.

    Field names as lmms-eval's upload_ocrbench.py reads them; `answers` is a text or a list.
    """
    path = one_of(root, "OCRBench.json", "OCRBench/OCRBench.json")
    folder = next((n for n in ("OCRBench_Images", "images") if (path.parent / n).is_dir()), "OCRBench_Images")
    out = []
    for entry in read_entries(path):
        answers = answers_of(entry["answers"], f"{path}: {entry['question'][:60]}")
        kind = "HME100k" if entry.get("dataset_name") == "HME100k" else str(entry.get("type", "ocrbench"))
        image = (path.parent / folder / entry["image_path"]).relative_to(root).as_posix()
        out.append((image, AskedQuestion(0, kind, entry["question"], answers[0], tuple(answers[1:]))))
    return out


def ai2d(root: Path) -> Found:
    """AI2D: questions/<image>.json (by question: answerTexts, correctAnswer, abcLabel), images/, and ai2d_test_ids.csv.

    Field names as lmms-eval's upload_ai2d.py reads them; the list names images. These are the archive's plain images.
    What the paper scores as "no mask" is on the Hub: `reader: vlm_hub`, path Efficient-Large-Model/ai2d-no-mask.
    """
    base = root / "ai2d" if (root / "ai2d").is_dir() else root
    listed = base / "ai2d_test_ids.csv"
    wanted = set(read_list(listed, "the list of test images")) if listed.is_file() else None
    out = []
    for path in sorted((base / "questions").glob("*.json")):
        data = read_object(path)
        image = data["imageName"]
        if wanted is None or Path(image).stem in wanted:
            place = (base / "images" / image).relative_to(root).as_posix()
            for text, entry in data["questions"].items():
                options = tuple(str(option) for option in entry["answerTexts"])
                letter = option_of(entry["correctAnswer"], options, f"{path}: {text[:60]}", "number")
                out.append((place, AskedQuestion(0, "ai2d", text, letter, (), options)))
    if not out:
        raise UserError(f"{base / 'questions'} has no question files")
    return out


def mmmu(root: Path) -> Found:
    """MMMU validation as a JSON list of {question, options, answer, image, subject}: a plain export, one image each.

    MMMU itself comes as parquet files (30 subjects, up to seven images a question): read those with `reader: vlm_hub`.
    """
    path = one_of(root, "mmmu_val.json", "MMMU/mmmu_val.json")
    out = []
    for entry in read_entries(path):
        image = (path.parent / entry["image"]).relative_to(root).as_posix()
        options = tuple(str(option) for option in entry.get("options", ()))
        kind = str(entry.get("subject", "mmmu"))
        where = f"{path}: {entry['question'][:60]}"
        answer = option_of(entry["answer"], options, where, "letter") if options else said(entry["answer"], where)
        out.append((image, AskedQuestion(0, kind, entry["question"], answer, (), options)))
    return out


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; UserError for anything else."""
    found = read_json(path, "the questions")
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no object")
    return found


def one_of(root: Path, *names: str) -> Path:
    """The first of the files that is there; UserError names the first one."""
    return next((root / n for n in names if (root / n).is_file()), None) or existing_file(
        root / names[0], f"looked for {' and '.join(names)}"
    )


def _ocr(folder: Path) -> dict[str, list[str]]:
    path = existing_file(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", "the OCR words that ocr_tokens asks for")
    return {entry["image_id"]: list(entry["ocr_tokens"]) for entry in read_entries(path, "data")}


def _named(kind: str) -> Callable[[Path], Found]:
    names = {
        "docvqa": (("val_v1.0_withQT.json", "val_v1.0.json", "val/val_v1.0.json"), ("image",), "documents"),
        "infovqa": (
            ("infographicsVQA_val_v1.0_withQT.json", "infographicVQA_val_v1.0.json", "infographicsVQA_val_v1.0.json"),
            ("image_local_name", "image"),
            "images",
        ),
    }
    files, fields, folder = names[kind]
    return lambda root: document_vqa(root, kind, files, fields, folder)


BENCHMARKS: dict[str, Layout] = {
    "textvqa": Layout(textvqa, "vqa"),
    "docvqa": Layout(_named("docvqa"), "anls"),
    "infovqa": Layout(_named("infovqa"), "anls"),
    "chartqa": Layout(chartqa, "relaxed"),
    "gqa": Layout(gqa, "gqa"),
    "pope": Layout(pope, "pope"),
    "mme": Layout(mme, "mme"),
    "seed": Layout(seed, "seed"),
    "ocrbench": Layout(ocrbench, "ocrbench"),
    "ai2d": Layout(ai2d, "ai2d"),
    "mmmu": Layout(mmmu, "mmmu"),
}
