"""Exact Hadamard matrices: +-1 entries, orthogonal rows. PHI-S (arXiv 2410.01680, A.1.1) spreads variance with them.

Powers of two come from Sylvester's doubling; every other size n = 2^i * m from the Kronecker product of a Sylvester
matrix with one of Paley's two constructions of size m, which need a prime near m. Not every multiple of 4 is reached
this way (no general construction is known), but every usual feature width is.
"""

from functools import lru_cache

import numpy as np

from common.errors import UserError


@lru_cache(maxsize=8)
def hadamard(size: int) -> np.ndarray:
    """int8 [size, size] with H @ H.T == size * I. UserError when none of the constructions gives this size."""
    for power in range(size.bit_length() - 1, -1, -1):
        doubling, rest = 2**power, size // 2**power
        if size % doubling:
            continue
        core = _paley(rest)
        if core is not None:
            return np.kron(_sylvester(power), core)
    raise UserError(f"no Hadamard matrix of size {size} can be built (Sylvester and Paley constructions)")


def _sylvester(power: int) -> np.ndarray:
    """[2^power, 2^power]."""
    matrix = np.ones((1, 1), dtype=np.int8)
    for _ in range(power):
        matrix = np.kron(np.array([[1, 1], [1, -1]], dtype=np.int8), matrix)
    return matrix


def _paley(size: int) -> np.ndarray | None:
    """[size, size] by Paley I or II, the trivial one for size 1, None where neither applies."""
    if size == 1:
        return np.ones((1, 1), dtype=np.int8)
    if _is_prime(size - 1) and (size - 1) % 4 == 3:
        return _paley_first(size - 1)
    if size % 2 == 0 and _is_prime(size // 2 - 1) and (size // 2 - 1) % 4 == 1:
        return _paley_second(size // 2 - 1)
    return None


def _paley_first(prime: int) -> np.ndarray:
    """Size prime + 1, prime = 3 mod 4: I + [[0, 1], [-1, Q]], Q skew-symmetric."""
    matrix = np.eye(prime + 1, dtype=np.int8)
    matrix[0, 1:] += 1
    matrix[1:, 0] -= 1
    matrix[1:, 1:] += _jacobsthal(prime)
    return matrix


def _paley_second(prime: int) -> np.ndarray:
    """Size 2 (prime + 1), prime = 1 mod 4: the symmetric core [[0, 1], [1, Q]], a 2x2 block for each of its entries."""
    core = np.zeros((prime + 1, prime + 1), dtype=np.int8)
    core[0, 1:] = core[1:, 0] = 1
    core[1:, 1:] = _jacobsthal(prime)
    for_sign = np.array([[1, 1], [1, -1]], dtype=np.int8)
    for_zero = np.array([[1, -1], [-1, -1]], dtype=np.int8)
    return np.kron(core, for_sign) + np.kron((core == 0).astype(np.int8), for_zero)


def _jacobsthal(prime: int) -> np.ndarray:
    """Q[a, b] = chi(a - b): 0 for 0, +1 for a quadratic residue mod prime, -1 for the others."""
    chi = np.full(prime, -1, dtype=np.int8)
    chi[np.unique(np.arange(1, prime, dtype=np.int64) ** 2 % prime)] = 1
    chi[0] = 0
    index = np.arange(prime)
    return chi[(index[:, None] - index[None, :]) % prime]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
