"""Faster inference of a frozen detector: folded batch normalisation and weights in half precision.

In inference mode batch normalisation is one factor and one summand per channel, which the preceding convolution can
apply: ``gamma (W x + b - mean) / sqrt(var + eps) + beta`` is a convolution with other weights.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from locdistill.models.detector import Detector
from locdistill.types import Dense

TRIED = ((64, 64), (96, 128))
"""Height and width of the random images on which a folded network is compared."""
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.05
"""Largest differences relative to the norm of the output: after folding, and in half precision."""
Foldable = nn.Conv2d | nn.Linear
log = logging.getLogger("locdistill")


class CannotFoldError(Exception):
    """Network cannot be folded, or not without changing its output; the message states the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedUps:
    """Options for faster inference of a frozen detector.

    Attributes:
        fold: Whether to fold batch normalisation, and keep the weights of convolutions in ``dtype``.
        dtype: Half precision of the convolutions; None for float32.
        channels_last: Whether images, weights and maps have this memory layout.
        wrap: Function applied to the inference function and its name: compilation, or nothing.
    """

    fold: bool = False
    dtype: torch.dtype | None = None
    channels_last: bool = False
    wrap: Callable[[Callable[..., Dense], str], Callable[..., Dense]] = lambda function, _: function

    def images(self, images: Tensor) -> Tensor:
        """Return the images in the memory layout."""
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images


def optimised(detector: Detector, how: SpeedUps) -> Detector:
    """Copy a frozen detector in inference mode to a faster one with the same output up to rounding.

    What cannot be done without changing the output is skipped, with a note in the log. The copy must be called under
    autocast of ``how.dtype``: normalisation and the rest follow its rules, and the weights of convolutions are stored
    as it would convert them at every step.
    """
    quick = copy.deepcopy(detector)
    if how.fold:
        try:
            quick.backbone = folded(detector.backbone)
        except CannotFoldError as error:
            log.info("teacher: its batch normalisation is not folded (%s)", error)
        if how.dtype is not None:
            quick = _halved(quick, how.dtype)
    return quick.to(memory_format=torch.channels_last) if how.channels_last else quick


def folded(net: nn.Module) -> nn.Module:
    """Copy a network in inference mode with batch normalisation folded into the preceding convolutions.

    The convolution before each normalisation is found in the traced graph; the copy runs its own code, without the
    folded normalisation. On random images of two sizes its output must be the same.

    Raises:
        CannotFoldError: The network cannot be traced, or its output changes.
    """
    copied = copy.deepcopy(net).cpu().float().eval()
    device = next(net.parameters()).device
    pairs = _pairs(copied)
    if not pairs:
        return copy.deepcopy(net)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        images = [torch.randn(1, 3, *size) for size in TRIED]
        before = [copied(x) for x in images]
        for above, norm in pairs:
            # Fold one normalisation, in place; the activation that timm puts into some of them stays.
            convolution, layer = copied.get_submodule(above), copied.get_submodule(norm)
            assert isinstance(layer, _BatchNorm)
            fuse: Any = fuse_linear_bn_eval if isinstance(convolution, nn.Linear) else fuse_conv_bn_eval
            copied.set_submodule(above, fuse(convolution, layer))
            left = [part for name, part in layer.named_children() if name in ("drop", "act")]
            copied.set_submodule(norm, nn.Sequential(*left) if left else nn.Identity())
        worst = max(_difference(copied(x), old) for x, old in zip(images, before, strict=True))
    if not worst <= TOLERANCE:
        raise CannotFoldError(f"the output would change by {worst:.1e} of its norm")
    return copied.requires_grad_(False).to(device)


class _Tracer(fx.Tracer):
    """Tracer that does not trace into convolutions and normalisations, including subclasses of other libraries."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Foldable | _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def _pairs(net: nn.Module) -> list[tuple[str, str]]:
    """Return names of convolutions with the normalisation that is the only user of their output; each is run once.

    Raises:
        CannotFoldError: The network cannot be traced.
    """
    norms = {name for name, module in net.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        return []
    try:
        graph = _Tracer().trace(net)
    except Exception as error:  # a network may do anything with the tracer's stand-ins for tensors
        reason = (str(error).strip().splitlines() or [""])[0]
        raise CannotFoldError(f"it cannot be traced: {type(error).__name__}: {reason}") from error
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = {str(node.target): sum(other.target == node.target for other in calls) for node in calls}
    found = []
    for node in calls:
        above = node.args[0] if node.args else None
        if str(node.target) not in norms or not isinstance(above, fx.Node) or above.op != "call_module":
            continue
        names = str(above.target), str(node.target)
        convolves = isinstance(net.get_submodule(names[0]), Foldable)
        if convolves and len(above.users) == 1 and all(times[name] == 1 for name in names):
            found.append(names)
    return found


def _halved(detector: Detector, dtype: torch.dtype) -> Detector:
    """Convert weights of plain convolutions and linear layers to half precision, unless that changes the output."""
    halved = copy.deepcopy(detector)
    for module in halved.modules():
        if type(module) in (nn.Conv2d, nn.Linear):  # others may compute with their weights
            module.to(dtype)
    device = detector.device
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.autocast(device.type, dtype):
        torch.manual_seed(0)
        image = torch.randn(1, 3, *TRIED[-1]).to(device)
        try:
            ours, theirs = halved(image), detector(image)
            worst = _difference([ours.cls_logits, ours.edge_logits], [theirs.cls_logits, theirs.edge_logits])
        except RuntimeError as error:  # the network mixes the two precisions itself
            log.info("teacher: its weights stay in float32 (%s)", str(error).splitlines()[0])
            return detector
    if not worst <= HALF_TOLERANCE:
        log.info("teacher: its weights stay in float32 (the output would change by %.1e of its norm)", worst)
        return detector
    return halved


def _difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Compute the largest difference of two lists of maps, relative to the norm of the second."""
    return max(
        float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-12))
        for a, b in zip(ours, theirs, strict=True)
    )
