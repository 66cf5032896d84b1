"""The plan of image views: what is drawn for each image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from locdistill.data.augment import drawn_colour, drawn_patches
from locdistill.data.samplers import Draw
from locdistill.data.settings import ColourSettings
from locdistill.data.transforms import Mosaic, View, choose_limits, pose
from locdistill.images import ScaledView

MIDDLE = (0.3, 0.7)
"""Smallest and largest share of a mosaic's sides at which it is divided."""
_UNCHANGED = ColourSettings()


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """Parameters of the transforms of each image; the fields correspond to `DataSettings`.

    Attributes:
        sizes: Limits ``(long, short)``.
        mode: Rule of choice between them.
        flip: Probability of a horizontal flip.
        flip_vertical: Probability of a vertical flip.
        turns: Whether images are turned by 0, 1, 2 or 3 right angles.
        rotate: Largest angle of a rotation, in degrees.
        scale: Smallest and largest scale factor on top of the limits.
        translate: Largest shift, as a share of the frame.
        mosaic: Probability of a mosaic.
        mosaic_scale: Smallest and largest scale factor of its images.
        mosaic_off: Share of the ``per_image`` views without a mosaic.
        colour: Largest changes of colours.
        erase: Probability that rectangles are erased.
        images: Number of images in the data set, from which a mosaic is made.
        min_visible: See `View.least`.
        pad_to: Multiple for padded sides.
        bits: Number of bits that the values of 16-bit images use; None: 16.
        seed: Seed of all random choices.
        keep_ignored: Whether to keep crowd regions and difficult objects.
        per_image: Number of views drawn once for each image, from which each draw chooses; None draws a new view each
            time.
        views: Views of evaluation, indexed by ``Draw.turn``; nothing is random then.
    """

    sizes: tuple[tuple[int, int], ...]
    mode: Literal["value", "range"] = "value"
    flip: float = 0.0
    flip_vertical: float = 0.0
    turns: bool = False
    rotate: float = 0.0
    scale: tuple[float, float] | None = None
    translate: float = 0.0
    mosaic: float = 0.0
    mosaic_scale: tuple[float, float] = (0.5, 1.25)
    mosaic_off: float = 0.2
    colour: ColourSettings = _UNCHANGED
    erase: float = 0.0
    images: int = 1
    min_visible: float = 0.5
    pad_to: int = 32
    bits: int | None = None
    seed: int = 0
    keep_ignored: bool = True
    per_image: int | None = None
    views: tuple[ScaledView, ...] = ()

    @property
    def fixed_size(self) -> bool:
        """True if an image always gets the same size, so that it can be cached after resizing."""
        return len(self.sizes) == 1 and self.scale is None and not self.mosaic

    @property
    def ways(self) -> int | None:
        """Number of possible views of an image; None if they cannot be enumerated."""
        if self.per_image is not None:
            return self.per_image
        ranged = self.mode == "range" and len(self.sizes) > 1
        moved = self.rotate or self.scale is not None or self.translate or self.mosaic
        if ranged or moved or self.colour.on or self.erase:
            return None
        return len(self.sizes) * len(self._poses)

    @property
    def _poses(self) -> tuple[tuple[bool, int], ...]:
        """All distinct combinations of flips and turns by right angles."""
        turns = range(4 if self.turns else 1)
        ways = product(turns, _outcomes(self.flip_vertical), _outcomes(self.flip))
        return tuple(dict.fromkeys(pose(flipped=f, upended=u, turns=t) for t, u, f in ways))

    def view(self, draw: Draw) -> View:
        """Return the view of a draw."""
        if self.views:
            scaled = self.views[draw.turn]
            (long, short) = self.sizes[0]
            short, long = scaled.limits(short=short, long=long)
            return View(long, short, scaled.flipped)
        if draw.way is not None:
            return self.all_views(draw.image)[draw.way]
        chance = np.random.default_rng((self.seed, draw.epoch, draw.turn, draw.image))
        if self.per_image is not None:
            views = self.all_views(draw.image)
            views = tuple(view for view in views if view.mosaic is None) if draw.late else views
            return views[int(chance.integers(len(views)))]
        return self._drawn(chance, whole=draw.late)

    def all_views(self, image: int) -> tuple[View, ...]:
        """Return all possible views of an image; ``ways`` is their number."""
        if self.per_image is not None:
            # Independent of the run's seed, so that runs share cache entries; a larger number extends a smaller one.
            chance = np.random.default_rng((image, 1))
            # A share of the views, the first one always, never has a mosaic, for the end of the run.
            parts = [math.ceil(way * self.mosaic_off) for way in range(self.per_image + 1)]
            whole = [way == 0 or parts[way + 1] > parts[way] for way in range(self.per_image)]
            return tuple(self._drawn(chance, whole=own) for own in whole)
        return tuple(View(long, short, *own) for (long, short), own in product(self.sizes, self._poses))

    def _drawn(self, chance: np.random.Generator, *, whole: bool) -> View:
        view = self._drawn_alone(chance)
        if whole or not self.mosaic or chance.random() >= self.mosaic:
            return view
        x, y = chance.uniform(*MIDDLE, size=2).tolist()
        others = chance.integers(self.images, size=3).tolist()
        first = self._scaled_for_mosaic(view, chance)
        more = ((image, self._scaled_for_mosaic(self._drawn_alone(chance), chance)) for image in others)
        return first._replace(mosaic=Mosaic(x, y, tuple(more)))

    def _scaled_for_mosaic(self, view: View, chance: np.random.Generator) -> View:
        zoom = float(np.exp(chance.uniform(*np.log(self.mosaic_scale))))
        window = (float(chance.random()), float(chance.random()))
        return view._replace(zoom=zoom, window=window, shift=(0.0, 0.0), least=self.min_visible)

    def _drawn_alone(self, chance: np.random.Generator) -> View:
        long, short = choose_limits(self.sizes, self.mode, chance)
        flipped = bool(chance.random() < self.flip)
        # Unused settings consume no random numbers, so that other views do not change.
        upended = self.flip_vertical > 0 and bool(chance.random() < self.flip_vertical)
        turns = int(chance.integers(4)) if self.turns else 0
        view = View(long, short, *pose(flipped=flipped, upended=upended, turns=turns))
        if self.rotate:
            view = view._replace(degrees=float(chance.uniform(-self.rotate, self.rotate)))
        if self.scale is not None:
            zoom = float(np.exp(chance.uniform(*np.log(self.scale))))
            view = view._replace(zoom=zoom, window=(float(chance.random()), float(chance.random())))
        if self.translate:
            x, y = chance.uniform(-self.translate, self.translate, size=2).tolist()
            view = view._replace(shift=(x, y))
        if self.colour.on:
            view = view._replace(colour=drawn_colour(self.colour, chance))
        if self.erase and chance.random() < self.erase:
            view = view._replace(patches=drawn_patches(chance))
        return view._replace(least=self.min_visible) if view.cuts else view


def _outcomes(probability: float) -> tuple[bool, ...]:
    """Return the possible outcomes, False and True, of an event with this probability."""
    return tuple(yes for yes in (False, True) if (probability if yes else 1 - probability) > 0)
