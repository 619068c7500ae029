"""Backbone nodes that came with a file (student, adapter, checkpoint, model card): data, never a wish to run or read.

A file may come from anywhere, so what it names is held to a list of what is harmless: a library of ours with a model's
name and plain settings. Code (`class:`, `torch_hub:`, `trust_remote_code`, packages of others), files of weights,
absolute or climbing paths and addresses are for the one who types them: the message says where to type them.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from common.errors import UserError
from teachers.registry import parse_spec

BackboneNode = str | dict[str, Any]
#: Loaders that read weights as data alone, whatever name they are given.
LIBRARIES = ("timm", "open_clip", "transformers", "tiny", "sharp", "run")
#: Options that are settings. Everything else a node can say names a file, a device or code.
SETTINGS = (
    "digest", "pretrained", "image_size", "patch_size", "summary", "spatial", "resizable", "mean", "std", "licence",
    "model_args", "chunk", "fit", "overlap", "max_memory", "dtype", "passes", "published_views",
    "adapter_dtype",
)  # fmt: skip
#: Arguments of `timm.create_model` that make it read files or a configuration of the file's own.
READING = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_cfg_file", "cache_dir")
PLAIN = re.compile(r"[A-Za-z0-9_.+-]*")
MODEL = re.compile(r"(hf-hub:)?[A-Za-z0-9_.@+-]+(/[A-Za-z0-9_.@+-]+)?(:[A-Za-z0-9_.@+-]+)?")
FOLDER = re.compile(r"(builtin:)?[A-Za-z0-9_.@+= -]+(/[A-Za-z0-9_.@+= -]+)*")


def check_artefact_node(node: Any, source: str, remedy: str) -> BackboneNode:
    """`node` as it is, if nothing in it runs code or reads what it chose itself; else a UserError.

    source: the file it stands in. remedy: how the user can type the node, e.g. "give it as teacher=".
    """
    try:
        problem = _problem(node)
    except UserError as error:
        problem = str(error)
    if problem is not None:
        raise UserError(f"{source} names a backbone that a file may not name: {problem}. {remedy}")
    return node if isinstance(node, str) else dict(node)


def check_artefact_name(name: str, source: str, remedy: str) -> str:
    """A model's name or a relative folder that stands in a file; UserError for paths elsewhere and addresses."""
    if (not MODEL.fullmatch(name) and not FOLDER.fullmatch(name)) or _leaves(name):
        raise UserError(f'{source} names "{name:.80}", a path or an address, which a file may not choose. {remedy}')
    return name


def portable_node(node: str | Mapping[str, Any]) -> BackboneNode:
    """A node as it is written into a file: names of files and folders of this machine lose the folders they lie in."""
    if isinstance(node, str):
        prefix, colon, rest = node.partition(":")
        return f"{prefix}{colon}{_last(rest)}"
    return {key: portable(value) for key, value in node.items()}


def portable(value: Any) -> Any:
    """As `portable_node`, for plain data of any depth: every text in it that is a path, or a PREFIX: with a path."""
    if isinstance(value, str):
        return _last(value) if _leaves(value) else portable_node(value)
    if isinstance(value, Mapping):
        return {key: portable(inner) for key, inner in value.items()}
    return [portable(inner) for inner in value] if isinstance(value, list | tuple) else value


def _last(text: str) -> str:
    """<local>/NAME for an absolute path, `~/...` or `../...`, which no file may name; other texts as they are."""
    return f"<local>/{PurePosixPath(text).name}" if _leaves(text) else text


def _leaves(text: str) -> bool:
    """Whether a path is absolute on some system, or climbs out of where it starts."""
    climbs = ".." in PurePosixPath(text).parts or ".." in PureWindowsPath(text).parts
    return climbs or text.startswith(("/", "~", "\\")) or bool(PureWindowsPath(text).drive)


def _problem(node: Any) -> str | None:
    """What is wrong with a node, None where nothing is."""
    if not isinstance(node, str | Mapping):
        return f"{node!r:.80} is no backbone node"
    if isinstance(node, Mapping) and not all(isinstance(key, str) for key in node):
        return "its options have no names"
    prefix, rest, options = parse_spec(node)
    if prefix not in LIBRARIES:
        return f'"{prefix}:{rest:.60}" is code to run'
    if not (FOLDER if prefix in ("sharp", "run") else MODEL).fullmatch(rest) or _leaves(rest):
        return f'"{prefix}:{rest:.60}" is a path or an address'
    for option, value in options.items():
        if option not in SETTINGS:
            return f'it sets "{option}"'
        if option != "licence" and not _is_setting(value):  # a licence is a text that is only ever printed
            return f'the value of "{option}" is no plain setting ({value!r:.60})'
    reading = [name for name in READING if name in (options.get("model_args") or {})]
    return f'model_args sets "{reading[0]}"' if reading else None


def _is_setting(value: Any) -> bool:
    """Numbers, truth values, single words, and lists and mappings of these."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_setting(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(_is_setting(inner) for inner in value)
    if isinstance(value, str):
        return bool(PLAIN.fullmatch(value.removeprefix("sha256:")))
    return value is None or isinstance(value, bool | int | float)
