"""COCO's run-length masks: runs of 0s and 1s in column order, plain or packed into letters."""

from collections.abc import Sequence

import numpy as np

from common.errors import UserError


def decode_rle(counts: Sequence[int] | str | bytes, height: int, width: int) -> np.ndarray:
    """Run lengths -> bool [height, width]; UserError where they do not fill the mask."""
    told = np.asarray(unpack(counts) if isinstance(counts, str | bytes) else counts)
    if told.dtype.kind not in "iuf" or (told != np.round(told)).any():
        raise UserError("a run-length mask has runs that are no whole numbers; the file is damaged")
    runs = told.astype(np.int64)
    if runs.sum() != height * width or (runs < 0).any():
        raise UserError(f"a run-length mask covers {int(runs.sum())} pixels of {height * width}; the file is damaged")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def unpack(text: str | bytes) -> list[int]:
    """COCO's packing: 5 bits a letter from 48 on, bit 5 "more follows", signed, later ones relative to 2 before."""
    data = text.encode("ascii") if isinstance(text, str) else text
    runs: list[int] = []
    at = 0
    while at < len(data):
        value, shift, more = 0, 0, True
        while more:
            if at == len(data):
                raise UserError("a run-length mask ends in the middle of a number; the file is damaged")
            letter = data[at] - 48
            value |= (letter & 0x1F) << shift
            more = bool(letter & 0x20)
            shift += 5
            at += 1
            if not more and letter & 0x10:
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs
