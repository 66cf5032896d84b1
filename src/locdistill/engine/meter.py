"""Running means of the loss terms and of what is watched, and the watch for values that are no numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from locdistill.dist import reduce_mean


class Meter:
    """Sums what each batch says of its losses, on the device and without waiting for it.

    Waiting for the device at every step would cost speed, so ``broken`` and ``means``, which do wait, are asked only
    now and then. Until then ``Meter`` remembers the images of each batch, to name them if a loss broke.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        self._batches = 0
        self._first_broken: Tensor | None = None
        self._recent: list[tuple[int, Tensor]] = []

    def add(
        self, names: Sequence[str], values: Float[Tensor, " t"], *, step: int, image_ids: Int[Tensor, " b"]
    ) -> None:
        """Take in the terms of one batch of an optimiser step (counted from 0)."""
        self.names = tuple(names)
        if self._sums is None:
            self._sums = torch.zeros_like(values, dtype=_wide(values))
        self._sums = self._sums.to(values.device) + values
        self._batches += 1
        if self._first_broken is None:
            self._first_broken = torch.full_like(values, -1)
        newly = ~torch.isfinite(values) & (self._first_broken < 0)
        self._first_broken = torch.where(newly, torch.full_like(values, float(len(self._recent))), self._first_broken)
        self._recent.append((step, image_ids))

    def any_broken(self) -> Tensor | None:
        """Whether some term was not finite since the last ``forget``, as a number still on the device."""
        return None if self._first_broken is None else (self._first_broken >= 0).any()

    def broken(self) -> tuple[list[str], int, list[int]] | None:
        """The first terms that were not finite, the optimiser step, and the images of the batch; None if all were."""
        if self._first_broken is None:
            return None
        found = [int(v) for v in self._first_broken.tolist()]
        if max(found) < 0:
            return None
        first = min(v for v in found if v >= 0)
        step, image_ids = self._recent[first]
        names = [name for name, at in zip(self.names, found, strict=True) if at == first]
        return names, step, [int(i) for i in image_ids.tolist()]

    def forget(self) -> None:
        """Drop the memory of batches that are known to be fine."""
        self._recent.clear()
        self._first_broken = None

    def means(self) -> dict[str, float]:
        """Mean of each term over the batches since the last ``reset`` and over all processes."""
        if self._sums is None:
            return {}
        values = reduce_mean(self._sums / self._batches).tolist()
        return {name: float(value) for name, value in zip(self.names, values, strict=True)}

    def reset(self) -> None:
        """Begin new means."""
        self._sums, self._batches = None, 0

    def state_dict(self) -> dict[str, Any]:
        """The means in progress; those of all processes together."""
        sums = None if self._sums is None else reduce_mean(self._sums).cpu()
        return {"names": list(self.names), "sums": sums, "batches": self._batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with saved means."""
        self.names, self._sums, self._batches = tuple(state["names"]), state["sums"], state["batches"]


class Ratios:
    """Running ratios of sums, such as means over all positives of many batches, without waiting for the device.

    A mean of the batches' means would weigh a batch with one positive as much as one with a thousand, and have nothing
    to say of a batch without.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Float[Tensor, "2"]]) -> None:
        """Take in a batch: by name, a sum and what it is divided by."""
        for name, pair in values.items():
            before = self._sums.get(name)
            self._sums[name] = pair.to(_wide(pair)) if before is None else before.to(pair.device) + pair

    def means(self) -> dict[str, float]:
        """The ratios over the batches since the last ``reset`` and over all processes; none where the divisor is 0."""
        if not self._sums:
            return {}
        sums = reduce_mean(torch.stack(list(self._sums.values()))).tolist()
        return {name: float(a / b) for name, (a, b) in zip(self._sums, sums, strict=True) if b}

    def reset(self) -> None:
        """Begin new ratios."""
        self._sums = {}

    def state_dict(self) -> dict[str, Tensor]:
        """The sums in progress; those of all processes together."""
        return {name: reduce_mean(pair).cpu() for name, pair in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with saved sums."""
        self._sums = dict(state)


def _wide(values: Tensor) -> torch.dtype:
    """The type to sum in: float64 where the device is sure to have it."""
    return torch.float64 if values.device.type == "cpu" else torch.float32
