"""How an image may be looked at: limits of its size, and a flip."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from locdistill.data.samplers import Draw
from locdistill.data.transforms import choose_limits
from locdistill.images import View


class Look(NamedTuple):
    """One way to look at an image.

    Attributes:
        long: Limit of the longer side in pixels.
        short: Limit of the shorter side in pixels.
        flipped: Whether it is mirrored left and right, after resizing.
    """

    long: int
    short: int
    flipped: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done to each image; the fields are those of `DataSettings`.

    Attributes:
        sizes: Limits ``(long, short)``.
        mode: How to choose between them.
        flip: Probability of a flip.
        pad_to: Multiple for padded sides.
        seed: Of all random choices.
        keep_ignored: Whether crowd regions and difficult objects are handed on.
        per_image: Looks that are drawn once for each image, and chosen from ever after; None draws anew each time.
        views: How images are looked at in evaluation, by ``Draw.turn``; nothing is left to chance then.
    """

    sizes: tuple[tuple[int, int], ...]
    mode: Literal["value", "range"] = "value"
    flip: float = 0.0
    pad_to: int = 32
    seed: int = 0
    keep_ignored: bool = True
    per_image: int | None = None
    views: tuple[View, ...] = ()

    @property
    def fixed_size(self) -> bool:
        """Whether an image always gets the same size, so that it may be kept resized."""
        return len(self.sizes) == 1

    @property
    def ways(self) -> int | None:
        """In how many ways an image may be looked at; None where there is no saying."""
        if self.per_image is not None:
            return self.per_image
        if self.mode == "range" and not self.fixed_size:
            return None
        return len(self.sizes) * len(self._flips)

    @property
    def _flips(self) -> tuple[bool, ...]:
        return tuple(flipped for flipped in (False, True) if (self.flip if flipped else 1 - self.flip) > 0)

    def look(self, draw: Draw) -> Look:
        """How a draw looks at its image."""
        if self.views:
            view = self.views[draw.turn]
            (long, short) = self.sizes[0]
            short, long = view.limits(short=short, long=long)
            return Look(long, short, view.flipped)
        if draw.way is not None:
            return self.looks(draw.image)[draw.way]
        chance = np.random.default_rng((self.seed, draw.epoch, draw.turn, draw.image))
        if self.per_image is not None:
            return self.looks(draw.image)[int(chance.integers(self.per_image))]
        return self._drawn(chance)

    def looks(self, image: int) -> tuple[Look, ...]:
        """All ways in which an image may be looked at, which ``ways`` counts."""
        if self.per_image is not None:
            # The same whatever the run's seed, so that runs share what is remembered of them; more go on from fewer.
            chance = np.random.default_rng((image, 1))
            return tuple(self._drawn(chance) for _ in range(self.per_image))
        return tuple(Look(long, short, flipped) for (long, short), flipped in product(self.sizes, self._flips))

    def _drawn(self, chance: np.random.Generator) -> Look:
        long, short = choose_limits(self.sizes, self.mode, chance)
        return Look(long, short, bool(chance.random() < self.flip))
