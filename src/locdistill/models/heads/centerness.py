"""Head of ATSS (Zhang et al. 2020) and FCOS (Tian et al. 2019) with edge distributions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from locdistill.models.heads.gfl import GFLHead
from locdistill.models.heads.parts import flat, initialise
from locdistill.models.settings import DetectorSettings
from locdistill.types import Dense


class CenternessHead(GFLHead):
    """Head of GFL with one more predictor, on the tower of the edges: the centerness of the location in its object.

    Attributes:
        centerness: Predictor of one logit per location, which ranks detections.
    """

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__(settings)
        self.centerness = nn.Conv2d(settings.channels, 1, 3, padding=1)
        initialise(self, self.cls)

    def finish(self, maps: Sequence[Tensor], first: int = 0) -> Dense:
        """Compute predictions with a centerness; see :meth:`GFLHead.finish`."""
        classes, edges, centerness = [], [], []
        for cls_map, reg_map, scale in zip(
            maps[::2], maps[1::2], list(self.scales)[first : first + len(maps) // 2], strict=True
        ):
            classes.append(self.cls(self.cls_tower.finish(cls_map)))
            tower = self.reg_tower.finish(reg_map)
            edges.append((self.reg(tower) * scale).float())
            centerness.append(self.centerness(tower))
        return Dense(flat(classes, self.classes), flat(edges, self.edges, self.bins), flat(centerness))
