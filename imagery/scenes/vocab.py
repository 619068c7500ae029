"""Names of everything a scene can hold, and the ids the label maps use for them. Ids are positions in these tuples."""

KINDS = ("ball", "box", "cylinder", "cone", "pole", "sign", "lamp", "table", "figure")
MATERIALS = ("none", "solid", "checker", "stripes", "dots", "noise")
MATERIAL_WORDS = {"solid": "plain", "checker": "checkered", "stripes": "striped", "dots": "dotted", "noise": "mottled"}
MATERIAL_GROUPS = ("plain", "regular", "spotted")
GROUP_OF_MATERIAL = {
    "solid": "plain",
    "checker": "regular",
    "stripes": "regular",
    "dots": "spotted",
    "noise": "spotted",
}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")

BACKGROUNDS = ("sky", "ground", "floor", "wall", "ceiling")
COARSE_BACKGROUNDS = ("sky", "ground", "wall")
COARSE_OF_BACKGROUND = {"sky": "sky", "ground": "ground", "floor": "ground", "wall": "wall", "ceiling": "wall"}

SEMANTIC_CLASSES = BACKGROUNDS + tuple(f"{group} {kind}" for kind in KINDS for group in MATERIAL_GROUPS)
COARSE_CLASSES = COARSE_BACKGROUNDS + KINDS

PARTS_OF_KIND = {
    "ball": ("upper", "lower"),
    "box": ("top", "side"),
    "cylinder": ("top", "side"),
    "cone": ("tip", "body"),
    "pole": ("tip", "shaft"),
    "sign": ("panel", "post"),
    "lamp": ("shade", "stem", "base"),
    "table": ("top", "leg"),
    "figure": ("head", "body"),
}
PARTS = ("none", *(f"{kind} {part}" for kind in KINDS for part in PARTS_OF_KIND[kind]))

# The main object of a scene is the largest thing in the picture, by construction; a pole is too thin to be one.
MAIN_KINDS = tuple(kind for kind in KINDS if kind != "pole")
ENVIRONMENTS = ("outdoors", "indoors")
SCENE_CLASSES = tuple(f"{kind} {environment}" for kind in MAIN_KINDS for environment in ENVIRONMENTS)

QUESTION_KINDS = ("existence", "count", "colour", "relation", "glyph")
# Letters and digits that stay apart from each other at twenty pixels (no O/0, B/8, S/5, Z/2, I/1).
GLYPHS = tuple("ACEFHJKLPRTUXY234579")

GROUND_COLOURS = ("green", "brown", "grey", "tan", "pale")
NUM_CLASSES = len(SEMANTIC_CLASSES)


def semantic_id(kind: str, material: str) -> int:
    """Id in SEMANTIC_CLASSES of an object of this kind and material."""
    return SEMANTIC_CLASSES.index(f"{GROUP_OF_MATERIAL[material]} {kind}")


def part_id(kind: str, part: str) -> int:
    """Id in PARTS of a kind's part."""
    return PARTS.index(f"{kind} {part}")


def scene_class_id(main_kind: str, indoor: bool) -> int:
    """Id in SCENE_CLASSES: the kind of the main object and whether it stands in a room."""
    return SCENE_CLASSES.index(f"{main_kind} {ENVIRONMENTS[int(indoor)]}")
