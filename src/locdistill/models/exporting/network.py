"""A detector as one function of tensors, to be traced: 8-bit images in, dense predictions and candidate boxes out."""

from __future__ import annotations

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from locdistill.errors import RecipeError
from locdistill.geometry.coding import Distances, decode
from locdistill.geometry.grid import level_points
from locdistill.models.detector import Detector
from locdistill.types import Dense


class ExportedNetwork(nn.Module):
    """A detector with its normalisation and, for boxes, decoding and the choice of candidates.

    It follows :func:`locdistill.models.postprocess.candidates`, level by level and without a shape that a trace would
    take for a constant.

    Args:
        detector: The detector.
        boxes: Whether candidate boxes are computed.

    Raises:
        RecipeError: The detector's boxes cannot be suppressed in the file.
    """

    def __init__(self, detector: Detector, *, boxes: bool) -> None:
        super().__init__()
        self.detector, self.boxes = detector, boxes
        if boxes and not isinstance(detector.coding, Distances):
            raise RecipeError(
                "rotated boxes have no suppression in these formats; export the raw outputs with --outputs raw"
            )
        if boxes and detector.settings.detections.nms != "plain":
            raise RecipeError(
                f"detections.nms={detector.settings.detections.nms} cannot be computed in the file; export the raw "
                "outputs with --outputs raw, or set detections.nms=plain"
            )

    def forward(self, images: UInt8[Tensor, "b 3 h w"], sizes: Int[Tensor, "b 2"]) -> tuple[Tensor, ...]:
        """Compute the outputs.

        Args:
            images: RGB, padded at the right and the bottom with any values.
            sizes: Height and width of each image without padding.

        Returns:
            ``cls_logits (b, l, c)``, ``edge_logits (b, l, e, n)``, ``quality_logits (b, l)`` where the detector has
            them; with boxes also candidates ``(b, m, 4)`` in pixels of the padded image, and their scores
            ``(b, c, m)``, 0 where they are not above ``detections.score_threshold``.
        """
        own = self.detector
        dense: Dense = own(own.normalise(images, sizes))
        classes = dense.cls_logits[..., : len(own.settings.classes)]
        raw = (classes, dense.edge_logits, *(() if dense.quality_logits is None else (dense.quality_logits,)))
        if not self.boxes:
            return raw
        judged = ranked = classes.float().sigmoid()
        if dense.quality_logits is not None:
            ranked = judged * dense.quality_logits.float().sigmoid()[..., None]
            judged = ranked if dense.quality_in_score else judged
        scores = torch.where(judged > own.settings.detections.score_threshold, ranked, 0.0)
        per_cell = own.kind.octaves * len(own.kind.ratios)
        places, values, start = [], [], 0
        for level, stride in zip(own.settings.levels, own.settings.strides, strict=True):
            height, width = (-(-side // 2**level) for side in images.shape[-2:])
            x, y = level_points(height, width, stride, offset=own.kind.offset, per_cell=per_cell, device=ranked.device)
            count = height * width * per_cell
            edges = own.bins.expect(dense.edge_logits[:, start : start + count].float())
            boxes = decode(torch.stack((x, y), -1) / stride, edges) * stride
            best = ranked[:, start : start + count].amax(-1)
            chosen = best.topk(torch.sym_min(count, own.settings.detections.candidates)).indices[..., None]
            places.append(boxes.gather(1, chosen.expand(-1, -1, 4)))
            values.append(scores[:, start : start + count].gather(1, chosen.expand(-1, -1, scores.shape[-1])))
            start = start + count
        clipped = own.coding.kind.clipped(torch.cat(places, 1), sizes[:, None])
        return (*raw, clipped, torch.cat(values, 1).transpose(1, 2))
