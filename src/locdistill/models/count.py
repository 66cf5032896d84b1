"""Cost of a detector, counted rather than measured."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings


def parameters(model: nn.Module) -> int:
    """Count the parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(settings: DetectorSettings, size: tuple[int, int]) -> int:
    """Count the multiply-adds of one forward pass of one image, without post-processing.

    The reference's tool prints this number as FLOPs; PyTorch's own counter, which is used here, counts each as two.
    Nothing is computed: the network is built without memory for its tensors. The bilinear sampling of deformable
    convolutions is left out, as in the reference's tool.
    """
    with torch.device("meta"):
        detector = Detector(settings, pretrained=False).eval()
        images = torch.zeros(1, 3, *size)
    return multiply_adds_of(detector, images)


def multiply_adds_of(model: nn.Module, *inputs: Tensor) -> int:
    """Count the multiply-adds in a call of a module: half of the count of PyTorch's own counter."""
    deformable = torch.ops.torchvision.deform_conv2d
    counter = FlopCounterMode(display=False, custom_mapping={deformable: _deformable, deformable.default: _deformable})
    with counter, torch.no_grad():
        model(*inputs)
    return int(counter.get_total_flops()) // 2


def _deformable(_input: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Count operations of a deformable convolution: the multiply-adds of the convolution itself, times two."""
    return int(2 * math.prod(out_shape) * math.prod(weight[1:]))
