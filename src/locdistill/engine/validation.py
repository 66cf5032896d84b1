"""Detection on the validation images, distributed over all processes."""

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
from locdistill.errors import LocdistillError
from locdistill.models.detector import Detector
from locdistill.types import Batch, Detections

Evaluate = Callable[[dict[int, Detections]], Mapping[str, float]]


@torch.no_grad()
def detect_all(student: Detector, batches: Iterable[Batch], device: torch.device) -> dict[int, Detections]:
    """Return the detections of every image of a loader by the image's identifier, on the CPU.

    Consecutive batches of the same images are views of them, and their candidates are combined. Computed in float32 for
    any precision of training, so that the metrics equal those of a later ``locdistill evaluate``.
    """
    found: dict[int, Detections] = {}
    was_training = student.training
    student.eval()
    try:
        for ids, views in groupby(batches, key=lambda batch: tuple(batch.image_ids.tolist())):
            seen = []
            for view in views:
                batch = move_data_to_device(view, device)
                seen.append(student.look(batch.images, batch.sizes, batch.original_sizes, flipped=batch.flipped))
            found |= _unpacked(ids, *_packed(student.suppress(seen)))
    finally:
        student.train(was_training)
    return found


def _packed(found: Sequence[Detections]) -> tuple[list[int], Float[Tensor, "n k"]]:
    """Return the number of detections per image, and all of them on the CPU: box, score and label.

    A single tensor needs only one synchronisation with the device, and one transfer between processes. A label is exact
    in float32 up to 2^24.
    """
    rows = [torch.cat((boxes, scores[:, None], labels.to(boxes)[:, None]), 1) for boxes, scores, labels in found]
    return [len(own) for own in rows], torch.cat(rows or [torch.zeros(0, 6)]).cpu()


def _unpacked(ids: Iterable[int], counts: list[int], rows: Float[Tensor, "n k"]) -> dict[int, Detections]:
    """Unpack the result of `_packed`, by image identifier."""
    parts = [torch.split(part, counts) for part in (rows[:, :-2], rows[:, -2], rows[:, -1].long())]
    return {image_id: Detections(*own) for image_id, *own in zip(ids, *parts, strict=True)}


def evaluate_together(
    student: Detector, batches: Iterable[Batch], evaluate: Evaluate, device: torch.device
) -> dict[str, float]:
    """Detect on a share in each process and evaluate all in the first; every process gets the metrics.

    An image in two shares, because shares are padded to equal length, counts once.

    Raises:
        LocdistillError: ``evaluate`` failed on the first process; raised on all, so that none blocks.
    """
    broadcast_from_first(student.buffers())  # statistics of batch normalisation differ between processes
    with torch.random.fork_rng(devices=[]):  # starting a loader draws from it
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
