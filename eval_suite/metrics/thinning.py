"""Thinning of binary maps to lines one pixel wide (Guo & Hall 1989; MATLAB's bwmorph "thin", scikit-image's thin).

The map of a strength is wanted at a hundred thresholds. They are thinned at once: bit k of a pixel's word says whether
the pixel is in map k, and the rules, written with the operators of words, act on all bits.
"""

import numpy as np

#: (down, right) to the 8 neighbours, east first, against the clock: x1 .. x8 of Lam, Lee & Suen 1992
_AROUND = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
_BITS = 64  #: of a word


def thin(mask: np.ndarray) -> np.ndarray:
    """bool [H, W] -> bool [H, W], thinned until nothing changes; connections and ends stay."""
    return thin_levels(mask.astype(np.int64), 1)[0]


def thin_levels(levels: np.ndarray, count: int) -> np.ndarray:
    """int [H, W] in 0 .. count -> bool [count, H, W]: for every k < count the map `levels > k`, thinned."""
    padded = np.pad(levels, 1)
    words = _words(padded.ravel(), count)
    offsets = np.array([down * padded.shape[1] + right for down, right in _AROUND])
    active = np.flatnonzero(padded)  # pixels that may go: those around which something changed in the last two passes
    changed = [active, active]
    while len(active):
        for first in (True, False):
            gone = words[active] & _removable([words[active + offset] for offset in offsets], first)
            touched = gone.any(1)
            words[active[touched]] &= ~gone[touched]
            changed = [changed[1], active[touched]]
            active = _around(np.concatenate(changed), offsets, words)
    kept = words.reshape(*padded.shape, -1)[1:-1, 1:-1]
    return np.stack([(kept[..., k // _BITS] >> np.uint64(k % _BITS) & np.uint64(1)).astype(bool) for k in range(count)])


def _words(levels: np.ndarray, count: int) -> np.ndarray:
    """int [n] -> uint64 [n, words]: the lowest `levels` bits are set."""
    bits = np.arange(count + 1)[:, None] > np.arange(-(-count // _BITS) * _BITS)
    table = np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64)
    return table[levels]


def _around(changed: np.ndarray, offsets: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The changed pixels (flat indices) and their neighbours that are still in some map, each once."""
    marked = np.zeros(len(words), dtype=bool)
    marked[changed] = True
    for offset in offsets:
        marked[changed + offset] = True
    found = np.flatnonzero(marked)
    return found[words[found].any(1)]


def _removable(x: list[np.ndarray], first: bool) -> np.ndarray:
    """Bits of the pixels that go in the first or second pass of an iteration, given the neighbours x1 .. x8.

    G1: exactly one crossing; G2: two or three neighbours, counted in the smaller of two pairings; G3 and its mirror.
    """
    odd = [x[2 * i] | x[2 * i + 1] for i in range(4)]
    even = [x[2 * i + 1] | x[(2 * i + 2) % 8] for i in range(4)]
    crossings = [~x[2 * i] & even[i] for i in range(4)]
    a, b, c, d = crossings
    one = (a ^ b ^ c ^ d) & ~(a & b | c & d)
    two = _at_least_two(*odd) & _at_least_two(*even)
    four = odd[0] & odd[1] & odd[2] & odd[3] & even[0] & even[1] & even[2] & even[3]
    side = (x[1] | x[2] | ~x[7]) & x[0] if first else (x[5] | x[6] | ~x[3]) & x[4]
    return one & two & ~four & ~side


def _at_least_two(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    return a & b | c & d | (a | b) & (c | d)
