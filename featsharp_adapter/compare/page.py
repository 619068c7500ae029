"""One HTML file of a comparison: a table for each setting, the pictures within, nothing from elsewhere."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.atomic import write_text
from common.digests import digest_value
from featsharp_adapter.compare.table import Table, beside, cells_of

TITLE = "Upsamplers compared"
WORDS = "Held-out images, the teacher's map, and every upsampler's, in one colour basis."
STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
color-scheme: light dark } table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
td, th { padding: .25rem .6rem; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap }
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left } img { max-width: 100% } figure { margin: 1rem 0 }"""


def write_page(tables: Sequence[Table], pictures: Mapping[str, Path], out: Path) -> Path:
    """OUT.html. pictures: a PNG by the digest of a table's setting."""
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{TITLE}</title><style>{STYLE}</style>"]
    parts.append(f"<h1>{TITLE}</h1><p>± is the standard error over training seeds.</p>")
    for table in tables:
        header, body = cells_of(table.rows)
        parts.append(f"<h2>{html.escape(table.title)}</h2><table>{_line(header, 'th')}")
        parts += [_line(cells, "td") for cells in body]
        parts.append("</table>")
        picture = pictures.get(digest_value(table.setting))
        if picture is not None:
            data = base64.b64encode(picture.read_bytes()).decode()
            shown = f'<img alt="{WORDS}" src="data:image/png;base64,{data}">'
            parts.append(f"<figure>{shown}<figcaption>{WORDS}</figcaption></figure>")
    write_text(beside(out, ".html"), "\n".join(parts))
    return beside(out, ".html")


def _line(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
