"""Names of tensors in checkpoints of MMDetection and of Rotated-LD (MMRotate), both directions.

The names are data: ordered pairs of patterns, ours and theirs; the first match applies. ``{i}`` stands for a number,
``{rest}`` for anything. Each head has its own list of pairs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from locdistill.errors import WeightsError
from locdistill.geometry.coding import ANGLE, GROWTH

Pairs = tuple[tuple[str, str], ...]
Renamed = TypeVar("Renamed")

# Backbones of the ResNet family have the same names in timm, torchvision and MMDetection, except for three convolutions
# in place of the first one, which timm spreads over `conv1` and `bn1` and MMDetection keeps together.
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
    "rotated_retinanet": (
        *COMMON,
        ("head.cls.{rest}", "bbox_head.retina_cls.{rest}"),
        ("head.reg.{rest}", "bbox_head.retina_reg.{rest}"),
    ),
}
# Names in old files only, and their replacements.
OLD: Pairs = (
    ("backbone.{rest}.conv2_offset.{kind}", "backbone.{rest}.conv2.conv_offset.{kind}"),
    ("backbone.{rest}.convs.{i}_offset.{kind}", "backbone.{rest}.convs.{i}.conv_offset.{kind}"),
    ("bbox_head.fcos_{rest}", "bbox_head.conv_{rest}"),
)
# Constants that they store and we compute: the positions of the bins of edges, and of the angle of a rotated box.
BINS = "bbox_head.integral.project"
ANGLE_BINS = "bbox_head.integral_angle.project"
PREDICTOR = "head.reg.bias"
ANCHORS = {"retinanet": 9, "rotated_retinanet": 9}
EDGES = {"rotated_retinanet": 5}


def edges_of(model: str) -> int:
    """Return the number of distributions that make a box: four, or five with an angle."""
    return EDGES.get(model, 4)


def to_mmdet(state_dict: Mapping[str, Tensor], model: str = "gfl") -> dict[str, Tensor]:
    """Convert a state dict of ours to MMDetection's names, with the positions of the bins added.

    Raises:
        WeightsError: A name has no counterpart.
    """
    deep = any(re.match(r"backbone\.conv1\.\d", key) for key in state_dict)
    renamed, unknown = rename(state_dict, (*(DEEP_STEM if deep else ()), *_names(model)))
    if unknown:
        few = ", ".join(unknown[:4]) + (", ..." if len(unknown) > 4 else "")
        raise WeightsError(f"{len(unknown)} names have no counterpart in this kind of detector: {few}")
    if PREDICTOR in state_dict:
        renamed |= positions(model, len(state_dict[PREDICTOR]) // (edges_of(model) * ANCHORS.get(model, 1)))
    return renamed


def to_ours(model: str) -> Pairs:
    """Return the pairs that map MMDetection's names to ours."""
    return tuple((theirs, ours) for ours, theirs in (*DEEP_STEM, *_names(model)))


def positions(model: str, count: int) -> dict[str, Tensor]:
    """Return the positions of ``count`` bins, under the names of the constants that hold them."""
    if edges_of(model) == 4:
        return {BINS: torch.arange(count, dtype=torch.float32)}
    return {name: torch.linspace(*ends, count) for name, ends in ((BINS, GROWTH), (ANGLE_BINS, ANGLE))}


def rename(state_dict: Mapping[str, Renamed], pairs: Pairs) -> tuple[dict[str, Renamed], list[str]]:
    """Rename the entries of a state dict by pairs of patterns; also return the names that no pattern matches."""
    rules = []
    for source, target in pairs:
        pattern = re.escape(source)
        for group, form in (("i", r"\d+"), ("kind", "weight|bias"), ("rest", ".+")):
            pattern = pattern.replace(rf"\{{{group}\}}", f"(?P<{group}>{form})")
        rules.append((re.compile(pattern), target))
    renamed, unknown = {}, []
    for key, value in state_dict.items():
        fits = ((rule.fullmatch(key), target) for rule, target in rules)
        name = next((target.format(**match.groupdict()) for match, target in fits if match), None)
        if name is None:
            unknown.append(key)
        else:
            renamed[name] = value
    return renamed, unknown


def _names(model: str) -> Pairs:
    if model not in NAMES:
        raise WeightsError(f"no MMDetection names are known for {model}; known: {', '.join(NAMES)}")
    return NAMES[model]
