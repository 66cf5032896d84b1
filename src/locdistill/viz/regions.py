"""Picture of the locations of the pyramid in a distillation term's region, with their weights."""

from __future__ import annotations

from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageEnhance
from torch import Tensor

from locdistill.geometry.grid import Grid
from locdistill.viz.draw import Layer, draw_layers, to_picture
from locdistill.viz.mosaic import mosaic
from locdistill.viz.style import Colour

MAIN: Colour = (255, 138, 30)
VALUABLE: Colour = (40, 190, 255)
_LEGEND = "orange: main region; blue: valuable localization region; area of a dot: weight"


def draw_regions(
    image: UInt8[Tensor, "3 h w"],
    grid: Grid,
    *,
    main: Float[Tensor, " l"],
    valuable: Float[Tensor, " l"],
    truth: Layer | None = None,
    first_level: int = 3,
) -> Image.Image:
    """Draw one panel per pyramid level: the main region in orange, the valuable one in blue, a dot per location.

    The area of a dot is proportional to its weight; the largest weight of a region fills the cell of a location (up to
    a limit on coarse levels). Locations of weight 0 are small grey points. For a location in both regions the smaller
    dot is drawn on the larger one.

    Args:
        image: RGB without padding; shown darkened.
        grid: Locations, in pixels of the image; those outside it are not shown.
        main: Weights of the main region.
        valuable: Weights of the valuable localization region.
        truth: Boxes to show behind the dots.
        first_level: Number of the finest level, for the captions (P3 and so on).
    """
    factor = max(1, -(-360 // max(image.shape[1:])))
    picture = ImageEnhance.Brightness(to_picture(image)).enhance(0.45)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    if truth is not None:
        picture = draw_layers(picture, [truth.scaled(factor)], classes=None)
    weights = {MAIN: main.detach().float().cpu(), VALUABLE: valuable.detach().float().cpu()}
    shares = {colour: w.clamp(min=0) / w.max().clamp(min=1e-12) if len(w) else w for colour, w in weights.items()}
    pictures, captions, start = [], [], 0
    for level, (size, stride) in enumerate(zip(grid.level_sizes, grid.level_strides, strict=True)):
        here = slice(start, start + size)
        points = grid.points[here].cpu() * factor
        counts = [int((w[here] > 0).sum()) for w in weights.values()]
        pictures.append(
            _panel(picture, points, {colour: share[here] for colour, share in shares.items()}, stride * factor)
        )
        captions.append(f"P{first_level + level}, stride {stride}: main {counts[0]}, valuable {counts[1]}")
        start += size
    return mosaic(pictures, captions, columns=3, cell=max(picture.size), title=_LEGEND)


def _panel(
    picture: Image.Image, points: Float[Tensor, "k 2"], shares: dict[Colour, Float[Tensor, " k"]], stride: int
) -> Image.Image:
    # Drawn four times larger and downsampled, for round dots.
    fine = 4
    overlay = Image.new("RGBA", (picture.width * fine, picture.height * fine), (0, 0, 0, 0))
    canvas = ImageDraw.Draw(overlay)
    largest = min(0.46 * stride, 13.0)
    dots = []
    for k, (x, y) in enumerate(points.tolist()):
        if x < picture.width and y < picture.height:
            mine = [(largest * float(share[k]) ** 0.5, colour) for colour, share in shares.items() if share[k] > 0]
            dots += [(x, y, radius, (*colour, 235)) for radius, colour in mine]
            if not mine:
                dots.append((x, y, min(0.08 * stride, 1.2), (200, 205, 210, 130)))
    for x, y, radius, colour in sorted(dots, key=lambda dot: -dot[2]):
        canvas.ellipse([fine * v for v in (x - radius, y - radius, x + radius, y + radius)], fill=colour)
    small = overlay.resize(picture.size, Image.Resampling.BOX)
    return Image.alpha_composite(picture.convert("RGBA"), small).convert("RGB")
