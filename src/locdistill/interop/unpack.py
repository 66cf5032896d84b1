"""Selection of the detector's tensors in a foreign checkpoint, with reasons for leaving out the others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from locdistill.errors import WeightsError
from locdistill.interop.mmdet import ANGLE_BINS, BINS, OLD, rename

Which = Literal["ema", "raw"]
# Keys of a state dict in checkpoints of training programs.
STATE = ("state_dict", "model", "module")
# Keys of averaged weights. Keys of that kind in OpenMMLab's programs hold the opposite: see `_averages`.
AVERAGED = ("state_dict_ema", "model_ema")
MMENGINE_SWAPPED = "ema_state_dict"
MMCV_SWAPPED = "ema_"
# Prefix of the names of every dense detector's head.
HEAD = "bbox_head."
PREPROCESSOR = "data_preprocessor."
FIELDS = {
    "optimizer": "state of the optimizer: only training goes on from it",
    "param_schedulers": "state of the schedules: only training goes on from it",
    "message_hub": "history of the training",
    "amp": "state of mixed precision: only training goes on from it",
    "loss_scaler": "state of mixed precision: only training goes on from it",
}
TEACHER = "a teacher that was stored with it"
COMPUTED = "positions of the bins, a constant: computed here"


@dataclass(frozen=True, slots=True)
class Skipped:
    """Part of a file that was left out.

    Attributes:
        what: Group of names, or field of the file.
        count: Number of tensors or entries.
        reason: Reason for leaving it out.
    """

    what: str
    count: int
    reason: str

    def __str__(self) -> str:
        return f"{self.what} ({self.count}): {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """Detector in a checkpoint.

    Attributes:
        tensors: Tensors under MMDetection's present names, without any prefix and without constants.
        constants: Positions of bins, which are computed here.
        meta: Metadata of the file.
        weights: Description of which weights these are.
        skipped: Parts that were left out.
    """

    tensors: dict[str, Tensor]
    constants: dict[str, Tensor]
    meta: dict[str, Any]
    weights: str
    skipped: tuple[Skipped, ...]


def unpack(content: Mapping[str, Any], which: Which = "ema") -> Unpacked:
    """Find the weights of a detector in the content of a checkpoint: a state dict, or a dictionary with one inside.

    Prefixes (``module.`` of data-parallel training, ``student.`` of a pair) are removed; a teacher beside it is left
    out; old names are replaced by present ones.

    Args:
        content: Content of the file.
        which: Averaged weights (``ema``), if there are any, or those that were averaged (``raw``).

    Raises:
        WeightsError: There is no state dict of a detector in it, or tensors that are not plain.
    """
    if which not in get_args(Which):
        raise WeightsError(f"weights: expected {' or '.join(map(repr, get_args(Which)))}, came {which!r}")
    everything, fields = _state(content)
    tensors = _tensors(everything)
    others = [Skipped(str(key), 1, "no tensor") for key in everything if key not in tensors]
    tensors, weights, averages = _averages(tensors, content, which)
    tensors, outside = _inside(tensors)
    # Refuse tensors from which values cannot be copied as they are.
    odd = {
        name: "quantised" if value.is_quantized else "without values" if value.is_meta else str(value.layout)[6:]
        for name, value in tensors.items()
        if value.layout != torch.strided or value.is_quantized or value.is_meta
    }
    if odd:
        few = ", ".join(f"{name} ({what})" for name, what in list(odd.items())[:4])
        more = f" and {len(odd) - 4} more" if len(odd) > 4 else ""
        raise WeightsError(
            f"{len(odd)} tensors are not plain: {few}{more}; expected dense tensors of floating-point numbers: save "
            "them as such (sparse: tensor.to_dense(); quantised: tensor.dequantize())"
        )
    stated = None if everything is content else content.get("meta")
    meta = {str(key): value for key, value in stated.items()} if isinstance(stated, Mapping) else {}
    constants = {name: tensors.pop(name) for name in (BINS, ANGLE_BINS) if name in tensors}
    computed = [Skipped(name, 1, COMPUTED) for name in constants]
    tensors, statistics = _statistics(tensors, meta)
    modern, same = rename(tensors, OLD)
    modern |= {key: tensors[key] for key in same}
    return Unpacked(
        tensors={key: modern[key] for key in sorted(modern)},
        constants=constants,
        meta=meta,
        weights=weights,
        skipped=(*fields, *averages, *outside, *computed, *statistics, *others),
    )


def _state(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Skipped]]:
    """Return the state dict of a checkpoint, and the other fields, which are left out."""
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return content, []
    name = next((name for name in STATE if isinstance(content.get(name), Mapping) and content[name]), None)
    if name is None:
        keys = ", ".join(map(str, list(content)[:4])) or "none"
        raise WeightsError(f"expected a state dict (names to tensors), or one under 'state_dict'; got the keys {keys}")
    used = {name, "meta", MMENGINE_SWAPPED, *AVERAGED}
    return content[name], [
        Skipped(str(key), len(value) if isinstance(value, Mapping) else 1, FIELDS.get(str(key), "no weights"))
        for key, value in content.items()
        if key not in used
    ]


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _averages(
    tensors: dict[str, Tensor], content: Mapping[str, Any], which: Which
) -> tuple[dict[str, Tensor], str, list[Skipped]]:
    """Choose between averaged weights and those that were averaged.

    Both programs of OpenMMLab swap the two before they save, so that the plain names hold the averaged weights, which
    they evaluate: ``ema_state_dict`` in mmengine, and names such as ``ema_backbone_conv1_weight`` in mmcv, are the
    weights *without* averaging.
    """
    buffers = {key: value for key, value in tensors.items() if key.startswith(MMCV_SWAPPED) and "." not in key}
    plain = {key: value for key, value in tensors.items() if key not in buffers}
    raw: dict[str, Tensor] = {}
    if isinstance(own := content.get(MMENGINE_SWAPPED), Mapping):
        raw = {key.removeprefix("module."): value for key, value in _tensors(own).items() if key != "steps"}
    elif buffers:
        flat = {MMCV_SWAPPED + key.removeprefix("module.").replace(".", "_"): key for key in plain}
        raw = plain | {flat[key]: value for key, value in buffers.items() if key in flat}
    name = next((name for name in AVERAGED if isinstance(content.get(name), Mapping)), None)
    averaged = {key.removeprefix("module."): value for key, value in _tensors(content[name]).items()} if name else {}
    if not raw and not averaged:
        return plain, "the weights of the file (it keeps no moving average)", []
    if averaged:
        raw, plain = plain, averaged
    left = Skipped("weights without averaging", len(buffers) or len(raw), "the moving average is used instead")
    if which == "ema":
        return plain, "a moving average (EMA)", [left]
    return (
        raw,
        "without the moving average (EMA) that the file has too",
        [Skipped("moving average (EMA)", len(plain), "the weights without it were requested")],
    )


def _inside(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Skipped]]:
    """Return the tensors of the detector without their common prefix; the rest is left out.

    Names that are no part of a detector's, but have its prefix, stay in: they may identify another model.
    """
    prefixes = {key[: key.index(HEAD)] for key in tensors if re.search(rf"(^|\.){re.escape(HEAD)}", key)}
    prefixes = {prefix for prefix in prefixes if "roi_head." not in prefix}  # the second of two stages
    students = sorted((p for p in prefixes if "teacher" not in p), key=lambda p: (len(p), p))
    if prefixes and not students:
        raise WeightsError(
            f"the only detector in it is a teacher (under '{min(prefixes)}'), its student is missing; save the state "
            "dict of the teacher alone"
        )
    ddp = bool(tensors) and all(key.startswith("module.") for key in tensors)
    prefix = students[0] if students else "module." * ddp
    inner = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    own: dict[str, Tensor] = {}
    left: Counter[tuple[str, str]] = Counter()
    for key, value in tensors.items():
        name = key.removeprefix(prefix if key.startswith(prefix) else "module.")
        first = name.split(".")[0]
        if key.startswith(prefix) and not key.startswith(inner) and "teacher" not in first:
            own[name] = value
        else:
            left[(f"{first}.", TEACHER if "teacher" in first else "not a part of the detector")] += 1
    return own, [Skipped(group, count, reason) for (group, reason), count in left.items()]


def _statistics(tensors: dict[str, Tensor], meta: dict[str, Any]) -> tuple[dict[str, Tensor], list[Skipped]]:
    """Move the mean and standard deviation of the input from the tensors to the metadata."""
    own = {key: value for key, value in tensors.items() if key.startswith(PREPROCESSOR)}
    if not own:
        return tensors, []
    meta |= {f"input_{key.removeprefix(PREPROCESSOR)}": value.flatten().tolist() for key, value in own.items()}
    skipped = Skipped(PREPROCESSOR, len(own), "taken over into the settings (mean, std)")
    return {key: value for key, value in tensors.items() if key not in own}, [skipped]
