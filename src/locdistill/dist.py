"""Queries of and communication with the other processes of a run."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

QUIET = "LOCDISTILL_QUIET"
"""Environment variable of ``--quiet``; processes that are started inherit it."""


def quiet() -> bool:
    """Return whether progress is not to be shown."""
    return bool(os.environ.get(QUIET))


def is_distributed() -> bool:
    """Return whether a process group with more than one member is initialised."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Return the index of this process among those that train together."""
    return dist.get_rank() if is_distributed() else 0


@torch.no_grad()
def reduce_mean(value: Tensor) -> Tensor:
    """Compute the mean of a tensor over all processes; the tensor itself if there is one process.

    Dividing a local sum by the mean of a global quantity, and letting DDP average the gradients, equals dividing the
    global sum by the global quantity.
    """
    if not is_distributed():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


@torch.no_grad()
def broadcast_from_first(tensors: Iterable[Tensor]) -> None:
    """Copy the first process's values to the tensors of every process, in place, with one message per dtype."""
    if not is_distributed():
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for alike in by_type.values():
        together = torch.cat([tensor.flatten() for tensor in alike])
        dist.broadcast(together, src=0)
        for tensor, values in zip(alike, torch.split(together, [tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(values.view_as(tensor))


def process_rank() -> int:
    """Return the rank of this process among those started together, before a process group is initialised."""
    names = ["RANK", "LOCAL_RANK"]
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        names.append("SLURM_PROCID")
    return int(next((os.environ[name] for name in names if os.environ.get(name)), "0"))
