"""Head of RetinaNet (Lin et al. 2017) with edge distributions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from locdistill.models.heads.parts import begin, flat, initialise, predictor, tower
from locdistill.models.settings import DetectorSettings
from locdistill.types import Dense


class RetinaHead(nn.Module):
    """Two towers whose predictors have outputs for each of the anchors of a cell; edge logits have no factor per level.

    Distances are measured from the cell's point (here its corner, a multiple of the stride), which is the centre of all
    its anchors: their shapes matter for the assignment only, unless the growth of an anchor is predicted.

    Attributes:
        cls_tower: Convolutions before the class scores.
        reg_tower: Convolutions before the edge distributions.
        cls: Predictor of ``anchors * classes`` logits per cell, anchor by anchor.
        reg: Predictor of ``anchors * edges * (reg_max + 1)`` logits per cell, anchor by anchor; the angle of a rotated
            box is a fifth edge.
    """

    ANCHORS = 9

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        self.classes, self.edges, self.bins = settings.class_outputs, settings.edges, settings.reg_max + 1
        self.cls_tower, self.reg_tower = tower(settings), tower(settings)
        self.cls = predictor(settings, self.ANCHORS * self.classes)
        self.reg = predictor(settings, self.ANCHORS * self.edges * self.bins)
        initialise(self, self.cls)

    def forward(self, levels: Sequence[Tensor]) -> Dense:
        """Compute class and edge logits from the maps of a pyramid, finest first; nine locations per cell."""
        return self.finish(self.begin(levels))

    def begin(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Compute maps before the last convolution of each of the two towers: classes and edges, level by level."""
        return begin((self.cls_tower, self.reg_tower), levels)

    def finish(self, maps: Sequence[Tensor], first: int = 0) -> Dense:  # noqa: ARG002 - levels are alike
        """Compute predictions from the maps of `begin`, which may be overwritten, of this head or of another one."""
        classes = [self.cls(self.cls_tower.finish(level)) for level in maps[::2]]
        edges = [self.reg(self.reg_tower.finish(level)).float() for level in maps[1::2]]
        return Dense(flat(classes, self.classes), flat(edges, self.edges, self.bins))
