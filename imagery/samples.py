"""Which pictures of a sample are its images: `0.jpg` is, a mask `0.seg.png` beside it is not.

A sample is all files of one folder that share their name up to its first dot (the webdataset convention); what follows
is the extension. Where samples have several pictures, the one with a plain extension (`jpg`) is the image and those
with a longer one (`seg.png`) are companions: they are left out of the whole source, counted, and said. Where that does
not decide (`0.jpg` and `0.png`), the user has to say `pick=`; nothing is guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from common.errors import UserError
from imagery.left_out import LeftOut

EVERY = "*"


@dataclass
class Extensions:
    """The extensions of some pictures, which of them stand beside a plain one, and a sample that nothing decides."""

    names: list[str] = field(default_factory=list)  # in order of appearance, lower case
    of: list[int] = field(default_factory=list)  # for each picture the number of its extension
    companions: set[str] = field(default_factory=set)
    undecided: str = ""


def split(name: str) -> tuple[str, str]:
    """'a/b.seg.PNG' -> ('a/b', 'seg.png')."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def extensions_of(pictures: Sequence[str], *, dots_in_names: bool) -> Extensions:
    """Of pictures in one shard or folder. dots_in_names: several pictures without a plain one are no sample."""
    found, numbers = Extensions(), {}
    samples: dict[str, list[str]] = {}
    for name in pictures:
        key, extension = split(name)
        if extension not in numbers:
            numbers[extension] = len(found.names)
            found.names.append(extension)
        found.of.append(numbers[extension])
        samples.setdefault(key, []).append(extension)
    for key, extensions in samples.items():
        if len(extensions) == 1:
            continue
        plain = [each for each in extensions if "." not in each]
        if len(plain) == 1:
            found.companions.update(each for each in extensions if each != plain[0])
        elif (plain or not dots_in_names) and not found.undecided:
            found.undecided = " and ".join(f"{key}.{each}" for each in sorted(extensions)[:3])
    return found


def kept_extensions(source: str, parts: Sequence[Extensions], pick: str | None) -> set[str] | None:
    """The extensions whose pictures are images; None: all. UserError where the user has to say which."""
    if pick == EVERY:
        return None
    known = {name for part in parts for name in part.names}
    if pick is not None:
        picked = {each.strip().lower().removeprefix(".") for each in pick.split(",")}
        if not picked & known:
            raise UserError(
                f"{source}: pick={pick} picks nothing; the pictures' extensions are: {', '.join(sorted(known)[:12])}"
            )
        return picked
    if undecided := next((part.undecided for part in parts if part.undecided), ""):
        raise UserError(
            f"{source}: samples have several pictures ({undecided}); say which are images by their extension, e.g. "
            f"?pick={sorted(known, key=lambda name: (name.count('.'), name))[0]}, or ?pick=* for all of them"
        )
    companions = {name for part in parts for name in part.companions}
    return known - companions if companions else None


def keep(extensions: Extensions, kept: set[str] | None, pictures: Sequence[str], left_out: LeftOut) -> np.ndarray:
    """The places of the pictures that are images; the others are counted."""
    if kept is None:
        return np.arange(len(extensions.of))
    wanted = np.array([name in kept for name in extensions.names], bool)
    numbers = np.array(extensions.of, np.int64)
    for number, name in enumerate(extensions.names):
        if not wanted[number]:
            places = np.flatnonzero(numbers == number)
            left_out.add(f".{name} pictures stand beside the images of samples", pictures[int(places[0])], len(places))
    return np.flatnonzero(wanted[numbers]) if len(numbers) else np.arange(0)
