"""Heads of GFL (Generalized Focal Loss, Li et al. 2020) and GFL v2 (Li et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from locdistill.models.heads.parts import DenseHead, flat, initialise
from locdistill.models.settings import DetectorSettings
from locdistill.types import Dense


class GFLHead(DenseHead):
    """Head that predicts class scores and edge distributions.

    Edge logits are float32 whatever the precision of the network: bfloat16 is too coarse for the distances computed
    from them and for the softened distributions.

    Attributes:
        cls: Predictor of ``classes`` logits per location.
        reg: Predictor of ``edges * (reg_max + 1)`` logits per location, edge by edge: left, top, right, bottom, and for
            rotated boxes the angle.
        scales: One factor of the edge logits per level, since levels share the tower but not the range of object sizes.
    """

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__(settings)
        self.cls = nn.Conv2d(settings.channels, self.classes, 3, padding=1)
        self.reg = nn.Conv2d(settings.channels, self.edges * self.bins, 3, padding=1)
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(1.0)) for _ in settings.levels)
        initialise(self, self.cls)

    def finish(self, maps: Sequence[Tensor], first: int = 0) -> Dense:
        """Compute predictions; see :meth:`DenseHead.finish`."""
        classes = [self.cls(self.cls_tower.finish(level)) for level in maps[::2]]
        edges = [
            (self.reg(self.reg_tower.finish(level)) * scale).float()
            for level, scale in zip(maps[1::2], list(self.scales)[first : first + len(maps) // 2], strict=True)
        ]
        return Dense(flat(classes, self.classes), flat(edges, self.edges, self.bins))


class GFLv2Head(GFLHead):
    """Head of GFL whose class scores are multiplied by a quality computed from the edge distributions.

    A sharp distribution indicates a well-placed edge: the four largest probabilities of each edge and their mean, 20
    numbers per location, go through two 1x1 convolutions (Li et al. 2021, section 3.2). The gradient flows back into
    the distributions.

    Attributes:
        quality: The two convolutions.
    """

    TOP = 4
    HIDDEN = 64

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__(settings)
        self.quality = nn.Sequential(
            nn.Conv2d(self.edges * (self.TOP + 1), self.HIDDEN, 1), nn.ReLU(inplace=True), nn.Conv2d(self.HIDDEN, 1, 1)
        )
        initialise(self, self.cls)

    def finish(self, maps: Sequence[Tensor], first: int = 0) -> Dense:
        """Compute predictions with a quality; see :meth:`GFLHead.finish`."""
        dense = super().finish(maps, first)
        return dense._replace(quality_logits=self.read(dense.edge_logits), quality_in_score=True)

    def read(self, edge_logits: Tensor) -> Tensor:
        """Compute quality logits ``(b, l)`` from edge logits ``(b, l, 4, n)``."""
        largest = edge_logits.softmax(-1).topk(self.TOP, -1).values
        statistics = torch.cat((largest, largest.mean(-1, keepdim=True)), -1).flatten(2)
        quality: Tensor = self.quality(statistics.transpose(1, 2)[..., None])
        return quality[:, 0, :, 0]
