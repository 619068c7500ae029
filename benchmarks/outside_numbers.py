"""The suite's numbers on photographs beside outside implementations, on the same features and labels read again.

PHOTOGRAPHS=folder python benchmarks/outside_numbers.py [BACKBONE]

The data of recipes/suites/photographs.yaml: every kind of label it has. Labels come again from Pillow, numpy and
pycocotools, matches from scipy, scikit-image and scikit-learn, scores from scikit-learn, torchmetrics and pycocotools.
The exit status is 1 where a number differs by more than its tolerance.
"""

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import map_coordinates
from skimage.transform import resize
from sklearn.metrics import pairwise_distances, root_mean_squared_error
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.retrieval import RetrievalHitRate

from eval_suite.features import ProbedBackbone
from eval_suite.metrics.detection import Boxes, box_ap
from eval_suite.probes.correspondence import KeypointProbe, TwoViewProbe, draw_pairs, longer_side, names_of
from eval_suite.probes.dense import SegmentationProbe
from eval_suite.readers.contracts import TEST, TRAIN
from eval_suite.suite import load_suite
from eval_suite.text import text_path
from teachers.registry import load_backbone

SUITE = Path(__file__).parents[1] / "recipes" / "suites" / "photographs.yaml"
Row = tuple[str, float, float, float]  #: name, ours, theirs, tolerance


def main() -> int:
    """Print a table; 1 where something differs."""
    suite = load_suite(SUITE)
    probed = ProbedBackbone(load_backbone(sys.argv[1] if len(sys.argv) > 1 else "tiny:clip"), batch_size=8)
    failed = 0
    print(f"{'number':34}{'ours':>12}{'outside':>12}{'difference':>12}")
    for name, ours, theirs, allowed in rows(suite, probed):
        mark = "" if abs(ours - theirs) <= allowed else "  !"
        failed += bool(mark)
        print(f"{name:34}{ours:12.4f}{theirs:12.4f}{ours - theirs:12.1e}{mark}", flush=True)
    return int(failed > 0)


def rows(suite, probed: ProbedBackbone) -> Iterator[Row]:
    """Every comparison."""
    data = {name: node.open(name) for name, node in suite.data.items()}
    probes = suite.probes
    yield knn(probes["clothing_knn"], data["clothing"], probed)
    for task, read in (("street", street), ("things_and_stuff", panoptic), ("objects", instances)):
        probe = probes[task]
        yield segmentation(task, probe, data[probe.data], probed, read(suite.data[probe.data], data[probe.data]))
    yield from depth(probes["room_depth"], data["rooms"], probed)
    yield from two_views(probes["walk_points"], data["walk"], probed, suite.data["walk"])
    yield keypoints(probes["people"], data["coco"], probed, suite.data["coco"])
    yield from retrieval(probes["captions"], data["coco"], probed)
    yield from boxes(data["objects"], suite.data["objects"])


def knn(probe, data, probed: ProbedBackbone) -> Row:
    """scikit-learn's neighbours, votes exp(similarity / temperature)."""
    learn, judge = data.classes(TRAIN), data.classes(TEST)
    bank, asked = (probe._vectors(probed, probed.vectors(part.images)).numpy() for part in (learn, judge))
    model = KNeighborsClassifier(probe.k, metric="cosine", weights=lambda d: np.exp((1 - d) / probe.temperature))
    right = model.fit(bank, learn.labels.numpy()).predict(asked) == judge.labels.numpy()
    return "kNN top-1 (scikit-learn)", probe.run(probed, data, 0)[0].value, 100 * right.mean(), 1e-6


def segmentation(name: str, probe: SegmentationProbe, data, probed: ProbedBackbone, truth: Tensor) -> Row:
    """torchmetrics' Jaccard index of the same head's answers, against labels read another way."""
    learn, judge = data.dense(TRAIN), data.dense(TEST)
    head = probe._fit(probed.features(learn.images).spatial[learn.rows], learn, 0)
    with torch.no_grad():
        answers = head(probed.features(judge.images).spatial, tuple(truth.shape[-2:])).argmax(1)
    metric = MulticlassJaccardIndex(len(judge.names[probe.labels]), ignore_index=255)
    return f"mIoU {name} (torchmetrics)", probe.run(probed, data, 0)[0].value, 100 * float(metric(answers, truth)), 1e-3


def street(node, data) -> Tensor:
    """CamVid's labels by Pillow, 11 left out."""
    files = data.dense(TEST).images.files
    raw = [np.asarray(Image.open(str(path).replace("/images/", "/labels/"))) for path in files]
    return picked([np.where(one == 11, 255, one) for one in raw], node.label_size)


def panoptic(node, data) -> Tensor:
    """Segment ids of the PNGs by numpy, classes by the JSON."""
    root = Path(node.root.replace("${PHOTOGRAPHS}", photographs()))
    told = json.loads((root / "panoptic.json").read_text())
    number = {category["id"]: at for at, category in enumerate(told["categories"])}
    by_image = {image["file_name"]: image["id"] for image in told["images"]}
    notes, out = {note["image_id"]: note for note in told["annotations"]}, []
    for path in data.dense(TEST).images.files:
        note = notes[by_image[path.name]]
        rgb = np.asarray(Image.open(root / "panoptic" / note["file_name"])).astype(int)
        ids, classes = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2], np.full(rgb.shape[:2], 255)
        for segment in note["segments_info"]:
            if not segment["iscrowd"]:
                classes[ids == segment["id"]] = number[segment["category_id"]]
        out.append(classes)
    return picked(out, (node.size, node.size))


def instances(node, data) -> Tensor:
    """pycocotools' masks, large objects first."""
    coco, out = quiet_coco(node, "instances"), []
    number = {one: at for at, one in enumerate(coco.getCatIds(), 1)}
    by_name = {image["file_name"]: image["id"] for image in coco.loadImgs(coco.getImgIds())}
    for path in data.dense(TEST).images.files:
        notes = coco.loadAnns(coco.getAnnIds(by_name[path.name]))
        width, height = Image.open(path).size
        classes = np.zeros((height, width), int)
        for note in sorted(notes, key=lambda note: -note["area"]):
            classes[coco.annToMask(note) > 0] = 255 if note["iscrowd"] else number[note["category_id"]]
        out.append(classes)
    return picked(out, (node.size, node.size))


def picked(maps: list[np.ndarray], size: tuple[int, int]) -> Tensor:
    """Maps at one size, by torch's own nearest."""
    parts = [torch.from_numpy(one.astype(np.float32))[None, None] for one in maps]
    return torch.cat([torch.nn.functional.interpolate(one, size=size, mode="nearest-exact")[0] for one in parts]).long()


def depth(probe, data, probed: ProbedBackbone) -> Iterator[Row]:
    """scikit-learn's error of the same head's metres against the PNGs."""
    from eval_suite.probes.geometry import LogDepth, ValidDepth

    learn, judge = data.dense(TRAIN), data.dense(TEST)
    maps = learn.labels("depth")
    head = probe.fit(probed, learn, LogDepth(maps), ValidDepth(maps))
    raw = [np.asarray(Image.open(str(path).replace(".color.jpg", ".depth.png"))) for path in judge.images.files]
    size = tuple(judge.labels("depth")[torch.tensor([0])].shape[-2:])
    truth = picked([np.where(one == 65535, 0, one) for one in raw], size).numpy() / 1000
    said = head.predict(probed.features(judge.images).spatial, size)[:, 0].exp().numpy()
    valid = (truth > 0) & (truth < probe.farthest)
    said, truth = said[valid], truth[valid]
    ours = {result.metric: result.value for result in probe.run(probed, data, 0)}
    yield "depth rmse (scikit-learn)", ours["rmse"], root_mean_squared_error(truth, said), 1e-3
    yield "depth d1 (numpy)", ours["d1"], 100 * float((np.maximum(said / truth, truth / said) < 1.25).mean()), 0.02


def sampled(features: np.ndarray, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Unit features [K, C] of a map [C, h, w] at points (x, y), by scipy."""
    where = [points[:, 1] * features.shape[1] / size[0] - 0.5, points[:, 0] * features.shape[2] / size[1] - 0.5]
    found = np.stack([map_coordinates(one.astype(np.float64), where, order=1, mode="nearest") for one in features], 1)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def nearest(distances: np.ndarray) -> np.ndarray:
    """Position of the smallest in every row of [N, K] in float64, the first of those that are equal.

    About a tenth of the points have several: enlarging a map bilinearly makes copies of its outermost cells. Which of
    them scikit-learn's own search returns is accident, and moves recall by 0.2 points.
    """
    return (distances < distances.min(1, keepdims=True) + 1e-9).argmax(1)


def two_views(probe: TwoViewProbe, data, probed: ProbedBackbone, node) -> Iterator[Row]:
    """Targets projected from the raw depth and poses; matches by scikit-image and scikit-learn."""
    root, pairs = Path(node.root.replace("${PHOTOGRAPHS}", photographs())), data.pairs(TEST)
    camera, size = np.loadtxt(root / "camera-intrinsics.txt"), pairs.size
    first, second = (probed.features(images).spatial.numpy() for images in (pairs.first, pairs.second))
    errors = []
    for row, (one, other) in enumerate(zip(pairs.first.files, pairs.second.files, strict=True)):
        points = pairs.points[row][pairs.valid[row]].double().numpy()
        poses = [np.loadtxt(str(path).replace(".color.jpg", ".pose.txt")) for path in (one, other)]
        metres = np.asarray(Image.open(str(one).replace(".color.jpg", ".depth.png"))) / 1000
        z = metres[points[:, 1].astype(int), points[:, 0].astype(int)]
        rays = np.linalg.inv(camera) @ np.concatenate([points, np.ones((len(points), 1))], 1).T
        world = poses[0] @ np.concatenate([rays * z, np.ones((1, len(z)))])
        seen = camera @ (np.linalg.inv(poses[1]) @ world)[:3]
        cells = resize(np.moveaxis(second[row], 0, -1), (probe.cells, probe.cells), order=1, mode="edge",
                       anti_aliasing=False).reshape(probe.cells**2, -1)  # fmt: skip
        distances = pairwise_distances(sampled(first[row], points, size), cells.astype(np.float64), metric="cosine")
        best = nearest(distances)
        step = np.array([size[1], size[0]]) / probe.cells
        found = (np.stack([best % probe.cells, best // probe.cells], 1) + 0.5) * step
        errors.append(np.linalg.norm(found - (seen[:2] / seen[2]).T, axis=1))
    ours = {result.metric: result.value for result in probe.run(probed, data, 0)}
    for pixels in probe.pixels:
        theirs = 100 * float((np.concatenate(errors) < pixels).mean())
        yield f"recall {pixels:g} px (scikit-learn)", ours[f"recall_{pixels:g}px"], theirs, 0.05


def keypoints(probe: KeypointProbe, data, probed: ProbedBackbone, node) -> Row:
    """PCK of the same drawn pairs, points by pycocotools, matches by scipy."""
    coco, images = quiet_coco(node, "keypoints"), data.keypoints(TEST)
    drawn = draw_pairs(images.objects, probe.smallest, probe.pairs_per_kind, 0)
    known = {}
    for note in coco.loadAnns(coco.getAnnIds()):
        picture = coco.loadImgs(note["image_id"])[0]
        scale = node.size / max(picture["width"], picture["height"])
        names = coco.loadCats(note["category_id"])[0]["keypoints"]
        triples = np.array(note["keypoints"], float).reshape(-1, 3)
        inner = np.array([max(1, round(scale * picture[side])) for side in ("width", "height")])
        exact = inner / [picture["width"], picture["height"]]
        moved = triples[:, :2] * exact + (node.size - inner) // 2
        points = {name: moved[at] for at, name in enumerate(names) if triples[at, 2] == 2}
        known.setdefault(picture["file_name"], []).append(points)
    spatial, right = probed.features(images.images).spatial.numpy(), []
    for _, source, target in drawn:
        names = names_of(source, target)
        points, wanted = (np.array([item.points[name] for name in names]) for item in (source, target))
        for item, places in ((source, points), (target, wanted)):
            told = known[images.images.files[item.row].name]
            assert any(np.allclose([one[name] for name in names], places) for one in told if set(names) <= set(one))
        x0, y0, x1, y1 = probe._widened(target).tolist()
        steps = (np.arange(probe.cells) + 0.5) / probe.cells
        grid = np.stack(np.meshgrid(x0 + steps * (x1 - x0), y0 + steps * (y1 - y0)), -1).reshape(-1, 2)
        likeness = sampled(spatial[source.row], points, images.size) @ sampled(spatial[target.row], grid, images.size).T
        found = grid[nearest(-likeness)]
        right += (np.linalg.norm(found - wanted, axis=1) <= probe.alpha * longer_side(target)).tolist()
    ours = probe.run(probed, data, 0)[0].value
    return f"PCK {probe.alpha:g} (scipy, pycocotools)", ours, 100 * float(np.mean(right)), 0.05


def retrieval(probe, data, probed: ProbedBackbone) -> Iterator[Row]:
    """torchmetrics' hit rate, both ways."""
    path, captioned = text_path(probed, probe.adaptor), data.captions(TEST)
    images = path.images(probed.vectors(captioned.images))
    owners = torch.tensor([image for image, texts in enumerate(captioned.captions) for _ in texts])
    likeness = images @ path.texts([text for texts in captioned.captions for text in texts]).T
    same = owners[None] == torch.arange(len(images))[:, None]
    ours = {result.metric: result.value for result in probe.run(probed, data, 0)}
    for rank in probe.ranks:
        for way, scores, truth in (("image_to_text", likeness, same), ("text_to_image", likeness.T, same.T)):
            rows_of = torch.arange(len(scores))[:, None].expand(scores.shape)
            theirs = RetrievalHitRate(top_k=rank)(scores.flatten(), truth.flatten(), indexes=rows_of.flatten())
            yield f"{way} R@{rank} (torchmetrics)", ours[f"{way}_recall{rank}"], 100 * float(theirs), 1e-3


def boxes(data, node) -> Iterator[Row]:
    """COCO's own tool on the labelled boxes, shaken and scored at random."""
    found, rng, coco = data.instances(TEST), np.random.default_rng(0), quiet_coco(node, "instances")
    by_name = {image["file_name"]: image["id"] for image in coco.loadImgs(coco.getImgIds())}
    ids, kinds = [by_name[path.name] for path in found.images.files], coco.getCatIds()
    truth, said, rows_of = [], [], []
    for image, objects in zip(ids, found.objects, strict=True):
        corners = np.array([thing.box for thing in objects]).reshape(-1, 4)
        classes, crowd = np.array([thing.kind for thing in objects]), np.array([thing.crowd for thing in objects], bool)
        truth.append(Boxes(corners, classes, None, crowd, np.array([thing.area for thing in objects])))
        shaken = corners + rng.normal(scale=4, size=corners.shape)
        shaken[:, 2:] = np.maximum(shaken[:, 2:], shaken[:, :2] + 1)
        scores = rng.random(len(corners))
        said.append(Boxes(shaken, classes, scores))
        rows_of += [
            {"image_id": image, "category_id": kinds[kind], "score": float(score),
             "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
            for kind, score, box in zip(classes, scores, shaken.tolist(), strict=True)
        ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(coco, coco.loadRes(rows_of), "bbox")
        judge.params.imgIds = ids
        judge.evaluate(), judge.accumulate(), judge.summarize()
    for size, theirs in zip(("all", "small", "medium", "large"), judge.stats[[0, 3, 4, 5]], strict=True):
        yield f"box AP {size} (pycocotools)", box_ap(said, truth, size).value, 100 * float(theirs), 1e-6


def photographs() -> str:
    """The folder of the data."""
    import os

    return os.environ["PHOTOGRAPHS"]


def quiet_coco(node, kind: str) -> COCO:
    """pycocotools' reader of a JSON, without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(Path(node.root.replace("${PHOTOGRAPHS}", photographs())) / getattr(node, kind)))


if __name__ == "__main__":
    sys.exit(main())
