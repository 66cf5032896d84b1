"""Detectors from files of other programs: MMDetection 2 and 3, the reference implementation, Rotated-LD, GFocal v2."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydantic
import safetensors
import torch
from torch import Tensor, nn

from locdistill.errors import WeightsError
from locdistill.interop import mmdet
from locdistill.interop.pickles import read_checkpoint
from locdistill.interop.recognise import recognise
from locdistill.interop.unpack import HEAD, Skipped, Unpacked, Which, unpack
from locdistill.models.meaning import meaning_of
from locdistill.models.settings import DetectorSettings
from locdistill.models.weights import (
    CHECKPOINT,
    COUNTER,
    METADATA_KEY,
    SUFFIX,
    Differences,
    locate,
    read_metadata,
    read_tensors,
)
from locdistill.settings import problems

ForeignSource = str | Path | Mapping[str, Any]
GIVEN = "the state dict"
REMEDY = (
    "Give what is wrong or missing in the file: load_mmdet(..., classes=[...], settings={'mean': ..., 'std': ...}), or "
    "'locdistill convert IN OUT --classes A,B,... mean=[...] std=[...]'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """Contents of a foreign file, and the parts that were not taken over.

    Attributes:
        source: The file.
        settings: Settings of the recognised detector.
        weights: Description of which of the file's weights these are.
        tensors: Number of tensors taken over.
        parameters: Number of trainable values of the detector.
        skipped: Parts that were left out.
        notes: Assumptions that were made.
        missing: Names, in the file's form, of tensors that are missing or unusable; they keep their random initial
            values.
    """

    source: str
    settings: DetectorSettings
    weights: str
    tensors: int
    parameters: int = 0
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def facts(self) -> dict[str, str]:
        """Return the recognised properties, as pairs of a name and a text."""
        own = self.settings
        first, last = own.levels[0], own.levels[-1]
        stages = ", ".join(map(str, own.deformable)) or "none"
        spare = " and one channel for background" if own.background_channel else ""
        names = ", ".join(own.classes[:4]) + (", ..." if len(own.classes) > 4 else "")
        order = "BGR" if own.bgr else "RGB"
        unit = f"{own.angle_unit:g} radians"
        mean, std = (
            ", ".join(f"{value:g}" for value in values) if values else "as its backbone was pretrained"
            for values in (own.mean, own.std)
        )
        angles = {"angles": f"{own.angles}, in units of {unit}, {own.angle_bins} bins"} if own.rotated else {}
        return {
            "detector": f"{own.model}, {own.channels} wide, towers of {own.depth}, levels {first} to {last}",
            "backbone": f"{own.backbone}, style {own.style}",
            "deformable stages": stages,
            "classes": f"{len(own.classes)} ({names}){spare}",
            "reg_max": str(own.reg_max),
            **angles,
            "input": f"{order}, mean {mean}, std {std}",
            "weights": self.weights,
            "tensors": str(self.tensors),
            "parameters": f"{self.parameters:,}",
        }

    def __str__(self) -> str:
        lines = [f"{self.source}:", *(f"  {name}: {text}" for name, text in self.facts().items())]
        lines += [f"  assumed: {note}" for note in self.notes]
        lines += [f"  left out: {group}" for group in self.skipped]
        if self.missing:
            lines.append(f"  missing, at random initial values ({len(self.missing)}): {', '.join(self.missing)}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "source": self.source,
            "settings": self.settings.model_dump(mode="json"),
            "weights": self.weights,
            "tensors": self.tensors,
            "parameters": self.parameters,
            "skipped": [{"what": s.what, "count": s.count, "reason": s.reason} for s in self.skipped],
            "notes": list(self.notes),
            "missing": list(self.missing),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """Detector read from a foreign file, before it is built.

    Attributes:
        tensors: Tensors under our names.
        names: Mapping of our names to those of MMDetection.
        report: Report of the import; its ``settings`` are those to build.
    """

    tensors: dict[str, Tensor]
    names: dict[str, str]
    report: ImportReport

    def fill(self, detector: nn.Module, *, strict: bool = True) -> ImportReport:
        """Load the weights into a detector built from the settings.

        Args:
            detector: The detector, changed in place.
            strict: Whether every weight must be present; otherwise those that are missing, or have another shape or
                unusable values, keep their initial values.

        Returns:
            The report, with the missing weights.

        Raises:
            WeightsError: Weights are missing, have another shape or no place, are no floating-point numbers or not
                finite, and ``strict``; all are listed.
        """
        own = detector.state_dict()
        needed = zip(own, mmdet.to_mmdet(own, self.report.settings.model), strict=False)  # the bins come last
        differ = Differences.between(detector, self.tensors)
        names = dict(needed) | self.names
        theirs = Differences(
            missing=tuple(names[key] for key in differ.missing),
            foreign=tuple(names[key] for key in differ.foreign),
            shapes={names[key]: what for key, what in differ.shapes.items()},
            values={names[key]: what for key, what in differ.values.items()},
        )
        if strict and str(theirs):
            raise WeightsError(self._incomplete(theirs))
        without = {*differ.foreign, *differ.shapes, *differ.values}
        kept = {key: value for key, value in self.tensors.items() if key not in without}
        detector.load_state_dict(kept, strict=False)
        skipped = [Skipped(name, 1, f"of another shape: {what}") for name, what in theirs.shapes.items()]
        skipped += [Skipped(name, 1, what) for name, what in theirs.values.items()]
        skipped += [Skipped(name, 1, "the detector has no such tensor") for name in theirs.foreign]
        counters = sum(key.endswith(COUNTER) and key not in kept for key in own)
        note = f"{counters} counters of batches ({COUNTER}) are missing: only training uses them"
        return replace(
            self.report,
            tensors=len(kept),
            parameters=sum(parameter.numel() for parameter in detector.parameters()),
            skipped=(*self.report.skipped, *skipped),
            notes=(*self.report.notes, *([note] if counters else [])),
            missing=(*theirs.missing, *theirs.shapes, *theirs.values),
        )

    def _incomplete(self, differ: Differences) -> str:
        own = self.report.settings
        listed = (
            ("missing", differ.missing),
            ("of another shape", [f"{name} {what}" for name, what in differ.shapes.items()]),
            ("with unusable values", [f"{name} ({what})" for name, what in differ.values.items()]),
            ("not in the detector", differ.foreign),
        )
        lines = [f"  {len(names)} {what}: {', '.join(names)}" for what, names in listed if names]
        return "\n".join(
            [
                f"{self.report.source}: recognised as {own.model} with {own.backbone}, but its weights do not fit:",
                *lines,
                "Use a complete file; or, for random values in their place, load_mmdet(..., strict=False) or "
                "'locdistill convert IN OUT --partial'",
            ]
        )


def read(
    source: ForeignSource,
    *,
    classes: Iterable[str] | None = None,
    weights: Which = "ema",
    strict: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> Foreign:
    """Read a detector from a foreign file, or from its content; no code in it is run.

    Args:
        source: A file, or a state dict, or a checkpoint that holds one.
        classes: Names of the classes, if the file has none or wrong ones.
        weights: Weights to read if the file holds a moving average too: the average (``ema``), which training programs
            evaluate, or the weights that were averaged (``raw``).
        strict: Whether all tensors of the detector must be known.
        settings: Settings of the detector that override the recognised ones, such as ``{"style": "caffe"}``.

    Raises:
        WeightsError: The file is absent, damaged, would run code, or holds no detector that is supported; the message
            describes what it appears to be.
    """
    given = dict(settings or {})
    named = given.pop("classes", None) if classes is None else classes
    name = GIVEN if isinstance(source, Mapping) else str(source)
    # A text would count as the list of its letters.
    if named is not None and (isinstance(named, str) or not isinstance(named, Iterable)):
        raise WeightsError(f"{name}: classes: expected a list of names, such as ['disc', 'box'], came {named!r}")
    content = source if isinstance(source, Mapping) else _content(Path(source))
    try:
        unpacked = unpack(content, weights)
        own, notes = _settings(unpacked, None if named is None else tuple(named), given)
        names, unknown = mmdet.rename({key: key for key in unpacked.tensors}, mmdet.to_ours(own.model))
        _check_positions(unpacked.constants, own)
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from error
    if unknown and strict:
        raise WeightsError(
            f"{name}: recognised as {own.model} with {own.backbone}, which does not have {len(unknown)} of the "
            f"tensors: {', '.join(unknown)}. To leave them out: load_mmdet(..., strict=False) or 'locdistill convert "
            "IN OUT --partial'"
        )
    skipped = (*unpacked.skipped, *(Skipped(key, 1, "the detector has no such tensor") for key in unknown))
    report = ImportReport(
        source=name, settings=own, weights=unpacked.weights, tensors=len(names), skipped=skipped, notes=notes
    )
    return Foreign(tensors={key: unpacked.tensors[its] for key, its in names.items()}, names=names, report=report)


def _content(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; check the path")
    return read_tensors(path) if path.suffix == SUFFIX else read_checkpoint(path)


def _settings(
    unpacked: Unpacked, classes: Sequence[str] | None, given: Mapping[str, Any]
) -> tuple[DetectorSettings, tuple[str, ...]]:
    """Return the detector's settings: ours if stored with it, else the recognised ones; given ones override both."""
    shapes = {key: tuple(value.shape) for key, value in (unpacked.tensors | unpacked.constants).items()}
    ours = unpacked.meta.get(METADATA_KEY)
    if not isinstance(ours, str):
        found = recognise(shapes, unpacked.meta, classes=classes, style=given.get("style"))
        return _checked(found.settings, given), found.notes
    try:
        plain = dict(json.loads(ours))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"its '{METADATA_KEY}' settings cannot be read ({error})") from error
    if classes is not None:
        fitting = recognise(shapes, classes=classes).settings
        plain |= {key: fitting[key] for key in ("classes", "background_channel")}
    return _checked(plain, given), ()


def _check_positions(constants: Mapping[str, Tensor], own: DetectorSettings) -> None:
    """Refuse bins at other positions than the detector's: the weights would mean other boxes here."""
    for name, values in constants.items():
        its, edge = values.detach().flatten().float().cpu(), own.edges - 1 if name == mmdet.ANGLE_BINS else 0
        _, bins = meaning_of(own.model_copy(update={"reg_max": max(1, len(its) - 1)}))
        mine = bins.positions(its).expand(own.edges, -1)[edge]
        if its.shape != mine.shape or not torch.allclose(its, mine, rtol=1e-3, atol=1e-3):
            here, there = (
                ", ".join(listed if len(listed) < 6 else [*listed[:3], "...", listed[-1]]) or "no positions"
                for listed in ([f"{value:.4g}" for value in positions.tolist()] for positions in (mine, its))
            )
            raise WeightsError(
                f"{name}: its {len(its)} bins lie at {there}; those of {own.model} are expected at {here}, "
                "and with other bins the weights would mean other boxes. Use a file that was trained with these bins"
            )


def _checked(plain: Mapping[str, Any], given: Mapping[str, Any]) -> DetectorSettings:
    """Build settings from plain data, overridden by given settings."""
    data = {**plain, **given}
    try:
        settings = DetectorSettings.model_validate(data)
    except pydantic.ValidationError as error:
        own_fault = all(problem["loc"] and problem["loc"][0] in given for problem in error.errors())
        wrong = problems(error, DetectorSettings, data)
        lines = [
            "no detector can be built from these settings:",
            *(f"  {what}" for what in wrong),
            *([] if own_fault else [REMEDY]),
        ]
        raise WeightsError("\n".join(lines)) from None
    if not settings.classes:
        raise WeightsError(f"its settings have no names of classes. {REMEDY}")
    return settings


def is_foreign(file: Path) -> bool:
    """Return whether a file is from another program, by its format and, for safetensors, by its names."""
    if file.suffix != SUFFIX:
        return file.suffix != CHECKPOINT
    try:
        with safetensors.safe_open(file, framework="pt") as content:
            named = METADATA_KEY in (content.metadata() or {})
            return not named and any(HEAD in key for key in content.keys())  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, OSError):
        return False  # the reader reports the error


def detector_settings(path: str | Path) -> DetectorSettings:
    """Return the settings of the detector in a file from any program; a run folder stands for its best weights.

    Raises:
        WeightsError: The file is absent, damaged, or holds no detector.
    """
    file = locate(path)
    if is_foreign(file):
        return read(file).report.settings
    data = read_metadata(file).get("settings")
    again = "copy or download the file again, or save the detector anew"
    try:
        settings = DetectorSettings.model_validate(data)
    except pydantic.ValidationError as error:
        head = f"{file}: the settings saved with the weights are not valid here:"
        wrong = problems(error, DetectorSettings, data)
        raise WeightsError("\n  ".join([head, *wrong]) + f"\nUpdate locdistill, or {again}") from None
    if not settings.classes:
        raise WeightsError(f"{file}: the settings saved with the weights have no names of classes; {again}")
    return settings
