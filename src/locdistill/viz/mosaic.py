"""Many pictures on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from locdistill.types import Batch
from locdistill.viz.draw import Layer, draw_layers
from locdistill.viz.style import INK, PAPER, font

_GAP = 10
_CAPTION_SIZE = 12


def mosaic(
    pictures: Sequence[Image.Image],
    captions: Sequence[str] = (),
    *,
    columns: int | None = None,
    cell: int = 360,
    title: str = "",
) -> Image.Image:
    """Lay pictures out in rows, each scaled to fit a square cell, with a caption below it.

    Args:
        pictures: Pictures in reading order; an empty list gives a sheet with a note.
        captions: One caption per picture, or none at all; truncated to the width of the cell.
        columns: Pictures per row; None: about as many as rows.
        cell: Side of a cell in pixels; smaller pictures keep their size.
        title: Title of the sheet.

    Raises:
        ValueError: The number of captions is neither 0 nor that of the pictures.
    """
    if captions and len(captions) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures need as many captions, got {len(captions)}")
    if not pictures:
        return _sheet(cell, _GAP, title or "no pictures")
    columns = min(len(pictures), columns or math.ceil(math.sqrt(len(pictures))))
    fitted = []
    for picture in pictures:
        scale = min(1.0, cell / max(picture.size))
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        fitted.append(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    line = _CAPTION_SIZE + 8 if captions else 0
    rows = [range(start, min(start + columns, len(fitted))) for start in range(0, len(fitted), columns)]
    heights = [max(fitted[i].height for i in row) + line for row in rows]
    widths = [max(picture.width for picture in fitted[c::columns]) for c in range(columns)]
    sheet = _sheet(sum(widths) + _GAP * (columns + 1), sum(heights) + _GAP * (len(rows) + 1), title)
    canvas = ImageDraw.Draw(sheet)
    y = sheet.height - sum(heights) - _GAP * len(rows)
    for row, height in zip(rows, heights, strict=True):
        x = _GAP
        for i, width in zip(row, widths, strict=False):
            sheet.paste(fitted[i], (x, y))
            if captions:
                text = _cut(captions[i], width)
                canvas.text((x, y + fitted[i].height + 3), text, fill=INK, font=font(_CAPTION_SIZE))
            x += width + _GAP
        y += height + _GAP
    return sheet


def batch_mosaic(batch: Batch, classes: Sequence[str], *, limit: int = 16, cell: int = 360) -> Image.Image:
    """Draw the images of a training batch after augmentation, without padding, with their training boxes.

    Objects are solid, crowd regions and difficult objects are dashed and grey.
    """
    pictures, captions = [], []
    objects = batch.instances
    for i in range(min(limit, len(batch.images))):
        height, width = (int(v) for v in batch.sizes[i])
        present, ignored = objects.present[i], objects.ignored[i]
        layers = [
            Layer(objects.targets[i][ignored], objects.labels[i][ignored], style="ignored"),
            Layer(objects.targets[i][present], objects.labels[i][present]),
        ]
        # Tags must be legible at the size of the cell, so the picture is fitted first.
        scale = min(1.0, cell / max(height, width))
        image = Image.fromarray(batch.images[i, :, :height, :width].permute(1, 2, 0).contiguous().cpu().numpy())
        image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)
        layers = [layer.scaled(scale) for layer in layers]
        pictures.append(draw_layers(image, layers, classes=classes, min_side=cell // 2))
        captions.append(f"image {int(batch.image_ids[i])}, {width} x {height}, objects: {int(present.sum())}")
    return mosaic(pictures, captions, cell=cell)


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Join pictures from left to right."""
    sheet = Image.new(
        "RGB", (sum(p.width for p in pictures) + 4 * len(pictures) - 4, max(p.height for p in pictures)), PAPER
    )
    x = 0
    for picture in pictures:
        sheet.paste(picture, (x, 0))
        x += picture.width + 4
    return sheet


def below(sheets: Sequence[Image.Image]) -> Image.Image:
    """Join sheets from top to bottom."""
    together = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), PAPER)
    y = 0
    for sheet in sheets:
        together.paste(sheet, (0, y))
        y += sheet.height
    return together


def _sheet(width: int, height: int, title: str) -> Image.Image:
    face = font(14, bold=True)
    top = 14 + 2 * _GAP if title else 0
    sheet = Image.new("RGB", (max(width, round(face.getlength(title)) + 2 * _GAP), height + top), PAPER)
    ImageDraw.Draw(sheet).text((_GAP, _GAP), title, fill=INK, font=face)
    return sheet


def _cut(text: str, width: int) -> str:
    face = font(_CAPTION_SIZE)
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
