"""From a line of a recipe to a source of images.

scenes:seed=1,count=4096        rendered on the fly; also size=224 or 224x320, preset=indoor, cache=true
imagefolder:PATH                every image under a folder; {a,b} braces for several
webdataset:PATH                 tar shards: a file, a folder, a glob, or {000..127} braces
hf:NAME_OR_PATH?split=train     also &column=, config=, revision=, data_files=, streaming=true, and when streaming
                                window= (how many images are held, and shuffled among each other)

Several sources at once are a mapping from such lines to weights: {"webdataset:A": 0.7, "imagefolder:B": 0.3}.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping

from common.errors import UserError
from imagery.contracts import SequentialSource, Source
from imagery.hub_sources import WINDOW, HubDataset, HubSource, HubStream
from imagery.local_sources import FolderSource, ScenesSource
from imagery.mixture import Mixture
from imagery.tar_source import TarSource


def open_sources(train: str | Mapping[str, float]) -> Source | SequentialSource | Mixture:
    """Open one source, or several with weights; UserError as `open_source`."""
    if isinstance(train, str):
        return open_source(train)
    return Mixture({spec: open_source(spec) for spec in train}, train)


def open_source(spec: str) -> Source | SequentialSource:
    """Open the images that `spec` (forms above) names. UserError if the form is wrong or there is nothing there."""
    kind, colon, rest = spec.partition(":")
    if kind not in _OPENERS:
        raise UserError(f'unknown source of images "{spec}"{_nearest(kind, _OPENERS)}; known: {", ".join(_OPENERS)}')
    if not colon or not rest:
        raise UserError(f'"{spec}" says where images come from but not which: {kind}:...')
    return _OPENERS[kind](rest)


def _open_scenes(rest: str) -> Source:
    options = _options("scenes", rest.split(","), ("seed", "count", "size", "preset", "cache"))
    if not {"seed", "count"} <= options.keys():
        raise UserError(f'scenes needs a seed and a count, e.g. "scenes:seed=1,count=4096", got "scenes:{rest}"')
    size = re.fullmatch(r"(\d+)(?:x(\d+))?", options.get("size", "224"))
    if size is None:
        raise UserError(f'scenes: size is PIXELS or HEIGHTxWIDTH, got "{options["size"]}"')
    height, width = int(size[1]), int(size[2] or size[1])
    seed, count = _integer("seed", options["seed"]), _integer("count", options["count"])
    cache = _truth("cache", options.get("cache", "false"))
    return ScenesSource(seed, count, height, width, preset=options.get("preset", "default"), cache=cache)


def _open_hub(rest: str) -> Source | SequentialSource:
    name, _, query = rest.partition("?")
    known = ("split", "column", "config", "revision", "data_files", "streaming", "window")
    options = _options("hf", query.split("&") if query else [], known)
    streaming = _truth("streaming", options.pop("streaming", "false"))
    window = options.pop("window", None)
    column = options.pop("column", None)
    if window is not None and not streaming:
        raise UserError("hf: window is for streaming=true; without it every image can be reached at once")
    dataset = HubDataset(name, **options)
    if not streaming:
        return HubSource(dataset, column)
    return HubStream(dataset, column, WINDOW if window is None else _integer("window", window))


_OPENERS: dict[str, Callable[[str], Source | SequentialSource]] = {
    "scenes": _open_scenes,
    "imagefolder": FolderSource,
    "webdataset": TarSource,
    "hf": _open_hub,
}


def _options(kind: str, parts: Iterable[str], known: tuple[str, ...]) -> dict[str, str]:
    """["a=1", "b=2"] -> {"a": "1", "b": "2"}; UserError for anything else."""
    options = {}
    for part in parts:
        name, equals, value = part.strip().partition("=")
        if name not in known:
            raise UserError(f'{kind} has no option "{name}"{_nearest(name, known)}; it takes: {", ".join(known)}')
        if not equals or not value:
            raise UserError(f'{kind}: write {name}=VALUE, got "{part}"')
        options[name] = value
    return options


def _integer(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UserError(f'{name} is a whole number, got "{value}"') from None


def _truth(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise UserError(f'{name} is true or false, got "{value}"')
    return value.lower() == "true"


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f' (did you mean "{close[0]}"?)' if close else ""
