"""The assigners by the names that recipes use."""

from __future__ import annotations

from locdistill.assign.atss import ATSS
from locdistill.assign.fcos import FCOSPoints
from locdistill.assign.max_iou import MaxIoU

ASSIGNERS: dict[str, type] = {"atss": ATSS, "fcos": FCOSPoints, "max_iou": MaxIoU}
