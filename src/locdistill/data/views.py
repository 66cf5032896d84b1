"""The plan of image views: size limits, flips, turns, rotation and scale."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from locdistill.data.samplers import Draw
from locdistill.data.transforms import View, choose_limits, pose
from locdistill.images import ScaledView


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
        min_visible: See `View.least`.
        pad_to: Multiple for padded sides.
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
    min_visible: float = 0.5
    pad_to: int = 32
    seed: int = 0
    keep_ignored: bool = True
    per_image: int | None = None
    views: tuple[ScaledView, ...] = ()

    @property
    def fixed_size(self) -> bool:
        """True if an image always gets the same size, so that it can be cached after resizing."""
        return len(self.sizes) == 1 and self.scale is None

    @property
    def ways(self) -> int | None:
        """Number of possible views of an image; None if they cannot be enumerated."""
        if self.per_image is not None:
            return self.per_image
        if self.rotate or self.scale is not None or (self.mode == "range" and len(self.sizes) > 1):
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
            return self.all_views(draw.image)[int(chance.integers(self.per_image))]
        return self._drawn(chance)

    def all_views(self, image: int) -> tuple[View, ...]:
        """Return all possible views of an image; ``ways`` is their number."""
        if self.per_image is not None:
            # Independent of the run's seed, so that runs share cache entries; a larger number extends a smaller one.
            chance = np.random.default_rng((image, 1))
            return tuple(self._drawn(chance) for _ in range(self.per_image))
        return tuple(View(long, short, *own) for (long, short), own in product(self.sizes, self._poses))

    def _drawn(self, chance: np.random.Generator) -> View:
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
        return view._replace(least=self.min_visible) if view.cuts else view


def _outcomes(probability: float) -> tuple[bool, ...]:
    """Return the possible outcomes, False and True, of an event with this probability."""
    return tuple(yes for yes in (False, True) if (probability if yes else 1 - probability) > 0)
