"""Whether results can be compared: equal protocol, data, program and dtype, or the difference is named."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from eval_suite.directions import is_share
from eval_suite.made_by import MadeBy
from eval_suite.results import Key, Metrics

KINDS = ("protocol", "data", "program", "dtype", "unrecorded", "scale")
MOST_NAMED = 3


@dataclass(frozen=True)
class Difference:
    """Something in which two results differ: `name` is what `--allow` takes, e.g. protocol.k."""

    name: str
    text: str


def check_alike(
    rows: Mapping[str, Sequence[Metrics]], baseline: str, skip: Sequence[Key], allow: Sequence[str]
) -> tuple[str, ...]:
    """The differences that were allowed, in words; UserError for the first that was not, and for a run given twice."""
    for name in allow:
        if name.split(".")[0] not in KINDS:
            raise UserError(f"--allow {name}: what may differ is {', '.join(KINDS)}, or one option, e.g. protocol.k")
    reference = rows[baseline][0]
    allowed: dict[str, None] = {}
    for row, runs in rows.items():
        check_run_given_twice(row, runs)
        for run in runs:
            for task, difference in differences(reference, run, skip):
                if not _is_allowed(difference.name, allow):
                    raise UserError(
                        f'row "{row}" and the baseline "{baseline}" were not measured alike in {task}: '
                        f"{difference.text}; probe again alike, or allow it (--allow {difference.name})"
                    )
                allowed[f"{task}: {difference.text}"] = None
    if (text := other_scale(rows, skip)) is not None:
        if not _is_allowed("scale", allow):
            raise UserError(f"{text}; write both alike, or allow it (--allow scale)")
        allowed[text] = None
    return tuple(allowed)


def other_scale(rows: Mapping[str, Sequence[Metrics]], skip: Sequence[Key]) -> str | None:
    """What looks like shares of 1 in one row and like percent in another, of which one was not measured here; None
    where nothing does. Rows whose every score is on its own side of 1 are meant, not a single poor one."""
    scores = {
        row: {r.key: r.value for run in runs for r in run.results if is_share(r.metric) and r.key not in skip}
        for row, runs in rows.items()
    }
    ours = {row: all(r.made_by is not None for run in runs for r in run.results) for row, runs in rows.items()}
    for low, small in scores.items():
        for high, large in scores.items():
            both = [] if ours[low] and ours[high] else [key for key in small if key in large]
            if both and all(0 < small[key] <= 1 for key in both) and all(large[key] > 1.5 for key in both):
                said = f'row "{low}" has {"/".join(both[0])} = {small[both[0]]:g}'
                return f'{said} and row "{high}" {large[both[0]]:g}: shares of 1 beside percent?'
    return None


def check_run_given_twice(row: str, runs: Sequence[Metrics]) -> None:
    """UserError where two runs of a row are the same weights probed with the same seeds: one run is one run."""
    seen: set[tuple[str, tuple[int | None, ...]]] = set()
    for run in runs:
        if not any(result.made_by for result in run.results):
            continue
        identity = run.backbone.digest, tuple(sorted({result.seed for result in run.results}, key=repr))
        if identity in seen:
            raise UserError(
                f'row "{row}" holds the same run twice (weights {run.backbone.digest[:19]}); a run counts once'
            )
        seen.add(identity)


def differences(one: Metrics, other: Metrics, skip: Sequence[Key]) -> Iterator[tuple[str, Difference]]:
    """(group/task, difference) of every task that both files hold."""
    first = {result.key: result.made_by for result in one.results if result.key not in skip}
    done: set[str] = set()
    for result in other.results:
        task = "/".join(result.key[:2])
        if result.key in first and task not in done:
            done.add(task)
            for difference in _between(first[result.key], result.made_by, task, one, other):
                yield task, difference


def _between(
    left: MadeBy | None, right: MadeBy | None, task: str, one: Metrics, other: Metrics
) -> Iterator[Difference]:
    if left is None and right is None:
        return  # two old files, or two rows of a paper
    if left is None or right is None:
        yield Difference("unrecorded", "one of them does not say how it was made (an older file)")
        return
    a, b = one.tasks.get(task), other.tasks.get(task)
    if left.protocol != right.protocol:
        yield _named("protocol", {} if a is None else a.options, {} if b is None else b.options)
    if left.data != right.data:
        reader = _named("data", {} if a is None else a.reader, {} if b is None else b.reader)
        contents = _named("data", {} if a is None else a.contents, {} if b is None else b.contents)
        changed = contents.text if reader.name == "data" else reader.text
        yield Difference(reader.name, changed)
    if left.program != right.program:
        yield Difference("program", f"program {right.program} against {left.program}")
    if left.dtype != right.dtype:
        yield Difference("dtype", f"backbone in {right.dtype} against {left.dtype}")


def _named(kind: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> Difference:
    """Which options differ; one alone can be allowed by its name."""
    names = [name for name in dict.fromkeys((*left, *right)) if left.get(name) != right.get(name)]
    if not names:
        return Difference(kind, f"the {kind} differs")
    told = [f"{name}={_short(right.get(name))} against {name}={_short(left.get(name))}" for name in names]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    single = len(names) == 1 and ":" not in names[0]
    return Difference(f"{kind}.{names[0]}" if single else kind, ", ".join(told[:MOST_NAMED]) + more)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_allowed(name: str, allow: Sequence[str]) -> bool:
    return any(name == allowed or name.startswith(f"{allowed}.") for allowed in allow)
