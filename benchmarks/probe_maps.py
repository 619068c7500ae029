"""The probes' operations on maps (eval_suite/maps.py) beside the library's own, at the embedded suite's sizes.

python benchmarks/probe_maps.py

One thread of the CPU; medians of calls that take turns.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import alternating_ms, table
from torch import Tensor

from eval_suite.maps import best_class, channel_moments, resize_map, unit

TURNS = 7


def interpolated(values: Tensor, size: tuple[int, int]) -> Tensor:
    """The slow twin of `resize_map`."""
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)


def main() -> None:
    """Print milliseconds of both and their ratio."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    logits, normals = (torch.randn(16, count, 14, 14, generator=generator) for count in (12, 3))
    leaf, size = logits.clone().requires_grad_(), (56, 56)
    scores = torch.randn(50, 12, 112, 112, generator=generator)
    vectors = resize_map(normals, (112, 112)).double()
    features = torch.randn(900, 384, 14, 14, generator=generator)
    cases: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("resize 14 -> 56", lambda: resize_map(logits, size), lambda: interpolated(logits, size)),
        (
            "resize 14 -> 56 and back",
            lambda: resize_map(leaf, size).sum().backward(),
            lambda: interpolated(leaf, size).sum().backward(),
        ),
        ("unit normals", lambda: unit(vectors), lambda: F.normalize(vectors, dim=1)),
        ("best class of 12", lambda: best_class(scores), lambda: scores.argmax(1)),
        (
            "moments of 384 channels",
            lambda: channel_moments(features),
            lambda: (features.mean((0, 2, 3)), features.std((0, 2, 3))),
        ),
    ]
    rows = []
    for name, ours, twin in cases:
        times = alternating_ms({"ours": ours, "twin": twin}, TURNS)
        rows.append([name, times["ours"], times["twin"], f"{times['twin'] / times['ours']:.1f}x"])
    print(table(["what", "ms", "library ms", "faster"], rows))


if __name__ == "__main__":
    main()
