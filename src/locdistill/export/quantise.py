"""8-bit convolutions in an ONNX file: static quantisation by ONNX Runtime, calibrated on training images."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from locdistill.data.open import open_dataset
from locdistill.data.settings import DataSettings
from locdistill.errors import RunError
from locdistill.images import pad_together
from locdistill.models.detector import Detector
from locdistill.models.exported import FileFacts, fitted

CALIBRATION = 64
"""Number of images that ranges are measured on."""


def quantised(file: Path, facts: FileFacts, detector: Detector, data: DataSettings) -> None:
    """Replace the convolutions of a file by 8-bit ones (QDQ: weights per channel, activations per tensor).

    Everything else stays in 32 bits: the softmax over bins, its mean, decoding and suppression.

    Args:
        file: An ONNX file, which is replaced.
        facts: Its metadata.
        detector: The detector, whose reading and resizing of images is used.
        data: The data set; training images are used, without augmentation.

    Raises:
        RunError: ONNX Runtime is not installed.
    """
    try:
        import onnx  # noqa: PLC0415 - optional
        from onnxruntime import quantization  # noqa: PLC0415
    except ImportError:
        raise RunError("--int8 needs ONNX Runtime, not installed: pip install 'locdistill[onnx]'") from None

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.items = _inputs(facts, detector, data)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.items, None)

    with tempfile.TemporaryDirectory(dir=file.parent) as folder, _quiet():
        done = Path(folder) / file.name
        quantization.quantize_static(
            str(file),
            str(done),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["Conv"],
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        model = onnx.load(str(done))
        onnx.helper.set_model_props(model, facts.as_text())
        onnx.save(model, str(file))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back ONNX Runtime's advice to optimise the graph first, which the exporter has done."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _inputs(facts: FileFacts, detector: Detector, data: DataSettings) -> Iterator[dict[str, Any]]:
    """Yield the inputs of a file for training images, spread over the data set."""
    records = open_dataset(data, "train", training=False).records
    step = max(len(records) // CALIBRATION, 1)
    for record in records[::step][:CALIBRATION]:
        prepared = detector.prepare(record.path) if facts.size is None else fitted(record.path, facts.size)
        image, (height, width) = prepared.images[0], prepared.padded[0]
        images = pad_together([image] * (facts.batch or 1), height=height, width=width)
        sizes = torch.tensor([image.shape[-2:]] * len(images))
        yield {"images": images.contiguous().numpy(), "sizes": sizes.numpy()}
