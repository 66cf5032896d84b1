"""Export of a detector's network to ONNX: normalised images in, dense predictions out.

Pre- and post-processing (normalisation, selection, suppression) are not in the file.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from locdistill.errors import RunError
from locdistill.models.detector import Detector

INPUT = "images"
OUTPUTS = ("cls_logits", "edge_logits", "quality_logits")
"""Names of the outputs, those of `Dense`; the last only where the head has a quality."""
NEEDED = ("onnx", "onnxscript")


class _Network(nn.Module):
    """Detector with its predictions as plain tensors."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        dense = self.detector(images)
        return tuple(value for name in OUTPUTS if (value := getattr(dense, name)) is not None)


def export_onnx(detector: Detector, path: str | Path, size: tuple[int, int], batch: int = 1) -> Path:
    """Write the network, in evaluation mode and float32, for a fixed number of images of one size.

    Args:
        detector: The detector, unchanged afterwards.
        path: The file; it contains the weights, so it may not exceed 2 GB.
        size: Height and width of the padded images.
        batch: Number of images.

    Returns:
        The path.

    Raises:
        RunError: A package that PyTorch's exporter needs is not installed.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(
            f"the export to ONNX needs {' and '.join(missing)}, not installed: pip install 'locdistill[onnx]'"
        )
    network = _Network(detector)
    training = detector.training
    detector.eval()
    options: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own deprecations, which cannot be fixed here
            images = torch.zeros(batch, 3, *size, device=detector.device)
            # Names are matched to as many outputs as there are.
            names = OUTPUTS[: len(network(images))]
            torch.onnx.export(network, (images,), str(path), input_names=[INPUT], output_names=names, **options)
    finally:
        detector.train(training)
    return Path(path)
