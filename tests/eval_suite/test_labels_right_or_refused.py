"""Kinds of labels that were once read wrong in silence: each is right or refused, over its variants."""

import json
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.errors import UserError
from eval_suite.metrics.answer_rules import letter_of
from eval_suite.readers.captions import CaptionsNode, caption_text, read_flickr
from eval_suite.readers.coco import CocoNode
from eval_suite.readers.image_files import read_image, upright_size
from eval_suite.readers.label_files import ClassLabels, MaskLabels
from eval_suite.readers.label_values import to_classes, to_depth, to_mask, to_normals
from eval_suite.readers.photo_sizes import PhotoSize, as_stored, check_box, check_label, photo_size
from eval_suite.readers.question_files import answers_of, option_of, read_entries
from eval_suite.readers.rasters import Raster, read_raster
from eval_suite.readers.text_files import read_list
from imagery.decode import FORMATS

# ---- a label and its photograph


def saved(path: Path, pixels: np.ndarray, tag: int, form: str) -> Path:
    """A picture with an orientation tag, which PPM, BMP and GIF cannot hold."""
    exif = Image.Exif()
    exif[0x112] = tag
    keep = {} if form in ("PPM", "BMP", "GIF") else {"exif": exif.tobytes()}
    Image.fromarray(pixels).save(path, form, **keep)
    return path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("tag", range(1, 9))
def test_a_size_from_the_header_is_that_of_the_pixels(form: str, tag: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(tag).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    path = saved(tmp_path / "photo", pixels, tag, form)
    upright = read_image(path)
    assert photo_size(path).size == upright_size(path) == upright.shape[:2]
    assert photo_size(path, "stored").size == as_stored(upright, path).shape[:2] == (12, 20)
    if form in ("PNG", "TIFF", "BMP", "PPM"):
        assert np.array_equal(as_stored(upright, path), pixels)


@given(
    tag=st.integers(1, 8),
    photo=st.tuples(st.integers(20, 400), st.integers(20, 400)),
    scale=st.sampled_from([0.5, 1, 2]),
    turned=st.booleans(),
    told=st.sampled_from([None, "upright", "stored"]),
)
def test_a_label_lies_on_its_photograph_or_is_refused(
    tag: int, photo: tuple[int, int], scale: float, turned: bool, told: Any
) -> None:
    seen = PhotoSize(*photo, tag, told)
    height, width = (round(scale * side) for side in (photo[::-1] if turned else photo))
    differ = abs(height * photo[1] - width * photo[0]) > max(height, width, *photo)
    if differ or (tag != 1 and told is None and (tag < 5 or (not turned and photo[0] == photo[1]))):
        with pytest.raises(UserError, match="label"):
            check_label((height, width), seen, "the label")
    elif tag == 1 or told is not None:
        check_label((height, width), seen, "the label")


@pytest.mark.parametrize(
    "box", [(0, 0, 30, 10), (-5, 0, 3, 3), (5, 5, 2, 9), (float("nan"), 0, 1, 1), (0, 0, float("inf"), 1)]
)
def test_boxes_outside_are_refused(box: tuple[float, ...]) -> None:
    check_box((0, 0, 20, 10), PhotoSize(10, 20), "x")
    with pytest.raises(UserError):
        check_box(box, PhotoSize(10, 20), "x")


# ---- values whose scale or "nothing here" code the type or the recipe gives


@settings(max_examples=60)
@given(
    full=st.sampled_from([(np.uint8, 255), (np.uint16, 65535), (np.float32, 1.0), (np.bool_, True)]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_one_file_never_decides_the_scale_of_a_mask(full: tuple[Any, Any], share: float, seed: int) -> None:
    kind, most = full
    truth = np.random.default_rng(seed).random((6, 6)) < share
    stored = (truth * most).astype(kind)
    assert (to_mask(Raster(stored), "x") == truth).all()
    if kind in (np.uint8, np.uint16):
        residue = np.where(truth, most - 7, 7).astype(kind)
        try:
            assert (to_mask(Raster(residue), "x") == truth).all()
        except UserError as error:
            assert not truth.any() and "residue" in str(error)
        assert (to_mask(Raster(residue), "x", full=most) == truth).all()
        small = truth.astype(kind)
        if truth.any():
            with pytest.raises(UserError, match="full"):
                to_mask(Raster(small), "x")
        assert (to_mask(Raster(small), "x", full=1) == truth).all()
        assert (to_mask(Raster(small), "x", foreground="nonzero") == truth).all()


@pytest.mark.parametrize(
    ("raster", "wanted"),
    [
        (Raster(np.array([[0, 3]], np.uint8), palette=True), {"foreground": (3,)}),
        (Raster(np.array([[0, 1]], np.int64)), {"full": 1}),
        (Raster(np.array([[3.0, 253.0]])), {"full": 255}),
        (Raster(np.array([[[255, 255, 255, 0], [255, 255, 255, 255]]], np.uint8)), {"channel": "alpha"}),
    ],
)  # fmt: skip
def test_a_mask_that_says_no_scale_is_asked_for(raster: Raster, wanted: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wanted))):
        to_mask(raster, "x")
    assert to_mask(raster, "x", **wanted).tolist() == [[0, 1]]


@pytest.mark.parametrize("values", [[[0.4, 1.0]], [[np.nan, 1.0]], [[-1.0, 1.0]], [[3.0, 1.0]], [[1e30, 0.0]]])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_what_is_no_class_number_is_refused(values: list[list[float]], kind: type) -> None:
    with pytest.raises(UserError):
        to_classes(Raster(np.array(values, kind)), 3, "x")
    assert to_classes(Raster(np.array([[2.0, 255.0]], kind)), 3, "x").tolist() == [[2, 255]]


def test_a_jpeg_holds_no_classes_and_colours_that_are_none_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="JPEG"):
        ClassLabels(kind="classes", files="*", classes=3).decode(tmp_path / "a.jpg")
    Image.fromarray(np.full((2, 2, 3), 7, np.uint8)).save(tmp_path / "b.png")
    node = {"kind": "classes", "files": "*", "classes": ("a", "b"), "colours": {"a": (7, 7, 7), "b": (1, 1, 1)}}
    assert ClassLabels.model_validate(node).decode(tmp_path / "b.png").max() == 0
    Image.fromarray(np.full((2, 2, 3), 9, np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="other_colours"):
        ClassLabels.model_validate(node).decode(tmp_path / "b.png")


@pytest.mark.parametrize(("classes", "first"), [(256, 0), (300, 0), (255, 1), (1, 0), (254, 2)])
def test_classes_that_meet_the_ignore_value_are_refused(classes: int, first: int) -> None:
    with pytest.raises(ValueError, match=r"label map has 2 to 255|listed under ignore"):
        ClassLabels(kind="classes", files="*", classes=classes, first=first)


@settings(max_examples=40)
@given(seed=st.integers(0, 99), kind=st.sampled_from([np.uint8, np.uint16, np.float32]))
def test_normals_come_back_from_every_type(seed: int, kind: type) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(8, 8, 3))
    truth /= np.linalg.norm(truth, axis=-1, keepdims=True)
    most = np.iinfo(kind).max if kind != np.float32 else None
    stored = truth.astype(kind) if most is None else np.round((truth + 1) / 2 * most).astype(kind)
    nothing = rng.random((8, 8)) < 0.3
    low = 0 if most is None else (most // 2 + rng.integers(0, 2, (8, 8, 3)))
    stored = np.where(nothing[..., None], low, stored).astype(kind)
    got = to_normals(Raster(stored), "x")
    assert (got[nothing] == 0).all()
    np.testing.assert_allclose(got[~nothing], truth[~nothing], atol=0.02)


def test_normals_of_another_range_are_refused_until_it_is_said() -> None:
    flat = np.tile(np.array([0.5, 0.5, 1.0], np.float32), (4, 4, 1))
    with pytest.raises(UserError, match="set range"):
        to_normals(Raster(flat), "x")
    np.testing.assert_allclose(to_normals(Raster(flat), "x", range=(0, 1))[0, 0], [0, 0, 1], atol=1e-6)
    with pytest.raises(UserError, match="natural range"):
        to_normals(Raster(np.zeros((2, 2, 3), np.int32)), "x")


def test_integers_of_depth_need_a_scale() -> None:
    with pytest.raises(UserError, match="set scale"):
        to_depth(Raster(np.full((2, 2), 1500, np.uint16)), "x", scale=None)
    assert to_depth(Raster(np.full((2, 2), 1.5, np.float32)), "x", scale=None)[0, 0] == 1.5


def test_a_label_picture_is_turned_as_its_own_tag_says(tmp_path: Path) -> None:
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for form in ("PNG", "TIFF"):
        path = saved(tmp_path / f"a.{form.lower()}", labels, 6, form)
        assert np.array_equal(read_raster(path).values, np.rot90(labels, -1))


# ---- COCO: whose annotation is whose, and what it says


def coco(root: Path, **changes: Any) -> CocoNode:
    (root / "images").mkdir(exist_ok=True)
    for number in range(4):
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(root / f"images/{number}.jpg")
    outline = [[5, 5, 25, 5, 25, 25, 5, 25]]
    data = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 40, "width": 60} for n in range(4)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0,
             "segmentation": outline, "keypoints": [6, 6, 2], "caption": "a dog"} for n in range(4)
        ],
        "categories": [{"id": 1, "name": "a", "keypoints": ["nose"]}],
    }  # fmt: skip
    for path, value in changes.items():
        *steps, last = [int(step) if step.isdigit() else step for step in path.split("__")]
        place: Any = data
        for step in steps:
            place = place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value
    (root / "a.json").write_text(json.dumps(data))
    fields = dict.fromkeys(("instances", "captions", "keypoints"), "a.json")
    splits = {"train": "images", "test": "images"}
    return CocoNode.model_validate(
        {"reader": "coco", "root": str(root), "splits": splits, "images": "images", **fields}
    )


def all_of(node: CocoNode) -> None:
    data = node.open("c")
    data.dense("test").labels("instances")[torch.arange(4)]
    for some in data.instances("test").objects:
        [thing.mask() for thing in some]
    data.keypoints("test")
    data.captions("test")


def test_a_sound_coco_file_is_read(tmp_path: Path) -> None:
    node = coco(tmp_path)
    all_of(node)
    seen = node.open("c").dense("test").labels("instances")[torch.arange(4)]
    assert sorted(torch.unique(seen).tolist()) == [0, 1]
    crowd = coco(tmp_path, annotations__0__iscrowd=1).open("c").dense("test").labels("instances")[torch.arange(4)]
    assert sorted(torch.unique(crowd[0]).tolist()) == [0, 255]
    bare = coco(tmp_path, annotations__3=None).open("c")
    assert (
        not bare.dense("test").labels("instances")[torch.tensor([3])].any() and bare.instances("test").objects[3] == []
    )


WRONG: list[tuple[str, Any]] = [
    *((f"annotations__1__{field}", None) for field in ("image_id", "category_id", "bbox", "area", "segmentation",
                                                        "keypoints", "caption")),
    *((f"images__1__{field}", None) for field in ("id", "file_name")),
    ("categories", None), ("categories", []), ("categories__0__id", None), ("categories__0__id", "1"),
    ("categories__0__keypoints", None), ("categories__0__keypoints", ["nose", "tail"]),
    ("annotations", []), ("images__1__id", "1"), ("images__1__id", 0), ("images__1__file_name", "0.jpg"),
    ("annotations__1__image_id", "1"), ("annotations__1__image_id", 77), ("annotations__1__id", 0),
    ("annotations__1__category_id", 9), ("annotations__1__category_id", "1"), ("annotations__1__iscrowd", "0"),
    ("annotations__1__segmentation", []), ("annotations__1__segmentation", [[5, 5, 9, 9]]),
    ("annotations__1__segmentation", [5, 5, 9, 9, 5, 9]), ("annotations__1__segmentation", [[5, 5, 9, 9, 5, 9, 1]]),
    ("annotations__1__segmentation", [[5, 5, 90, 5, 90, 90]]), ("annotations__1__segmentation", "x"),
    ("annotations__1__segmentation", {"size": [60, 40], "counts": [100, 50, 2250]}),
    ("annotations__1__segmentation", {"size": [40, 60], "counts": [100, 50]}),
    ("annotations__1__segmentation", {"size": [40, 60]}), ("annotations__1__bbox", [5, 5, 20]),
    ("annotations__1__bbox", [5, 5, -20, 20]), ("annotations__1__bbox", [5, 5, 200, 20]),
    ("annotations__1__bbox", [5, 5, float("nan"), 20]), ("annotations__1__bbox", ["5", 5, 20, 20]),
    ("annotations__1__area", "400"), ("annotations__1__keypoints", [6, 6]), ("annotations__1__keypoints", [6, 6, 3]),
    ("annotations__1__keypoints", [600, 6, 2]), ("annotations__1__caption", " "), ("annotations__1__caption", 3),
    ("categories__0__keypoints", ["nose", "nose"]), ("annotations__1__area", -4), ("images__1__file_name", "./0.jpg"),
    ("annotations__1__segmentation", {"size": [40, 60], "counts": [0.5, 2399.5]}),
    ("images__1__height", 60), ("images__1__height", "x"), ("images__1__width", 600),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_what_is_wrong_in_a_coco_file_is_one_line(path: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        all_of(coco(tmp_path, **{path: value}))
    assert "\n" not in str(refused.value) and ("a.json" in str(refused.value) or "1.jpg" in str(refused.value))


@pytest.mark.parametrize(("count", "fits"), [(254, True), (255, False), (400, False)])
def test_more_categories_than_a_map_can_number(count: int, fits: bool, tmp_path: Path) -> None:
    many = [{"id": n, "name": str(n)} for n in range(1, count + 1)]
    data = coco(tmp_path, categories=many, annotations__0__category_id=count).open("c")
    assert len(data.instances("test").names) == count  # boxes have no such end
    if fits:
        assert data.dense("test").labels("instances")[torch.tensor([0])].max() == count
    else:
        with pytest.raises(UserError, match="classes"):
            data.dense("test").labels("instances")[torch.tensor([0])]


# ---- values that fit two readings


@pytest.mark.parametrize(
    ("answer", "options", "kind", "letter"),
    [
        ("2", ("1", "2", "3", "4"), None, "B"), (2, ("1", "2", "3", "4"), None, None),
        (2, ("1", "2", "3"), "number", "C"),
        (2, ("1", "2", "3"), "number_from_1", "B"), (1, ("left", "right"), None, "B"),
        ("1", ("left", "right"), None, None),
        ("B", ("left", "right"), None, "B"), ("b", ("left", "right"), None, "B"), ("A", ("B", "A"), None, None),
        ("A", ("B", "A"), "text", "B"), ("A", ("B", "A"), "letter", "A"), ("yes", ("yes", "yes", "no"), None, None),
        ("right", ("left", "right"), None, "B"), (None, ("left", "right"), None, None),
        (2, ("left", "right"), None, None),
        ("C", ("left", "right"), None, None), (True, ("left", "right"), None, None),
        ("", ("left", "right"), None, None),
    ],
)  # fmt: skip
def test_an_answer_is_one_option_or_asked_for(answer: Any, options: tuple[str, ...], kind: Any, letter: Any) -> None:
    if letter is None:
        with pytest.raises(UserError):
            option_of(answer, options, "row 0", kind)
    else:
        assert option_of(answer, options, "row 0", kind) == letter


BALL = ("blue ball", "red cube", "green cone", "box", "e", "f", "g", "h", "i")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("A red cube", "B"), ("a red cube.", "B"), ("A cube", ""), ("I see a red cube", ""), ("I think it is A.", ""),
        ("A", "A"), ("I", "I"), ("(I)", "I"), ("C.", "C"), ("B red cube", "B"), ("B. green cone", ""),
        ("B is right", "B"),
        ("A is right", "A"), ("The answer is a red cube", ""), ("The answer is A red cube", ""), ("answer: (D)", "D"),
        ("The answer is B. Not C.", "B"), ("Option A or option B", ""), ("A man", ""), ("", ""), ("D, because", "D"),
    ],
)  # fmt: skip
def test_a_word_of_a_sentence_is_no_letter(reply: str, letter: str) -> None:
    assert letter_of(reply, BALL) == letter


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("Option B is wrong, so C", ""), ("B is not it", ""), ("B isn't right", ""), ("Answer: B is clearly wrong", ""),
        ("B is right", "B"), ("The correct option is B because of its colour", "B"), ("Option B is what I see", "B"),
        ("A. cat\nB. dog\nC. cow", ""), ("B. dog\nC. cow", ""), ("B. dog\nB. dog", "B"), ("B.\nIt barks.", "B"),
        ("**B**", "B"), ("[B]", "B"), ("$B$", "B"), ("**B.** dog", "B"), ("`C`", "C"), ("**B** or **C**", ""),
        ("B or C", ""), ("B, C", ""), ("Answer: B and C", ""), ("B/C", ""), ("Answer: B, because", "B"),
    ],
)  # fmt: skip
def test_a_letter_that_is_called_wrong_or_stands_among_others_is_none(reply: str, letter: str) -> None:
    assert letter_of(reply, ("cat", "dog", "cow")) == letter


# ---- text files


def captions(root: Path, content: str | bytes, form: str) -> Any:
    for name in "ab":
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / f"{name}.jpg")
    (root / "file").write_bytes(content if isinstance(content, bytes) else content.encode())
    node = {"reader": "captions", "root": str(root), "file": "file", "format": form}
    return CaptionsNode.model_validate(node).open("c").captions("test").captions


LINE = "one\u2028two\u0085three"


@pytest.mark.parametrize(
    ("form", "content", "wanted"),
    [
        ("flickr", "a.jpg,first\nb.jpg,second\n", [["first"], ["second"]]),
        ("flickr", "image,caption\r\na.jpg,x\r\n", [["x"]]),
        ("flickr", 'a.jpg,"A ""big"" dog, runs"\na.jpg,"Sit", she said\n', [['A "big" dog, runs', '"Sit", she said']]),
        ("flickr", f"a.jpg,{LINE}\n", [[LINE]]),
        ("csv", f'image,caption\na.jpg,"{LINE}"\na.jpg,"x\ny"\n', [[LINE, "x\ny"]]),
        ("csv", "\ufeffimage,caption\na.jpg,x\n", [["x"]]),
        ("jsonl", json.dumps({"image": "a.jpg", "caption": LINE}, ensure_ascii=False), [[LINE]]),
        ("jsonl", '{"image": "a.jpg", "caption": "x"}\n\n{"image": "a.jpg", "caption": ["y"]}', [["x", "y"]]),
        ("karpathy", json.dumps({"images": [{"split": "test", "filename": "a.jpg", "sentences": [{"raw": said}]}
                                            for said in "xy"]}), [["x", "y"]]),
    ],
)  # fmt: skip
def test_captions_come_whole(form: str, content: str, wanted: Any, tmp_path: Path) -> None:
    assert captions(tmp_path, content, form) == wanted


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("csv", "image,caption\na.jpg,caf\xe9\n".encode("latin-1")), ("flickr", "a.jpg,caf\xe9\n".encode("latin-1")),
        ("jsonl", '{"image": "a.jpg", "caption": "caf\xe9"}'.encode("latin-1")), ("csv", "image,caption\na.jpg\n"),
        ("csv", "image,caption\na.jpg,x,y\n"), ("csv", "image,caption,caption\na.jpg,x,y\n"),
        ("csv", "image;caption\na;b\n"),
        ("csv", "image,caption\na.jpg, \n"), ("csv", 'image,caption\na.jpg,"x\n'), ("csv", ""),
        ("flickr", "a.jpg,\n"),
        ("jsonl", '{"image": "a.jpg", "caption": null}'), ("jsonl", '{"image": "a.jpg", "caption": [null, "k"]}'),
        ("jsonl", '{"image": "a.jpg", "caption": []}'), ("jsonl", '{"image": null, "caption": "x"}'),
        ("jsonl", "[1]"),
        ("jsonl", '{"image": "a.jpg", "caption": "x", "caption": "y"}'), ("jsonl", '{"image": "a.jpg"'),
        ("karpathy", '{"images": [{"split": "test", "filename": "a.jpg", "sentences": []}]}'),
        ("karpathy", '{"images": [{"split": "test", "filename": "a.jpg", "sentences": [{"raw": null}]}]}'),
        ("karpathy", json.dumps({"images": [{"split": s, "filename": "a.jpg", "sentences": [{"raw": "x"}]}
                                            for s in ("test", "train")]})),
    ],
)  # fmt: skip
def test_captions_that_say_nothing_are_refused(form: str, content: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        captions(tmp_path, content, form)
    assert "\n" not in str(refused.value)


def test_lists_and_questions(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("a\nb\na\n")
    with pytest.raises(UserError, match='lists "a" twice'):
        read_list(tmp_path / "list", "x")
    (tmp_path / "q").write_text(f'{{"q": "{LINE}"}}\n{{"q": "y"}}\n', encoding="utf-8")
    assert read_entries(tmp_path / "q") == [{"q": LINE}, {"q": "y"}]
    (tmp_path / "q").write_text('{"q": 1, "q": 2}')
    with pytest.raises(UserError, match="twice"):
        read_entries(tmp_path / "q")


def test_transparent_masks_are_asked_for(tmp_path: Path) -> None:
    picture = BytesIO()
    Image.fromarray(np.full((4, 4, 4), 255, np.uint8)).save(picture, "PNG")
    (tmp_path / "a.png").write_bytes(picture.getvalue())
    with pytest.raises(UserError, match="channel: alpha"):
        MaskLabels(kind="mask", files="*").decode(tmp_path / "a.png")
    assert MaskLabels(kind="mask", files="*", channel="grey").decode(tmp_path / "a.png").all()


# ---- numbers that a decoder stretches


def grey_png(numbers: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2, 4, 8 or 16 bits a pixel, as libpng writes it; Pillow writes no 2 and 4."""
    rows = b""
    for row in numbers:
        text = "".join(format(int(number), f"0{bits}b") for number in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", numbers.shape[1], numbers.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey_pgm(numbers: np.ndarray, most: int, plain: bool) -> bytes:
    """A PGM whose largest value is `most`."""
    head = f"P{2 if plain else 5}\n# a comment of 3 words\n{numbers.shape[1]} {numbers.shape[0]}\n{most}\n".encode()
    if plain:
        return head + "\n".join(" ".join(map(str, row)) for row in numbers.tolist()).encode() + b"\n"
    return head + numbers.astype(">u2" if most > 255 else np.uint8).tobytes()


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_png_of_few_bits_keeps_its_numbers(bits: int, tmp_path: Path) -> None:
    """Pillow stretches 2 and 4 bits to 0..255: class 3 of 3 came out as 255, which means: does not count."""
    path, count = tmp_path / "mask.png", min(2**bits, 200)
    numbers = np.random.default_rng(bits).integers(0, count, (7, 9))
    path.write_bytes(grey_png(numbers, bits))
    raster = read_raster(path)
    assert np.array_equal(raster.values, numbers)
    assert np.array_equal(to_classes(raster, max(count, 2), path, ignore=()), numbers)
    if bits in (2, 4, 8, 16):
        half = (2**bits - 1) / 2
        numbers.flat[0] = 2**bits - 1
        path.write_bytes(grey_png(numbers, bits))
        assert np.array_equal(to_mask(read_raster(path), path), numbers > half)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("most", [7, 20, 254, 255, 256, 1023, 4000, 65535])
def test_a_pgm_keeps_its_numbers(most: int, plain: bool, tmp_path: Path) -> None:
    path = tmp_path / "depth.pgm"
    numbers = np.random.default_rng(most).integers(0, most + 1, (6, 8))
    path.write_bytes(grey_pgm(numbers, most, plain))
    assert np.array_equal(read_raster(path).values, numbers)
    metres = to_depth(read_raster(path), path, scale=0.001)
    assert np.allclose(metres, numbers / 1000, atol=1e-6)


def test_a_tiff_that_says_its_numbers_otherwise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    Image.fromarray(np.full((6, 8), 3, np.uint8)).save(path, tiffinfo={262: 0})  # white is 0
    if read_tiff_photometric(path) == 0:
        with pytest.raises(UserError, match="stores white as 0"):
            read_raster(path)
    pages = [Image.fromarray(np.full((6, 8), number, np.uint8)) for number in (1, 2)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match="holds 2 pictures"):
        read_raster(path)


def read_tiff_photometric(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.tag_v2[262]  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("area", [float("nan"), float("inf"), "12", True])
def test_an_area_that_is_no_number_orders_no_objects(area: Any, tmp_path: Path) -> None:
    """Smaller objects lie over larger ones; with NaN among the areas any order came out."""
    dense = coco(tmp_path, annotations__0__area=area).open("c").dense("test")
    with pytest.raises(UserError, match=r"a\.json: annotation 0 .* in area, which is no number"):
        dense.labels("instances")[torch.arange(4)]


def test_two_categories_of_one_name_are_refused(tmp_path: Path) -> None:
    """Kinds of keypoints are told apart by name: two categories of one name would be one kind."""
    twice = [{"id": 1, "name": "a", "keypoints": ["nose"]}, {"id": 2, "name": "a", "keypoints": ["nose"]}]
    with pytest.raises(UserError, match="two of category have one name"):
        coco(tmp_path, categories=twice).open("c").keypoints("test")


@pytest.mark.parametrize("said", ["nan", "None", "NULL", " n/a ", "<NA>"])
def test_a_caption_that_a_program_wrote_for_nothing_is_refused(said: str) -> None:
    with pytest.raises(UserError, match="says nothing"):
        caption_text(said, "line 1")
    assert caption_text("none of the dogs", "line 1") == "none of the dogs"


def test_one_image_in_two_spellings_is_one(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "c.csv").write_text("image,caption\na.jpg,one\n./a.jpg,two\nx/../a.jpg,three\n")
    node = CaptionsNode.model_validate({"reader": "captions", "root": str(tmp_path), "file": "c.csv", "format": "csv"})
    found = node.open("c").captions("test")
    assert len(found.images) == 1 and found.captions == [["one", "two", "three"]]


def test_the_first_line_of_flickr_is_a_header_only_without_a_file(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("a.jpg#0\ta dog\nb.jpg,a cat\n")
    with pytest.raises(UserError, match="line 1: expected"):
        read_flickr(path)
    path.write_text("image,caption\nb.jpg,a cat\n")
    assert read_flickr(path) == {"b.jpg": ["a cat"]}


def test_three_is_three_however_json_writes_it() -> None:
    assert [answers_of(value, "q") for value in (3, 3.0, "3.0", 2.5)] == [["3"], ["3"], ["3.0"], ["2.5"]]
