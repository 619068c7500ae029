"""The README.md of an adapter folder: what it is for, how it was made, how good it is, how to use it."""

from typing import Any

from featsharp_adapter.adapter.description import AdapterMeta

_CARD = """---
library_name: agglomerate
tags: [feature-upsampling, featsharp]
---
# {title}

Sharpens the feature maps of **{teacher.name}** {factor} times: {grid[0]} x {grid[1]} tokens become
{fine[0]} x {fine[1]}.

| | |
|---|---|
| upsampler | {upsampler}{options} |
| features are normalised by | {normaliser} |
| parameters | {parameters:,} |
| teacher weights | `{teacher.digest}` (any other is refused) |
| teacher, source | {teacher.source} |
| teacher, licence | {teacher.licence}; check that it allows your use of the features |

{fidelity}{training}
## Use

```python
from featsharp_adapter.adapter.adapter import Adapter
from teachers.registry import load_backbone

teacher = load_backbone({node!r})
adapter = Adapter.from_pretrained("FOLDER", teacher.spec)
sharp = adapter(adapter.views(teacher, images), images)  # images [B, 3, H, W] in [0, 1]
```

or as a backbone of its own: `sharp:FOLDER`.
"""


def adapter_card(meta: AdapterMeta, parameters: int) -> str:
    """Markdown; `parameters` is how many there are."""
    grid = meta.teacher.native_grid
    return _CARD.format(
        title=f"{meta.upsampler} {meta.factor}x for {meta.teacher.name}",
        teacher=meta.teacher,
        factor=meta.factor,
        grid=grid,
        fine=(grid[0] * meta.factor, grid[1] * meta.factor),
        upsampler=meta.upsampler,
        options=f" ({_pairs(meta.options)})" if meta.options else "",
        normaliser=meta.normaliser,
        parameters=parameters,
        fidelity=_section("Fidelity on held-out images", meta.fidelity),
        training=_section("Training", meta.training),
        node=meta.teacher_node,
    )


def _section(title: str, facts: dict[str, Any]) -> str:
    if not facts:
        return f"## {title}\n\nNone recorded.\n\n"
    rows = "".join(f"| {key} | {_value(value)} |\n" for key, value in facts.items())
    return f"## {title}\n\n| | |\n|---|---|\n{rows}\n"


def _pairs(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in facts.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return _pairs(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
