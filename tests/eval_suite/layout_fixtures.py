"""Tiny data sets in the formats their authors publish, written file by file; each function gives the root."""

import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

HEIGHT, WIDTH = 48, 64
PALETTE = [value for index in range(256) for value in (index, 255 - index, (7 * index) % 256)]


def photo(path: Path, seed: int, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """A photograph of noise over a gradient; JPEG or PNG by its name."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, width)[None, :, None] + np.zeros((height, 1, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((ramp + rng.integers(0, 50, (height, width, 3))).astype(np.uint8)).save(path)
    return path


def grey(path: Path, values: np.ndarray, palette: bool = False) -> Path:
    """A label PNG: 8 bits (with a palette if asked), 16 bits for larger values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values.astype(np.uint16 if values.max() > 255 else np.uint8))
    if palette:
        picture.putpalette(PALETTE)
    picture.save(path)
    return path


def halves(left: int, right: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A map with one value on the left and another on the right."""
    out = np.full((height, width), left)
    out[:, width // 2 :] = right
    return out


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def dump(path: Path, data: object) -> Path:
    return text(path, json.dumps(data))


def json_lines(path: Path, rows: Sequence[object]) -> Path:
    return text(path, "\n".join(json.dumps(row) for row in rows) + "\n")


def class_tree(
    root: Path, classes: Sequence[str] = ("tabby_cat", "wire-dog"), splits: Sequence[str] = ("train", "test")
) -> Path:
    """SPLIT/CLASS/image; the test split lacks the last class."""
    for split in splits:
        for number, name in enumerate(classes if split == "train" else classes[:-1]):
            for index in range(2):
                photo(root / split / name / f"{index}.JPEG", number)
    return root


def ade20k(root: Path) -> Path:
    """0 is "other", 150 the last class; one mask marks 255 too."""
    base = root / "ADEChallengeData2016"
    for split, stem in (("training", "train"), ("validation", "val")):
        for number in (1, 2):
            name = f"ADE_{stem}_{number:08d}"
            photo(base / "images" / split / f"{name}.jpg", number)
            labels = halves(0 if number == 1 else 255, 150)
            labels[:4] = 1
            grey(base / "annotations" / split / f"{name}.png", labels)
    return root


def voc2012(root: Path) -> Path:
    """Palette masks with a 255 border, lists, and the augmented folder."""
    base = root / "VOCdevkit" / "VOC2012"
    keys = {"train": ["2007_000001"], "val": ["2007_000002"], "aug": ["2007_000001", "2008_000003"]}
    for split, members in keys.items():
        text(base / "ImageSets" / "Segmentation" / f"{split}.txt", "\n".join(members) + "\n")
    for number, key in enumerate(("2007_000001", "2007_000002", "2008_000003")):
        photo(base / "JPEGImages" / f"{key}.jpg", number)
        labels = halves(0, 20)
        labels[:, WIDTH // 2 - 1 : WIDTH // 2 + 1] = 255
        folder = "SegmentationClassAug" if number == 2 else "SegmentationClass"
        grey(base / folder / f"{key}.png", labels, palette=True)
    grey(base / "SegmentationClassAug" / "2007_000001.png", halves(3, 3))
    return root


def coco_stuff(root: Path, nested: bool = False) -> Path:
    """Fine labels 0 (person), 181 (wood) and 255; the curated list leaves one image out."""
    base = root / "dataset" if nested else root
    for split in ("train2017", "val2017"):
        for number in (1, 2):
            photo(base / "images" / split / f"{number:012d}.jpg", number)
            labels = halves(0, 181)
            labels[:2] = 255
            grey(base / "annotations" / split / f"{number:012d}.png", labels)
        if not nested:
            text(root / "curated" / split / "Coco164kFull_Stuff_Coarse.txt", f"{2:012d}\n")
    return root


def coco(root: Path) -> Path:
    """Instances (polygon, plain and packed runs, a crowd), captions, keypoints, panoptic."""
    categories = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
    people = [{"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "tail"]}]
    for split in ("train2017", "val2017"):
        images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": HEIGHT, "width": WIDTH} for n in (7, 9)]
        for image in images:
            photo(root / split / image["file_name"], image["id"])
        square = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]
        small = [20, 20, 24, 20, 24, 24, 20, 24]
        column = [0, HEIGHT * 4, HEIGHT * (WIDTH - 4)]  # runs of 0s and 1s: the first four columns
        notes = [
            {"id": 1, "image_id": 7, "category_id": 1, "area": 400, "iscrowd": 0, "segmentation": [square],
             "bbox": [10, 10, 20, 20]},
            {"id": 2, "image_id": 7, "category_id": 90, "area": 16, "iscrowd": 0, "segmentation": [small],
             "bbox": [20, 20, 4, 4]},
            {"id": 3, "image_id": 9, "category_id": 1, "area": 192, "iscrowd": 1, "bbox": [0, 0, 4, HEIGHT],
             "segmentation": {"counts": column, "size": [HEIGHT, WIDTH]}},
        ]  # fmt: skip
        dump(
            root / "annotations" / f"instances_{split}.json",
            {"images": images, "annotations": notes, "categories": categories},
        )
        said = [
            {"image_id": n, "id": n * 10 + k, "caption": f" picture {n}, take {k} "} for n in (7, 9) for k in range(5)
        ]
        dump(root / "annotations" / f"captions_{split}.json", {"images": images, "annotations": said})
        nose_and_tail, middle = [10, 12, 2, 20, 12, 1, 30, 20, 2], [0, 0, 0, 32, 24, 2, 5, 5, 2]
        seen = [
            {"image_id": 7, "category_id": 1, "bbox": [8, 8, 32, 24], "keypoints": nose_and_tail},
            {"image_id": 9, "category_id": 1, "bbox": [0, 0, 64, 48], "keypoints": middle},
        ]
        dump(
            root / "annotations" / f"person_keypoints_{split}.json",
            {"images": images, "annotations": seen, "categories": people},
        )
        segments = []
        for image in images:
            ids = halves(5, 70_000)
            rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
            file = root / "annotations" / f"panoptic_{split}" / f"{image['id']:012d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb).save(file)
            info = [{"id": 5, "category_id": 90, "iscrowd": 0}, {"id": 70_000, "category_id": 1, "iscrowd": 1}]
            segments.append({"image_id": image["id"], "file_name": file.name, "segments_info": info})
        dump(
            root / "annotations" / f"panoptic_{split}.json",
            {"images": images, "annotations": segments, "categories": categories},
        )
    return root


def flickr30k(root: Path) -> Path:
    """A header, captions with commas and quotes, five an image; and Karpathy's JSON."""
    lines = ["image,caption"]
    for name in ("100.jpg", "200.jpg"):
        photo(root / name, len(name))
        lines += [f'{name},a dog, "running" {take}' for take in range(5)]
    text(root / "flickr30k_test_karpathy.txt", "\n".join(lines) + "\n")
    images = [
        {"filename": "100.jpg", "split": "test", "sentences": [{"raw": "one"}, {"raw": "two"}]},
        {"filename": "200.jpg", "split": "restval", "sentences": [{"raw": "three"}]},
    ]
    dump(root / "dataset_flickr30k.json", {"images": images})
    return root


def nyud_multitask(root: Path, variant: str = "atrc") -> Path:
    """Both archives: PNG everywhere, or JPEG images with .npy normals and edges."""
    atrc = variant == "atrc"
    base = root / "NYUDv2" if atrc else root
    for split, key in (("train", "0001"), ("val", "0002")):
        text(base / "gt_sets" / f"{split}.txt", f"{key}\n")
        photo(base / "images" / f"{key}.{'png' if atrc else 'jpg'}", int(key))
        grey(base / "segmentation" / f"{key}.png", halves(0, 40))
        depth = halves(0, 3).astype(np.float32)
        (base / "depth").mkdir(exist_ok=True)
        np.save(base / "depth" / f"{key}.npy", depth)
        vectors = np.zeros((HEIGHT, WIDTH, 3), dtype=np.float32)
        vectors[:, WIDTH // 2 :, 2] = -1
        edge = halves(0, 1)
        if atrc:
            rgb = (
                np.where(np.abs(vectors).sum(-1, keepdims=True) > 0, (vectors + 1) / 2 * 255, 0)
                .round()
                .astype(np.uint8)
            )
            (base / "normals").mkdir(exist_ok=True)
            Image.fromarray(rgb).save(base / "normals" / f"{key}.png")
            grey(base / "edge" / f"{key}.png", 255 * edge)
        else:
            for folder, values in (("normals", vectors), ("edge", edge.astype(np.float32))):
                (base / folder).mkdir(exist_ok=True)
                np.save(base / folder / f"{key}.npy", values)
    return root


def pascal_multitask(root: Path) -> Path:
    """Two images: a person with parts (VOC12 semseg), and none (pascal-context semseg)."""
    base = root / "PASCALContext"
    text(base / "ImageSets" / "Context" / "train.txt", "2008_000001\n")
    text(base / "ImageSets" / "Context" / "val.txt", "2008_000002\n")
    for key, person in (("2008_000001", True), ("2008_000002", False)):
        photo(base / "JPEGImages" / f"{key}.jpg", 1)
        grey(base / "semseg" / ("VOC12" if person else "pascal-context") / f"{key}.png", halves(15, 255))
        grey(base / "sal_distill" / f"{key}.png", halves(20, 200))
        rgb = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        rgb[:, : WIDTH // 2] = (128, 128, 255)
        rgb[:, WIDTH // 2 :] = (255, 128, 128)
        (base / "normals_distill").mkdir(exist_ok=True)
        Image.fromarray(rgb).save(base / "normals_distill" / f"{key}.png")
        for folder in ("pascal-context/trainval", "human_parts"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        savemat(base / "pascal-context" / "trainval" / f"{key}.mat", {"LabelMap": halves(2, 456).astype(np.uint16)})
        head, arm = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
        head[:10, :10], arm[5:20, :10] = 1, 1
        parts = [{"part_name": "head", "mask": head}, {"part_name": "luarm", "mask": arm}] if person else []
        thing = {
            "class": "person" if person else "bird",
            "class_ind": 15 if person else 3,
            "mask": head | arm,
            "parts": parts,
        }
        savemat(base / "human_parts" / f"{key}.mat", {"anno": {"imname": key, "objects": [thing]}})
    return root


def nyu_probe3d(root: Path) -> Path:
    """GeoNet .mat files at 48x64 (the loader's margins scale) and the merged pickle."""
    depth = halves(2, 12).astype(np.float32)
    depth[0] = 0
    normals = np.zeros((HEIGHT, WIDTH, 3))
    normals[..., 2] = -1
    shifted = np.full((HEIGHT, WIDTH, 3), 100.0) - 2 * np.array([122.175, 116.169, 103.508])
    (root / "nyu_geonet").mkdir(parents=True)
    for number in range(2):
        savemat(root / "nyu_geonet" / f"{number}.mat", {"img": shifted, "depth": depth, "norm": normals})
    (root / "nyuv2").mkdir()
    data = {
        "depths": np.stack([depth] * 3),
        "images": np.full((3, 3, HEIGHT, WIDTH), 50, np.uint8),
        "snorms": np.moveaxis(np.stack([normals] * 3), -1, 1),
        "test_indices": np.array([2]),
        "scene_types": ["office"] * 3,
    }
    (root / "nyuv2" / "nyuv2_snorm_all.pkl").write_bytes(pickle.dumps(data))
    return root


def navi(root: Path) -> Path:
    """One whole object in both spellings, one without a wild set, copies that are to be ignored, 16-bit disparity."""
    metres = np.zeros((HEIGHT, WIDTH))
    metres[10:30, 20:40] = 0.5
    metres[15:25, 25:35] = 0.4
    stored = np.where(metres > 0, 655.35 / np.where(metres > 0, metres, 1), 0).round()
    for number, folder in enumerate(
        ("cup/multiview_00", "cup/multiview-01-pixel", "cup/wild_set", "hat/multiview_00", "cup/video_1")
    ):
        base, entries = root / "navi_v1" / folder, []
        for index in range(5):
            photo(base / "images" / f"{index:03d}.jpg", number)
            photo(base / "images" / f"downsampled_{index:03d}.jpg", number)
            grey(base / "depth" / f"{index:03d}.png", stored)
            angle = np.radians(20.0 * index) / 2
            camera = {
                "q": [np.cos(angle), 0, np.sin(angle), 0],
                "t": [0, 0, 450 if index else 500],
                "focal_length": 60.0,
            }
            entries.append({"filename": f"{index:03d}.jpg", "image_size": [HEIGHT, WIDTH], "camera": camera})
        dump(base / "annotations.json", entries)
    return root


def bsds(root: Path) -> Path:
    """Two annotators who agree on one line and disagree on another."""
    photo(root / "1.jpg", 1)
    lines = [np.zeros((HEIGHT, WIDTH), np.uint8) for _ in range(2)]
    for drawn in lines:
        drawn[:, 20] = 1
    lines[1][10] = 1
    truth = np.empty((1, 2), dtype=object)
    for at, drawn in enumerate(lines):
        truth[0, at] = {"Segmentation": drawn.astype(np.uint16), "Boundaries": drawn}
    savemat(root / "1.mat", {"groundTruth": truth})
    return root


def scannet(root: Path) -> Path:
    """Two frames of a flat wall, the second 0.1 m to the right; depth at half the size."""
    base = root / "scannet_test_1500" / "scene0707_00"
    for frame, shift in ((15, 0.0), (585, 0.1)):
        photo(base / "color" / f"{frame}.jpg", frame)
        grey(base / "depth" / f"{frame}.png", np.full((HEIGHT // 2, WIDTH // 2), 2000))
        pose = np.eye(4)
        pose[0, 3] = shift
        text(base / "pose" / f"{frame}.txt", "\n".join(" ".join(str(value) for value in row) for row in pose))
    camera = np.array([[64.0, 0, WIDTH / 2], [0, 64.0, HEIGHT / 2], [0, 0, 1]])
    np.savez(root / "scannet_test_1500" / "intrinsics.npz", scene0707_00=camera)
    np.savez(root / "scannet_test_1500" / "test.npz", name=np.array([[707, 0, 15, 585]]))
    return root


def spair(root: Path) -> Path:
    """Two images of a class, a keypoint of the source not on the target."""
    base = root / "SPair-71k"
    for stem, third in (("2008_000001", [30, 30]), ("2008_000002", None)):
        photo(base / "JPEGImages" / "cat" / f"{stem}.jpg", 1)
        kps = {"0": [10, 12], "1": [40, 24], "2": third, "29": None}
        note = {"image_width": WIDTH, "image_height": HEIGHT, "bndbox": [8, 10, 48, 40], "kps": kps}
        dump(base / "ImageAnnotation" / "cat" / f"{stem}.json", note)
    pair = {
        "category": "cat",
        "src_imname": "2008_000001.jpg",
        "trg_imname": "2008_000002.jpg",
        "viewpoint_variation": 0,
    }
    dump(base / "PairAnnotation" / "test" / "000001-2008_000001-2008_000002-cat.json", pair)
    return root


def revisited(root: Path, dataset: str = "roxford5k") -> Path:
    """One query and four gallery images: easy, hard, junk, and one that is nothing."""
    base = root / dataset
    for name in ("query", "a", "b", "c", "d"):
        photo(base / "jpg" / f"{name}.jpg", len(name))
    gnd = [{"bbx": [4.0, 4.0, 40.0, 40.0], "easy": np.array([0]), "hard": np.array([1]), "junk": np.array([2])}]
    data = {"imlist": ["a", "b", "c", "d"], "qimlist": ["query"], "gnd": gnd}
    (base / f"gnd_{dataset}.pkl").write_bytes(pickle.dumps(data))
    return root


def llava(root: Path) -> Path:
    """A two-turn conversation, a text-only row."""
    photo(root / "coco" / "train2017" / "1.jpg", 1)
    turns = [("human", "<image>\nWhat is it?"), ("gpt", "A cat."), ("human", "What colour?"), ("gpt", "Grey")]
    rows = [
        {"id": "1", "image": "coco/train2017/1.jpg", "conversations": [{"from": f, "value": v} for f, v in turns]},
        {"id": "2", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    ]
    dump(root / "mix.json", rows)
    return root


def vlm_benchmark(root: Path, name: str) -> Path:
    """One benchmark in its own files."""
    {
        "textvqa": _textvqa, "docvqa": _docvqa, "infovqa": _infovqa, "chartqa": _chartqa, "gqa": _gqa, "pope": _pope,
        "mme": _mme, "seed": _seed, "ocrbench": _ocrbench, "ai2d": _ai2d, "mmmu": _mmmu,
    }[name](root)  # fmt: skip
    return root


def jpeg(seed: int) -> dict[str, object]:
    """A picture as it lies in a parquet cell."""
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(out, format="JPEG")
    return {"bytes": out.getvalue(), "path": None}


def parquet(
    path: Path, rows: Sequence[dict[str, object]], images: Sequence[str] = ("image",), many: bool = False
) -> Path:
    """Rows as the Hub stores them: image columns are typed so in the file's metadata."""
    from datasets import Dataset, List
    from datasets import Image as ImageType

    table = Dataset.from_list(list(rows))
    for column in images:
        table = table.cast_column(column, List(ImageType()) if many else ImageType())
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    return path


def vlm_hub(root: Path, name: str) -> Path:
    """One benchmark as lmms-eval's re-pack holds it."""
    shot, test, validation = jpeg(1), "data/test-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"
    if name == "textvqa":
        rows = [{"image_id": "abc", "question_id": n, "question": f"brand {n}?", "answers": ["nokia"] * 9 + ["phone"],
                 "ocr_tokens": ["NOKIA", "3310"], "image": shot} for n in range(2)]  # fmt: skip
        parquet(root / validation, rows)
    elif name in ("docvqa", "infovqa"):
        config = {"docvqa": "DocVQA", "infovqa": "InfographicVQA"}[name]
        row = {"questionId": "1", "question": "when?", "answers": ["1996", "in 1996"], "docId": 3, "image": shot}
        parquet(root / config / "validation-00000-of-00001.parquet", [row])
    elif name == "chartqa":
        rows = [
            {"type": f"{kind}_test", "question": kind, "answer": "100", "image": shot}
            for kind in ("human", "augmented")
        ]
        parquet(root / test, rows)
    elif name == "gqa":
        parquet(root / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet",
                [{"id": "77", "imageId": "n2", "question": "is it red?", "answer": "yes"}], images=())  # fmt: skip
        parquet(root / "testdev_balanced_images" / "testdev-00000-of-00001.parquet",
                [{"id": "n1", "image": jpeg(9)}, {"id": "n2", "image": shot}])  # fmt: skip
    elif name == "pope":
        asked = [(kind, answer) for kind in ("random", "popular") for answer in ("yes", "no")]
        shared = {"question": "Is there a dog?", "image": shot, "image_source": "COCO_val2014_1"}
        rows = [
            {"question_id": str(n), "answer": answer, "category": kind, **shared}
            for n, (kind, answer) in enumerate(asked)
        ]
        parquet(root / test, rows)
    elif name == "mme":
        rows = [{"question_id": "existence/1.jpg", "question": "Is it? Please answer yes or no.", "answer": answer,
                 "category": "existence", "image": shot} for answer in ("Yes", "No")]  # fmt: skip
        parquet(root / test, rows)
    elif name == "seed":
        choices = {"choice_a": "cat", "choice_b": "dog", "choice_c": "cow", "choice_d": "pig"}
        shared = {**choices, "question": "what?", "answer": "B", "data_id": "1"}
        rows = [
            {"question_type_id": n, "question_id": str(n), "data_type": kind, "image": [shot] * frames, **shared}
            for n, kind, frames in ((1, "image", 1), (10, "video", 8))
        ]
        parquet(root / test, rows, many=True)
    elif name == "ocrbench":
        rows = [{"dataset": data, "question": "read", "question_type": kind, "answer": ["CENTRE"], "image": shot}
                for data, kind in (("IIIT5K", "Regular Text Recognition"), ("HME100k", "Handwritten"))]  # fmt: skip
        parquet(root / test, rows)
    elif name == "ai2d":
        row = {"question": "Which part?", "options": ["leaf", "root", "stem", "seed"], "answer": "2", "image": shot}
        parquet(root / test, [row])
    else:
        shared = {"question_type": "multiple-choice", "explanation": "", "img_type": "['Plots']", "subfield": "x"}
        others = {f"image_{n}": None for n in range(3, 8)}
        rows = [
            {"id": "validation_Math_1", "question": "<image 1> is to <image 2> as?", "options": "['one', 'two']",
             "answer": "B", **shared, "image_1": shot, "image_2": jpeg(2), **others},
            {"id": "validation_Art_Theory_7", "question": "How many in <image 1>?", "options": "[]",
             "answer": "['7', 'seven']", **shared, "question_type": "open", "image_1": shot, "image_2": None, **others},
        ]  # fmt: skip
        for row in rows:  # a folder for each subject
            subject = row["id"].split("_", 1)[1].rsplit("_", 1)[0]
            parquet(root / subject / "validation-00000-of-00001.parquet", [row], [f"image_{n}" for n in range(1, 8)])
    return root


def _textvqa(root: Path) -> None:
    photo(root / "train_images" / "abc.jpg", 1)
    answers = ["nokia"] * 7 + ["Nokia"] * 2 + ["phone"]
    entry = {"question": "brand?", "image_id": "abc", "answers": answers, "question_id": 1}
    dump(root / "TextVQA_0.5.1_val.json", {"data": [entry]})
    dump(root / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": [{"image_id": "abc", "ocr_tokens": ["NOKIA", "3310"]}]})


def _docvqa(root: Path) -> None:
    photo(root / "documents" / "page_1.png", 1)
    dump(
        root / "val_v1.0_withQT.json",
        {"data": [{"question": "when?", "image": "documents/page_1.png", "answers": ["1996", "in 1996"]}]},
    )


def _infovqa(root: Path) -> None:
    photo(root / "images" / "1.jpeg", 1)
    dump(
        root / "infographicsVQA_val_v1.0_withQT.json",
        {"data": [{"question": "how many?", "image_local_name": "1.jpeg", "answers": ["12"]}]},
    )


def _chartqa(root: Path) -> None:
    photo(root / "ChartQA Dataset" / "test" / "png" / "1.png", 1)
    for kind in ("human", "augmented"):
        entries = [{"imgname": "1.png", "query": kind, "label": "100"}]
        path = root / "ChartQA Dataset" / "test" / f"test_{kind}.json"
        dump(path, entries if kind == "human" else {"data": entries})  # both are about


def _gqa(root: Path) -> None:
    photo(root / "images" / "n1.jpg", 1)
    dump(root / "testdev_balanced_questions.json", {"77": {"imageId": "n1", "question": "is it red?", "answer": "yes"}})


def _pope(root: Path) -> None:
    photo(root / "val2014" / "COCO_val2014_1.jpg", 1)
    for kind in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": n, "image": "COCO_val2014_1.jpg", "text": f"Is there a {kind}?", "label": label}
            for n, label in enumerate(("yes", "no"))
        ]
        json_lines(root / "coco" / f"coco_pope_{kind}.json", rows)


def _mme(root: Path) -> None:
    base = root / "MME_Benchmark_release_version" / "MME_Benchmark"
    (base / "eval_tool").mkdir(parents=True)
    both = "Is it a cat? Please answer yes or no.\tYes\nIs it a dog? Please answer yes or no.\tNo\n"
    photo(base / "existence" / "1.jpg", 1)
    text(base / "existence" / "1.txt", both)
    photo(base / "artwork" / "images" / "7.png", 1)
    text(base / "artwork" / "questions_answers_YN" / "7.txt", both)


def _seed(root: Path) -> None:
    photo(root / "SEED-Bench-image" / "x1.jpg", 1)
    choices = {"choice_a": "cat", "choice_b": "dog", "choice_c": "cow", "choice_d": "pig"}
    entry = {"question": "what?", **choices, "answer": "B", "question_type_id": 1, "data_id": "x1.jpg"}
    entry["data_type"] = "image"
    video = {**entry, "data_type": "video", "data_id": "v.mp4", "question_id": "v9", "answer": "C"}
    dump(root / "SEED-Bench.json", {"questions": [entry, video], "question_type": {"Scene Understanding": 1}})


def _ocrbench(root: Path) -> None:
    photo(root / "OCRBench_Images" / "IIIT5K" / "1.png", 1)
    shared = {"image_path": "IIIT5K/1.png", "question": "read"}
    entries = [
        {"dataset_name": "IIIT5K", "type": "Regular Text Recognition", "answers": ["CENTRE"], **shared},
        {"dataset_name": "HME100k", "type": "Handwritten", "answers": "a + b", **shared},
    ]
    dump(root / "OCRBench.json", entries)


def _ai2d(root: Path) -> None:
    base = root / "ai2d"
    for stem in ("1", "2"):
        photo(base / "images" / f"{stem}.png", 1)
        question = {"abcLabel": False, "answerTexts": ["leaf", "root", "stem", "seed"], "correctAnswer": 2,
                    "questionId": f"{stem}.png-0"}  # fmt: skip
        dump(
            base / "questions" / f"{stem}.png.json",
            {"imageName": f"{stem}.png", "questions": {"Which part?": question}},
        )
    text(base / "ai2d_test_ids.csv", "2\n")


def _mmmu(root: Path) -> None:
    photo(root / "images" / "1.png", 1)
    entries = [
        {"subject": "Math", "image": "images/1.png", "question": "how many?", "options": ["1", "2"], "answer": "B"},
        {"subject": "Art", "image": "images/1.png", "question": "who?", "answer": "Monet"},
    ]
    dump(root / "mmmu_val.json", entries)
