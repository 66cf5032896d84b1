"""Names of tensors in MMDetection checkpoints, both directions.

The names are data: ordered pairs of patterns, ours and theirs, of which the first that fits decides. ``{i}`` stands
for a number, ``{rest}`` for anything. Another head is another list of pairs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from locdistill.errors import WeightsError

Pairs = tuple[tuple[str, str], ...]
Value = TypeVar("Value")

# Backbones of the ResNet family have the same names in timm, torchvision and MMDetection; but for three convolutions in
# place of the first one, which timm spreads over `conv1` and `bn1` and MMDetection keeps together.
DEEP_STEM: Pairs = (
    ("backbone.bn1.{rest}", "backbone.stem.7.{rest}"),
    ("backbone.conv1.{i}.{rest}", "backbone.stem.{i}.{rest}"),
)
COMMON: Pairs = (
    ("backbone.{rest}", "backbone.{rest}"),
    ("fpn.laterals.{i}.{rest}", "neck.lateral_convs.{i}.conv.{rest}"),
    ("fpn.outputs.{i}.{rest}", "neck.fpn_convs.{i}.conv.{rest}"),
    ("head.cls_tower.{i}.conv.{rest}", "bbox_head.cls_convs.{i}.conv.{rest}"),
    ("head.reg_tower.{i}.conv.{rest}", "bbox_head.reg_convs.{i}.conv.{rest}"),
)
GROUP_NORM: Pairs = (
    ("head.cls_tower.{i}.norm.{rest}", "bbox_head.cls_convs.{i}.gn.{rest}"),
    ("head.reg_tower.{i}.norm.{rest}", "bbox_head.reg_convs.{i}.gn.{rest}"),
)
SCALES: Pairs = (("head.scales.{i}", "bbox_head.scales.{i}.scale"),)
GFL: Pairs = (
    *COMMON,
    *GROUP_NORM,
    *SCALES,
    ("head.cls.{rest}", "bbox_head.gfl_cls.{rest}"),
    ("head.reg.{rest}", "bbox_head.gfl_reg.{rest}"),
)
NAMES: dict[str, Pairs] = {
    "gfl": GFL,
    "gflv2": (*GFL, ("head.quality.{i}.{rest}", "bbox_head.reg_conf.{i}.{rest}")),
    "atss": (
        *COMMON,
        *GROUP_NORM,
        *SCALES,
        ("head.cls.{rest}", "bbox_head.atss_cls.{rest}"),
        ("head.reg.{rest}", "bbox_head.atss_reg.{rest}"),
        ("head.centerness.{rest}", "bbox_head.atss_centerness.{rest}"),
    ),
    "fcos": (
        *COMMON,
        *GROUP_NORM,
        *SCALES,
        ("head.cls.{rest}", "bbox_head.conv_cls.{rest}"),
        ("head.reg.{rest}", "bbox_head.conv_reg.{rest}"),
        ("head.centerness.{rest}", "bbox_head.conv_centerness.{rest}"),
    ),
    "retinanet": (
        *COMMON,
        *GROUP_NORM,  # the published one has none
        ("head.cls.{rest}", "bbox_head.atss_cls.{rest}"),
        ("head.reg.{rest}", "bbox_head.atss_reg.{rest}"),
    ),
}
# Names that only old files have, and those that replaced them.
OLD: Pairs = (
    ("backbone.{rest}.conv2_offset.{kind}", "backbone.{rest}.conv2.conv_offset.{kind}"),
    ("backbone.{rest}.convs.{i}_offset.{kind}", "backbone.{rest}.convs.{i}.conv_offset.{kind}"),
    ("bbox_head.fcos_{rest}", "bbox_head.conv_{rest}"),
)
# A constant that they store and we compute: the positions of the bins, 0 to reg_max.
BINS = "bbox_head.integral.project"
PREDICTOR = "head.reg.bias"
EDGES = 4
ANCHORS = {"retinanet": 9}


def to_mmdet(state_dict: Mapping[str, Tensor], model: str = "gfl") -> dict[str, Tensor]:
    """A state dict of ours under MMDetection's names, with the positions of the bins added.

    Raises:
        WeightsError: A name has no counterpart.
    """
    deep = any(re.match(r"backbone\.conv1\.\d", key) for key in state_dict)
    renamed = _strictly(state_dict, (*(DEEP_STEM if deep else ()), *NAMES[model]))
    if PREDICTOR in state_dict:
        bins = len(state_dict[PREDICTOR]) // (EDGES * ANCHORS.get(model, 1))
        renamed[BINS] = torch.arange(bins, dtype=torch.float32)
    return renamed


def from_mmdet(state_dict: Mapping[str, Tensor], model: str = "gfl") -> dict[str, Tensor]:
    """A state dict of MMDetection under our names; the positions of the bins are dropped.

    Raises:
        WeightsError: A name has no counterpart.
    """
    return _strictly({key: value for key, value in state_dict.items() if key != BINS}, to_ours(model))


def to_ours(model: str) -> Pairs:
    """The pairs that lead from MMDetection's names to ours."""
    return tuple((theirs, ours) for ours, theirs in (*DEEP_STEM, *NAMES[model]))


def rename(state_dict: Mapping[str, Value], pairs: Pairs) -> tuple[dict[str, Value], list[str]]:
    """What has names of tensors, under the names that pairs of patterns lead to; and the names that none fits."""
    rules = [(_compile(source), target) for source, target in pairs]
    renamed, unknown = {}, []
    for key, value in state_dict.items():
        fits = ((rule.fullmatch(key), target) for rule, target in rules)
        name = next((target.format(**match.groupdict()) for match, target in fits if match), None)
        if name is None:
            unknown.append(key)
        else:
            renamed[name] = value
    return renamed, unknown


def _strictly(state_dict: Mapping[str, Tensor], pairs: Pairs) -> dict[str, Tensor]:
    renamed, unknown = rename(state_dict, pairs)
    if unknown:
        few = ", ".join(unknown[:4]) + (", ..." if len(unknown) > 4 else "")
        raise WeightsError(f"{len(unknown)} names have no counterpart in this kind of detector: {few}")
    return renamed


def _compile(pattern: str) -> re.Pattern[str]:
    groups = {"i": r"\d+", "kind": "weight|bias", "rest": ".+"}
    escaped = re.escape(pattern)
    for name, form in groups.items():
        escaped = escaped.replace(rf"\{{{name}\}}", f"(?P<{name}>{form})")
    return re.compile(escaped)
