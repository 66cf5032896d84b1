"""Configuration files of MMDetection (``.py``), read as plain data: they are parsed and never executed.

Such a file assigns literals, ``dict(...)`` and names assigned before; anything else is refused. Files in ``_base_`` are
read likewise, where they lie at the stated place.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from locdistill.errors import WeightsError
from locdistill.settings import group

_BASE, _DELETE = "_base_", "_delete_"
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_LARGEST = 1e9
"""Limit of numbers that are computed with: their products may not fill the memory."""
_NMS = {"nms": "plain", "nms_rotated": "plain", "voting_cluster_diounms": "voting_cluster_diou"}
_DEPTHS = {"ResNet": "resnet{depth}", "Res2Net": "res2net{depth}d", "ResNeXt": "resnext{depth}_{groups}x{base_width}d"}


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a detector that its weights do not show: classes, input, normalisation, test settings."""
    model = group(config, "model")
    backbone, processor = group(model, "backbone"), group(model, "data_preprocessor")
    found: dict[str, Any] = {}
    if "style" in backbone:
        found["style"] = backbone["style"]
        found["norm_frozen"] = group(backbone, "norm_cfg").get("requires_grad") is False
    steps = _pipeline(config)
    norm = processor or group(config, "img_norm_cfg") or _step(steps, "Normalize")
    for key in ("mean", "std"):
        values = norm.get(key)
        if isinstance(values, list | tuple) and len(values) == 3:
            found[key] = tuple(float(value) for value in values)
    swapped = norm.get("bgr_to_rgb", norm.get("to_rgb"))
    if isinstance(swapped, bool):
        found["bgr"] = not swapped
    if (classes := _classes(config)) is not None:
        found["classes"] = classes
    if detections := _detections(group(model, "test_cfg") or group(config, "test_cfg")):
        found["detections"] = detections
    sizes = [step.get(key) for step in steps for key in ("img_scale", "scale")]
    pairs = (size for size in sizes if isinstance(size, list | tuple) and len(size) == 2)
    if size := next((pair for pair in pairs if all(isinstance(side, int) for side in pair)), None):
        divisor = _step(steps, "Pad").get("size_divisor") or processor.get("pad_size_divisor")
        padded = {"pad_to": divisor} if isinstance(divisor, int) else {}
        found["input"] = {"short": min(size), "long": max(size)} | padded
    return found


def architecture_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a detector that its weights show, too, for comparison with them."""
    model = group(config, "model")
    backbone, head = group(model, "backbone"), group(model, "bbox_head")
    found: dict[str, Any] = {}
    name = _DEPTHS.get(str(backbone.get("type")))
    if name is not None and "depth" in backbone:
        found["backbone"] = name.format_map({"groups": 32, "base_width": 4} | backbone)
        staged = backbone.get("stage_with_dcn", ()) if backbone.get("dcn") else ()
        found["deformable"] = tuple(stage for stage, deformed in enumerate(staged, start=1) if deformed)
    for key, theirs in (("reg_max", "reg_max"), ("channels", "feat_channels"), ("depth", "stacked_convs")):
        if theirs in head:
            found[key] = head[theirs]
    return found | ({"number of classes": head["num_classes"]} if "num_classes" in head else {})


def read_config(path: str | Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a configuration file as plain data, merged over its bases.

    Args:
        path: The file.
        seen: The files that have it as a base.

    Raises:
        WeightsError: It is not there, not Python, or computes anything.
    """
    path = Path(path)
    if path in seen:
        raise WeightsError(f"{path}: its '{_BASE}' leads back to itself")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        how = (
            f"; it is in '{_BASE}' of {seen[-1]}: copy that file to the stated place, or remove the line"
            if seen
            else ""
        )
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}){how}") from error
    except (ValueError, SyntaxError, RecursionError) as error:
        raise WeightsError(f"{path}: no Python file ({error}); expected a configuration of MMDetection") from error
    values: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a comment in quotes
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                values[name] = _value(value, values, path)
            case _:
                raise _refusal(path, node)
    named = values.pop(_BASE, [])
    below: dict[str, Any] = {}
    for base in [named] if isinstance(named, str) else named:
        below = _merged(below, read_config(path.parent / str(base), (*seen, path)))
    return _merged(below, values)


def _value(node: ast.expr, names: Mapping[str, Any], path: Path) -> Any:
    """Return the value of an expression that is plain data.

    Raises:
        WeightsError: It would have to be executed.
    """
    match node:
        case ast.Constant():
            return node.value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            listed = [_value(part, names, path) for part in parts]
            return tuple(listed) if isinstance(node, ast.Tuple) else listed
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            named = [key.value for key in keys if isinstance(key, ast.Constant)]
            return {key: _value(value, names, path) for key, value in zip(named, values, strict=True)}
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=words) if all(word.arg for word in words):
            return {str(word.arg): _value(word.value, names, path) for word in words}
        case ast.UnaryOp(op=ast.USub()) | ast.BinOp():
            return _number(node, names, path)
    raise _refusal(path, node)


def _number(node: ast.UnaryOp | ast.BinOp, names: Mapping[str, Any], path: Path) -> Any:
    """Compute a negative number, or a sum, difference, product or quotient of two numbers."""
    parts = [node.operand] if isinstance(node, ast.UnaryOp) else [node.left, node.right]
    numbers = [_value(part, names, path) for part in parts]
    if not all(isinstance(number, int | float) for number in numbers):
        raise _refusal(path, node)
    if isinstance(node, ast.UnaryOp):
        return -numbers[0]
    operation = _ARITHMETIC.get(type(node.op))
    by_zero = operation is operator.truediv and numbers[1] == 0
    if operation is None or by_zero or max(map(abs, numbers)) > _LARGEST:
        raise _refusal(path, node)
    return operation(*numbers)


def _refusal(path: Path, node: ast.AST) -> WeightsError:
    line = getattr(node, "lineno", 1)
    return WeightsError(
        f"{path}: line {line} is not plain data ({ast.unparse(node).splitlines()[0][:60]}), and a configuration is "
        "never executed here; leave it out, and give what it sets as KEY=VALUE"
    )


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Merge dictionaries key by key, as MMDetection does; one with ``_delete_`` replaces the other."""
    merged = dict(base)
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict) and not value.get(_DELETE):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = {k: v for k, v in value.items() if k != _DELETE} if isinstance(value, dict) else value
    return merged


def _pipeline(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the steps of the test pipeline, those inside of other steps among them."""
    data = group(group(config, "data"), "test").get("pipeline") or config.get("test_pipeline") or []
    loader = group(group(config, "test_dataloader"), "dataset").get("pipeline")
    steps = [step for step in (loader or data) if isinstance(step, dict)]
    inner = [own for step in steps for own in step.get("transforms", ()) if isinstance(own, dict)]
    return [*steps, *inner]


def _step(steps: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next((step for step in steps if step.get("type") == kind), {})


def _detections(test: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of post-processing.

    Raises:
        WeightsError: The suppression of overlapping boxes is of a kind that is not offered.
    """
    nms = group(test, "nms")
    known = {
        "score_threshold": test.get("score_thr"),
        "candidates": test.get("nms_pre"),
        "max_detections": test.get("max_per_img"),
        "nms_iou": nms.get("iou_threshold", nms.get("iou_thr")),
    }
    if "type" in nms:
        if nms["type"] not in _NMS:
            raise WeightsError(f"its test settings have nms of type {nms['type']}; offered are {', '.join(_NMS)}")
        known["nms"] = _NMS[nms["type"]]
    return {key: value for key, value in known.items() if value is not None}


def _classes(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    train = group(group(config, "data"), "train")
    loader = group(group(config, "train_dataloader"), "dataset")
    for place in (config, train, group(config, "metainfo"), loader, group(loader, "metainfo")):
        for key in ("classes", "CLASSES"):
            names = place.get(key)
            if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
                return tuple(names)
    return None
