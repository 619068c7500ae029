"""Several sources as one, each with a weight: which one stands at a position is a pure function of (seed, position).

Positions go in blocks of `BLOCK`. Of every block each source has as many as its weight says (what does not divide is
carried on to the next block, so that long runs have the very weights), in a shuffled order of the block's own. So the
split over ranks, resuming and threads are as for a single source, and each source goes through its own epochs.
"""

from collections.abc import Mapping

from common.errors import UserError
from common.keyed_random import mix, permute
from imagery.contracts import SequentialSource, Source
from imagery.left_out import LeftOut

BLOCK = 256
_MIXTURE = 0x313  # keeps these random numbers apart from the other uses of a seed


class Mixture:
    """sources with weights; the weights are brought to a sum of 1."""

    def __init__(self, sources: Mapping[str, Source | SequentialSource], weights: Mapping[str, float]) -> None:
        if not sources or sources.keys() != weights.keys():
            raise UserError("a mixture needs at least one source, and a weight for each")
        for name, weight in weights.items():
            if not 0 < weight < float("inf"):
                raise UserError(f"the weight of {name} is a number above 0, got {weight}")
        whole = sum(weights.values())
        self.sources = list(sources.values())
        self.weights = [weight / whole for weight in weights.values()]
        self.name = " + ".join(f"{weight:.3g} {name}" for name, weight in zip(sources, self.weights, strict=True))
        prints = [f"{weight!r} of {each.fingerprint}" for weight, each in zip(self.weights, self.sources, strict=True)]
        self.fingerprint = f"mixture of {BLOCK}: {'; '.join(prints)}"

    @property
    def problems(self) -> list[str]:
        """Of all sources."""
        return [problem for source in self.sources for problem in source.problems]

    @property
    def left_out(self) -> LeftOut:
        """Of all sources."""
        found = LeftOut()
        for source in self.sources:
            found.merge(source.left_out)
        return found

    @property
    def lost_share(self) -> float:
        """What problems took away, each source by its weight."""
        return sum(weight * each.lost_share for weight, each in zip(self.weights, self.sources, strict=True))

    def before(self, block: int) -> list[int]:
        """How many images of each source stand before a block."""
        position, firsts, whole = block * BLOCK, [], 0.0
        for weight in self.weights:  # cumulative weights, so that the counts always sum up to the position
            whole += weight
            firsts.append(round(whole * position))
        firsts[-1] = position
        return [first - (firsts[index - 1] if index else 0) for index, first in enumerate(firsts)]

    def plan(self, block: int, seed: int) -> list[tuple[int, int]]:
        """(source, position within it) of every position of a block; positions within a source rise."""
        start, stop = self.before(block), self.before(block + 1)
        dealt = [source for source, (a, b) in enumerate(zip(start, stop, strict=True)) for _ in range(b - a)]
        key, reached, found = mix(seed, block, _MIXTURE), list(start), []
        for place in range(BLOCK):
            source = dealt[permute(place, BLOCK, key)]
            found.append((source, reached[source]))
            reached[source] += 1
        return found

    def seed_of(self, source: int, seed: int) -> int:
        """Each source's order is its own."""
        return mix(seed, source, _MIXTURE)
