"""Mutated recipes and suites through the loading paths of the four commands: words, or a recipe that makes sense.

    python -m tests.fuzz_recipes --count 1000 --seed 0 [--show] [--deep]

prints how many were accepted, refused, slow (in processor time), and what was raised otherwise; with --show what was
accepted. A recipe's backbones and places are judged when they are loaded: with --deep those of what was accepted are
asked for too, as the commands do before the first step (set HF_HUB_OFFLINE=1, or it downloads).
"""

import argparse
import functools
import json
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.recipes import load_recipe
from distill.preflight import find_missing
from distill.recipe import read, read_arms
from distill.schedule import schedule
from eval_suite.data_check import check_suite
from eval_suite.suite import Suite, load_suite
from featsharp_adapter.recipe import AdapterRecipe
from imagery.sources import open_sources
from teachers.registry import load_backbone

RECIPES = Path(__file__).parents[1] / "recipes"
SLOW_SECONDS = 5.0
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 10**6, 10**12, 2**63, 10**400, -(10**9), 0.5, -0.5, 1e-30, 1e30, 1e300,
    float("nan"), float("inf"), float("-inf"), "", " ", "x", "nan", "inf", "1e400", "true", "keys", "train", "forward",
    "../../up", "/etc/passwd", "a/b", ".hidden", "a.b", "~", "nul\x00l", "line\nbreak", "é", "\u202e", "x" * 5000,
    [], [1], [1, 2], [0, 0], [2, 1], [True, False], ["x"], [[1]], {}, {"x": 1}, {"": 1}, {"keys": {}}, [None], "none",
    "class:os.system", "sharp:", "timm:", "tiny:clip", "scenes:", "folder:/", "*", "native", "auto", "on", "2020-01-01",
]  # fmt: skip
TEXTS = [
    "extends: {path}\n",
    "extends: [a, b]\n",
    "extends: 5\n",
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n",
    "a: &a {b: *a}\n",
    "a: " + "[" * 20_000 + "]" * 20_000 + "\n",
    "a: " + "{a: " * 5_000 + "1" + "}" * 5_000 + "\n",
    "".join(" " * depth + "a:\n" for depth in range(600)),
    "a: [" + "1," * 120_000 + "]\n",
    "a: 2001-99-99\n",
    "a: !!python/object/apply:os.system [ls]\n",
    "a: !!binary zzz\n",
    "a: !!set {b, c}\n",
    "? [a, b]\n: 1\n",
    "? {a: b}\n: 1\n",
    "yes: 1\n",
    "1.5: 1\n",
    "null: 1\n",
    "- a\n",
    "text\n",
    "",
    "a: 1\n---\nb: 2\n",
    "\ta: 1\n",
    'a: "\\ud800"\n',
    "<<: {a: 1}\n",
    "<<: 5\n",
    "a: " + "9" * 10_000 + "\n",
    "a: 1:2:3:4:5:6\n",
    "%YAML 9.9\n---\na: 1\n",
    "a: *b\n",
    "a: &x 1\nb: &x 2\nc: *x\n",
]
BYTES = [
    b"\xff\xfe",
    b"a: \xe9\n",
    b"\x00",
    "é: 1".encode("utf-16"),
    b"\xef\xbb\xbfa: 1\n",
    b"a: \x80\n",
    b"\xed\xa0\x80: 1",
]


def command_of(path: Path) -> tuple[str, Callable[[Path, list[str]], Any]]:
    """Which command takes a shipped file, and how it loads it."""
    if "adapters" in path.parts:
        return "train", lambda file, overrides: load_recipe(AdapterRecipe, file, overrides)
    if "suites" in path.parts:
        return "eval_suite", load_suite
    return "run and ablate", load_distillation


def load_distillation(path: Path, overrides: list[str]) -> Any:
    """What run.py and ablate.py read before anything is loaded."""
    recipe = read(path, overrides)
    schedule(recipe)
    for arm in read_arms(path, overrides).values() if recipe.arms else ():
        schedule(arm)
    return recipe


@dataclass(frozen=True)
class Outcome:
    """What became of a mutated file. error: a traceback, where it was neither accepted nor refused in words."""

    what: str
    accepted: bool
    seconds: float
    error: str = ""
    said: str = ""


def places(node: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every value in plain data."""
    items = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    return [place for key, value in items for place in [(*here, key), *places(value, (*here, key))]]


def mutate(data: Any, draw: random.Random) -> tuple[bytes, str]:
    """The bytes of a file with one thing changed, and what that is."""
    kind = draw.choice(["value", "value", "value", "value", "key", "remove", "add", "twice", "text", "bytes"])
    place = draw.choice(places(data))
    above = data
    for part in place[:-1]:
        above = above[part]
    dotted = ".".join(map(str, place))
    if kind == "value":
        above[place[-1]] = draw.choice(VALUES)
        return dumped(data), f"{dotted} = {above[place[-1]]!r:.60}"
    if kind == "key" and isinstance(above, dict):
        name = draw.choice([*map(str, VALUES), str(place[-1]) + "s", str(place[-1])[:-1]])
        above[name] = above.pop(place[-1])
        return dumped(data), f"{dotted} renamed to {name!r:.60}"
    if kind == "add" and isinstance(above, dict):
        above[draw.choice(["more", "keys", "extends", *map(str, VALUES)])] = draw.choice(VALUES)
        return dumped(data), f"added beside {dotted}: {list(above.items())[-1]!r:.80}"
    if kind == "twice":
        key = draw.choice(list(data))
        return dumped(data) + dumped({key: data[key]}), f"{key} twice"
    if kind == "text":
        text = draw.choice(TEXTS)
        return (dumped(data) if draw.random() < 0.5 else b"") + text.encode(
            "utf-8", "surrogatepass"
        ), f"text {text!r:.60}"
    if kind == "bytes":
        whole, extra = dumped(data), draw.choice(BYTES)
        at = draw.choice([0, len(whole), draw.randrange(len(whole))])
        return whole[:at] + extra + whole[at:], f"bytes {extra!r} at {at}"
    del above[place[-1]]
    return dumped(data), f"{dotted} removed"


def dumped(data: Any) -> bytes:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


def ask(recipe: Any) -> None:
    """Load what a recipe or suite names; UserError for what cannot be had or makes no sense."""
    if isinstance(recipe, Suite):
        problems = [str(each) for each in check_suite(recipe, thorough=False) if each.problem]
    elif isinstance(recipe, AdapterRecipe):
        had(json.dumps(recipe.teacher))
        open_sources(recipe.data.train)
        problems = []
    else:
        problems = [str(each) for each in find_missing([recipe])]
        for teacher in recipe.teachers.values():
            had(json.dumps(teacher.backbone))
    if problems:
        raise UserError("; ".join(problems))


@functools.cache
def had(node: str) -> None:
    """Load a backbone, or know that it loads; what is refused is refused again."""
    load_backbone(json.loads(node))


def try_one(original: Path, folder: Path, draw: random.Random, deep: bool = False) -> Outcome:
    """Change one thing in a copy of a shipped file, or lay one override over it, and load it."""
    name, load = command_of(original)
    file, overrides = folder / original.relative_to(RECIPES), []
    before = file.read_bytes()
    data = yaml.safe_load(before)
    if draw.random() < 0.2:
        place = ".".join(map(str, draw.choice(places(data))))
        text = yaml.safe_dump(draw.choice(VALUES), default_flow_style=True).removesuffix("\n").removesuffix("...")
        overrides = [f"{place}={text}"]
        content, what = before, f"override {overrides[0]!r:.80}"
    else:
        content, what = mutate(data, draw)
    what = f"{name}: {original.relative_to(RECIPES)}: {what}"
    file.write_bytes(content)
    start = time.process_time()
    try:
        recipe = load(file, overrides)
        taken = time.process_time() - start
        if deep:
            ask(recipe)
        return Outcome(what, True, taken)
    except UserError as error:
        return Outcome(what, False, time.process_time() - start, said=str(error))
    except BaseException:
        return Outcome(what, False, time.process_time() - start, traceback.format_exc())
    finally:
        file.write_bytes(before)


def fuzz(count: int, seed: int, deep: bool = False) -> list[Outcome]:
    """`count` mutations, decided by `seed`."""
    draw = random.Random(seed)
    files = sorted(RECIPES.rglob("*.yaml"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "recipes"
        shutil.copytree(RECIPES, folder)
        return [try_one(draw.choice(files), folder, draw, deep) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print what was accepted")
    parser.add_argument("--deep", action="store_true", help="also load what the accepted ones name")
    options = parser.parse_args()
    found = fuzz(options.count, options.seed, options.deep)
    errors, slow = [each for each in found if each.error], [each for each in found if each.seconds > SLOW_SECONDS]
    accepted = [each for each in found if each.accepted]
    for each in errors:
        print(f"{each.what}\n{each.error}")
    for each in slow:
        print(f"slow, {each.seconds:.1f} s: {each.what}")
    for each in accepted if options.show else ():
        print(f"accepted: {each.what}")
    longest = max(each.seconds for each in found)
    words = len(found) - len(accepted) - len(errors)
    print(
        f"{len(found)} mutations: {len(accepted)} accepted, {words} refused in words, {len(errors)} tracebacks, "
        f"{len(slow)} over {SLOW_SECONDS:g} s (longest {longest:.2f} s)"
    )


if __name__ == "__main__":
    main()
