"""Common style of all pictures: colours and fonts."""

from __future__ import annotations

import colorsys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageFont

Colour = tuple[int, int, int]

INK: Colour = (31, 35, 40)
MUTED: Colour = (110, 118, 129)
PAPER: Colour = (255, 255, 255)
STUDENT: Colour = (31, 111, 210)
TEACHER: Colour = (217, 95, 2)
TRUTH: Colour = (26, 140, 80)

# Easy to distinguish, also in small boxes on photographs; by hue first, by lightness for similar hues.
_PALETTE: tuple[Colour, ...] = (
    (255, 75, 62),
    (28, 140, 255),
    (255, 196, 0),
    (20, 184, 96),
    (217, 70, 239),
    (0, 205, 220),
    (255, 130, 20),
    (124, 92, 255),
    (160, 214, 20),
    (255, 110, 170),
    (0, 128, 128),
    (176, 112, 48),
)
# For thin lines on white: dark enough, and distinguishable with colour blindness as far as eight colours allow.
LINES = ("#1f6fd2", "#d95f02", "#1a8c50", "#c2308e", "#7a5cc7", "#8a6d00", "#0089a8", "#5c6670")
_GOLDEN_TURN = 0.618033988749895


def class_colour(label: int) -> Colour:
    """Return the colour of a class, the same in every picture: a dozen fixed ones, then hues a golden angle apart."""
    if label < len(_PALETTE):
        return _PALETTE[label]
    extra = label - len(_PALETTE)
    lightness, saturation = ((0.76, 0.8), (0.58, 0.75), (0.44, 0.85))[extra % 3]
    r, g, b = colorsys.hls_to_rgb((0.89 + extra * _GOLDEN_TURN) % 1.0, lightness, saturation)
    return round(255 * r), round(255 * g), round(255 * b)


def ink_on(background: Colour) -> Colour:
    """Return near-black or white, whichever is easier to read on a colour (relative luminance of WCAG 2)."""
    linear = [(v / 255 / 12.92) if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if luminance > 0.19 else PAPER


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans from matplotlib, so that pictures look the same on every machine.

    The file is found without importing matplotlib, which a picture of a batch does not need otherwise.
    """
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    package = find_spec("matplotlib")
    assert package is not None
    assert package.origin is not None
    return ImageFont.truetype(Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / name, size)


def hexadecimal(colour: Colour) -> str:
    """Format a colour as ``#rrggbb``, for charts and pages."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def save_picture(picture: Image.Image, path: str | Path) -> Path:
    """Save a picture; create its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path
