"""Thinning of a binary map to lines one pixel wide (Guo & Hall 1989; MATLAB's bwmorph "thin", scikit-image's thin)."""

import numpy as np

#: offsets of the 8 neighbours, east first, against the clock: x1 .. x8 of Lam, Lee & Suen 1992
_AROUND = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def thin(mask: np.ndarray) -> np.ndarray:
    """bool [H, W] -> bool [H, W], thinned until nothing changes; connections and ends stay."""
    skeleton = np.pad(mask.astype(bool), 1)
    while True:
        before = int(skeleton.sum())
        for first in (True, False):
            rows, columns = np.nonzero(skeleton)
            if not len(rows):
                break
            code = np.zeros(len(rows), dtype=np.int64)
            for bit, (down, right) in enumerate(_AROUND):
                code |= skeleton[rows + down, columns + right].astype(np.int64) << bit
            gone = _TABLES[first][code]
            skeleton[rows[gone], columns[gone]] = False
        if int(skeleton.sum()) == before:
            return skeleton[1:-1, 1:-1]


def removable(around: tuple[bool, ...], first: bool) -> bool:
    """Whether a pixel with the neighbours x1 .. x8 goes in the first or second pass of an iteration.

    G1: exactly one crossing; G2: two or three neighbours, counted in the smaller of two pairings; G3 and its mirror.
    """
    x = (False, *around, around[0])  # x[1] .. x[8], x[9] = x[1]
    crossings = sum(not x[2 * i - 1] and (x[2 * i] or x[2 * i + 1]) for i in range(1, 5))
    odd = sum(x[2 * i - 1] or x[2 * i] for i in range(1, 5))
    even = sum(x[2 * i] or x[2 * i + 1] for i in range(1, 5))
    if crossings != 1 or not 2 <= min(odd, even) <= 3:
        return False
    return not ((x[2] or x[3] or not x[8]) and x[1]) if first else not ((x[6] or x[7] or not x[4]) and x[5])


_TABLES = {
    first: np.array([removable(tuple(bool(code >> bit & 1) for bit in range(8)), first) for code in range(256)])
    for first in (True, False)
}
