"""A report page: text, tables and pictures in a single self-contained HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from locdistill.files import replacing
from locdistill.images import open_picture


@dataclass(frozen=True)
class Text:
    """Plain text; a blank line starts a new paragraph.

    Attributes:
        text: The text; markup in it is escaped.
        note: Whether to use small, muted type, for conditions and caveats.
    """

    text: str
    note: bool = False


@dataclass(frozen=True)
class TableBlock:
    """Rows of formatted strings; the first column is left-aligned, the others right-aligned.

    Attributes:
        header: One heading per column.
        rows: Cells, row by row.
        caption: Caption above the table.
        emphasis: Indices of rows in bold.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    emphasis: Sequence[int] = ()


@dataclass(frozen=True)
class Picture:
    """A picture, embedded in the page.

    Attributes:
        image: A picture, or the path of a PNG or JPEG file.
        caption: Caption below the picture; also its alternative text for screen readers.
        photo: Whether to store the picture as JPEG, at a tenth of the size, instead of PNG (charts and drawings).
        density: Pixels of the picture per pixel of the page; 2 for the charts of this package.
    """

    image: Image.Image | str | Path
    caption: str = ""
    photo: bool = False
    density: float = 1.0


@dataclass(frozen=True)
class Preformatted:
    """Text with significant lines and spaces, such as a settings file."""

    text: str


Block: TypeAlias = Text | TableBlock | Picture | Preformatted


@dataclass(frozen=True)
class Section:
    """A heading and its content."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


def render_page(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """Render the page as HTML: no script or external resource, the system's light or dark theme, all text escaped."""
    contents = "".join(f'<a href="#s{i}">{escape(section.title)}</a>' for i, section in enumerate(sections))
    parts = []
    for i, section in enumerate(sections):
        blocks = "\n".join(map(_block, section.blocks))
        parts.append(f'<section id="s{i}">\n<h2>{escape(section.title)}</h2>\n{blocks}\n</section>')
    return _PAGE.format(
        title=escape(title),
        style=_STYLE,
        subtitle=f"<p class=subtitle>{escape(subtitle)}</p>" if subtitle else "",
        contents=f"<nav>{contents}</nav>" if len(sections) > 2 else "",
        body="\n".join(parts),
    )


def write_page(path: str | Path, title: str, sections: Sequence[Section], *, subtitle: str = "") -> Path:
    """Write ``render_page`` to a file atomically; its folder is created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(render_page(title, sections, subtitle=subtitle), encoding="utf-8")
    return path


def _block(block: Block) -> str:
    match block:
        case Text():
            kind = " class=note" if block.note else ""
            paragraphs = [part.strip() for part in block.text.split("\n\n") if part.strip()]
            return "\n".join(f"<p{kind}>{escape(part)}</p>" for part in paragraphs)
        case TableBlock():
            return _table(block)
        case Preformatted():
            return f"<pre>{escape(block.text)}</pre>"
        case Picture():
            caption = f"<figcaption>{escape(block.caption)}</figcaption>" if block.caption else ""
            width, source = _encode(block)
            return f'<figure><img src="{source}" width="{width}" alt="{escape(block.caption)}">{caption}</figure>'


def _table(table: TableBlock) -> str:
    heading = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = []
    for i, row in enumerate(table.rows):
        kind = " class=sum" if i in table.emphasis else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    body = "\n".join(rows)
    return f"<div class=scroll><table>{caption}<thead><tr>{heading}</tr></thead>\n<tbody>{body}</tbody></table></div>"


def _encode(picture: Picture) -> tuple[int, str]:
    """Encode a picture; return its width on the page and its data URL."""
    image = picture.image
    if not isinstance(image, Image.Image):
        with open_picture(image) as opened:
            return _encode(replace(picture, image=opened))
    buffer = io.BytesIO()
    if picture.photo:
        image.convert("RGB").save(buffer, "JPEG", quality=88)
    else:
        image.save(buffer, "PNG", optimize=True)
    kind, content = "jpeg" if picture.photo else "png", base64.b64encode(buffer.getvalue()).decode("ascii")
    return round(image.width / picture.density), f"data:image/{kind};base64,{content}"


_STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
"""Look of all pages; the monitor serves the same file."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1>{subtitle}{contents}</header>
<main>
{body}
</main>
</body>
</html>
"""
