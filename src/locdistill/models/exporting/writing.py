"""Writing of exported files, one function for each format; into a folder of its own, from which they are moved."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from locdistill.errors import RunError
from locdistill.models.exported import BOXES, INPUTS, RAW, FileFacts
from locdistill.models.exporting.network import ExportedNetwork

OPSET = 20
_NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "onnx", "onnxscript"), "torch": ()}
_CANDIDATES = ("candidate_boxes", "candidate_scores")
_SUPPRESSION = f"""
<ir_version: 10, opset_import: ["" : {OPSET}]>
suppression (float[b, m, 4] candidate_boxes, float[b, c, m] candidate_scores, float iou_threshold, int64 max_detections)
    => (float[n, 4] boxes, float[n] scores, int64[n] labels, int64[n] image_index)
{{
    zero = Constant <value_float = 0.0> ()
    no_limit = Constant <value_int = 1000000> ()
    first = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [1]> ()
    image_and_box = Constant <value_ints = [0, 2]> ()
    chosen = NonMaxSuppression (candidate_boxes, candidate_scores, no_limit, iou_threshold, zero)
    all_scores = GatherND (candidate_scores, chosen)
    places = Gather <axis = 1> (chosen, image_and_box)
    all_boxes = GatherND (candidate_boxes, places)
    image_column = Gather <axis = 1> (chosen, first)
    all_images = Squeeze (image_column, second)
    label_column = Gather <axis = 1> (chosen, second)
    all_labels = Squeeze (label_column, second)
    count = Shape (all_scores)
    sorted_scores, order = TopK (all_scores, count)
    sorted_boxes = Gather (all_boxes, order)
    sorted_labels = Gather (all_labels, order)
    sorted_images = Gather (all_images, order)
    shape = Shape (candidate_scores)
    images = Gather (shape, first)
    images_scalar = Squeeze (images, first)
    int_zero = Constant <value_int = 0> ()
    int_one = Constant <value_int = 1> ()
    numbers = Range (int_zero, images_scalar, int_one)
    row = Unsqueeze (sorted_images, second)
    own = Equal (row, numbers)
    own_number = Cast <to = 7> (own)
    so_far = CumSum (own_number, int_zero)
    own_so_far = Mul (so_far, own_number)
    rank = ReduceSum <keepdims = 0> (own_so_far, second)
    kept = LessOrEqual (rank, max_detections)
    boxes = Compress <axis = 0> (sorted_boxes, kept)
    scores = Compress <axis = 0> (sorted_scores, kept)
    labels = Compress <axis = 0> (sorted_labels, kept)
    image_index = Compress <axis = 0> (sorted_images, kept)
}}
"""
"""Suppression by class and image: overlaps above the threshold go; then the best of each image are kept, best first."""


def example(facts: FileFacts) -> tuple[Tensor, Tensor]:
    """Return inputs to trace a network with; two images if their number is open: 1 would be taken for a constant."""
    stride = 2 ** min(5, facts.settings.levels[-1])
    height, width = facts.size or (4 * stride, 6 * stride)
    batch = facts.batch or 2
    images = torch.zeros(batch, 3, height, width, dtype=torch.uint8)
    return images, torch.tensor([[height, width]]).repeat(batch, 1)


def trace(network: ExportedNetwork, facts: FileFacts) -> torch.export.ExportedProgram:
    """Trace a network for the size and the number of images of the file."""
    inputs = tuple(value.to(network.detector.device) for value in example(facts))
    stride = 2 ** min(5, facts.settings.levels[-1])
    batch = {} if facts.batch else {0: torch.export.Dim("batch", min=1, max=4096)}
    sides = {}
    if facts.size is None:
        rows, columns = (torch.export.Dim(name, min=1, max=512) for name in ("rows", "columns"))
        sides = {2: stride * rows, 3: stride * columns}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about its own parts
        return torch.export.export(network, inputs, dynamic_shapes=(batch | sides, batch), strict=False)


def write_onnx(network: ExportedNetwork, facts: FileFacts, path: Path) -> None:
    """Write an ONNX file."""
    import onnx  # noqa: PLC0415 - optional
    from onnx import compose, numpy_helper  # noqa: PLC0415

    raw, settings = _raw_names(network), facts.settings.detections
    names = raw + (_CANDIDATES if network.boxes else ())
    options: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False, "opset_version": OPSET}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = trace(network, facts)
        torch.onnx.export(program, (), str(path), input_names=INPUTS, output_names=names, **options)
    model = onnx.load(str(path))
    if network.boxes:
        # The graph ends with candidates, to which the suppression is appended.
        suppression = compose.add_prefix(
            onnx.parser.parse_model(_SUPPRESSION), "suppression/", rename_inputs=False, rename_outputs=False
        )
        model.ir_version = suppression.ir_version = max(model.ir_version, suppression.ir_version)
        outputs = [*(raw if facts.outputs == "both" else ()), *BOXES]
        model = compose.merge_models(model, suppression, [(name, name) for name in _CANDIDATES], outputs=outputs)
        del model.opset_import[1:]  # the same in both parts
        for name, value in {"iou_threshold": settings.nms_iou, "max_detections": settings.max_detections}.items():
            kind = torch.int64 if isinstance(value, int) else torch.float32
            model.graph.initializer.append(numpy_helper.from_array(torch.tensor(value, dtype=kind).numpy(), name))
            model.graph.input.remove(next(each for each in model.graph.input if each.name == name))
    onnx.helper.set_model_props(model, facts.as_text())
    model.producer_name, model.producer_version = "locdistill", facts.version
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _raw_names(network: ExportedNetwork) -> tuple[str, ...]:
    """Return the names of the raw outputs that the detector has."""
    return RAW if network.detector.kind.quality else RAW[:2]


def write_openvino(network: ExportedNetwork, facts: FileFacts, path: Path) -> None:
    """Write a file of OpenVINO, ``.xml``, and its weights beside it, ``.bin``; converted from ONNX."""
    import openvino  # noqa: PLC0415 - optional

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        write_onnx(network, facts, file)
        model = openvino.convert_model(str(file))
    for name, value in facts.as_text().items():
        model.set_rt_info(value, ["framework", name])
    openvino.serialize(model, str(path), str(path.with_suffix(".bin")))


def write_torch(network: ExportedNetwork, facts: FileFacts, path: Path) -> None:
    """Write a file of ``torch.export``, with the raw outputs."""
    facts = replace(facts, outputs="raw")
    extra = facts.as_text() | {"outputs": json.dumps(_raw_names(network))}
    torch.export.save(trace(network, facts), str(path), extra_files=extra)


FileWriter = Callable[[ExportedNetwork, FileFacts, Path], None]
WRITERS: dict[str, FileWriter] = {"onnx": write_onnx, "openvino": write_openvino, "torch": write_torch}


def check_packages(kind: str) -> None:
    """Check that the packages that write a format are installed.

    Raises:
        RunError: They are not.
    """
    missing = [name for name in _NEEDED[kind] if importlib.util.find_spec(name) is None]
    if missing:
        extra = "onnx" if kind == "onnx" else "openvino,onnx"
        raise RunError(f"files of {kind} need {', '.join(missing)}, not installed: pip install 'locdistill[{extra}]'")
