"""Parts of the heads of dense detectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from locdistill.models.settings import DetectorSettings
from locdistill.types import Dense

PRIOR = 0.01  # probability that a class score has before training (focal loss, Lin et al. 2017, section 4.1)


class GroupNorm(nn.GroupNorm):
    """Group normalisation that also accepts groups of a single value, for which it returns the bias.

    PyTorch's own refuses one image with a 1x1 map and one channel per group, even in inference; the coarsest level of
    a small image is such a map.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over each group of channels and all positions."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class ConvNormAct(nn.Module):
    """3x3 convolution, group normalisation, ReLU; with ``groups=0`` a bias replaces the normalisation."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=not groups)
        self.norm = GroupNorm(groups, channels) if groups else nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three."""
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


class Tower(nn.Sequential):
    """Convolutions before a predictor, in two halves; another head's map may be inserted in between.

    The first half is all but the last convolution (up to the third of four in CrossKD), or none.
    """

    def begin(self, x: Tensor) -> Tensor:
        """Apply the first half, up to before its last ReLU; return ``x`` itself if the half has no convolution."""
        blocks = list(self)[:-1]
        for block in blocks[:-1]:
            x = block(x)
        for block in blocks[-1:]:
            assert isinstance(block, ConvNormAct)
            x = block.norm(block.conv(x))
        return x

    def finish(self, x: Tensor) -> Tensor:
        """Apply the remaining convolutions before the predictor; ``x`` may be overwritten."""
        x = torch.relu_(x) if len(self) > 1 else x
        for block in list(self)[-1:]:
            x = block(x)
        return x


class DenseHead(nn.Module):
    """Two towers of convolutions, shared by all levels, whose predictors subclasses add.

    Attributes:
        cls_tower: Convolutions before the class scores.
        reg_tower: Convolutions before the edge distributions.
    """

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        self.classes = len(settings.classes) + settings.background_channel
        self.edges, self.bins = settings.edges, settings.reg_max + 1
        channels, groups = settings.channels, settings.norm_groups
        self.cls_tower = Tower(*(ConvNormAct(channels, groups) for _ in range(settings.depth)))
        self.reg_tower = Tower(*(ConvNormAct(channels, groups) for _ in range(settings.depth)))

    def forward(self, levels: Sequence[Tensor]) -> Dense:
        """Compute class and edge logits from the maps of a pyramid, finest first."""
        return self.finish(self.begin(levels))

    def begin(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Compute maps before the last convolution of each of the two towers: classes and edges, level by level."""
        return [tower.begin(level) for level in levels for tower in (self.cls_tower, self.reg_tower)]

    def finish(self, maps: Sequence[Tensor], first: int = 0) -> Dense:
        """Compute predictions from the maps of `begin`, of this head or of another one.

        Args:
            maps: Two maps per level; may be overwritten.
            first: Index of their first level.
        """
        raise NotImplementedError


def initialise(head: nn.Module, classes: nn.Conv2d) -> None:
    """Initialise convolutions from N(0, 0.01), biases with 0, and class scores near 0.01."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.constant_(classes.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]


def flat(maps: Sequence[Tensor], *shape: int) -> Tensor:
    """Flatten the levels' maps, ``(b, k, h, w)`` each, to one ``(b, l, *shape)``: level by level, row by row.

    Where ``k`` is a multiple of the product of ``shape``, a cell has that many locations, one after another.
    """
    # Not len(level), which an export to other formats would take for a constant.
    return torch.cat([level.flatten(2).transpose(1, 2).reshape(level.shape[0], -1, *shape) for level in maps], 1)
