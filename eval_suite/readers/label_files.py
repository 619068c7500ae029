"""What a recipe says of label files: class numbers, colours, depth, disparity, normals, masks, boundaries."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from common.errors import UserError
from common.recipes import Node
from eval_suite.readers.contracts import IGNORE
from eval_suite.readers.depth_normals import depth_normals
from eval_suite.readers.label_values import (
    check_class_range,
    from_colours,
    to_classes,
    to_depth,
    to_mask,
    to_normals,
)
from eval_suite.readers.rasters import read_mat, read_raster

MOST_PEOPLE = 12  #: drawings of one photograph
BY_ANNOTATOR = "_by_annotator"  #: after a label's name: the same, a plane for each person who drew it


class FileLabels(Node):
    """Where the files of a label lie: a path with `*` for what image and label names share and `{split}`."""

    files: str  #: path under root with one `*`
    key: str | None = None  #: variable of a .mat or .npz file; needed where there are several


class ClassNumbers(Node):
    """How classes are stored: `first` is the number of class 0, smaller ones and those in `ignore` do not count."""

    classes: int | tuple[str, ...]  #: how many, or their names
    first: int = Field(default=0, ge=0)  #: stored number of class 0
    ignore: tuple[int, ...] = (IGNORE,)  #: stored numbers that do not count

    @model_validator(mode="after")
    def _in_range(self) -> "ClassNumbers":
        try:
            check_class_range(len(self.names), self.first, self.ignore)
        except UserError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(str(n) for n in range(self.classes)) if isinstance(self.classes, int) else self.classes


class ClassLabels(FileLabels, ClassNumbers):
    """Class numbers, or masks painted in RGB with a colour for each class."""

    kind: Literal["classes"]
    colours: dict[str, tuple[int, int, int]] | None = None  #: class name -> colour
    other_colours: Literal["refuse", "ignore"] = "refuse"  #: ignore: pixels of another colour do not count

    @model_validator(mode="after")
    def _coloured(self) -> "ClassLabels":
        if self.colours is not None and set(self.colours) != set(self.names):
            raise ValueError("colours gives one colour for each of the class names")
        if self.colours is not None and len(set(self.colours.values())) != len(self.colours):
            raise ValueError("two classes have one colour")
        if self.colours is None and self.other_colours != "refuse":
            raise ValueError("other_colours goes with colours")
        return self

    def decode(self, path: Path) -> np.ndarray:
        """uint8 [H, W] with `IGNORE`; UserError for a value that is no class."""
        raster = read_raster(path, self.key)
        if self.colours is not None:
            colours = [self.colours[name] for name in self.names]
            return from_colours(raster, colours, path, others=self.other_colours == "ignore")
        return to_classes(raster, len(self.names), path, first=self.first, ignore=self.ignore)


class DepthLabels(FileLabels):
    """Metres = scale x value, or scale / value for disparity; `invalid` values and everything not above 0 count out.

    Floats are metres where no scale is given; integers need one.
    """

    kind: Literal["depth", "disparity"]  #: metres, or their inverse
    scale: float | None = Field(default=None, gt=0)  #: metres of one stored unit
    invalid: tuple[float, ...] = (0.0,)  #: stored values that mean: no depth

    def decode(self, path: Path) -> np.ndarray:
        """float32 metres [H, W], 0 where invalid."""
        raster = read_raster(path, self.key)
        return to_depth(raster, path, scale=self.scale, invalid=self.invalid, disparity=self.kind == "disparity")


class NormalLabels(FileLabels):
    """Unit vectors, over the full range of unsigned integers (n = 2 v / 255 - 1 in bytes), or as floats.

    `range`: the stored values of -1 and +1 where they are others. What is no normal: see label_values.to_normals.
    """

    kind: Literal["normals"]
    range: tuple[float, float] | None = None  #: stored values of -1 and +1; None: the type's full range
    ignore: tuple[tuple[float, float, float], ...] = ()  #: stored triples that mean: no normal

    def decode(self, path: Path) -> np.ndarray:
        """float32 [H, W, 3], 0 where invalid."""
        return to_normals(read_raster(path, self.key), path, range=self.range, ignore=self.ignore)


class DepthNormalLabels(FileLabels):
    """Normals worked out from a depth map of a camera with square pixels.

    `focal` is the focal length and `centre` the principal point (x, y; by default the middle), in pixels of the map.
    """

    kind: Literal["normals_from_depth"]
    focal: float = Field(gt=0)  #: focal length in px of the map
    centre: tuple[float, float] | None = None  #: principal point (x, y) in px; None: the middle
    scale: float | None = Field(default=None, gt=0)  #: metres of one stored unit
    invalid: tuple[float, ...] = (0.0,)  #: stored values that mean: no depth

    def decode(self, path: Path) -> np.ndarray:
        """float32 [H, W, 3], 0 where the depth is unknown; camera coordinates, towards the camera."""
        metres = to_depth(read_raster(path, self.key), path, scale=self.scale, invalid=self.invalid)
        height, width = metres.shape
        return depth_normals(metres, self.focal, self.centre or (width / 2, height / 2))


class MaskLabels(FileLabels):
    """Salient, boundary, foreground or not.

    Graded files are foreground above `threshold` of the full value: `full`, or the type's (True, 255, 65535, 1.0 for
    floats). Files of numbers without a scale (palettes, ids) say which are `foreground`: a list, or all but 0.
    """

    kind: Literal["mask"]
    threshold: float = Field(default=0.5, ge=0, lt=1)  #: share of the full value above which a pixel is foreground
    full: float | None = Field(default=None, gt=0)  #: full value of graded files; None: the type's
    foreground: tuple[int, ...] | Literal["nonzero"] | None = None  #: of files of numbers: which ones, or all but 0
    ignore: tuple[int, ...] = ()  #: stored values that do not count
    channel: Literal["grey", "alpha"] | None = None  #: of files with transparency: which of the two is the mask

    @model_validator(mode="after")
    def _one_reading(self) -> "MaskLabels":
        if self.foreground is not None and (self.full is not None or "threshold" in self.model_fields_set):
            raise ValueError("foreground lists numbers; threshold and full are for graded masks")
        return self

    def decode(self, path: Path) -> np.ndarray:
        """uint8 [H, W] in {0, 1, IGNORE}."""
        return to_mask(
            read_raster(path, self.key),
            path,
            threshold=self.threshold,
            full=self.full,
            foreground=self.foreground,
            ignore=self.ignore,
            channel=self.channel,
        )


class BsdsLabels(FileLabels):
    """BSDS500's .mat files, several drawings each. Probes learn from the pixels that at least `annotators` people drew;
    they are judged by every drawing, as the benchmark does it."""

    kind: Literal["bsds"]
    annotators: int = Field(default=1, ge=1)  #: people who must have drawn a pixel for a probe to learn from it

    def decode(self, path: Path) -> np.ndarray:
        """uint8 [H, W] in {0, 1}, to learn from."""
        return (np.stack(self._drawings(path)).astype(np.int64).sum(0) >= self.annotators).astype(np.uint8)

    def decode_each(self, path: Path) -> np.ndarray:
        """uint8 [H, W, MOST_PEOPLE] in {0, 1}, a plane for each drawing and `IGNORE` in those that are left over."""
        drawings = self._drawings(path)
        out = np.full((*drawings[0].shape, MOST_PEOPLE), IGNORE, dtype=np.uint8)
        for plane, drawing in enumerate(drawings):
            out[..., plane] = drawing > 0
        return out

    def _drawings(self, path: Path) -> list[np.ndarray]:
        """Boundaries [H, W] by person; UserError for a file of another kind."""
        drawn = read_mat(path).get("groundTruth")
        if drawn is None:
            raise UserError(f"{path} has no groundTruth; it is not of BSDS500")
        found = [np.asarray(getattr(one, "Boundaries", None)) for one in np.atleast_1d(drawn).ravel()]
        if not found or any(one.ndim != 2 or one.shape != found[0].shape for one in found):
            raise UserError(f"{path} has drawings without boundaries, or of different sizes; fetch it again")
        if len(found) > MOST_PEOPLE or len(found) < self.annotators:
            raise UserError(
                f"{path} has {len(found)} drawings; it needs {self.annotators} (annotators) to {MOST_PEOPLE}"
            )
        return found


LabelNode = Annotated[
    ClassLabels | DepthLabels | NormalLabels | DepthNormalLabels | MaskLabels | BsdsLabels, Field(discriminator="kind")
]
FILL: Mapping[str, float] = {
    "classes": IGNORE,
    "depth": 0,
    "disparity": 0,
    "normals": 0,
    "normals_from_depth": 0,
    "mask": IGNORE,
    "bsds": IGNORE,
}
