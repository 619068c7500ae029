"""From a line of a recipe to a source of images.

scenes:seed=1,count=4096        rendered on the fly; also size=224 or 224x320, preset=indoor, cache=true
imagefolder:PATH                every image under a folder; {a,b} braces for several; ?pick=jpg where samples have masks
webdataset:PATH                 tar shards: a file, a folder, a glob, {000..127} braces, or the same at s3://, gs://,
                                https://; ?pick=jpg, and &cache=FOLDER&cache_gib=200 for copies on a fast disk
webdataset:pipe:COMMAND         tar shards that commands write, in sequence; ?pick=jpg&window=1024
hf:NAME_OR_PATH?split=train     also &column=, config=, revision=, data_files=, streaming=true, and when streaming
                                window= (how many images are held, and shuffled among each other)

Several sources at once are a mapping from such lines to weights: {"webdataset:A": 0.7, "imagefolder:B": 0.3}.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from common.errors import UserError, nearest, unknown
from imagery.command_source import CommandSource
from imagery.contracts import SequentialSource, Source
from imagery.hub_sources import WINDOW, HubDataset, HubSource, HubStream
from imagery.local_sources import FolderSource, ScenesSource
from imagery.mixture import Mixture
from imagery.shard_cache import GIB
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
        raise unknown("source of images", spec if not colon else kind, _OPENERS)
    if not colon or not rest:
        raise UserError(f'"{spec}" says where images come from but not which: {kind}:...')
    return _OPENERS[kind](rest)


def summary(source: Source | SequentialSource | Mixture) -> list[str]:
    """What a run says of its images when it starts: how many, what is damaged, and what was left out."""
    if isinstance(source, Mixture):
        return [line for each in source.sources for line in summary(each)]
    count = f"{len(source)} images" if isinstance(source, Source) else "read in sequence"
    notes = [*source.problems[:LISTED], *source.left_out.lines()]
    if len(source.problems) > LISTED:
        notes.insert(LISTED, f"{len(source.problems) - LISTED} more shards are damaged")
    return [f"{source.name}: {count}", *(f"  {note}" for note in notes)]


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


def _open_folder(rest: str) -> Source:
    path, options = _path_and_options("imagefolder", rest, ("pick",))
    return FolderSource(path, **options)


def _open_shards(rest: str) -> Source | SequentialSource:
    command = rest.startswith("pipe:")
    known = ("pick", "window") if command else ("pick", "cache", "cache_gib")
    path, options = _path_and_options("webdataset", rest, known)
    pick, cache, gib = options.get("pick"), options.get("cache"), options.get("cache_gib")
    if command:
        window = _integer("window", options.get("window", str(WINDOW)))
        return CommandSource(path.removeprefix("pipe:"), pick=pick, window=window)
    if (cache is None) != (gib is None):
        raise UserError("webdataset: cache=FOLDER and cache_gib=NUMBER go together: where, and how much at most")
    folder = None if cache is None else Path(cache).expanduser()
    return TarSource(path, pick=pick, cache=folder, max_bytes=0 if gib is None else _integer("cache_gib", gib) * GIB)


def _path_and_options(kind: str, rest: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """'a/b?.tar?pick=jpg' -> ('a/b?.tar', {"pick": "jpg"}). Any other query of a URL stays with it."""
    path, mark, tail = rest.rpartition("?")
    names = [part.partition("=")[0] for part in tail.split("&")]
    if not mark or not re.match(r"[a-z_]+=", tail) or ("://" in path and not set(names) & set(known)):
        return rest, {}
    return path, _options(kind, tail.split("&"), known)


LISTED = 10  #: damaged shards that are named when a run starts
_OPENERS: dict[str, Callable[[str], Source | SequentialSource]] = {
    "scenes": _open_scenes,
    "imagefolder": _open_folder,
    "webdataset": _open_shards,
    "hf": _open_hub,
}


def _options(kind: str, parts: Iterable[str], known: tuple[str, ...]) -> dict[str, str]:
    """["a=1", "b=2"] -> {"a": "1", "b": "2"}; UserError for anything else."""
    options = {}
    for part in parts:
        name, equals, value = part.strip().partition("=")
        if name not in known:
            raise UserError(f'{kind} has no option "{name}"{nearest(name, known)}; it takes: {", ".join(known)}')
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
