"""The kinds of detectors: what sets them apart beside their losses, which are terms of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from locdistill.models.fpn import ExtraLevels
from locdistill.models.heads.centerness import CenternessHead
from locdistill.models.heads.gfl import GFLHead, GFLv2Head
from locdistill.models.heads.retina import RetinaHead


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of detector.

    Attributes:
        head: Built from the settings; called with the levels of a pyramid it gives `Dense`.
        extra: What the further levels of the pyramid are made of.
        offset: Position of a location within its cell, in strides.
        octaves: Anchor sizes per ratio.
        ratios: Height over width of the anchors of a cell.
    """

    head: type[nn.Module]
    extra: ExtraLevels = "output"
    offset: float = 0.0
    octaves: int = 1
    ratios: tuple[float, ...] = (1.0,)


KINDS: dict[str, Kind] = {
    "gfl": Kind(head=GFLHead),
    "gflv2": Kind(head=GFLv2Head),
    "atss": Kind(head=CenternessHead),
    "fcos": Kind(head=CenternessHead, extra="output_relu", offset=0.5),
    "retinanet": Kind(head=RetinaHead, extra="input", octaves=3, ratios=(0.5, 1.0, 2.0)),
}
