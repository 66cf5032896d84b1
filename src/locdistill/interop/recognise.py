"""Recognition of an MMDetection detector from the names and shapes of its tensors.

Input and output are plain data: the result is the settings of a detector as in a recipe. What shapes do not determine
(the order of the colours, which convolution of a bottleneck halves the resolution) is read from the configuration text
that training programs store with the weights, which is searched, never run; without it, that of the published detectors
is assumed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from locdistill.errors import WeightsError
from locdistill.interop.classes import BY_COUNT, COCO, DOTA_BY_COUNT
from locdistill.interop.mmdet import ANCHORS, ANGLE_BINS, edges_of
from locdistill.types import Triple

Shapes = Mapping[str, tuple[int, ...]]

# Kind, its predictors of classes and edges, and a name that distinguishes it from the kinds below it.
KINDS = (
    ("gflv2", "gfl_cls", "gfl_reg", "bbox_head.reg_conf."),
    ("gfl", "gfl_cls", "gfl_reg", "bbox_head.gfl_"),
    ("atss", "atss_cls", "atss_reg", "bbox_head.atss_centerness."),
    ("fcos", "conv_cls", "conv_reg", "bbox_head.conv_centerness."),
    ("retinanet", "atss_cls", "atss_reg", "bbox_head.atss_"),
    ("rotated_retinanet", "retina_cls", "retina_reg", "bbox_head.retina_"),
)
# By kind of block, blocks per stage, groups and width of the first 3x3 convolution: the name in timm.
BACKBONES: dict[tuple[str, tuple[int, ...], int, int], str] = {
    ("basic", (2, 2, 2, 2), 1, 64): "resnet18",
    ("basic", (3, 4, 6, 3), 1, 64): "resnet34",
    ("bottleneck", (3, 4, 6, 3), 1, 64): "resnet50",
    ("bottleneck", (3, 4, 23, 3), 1, 64): "resnet101",
    ("bottleneck", (3, 8, 36, 3), 1, 64): "resnet152",
    ("bottleneck", (3, 4, 6, 3), 32, 128): "resnext50_32x4d",
    ("bottleneck", (3, 4, 23, 3), 32, 128): "resnext101_32x4d",
    ("bottleneck", (3, 4, 23, 3), 64, 256): "resnext101_64x4d",
    ("Res2Net", (3, 4, 6, 3), 1, 26): "res2net50d",
    ("Res2Net", (3, 4, 23, 3), 1, 26): "res2net101d",
}
SUPPORTED = (
    "ResNet-18, 34, 50, 101 and 152, ResNeXt-50 and 101 32x4d, ResNeXt-101 64x4d, Res2Net-50 and 101 v1d 26w 4s, each "
    "with or without deformable convolutions"
)
# Names that identify other detectors. The first match decides.
OTHER_DETECTORS = (
    (r"roi_head\.|rpn_head\.", "a two-stage detector (Faster R-CNN and its like)"),
    (r"bbox_head\.vfnet_", "VarifocalNet, whose edges are single numbers"),
    (r"bbox_head\.(tood_|cls_decomp)", "TOOD, whose edges are single numbers"),
    (r"bbox_head\.rtm_", "RTMDet, whose edges are single numbers"),
    (r"bbox_head\.(convs_pred|multi_level_cls_convs)|^model\.\d+\.", "a YOLO, whose edges are single numbers"),
    (
        r"bbox_head\.(fc_cls|transformer|cls_branches)|^(transformer|encoder|decoder)\.",
        "a DETR, which has no locations",
    ),
    (r"bbox_head\.(heatmap_head|cls_convs\.\d+\.\d+\.|gfl_cls\.\d)", "a detector with another head"),
    (r"^(fpn\.laterals|head\.cls_tower)\.", "a detector under locdistill's own names, without its settings"),
    (r"^fc\.(weight|bias)$|^head\.fc\.", "a classifier (weights of a backbone go into 'detector.pretrained')"),
)
OTHER_BACKBONES = (
    (r"backbone\.layer1\.0\.conv2\.fc1\.", "ResNeSt"),
    (r"backbone\.(patch_embed|stages\.\d+\.blocks)", "a Swin or another vision transformer"),
    (r"backbone\.(stages|downsample_layers)\.", "ConvNeXt, CSPNeXt or a like network"),
    (r"backbone\.stage\d\.\d+\.branches\.", "HRNet"),
    (r"backbone\.(features|conv_res_block|layer\d\.\d+\.conv\.)", "VGG, Darknet or MobileNet"),
)
OTHER_NECKS = (
    (r"neck\.(downsample_convs|pafpn_convs)\.", "PAFPN"),
    (r"neck\.(1\.)?dyhead", "DyHead"),
    (r"neck\.stack_bifpn|neck\.bifpn", "BiFPN"),
)
RGB: tuple[Triple, Triple] = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
BGR: tuple[Triple, Triple] = ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
PUBLISHED_DEPTH = 4
# Properties of Rotated-LD that none of its files states.
ROTATED: dict[str, Any] = {
    "angles": "oc",
    "angle_bins": "linear",
    "angle_unit": 1.0,
    "input": {"short": 1024, "long": 1024},
}
LEAST_ANGLE_BINS = 3
NUMBER = r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?"
LARGEST_LEVEL = 5  # of the backbone; those above are the pyramid's own


@dataclass(frozen=True, slots=True)
class Recognised:
    """Result of recognising a state dict.

    Attributes:
        settings: Settings of the detector, as plain data.
        notes: Assumptions, with their reasons.
    """

    settings: dict[str, Any]
    notes: tuple[str, ...]


def recognise(
    shapes: Shapes,
    meta: Mapping[str, Any] | None = None,
    *,
    classes: Sequence[str] | None = None,
    style: str | None = None,
) -> Recognised:
    """Return the settings of the detector that tensors of these names and shapes belong to.

    Args:
        shapes: Shapes of the tensors, under MMDetection's names; including those of the constants, which indicate an
            angle.
        meta: Metadata of the file: ``CLASSES``, ``dataset_meta``, ``config`` or ``cfg`` (a text).
        classes: Names of the classes; they overrule those of the file.
        style: ``pytorch`` or ``caffe``; overrules what the file and the kind of detector suggest.

    Raises:
        WeightsError: It is no detector with edge distributions, or its backbone, neck or head is not supported; the
            message describes what it appears to be.
    """
    meta = meta or {}
    shapes = {name: shape or (1,) for name, shape in shapes.items()}
    notes: list[str] = []
    model, cls, reg = _kind(shapes)
    backbone, counts = _backbone(shapes)
    channels, levels = _pyramid(shapes)
    anchors = ANCHORS.get(model, 1)
    settings: dict[str, Any] = {
        "model": model,
        "backbone": backbone,
        "deformable": _deformable(shapes, counts),
        "pretrained": False,
        "channels": channels,
        "depth": _depth(shapes, notes),
        "norm_groups": 32 if any(re.match(r"bbox_head\.(cls|reg)_convs\.\d+\.gn\.", name) for name in shapes) else 0,
        "levels": levels,
        "reg_max": _reg_max(shapes, reg, model),
        "frozen_stages": 1,
        "norm_eval": True,
    }
    if anchors > 1:
        settings["predictor"] = next(iter(shapes.get(f"bbox_head.{reg}.weight", (3,))[3:]), 3)
    if edges_of(model) == 5:
        settings |= ROTATED
        notes.append("angles in the range oc, in radians, and an input of 1024 x 1024, as published for Rotated-LD")
        if ANGLE_BINS not in shapes:
            notes.append("bins from -2 to 2, and from -5 to 2 for the angle: the file does not contain their positions")
    outputs = _rows(shapes, cls) // anchors
    settings |= _classes(outputs, model, meta, classes, notes)
    settings |= _input(settings, meta, style, notes)
    return Recognised(settings, tuple(notes))


def _first(names: Iterable[str], table: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """Return the meaning of the first pattern that matches any name, and that name."""
    listed = list(names)
    fits = ((what, name) for pattern, what in table for name in listed if re.search(pattern, name))
    return next(fits, None)


def _kind(shapes: Shapes) -> tuple[str, str, str]:
    """Return the kind of detector and the names of its predictors."""
    other = _first(shapes, OTHER_DETECTORS)
    found = next((kind for kind in KINDS if any(name.startswith(kind[3]) for name in shapes)), None)
    if other is not None or found is None:
        few = ", ".join([name for name in shapes if name.startswith("bbox_head.")][:3] or list(shapes)[:3]) or "none"
        what = f"it looks like {other[0]} ({other[1]})" if other else f"no detector that is known here (names: {few})"
        raise WeightsError(
            f"{what}. Expected a GFL, a GFL v2, or an ATSS, FCOS or (also rotated) RetinaNet that predicts a "
            "distribution for each edge: without distributions there is nothing to distill from"
        )
    model, cls, reg, _ = found
    rows, edges = _rows(shapes, reg), edges_of(model)
    plain = rows == edges
    if model == "rotated_retinanet":
        # Its names are those of any plain one. With distributions it has the constant of its angle's bins; a file
        # without its constants is recognised by its number of outputs, unless this fits four edges as well.
        bins, rest = divmod(rows, edges * ANCHORS[model])
        fits = rest == 0 and bins >= LEAST_ANGLE_BINS and rows % (4 * ANCHORS[model]) != 0
        plain = ANGLE_BINS not in shapes and not fits
    if plain:
        names = {"atss": "ATSS or PAA", "fcos": "FCOS", "retinanet": "ATSS", "rotated_retinanet": "RetinaNet"}
        name = names.get(model, model)
        raise WeightsError(
            f"it looks like a plain {name}: bbox_head.{reg} gives one number for each edge, where a distribution of "
            "reg_max + 1 is expected; without distributions there is nothing to distill from"
        )
    return model, cls, reg


def _rows(shapes: Shapes, predictor: str) -> int:
    """Return the number of outputs of a predictor, from either of its two tensors."""
    for kind in ("weight", "bias"):
        if (shape := shapes.get(f"bbox_head.{predictor}.{kind}")) is not None:
            return shape[0]
    raise WeightsError(
        f"bbox_head.{predictor}.weight and .bias are missing (its number of outputs is not known); the file is "
        "incomplete"
    )


def _reg_max(shapes: Shapes, predictor: str, model: str) -> int:
    anchors, edges = ANCHORS.get(model, 1), edges_of(model)
    bins, rest = divmod(_rows(shapes, predictor), edges * anchors)
    if rest or bins < 2:
        raise WeightsError(
            f"bbox_head.{predictor} has {_rows(shapes, predictor)} outputs, which is no distribution for each of "
            f"{edges} edges" + (f" of {anchors} anchors" if anchors > 1 else "")
        )
    return bins - 1


def _backbone(shapes: Shapes) -> tuple[str, tuple[int, ...]]:
    """Return the name of the backbone in timm, and its blocks per stage."""
    own = {name.removeprefix("backbone."): shape for name, shape in shapes.items() if name.startswith("backbone.")}
    if not own:
        raise WeightsError("there are no weights of a backbone in it (names that begin with 'backbone.')")
    if other := _first(shapes, OTHER_BACKBONES):
        raise WeightsError(f"its backbone looks like {other[0]} ({other[1]}); supported are {SUPPORTED}")
    blocks: dict[int, set[int]] = {}
    for key in own:
        if match := re.match(r"layer(\d+)\.(\d+)\.", key):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    counts = tuple(max(blocks[stage]) + 1 for stage in sorted(blocks))
    res2net = any(re.match(r"layer\d+\.\d+\.convs\.", key) for key in own)
    wide = any(re.match(r"layer\d+\.\d+\.conv3\.", key) for key in own)
    kind = "Res2Net" if res2net else "bottleneck" if wide else "basic"
    inner = re.compile(r"layer1\.\d+\.(conv2|convs\.0)\.weight")
    first = next((shape for key, shape in own.items() if inner.fullmatch(key) and len(shape) == 4), (0, 1))
    width, groups = first[0], first[0] // max(1, first[1])
    splits = len({match[1] for key in own if (match := re.match(r"layer1\.0\.convs\.(\d+)\.", key))})
    deep = any(key.startswith("stem.") for key in own)
    name = BACKBONES.get((kind, counts, groups, width))
    if name is None or deep != res2net or splits not in (0, 3):
        stem, stages = "deep" if deep else "simple", "-".join(map(str, counts)) or "no"
        raise WeightsError(
            f"its backbone looks like a residual network with a {stem} stem and {stages} {kind} blocks, whose first "
            f"3x3 convolution has {width} channels in {groups} groups; supported are {SUPPORTED}"
        )
    return name, counts


def _deformable(shapes: Shapes, counts: Sequence[int]) -> tuple[int, ...]:
    """Return the stages whose 3x3 convolutions are deformable."""
    found: dict[int, set[int]] = {}
    for name, shape in shapes.items():
        match = re.fullmatch(r"backbone\.layer(\d+)\.(\d+)\.(conv2|convs\.\d+)\.conv_offset\.(weight|bias)", name)
        if match:
            if shape[0] != 18:
                raise WeightsError(
                    f"{name}: deformable convolutions with {shape[0]} values per place (version 2, with modulation, or "
                    "of several groups) are not supported; expected 18, an offset for each of 9 taps"
                )
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    for stage, blocks in found.items():
        if len(blocks) != counts[stage - 1]:
            raise WeightsError(
                f"backbone.layer{stage}: only blocks {sorted(blocks)} of {counts[stage - 1]} have deformable "
                "convolutions; supported are all blocks of a stage, or none"
            )
    return tuple(sorted(found))


def _pyramid(shapes: Shapes) -> tuple[int, tuple[int, ...]]:
    """Return width and levels of the pyramid."""
    laterals = {int(m[1]) for name in shapes if (m := re.match(r"neck\.lateral_convs\.(\d+)\.conv\.", name))}
    outputs = {int(m[1]) for name in shapes if (m := re.match(r"neck\.fpn_convs\.(\d+)\.conv\.", name))}
    other = _first(shapes, OTHER_NECKS)
    normed = any(re.match(r"neck\.(lateral|fpn)_convs\.\d+\.(bn|gn)\.", name) for name in shapes)
    if other or normed or not laterals or not outputs:
        looks = other[0] if other else ("an FPN with normalisation" if normed else "something else")
        raise WeightsError(f"its neck looks like {looks}; supported is the plain FPN")
    start = LARGEST_LEVEL + 1 - (max(laterals) + 1)
    widths = Counter(shape[0] for name, shape in shapes.items() if name.startswith("neck.fpn_convs."))
    return widths.most_common(1)[0][0], tuple(range(start, start + max(outputs) + 1))


def _depth(shapes: Shapes, notes: list[str]) -> int:
    """Return the number of convolutions in each tower of the head."""
    depths = [
        {int(m[1]) for name in shapes if (m := re.match(rf"bbox_head\.{tower}_convs\.(\d+)\.", name))}
        for tower in ("cls", "reg")
    ]
    cls, reg = (max(found, default=-1) + 1 for found in depths)
    if cls != reg:
        raise WeightsError(
            f"its head has {cls} convolutions before the classes and {reg} before the edges; expected as many"
        )
    if cls != PUBLISHED_DEPTH:
        notes.append(
            f"towers of {cls} convolutions, as found in the file; published detectors have {PUBLISHED_DEPTH}: if that "
            "was so here, the file is incomplete"
        )
    return cls


def _classes(
    outputs: int, model: str, meta: Mapping[str, Any], given: Sequence[str] | None, notes: list[str]
) -> dict[str, Any]:
    """Return names of the classes, and whether there is one more channel, for background (GFL v2 as published)."""
    spare = model == "gflv2"
    if given is not None:
        if len(given) not in (outputs, outputs - spare):
            raise WeightsError(f"{len(given)} classes are named, but it has {outputs} channels of class scores")
        return {"classes": tuple(given), "background_channel": len(given) < outputs}
    named = _named_classes(meta)
    if named is not None and len(named) in (outputs, outputs - spare):
        return {"classes": named, "background_channel": len(named) < outputs}
    if named is not None:
        notes.append(
            f"it names {len(named)} classes, but has {outputs} channels of class scores: the names are not used"
        )
    public, data = (DOTA_BY_COUNT, "DOTA") if edges_of(model) == 5 else (BY_COUNT, "Pascal VOC")
    background = spare and outputs - 1 in public
    count = outputs - background
    if count in public:
        notes.append(f"{count} classes without names are those of {'COCO' if count == len(COCO) else data}")
        return {"classes": public[count], "background_channel": background}
    more = "; a published GFL v2 has one channel more than classes: if so, name the classes" if spare else ""
    notes.append(f"{count} classes without names: class_0 to class_{count - 1}{more}")
    return {"classes": numbered(count), "background_channel": False}


def numbered(count: int) -> tuple[str, ...]:
    """Return names for classes of which only the number is known."""
    return tuple(f"class_{index}" for index in range(count))


def _named_classes(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    inner = meta.get("dataset_meta")
    for named in (inner, meta) if isinstance(inner, Mapping) else (meta,):
        for key in ("classes", "CLASSES"):
            names = named.get(key)
            names = [names] if isinstance(names, str) else names
            if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
                return tuple(names)
    return None


def _input(settings: Mapping[str, Any], meta: Mapping[str, Any], style: str | None, notes: list[str]) -> dict[str, Any]:
    """Return the style of the bottlenecks and the normalisation of images."""
    text = "\n".join(str(meta[key]) for key in ("config", "cfg") if isinstance(meta.get(key), str))
    if style is None and text:
        style = "caffe" if re.search(r"style\s*=\s*['\"]caffe['\"]", text) else "pytorch"
    elif style is None:
        # Published FCOS detectors were trained from Detectron's weights, the others from torchvision's.
        bottlenecks = settings["backbone"] in ("resnet50", "resnet101", "resnet152")
        style = "caffe" if settings["model"] == "fcos" and bottlenecks else "pytorch"
        order = "blue, green, red" if style == "caffe" else "red, green, blue"
        notes.append(f"style {style}, channels {order}: the file does not contain the normalisation of its input")
    mean, std = BGR if style == "caffe" else RGB
    rgb = re.search(r"to_rgb\s*=\s*(True|False)", text)
    return {
        "style": style,
        "norm_frozen": style == "caffe",
        "bgr": rgb[1] == "False" if rgb else style == "caffe",
        "mean": _triple(meta.get("input_mean")) or _listed("mean", text) or mean,
        "std": _triple(meta.get("input_std")) or _listed("std", text) or std,
    }


def _listed(name: str, text: str) -> Triple | None:
    """Return the first list of exactly three numbers that a name is set to in a text."""
    match = re.search(rf"\b{name}\s*=\s*[\[(]\s*({NUMBER}\s*(?:,\s*{NUMBER}\s*)*),?\s*[\])]", text)
    return _triple([float(number) for number in re.findall(NUMBER, match[1])]) if match else None


def _triple(values: Any) -> Triple | None:
    return (values[0], values[1], values[2]) if isinstance(values, list) and len(values) == 3 else None
