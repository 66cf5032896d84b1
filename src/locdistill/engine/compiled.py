"""Compilation of functions, with a fallback where it fails."""

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
"""Maximum number of compiled versions of one function, for sizes and modes; PyTorch's default is 8."""
BACKEND = "inductor"
"""PyTorch's name of the compiler backend."""


class Compiled:
    """A function that is compiled at its first call; if that fails, it runs uncompiled and the reason is logged.

    The first size of images gives a version for that size, the second a version for any size, as by default in PyTorch.
    The function is compiled, not its module, so that evaluation runs the module as ``locdistill evaluate`` does, and
    names in checkpoints do not change.

    Args:
        function: The function to compile.
        name: Its name in the log.
        whole: Whether it must be one graph.
        must: Whether a failure is raised.
        mode: PyTorch's compilation mode; None for the default.
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
                "%s is not compiled (%s); training continues without (engine.speed.compile)", self.name, reason
            )
            self._call = self.function
            return self.function(*args, **kwargs)


FEWEST = 8


def bucketed(instances: Instances) -> Instances:
    """Pad the objects of a batch to 8, 16, 32, ... slots.

    A batch has as many slots as the largest number of objects in an image. So shapes differ in almost every batch,
    which is costly for compiled code and preallocated memory. Empty slots do not change the losses. Callers that
    compile the objective should apply this when batches are collated or before they are used; nothing else here depends
    on it.
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
