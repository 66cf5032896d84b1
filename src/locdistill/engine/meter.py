"""Running means of loss terms and monitored quantities, and detection of values that are not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from locdistill.dist import reduce_mean

_WIDE = {"cpu": torch.float64}
"""Data type of sums by kind of device: float64 on CPU, where it is always supported, else float32."""


@dataclass(slots=True, eq=False)
class Meter:
    """Running sums of the losses of each batch, on the device and without synchronisation.

    Synchronisation at every step would be slow, so ``broken`` and ``take_means``, which do synchronise, are called only
    occasionally. Until then ``Meter`` keeps the image ids of each batch, to report them if a loss is not finite.
    """

    names: tuple[str, ...] = ()
    _sums: Tensor | None = None
    _batches: int = 0
    _first_broken: Tensor | None = None
    _recent: list[tuple[int, Tensor]] = field(default_factory=list)

    def add(
        self, names: Sequence[str], values: Float[Tensor, " t"], *, step: int, image_ids: Int[Tensor, " b"]
    ) -> None:
        """Add the terms of one batch of an optimiser step (counted from 0)."""
        self.names = tuple(names)
        if self._sums is None:
            self._sums = torch.zeros_like(values, dtype=_WIDE.get(values.device.type, torch.float32))
        self._sums = self._sums.to(values.device) + values
        self._batches += 1
        if self._first_broken is None:
            self._first_broken = torch.full_like(values, -1)
        newly = ~torch.isfinite(values) & (self._first_broken < 0)
        self._first_broken = torch.where(newly, torch.full_like(values, float(len(self._recent))), self._first_broken)
        self._recent.append((step, image_ids))

    def any_broken(self) -> Tensor | None:
        """Return whether some term was not finite since the last ``forget``, as a tensor on the device."""
        return None if self._first_broken is None else (self._first_broken >= 0).any()

    def broken(self) -> tuple[list[str], int, list[int]] | None:
        """Return the first terms that were not finite, their step and the batch's images; None if all were finite."""
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
        """Drop the image ids of batches with finite losses."""
        self._recent.clear()
        self._first_broken = None

    def take_means(self) -> dict[str, float]:
        """Return the mean of each term over the batches since the last call and over all processes."""
        if self._sums is None:
            return {}
        values = reduce_mean(self._sums / self._batches).tolist()
        self._sums, self._batches = None, 0
        return {name: float(value) for name, value in zip(self.names, values, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return the means in progress, combined over all processes."""
        sums = None if self._sums is None else reduce_mean(self._sums).cpu()
        return {"names": list(self.names), "sums": sums, "batches": self._batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore saved means."""
        self.names, self._sums, self._batches = tuple(state["names"]), state["sums"], state["batches"]


@dataclass(slots=True, eq=False)
class Ratios:
    """Running ratios of sums, such as means over all positives of many batches, without synchronisation.

    A mean of the batches' means would weight a batch with one positive as much as one with a thousand, and would be
    undefined for a batch without any.
    """

    _sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, values: Mapping[str, Float[Tensor, "2"]]) -> None:
        """Add a batch: by name, a sum and its divisor."""
        for name, pair in values.items():
            before = self._sums.get(name)
            wide = _WIDE.get(pair.device.type, torch.float32)
            self._sums[name] = pair.to(wide) if before is None else before.to(pair.device) + pair

    def take_means(self) -> dict[str, float]:
        """Return the ratios since the last call over all processes; those with divisor 0 are left out."""
        if not self._sums:
            return {}
        taken, self._sums = self._sums, {}
        sums = reduce_mean(torch.stack(list(taken.values()))).tolist()
        return {name: float(a / b) for name, (a, b) in zip(taken, sums, strict=True) if b}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums in progress, combined over all processes."""
        return {name: reduce_mean(pair).cpu() for name, pair in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore saved sums."""
        self._sums = dict(state)
