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
from tests.rounding import assert_rounded

pytestmark = pytest.mark.golden
Arrays = Callable[[str], dict[str, np.ndarray]]


def case(golden: Arrays, name: str) -> dict[str, Tensor]:
    """Arrays of a case in float64, so that only the reference rounds."""
    arrays = golden("f_small_mmdet33")
    own = {key.removeprefix(f"{name}/"): torch.from_numpy(arrays[key]) for key in arrays if key.startswith(f"{name}/")}
    return {key: value.double() for key, value in own.items()}


def close(actual: Tensor, expected: Tensor, given: dict[str, Tensor]) -> None:
    """Compare sums over channels and positions of the kernel, or over those of the map: the larger of both bounds."""
    assert_rounded(actual, expected, terms=max(given["weight"][0].numel(), given["y"][:, 0].numel()))


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
    close(out, given["y"], given)
    for key, gradient in zip(("x", "offset", "weight"), torch.autograd.grad(out, inputs, given["grad_y"]), strict=True):
        close(gradient, given[f"grad_{key}"], given)


@pytest.mark.parametrize("name", ["dcnv1", "dcnv1_s2_g2"])
def test_layer(golden: Arrays, name: str) -> None:
    """The layer with the given weight, whose offsets are the given ones instead of predicted."""
    given = case(golden, name)
    outputs, stride, groups = len(given["weight"]), int(given["stride"]), int(given["groups"])
    convolution = nn.Conv2d(given["x"].shape[1], outputs, 3, stride, padding=1, groups=groups, bias=False)
    layer = DeformConv2d(convolution).double()
    layer.load_state_dict(layer.state_dict() | {"weight": given["weight"]})
    layer.conv_offset.register_forward_hook(lambda *_: given["offset"])
    close(layer(given["x"]), given["y"], given)


def test_modulated(golden: Arrays) -> None:
    """The second version, which the detectors do not use: the operator is the reference's with a mask too."""
    given = case(golden, "dcnv2")
    inputs = (given[key] for key in ("x", "offset", "weight", "bias"))
    close(deform_conv2d(*inputs, padding=(1, 1), mask=given["mask"]), given["y"], given)
