"""Deformable convolution (Dai et al. 2017): a convolution with learned sampling positions."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

IntPair = tuple[int, int]


class DeformConv2d(nn.Module):
    """Convolution whose taps are shifted, at every position, by offsets that an ordinary convolution predicts.

    The first version, without modulation: ``y(p) = sum_k w_k x(p + p_k + d_k(p))``, with ``x`` interpolated bilinearly
    and 0 outside the map. All channels share the offsets. They start at 0, which gives the ordinary convolution. Names
    and layout are those of MMDetection: ``weight`` and ``conv_offset.{weight,bias}``, offsets as ``(dy, dx)`` tap by
    tap, taps row by row.

    Positions in a large map need more digits than half precision has: sampling is in float32 at least, whatever the
    precision of the network, and only the result has the dtype of the input.

    Args:
        conv: The convolution to replace; its weight and geometry are taken over. It must have no bias and zero padding.

    Attributes:
        weight: Weight of the convolution.
        conv_offset: Convolution that predicts the offsets, in pixels of the input map, from all channels, whatever the
            groups.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is None
        assert conv.padding_mode == "zeros"
        assert not isinstance(conv.padding, str)
        self.weight = conv.weight
        pairs = (conv.stride, conv.padding, conv.dilation, conv.kernel_size)
        self.stride, self.padding, self.dilation, kernel = (cast(IntPair, pair) for pair in pairs)
        self.conv_offset = nn.Conv2d(
            conv.in_channels,
            2 * math.prod(kernel),
            kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(b, c, h, w)`` at the predicted offsets."""
        offsets = self.conv_offset(x)
        precision = torch.promote_types(x.dtype, torch.float32)
        geometry: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        # ONNX has had this operator since version 19, but few runtimes support it: the export samples and multiplies.
        exporting = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
        convolve = deform_conv2d_plain if exporting else deform_conv2d
        out: Tensor = convolve(x.to(precision), offsets.to(precision), self.weight.to(precision), **geometry)
        return out.to(x.dtype)

    def extra_repr(self) -> str:
        """Return the geometry, in the format of other convolutions."""
        return f"{tuple(self.weight.shape)}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"


def deform_conv2d_plain(
    x: Float[Tensor, "b c h w"],
    offsets: Float[Tensor, "b k2 p q"],
    weight: Float[Tensor, "d g i j"],
    *,
    stride: IntPair = (1, 1),
    padding: IntPair = (0, 0),
    dilation: IntPair = (1, 1),
) -> Float[Tensor, "b d p q"]:
    """Compute deformable convolution in operations that every exchange format has: sample all taps, then multiply.

    Equal to ``torchvision.ops.deform_conv2d`` up to the rounding of positions (in float32 about 1e-5 pixels in a map
    150 wide). Where a tap is exactly at a pixel the gradient of its offset has two one-sided values, and rounding
    selects one of them: train with the operator. The samples of all taps are held at once, ``i * j`` maps.

    Args:
        x: Input; its channels are a multiple of ``g``, the channels of a group.
        offsets: Offset of each tap at each position, in pixels: ``(dy, dx)`` tap by tap, shared by all channels.
        weight: Weight of the convolution.
        stride: Distance between positions, along ``y`` and ``x``.
        padding: Number of zeros around the input.
        dilation: Distance between taps.
    """
    images, channels, height, width = x.shape
    outputs, per_group, *kernel = weight.shape
    places, taps, groups = offsets.shape[-2:], kernel[0] * kernel[1], channels // per_group
    rows, columns = (
        (torch.arange(kernel[axis], device=x.device) * dilation[axis])[:, None]
        + (torch.arange(places[axis], device=x.device) * stride[axis] - padding[axis])
        for axis in range(2)
    )  # positions of the taps before they are shifted: (i, p) and (j, q)
    shifts = offsets.reshape(images, *kernel, 2, *places)
    y = shifts[:, :, :, 0] + rows[:, None, :, None]
    x_ = shifts[:, :, :, 1] + columns[:, None, :]
    # The unit of `grid_sample`: -1 and 1 are the outer edges of the map, whose pixels lie half a pixel inside.
    grid = torch.stack(((2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1), -1).reshape(images, taps, -1, 2)
    samples = nn.functional.grid_sample(x, grid, align_corners=False)
    by_group = samples.reshape(images, groups, per_group * taps, -1)
    return (weight.reshape(groups, outputs // groups, -1) @ by_group).reshape(images, outputs, *places)
