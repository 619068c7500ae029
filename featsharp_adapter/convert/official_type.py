"""The type of a published FeatSharp checkpoint: "featsharp.no-ln.wnd-5.inputs-jbu-tiles"."""

import re
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from featsharp_adapter.model.fusion import BlockKind

#: What the published program does where the type says nothing.
INPUTS, WINDOW = ("jbu", "tiles"), 7
CONVERTIBLE = ("jbu", "bilinear", "tiles", "rgb")
#: Parts of a type that cannot be converted, and why.
REFUSED = {
    "rope-qk": "which channels its rotary positions turn is not documented",
    "xpos-qk": "which channels its rotary positions turn is not documented",
    "no-proj": "what it leaves out is not documented",
}


@dataclass(frozen=True)
class ParsedType:
    """What the parts of a type mean for our FeatSharp."""

    inputs: list[str]
    norm: bool
    progressive: bool
    block: BlockKind
    window: int


def parse_type(kind: str, source: Path) -> ParsedType:
    """UserError, naming the part, for what this package has no equal of."""
    name, *flags = kind.split(".")
    if name != "featsharp":
        raise UserError(f"{source}: an upsampler of type {kind} cannot be converted; featsharp and jbu_stack can")
    inputs, window = list(INPUTS), WINDOW
    known = {"no-ln", "prog", "no-attn", "no-ffn"}
    said = [flag.partition("-")[0] if flag.startswith(("inputs-", "wnd-")) else flag for flag in flags]
    if twice := [each for place, each in enumerate(said) if each in said[:place]]:
        raise UserError(f"{source}: type {kind} says {twice[0]} twice")
    for flag in flags:
        if flag.startswith("inputs-"):
            inputs = flag.removeprefix("inputs-").split("-")
        elif size := re.fullmatch(r"wnd-(\d+)", flag):
            window = 2 * (int(size[1]) // 2) + 1  # |distance| <= N // 2
        elif flag not in known:
            why = REFUSED.get(flag, "this package has no equal of it")
            raise UserError(f"{source}: type {kind} cannot be converted: {flag}: {why}")
    for item in inputs:
        if item not in CONVERTIBLE:
            raise UserError(
                f'{source}: type {kind} cannot be converted: input "{item}": its weights are not documented '
                f"({', '.join(CONVERTIBLE)} can be)"
            )
    # Without attention wins where both are left out, as in the published program.
    block: BlockKind = "no_attention" if "no-attn" in flags else "no_ffn" if "no-ffn" in flags else "full"
    return ParsedType(inputs, "no-ln" not in flags, "prog" in flags, block, window)
