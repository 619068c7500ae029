"""Letters and digits as bitmaps, from a 5 x 7 dot font of our own, so that no font file can change a label."""

from functools import cache

import numpy as np

from imagery.scenes.vocab import GLYPHS

_ROWS = {
    "A": ".###. #...# #...# ##### #...# #...# #...#",
    "C": ".#### #.... #.... #.... #.... #.... .####",
    "E": "##### #.... #.... ####. #.... #.... #####",
    "F": "##### #.... #.... ####. #.... #.... #....",
    "H": "#...# #...# #...# ##### #...# #...# #...#",
    "J": "..### ....# ....# ....# ....# #...# .###.",
    "K": "#...# #..#. #.#.. ##... #.#.. #..#. #...#",
    "L": "#.... #.... #.... #.... #.... #.... #####",
    "P": "####. #...# #...# ####. #.... #.... #....",
    "R": "####. #...# #...# ####. #.#.. #..#. #...#",
    "T": "##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..",
    "U": "#...# #...# #...# #...# #...# #...# .###.",
    "X": "#...# #...# .#.#. ..#.. .#.#. #...# #...#",
    "Y": "#...# #...# .#.#. ..#.. ..#.. ..#.. ..#..",
    "2": ".###. #...# ....# ...#. ..#.. .#... #####",
    "3": "##### ...#. ..#.. ...#. ....# #...# .###.",
    "4": "...#. ..##. .#.#. #..#. ##### ...#. ...#.",
    "5": "##### #.... ####. ....# ....# #...# .###.",
    "7": "##### ....# ...#. ..#.. .#... .#... .#...",
    "9": ".###. #...# #...# .#### ....# ...#. .##..",
}
_SCALE = 8  # bitmap pixels per dot of the font
PLATE_WIDTH, PLATE_HEIGHT = 7, 9  # dots: the font's 5 x 7 and a margin of one


@cache
def glyph_plates() -> np.ndarray:
    """Ink of every glyph on its plate: [len(GLYPHS), 72, 56] bool, row 0 at the top."""
    return np.stack([_smooth(_dots(glyph)) for glyph in GLYPHS])


def _dots(glyph: str) -> np.ndarray:
    rows = [[dot == "#" for dot in row] for row in _ROWS[glyph].split()]
    return np.pad(np.asarray(rows, dtype=np.float64), 1)


def _smooth(dots: np.ndarray) -> np.ndarray:
    """Blow the dots up, blur by one dot and threshold: rounds the corners and joins diagonal strokes."""
    big = np.kron(dots, np.ones((_SCALE, _SCALE)))
    kernel = np.ones(_SCALE + 1) / (_SCALE + 1)
    for axis in (0, 1):
        big = np.apply_along_axis(np.convolve, axis, big, kernel, mode="same")
    return big > 0.42
