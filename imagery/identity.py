"""Which images a source holds, by content: their names, their sizes, and some bytes of some of them.

No path and no date is in it, so data may move. 64 images are sampled, chosen by the names and sizes themselves; images
that were replaced under the same names nearly always have other sizes, and where all were replaced by ones of equal
size a sample tells.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from common.digests import digest_bytes, short
from common.keyed_random import mix, permute
from imagery.decode import BadImage

PREFIX = "content:"  #: of every identity made like this; runs from before have none that begin so
SAMPLED_IMAGES = 64
SAMPLED_BYTES = 4096
_THREADS = 16


def content_identity(
    names: bytes, lengths: Sequence[int] | np.ndarray, sizes: np.ndarray, read: Callable[[int, int, int], bytes]
) -> str:
    """Of images whose names, of `lengths` bytes, are joined in `names`. read(index, offset, size): some of an image."""
    facts = [np.asarray(lengths, np.int64).tobytes(), np.asarray(sizes, np.int64).tobytes()]
    listing = digest_bytes(names, *facts)
    key, count = int(short(listing), 16), len(sizes)

    def sample(number: int) -> bytes:
        index = permute(number, count, key)
        offset = mix(key, number) % max(1, int(sizes[index]) - SAMPLED_BYTES)
        try:
            return read(index, offset, min(SAMPLED_BYTES, int(sizes[index])))
        except (BadImage, OSError):
            return b""

    with ThreadPoolExecutor(_THREADS) as pool:
        samples = list(pool.map(sample, range(min(count, SAMPLED_IMAGES))))
    return PREFIX + digest_bytes(listing.encode(), *samples)
