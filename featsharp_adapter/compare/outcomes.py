"""What a comparison measures, and its results as JSON lines that others can add to.

A line is one adapter on one budget of teacher passes. `setting` says what lines must have in common to stand in one
table: the very teacher, images (by content, not by place), views, factor and probes. What stands in a file already is
not measured again, and files of several people are read together. docs/adapters.md has the fields.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from common.digests import digest_value, short
from common.errors import UserError
from common.jsonl import Log
from common.recipes import read_recipe
from featsharp_adapter.compare.variants import FIELDS
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.training.teacher_data import TeacherData, open_once
from teachers.artefacts import portable

SCHEMA = 1
ALIKE = 0.01  #: share by which two machines' results of one thing may differ
REVISION = 3  #: raised by hand when the code changes what a comparison measures: its results stand in another table


@dataclass(frozen=True)
class Outcome:
    """One adapter: mean squared errors in normalised space on held-out views, and what they do not tell.

    recipe: digest of the upsampler, its options and the fields that variants may differ in. passes: of the teacher, an
    image. steps: of gradient descent. mse_learned: by the downsampler trained with it; None for a budget of passes, for
    which none is. fidelity: equation 7 by the learned downsampler, or by the average where there is none. tv, crf, mmd:
    `side_metrics`. milliseconds, mebibytes: of sharpening one image whose views are there, all threads, tensors only.
    seconds: CPU time of training and judging, all threads.
    """

    setting: dict[str, Any]
    upsampler: str
    recipe: str
    seed: int
    passes: float
    steps: int
    mse_average: float
    mse_learned: float | None
    fidelity: float
    tv: float
    crf: float
    mmd: float
    parameters: int
    seconds: float
    milliseconds: float
    mebibytes: float
    probes: dict[str, float] = field(default_factory=dict)  #: on sharpened features, where a suite was given

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # of lines that are read

    @property
    def teacher(self) -> str:
        return str(self.setting["teacher"])

    @property
    def key(self) -> str:
        """Equal for two measurements of the same thing."""
        return key_of(asdict(self))


_OUTCOME = TypeAdapter(Outcome)


def key_of(identity: Mapping[str, Any]) -> str:
    """`Outcome.key`, of the fields that are known before it is measured."""
    return digest_value([identity[name] for name in ("setting", "upsampler", "recipe", "seed", "passes")])


def setting_of(recipe: AdapterRecipe, data: TeacherData, suite: Sequence[str] = ()) -> dict[str, Any]:
    """What results must share to be compared; nothing in it names a place on this machine.

    suite: the file of the probes, and changes to it; by what they say, not by their name.
    """
    return {
        "program": f"{version('agglomerate')}, comparisons {REVISION}",
        "teacher": data.spec.name,
        "teacher_digest": data.spec.digest,
        "teacher_map": _map_of(recipe, data),
        "factor": recipe.factor,
        "train": open_once(recipe.data.train).fingerprint,
        "held_out": open_once(recipe.data.held_out).fingerprint,
        "images": data.images,
        "held_out_images": recipe.data.held_out_images,
        "zoom": list(recipe.data.zoom),
        "hflip": recipe.data.hflip,
        "views": recipe.views.model_dump(mode="json"),
        "published_views": recipe.published_views,
        "seed": recipe.seed,
        # Views that are made at every step are of new images, those in memory come again.
        **({} if data.store is not None else {"training_views": "made at every step"}),
        "suite": short(digest_value(read_recipe(suite[0], suite[1:]))) if suite else None,
    }


def _map_of(recipe: AdapterRecipe, data: TeacherData) -> dict[str, Any]:
    """What a teacher's map depends on besides its weights: two levels of one network are two teachers."""
    node = recipe.teacher if isinstance(recipe.teacher, dict) else {}
    own = {} if data.spec.reads else {name: node[name] for name in sorted(node) if name not in ("spec", "digest")}
    names = ("patch_size", "spatial_dim", "native_size", "mean", "std", "reads")
    said = {name: getattr(data.spec, name) for name in names}
    return portable(said | {"dtype": recipe.teacher_dtype} | ({"options": own} if own else {}))


def variant_digest(recipe: AdapterRecipe) -> str:
    """Of all that a variant's recipe may differ in from another's."""
    said = recipe.model_dump(mode="json", include={"upsampler", "options", *FIELDS})
    return short(digest_value(said))


def append_outcome(path: Path, outcome: Outcome) -> None:
    """One more line at the end of a file of results; UserError for a result that is not a number."""
    line = {"schema": SCHEMA, **asdict(outcome)}
    _parse(json.dumps(line), f"{outcome.teacher} {outcome.upsampler} seed {outcome.seed}")
    Log(path).write(line)


def read_outcomes(paths: Iterable[Path]) -> list[Outcome]:
    """The lines of these files, each measurement once. UserError for a file or a line of another kind, and for two
    lines of one measurement that say different things.

    What a kill left of a last line is told and passed over.
    """
    found: dict[str, tuple[Outcome, str]] = {}
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read results {path}: {error}") from error
        *lines, torn = text.split("\n")  # splitlines() would break at U+2028 too
        if torn.startswith("{") and not _is_json(torn):
            print(f"{path}: its last line was not written to its end and is left out")
            torn = ""
        for number, line in enumerate([*lines, torn], start=1):
            if line.strip():
                where = f"{path}, line {number}"
                outcome = _parse(line, where)
                first = found.setdefault(outcome.key, (outcome, where))
                _refuse_difference(first, (outcome, where))
    return [outcome for outcome, _ in found.values()]


def _refuse_difference(one: tuple[Outcome, str], other: tuple[Outcome, str]) -> None:
    """UserError where two measurements of one thing differ by more than machines do."""
    (first, here), (second, there) = one, other
    said, again = (_numbers(each) for each in (first, second))
    for name in [*said, *(name for name in again if name not in said)]:
        mine, theirs = said.get(name), again.get(name)
        same = mine == theirs or (
            mine is not None and theirs is not None and math.isclose(mine, theirs, rel_tol=ALIKE, abs_tol=ALIKE / 10)
        )
        if not same:
            raise UserError(
                f"{here} and {there} measured the same ({first.teacher}, {first.upsampler}, seed {first.seed}, "
                f"{first.passes:g} passes) and say {name} {mine} and {theirs}: find out which is right, and take out "
                "the other line"
            )


def _numbers(outcome: Outcome) -> dict[str, float | None]:
    """What two measurements of one thing have in common; times and memory are the machine's."""
    names = ("steps", "parameters", "mse_average", "mse_learned", "fidelity", "tv", "crf", "mmd")
    return {name: getattr(outcome, name) for name in names} | dict(outcome.probes)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(line: str, where: str) -> Outcome:
    try:
        data = json.loads(line)
        if data.pop("schema") != SCHEMA:
            raise UserError(f"{where}: results of another schema than {SCHEMA}")
        outcome = _OUTCOME.validate_json(json.dumps(data))
        _ = outcome.setting["teacher"], outcome.key
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = _first_problem(error) if isinstance(error, ValidationError) else str(error)
        names = ", ".join(each.name for each in fields(Outcome))
        raise UserError(f"{where} is no result of a comparison ({said}); a line holds schema, {names}") from error
    return outcome


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}, got {first['input']!r:.60}"
