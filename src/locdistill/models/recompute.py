"""Activation checkpointing (Chen et al. 2016): maps inside a network are recomputed instead of stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def recompute(net: nn.Module) -> int:
    """Make a network, in place, store only the inputs and outputs of its blocks in training.

    A block is the outermost module below containers that has children: in a ResNet, the residual blocks. Parameters and
    their names stay. timm's own switch is not used: it cuts networks into fewer pieces, and where batch normalisation
    is trained it updates the running statistics twice.

    Returns:
        Number of blocks.
    """
    blocks = list(_blocks(net))
    for block in blocks:
        block.forward = partial(_forward, block)
    return len(blocks)


def _blocks(net: nn.Module) -> Iterator[nn.Module]:
    inside = list(net.children())
    if len(inside) == 1 and not isinstance(net, nn.Sequential):  # a network within a wrapper of timm's
        yield from _blocks(inside[0])
        return
    for module in inside:
        if isinstance(module, CONTAINERS):
            yield from _blocks(module)
        elif list(module.children()):
            yield module


def _forward(block: nn.Module, *inputs: Any, **options: Any) -> Any:
    """Compute the output of a block, and compute it again in the backward pass."""
    compute = partial(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return compute(*inputs, **options)
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    if norms:
        # Contexts of the first computation and of the second, which must not update running statistics.
        options["context_fn"] = lambda: (nullcontext(), _statistics_kept(norms))
    return checkpoint(compute, *inputs, use_reentrant=False, **options)


@contextmanager
def _statistics_kept(norms: list[_BatchNorm]) -> Iterator[None]:
    """Keep running statistics unchanged in the block, while batch normalisation still normalises by its batch."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
