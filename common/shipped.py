"""Recipes and suites that ship with the program, found by name from any directory."""

import difflib
from pathlib import Path

from common.errors import UserError

FOLDER = Path(__file__).parents[1] / "recipes"
PREFIX = "recipes/"  #: a shipped name may be written as its path in a checkout


def shipped_recipes() -> list[str]:
    """Their names, e.g. "quickstart.yaml" and "suites/embedded.yaml"."""
    return sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))


def find_recipe(name: str | Path, folder: str = "") -> Path:
    """The file behind a name: as seen from the working directory, else the shipped one of that name.

    UserError names the nearest of those that ship in `folder`, or all of them where none is near.
    """
    path = Path(name)
    if is_there(path):
        return path
    short, shipped = path.as_posix().removeprefix("./").removeprefix(PREFIX), shipped_recipes()
    if short in shipped:  # no absolute path is
        return FOLDER / short
    typed = short.rpartition("/")[0] + "/"  # of "suites/nosuch.yaml" the suites are the near ones
    if not folder and any(each.startswith(typed) for each in shipped):
        folder = typed
    known = [each for each in shipped if each.startswith(folder) and "/" not in each.removeprefix(folder)]
    stems = {Path(each).stem: each for each in known}
    near = difflib.get_close_matches(path.stem, stems, n=1, cutoff=0.5)
    hint = f' (did you mean "{stems[near[0]]}"?)' if near else f": {', '.join(known)}"
    raise UserError(f"cannot read recipe {str(name)!r:.200}: no such file, here or among those that ship{hint}")


def is_there(path: Path) -> bool:
    """Whether there is a file; not for a name that no file can have (a NUL in it, too long)."""
    try:
        return path.is_file()
    except (ValueError, OSError):
        return False
