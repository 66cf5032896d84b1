"""Functions that are compiled where that works."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch._dynamo.exc import TorchDynamoException
from torch.nn.functional import pad

from locdistill.types import Instances

logger = logging.getLogger("locdistill.engine")
VARIANTS = 32
"""Versions of one function, for sizes and modes, after which no more are compiled; PyTorch's own limit is 8."""
BACKEND = "inductor"
"""PyTorch's name of what turns a graph into code."""


class Compiled:
    """A function that is compiled at its first call; where that fails it goes on as it was, and the log says why.

    The first size of images gives a version for that size, the second one for any: PyTorch's way with sizes. It is the
    function that is compiled, not the module behind it, so that evaluation runs the module as ``locdistill evaluate``
    does, and names in checkpoints stay.

    Args:
        function: What to compile.
        name: What to call it in the log.
        whole: Whether it must be one graph.
        must: Whether a failure is raised.
        mode: PyTorch's name of how to compile; None is its default.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        *,
        whole: bool = False,
        must: bool = False,
        mode: str | None = None,
    ) -> None:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
        self.function, self.name, self.must = function, name, must
        self._call: Callable[..., Any] = torch.compile(function, fullgraph=whole, backend=BACKEND, mode=mode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        try:
            return self._call(*args, **kwargs)
        except TorchDynamoException as error:
            if self.must or self._call is self.function:
                raise
            cause = getattr(error, "inner_exception", error)
            reason = f"{type(cause).__name__}: {next(filter(None, str(cause).splitlines()), '')}"
            logger.warning(
                "%s is not compiled (%s); training goes on without (engine.speed.compile)", self.name, reason
            )
            self._call = self.function
            return self.function(*args, **kwargs)


FEWEST = 8


def bucketed(instances: Instances) -> Instances:
    """The same objects in 8, 16, 32, ... slots.

    A batch has as many slots as its fullest image has objects, so that hardly any two batches are alike, and compiled
    code or memory that is planned ahead meets new shapes all the time. Empty slots change no loss. Whoever compiles the
    objective is to do this where batches are put together or before they are used; nothing here depends on it.
    """
    objects = instances.boxes.shape[1]
    slots = FEWEST
    while slots < objects:
        slots *= 2
    more = (0, slots - objects)
    oriented = instances.oriented
    return instances._replace(
        oriented=None if oriented is None else pad(oriented, (0, 0, *more)),
        boxes=pad(instances.boxes, (0, 0, *more)),
        labels=pad(instances.labels, more),
        present=pad(instances.present, more),
        ignored=pad(instances.ignored, more),
    )
