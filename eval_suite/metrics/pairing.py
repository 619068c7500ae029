"""Most one-to-one pairs of drawn and labelled pixels within reach, for one drawing after the other.

Drawings of neighbouring thresholds differ in few pixels, so each starts from the pairs of the one before and only
looks for augmenting paths (Berge 1957): breadth-first trees from all unpaired pixels of the side that has fewer, one
path in every tree that reaches an unpaired pixel of the other. scipy's own matching starts anew every time and can
take seconds where two lines run along each other.
"""

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order
from scipy.spatial import cKDTree

_NONE = -1
_STEPS = 8  #: pairs on a path that is looked for step by step; longer ones are left to scipy's search


class Pairing:
    """The pixels that could be drawn, label pixels, who is within reach of whom, and who is paired with whom now.

    Nodes are numbered: places that could be drawn first, then label pixels, and last a source before the roots.
    """

    def __init__(self, lines: np.ndarray, possible: np.ndarray, reach: float) -> None:
        """Maps bool [H, W]; `reach` in pixels."""
        labels, places = np.argwhere(lines), np.argwhere(possible)
        near = cKDTree(places).sparse_distance_matrix(cKDTree(labels), reach + 1e-9, output_type="coo_matrix")
        within, place = np.unique(near.row, return_inverse=True)  # the rest can never be paired
        self._places = len(within)
        self._number = np.full(possible.shape, _NONE)
        self._number[tuple(places[within].T)] = np.arange(len(within))
        self._source = len(within) + len(labels)
        label = near.col + len(within)
        ends = np.concatenate([place, label]), np.concatenate([label, place])
        self._near = ends[1][np.argsort(ends[0], kind="stable")].astype(np.int32)
        self._rows = np.concatenate([[0], np.bincount(ends[0], minlength=self._source).cumsum()])
        self._partner = np.full(self._source, _NONE, dtype=np.int32)

    def matched(self, drawn: np.ndarray) -> int:
        """How many drawn pixels (bool [H, W], within the possible ones) can be paired."""
        here = np.zeros(self._source + 1, dtype=bool)  # what can never be paired falls on the last one
        here[self._number[drawn]] = True
        here[self._places :] = True
        gone = np.flatnonzero(~here[: self._places] & (self._partner[: self._places] != _NONE))
        self._partner[self._partner[gone]] = _NONE
        self._partner[gone] = _NONE
        while self._augment(here[:-1]):
            pass
        return int((self._partner[: self._places] != _NONE).sum())

    def paired(self, drawn: np.ndarray) -> np.ndarray:
        """Which drawn pixels are paired now, bool [H, W]; after `matched` with the same drawing."""
        out = np.zeros(drawn.shape, dtype=bool)
        number = self._number[drawn]
        out[drawn] = (number != _NONE) & (self._partner[number] != _NONE)
        return out

    def _augment(self, here: np.ndarray) -> bool:
        """Add a pair for every tree that finds one; False where none does, and then there are no more pairs."""
        free = here & (self._partner == _NONE)
        sides = np.flatnonzero(free[: self._places]), np.flatnonzero(free[self._places :]) + self._places
        from_labels = len(sides[1]) < len(sides[0])
        roots = sides[from_labels]
        if not len(roots):
            return False
        found, before, all_seen = self._close_by(roots, here)
        if not all_seen:
            graph = self._graph(roots, from_labels)
            order, before = breadth_first_order(graph, self._source, return_predecessors=True)
            order = order[1:]  # the source comes first
            found = order[free[order] & ((order < self._places) == from_labels)]
        _, first = np.unique(_roots_of(found, before), return_index=True)
        self._flip(found[first], before)
        return bool(len(found))

    def _close_by(self, roots: np.ndarray, here: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        """The ends of the shortest paths, the predecessor of every node seen, and whether that settles it."""
        before = np.full(self._source + 1, _NONE, dtype=np.int32)
        before[:-1][~here] = self._source  # what is not drawn is never entered
        before[roots] = self._source
        nodes = roots
        for _ in range(_STEPS):
            others, origin = self._within_reach(nodes)
            fresh = before[others] == _NONE
            others, origin = others[fresh], origin[fresh]
            before[others] = origin  # of several one stays
            others = others[before[others] == origin]
            left = self._partner[others]
            if not len(others) or (left == _NONE).any():
                return others[left == _NONE], before, True
            before[left] = others
            nodes = left
        return nodes[:0], before, False

    def _within_reach(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every pair of one of the nodes and a pixel within its reach: (pixels, nodes)."""
        starts = self._rows[nodes]
        counts = self._rows[nodes + 1] - starts
        at = np.arange(counts.sum()) + np.repeat(starts - counts.cumsum() + counts, counts)
        return self._near[at], np.repeat(nodes, counts).astype(np.int32)

    def _graph(self, roots: np.ndarray, from_labels: bool) -> csr_matrix:
        """Searched side -> who is within reach; other side -> its partner; the source -> the roots."""
        middle = self._rows[self._places]
        paired = self._partner[: self._places] if from_labels else self._partner[self._places :]
        ends = (paired != _NONE).cumsum()
        partners = paired[paired != _NONE]
        if from_labels:
            indices = np.concatenate([partners, self._near[middle:], roots])
            ends = np.concatenate([ends, self._rows[self._places + 1 :] - middle + len(partners)])
        else:
            indices = np.concatenate([self._near[:middle], partners, roots])
            ends = np.concatenate([self._rows[1 : self._places + 1], ends + middle])
        indptr = np.concatenate([[0], ends, [len(indices)]]).astype(np.int32)
        shape = (self._source + 1, self._source + 1)
        return csr_matrix((np.ones(len(indices)), indices.astype(np.int32), indptr), shape=shape)

    def _flip(self, ends: np.ndarray, before: np.ndarray) -> None:
        """Pair the ends of disjoint paths with those before them, whose old partners move one on, and so on."""
        while len(ends):
            nodes = before[ends]
            left = self._partner[nodes]
            self._partner[nodes], self._partner[ends] = ends, nodes
            ends = left[left != _NONE]


def _roots_of(nodes: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The root of the tree of each path's end; a root's predecessor is the source, the last node."""
    roots = before[nodes]
    climbing = np.arange(len(nodes))
    while len(climbing):
        above = before[roots[climbing]]
        inside = above != len(before) - 1
        climbing = climbing[inside]
        roots[climbing] = before[above[inside]]
    return roots
