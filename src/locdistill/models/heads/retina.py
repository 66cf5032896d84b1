"""Head of RetinaNet (Lin et al. 2017) with edge distributions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from locdistill.models.heads.parts import DenseHead, flat, initialise
from locdistill.models.settings import DetectorSettings
from locdistill.types import Dense


class RetinaHead(DenseHead):
    """Head with outputs for each of the nine anchors of a cell; edge logits have no factor per level.

    Distances are measured from the cell's point (here its corner, a multiple of the stride), which is the centre of all
    its anchors: their shapes matter for the assignment only, unless the growth of an anchor is predicted.

    Attributes:
        cls: Predictor of ``anchors * classes`` logits per cell, anchor by anchor.
        reg: Predictor of ``anchors * edges * (reg_max + 1)`` logits per cell, anchor by anchor; the angle of a rotated
            box is a fifth edge.
    """

    ANCHORS = 9

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__(settings)
        channels, side = settings.channels, settings.predictor
        self.cls = nn.Conv2d(channels, self.ANCHORS * self.classes, side, padding=side // 2)
        self.reg = nn.Conv2d(channels, self.ANCHORS * self.edges * self.bins, side, padding=side // 2)
        initialise(self, self.cls)

    def finish(self, maps: Sequence[Tensor], first: int = 0) -> Dense:  # noqa: ARG002 - levels are alike
        """Compute predictions, nine locations per cell; see :meth:`DenseHead.finish`."""
        classes = [self.cls(self.cls_tower.finish(level)) for level in maps[::2]]
        edges = [self.reg(self.reg_tower.finish(level)).float() for level in maps[1::2]]
        return Dense(flat(classes, self.classes), flat(edges, self.edges, self.bins))
