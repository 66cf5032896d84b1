"""Precomputation of a teacher's predictions on all images, so that any number of trainings can run without it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from lightning_fabric.utilities.apply_func import move_data_to_device

from locdistill.data.loader import every_view_loader, training_plan
from locdistill.data.samplers import Draw
from locdistill.distillation.cache.open import CONTRACT, missing_draws, store_in
from locdistill.distillation.cache.teacher import CachedTeacher, Recall, noted_errors
from locdistill.engine.devices import default_device, existing_device
from locdistill.errors import CacheError
from locdistill.models.fold import SpeedUps
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.request import DistillWords, Request, takes
from locdistill.training.prepare import Parts, compose
from locdistill.training.train import recipe_for
from locdistill.types import Progress

SAMPLE = 16
"""Number of views used to estimate time and disk space for the rest."""
PAGE = 4096
ROOM = 1.1


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Estimated cost of a cache build, extrapolated from a few views.

    Attributes:
        views: Number of views of all images in the finished cache.
        missing: Number of views left for this process to predict.
        bytes_per_view: Disk space of a view, in bytes.
        seconds_per_view: Time of a view in this process, in seconds.
    """

    views: int
    missing: int
    bytes_per_view: float
    seconds_per_view: float

    @property
    def bytes(self) -> float:
        """Disk space of the missing views, in bytes."""
        return self.missing * self.bytes_per_view

    @property
    def seconds(self) -> float:
        """Time for the missing views, in seconds."""
        return self.missing * self.seconds_per_view


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """Content of a cache.

    Attributes:
        path: Folder of the cache.
        views: Number of views in the cache.
        built: Number of views added by this build.
        seconds: Time of this build in seconds, including reading the images and digesting their content.
        bytes: Size of the cache on disk.
        errors: Largest rounding error of the stored values, by name: class and edge logits, qualities and maps.
        contract: Identity of the teacher, and the selection of stored predictions.
        complete: Whether every view of the training images is in the cache; None if not checked.
    """

    path: Path
    views: int
    bytes: int
    contract: dict[str, Any]
    built: int = 0
    seconds: float = 0.0
    errors: dict[str, float] | None = None
    complete: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return {**vars(self), "path": str(self.path)}


@takes(DistillWords)
def build_cache(
    teacher: str | Path | None = None,
    data: str | Path | None = None,
    *,
    cache: str | Path | None = None,
    device: str | None = None,
    part: tuple[int, int] | None = None,
    tell: Callable[[Forecast], None] | None = None,
    progress: Callable[[str], Progress] | None = None,
    **words: Unpack[DistillWords],
) -> CacheReport:
    """Store a teacher's predictions on every view of the training images that training uses.

    Existing records stay, so a stopped build continues where it ended. Several processes may build one cache, each a
    share of it; under ``torchrun`` each process takes its own share.

    Args:
        teacher: As for `distill`; also the rest.
        data: As for `distill`.
        cache: Folder of the cache. Default: the folder in the recipe.
        device: Device, such as ``cuda:0``. Default: a GPU if there is one.
        part: ``(k, n)``: the ``k``-th of ``n`` shares, from 1. Shares do not depend on existing records, so all shares
            together build the whole cache, whenever each of them runs.
        tell: Callback for the estimated cost, before the build.
        progress: Function from a label to a progress display.
        words: See :class:`Request`.

    Raises:
        CacheError: The cache was built for another configuration, cannot be written, or does not fit on the disk.
        LocdistillError: As for `distill`, a subclass for each cause.
    """
    request = Request(teacher=teacher, data=data, **words)
    if cache is not None:
        request["overrides"] = [*request.get("overrides", ()), f"teacher.cache.path={cache}"]
    return build_cache_of(recipe_for(request, "distill"), device=device, part=part, tell=tell, progress=progress)


def build_cache_of(
    recipe: Recipe,
    *,
    device: str | None = None,
    part: tuple[int, int] | None = None,
    tell: Callable[[Forecast], None] | None = None,
    progress: Callable[[str], Progress] | None = None,
) -> CacheReport:
    """Build the cache of a recipe; see :func:`build_cache`.

    Raises:
        CacheError: The recipe has no cache folder, or as for :func:`build_cache`.
    """
    if recipe.teacher is None or recipe.teacher.cache is None:
        raise CacheError("no cache folder given; pass --cache DIR or set teacher.cache")
    start = time.perf_counter()
    if not device:
        device = default_device()
        if device == "cuda" and "LOCAL_RANK" in os.environ:
            device = f"cuda:{os.environ['LOCAL_RANK']}"
    where = existing_device(device)
    parts = compose(recipe, fresh=False, progress=None if progress is None else progress("reading the images"))
    parts.detector.to(where)
    assert parts.memory is not None
    builder = _Builder(parts, where)
    # the share of this process among those that torchrun started
    share = part or (int(os.environ.get("RANK", "0")) + 1, int(os.environ.get("WORLD_SIZE", "1")))
    draws = missing_draws(parts.memory, parts.datasets["train"], builder.plan, share)
    report = builder.build(draws, tell, None if progress is None else progress("teacher looks"))
    return replace(report, seconds=time.perf_counter() - start)


def cache_info(path: str | Path) -> CacheReport:
    """Describe the content of a cache.

    Raises:
        CacheError: There is no cache in the folder, or it cannot be read.
    """
    store = store_in(path)
    contract = store.about(CONTRACT)
    if contract is None:
        raise CacheError(f"{path} holds no cache; pass a folder written by 'locdistill cache build'")
    return CacheReport(
        path=store.path,
        views=len(store),
        bytes=store.bytes_on_disk,
        contract=contract,
        errors=noted_errors(store),
    )


class _Builder:
    """Writer of the missing records of a teacher's cache."""

    def __init__(self, parts: Parts, device: torch.device) -> None:
        self.parts, self.device = parts, device
        assert isinstance(parts.teacher, CachedTeacher)
        assert isinstance(parts.memory, Recall)
        self.teacher, self.memory = parts.teacher, parts.memory
        self.store = self.memory.store
        self.plan = training_plan(parts.recipe.data, parts.recipe.engine.seed, len(parts.datasets["train"]))

    def build(
        self, draws: list[Draw], tell: Callable[[Forecast], None] | None, progress: Progress | None
    ) -> CacheReport:
        speed = self.parts.speed
        self.teacher.to(self.device)
        self.teacher.optimise(SpeedUps(fold=speed.teacher, dtype=speed.dtype, channels_last=speed.channels_last))
        apart = max(len(draws) // SAMPLE, 1)
        first = draws[::apart][:SAMPLE]
        chosen = set(first)
        rest = [draw for draw in draws if draw not in chosen]
        if draws:
            forecast = self._try(first, len(draws))
            if tell is not None:
                tell(forecast)
            free = shutil.disk_usage(self.store.path).free
            if forecast.bytes * ROOM > free:
                raise CacheError(
                    f"{self.store.path}: {forecast.missing} views need about {forecast.bytes / 1e9:.3g} GB, and the "
                    f"disk has {free / 1e9:.3g} GB free; free some space, pass a folder on another disk (--cache DIR), "
                    "or store less (teacher.cache.numbers=8bit, fewer sizes or data.views). Stored views stay valid"
                )
        self._look(rest, progress)
        left = missing_draws(self.memory, self.parts.datasets["train"], self.plan)
        return replace(cache_info(self.store.path), built=len(draws), complete=not left)

    def _try(self, draws: Sequence[Draw], missing: int) -> Forecast:
        before, start = self.store.bytes_on_disk, time.perf_counter()
        seconds: list[float] = []
        self._look(draws, None, seconds)
        # The first batch takes longer: processes start, memory is allocated. Free pages of the file are used up first.
        steady = sum(seconds[1:]) / max(len(draws) - self.parts.recipe.data.batch_per_device, 1)
        grown = (self.store.bytes_on_disk - before) / len(draws)
        return Forecast(
            views=len(self.parts.datasets["train"]) * (self.plan.ways or 0),
            missing=missing,
            bytes_per_view=max(grown, PAGE),
            seconds_per_view=steady if len(seconds) > 1 else (time.perf_counter() - start) / len(draws),
        )

    def _look(self, draws: Sequence[Draw], progress: Progress | None, seconds: list[float] | None = None) -> None:
        if not draws:
            return
        parts = self.parts
        loader: Iterable[Any] = every_view_loader(
            parts.datasets["train"], parts.recipe.data, seed=parts.recipe.engine.seed, draws=draws, memory=self.memory
        )
        if progress is not None:
            loader = progress(loader, len(loader))  # type: ignore[arg-type]
        precision = parts.speed.dtype
        start = time.perf_counter()
        for batch in loader:
            with torch.autocast(self.device.type, precision, enabled=precision is not None):
                self.teacher(move_data_to_device(batch, self.device))
            if seconds is not None:
                seconds.append(time.perf_counter() - start)
                start = time.perf_counter()
