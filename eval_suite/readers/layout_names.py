"""Class names and tables that belong to published data sets, as facts about their files."""

import numpy as np

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
    "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip

#: PASCAL-Part's 24 person parts in the 6 groups of the multi-task benchmarks; 0 is background
HUMAN_PARTS = {
    **dict.fromkeys(("hair", "head", "lear", "rear", "lebrow", "rebrow", "leye", "reye", "mouth", "nose"), 1),
    **dict.fromkeys(("neck", "torso"), 2),
    **dict.fromkeys(("luarm", "ruarm"), 3),
    **dict.fromkeys(("llarm", "rlarm", "lhand", "rhand"), 4),
    **dict.fromkeys(("luleg", "ruleg"), 5),
    **dict.fromkeys(("llleg", "rlleg", "lfoot", "rfoot"), 6),
}
PART_NAMES = ("background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs")

#: the 27 coarse classes of COCO-Stuff: 12 of things, 15 of stuff, in the order IIC, STEGO and FeatUp number them
COCO_STUFF_COARSE = (
    "electronic", "appliance", "food things", "furniture things", "indoor", "kitchen", "accessory", "animal", "outdoor",
    "person", "sports", "vehicle", "ceiling", "floor", "food stuff", "furniture stuff", "raw material", "textile",
    "wall", "window", "building", "ground", "plant", "sky", "solid", "structural", "water",
)  # fmt: skip

#: coarse class -> first and last fine label (COCO category number minus 1) of things
_THINGS = {
    "person": (0, 0), "vehicle": (1, 8), "outdoor": (9, 14), "animal": (15, 24), "accessory": (25, 32),
    "sports": (33, 42), "kitchen": (43, 50), "food things": (51, 60), "furniture things": (61, 70),
    "electronic": (71, 76), "appliance": (77, 82), "indoor": (83, 90),
}  # fmt: skip
_STUFF = {
    "ceiling": (101, 102),
    "floor": (100, 113, 114, 115, 116, 117),
    "food stuff": (120, 121, 152, 169),
    "furniture stuff": (97, 106, 107, 109, 111, 122, 129, 132, 155, 160, 164),
    "raw material": (99, 131, 138, 142),
    "textile": (91, 92, 103, 104, 108, 130, 136, 140, 151, 166, 167),
    "wall": (170, 171, 172, 173, 174, 175, 176),
    "window": (179, 180),
    "building": (94, 95, 127, 150, 157, 165),
    "ground": (110, 124, 125, 135, 139, 143, 144, 146, 148, 153, 158),
    "plant": (93, 96, 118, 123, 128, 133, 141, 162, 168),
    "sky": (105, 156),
    "solid": (126, 134, 149, 159, 161, 181),
    "structural": (98, 112, 137, 145, 163),
    "water": (119, 147, 154, 177, 178),
}


def coarse_of_fine() -> np.ndarray:
    """uint8 [182]: the coarse class of each fine label."""
    table = np.full(182, 255, dtype=np.uint8)
    for name, (first, last) in _THINGS.items():
        table[first : last + 1] = COCO_STUFF_COARSE.index(name)
    for name, members in _STUFF.items():
        table[list(members)] = COCO_STUFF_COARSE.index(name)
    return table
