"""Adaptation of timm's residual networks to the reference: style, deformable convolutions, Res2Net's pooling."""

from __future__ import annotations

from timm.models.res2net import Bottle2neck
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from locdistill.errors import RecipeError
from locdistill.models.deform import DeformConv2d
from locdistill.models.settings import DetectorSettings

STAGES = (1, 2, 3, 4)
ResidualBlock = BasicBlock | Bottleneck | Bottle2neck


def adapt(net: nn.Module, settings: DetectorSettings) -> None:
    """Change a backbone in place as its settings require; names and values of timm's own tensors stay.

    Raises:
        RecipeError: The settings require a part that this backbone does not have.
    """
    blocks: dict[int, list[ResidualBlock]] = {}
    for stage in STAGES:  # none for other architectures, and for stages that no level uses
        layer = getattr(net, f"layer{stage}", None)
        inside = list(layer) if isinstance(layer, nn.Sequential) else []
        blocks[stage] = [block for block in inside if isinstance(block, ResidualBlock)]
    everywhere = [block for stage in STAGES for block in blocks[stage]]
    # timm and the authors of Res2Net average the last split of a Res2Net block over 3x3 in the first block of every
    # stage, MMDetection only where the stride is 2. Its published detectors were trained that way, from ImageNet
    # weights of the other network.
    for block in everywhere:
        if isinstance(block, Bottle2neck) and block.pool is not None and block.pool.stride == 1:
            block.add_module("pool", nn.Identity())
    if settings.style == "caffe":
        _stride_first(everywhere, settings.backbone)
    for stage in sorted(set(settings.deformable)):
        if not everywhere:
            raise RecipeError(
                f"deformable: '{settings.backbone}' is no residual network with 3x3 convolutions to replace; leave "
                "'deformable' empty, or use a ResNet, ResNeXt or Res2Net, such as resnet50, resnext101_32x4d or "
                "res2net101d"
            )
        if not blocks[stage]:
            raise RecipeError(
                f"deformable: levels {list(settings.levels)} do not use stage {stage} of '{settings.backbone}'; leave "
                "it out, or add the level"
            )
        for block in blocks[stage]:
            parent, names = (
                (block.convs, [str(index) for index in range(len(block.convs))])
                if isinstance(block, Bottle2neck)
                else (block, ["conv2"])
            )
            for name in names:
                convolution = parent.get_submodule(name)
                assert isinstance(convolution, nn.Conv2d)
                parent.add_module(name, DeformConv2d(convolution))


def _stride_first(blocks: list[ResidualBlock], name: str) -> None:
    """Move the stride of a bottleneck from its 3x3 convolution to the 1x1 convolution before it."""
    halving = [block for block in blocks if isinstance(block, Bottleneck) and block.conv2.stride != (1, 1)]
    if not halving:
        raise RecipeError(
            f"style: 'caffe' moves the stride within the bottlenecks of a ResNet or ResNeXt, which '{name}' does not "
            "have; use 'pytorch', or a backbone such as resnet50, resnet101 or resnext101_32x4d"
        )
    for block in halving:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
