"""Brightness of 16-bit pictures, which shows whether their values use all bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from locdistill.annotations.files import in_threads
from locdistill.errors import ImageError
from locdistill.images import wide_range

DARK = 8
"""Share of the range, as 1 / DARK, below which all values of dark pictures lie."""


def describe_brightness(paths: Sequence[Path], bits: int | None) -> tuple[str, bool]:
    """Describe the range of values of the 16-bit grayscale pictures among image files.

    Args:
        paths: The image files; of others than 16-bit ones only the header is read, and unreadable ones are passed over.
        bits: Setting ``data.bits``.

    Returns:
        One line, empty without such pictures; and whether it is a warning: that values use a small part of the range,
        or more than it.
    """
    ranges = [found for found in in_threads(_range, paths, label="looking at brightness") if found is not None]
    if not ranges:
        return "", False
    low, top, limit = min(low for low, _ in ranges), max(high for _, high in ranges), 2 ** (bits or 16) - 1
    line = f"{len(ranges)} pictures of 16 bits have values from {low} to {top}, of 0 to {limit}"
    used = max(8, top.bit_length())
    if top > limit:
        return f"{line}: the larger ones become white; set data.bits={min(used, 16)}", True
    if DARK * top < limit:
        return f"{line}, and so become nearly black; set data.bits={used}", True
    return line, False


def _range(path: Path) -> tuple[int, int] | None:
    try:
        return wide_range(path)
    except ImageError:
        return None
