"""The evaluation's heaviest parts once at their true size, on pictures of noise: do they run, how long, in what memory?

    python benchmarks/true_size_evaluation.py --backbone run:runs/radio_l-smoke      what `--smoke` exported
    python benchmarks/true_size_evaluation.py --backbone '{spec: timm:vit_large_patch16_224, pretrained: false}'

Nearest neighbours at 432 px, linear segmentation with sliding windows of 512 px, SAM's true decoder (ViT-H's neck,
random weights) at 1024 px behind the student's adaptor `sam`, and boxes at 1024 px. Two pictures a split, one epoch, a
few steps: the scores mean nothing. What the backbone lacks is said.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import add_device, describe, open_device, table
from transformers import SamConfig, SamModel
from transformers.models.sam.configuration_sam import SamVisionConfig

from common.errors import add_debug_flag, guard
from distill.smoke.measured import GIB, forget_highest, highest
from eval_suite.__main__ import backbone_node
from eval_suite.suite import load_suite, run_probes
from teachers.registry import load_backbone

HEIGHT, WIDTH, PICTURES = 512, 640, 2  #: wider than a window of 512 px
SUITE = """
name: true_size
batch_size: 1
data:
  kinds: {{reader: class_folders, root: "{root}/kinds", size: 432}}
  maps:
    reader: dense_folders
    root: "{root}/maps"
    images: "images/{{split}}/*.png"
    labels: {{semantic: {{files: "labels/{{split}}/*.png", kind: classes, classes: 150}}}}
    size: 512
  coco: {{reader: coco, root: "{root}/coco", instances: "annotations/instances_{{split}}.json", size: 1024, fit: pad}}
probes:
  knn_432: {{probe: knn, data: kinds, k: 1, temperature: 0.07, vector: summary_or_mean}}
  windows_512: {{probe: linear_segmentation, data: maps, protocol: radio-linear, steps: 2, batch: 2}}
  sam_coco_1024: {{probe: sam_instances, data: coco, decoder: "{root}/sam", adaptor: sam, enters: neck, side: 1024}}
  boxes_1024: {{probe: detection, data: coco, side: 1024, epochs: 1, batch: 1}}
"""


def write_worlds(root: Path) -> None:
    """Noise under the layouts of the readers."""
    drawn = np.random.default_rng(0)

    def save(path: Path, values: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(path)

    for split, year in (("train", "train2017"), ("test", "val2017")):
        for number in range(1, PICTURES + 1):
            picture = drawn.integers(0, 256, (HEIGHT, WIDTH, 3))
            save(root / "kinds" / split / f"kind{number}" / "0.png", picture)
            save(root / "maps" / "images" / split / f"{number}.png", picture)
            save(root / "maps" / "labels" / split / f"{number}.png", drawn.integers(0, 150, (HEIGHT, WIDTH)))
            save(root / "coco" / year / f"{number:012d}.jpg", picture)
        write_objects(root / "coco" / "annotations" / f"instances_{year}.json")


def write_objects(path: Path) -> None:
    """A square and a thin strip in each picture."""
    numbers = range(1, PICTURES + 1)
    boxes = {1: (40, 40, 200, 200), 2: (300, 20, 60, 300)}
    objects = [
        {
            "id": 10 * number + kind,
            "image_id": number,
            "category_id": kind,
            "area": wide * high,
            "iscrowd": 0,
            "bbox": [left, top, wide, high],
            "segmentation": [[left, top, left + wide, top, left + wide, top + high, left, top + high]],
        }
        for number in numbers
        for kind, (left, top, wide, high) in boxes.items()
    ]
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": HEIGHT, "width": WIDTH} for n in numbers]
    kinds = [{"id": 1, "name": "square"}, {"id": 2, "name": "strip"}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": kinds}), encoding="utf-8")


def write_sam(folder: Path) -> None:
    """SAM-H without its image encoder's blocks, which no student needs: neck, prompts, decoder at true size."""
    vision = SamVisionConfig(hidden_size=1280, num_hidden_layers=0, num_attention_heads=16, global_attn_indexes=[])
    torch.manual_seed(0)
    SamModel(SamConfig(vision_config=vision)).save_pretrained(folder)


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device(parser)
    parser.add_argument("--backbone", required=True, help="as for python -m eval_suite run")
    parser.add_argument("--only", action="append", default=[], help="a probe; may be repeated")
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    device = open_device(arguments)
    backbone = load_backbone(backbone_node(arguments.backbone)).eval()
    print(f"{backbone.spec.name}, {describe(device)}")
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_worlds(root)
        write_sam(root / "sam")
        suite_file = root / "suite.yaml"
        suite_file.write_text(SUITE.format(root=root), encoding="utf-8")
        left_out = [name for name in load_suite(suite_file).probes if arguments.only and name not in arguments.only]
        suite = load_suite(suite_file, [f"probes.{name}=null" for name in left_out])
        forget_highest()
        for outcome in run_probes(backbone, suite, progress=False, device=str(device)):
            most = highest()
            said = outcome.absent or ", ".join(f"{one.metric} {one.value:.3g}" for one in outcome.results)
            rows.append([outcome.task, f"{outcome.seconds:.0f}", "" if most is None else f"{most / GIB:.2f}", said])
            print(f"| {' | '.join(map(str, rows[-1]))} |", flush=True)
            forget_highest()
    print(table(["probe", "s", "process GiB", "of noise"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
