"""Every published layout: a tiny copy in its real format is read, odd cases included."""

import io
from pathlib import Path

import layout_fixtures as make
import numpy as np
import PIL.Image
import pytest
import torch

from common.errors import UserError
from common.recipes import Node, validate
from eval_suite.readers.contracts import IGNORE, DenseImages, LabelledData
from eval_suite.readers.layout_names import COCO_STUFF_COARSE, coarse_of_fine
from eval_suite.readers.remembered import Remembered
from eval_suite.readers.table import ReaderRecipe

ROWS = torch.tensor([0])


class One(Node):
    data: ReaderRecipe


def opened(reader: str, root: Path, **fields: object) -> LabelledData:
    """A reader as a suite file would make it, at the photographs' own size unless told otherwise."""
    node = {"reader": reader, "root": str(root), "size": [make.HEIGHT, make.WIDTH], **fields}
    return validate(One, {"data": node}, "suite").data.open("toy")


def values(images: DenseImages, label: str, row: int = 0) -> torch.Tensor:
    return images.labels(label)[torch.tensor([row])][0]


def sides(labels: torch.Tensor) -> tuple[float, float]:
    """Value on the left and on the right, away from edges."""
    return float(labels[..., 30, 2]), float(labels[..., 30, -2])


def test_ade20k_zero_is_ignored_and_150_is_the_last_class(tmp_path: Path) -> None:
    data = opened("ade20k", make.ade20k(tmp_path))
    dense = data.dense("train")
    assert sides(values(dense, "semantic")) == (IGNORE, 149)
    assert values(dense, "semantic")[0, 0] == 0
    assert sides(values(dense, "semantic", 1))[0] == IGNORE  # a stored 255 stays 255
    assert len(dense.names["semantic"]) == 150 and len(data.dense("test").images) == 2
    kept = opened("ade20k", tmp_path, keep_other=True).dense("train")
    assert sides(values(kept, "semantic")) == (0, 150) and len(kept.names["semantic"]) == 151


def test_voc_palette_index_is_the_class_and_the_border_is_ignored(tmp_path: Path) -> None:
    data = opened("voc2012", make.voc2012(tmp_path))
    labels = values(data.dense("test"), "semantic")
    assert sides(labels) == (0, 20) and labels[5, make.WIDTH // 2] == IGNORE
    assert data.dense("train").names["semantic"][15] == "person"
    augmented = opened("voc2012", tmp_path / "VOCdevkit", augmented=True)
    assert len(augmented.dense("train").images) == 2 and len(augmented.dense("test").images) == 1


def test_coco_stuff_is_folded_and_the_curated_list_rules(tmp_path: Path) -> None:
    data = opened("coco_stuff", make.coco_stuff(tmp_path / "a"), fit="stretch")
    dense = data.dense("test")
    assert len(dense.images) == 1 and "000000000002" in dense.images.name_of(0)
    names = dense.names["semantic"]
    left, right = sides(values(dense, "semantic"))
    assert (names[int(left)], names[int(right)]) == ("person", "solid")
    assert values(dense, "semantic")[0, 0] == IGNORE
    nested = opened("coco_stuff", make.coco_stuff(tmp_path / "b", nested=True), fit="stretch", coarse=False)
    assert len(nested.dense("train").images) == 2
    assert sides(values(nested.dense("train"), "semantic")) == (0, 181)


def test_every_fine_label_of_coco_stuff_has_a_coarse_one() -> None:
    table = coarse_of_fine()
    assert table.shape == (182,) and set(table.tolist()) == set(range(27))
    assert COCO_STUFF_COARSE[table[105]] == COCO_STUFF_COARSE[table[156]] == "sky"
    assert [COCO_STUFF_COARSE[table[n]] for n in (0, 15, 60, 154, 171)] == [
        "person",
        "animal",
        "food things",
        "water",
        "wall",
    ]


def test_coco_instances_smaller_lie_over_larger_and_crowds_are_ignored(tmp_path: Path) -> None:
    data = opened("coco", make.coco(tmp_path), instances="annotations/instances_{split}.json")
    dense = data.dense("test")
    labels = values(dense, "instances")
    assert labels[15, 15] == 1 and labels[22, 22] == 2 and labels[45, 60] == 0
    crowd = values(dense, "instances", 1)
    assert crowd[10, 3] == IGNORE and crowd[10, 4] == 0
    assert dense.names["instances"] == ("background", "person", "toothbrush")


def test_coco_panoptic_ids_are_decoded(tmp_path: Path) -> None:
    dense = opened("coco", make.coco(tmp_path), panoptic="annotations/panoptic_{split}.json").dense("train")
    assert sides(values(dense, "panoptic")) == (1, IGNORE)  # a category, and a crowd


def test_coco_captions_and_keypoints(tmp_path: Path) -> None:
    files = {"captions": "annotations/captions_{split}.json", "keypoints": "annotations/person_keypoints_{split}.json"}
    data = opened("coco", make.coco(tmp_path), **files, size=[96, 128])
    captions = data.captions("test")
    assert [len(some) for some in captions.captions] == [5, 5] and captions.captions[1][2] == "picture 9, take 2"
    points = data.keypoints("train").objects
    assert points[0].points == {"nose": (20.0, 24.0), "tail": (60.0, 40.0)}  # doubled; the hidden eye is not listed
    assert points[0].box == (16.0, 16.0, 80.0, 64.0) and points[1].row == 1
    assert opened("coco", tmp_path, **files, every=2).captions("test").captions[0][0].startswith("picture 9")


def test_one_coco_file_is_no_two_splits(tmp_path: Path) -> None:
    make.coco(tmp_path)
    fields = {"instances": "annotations/instances_val2017.json", "images": "val2017"}
    data = opened("coco", tmp_path, **fields)
    assert len(data.dense("test").rows) == len(data.instances("test").images)  # one split alone is what it was
    with pytest.raises(UserError, match=r"are the test images already; say every: n .* or write {split}"):
        data.dense("train")
    halves = opened("coco", tmp_path, **fields, every=2)
    assert not {*halves.dense("train").images.members()} & {*halves.dense("test").images.members()}


@pytest.mark.parametrize("limit", [{}, {"train": 1, "test": 1}])
def test_splits_that_share_images_are_refused_whatever_the_reader(tmp_path: Path, limit: dict[str, int]) -> None:
    make.photo(tmp_path / "a.jpg", 0)
    make.photo(tmp_path / "b.jpg", 1)
    make.text(tmp_path / "c.csv", "image,caption\na.jpg,one\nb.jpg,two\n")
    make.text(tmp_path / "q.json", '[{"image": "a.jpg", "question": "what?", "answer": "this"}]')
    make.grey(tmp_path / "a.png", make.halves(0, 1))
    make.grey(tmp_path / "b.png", make.halves(0, 1))
    make.text(tmp_path / "all.txt", "a\nb\n")
    make.photo(tmp_path / "classes" / "all" / "cat" / "a.jpg", 0)
    make.photo(tmp_path / "classes" / "all" / "dog" / "b.jpg", 0)
    label = {"semantic": {"files": "*.png", "kind": "classes", "classes": 2}}
    both, alike = {"train": "all.txt", "test": "all.txt"}, {"train": "all", "test": "all"}
    for kind, data in {
        "captions": opened("captions", tmp_path, file="c.csv", format="csv", limit=limit),
        "questions": opened("questions", tmp_path, file="q.json", limit=limit),
        "dense": opened("dense_folders", tmp_path, images="*.jpg", labels=label, lists=both, limit=limit),
        "classes": opened("class_folders", tmp_path / "classes", splits=alike, limit=limit),
    }.items():
        what = "questions" if kind == "questions" else "images"
        for first, second in (("train", "test"), ("test", "train")):
            remembered = Remembered(data)
            getattr(remembered, kind)(first)
            with pytest.raises(UserError, match=f"train and test share . {what}, e.g. .*give each split its own"):
                getattr(remembered, kind)(second)


def test_conversations_to_train_on_are_no_questions_to_test_on(tmp_path: Path) -> None:
    data = Remembered(opened("questions", make.llava(tmp_path), file="mix.json", format="llava"))
    data.conversations("train")
    with pytest.raises(UserError, match="train and test share 1 questions"):
        data.questions("test")


def test_flickr_captions_keep_their_commas(tmp_path: Path) -> None:
    make.flickr30k(tmp_path)
    data = opened("captions", tmp_path, file="flickr30k_test_karpathy.txt", format="flickr")
    captions = data.captions("test").captions
    assert [len(some) for some in captions] == [5, 5] and captions[0][3] == 'a dog, "running" 3'
    karpathy = opened("captions", tmp_path, file="dataset_flickr30k.json", format="karpathy")
    assert karpathy.captions("test").captions == [["one", "two"]]
    assert karpathy.captions("train").captions == [["three"]]  # restval is trained on


@pytest.mark.parametrize("variant", ["atrc", "mtinet"])
def test_nyud_multitask_in_both_archives(tmp_path: Path, variant: str) -> None:
    dense = opened("nyud_multitask", make.nyud_multitask(tmp_path, variant)).dense("test")
    assert sides(values(dense, "semantic")) == (IGNORE, 39)
    assert sides(values(dense, "depth")) == (0, 3)
    assert sides(values(dense, "edge")) == (0, 1)
    normals = values(dense, "normals")
    assert float(normals[:, 30, 2].norm()) == 0
    assert torch.allclose(normals[:, 30, -2], torch.tensor([0.0, 0.0, -1.0]), atol=0.02)


def test_pascal_multitask_parts_normals_and_edges(tmp_path: Path) -> None:
    data = opened("pascal_multitask", make.pascal_multitask(tmp_path))
    dense = data.dense("train")
    parts = values(dense, "part")
    assert parts[2, 2] == 1 and parts[7, 2] == 3 and parts[30, 30] == 0  # the later part lies over the earlier
    assert bool((values(data.dense("test"), "part") == IGNORE).all())  # nobody there: nothing counts
    assert sides(values(dense, "semantic")) == (15, IGNORE)
    assert sides(values(data.dense("test"), "semantic")) == (15, IGNORE)  # from the other folder
    assert sides(values(dense, "saliency")) == (0, 1)
    edge = values(dense, "edge")
    assert bool((edge[1:].sum(1) == 1).all()) and edge[0].sum() <= 1  # one pixel wide; thinning may take an end
    assert int(edge.sum(0).argmax()) in (make.WIDTH // 2 - 1, make.WIDTH // 2)
    only = opened("pascal_multitask", tmp_path, normal_classes=[2]).dense("train")
    assert sides(values(only, "normals").norm(dim=0)) == (pytest.approx(1.0), 0)
    assert sides(values(dense, "normals").norm(dim=0)) == (pytest.approx(1.0), pytest.approx(1.0))


def test_nyu_as_probe3d_packs_it(tmp_path: Path) -> None:
    data = opened("nyu_probe3d", make.nyu_probe3d(tmp_path), size=make.HEIGHT)
    train, test = data.dense("train"), data.dense("test")
    assert len(train.images) == 2 and len(test.images) == 1
    assert int(train.images.read(ROWS).float().mean().round()) == 100  # the mean is added back
    assert int(test.images.read(ROWS)[0, 0, 0, 0]) == 50
    for dense in (train, test):
        depth = values(dense, "depth")
        assert sides(depth) == (2, 0) and depth[0, 0] == 0  # 12 m and holes are invalid
        assert float(values(dense, "normals")[2, 30, 2]) == -1 and float(values(dense, "normals")[2, 30, -2]) == 0


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import os
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    root = make.nyu_probe3d(tmp_path / "nyu")
    (root / "nyuv2" / "nyuv2_snorm_all.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"mkdir.*nothing in it was run"):
        opened("nyu_probe3d", root, size=make.HEIGHT).dense("test")
    assert not (tmp_path / "owned").exists()


def test_navi_disparity_crop_and_splits(tmp_path: Path) -> None:
    data = opened("navi", make.navi(tmp_path), size=40, points=20, relative_depth=False)
    train, test = data.dense("train"), data.dense("test")
    assert len(train.images) == 10 and len(test.images) == 2  # two multiview folders; each fourth of the wild set
    depth = values(test, "depth")
    assert float(depth[2, 2]) == pytest.approx(0.5, rel=1e-3) and float(depth[20, 20]) == pytest.approx(0.4, rel=1e-3)
    assert float(depth.min()) > 0.39  # the crop is the object's square
    normal = values(test, "normals")[:, 20, 20]
    assert torch.allclose(normal, torch.tensor([0.0, 0.0, -1.0]), atol=1e-4)
    shown = values(opened("navi", tmp_path, size=40).dense("test"), "depth")
    assert float(shown[2, 2]) == pytest.approx(1.0) and float(shown[20, 20]) == pytest.approx(0.01, abs=1e-3)


def test_navi_pairs_are_of_one_object_and_move_as_the_cameras_say(tmp_path: Path) -> None:
    pairs = opened("navi", make.navi(tmp_path), size=40, points=20, widest=90).pairs("test")
    assert len(pairs.first) == 2 and pairs.points.shape == (2, 20, 2)
    again = opened("navi", tmp_path, size=40, points=20, widest=90).pairs("test")
    assert torch.equal(pairs.targets, again.targets)


def test_bsds_boundaries_by_how_many_drew_them(tmp_path: Path) -> None:
    make.text(make.bsds(tmp_path) / "all.txt", "1\n")
    lists = {"train": "all.txt", "test": "all.txt"}
    for annotators, marked in ((1, make.HEIGHT + make.WIDTH - 1), (2, make.HEIGHT)):
        labels = {"edge": {"files": "*.mat", "kind": "bsds", "annotators": annotators}}
        dense = opened("dense_folders", tmp_path, images="*.jpg", labels=labels, lists=lists).dense("test")
        assert int(values(dense, "edge").sum()) == marked and dense.names["edge"] == ("background", "edge")


def test_scannet_pairs_project_as_the_poses_say(tmp_path: Path) -> None:
    """A wall 2 m away, 64 px focal length: 0.1 m to the right moves it 3.2 px to the left."""
    pairs = opened("scannet1500", make.scannet(tmp_path), points=50).pairs("test")
    shift = (pairs.targets - pairs.points)[pairs.valid]
    assert len(shift) == 50
    assert torch.allclose(shift, torch.tensor([-3.2, 0.0]).expand_as(shift), atol=1e-3)


def test_spair_pairs_are_fixed_and_hidden_points_are_not_listed(tmp_path: Path) -> None:
    images = opened("spair71k", make.spair(tmp_path), size=[96, 128]).keypoints("test")
    assert images.pairs == [(0, 1)]
    assert images.objects[0].points["1"] == (80.0, 48.0) and set(images.objects[1].points) == {"0", "1"}
    assert images.objects[1].box == (16.0, 20.0, 96.0, 80.0)


def test_revisited_difficulties(tmp_path: Path) -> None:
    ranked = opened("revisited", make.revisited(tmp_path), dataset="roxford5k").ranked("test")
    positive = {level: mask[0].nonzero().flatten().tolist() for level, mask in ranked.positive.items()}
    junk = {level: mask[0].nonzero().flatten().tolist() for level, mask in ranked.junk.items()}
    assert positive == {"easy": [0], "medium": [0, 1], "hard": [1]}
    assert junk == {"easy": [1, 2], "medium": [2], "hard": [0, 2]}
    whole = opened("revisited", tmp_path, dataset="roxford5k", crop_queries=False).ranked("test")
    assert not torch.equal(ranked.queries.read(ROWS), whole.queries.read(ROWS))


def test_llava_turns_are_questions_and_text_rows_are_left_out(tmp_path: Path) -> None:
    asked = opened("questions", make.llava(tmp_path), file="mix.json", format="llava").questions("train")
    said = [(item.row, item.question, item.answer) for item in asked.questions]
    assert said == [(0, "What is it?", "A cat."), (0, "What colour?", "Grey")]


EXPECTED = {
    "textvqa": ("vqa", [("textvqa", "nokia")]),
    "docvqa": ("anls", [("docvqa", "1996")]),
    "infovqa": ("anls", [("infovqa", "12")]),
    "chartqa": ("relaxed", [("human", "100"), ("augmented", "100")]),
    "gqa": ("gqa", [("gqa", "yes")]),
    "pope": ("pope", [(k, a) for k in ("random", "popular", "adversarial") for a in ("yes", "no")]),
    "mme": ("mme", [("artwork", "Yes"), ("artwork", "No"), ("existence", "Yes"), ("existence", "No")]),
    "seed": ("seed", [("Scene Understanding", "B")]),
    "ocrbench": ("ocrbench", [("Regular Text Recognition", "CENTRE"), ("HME100k", "a + b")]),
    "ai2d": ("ai2d", [("ai2d", "C")]),
    "mmmu": ("mmmu", [("Math", "B"), ("Art", "Monet")]),
}


@pytest.mark.parametrize("name", list(EXPECTED))
def test_vlm_benchmarks(tmp_path: Path, name: str) -> None:
    asked = opened("vlm_benchmark", make.vlm_benchmark(tmp_path, name), benchmark=name).questions("test")
    rule, said = EXPECTED[name]
    assert asked.rule == rule
    assert [(item.kind, item.answer) for item in asked.questions] == said
    assert asked.images.read(ROWS).shape == (1, 3, make.HEIGHT, make.WIDTH)
    with pytest.raises(UserError, match="test questions only"):
        opened("vlm_benchmark", tmp_path, benchmark=name).questions("train")


HUB = {
    "textvqa": [("", "nokia")] * 2,
    "docvqa": [("", "1996")],
    "infovqa": [("", "1996")],
    "chartqa": [("human", "100"), ("augmented", "100")],
    "gqa": [("", "yes")],
    "pope": [("random", "yes"), ("random", "no"), ("popular", "yes"), ("popular", "no")],
    "mme": [("existence", "Yes"), ("existence", "No")],
    "seed": [("1", "B"), ("10", "B")],
    "ocrbench": [("Regular Text Recognition", "CENTRE"), ("HME100k", "CENTRE")],
    "ai2d": [("ai2d", "C")],
    "mmmu": [("Art_Theory", "7"), ("Math", "B")],  # in the order of the subjects' folders
}


@pytest.mark.parametrize("name", list(HUB))
def test_vlm_benchmarks_as_the_hub_holds_them(tmp_path: Path, name: str) -> None:
    node = {"reader": "vlm_hub", "benchmark": name, "path": str(make.vlm_hub(tmp_path / name, name)), "size": 40}
    node["cache_dir"] = str(tmp_path / "cache")
    data = validate(One, {"data": node}, "suite").data.open("toy")
    asked = data.questions("test")
    assert (asked.rule, asked.benchmark) == (EXPECTED[name][0], name)
    assert [(item.kind, item.answer) for item in asked.questions] == HUB[name]
    shown = [(item.row, *item.more) for item in asked.questions]
    expected = {"textvqa": [(0,), (0,)], "pope": [(0,)] * 4, "mme": [(0,)] * 2, "seed": [(0,), tuple(range(1, 9))],
                "mmmu": [(0,), (1, 2)], "chartqa": [(0,), (1,)], "ocrbench": [(0,), (1,)]}  # fmt: skip
    assert shown == expected.get(name, [(0,)])
    assert asked.images.original(0).shape == (3, make.HEIGHT, make.WIDTH)
    assert asked.images.read(ROWS).shape == (1, 3, 40, 40)
    if name == "gqa":  # the picture that the question names, not the first
        first = asked.images.original(0).numpy()
        assert np.array_equal(first, np.moveaxis(np.asarray(PIL.Image.open(io.BytesIO(make.jpeg(1)["bytes"]))), -1, 0))
    if name == "mmmu":
        assert asked.questions[0].others == ("seven",) and asked.questions[1].options == ("one", "two")
    if name == "ai2d":
        with pytest.raises(UserError, match=r"has no validation-\*.parquet"):
            validate(One, {"data": {**node, "split": "validation"}}, "suite").data.open("toy").questions("test")
        make.parquet(
            tmp_path / name / "data" / "test-00000-of-00001.parquet", [{"question": "?", "image": make.jpeg(1)}]
        )
        with pytest.raises(UserError, match='no column "answer" for ai2d; there are: question, image'):
            data.questions("test")


def test_seeds_video_questions_are_asked_about_llavas_frames(tmp_path: Path) -> None:
    root = make.vlm_benchmark(tmp_path, "seed")
    make.photo(root / "SEED-Bench-video-image" / "v9.png", 3)
    asked = opened("vlm_benchmark", root, benchmark="seed").questions("test")
    assert [item.answer for item in asked.questions] == ["B", "C"]
    (root / "SEED-Bench-video-image" / "v9.png").unlink()
    with pytest.raises(UserError, match=r"v9.png is missing"):
        opened("vlm_benchmark", root, benchmark="seed").questions("test")


def test_textvqa_answers_of_all_annotators_and_ocr_words_on_request(tmp_path: Path) -> None:
    root = make.vlm_benchmark(tmp_path, "textvqa")
    plain = opened("vlm_benchmark", root, benchmark="textvqa").questions("test").questions[0]
    assert len((plain.answer, *plain.others)) == 10 and "OCR" not in plain.question
    told = opened("vlm_benchmark", root, benchmark="textvqa", ocr_tokens=True).questions("test").questions[0]
    assert told.question == "brand?\nReference OCR token: NOKIA, 3310"


def test_imagenet_wants_all_classes_unless_told(tmp_path: Path) -> None:
    root = make.class_tree(tmp_path, ("n01440764", "n01443537"), ("train", "val"))
    with pytest.raises(UserError, match="has 2 class folders, ImageNet-1k has 1000; set partial: true"):
        opened("imagenet", root)
    data = opened("imagenet", root, partial=True)
    assert data.classes("train").names == ("n01440764", "n01443537")
    assert data.classes("test").labels.tolist() == [0, 0]
    with pytest.raises(UserError, match="has none of train, val; set root"):
        opened("imagenet", tmp_path / "train" / "n01440764")
    flat = tmp_path / "flat"
    make.photo(flat / "val" / "ILSVRC2012_val_00000001.JPEG", 1)
    with pytest.raises(UserError, match="lie flat"):
        opened("imagenet", flat, partial=True)


def test_imagenet_whole_has_openais_names(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / "val" / f"n{number:08d}").mkdir(parents=True)
        (tmp_path / "val" / f"n{number:08d}" / "x.JPEG").write_bytes(b"")
    names = opened("imagenet", tmp_path).classes("test").names
    assert (len(names), names[0], names[999]) == (1000, "tench", "toilet paper")


def test_arrays_agree_with_numpy(tmp_path: Path) -> None:
    """What a reader gives at the photograph's own size is what the file holds."""
    make.ade20k(tmp_path)
    from PIL import Image

    path = tmp_path / "ADEChallengeData2016" / "annotations" / "training" / "ADE_train_00000001.png"
    raw = np.asarray(Image.open(path)).astype(int)
    expected = np.where(raw == 0, IGNORE, raw - 1)
    assert np.array_equal(values(opened("ade20k", tmp_path).dense("train"), "semantic").numpy(), expected)


def test_one_set_to_train_on_and_another_to_test_on(tmp_path: Path) -> None:
    train = {"reader": "questions", "root": str(make.llava(tmp_path / "llava")), "file": "mix.json", "format": "llava"}
    test = {"reader": "vlm_benchmark", "root": str(make.vlm_benchmark(tmp_path / "pope", "pope")), "benchmark": "pope"}
    data = validate(One, {"data": {"reader": "joined", "train": train, "test": test}}, "suite").data.open("both")
    assert [item.answer for item in data.questions("train").questions] == ["A cat.", "Grey"]
    assert data.questions("test").rule == "pope" and len(data.questions("test").questions) == 6
    ade = {"reader": "ade20k", "root": str(make.ade20k(tmp_path / "ade"))}
    voc = {"reader": "voc2012", "root": str(make.voc2012(tmp_path / "voc"))}
    mixed = validate(One, {"data": {"reader": "joined", "train": ade, "test": voc}}, "suite").data.open("mixed")
    with pytest.raises(UserError, match='"semantic" has 150 classes to train on and 21 to test on'):
        mixed.dense("test")
