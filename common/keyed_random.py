"""The order in which samples are seen, as a pure function of (seed, position): nothing to store, nothing to replay.

A shuffled epoch is a keyed permutation of 0..N-1 by a Feistel network with cycle walking (Black & Rogaway, "Ciphers
with Arbitrary Finite Domains", CT-RSA 2002): any element in O(1) time and memory, for a folder of ten files as for a
billion records, where a stored permutation would cost every rank 8 bytes per image.
"""

_MASK = (1 << 64) - 1
_ROUNDS = 8


def mix(*values: int) -> int:
    """Hash integers to 64 well-mixed bits (the finaliser of SplitMix64, chained)."""
    state = 0
    for value in values:
        state = (state + (value & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def permute(index: int, length: int, key: int) -> int:
    """Image of `index` under the permutation of 0..length-1 that `key` selects."""
    if not 0 <= index < length:
        raise IndexError(f"{index} is not in 0..{length - 1}")
    # At least 2 bits a half: one-bit halves leave the round function almost nothing to choose from.
    half = max(2, ((length - 1).bit_length() + 1) // 2)
    index = _feistel(index, half, key)
    while index >= length:
        index = _feistel(index, half, key)
    return index


def _feistel(value: int, half: int, key: int) -> int:
    low_mask = (1 << half) - 1
    left, right = value >> half, value & low_mask
    for round_number in range(_ROUNDS):
        left, right = right, left ^ (mix(key, round_number, right) & low_mask)
    return (left << half) | right


def index_at(position: int, length: int, seed: int, *, shuffle: bool) -> int:
    """Which of `length` items stands at `position` of the endless chain of epochs."""
    epoch, place = divmod(position, length)
    return permute(place, length, mix(seed, epoch)) if shuffle else place
