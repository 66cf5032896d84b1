"""Deformable convolution equals the executed reference's, values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from locdistill.models.deform import DeformConv2d, deform_conv2d_plain

pytestmark = pytest.mark.golden
Arrays = Callable[[str], dict[str, np.ndarray]]


def case(golden: Arrays, name: str) -> dict[str, Tensor]:
    arrays = golden("f_small_mmdet33")
    return {key.removeprefix(f"{name}/"): torch.from_numpy(arrays[key]) for key in arrays if key.startswith(f"{name}/")}


def close(actual: Tensor, expected: Tensor) -> None:
    """Gradients are sums of many terms of both signs: the largest value sets what is small."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-6 * max(1.0, float(expected.abs().max())))


# Several groups of offsets are no part of the detectors, and only the operator has them.
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (deform_conv2d, "dcnv1"),
        (deform_conv2d, "dcnv1_s2_g2"),
        (deform_conv2d, "dcnv1_dg2"),
        (deform_conv2d_plain, "dcnv1"),
        (deform_conv2d_plain, "dcnv1_s2_g2"),
    ],
)
def test_given_offsets(golden: Arrays, function: Any, name: str) -> None:
    given = case(golden, name)
    inputs = [given[key].clone().requires_grad_() for key in ("x", "offset", "weight")]
    stride = int(given["stride"])
    assert given["x"].shape[1] == given["weight"].shape[1] * int(given["groups"])
    out = function(*inputs, stride=(stride, stride), padding=(1, 1))
    close(out, given["y"])
    for key, gradient in zip(("x", "offset", "weight"), torch.autograd.grad(out, inputs, given["grad_y"]), strict=True):
        close(gradient, given[f"grad_{key}"])


@pytest.mark.parametrize("name", ["dcnv1", "dcnv1_s2_g2"])
def test_layer(golden: Arrays, name: str) -> None:
    """The layer with the given weight, whose offsets are the given ones instead of predicted."""
    given = case(golden, name)
    outputs, stride, groups = len(given["weight"]), int(given["stride"]), int(given["groups"])
    convolution = nn.Conv2d(given["x"].shape[1], outputs, 3, stride, padding=1, groups=groups, bias=False)
    layer = DeformConv2d(convolution)
    layer.load_state_dict(layer.state_dict() | {"weight": given["weight"]})
    layer.conv_offset.register_forward_hook(lambda *_: given["offset"])
    close(layer(given["x"]), given["y"])


def test_modulated(golden: Arrays) -> None:
    """The second version, which the detectors do not use: the operator is the reference's with a mask too."""
    given = case(golden, "dcnv2")
    inputs = (given[key] for key in ("x", "offset", "weight", "bias"))
    close(deform_conv2d(*inputs, padding=(1, 1), mask=given["mask"]), given["y"])
