"""Import and export of whole detectors in files of MMDetection."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from locdistill.errors import WeightsError
from locdistill.interop.configs import architecture_of, read_config, settings_of
from locdistill.interop.mmdet import to_mmdet
from locdistill.interop.recognise import recognise
from locdistill.interop.unpack import Which
from locdistill.models import foreign
from locdistill.models.detector import Detector
from locdistill.models.foreign import ForeignSource, ImportReport
from locdistill.models.hub import find
from locdistill.models.weights import METADATA_KEY, SUFFIX, building, file_name, whole_file

Format = Literal["locdistill", "mmdet"]
THEIR_SUFFIXES = (".pth", ".pt")
# Settings that a file without ours states or implies; those of a file written for MMDetection must agree.
VISIBLE = (
    *("model", "backbone", "deformable", "classes", "background_channel", "channels", "depth", "levels", "reg_max"),
    *("norm_groups", "predictor", "angle_bins", "angle_unit"),
)
log = logging.getLogger("locdistill")


def load_mmdet(
    source: ForeignSource,
    *,
    classes: Iterable[str] | None = None,
    weights: Which = "ema",
    strict: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> Detector:
    """Build a detector from a checkpoint of MMDetection, the reference, Rotated-LD or GFocal v2, in evaluation mode.

    ``detector(images)`` computes `Dense` of normalised images, ``detector.detect(pictures)`` does everything from files
    to boxes. Nothing is downloaded and no code in the file is run. What was recognised and what was left out is logged
    (logger ``locdistill``).

    Args:
        source: A file, a state dict, or a checkpoint dictionary with a state dict.
        classes: Names of the classes, if the file has none or wrong ones.
        weights: Weights to read if the file holds a moving average too: the average (``ema``), which training programs
            evaluate, or the weights that were averaged (``raw``).
        strict: Whether every weight must be present, fit and be finite; otherwise a warning lists those that are not,
            which keep their random initial values.
        settings: Settings of the detector that override the recognised ones, such as ``{"style": "caffe"}``. ``config``
            names a configuration file of MMDetection (``.py``) for what the weights do not show: classes,
            normalisation, input size and test settings. It is parsed, never executed.

    Raises:
        WeightsError: A file is absent, damaged, would run code, is of another architecture, or incomplete; or the
            requested classes, weights or settings are not available.
    """
    if not isinstance(source, Mapping):
        source = find(source)
        if not foreign.is_foreign(source):
            raise WeightsError(f"{source}: not a file of MMDetection; use Detector.load for files of locdistill")
    found = _read(source, classes=classes, weights=weights, strict=strict, settings=settings)
    detector, report = _build(found, strict)
    (log.info if strict else log.warning)("%s", report)
    return detector


def save_mmdet(detector: Detector, path: str | Path) -> Path:
    """Write a detector under MMDetection's names, as a file that MMDetection 3 loads strictly.

    It holds the state dict, and as ``meta`` the names of the classes (for versions 2 and 3) and our settings, so that
    reading it restores the same detector. GFL is part of MMDetection; the other heads are those of the reference, of
    Rotated-LD (MMRotate) and of GFocal v2.

    Args:
        detector: The detector to write.
        path: The file, written atomically.

    Returns:
        The path written to.

    Raises:
        WeightsError: MMDetection has no such detector, or the file cannot be written.
    """
    path, own = Path(path), detector.settings
    tensors = {key: value.detach().cpu() for key, value in detector.state_dict().items()}
    try:
        theirs = to_mmdet(tensors, own.model)
        shapes = {key: tuple(value.shape) for key, value in theirs.items()}
        found = recognise(shapes, classes=own.classes).settings
    except WeightsError as error:
        raise WeightsError(f"MMDetection has no detector of this kind: {error}") from error
    mine = own.model_dump(include=set(VISIBLE)) | {"backbone": own.backbone.split(".")[0]}
    known = [key for key in VISIBLE if key in found]
    differ = [f"{key} {mine[key]}, there {found[key]}" for key in known if mine[key] != found[key]]
    if own.backbone_args:
        differ.append(f"backbone_args {own.backbone_args}, there none")
    if differ:
        raise WeightsError(f"MMDetection has no detector of this kind: here {'; '.join(differ)}")
    meta = {
        "CLASSES": own.classes,
        "dataset_meta": {"CLASSES": own.classes, "classes": own.classes},
        METADATA_KEY: json.dumps(own.model_dump(mode="json")),
    }
    with whole_file(path) as part:
        torch.save({"meta": meta, "state_dict": theirs}, part)
    return path


def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: Format | None = None,
    classes: Iterable[str] | None = None,
    weights: Which = "ema",
    strict: bool = True,
    settings: Mapping[str, Any] | None = None,
    force: bool = False,
) -> tuple[Path, ImportReport]:
    """Convert a file of MMDetection to one of ours, or the reverse.

    Args:
        source: A file of either kind, or a run folder.
        out: The file to write.
        to: Kind of file to write; unless given, MMDetection's for ``.pth`` and ours otherwise.
        classes: As for `load_mmdet`, for a foreign source; also the next three.
        weights: Averaged weights or not.
        strict: Whether every weight must be present and fit.
        settings: Settings that override the recognised ones.
        force: Whether to replace an existing file.

    Returns:
        The path written to, and the report on the source.

    Raises:
        WeightsError: As for `load_mmdet` and `save_mmdet`; or the file to write exists.
    """
    out = file_name(out)
    if to not in (None, *get_args(Format)):
        raise WeightsError(f"to: expected {' or '.join(map(repr, get_args(Format)))}, came {to!r}")
    to = to or ("mmdet" if out.suffix in THEIR_SUFFIXES else "locdistill")
    if to == "locdistill" and out.suffix != SUFFIX:
        out = out.with_name(out.name + SUFFIX)
    if os.path.exists(out) and not force:  # unlike `Path.exists`, never an error: the writer reports it
        raise WeightsError(f"{out} exists already; give another name, or --force to replace it")
    file = find(source)
    if foreign.is_foreign(file):
        found = _read(file, classes=classes, weights=weights, strict=strict, settings=settings)
        detector, report = _build(found, strict)
    else:
        detector, report = _own(file, changed=bool(classes or settings))
    return (save_mmdet(detector, out) if to == "mmdet" else detector.save(out)), report


def _read(source: ForeignSource, *, settings: Mapping[str, Any] | None, **options: Any) -> foreign.Foreign:
    """Read a foreign file, with the settings of a configuration file, whose architecture must be that of the weights.

    Raises:
        WeightsError: They are of different architectures; or as for `load_mmdet`.
    """
    given = dict(settings or {})
    config = given.pop("config", None)
    if config is None:
        return foreign.read(source, settings=given, **options)
    described = read_config(config)
    stated = settings_of(described)
    found = foreign.read(source, settings=stated | given, **options)
    own = found.report.settings
    weights = own.model_dump() | {"backbone": own.backbone.split(".")[0], "number of classes": len(own.classes)}
    differ = [
        f"{key} {value}, but the weights have {weights[key]}"
        for key, value in architecture_of(described).items()
        if value != weights[key]
    ]
    if differ:
        raise WeightsError(f"{config} is of another detector than {found.report.source}: it has {'; '.join(differ)}")
    note = f"{', '.join(stated) or 'nothing'} from {config}"
    return replace(found, report=replace(found.report, notes=(*found.report.notes, note)))


def _build(found: foreign.Foreign, strict: bool) -> tuple[Detector, ImportReport]:
    """Build the detector of a foreign file, in evaluation mode."""
    with building(found.report.source):
        detector = Detector(found.report.settings, pretrained=False)
    report = found.fill(detector, strict=strict)
    return detector.eval(), report


def _own(file: Path, *, changed: bool) -> tuple[Detector, ImportReport]:
    """Load a detector from a file of this package, unless its settings are to be changed."""
    if changed:
        raise WeightsError(
            f"{file}: written by locdistill, with settings that cannot be changed here; leave out classes and settings"
        )
    detector = Detector.load(file)
    report = ImportReport(
        source=str(file),
        settings=detector.settings,
        weights="the weights of the file",
        tensors=len(detector.state_dict()),
        parameters=sum(parameter.numel() for parameter in detector.parameters()),
    )
    return detector, report
