"""Checkpoints as folders `step-00000500`: complete and whole, or not used.

A folder is filled under another name, its manifest last, flushed to the disk, and renamed. What has another name than
exactly that is nobody's checkpoint. Damage is found by checksums; then the newest whole one before is used, and the
damaged one stays beside it as `damaged-step-...`.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from common.atomic import WRITING, exchange_folder, flush_tree, recover_all, remove
from common.checksums import Damaged, Entries, check_folder, write_manifest
from common.errors import UserError

_NAME = re.compile(r"step-(\d{8}|[1-9]\d{8,9})")  #: a run has 1e9 steps at most
REMOVING, DAMAGED = ".removing-", "damaged-"


class StepFolders:
    """The checkpoints in a folder, of which the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def all(self) -> list[Path]:
        """Complete ones, oldest first; whether they are whole is not looked at."""
        try:
            found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
            return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))
        except FileNotFoundError:
            return []

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def writing(self, step: int) -> Path:
        """The name to fill a checkpoint under."""
        return self.folder / f"{WRITING}step-{step:08d}"

    def commit(self, step: int, entries: Entries) -> Path:
        """What was filled under `writing(step)` and consists of `entries` becomes the checkpoint of this step."""
        temporary, final = self.writing(step), self.path(step)
        write_manifest(temporary, entries)
        flush_tree(temporary)
        exchange_folder(temporary, final)
        remove(temporary)  # an older one of the same step, exchanged
        for old in self.all()[: -self.keep]:
            # Renamed first: a kill while files disappear must not leave half a checkpoint under its own name.
            doomed = old.rename(self.folder / f"{REMOVING}{old.name}")
            remove(doomed)
        return final

    def tidy(self) -> None:
        """Remove what killed writers left; only while nobody else writes here."""
        if self.folder.is_dir():
            recover_all(self.folder)
            for path in self.folder.iterdir():
                if path.name.startswith((WRITING, REMOVING)):
                    remove(path)

    def newest_whole(self, check: Callable[[Path], str | None] | None = None, *, main: bool = True) -> Path | None:
        """The newest checkpoint without damage, None where there is none at all.

        check: what is wrong with a checkpoint, None for nothing (`problem`); with several processes all must be told
        the same. main: whether this process says what it found, and puts damaged ones aside. UserError when all are
        damaged, for going on from nothing would throw away what was trained.
        """
        problems: list[tuple[Path, str]] = []
        for path in reversed(self.all()):
            reason = (check or problem)(path)
            if reason is None:
                if main:
                    for damaged, why in problems:
                        print(f"{damaged} is damaged ({why}); going on from {path.name}", file=sys.stderr)
                        self._put_aside(damaged)
                return path
            problems.append((path, reason))
        if problems:
            path, why = problems[0]
            raise UserError(
                f"{path} is damaged ({why}), and no older checkpoint is whole; to begin anew delete {self.folder}"
            )
        return None

    def _put_aside(self, path: Path) -> None:
        aside = path.with_name(f"{DAMAGED}{path.name}")
        remove(aside)
        path.rename(aside)


def problem(path: Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with a checkpoint, or with this share of its files; None for nothing. UserError if unreadable."""
    try:
        check_folder(path, share)
    except Damaged as damage:
        return str(damage)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}") from error
    return None
