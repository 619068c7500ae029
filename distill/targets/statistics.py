"""PHI-S and dispersion statistics of an earlier run, in the place of estimating them (`normaliser.load`)."""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.atomic import recover, replacing_folder
from common.checksums import Damaged, check_file, check_folder, seal
from common.errors import UserError
from common.json_files import read_json_object, write_json
from common.step_folders import StepFolders
from common.tensor_files import write_tensors
from distill.targets.targets import Targets

TARGETS = "targets.safetensors"  #: in a checkpoint
FITTED = "normaliser"  #: folder in a run, written once they are estimated
HINT = "normaliser.load takes a run's folder, one of its checkpoints, or a targets.safetensors"


def find(path: Path) -> Path:
    """The file behind a run's folder (what it fitted, else its newest checkpoint), a checkpoint, or itself."""
    if path.is_file():
        return path
    folders = [path, path / FITTED, *reversed(StepFolders(path / "checkpoints", keep=1).all())]
    for candidate in (folder / TARGETS for folder in folders):
        if candidate.is_file():
            return candidate
    raise UserError(f"normaliser.load: no {TARGETS} at {path}; {HINT}")


def load(path: Path, targets: Targets) -> dict[str, Tensor]:
    """The statistics of all teachers of `targets`; UserError where they are of other teachers, or damaged."""
    file = find(path)
    try:
        check_file(file)
        state = load_file(file)
    except (SafetensorError, Damaged) as error:
        raise UserError(f"normaliser.load: {file} cannot be read: {error}; {HINT}") from error
    _check_digests(file, targets)
    own = targets.normaliser_state()
    for name in targets.teachers:
        for key, tensor in own.items():
            if key.startswith(f"{name}.") and (key not in state or state[key].shape != tensor.shape):
                raise UserError(f"normaliser.load: {file} has no statistics of teacher {name} with {key} of its size")
    return {key: value for key, value in state.items() if key.split(".", 1)[0] in targets.teachers}


def keep_fitted(run: Path, identity: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write what a run has just estimated to RUN/normaliser, for its own next start and for `normaliser.load`."""
    with replacing_folder(run / FITTED) as folder:
        write_tensors(folder / TARGETS, state)
        write_json(folder / "state.json", {"identity": dict(identity)})
        seal(folder)


def fitted_before(run: Path, identity: Mapping[str, Any], *, main: bool = True) -> dict[str, Tensor] | None:
    """What `keep_fitted` wrote for a run of this very identity; None where there is nothing, or of another run.

    None where it is damaged, which the `main` process says: the same images give the same numbers again.
    """
    folder = recover(run / FITTED)
    if not folder.is_dir():
        return None
    if (damage := _damage(folder)) is not None:
        if main:
            print(f"{folder} is damaged ({damage}); estimating anew", file=sys.stderr)
        return None
    if read_json_object(folder / "state.json").get("identity") != dict(identity):
        return None
    return load_file(folder / TARGETS)


def mend_fitted(run: Path, identity: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write it again from a checkpoint's state, and say so, where it is damaged: other runs may load it."""
    folder = recover(run / FITTED)
    if folder.is_dir() and (damage := _damage(folder)) is not None:
        print(f"{folder} is damaged ({damage}); written again from the checkpoint", file=sys.stderr)
        keep_fitted(run, identity, state)


def _damage(folder: Path) -> str | None:
    try:
        check_folder(folder)
    except Damaged as damage:
        return str(damage)
    return None


def digest(path: Path) -> str:
    """Of the statistics' bytes: part of what decides a run's numbers."""
    return "sha256:" + hashlib.sha256(find(path).read_bytes()).hexdigest()


def _check_digests(file: Path, targets: Targets) -> None:
    """A file in a checkpoint has beside it the digests of the teachers it was estimated on."""
    beside = file.with_name("state.json")
    known: dict[str, Any] = read_json_object(beside).get("identity", {}) if beside.is_file() else {}
    for key, ours in targets.digests().items():
        if key.startswith("digest of teacher ") and known.get(key, ours) != ours:
            raise UserError(
                f"normaliser.load: {file} was estimated on other weights of {key.removeprefix('digest of ')}"
            )
