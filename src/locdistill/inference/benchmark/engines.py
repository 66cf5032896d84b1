"""The engines of ``locdistill benchmark``: each computes dense predictions of normalised images."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from locdistill.engine.speed import DTYPES, Precision
from locdistill.errors import RunError
from locdistill.models.detector import Detector
from locdistill.models.fold import SpeedUps, optimised
from locdistill.models.onnx import INPUT, OUTPUTS, export_onnx
from locdistill.types import Dense, Tell

Network = Callable[[Tensor], Dense]
Build = Callable[[Detector, Precision, Tell], Network | None]


def eager(detector: Detector, precision: Precision, _tell: Tell) -> Network:
    """Build plain PyTorch; half precision uses autocast, as in training."""
    return _in_precision(detector, detector.device, precision)


def compiled(detector: Detector, precision: Precision, tell: Tell) -> Network:
    """Build the network with ``torch.compile``, once per batch size, with folded batch normalisation."""
    how = SpeedUps(fold=True, dtype=DTYPES[precision], channels_last=precision != "32")
    network, seen = torch.compile(optimised(detector, how), dynamic=False), set()

    def run(images: Float[Tensor, "b 3 h w"]) -> Dense:
        if len(images) not in seen:
            seen.add(len(images))
            tell(f"compiling for {_images(len(images))}; this can take a minute or more")
        dense: Dense = network(how.images(images))
        return dense

    return _in_precision(run, detector.device, precision)


def _in_precision(network: Network, device: torch.device, precision: Precision) -> Network:
    dtype = DTYPES[precision]
    if dtype is None:
        return network

    def run(images: Float[Tensor, "b 3 h w"]) -> Dense:
        with torch.autocast(device.type, dtype=dtype):
            return network(images)

    return run


class OnnxRuntime:
    """The dense network in an ONNX file per batch size, run by ONNX Runtime in float32 with PyTorch's threads.

    Raises:
        RunError: ONNX Runtime is not installed, or not for the device that the detector is on.
    """

    def __init__(self, detector: Detector, _precision: Precision, tell: Tell) -> None:
        try:
            self.runtime = importlib.import_module("onnxruntime")
        except ImportError:
            raise RunError("ONNX Runtime is not installed: pip install 'locdistill[onnx]'") from None
        self.provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(detector.device.type)
        if self.provider not in self.runtime.get_available_providers():
            raise RunError(
                f"this ONNX Runtime cannot compute on {detector.device.type}"
                + (": pip install onnxruntime-gpu in place of onnxruntime" if detector.device.type == "cuda" else "")
            )
        self.detector, self.tell = detector, tell
        with torch.no_grad():
            self.pattern: Dense = detector(torch.zeros(1, 3, 64, 64, device=detector.device))
        self.sessions: dict[tuple[int, ...], Any] = {}

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Dense:
        """Compute dense predictions, on the device of the images."""
        shape = tuple(images.shape)
        if shape not in self.sessions:
            self.tell(f"exporting to ONNX for {_images(len(images))}")
            options = self.runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3
            with tempfile.TemporaryDirectory() as folder:
                side = (int(images.shape[-2]), int(images.shape[-1]))
                file = export_onnx(self.detector, Path(folder, "network.onnx"), side, batch=len(images))
                session = self.runtime.InferenceSession(str(file), options, providers=[self.provider])
            self.sessions[shape] = session
        values = self.sessions[shape].run(None, {INPUT: images.cpu().numpy()})
        tensors: dict[str, Any] = {
            name: torch.from_numpy(value).to(images.device) for name, value in zip(OUTPUTS, values, strict=False)
        }
        return self.pattern._replace(**tensors)


def _images(count: int) -> str:
    return "one image" if count == 1 else f"{count} images"


def in_file(_detector: Detector, _precision: Precision, _tell: Tell) -> None:
    """Build nothing: an exported file runs in its own runtime."""
    return


ENGINES: dict[str, Build] = {
    "eager": eager,
    "compiled": compiled,
    "onnxruntime": OnnxRuntime,
}
"""Engines of weights."""
OF_FILES: dict[str, Build] = {"file": in_file}
"""Engines of exported files."""
