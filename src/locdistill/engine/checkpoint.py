"""Atomic writing of checkpoints, and the state of all random generators."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from locdistill.dist import is_distributed
from locdistill.errors import RunError
from locdistill.files import replacing


def write_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint atomically."""
    with replacing(path) as part:
        torch.save(content, part)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, as tensors and plain values only: no code in it is executed.

    Raises:
        RunError: The file is damaged, or holds other types.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise RunError(
            f"{path}: not a checkpoint that a run can be resumed from ({str(error).splitlines()[0]}). "
            "Delete it to restart the run, or start a run in another folder from the weights in *.safetensors"
        ) from error
    return content


def random_state() -> dict[str, Any]:
    """Return the state of Python's, NumPy's and PyTorch's generators in this process, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (str(name), [int(k) for k in keys], int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore the generators of this process to a saved state."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int, rank: int) -> None:
    """Seed the generators of this process; dropout differs between processes."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)  # noqa: NPY002
    torch.manual_seed(seed + rank)


def gathered(value: Any) -> list[Any]:
    """Gather the values of all processes, in the order of ranks; every process must call this."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
