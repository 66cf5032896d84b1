"""Detecting on the validation images, shared among all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch import Tensor

from locdistill.dist import broadcast_from_first, is_distributed, rank
from locdistill.engine.roles import Student
from locdistill.engine.stream import torch_rng_kept
from locdistill.errors import LocdistillError
from locdistill.types import Batch, Detections

Evaluate = Callable[[dict[int, Detections]], Mapping[str, float]]


@torch.no_grad()
def detect_all(student: Student, batches: Iterable[Batch], device: torch.device) -> dict[int, Detections]:
    """Detections of every image of a loader by the image's identifier, on the CPU.

    Batches of the same images that follow each other are views of them, whose candidates are put together.

    In float32 whatever the precision of training, so that the numbers are those of a later ``locdistill evaluate``.
    """
    found: dict[int, Detections] = {}
    was_training = student.training
    student.eval()
    try:
        for ids, views in groupby(batches, key=_identifiers):
            seen = [_candidates(student, move_data_to_device(batch, device)) for batch in views]
            found |= _unpacked(ids, *_packed(student.suppress(seen)))
    finally:
        student.train(was_training)
    return found


def _packed(found: Sequence[Detections]) -> tuple[list[int], Float[Tensor, "n k"]]:
    """How many detections there are of each image, and all of them on the CPU: box, score and label.

    One tensor takes one wait for the device, and one entry where processes send it to each other. A label is exact in
    float32 up to 2^24.
    """
    rows = [torch.cat((boxes, scores[:, None], labels.to(boxes)[:, None]), 1) for boxes, scores, labels in found]
    return [len(own) for own in rows], torch.cat(rows or [torch.zeros(0, 6)]).cpu()


def _unpacked(ids: Iterable[int], counts: list[int], rows: Float[Tensor, "n k"]) -> dict[int, Detections]:
    """By image identifier what `_packed` put together."""
    parts = [torch.split(part, counts) for part in (rows[:, :-2], rows[:, -2], rows[:, -1].long())]
    return {image_id: Detections(*own) for image_id, *own in zip(ids, *parts, strict=True)}


def _identifiers(batch: Batch) -> tuple[int, ...]:
    return tuple(batch.image_ids.tolist())


def _candidates(student: Student, batch: Batch) -> list[Detections]:
    dense, grid = student.see(batch.images, batch.sizes)
    return student.candidates(dense, grid, batch.sizes, batch.original_sizes, flipped=batch.flipped)


def evaluate_together(
    student: Student, batches: Iterable[Batch], evaluate: Evaluate, device: torch.device
) -> dict[str, float]:
    """Let each process detect on its share, and the first one evaluate all; every process gets the numbers.

    An image that two processes saw, because shares were filled up to equal length, counts once.

    Raises:
        LocdistillError: ``evaluate`` failed on the first process; raised on all, so that none waits for ever.
    """
    broadcast_from_first(student.buffers())  # statistics of batch normalisation are each process's own
    with torch_rng_kept():
        mine = detect_all(student, batches, device)
    if not is_distributed():
        return dict(evaluate(mine))
    shares: list[Any] | None = [None] * dist.get_world_size() if rank() == 0 else None
    dist.gather_object(([*mine], *_packed([*mine.values()])), shares, dst=0)
    answer: list[Any] = [None, None]
    if shares is not None:
        together = {image_id: found for share in reversed(shares) for image_id, found in _unpacked(*share).items()}
        try:
            answer[0] = dict(evaluate(together))
        except Exception as error:
            answer[1] = f"{type(error).__name__}: {error}"
            dist.broadcast_object_list(answer, src=0)
            raise
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise LocdistillError(f"the first process could not evaluate: {answer[1]}")
    metrics: dict[str, float] = answer[0]
    return metrics
