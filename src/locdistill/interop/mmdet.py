"""Names of tensors in MMDetection checkpoints, both directions.

The names are data: ordered pairs of patterns, ours and theirs, of which the first that fits decides. ``{i}`` stands
for a number, ``{rest}`` for anything. Another head is another list of pairs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from locdistill.errors import WeightsError

Pairs = tuple[tuple[str, str], ...]

# Backbones of the ResNet family have the same names in timm, torchvision and MMDetection.
COMMON: Pairs = (
    ("backbone.{rest}", "backbone.{rest}"),
    ("fpn.laterals.{i}.{rest}", "neck.lateral_convs.{i}.conv.{rest}"),
    ("fpn.outputs.{i}.{rest}", "neck.fpn_convs.{i}.conv.{rest}"),
)
NAMES: dict[str, Pairs] = {
    "gfl": (
        *COMMON,
        ("head.cls_tower.{i}.conv.{rest}", "bbox_head.cls_convs.{i}.conv.{rest}"),
        ("head.cls_tower.{i}.norm.{rest}", "bbox_head.cls_convs.{i}.gn.{rest}"),
        ("head.reg_tower.{i}.conv.{rest}", "bbox_head.reg_convs.{i}.conv.{rest}"),
        ("head.reg_tower.{i}.norm.{rest}", "bbox_head.reg_convs.{i}.gn.{rest}"),
        ("head.cls.{rest}", "bbox_head.gfl_cls.{rest}"),
        ("head.reg.{rest}", "bbox_head.gfl_reg.{rest}"),
        ("head.scales.{i}", "bbox_head.scales.{i}.scale"),
    ),
}
# A constant that they store and we compute: the positions of the bins, 0 to reg_max.
BINS = "bbox_head.integral.project"
PREDICTOR = "bbox_head.gfl_reg.bias"
EDGES = 4


def to_mmdet(state_dict: Mapping[str, Tensor], model: str = "gfl") -> dict[str, Tensor]:
    """A state dict of ours under MMDetection's names, with the positions of the bins added.

    Raises:
        WeightsError: A name has no counterpart.
    """
    renamed = _rename(state_dict, NAMES[model])
    if PREDICTOR in renamed:
        renamed[BINS] = torch.arange(len(renamed[PREDICTOR]) // EDGES, dtype=torch.float32)
    return renamed


def from_mmdet(state_dict: Mapping[str, Tensor], model: str = "gfl") -> dict[str, Tensor]:
    """A state dict of MMDetection under our names; the positions of the bins are dropped.

    The prefix ``module.`` of data-parallel training may stand before every name.

    Raises:
        WeightsError: A name has no counterpart.
    """
    stripped = {key.removeprefix("module."): value for key, value in state_dict.items()}
    stripped.pop(BINS, None)
    return _rename(stripped, tuple((theirs, ours) for ours, theirs in NAMES[model]))


def _rename(state_dict: Mapping[str, Tensor], pairs: Pairs) -> dict[str, Tensor]:
    rules = [(_compile(source), target) for source, target in pairs]
    renamed, unknown = {}, []
    for key, value in state_dict.items():
        fits = ((rule.fullmatch(key), target) for rule, target in rules)
        name = next((target.format(**match.groupdict()) for match, target in fits if match), None)
        if name is None:
            unknown.append(key)
        else:
            renamed[name] = value
    if unknown:
        few = ", ".join(unknown[:4]) + (", ..." if len(unknown) > 4 else "")
        raise WeightsError(f"{len(unknown)} names have no counterpart in this kind of detector: {few}")
    return renamed


def _compile(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{rest\}", r"(?P<rest>.+)")
    return re.compile(escaped)
