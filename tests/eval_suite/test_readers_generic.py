"""The generic readers: a user's own images and labels in a few lines of YAML, and what is said when they are wrong."""

import json
from pathlib import Path
from typing import Any

import layout_fixtures as make
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.io import savemat
from test_readers_layouts import ROWS, One, opened, sides, values

from common.errors import UserError
from common.recipes import validate
from eval_suite.readers.contracts import IGNORE
from eval_suite.readers.fitting import Fit
from eval_suite.readers.remembered import Remembered
from eval_suite.readers.rle import decode_rle, unpack
from eval_suite.readers.view_geometry import correspondences
from imagery.scenes import render_scene

CLASSES = {"kind": "classes", "classes": 11, "ignore": [11]}


def street(root: Path) -> Path:
    """images/SPLIT/*.jpg beside labels/SPLIT/*.png, depth of three kinds, normals, a mat file."""
    for split in ("train", "val"):
        for number in range(3):
            make.photo(root / "images" / split / f"f{number}.jpg", number)
            make.grey(root / "labels" / split / f"f{number}.png", make.halves(11, number))
            make.grey(root / "depth" / split / f"f{number}.depth.png", make.halves(65535, 1500))
            make.grey(root / "disparity" / split / f"f{number}.png", make.halves(0, 200))
            colours = np.zeros((make.HEIGHT, make.WIDTH, 3), np.uint8)
            colours[:, : make.WIDTH // 2] = (128, 64, 128)
            (root / "painted" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(colours).save(root / "painted" / split / f"f{number}.png")
            (root / "mat" / split).mkdir(parents=True, exist_ok=True)
            savemat(root / "mat" / split / f"f{number}.mat", {"mask": make.halves(0, 1), "other": 1})
    return root


def street_node(root: Path, **changes: object) -> dict[str, object]:
    labels = {
        "semantic": {"files": "labels/{split}/*.png", **CLASSES},
        "depth": {"files": "depth/{split}/*.depth.png", "kind": "depth", "scale": 0.001, "invalid": [0, 65535]},
        "near": {"files": "disparity/{split}/*.png", "kind": "disparity", "scale": 100.0},
        "painted": {
            "files": "painted/{split}/*.png", "kind": "classes", "classes": ["road", "sky"],
            "colours": {"road": [128, 64, 128], "sky": [70, 130, 180]}, "other_colours": "ignore",
        },
        "edge": {"files": "mat/{split}/*.mat", "kind": "mask", "key": "mask", "foreground": "nonzero"},
    }  # fmt: skip
    fields = {"images": "images/{split}/*.jpg", "labels": labels, "splits": {"train": "train", "test": "val"}}
    return {**fields, **changes}


def test_dense_folders_reads_every_kind_of_label(tmp_path: Path) -> None:
    dense = opened("dense_folders", street(tmp_path), **street_node(tmp_path)).dense("test")
    assert len(dense.images) == 3
    assert sides(values(dense, "semantic", 2)) == (IGNORE, 2)
    assert sides(values(dense, "depth")) == (0, 1.5)
    assert sides(values(dense, "near")) == (0, 0.5)
    assert sides(values(dense, "painted")) == (0, IGNORE)
    assert sides(values(dense, "edge")) == (0, 1)
    assert dense.names["semantic"][10] == "10" and dense.names["painted"] == ("road", "sky")
    assert bool((dense.labels("semantic")[torch.arange(3)][:, 5, -1] == torch.arange(3)).all())


def test_dense_folders_splits_by_number_or_by_list(tmp_path: Path) -> None:
    street(tmp_path)
    one = {"semantic": {"files": "labels/train/*.png", **CLASSES}}
    every = opened("dense_folders", tmp_path, images="images/train/*.jpg", labels=one, every=3)
    assert len(every.dense("train").images) == 2 and every.dense("test").images.name_of(0).endswith("f2.jpg")
    make.text(tmp_path / "pick.txt", "f1\n\nf0\n")
    lists = {"train": "pick.txt", "test": "pick.txt"}
    listed = opened("dense_folders", tmp_path, images="images/train/*.jpg", labels=one, lists=lists)
    assert [Path(path).stem for path in listed.dense("train").images.files] == ["f1", "f0"]
    limited = opened("dense_folders", tmp_path, **{**street_node(tmp_path), "limit": {"test": 2}})
    assert len(limited.dense("test").images) == 2 and len(limited.dense("train").images) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"semantic": {"files": "labels/{split}/*.png", "kind": "classes", "classes": 2}}}, "value 11, but"),
        ({"splits": {"train": "train", "test": "vla"}}, "no image fits"),
        ({"images": "images/{split}/f0.jpg"}, 'exactly one "\\*"'),
        ({"labels": {"edge": {"files": "mat/{split}/*.mat", "kind": "mask"}}}, "mask, other; name the right one"),
        ({"labels": {"semantic": {"files": "labels/train/g*.png", **CLASSES}}}, "f0.* has no semantic label"),
        ({"every": 3}, "one of these"),
        ({"root": "${NO_SUCH_VARIABLE}/x"}, "NO_SUCH_VARIABLE is not set"),
        ({"root": "missing_folder"}, "set data.toy.root"),
        ({"limit": {"val": 3}}, "train or test"),
        ({"size": 0}, "greater than"),
    ],
)
def test_dense_folders_mistakes_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    fields = {**street_node(street(tmp_path)), **change}
    root = fields.pop("root", str(tmp_path))
    with pytest.raises(UserError, match=message):
        dense = opened("dense_folders", Path(str(root)), **fields).dense("test")
        for name in dense.maps:
            dense.labels(name)[ROWS]


def test_a_mask_of_another_shape_and_a_broken_image_are_named(tmp_path: Path) -> None:
    street(tmp_path)
    make.grey(tmp_path / "labels" / "val" / "f0.png", make.halves(0, 1, make.WIDTH, make.HEIGHT))
    data = opened("dense_folders", tmp_path, **street_node(tmp_path)).dense("test")
    with pytest.raises(UserError, match=r"f0.png is 48x64 but its image 64x48"):
        data.labels("semantic")[ROWS]
    (tmp_path / "images" / "val" / "f0.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"f0.jpg cannot be read as an image"):
        opened("dense_folders", tmp_path, **street_node(tmp_path)).dense("test").images.read(ROWS)
    (tmp_path / "labels" / "val" / "f1.png").write_bytes(b"no mask")
    with pytest.raises(UserError, match=r"f1.png is no PNG, .* file that can be read"):
        data.labels("semantic")[torch.tensor([1])]


def test_normals_from_depth_are_those_of_the_rendered_scene(tmp_path: Path) -> None:
    scene = render_scene(0, 0, 96, 128)
    assert scene.depth is not None and scene.normals is not None
    make.photo(tmp_path / "images" / "0.png", 0, 96, 128)
    make.photo(tmp_path / "images" / "1.png", 0, 96, 128)
    for name in "01":
        np.save(tmp_path / f"{name}.npy", scene.depth)

    def error(**fields: Any) -> np.ndarray:
        labels = {"normals": {"files": "*.npy", "kind": "normals_from_depth", **fields}}
        data = opened("dense_folders", tmp_path, images="images/*.png", labels=labels, every=2, size=[96, 128])
        found = data.dense("test").labels("normals")[torch.tensor([0])][0].movedim(0, -1).numpy()
        lengths = np.linalg.norm(found, axis=-1)
        assert (lengths[scene.depth > 0] > 0).mean() > 0.99 and not lengths[scene.depth <= 0].any()
        assert np.allclose(lengths[lengths > 0], 1, atol=1e-5)
        cosine = (found * scene.normals).sum(-1)[(lengths > 0) & scene.normals.any(-1)]
        return np.degrees(np.arccos(cosine.clip(-1, 1)))

    focal = float(scene.intrinsics[0, 0])
    exact = error(focal=focal)  # the principal point is the middle, as in the scene
    assert np.median(exact) < 0.1 and (exact < 2).mean() > 0.8  # the rest are the outlines of objects
    assert np.array_equal(exact, error(focal=focal, centre=[64, 48]))
    assert np.median(error(focal=focal, centre=[0, 0])) > 10 and np.median(error(focal=2 * focal)) > 2


def test_class_folders_number_classes_alike_in_both_splits(tmp_path: Path) -> None:
    data = opened("class_folders", make.class_tree(tmp_path, ("a_cat", "b", "c")))
    train, test = data.classes("train"), data.classes("test")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2] and test.labels.tolist() == [0, 0, 1, 1]
    assert train.names == test.names == ("a cat", "b", "c")
    named = opened("class_folders", tmp_path, names={"a_cat": "tabby", "b": "bee", "c": "sea"})
    assert named.classes("test").names == ("tabby", "bee", "sea")
    assert train.images.key != test.images.key
    with pytest.raises(UserError, match="names no val split"):
        data.classes("val")


def test_caption_tables(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        make.photo(tmp_path / "img" / name, 1)
    make.text(tmp_path / "c.csv", 'file,text\na.png,"one, two"\nb.png,three\na.png,four\n')
    data = opened("captions", tmp_path, file="c.csv", format="csv", images="img", image="file", caption="text")
    assert data.captions("test").captions == [["one, two", "four"], ["three"]]
    make.json_lines(
        tmp_path / "c.jsonl", [{"image": "a.png", "caption": ["x", "y"]}, {"image": "b.png", "caption": "z"}]
    )
    lines = opened("captions", tmp_path, file="c.jsonl", format="jsonl", images="img")
    assert lines.captions("train").captions == [["x", "y"], ["z"]]
    with pytest.raises(UserError, match='line 1 has no "text"; it has: image, caption'):
        make.text(tmp_path / "d.csv", "image,caption\na.png,b\n")
        opened("captions", tmp_path, file="d.csv", format="csv", caption="text").captions("test")
    with pytest.raises(UserError, match=r"nope.png is missing"):
        make.text(tmp_path / "e.csv", "image,caption\nnope.png,b\n")
        opened("captions", tmp_path, file="e.csv", format="csv").captions("test")


def test_questions_with_named_fields(tmp_path: Path) -> None:
    make.photo(tmp_path / "a.png", 1)
    rows = [{"img": "a", "q": "how many?", "answers": ["2", "two"], "type": "count"}]
    make.dump(tmp_path / "q.json", {"items": rows})
    fields = {"image": "img", "suffix": ".png", "question": "q", "answer": "answers", "kind": "type", "under": "items"}
    item = opened("questions", tmp_path, file="q.json", **fields).questions("test").questions[0]
    assert (item.kind, item.question, item.answer, item.others) == ("count", "how many?", "2", ("two",))
    with pytest.raises(UserError, match='no field "answer"; it has: img, q, answers, type'):
        opened("questions", tmp_path, file="q.json", **{**fields, "answer": "answer"}).questions("test")


def rgbd(root: Path) -> Path:
    for number in range(4):
        make.photo(root / f"frame-{number}.color.jpg", number)
        make.grey(root / f"frame-{number}.depth.png", np.full((make.HEIGHT, make.WIDTH), 2000))
        pose = np.eye(4)
        pose[0, 3] = 0.1 * number
        make.text(root / f"frame-{number}.pose.txt", "\n".join(" ".join(map(str, row)) for row in pose.tolist()))
    make.text(root / "k.txt", "64 0 32\n0 64 24\n0 0 1\n")
    return root


def test_rgbd_pairs_by_gap(tmp_path: Path) -> None:
    files = {"colour": "*.color.jpg", "depth": "*.depth.png", "pose": "*.pose.txt", "intrinsics": "k.txt"}
    pairs = opened("rgbd_pairs", rgbd(tmp_path), **files, gap=2, points=30, size=[96, 128]).pairs("test")
    shift = (pairs.targets - pairs.points)[pairs.valid]
    assert len(pairs.first) == 2 and torch.allclose(shift, torch.tensor([-12.8, 0.0]).expand_as(shift), atol=1e-3)
    make.text(tmp_path / "frame-1.pose.txt", "-inf 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    with pytest.raises(UserError, match=r"frame-1.pose.txt is not a finite 4x4 matrix"):
        opened("rgbd_pairs", tmp_path, **files, gap=1).pairs("test")
    with pytest.raises(UserError, match="give no pair with gap 9"):
        opened("rgbd_pairs", tmp_path, **files, gap=9)
    with pytest.raises(UserError, match="with poses and intrinsics alone a point is only known to lie on a line"):
        opened("rgbd_pairs", tmp_path, **{name: path for name, path in files.items() if name != "depth"})


def test_hidden_points_are_no_correspondences() -> None:
    """A near post hides what is behind it in the second view; brute force over every pixel says where."""
    depth = np.full((20, 30), 4.0)
    second = depth.copy()
    second[:, 10:14] = 1.0
    camera = np.array([[30.0, 0, 15], [0, 30.0, 10], [0, 0, 1]])
    moved = np.eye(4)
    moved[0, 3] = 0.4
    points, targets, valid = correspondences(
        (depth, second), (camera, camera), (np.eye(4), moved), count=600, seed=0, tolerance=0.05
    )
    expected = {(x + 0.5, y + 0.5) for y in range(20) for x in range(30) if x - 2.5 >= 0 and not 10 <= x - 2.5 < 14}
    found = {(float(x), float(y)) for x, y in points[valid]}
    assert found == expected
    assert torch.allclose((targets - points)[valid], torch.tensor([-3.0, 0.0]), atol=1e-4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DatasetDict as save_to_disk writes it."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
    from datasets import Image as HfImage

    root = tmp_path_factory.mktemp("hf")
    names = ClassLabel(names=["tabby_cat", "dog"])
    columns = Features(
        {"image": HfImage(), "label": names, "mask": HfImage(), "text": Sequence(Value("string")), "q": Value("string"),
         "a": Value("string"), "choices": Sequence(Value("string")), "metres": Sequence(Sequence(Value("float32")))}
    )  # fmt: skip
    rows = {name: [] for name in columns}
    for number in range(4):
        rows["image"].append(str(make.photo(root / "files" / f"{number}.jpg", number)))
        rows["label"].append(number % 2)
        rows["mask"].append(str(make.grey(root / "files" / f"{number}.png", make.halves(0, 5))))
        rows["text"].append([f"caption {number}", "another"])
        rows["q"].append("which?")
        rows["a"].append("1")
        rows["choices"].append(["left", "right"])
        rows["metres"].append(make.halves(0, 3).tolist())
    data = Dataset.from_dict(rows, features=columns)
    DatasetDict({"train": data, "validation": data.select([3, 1])}).save_to_disk(str(root / "set"))
    return root / "set"


def test_hugging_face_columns(saved: Path) -> None:
    node = {
        "reader": "hf", "path": str(saved), "size": [make.HEIGHT, make.WIDTH], "label": "label", "caption": "text",
        "question": "q", "answer": "a", "options": "choices", "answer_is": "number",
        "depth": {"column": "metres", "scale": 0.5},
        "masks": {"semantic": {"column": "mask", "classes": 5, "first": 1}},
    }  # fmt: skip
    data = validate(One, {"data": node}, "suite").data.open("toy")
    classes = data.classes("test")
    assert classes.labels.tolist() == [1, 1] and classes.names == ("tabby cat", "dog")
    assert classes.images.read(torch.arange(2)).shape == (2, 3, make.HEIGHT, make.WIDTH)
    assert data.captions("test").captions == [["caption 3", "another"], ["caption 1", "another"]]
    assert sides(values(data.dense("test"), "semantic")) == (IGNORE, 4)
    assert sides(values(data.dense("test"), "depth")) == (0, 1.5)
    item = data.questions("train").questions[0]
    assert (item.answer, item.options) == ("B", ("left", "right"))
    assert data.classes("train").images.key != classes.images.key
    once = validate(
        One, {"data": {**node, "splits": {"train": "train", "test": "train"}, "limit": {"test": 1}}}, "suite"
    )
    twice = Remembered(once.data.open("toy"))
    twice.classes("train")
    with pytest.raises(UserError, match=r"train and test share 1 images, e\.g\. row 0 of"):
        twice.classes("test")
    limited = validate(One, {"data": {**node, "limit": {"train": 2}}}, "suite").data.open("toy")
    assert limited.classes("train").labels.tolist() == [0, 0]
    for change, message in (
        ({"label": "lable"}, 'unknown column of data "toy" "lable" .did you mean "label"'),
        ({"splits": {"train": "train", "test": "tset"}}, 'cannot open split "tset"'),
        ({"path": str(saved / "nothing")}, "cannot open split"),
    ):
        with pytest.raises(UserError, match=message):
            validate(One, {"data": {**node, **change}}, "suite").data.open("toy").classes("test")


def test_slices_of_one_split_that_overlap_are_refused(tmp_path: Path) -> None:
    rows = [{"image": make.jpeg(number), "label": number % 2} for number in range(10)]
    make.parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", rows)
    make.parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", rows[:4])
    node = {"reader": "hf", "path": str(tmp_path / "set"), "label": "label", "cache_dir": str(tmp_path / "cache")}

    def opened_as(train: str, test: str) -> Remembered:
        one = validate(One, {"data": {**node, "splits": {"train": train, "test": test}}}, "suite")
        data = Remembered(one.data.open("toy"))
        data.classes("train")
        return data

    for train, test, shared in (
        ("train[:80%]", "train[70%:]", 1),
        ("train", "train[5:7]", 2),
        ("train[-3:]", "train[8:]", 2),
        ("train[:2]+test[:3]", "test", 3),
    ):
        with pytest.raises(UserError, match=rf"train and test share {shared} images, e\.g\. row \d+ of t\w+ of "):
            opened_as(train, test).classes("test")
    assert len(opened_as("train[:70%]", "train[70%:]").classes("test").labels) == 3
    assert len(opened_as("train", "test").classes("test").labels) == 4


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"label": "metres"}, "classes", 'row 0 of train has the label .* in column "metres", which is none of the'),
        ({"label": "q", "label_names": ["one", "two"]}, "classes", "has the label 'which.' in column \"q\""),
        (
            {"label": "label", "label_names": ["one"]},
            "classes",
            "row 1 of train has the label 1 .* none of the 1 classes",
        ),
        ({"image": "q"}, "images", 'no image in column "q" but "which'),
        ({"masks": {"semantic": {"column": "q", "classes": 5}}}, "semantic", 'no image in column "q" but "which'),
        ({"masks": {"semantic": {"column": "mask", "classes": 5}}}, "semantic", 'column "mask" holds the value 5'),
        ({"depth": {"column": "label"}}, "depth", 'row 0 of column "label" has shape .* a depth map is one channel'),
        ({"question": "q", "answer": "q", "options": "choices"}, "questions", "is none of the 2 options"),
    ],
)
def test_columns_that_hold_something_else_are_named(saved: Path, change: dict, kind: str, message: str) -> None:
    node = {"reader": "hf", "path": str(saved), "size": [make.HEIGHT, make.WIDTH], "label": "label", **change}
    with pytest.raises(UserError, match=message):
        data = validate(One, {"data": node}, "suite").data.open("toy")
        if kind == "images":
            data.classes("train").images.read(torch.arange(1))
        elif kind in ("classes", "questions"):
            getattr(data, kind)("train")
        else:
            data.dense("train").labels(kind)[torch.arange(1)]


@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("source", [(48, 64), (64, 48), (50, 50), (37, 91)])
def test_images_labels_and_points_move_alike(mode: str, source: tuple[int, int]) -> None:
    """A bright block of the photograph lies, in the fitted image, where the affine says, and where its label lies."""
    height, width = source
    pixels, labels = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    block = slice(height // 2 - 5, height // 2 + 3), slice(width // 2 - 3, width // 2 + 7)
    pixels[block], labels[block] = 255, 1
    fit = Fit(40, 60, mode)
    image, fitted = fit.image(pixels), fit.labels(labels, IGNORE)
    assert image.shape == (3, 40, 60) and fitted.shape == (40, 60)
    bright = (image[0] > 127).numpy()
    assert (bright != (fitted == 1)).mean() < 0.02
    move = fit.affine(height, width)
    centre = move.points(torch.tensor([width // 2 + 2.0, height // 2 - 1.0]))
    rows, columns = np.nonzero(fitted == 1)
    assert abs(columns.mean() + 0.5 - float(centre[0])) < 0.6 and abs(rows.mean() + 0.5 - float(centre[1])) < 0.6
    assert (fitted == IGNORE).any() == (mode == "pad" and abs(width * 40 - height * 60) > height)


def test_fitted_labels_agree_with_torchs_nearest() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((48, 64), (37, 91), (100, 30)):
        labels = rng.integers(0, 9, (height, width)).astype(np.uint8)
        expected = F.interpolate(torch.from_numpy(labels)[None, None].float(), size=(40, 60), mode="nearest-exact")
        assert np.array_equal(Fit(40, 60).labels(labels, 0), expected[0, 0].numpy())


def test_run_lengths_packed_as_coco_packs_them() -> None:
    """Packing by the published rule (5 bits a letter, differences from the third on), then back."""

    def packed(runs: list[int]) -> str:
        out = ""
        for at, run in enumerate(runs):
            value = run - (runs[at - 2] if at > 2 else 0)
            while True:
                bits, value = value & 31, value >> 5
                done = value == (-1 if bits & 16 else 0)
                out += chr(48 + (bits | (0 if done else 32)))
                if done:
                    break
        return out

    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((13, 9)) < 0.4
        flat = mask.T.ravel()
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [1 - int(flat[-1])]])))
        runs = np.diff(np.concatenate([[0], edges])).tolist()
        assert unpack(packed(runs)) == runs
        assert np.array_equal(decode_rle(packed(runs), 13, 9), mask)
        assert np.array_equal(decode_rle(runs, 13, 9), mask)
    with pytest.raises(UserError, match="covers 5 pixels of 117"):
        decode_rle([2, 3], 13, 9)


def test_changed_files_make_new_features(tmp_path: Path) -> None:
    make.class_tree(tmp_path)
    first = opened("class_folders", tmp_path).classes("train").images.key
    assert opened("class_folders", tmp_path).classes("train").images.key == first
    assert opened("class_folders", tmp_path, size=[16, 16]).classes("train").images.key != first
    make.photo(tmp_path / "train" / "tabby_cat" / "0.JPEG", 99)
    assert opened("class_folders", tmp_path).classes("train").images.key != first
    assert json.dumps(first)


def test_a_whole_folder_is_one_side_of_a_joined_set(tmp_path: Path) -> None:
    street(tmp_path)
    alone = {"reader": "dense_folders", "root": str(tmp_path), "images": "images/train/*.jpg",
             "labels": {"semantic": {"files": "labels/train/*.png", **CLASSES}}}  # fmt: skip
    with pytest.raises(UserError, match="the same images"):
        opened("dense_folders", tmp_path, **{name: alone[name] for name in ("images", "labels")}).dense("test")
    other = {**alone, "images": "images/val/*.jpg", "labels": {"semantic": {"files": "labels/val/*.png", **CLASSES}}}
    both = {"reader": "joined", "train": alone, "test": other}
    data = validate(One, {"data": both}, "suite").data.open("both")
    assert data.dense("train").images.name_of(0) != data.dense("test").images.name_of(0)
    named = {
        "semantic": {"files": "labels/val/*.png", "kind": "classes", "classes": list("abcdefghijk"), "ignore": [11]}
    }
    mixed = validate(One, {"data": {**both, "test": {**other, "labels": named}}}, "suite").data.open("both")
    with pytest.raises(UserError, match='class 0 of "semantic" is "0" to train on and "a" to test on'):
        mixed.dense("test")


def test_missing_files_are_left_out_aloud_where_one_says_so(tmp_path: Path) -> None:
    street(tmp_path)
    one = {
        "images": "images/train/*.jpg",
        "every": 2,
        "labels": {"semantic": {"files": "labels/train/*.png", **CLASSES}},
    }
    (tmp_path / "labels" / "train" / "f2.png").unlink()
    with pytest.raises(UserError, match=r"f2.* has no semantic label"):
        opened("dense_folders", tmp_path, **one).dense("train").labels("semantic")[torch.arange(2)]
    with pytest.warns(UserWarning, match=r"1 of 2 of split train left out, e.g. .*f2.png is missing"):
        kept = opened("dense_folders", tmp_path, **one, missing="skip").dense("train")
    assert [path.stem for path in kept.images.files] == ["f0"]
    make.text(tmp_path / "c.csv", "image,caption\nf0.jpg,x\nnope.jpg,y\n")
    fields = {"file": "c.csv", "format": "csv", "images": "images/train", "missing": "skip"}
    with pytest.warns(UserWarning, match="1 of 2"):
        assert opened("captions", tmp_path, **fields).captions("test").captions == [["x"]]
