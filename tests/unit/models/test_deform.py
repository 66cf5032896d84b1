"""Deformable convolution: where it looks, how it starts, what it learns, how it is exported."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from locdistill.models.deform import DeformConv2d, deform_conv2d_plain

GEOMETRIES: tuple[dict[str, Any], ...] = (
    {"padding": 1},
    {"padding": 1, "stride": 2},
    {"padding": 2, "dilation": 2, "groups": 2},
    {"padding": (0, 1), "stride": (2, 1)},
)


def conv(**geometry: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, 3, bias=False, **geometry)


def wandering(**geometry: Any) -> DeformConv2d:
    """A deformable convolution whose offsets are a pixel or two, and fall between pixels."""
    layer = DeformConv2d(conv(**geometry))
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    nn.init.normal_(layer.conv_offset.bias)
    return layer


def image(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 4, *size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def by_hand(x: Tensor, offsets: Tensor, weight: Tensor, stride: int) -> Tensor:
    """One image, one group, padding 1: a loop over places, taps and the four pixels around each position."""
    height, width = x.shape[-2:]
    out = x.new_zeros(len(weight), *offsets.shape[-2:])
    for p, q in ((p, q) for p in range(out.shape[1]) for q in range(out.shape[2])):
        for tap in range(9):
            y = p * stride - 1 + tap // 3 + float(offsets[2 * tap, p, q])
            x_ = q * stride - 1 + tap % 3 + float(offsets[2 * tap + 1, p, q])
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x_), math.floor(x_) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(y - row)) * (1 - abs(x_ - column))
                        out[:, p, q] += share * weight[:, :, tap // 3, tap % 3] @ x[:, row, column]
    return out


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_it_starts_as_the_convolution_that_it_replaces(geometry: dict[str, Any]) -> None:
    plain = conv(**geometry)
    layer = DeformConv2d(plain)
    assert layer.weight is plain.weight
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {
        "weight": tuple(plain.weight.shape),
        "conv_offset.weight": (18, 4, 3, 3),
        "conv_offset.bias": (18,),
    }
    torch.testing.assert_close(layer(image(7, 9)), plain(image(7, 9)))


@pytest.mark.parametrize("function", [deform_conv2d, deform_conv2d_plain])
@pytest.mark.parametrize("stride", [1, 2])
def test_by_hand(function: Any, stride: int) -> None:
    """Offsets up to several pixels, so that taps look inside, across the border, and far outside."""
    x, weight = image(5, 7, dtype=torch.double)[:1], conv().weight.double()
    places = (-(-5 // stride), -(-7 // stride))
    offsets = 3 * torch.randn(1, 18, *places, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    actual = function(x, offsets, weight, stride=(stride, stride), padding=(1, 1))
    torch.testing.assert_close(actual[0], by_hand(x[0], offsets[0], weight, stride))


def test_whole_offsets_shift() -> None:
    """Every tap looks one pixel down and two to the left: the convolution of the shifted map."""
    layer, x = DeformConv2d(conv(padding=1)), image(8, 10)
    with torch.no_grad():
        layer.conv_offset.bias.view(9, 2).copy_(torch.tensor([1.0, -2.0]))
    shifted = torch.zeros_like(x)
    shifted[:, :, :-1, 2:] = x[:, :, 1:, :-2]
    inside = (..., slice(1, -2), slice(3, -1))  # the convolution of the shifted map has other borders
    torch.testing.assert_close(layer(x)[inside], conv(padding=1)(shifted)[inside])


def test_order_of_the_offsets() -> None:
    """Rows before columns, tap by tap, taps row by row: only the sixth tap (middle row, right column) moves, down."""
    layer, x = DeformConv2d(conv(padding=1)), image(6, 6)
    with torch.no_grad():
        layer.conv_offset.bias[2 * 5] = 1.0
    weight = torch.zeros_like(layer.weight)
    weight[:, :, 2, 2] = layer.weight[:, :, 1, 2]
    without = layer.weight.clone()
    without[:, :, 1, 2] = 0
    expected = nn.functional.conv2d(x, weight + without, padding=1)
    torch.testing.assert_close(layer(x), expected)


def test_gradients() -> None:
    layer = wandering(padding=1, stride=2).double()
    x = image(5, 6, dtype=torch.double).requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def of(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(of, (x, *parameters))


def test_offsets_learn_from_the_start() -> None:
    """Offsets of exactly 0 have a gradient, else they would stay there."""
    layer = DeformConv2d(conv(padding=1))
    layer(image(6, 7)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", [(7, 9), (3, 40)])
def test_plain_operations_equal_the_operator(geometry: dict[str, Any], size: tuple[int, int]) -> None:
    layer = wandering(**geometry).double()
    x = image(*size, dtype=torch.double).requires_grad_()
    offsets = layer.conv_offset(x).detach().requires_grad_()
    pairs = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
    results = []
    for function in (deform_conv2d, deform_conv2d_plain):
        out = function(x, offsets, layer.weight, **pairs)
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, offsets, layer.weight))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_plain_operations_take_the_smallest_maps() -> None:
    offsets = torch.randn(2, 18, 1, 1, generator=torch.Generator().manual_seed(3))
    plain, operator = (
        function(image(1, 1), offsets, conv().weight, padding=(1, 1))
        for function in (deform_conv2d_plain, deform_conv2d)
    )
    torch.testing.assert_close(plain, operator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Sampled in float32 under autocast and in a network of half precision alike; the result is of the input's type."""
    layer, x = wandering(padding=1), image(6, 8).to(dtype)
    halved = copy.deepcopy(layer).to(dtype)
    exact = deform_conv2d(x.float(), halved.conv_offset(x).float(), halved.weight.float(), padding=(1, 1))
    torch.testing.assert_close(halved(x), exact.to(dtype), rtol=0, atol=0)
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x)
    assert out.dtype == dtype
    offsets = nn.functional.conv2d(x, halved.conv_offset.weight, halved.conv_offset.bias, padding=1)
    torch.testing.assert_close(
        out, deform_conv2d(x.float(), offsets.float(), layer.weight, padding=(1, 1)).to(dtype), rtol=1e-2, atol=1e-2
    )
    out.float().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_it_compiles() -> None:
    """In one graph, forward and backward; without generating code, which takes a compiler."""
    layer, x = wandering(padding=1), image(6, 8).requires_grad_()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    gradients = [torch.autograd.grad(net(x).square().sum(), (x, *layer.parameters())) for net in (layer, compiled)]
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, other)


@pytest.mark.parametrize("geometry", GEOMETRIES[:3])
def test_it_exports_without_operators_of_its_own(geometry: dict[str, Any]) -> None:
    layer, images = wandering(**geometry).eval(), torch.export.Dim("images", min=1, max=8)
    program = torch.export.export(layer, (image(9, 12),), dynamic_shapes=({0: images},))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("grid_sampler" in name for name in called)
    assert not any("deform" in name for name in called)
    three = torch.cat((image(9, 12), image(9, 12)[:1].flip(-1)))
    torch.testing.assert_close(program.module()(three), layer(three), rtol=1e-4, atol=1e-5)


def test_it_exports_to_onnx(tmp_path: Any) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    layer, path = wandering(padding=1, stride=2).eval(), str(tmp_path / "layer.onnx")
    torch.onnx.export(layer, (image(9, 12),), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {session.get_inputs()[0].name: image(9, 12).numpy()})
    torch.testing.assert_close(torch.from_numpy(actual), layer(image(9, 12)).detach(), rtol=1e-4, atol=1e-5)
