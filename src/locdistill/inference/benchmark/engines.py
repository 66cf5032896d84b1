"""The engines of ``locdistill benchmark``: each computes dense predictions of images in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from locdistill.engine.speed import DTYPES, Precision
from locdistill.geometry.grid import Grid
from locdistill.models.detector import Detector
from locdistill.models.exported import ExportedDetector, FileFacts
from locdistill.models.exporting.network import ExportedNetwork
from locdistill.models.exporting.writing import check_packages, write_onnx
from locdistill.models.fold import SpeedUps, optimised
from locdistill.types import Dense, Tell

See = Callable[[Tensor, Tensor], tuple[Dense, Grid]]
"""Function from padded images and their sizes to predictions and locations."""
Build = Callable[[Detector, Precision, Tell], See]


def eager(detector: Detector, precision: Precision, _tell: Tell) -> See:
    """Build plain PyTorch; half precision uses autocast, as in training."""
    return _seeing(detector, detector, precision)


def compiled(detector: Detector, precision: Precision, tell: Tell) -> See:
    """Build the network with ``torch.compile``, once per batch size, with folded batch normalisation."""
    how = SpeedUps(fold=True, dtype=DTYPES[precision], channels_last=precision != "32")
    network, seen = torch.compile(optimised(detector, how), dynamic=False), set()

    def run(images: Float[Tensor, "b 3 h w"]) -> Dense:
        if len(images) not in seen:
            seen.add(len(images))
            tell(f"compiling for {_images(len(images))}; this can take a minute or more")
        dense: Dense = network(how.images(images))
        return dense

    return _seeing(detector, run, precision)


def _seeing(detector: Detector, network: Callable[[Tensor], Dense], precision: Precision) -> See:
    """Build the function that normalises images and runs this form of the detector's network."""
    dtype = DTYPES[precision]

    def run(images: Float[Tensor, "b 3 h w"]) -> Dense:
        with torch.autocast(detector.device.type, dtype=dtype, enabled=dtype is not None):
            return network(images)

    return lambda images, sizes: detector.see(images, sizes, run)


class OnnxRuntime:
    """An exported file per size and number of images, run by ONNX Runtime in float32 with PyTorch's threads.

    Raises:
        RunError: A package is not installed, or ONNX Runtime cannot compute on the detector's device.
    """

    def __init__(self, detector: Detector, _precision: Precision, tell: Tell) -> None:
        check_packages("onnx")
        self.detector, self.tell = detector, tell
        self.files: dict[tuple[int, ...], ExportedDetector] = {}

    def __call__(self, images: UInt8[Tensor, "b 3 h w"], sizes: Int[Tensor, "b 2"]) -> tuple[Dense, Grid]:
        """Compute dense predictions, on the device of the images."""
        shape = tuple(images.shape)
        if shape not in self.files:
            self.tell(f"exporting to ONNX for {_images(len(images))}")
            facts = FileFacts(
                self.detector.settings, "raw", (shape[2], shape[3]), len(images), "", version("locdistill")
            )
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "network.onnx")
                write_onnx(ExportedNetwork(self.detector, boxes=False), facts, file)
                self.files[shape] = ExportedDetector(file, self.detector.device)
        return self.files[shape].see(images, sizes)


def _images(count: int) -> str:
    return "one image" if count == 1 else f"{count} images"


def in_file(detector: Detector, _precision: Precision, _tell: Tell) -> See:
    """Return the detector as it is: an exported file runs in its own runtime."""
    return detector.see


ENGINES: dict[str, Build] = {
    "eager": eager,
    "compiled": compiled,
    "onnxruntime": OnnxRuntime,
}
"""Engines of weights."""
OF_FILES: dict[str, Build] = {"file": in_file}
"""Engines of exported files."""
