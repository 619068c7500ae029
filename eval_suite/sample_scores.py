"""Per-sample scores beside metrics.json: what two runs need to be compared image by image.

`metrics.samples.npz` holds, for every result that has them, the test set it was scored on, the numbers of its units
(images, pairs) and what each contributed. It is additive: metrics.json is whole without it. Arrays are NumPy's, because
a table is made of them and should not wait for torch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.atomic import replacing_file
from common.errors import UserError

SUFFIX = ".samples.npz"
Owner = tuple[str, str, str, int | None]  #: group, task, metric, seed


@dataclass(frozen=True, eq=False)
class Samples:
    """What each unit (image, pair) contributes to a metric: jackknife pseudo-values n v - (n - 1) v_without_it.

    Their mean is the metric up to its jackknife bias (for a plain mean they are the units' own scores), and their
    standard error is the metric's. With equal `units` in two runs they can be subtracted unit by unit.
    """

    units: NDArray[np.int64]  #: [n], ascending: numbers of the units within the test set
    scores: NDArray[np.float64]  #: [n]

    def __eq__(self, other: object) -> bool:
        """By content: the one that dataclasses make would ask whole arrays for their truth."""
        if not isinstance(other, Samples):
            return NotImplemented
        return np.array_equal(self.units, other.units) and np.array_equal(self.scores, other.scores)

    def __hash__(self) -> int:
        return hash((len(self.units), float(self.scores.sum())))


def by_unit(samples: Samples, value: float, units: NDArray[np.int64]) -> tuple[Samples | None, float | None]:
    """Samples of images -> those of units, and the standard error over units; None for a single unit.

    units [N]: of every image that the samples could number. The deviations of a unit's images are added up: the
    jackknife over units to first order (cluster-robust variance, Liang & Zeger 1986).
    """
    members, where = np.unique(units[samples.units], return_inverse=True)
    count = len(members)
    if count < 2:
        return None, None
    deviations = (samples.scores - samples.scores.mean()) / len(samples.scores)
    scores = value + count * np.bincount(where, weights=deviations, minlength=count)
    return Samples(members, scores.astype(np.float64)), float(scores.std(ddof=1) / count**0.5)


@dataclass(frozen=True)
class SetSamples:
    """Samples of one result, and the key of the test set their unit numbers belong to."""

    test_set: str
    value: float  #: of the result, so that a file that belongs to other metrics is noticed
    samples: Samples


def samples_path(metrics: Path) -> Path:
    """Where the samples of a metrics file lie."""
    return metrics.with_name(metrics.stem + SUFFIX)


def write_samples(path: Path, found: Mapping[Owner, SetSamples]) -> None:
    """Write the file in one piece; with nothing to write an old one is removed, as it would belong to other metrics."""
    if not found:
        path.unlink(missing_ok=True)
        return
    index = [
        {"group": g, "task": t, "metric": m, "seed": s, "test_set": entry.test_set, "value": entry.value}
        for (g, t, m, s), entry in found.items()
    ]
    arrays = {"index": np.array(json.dumps(index))}
    for number, entry in enumerate(found.values()):
        arrays[f"units_{number}"] = entry.samples.units.astype(np.int32)
        arrays[f"scores_{number}"] = entry.samples.scores.astype(np.float32)
    with replacing_file(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def read_samples(path: Path) -> dict[Owner, SetSamples]:
    """What `write_samples` wrote; {} where there is no file; UserError for a damaged one."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            index = json.loads(str(arrays["index"]))
            return {
                (entry["group"], entry["task"], entry["metric"], entry["seed"]): SetSamples(
                    entry["test_set"],
                    float(entry["value"]),
                    Samples(arrays[f"units_{number}"].astype(np.int64), arrays[f"scores_{number}"].astype(np.float64)),
                )
                for number, entry in enumerate(index)
            }
    except Exception as error:  # a damaged archive raises nearly anything
        raise UserError(f"{path} is damaged ({error}); delete it: the comparison is then not paired") from error


def check_belongs(path: Path, found: Mapping[Owner, SetSamples], values: Sequence[tuple[Owner, float]]) -> None:
    """UserError where the samples are of other results than those beside them."""
    known = dict(values)
    for owner, entry in found.items():
        value = known.get(owner)
        if value is None or abs(value - entry.value) > 1e-6 * max(1.0, abs(value)):
            raise UserError(
                f"{path} does not belong to the metrics beside it ({'/'.join(owner[:3])} differs); "
                "probe again, or delete it: the comparison is then not paired"
            )
