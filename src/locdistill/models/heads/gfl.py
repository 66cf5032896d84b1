"""The head of GFL (Generalized Focal Loss, Li et al. 2020): class scores and edge distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from locdistill.models.settings import DetectorSettings

EDGES = 4
PRIOR = 0.01  # probability that a class score has before training (focal loss, Lin et al. 2017, section 4.1)


class GroupNorm(nn.GroupNorm):
    """Group normalisation that also takes groups of a single value, for which it gives the bias.

    PyTorch's own refuses one image with a 1x1 map and one channel per group, even in inference; the coarsest level of
    a small image is such a map.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over each group of channels and all places."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class ConvNormAct(nn.Module):
    """A 3x3 convolution without bias, group normalisation, ReLU."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = GroupNorm(groups, channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three."""
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


class GFLHead(nn.Module):
    """Two towers of convolutions, shared by all levels, that predict class scores and edge distributions.

    The edge logits of a level are multiplied by a learned scalar of that level, since the levels share the tower but
    not the range of object sizes. Convolutions start from N(0, 0.01), and class scores near 0.01.

    Attributes:
        cls_tower: Convolutions before the class scores.
        reg_tower: Convolutions before the edge distributions.
        cls: Predicts ``classes`` logits per location.
        reg: Predicts ``4 * (reg_max + 1)`` logits per location: left, top, right, bottom; bins within an edge.
        scales: One scalar per level.
    """

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        channels, self.bins = settings.channels, settings.reg_max + 1
        self.cls_tower = self._tower(settings)
        self.reg_tower = self._tower(settings)
        self.cls = nn.Conv2d(channels, len(settings.classes), 3, padding=1)
        self.reg = nn.Conv2d(channels, EDGES * self.bins, 3, padding=1)
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(1.0)) for _ in settings.levels)
        self._initialise()

    @staticmethod
    def _tower(settings: DetectorSettings) -> nn.Sequential:
        return nn.Sequential(*(ConvNormAct(settings.channels, settings.norm_groups) for _ in range(settings.depth)))

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.cls.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits ``(b, l, c)`` and edge logits ``(b, l, 4, n)``, flattened level by level, row by row.

        Edge logits are float32 whatever the precision of the network: the distances that come of them, and the
        softened distributions, do not survive bfloat16.
        """
        classes, edges = [], []
        for level, scale in zip(levels, self.scales, strict=True):
            classes.append(self.cls(self.cls_tower(level)).flatten(2).transpose(1, 2))
            distribution = (self.reg(self.reg_tower(level)) * scale).float()
            edges.append(distribution.flatten(2).transpose(1, 2).unflatten(-1, (EDGES, self.bins)))
        return torch.cat(classes, 1), torch.cat(edges, 1)
