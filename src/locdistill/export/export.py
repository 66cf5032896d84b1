"""Export of trained weights to a file for other programs, checked against the detector before it is left behind."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from locdistill.annotations.files import images_below
from locdistill.data.open import open_dataset
from locdistill.data.settings import DataSettings
from locdistill.engine.devices import existing_device
from locdistill.errors import DataError, LocdistillError, RecipeError, RunError
from locdistill.export.parity import Check, compare
from locdistill.export.quantise import quantised
from locdistill.files import file_digest, make_folder, replacing, writing
from locdistill.inference.evaluate import adjusted, data_of, evaluate
from locdistill.models.detector import Detector
from locdistill.models.exported import FileFacts, Outputs, open_file, stored_scores
from locdistill.models.exporting.network import ExportedNetwork
from locdistill.models.exporting.writing import WRITERS, check_packages
from locdistill.models.hub import find
from locdistill.models.weights import EXPORTED, is_exported
from locdistill.recipe.load import Override, validate
from locdistill.types import Progress, Tell

_PICTURES = 6
"""Pictures that are compared from reading to boxes."""


@dataclass(frozen=True)
class ExportResult:
    """An exported file.

    Attributes:
        file: The file.
        facts: Its metadata.
        checks: Comparisons with the detector.
        metrics: AP and other metrics of the detector and of the file, with a data set.
        per_class: AP of each class likewise.
        megabytes: Size of the file, with a second file of weights if it has one.
    """

    file: Path
    facts: FileFacts
    checks: tuple[Check, ...]
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    megabytes: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        facts = asdict(self.facts) | {"settings": self.facts.settings.model_dump(mode="json")}
        checks = [asdict(check) | {"equal": check.equal} for check in self.checks]
        return asdict(self) | {"file": str(self.file), "facts": facts, "checks": checks}


@dataclass(frozen=True)
class ExportPlan:
    """Form of an exported file.

    Attributes:
        kind: Format: ``onnx``, ``openvino`` or ``torch``.
        outputs: Raw predictions, boxes, or both; None for both where the file can have boxes.
        size: Height and width of the input; None for the detector's own, of an image in landscape.
        dynamic: Whether height, width and number of images are open.
        batch: Number of images, unless it is open.
        int8: Whether convolutions compute with 8-bit integers.
    """

    kind: str = "onnx"
    outputs: str | None = None
    size: tuple[int, int] | None = None
    dynamic: bool = False
    batch: int = 1
    int8: bool = False

    def facts(self, detector: Detector, weights: str, scores: dict[str, float] | None = None) -> FileFacts:
        """Return the metadata of the file, for a detector in weights of this digest and with these scores to show.

        Raises:
            RecipeError: The form is not possible.
        """
        own, named = detector.settings, self.outputs
        outputs = next((each for each in get_args(Outputs) if each == named), None)
        if named is not None and outputs is None:
            raise RecipeError(f"--outputs {named}: expected one of {', '.join(get_args(Outputs))}")
        pad = max(own.input.pad_to, 2 ** min(5, own.levels[-1]))
        landscape = (own.input.short, own.input.long)
        height, width = (-(-side // pad) * pad for side in self.size or landscape)
        if self.size is not None and self.dynamic:
            raise RecipeError("a size and --dynamic exclude each other; leave one out")
        if self.size is not None and self.size != (height, width):
            raise RecipeError(f"height and width must be multiples of {pad}, got {self.size}; try {(height, width)}")
        boxes = not own.rotated and own.detections.nms == "plain" and self.kind != "torch"
        if self.kind == "torch" and outputs not in (None, "raw"):
            raise RecipeError("--format torch has raw outputs alone; leave out --outputs, or choose another format")
        size = None if self.dynamic else (height, width)
        batch = None if self.dynamic else self.batch
        chosen: Outputs = outputs or ("both" if boxes else "raw")
        return FileFacts(own, chosen, size, batch, weights, version("locdistill"), self.int8, scores or {})


def export(
    weights: str | Path,
    out: str | Path | None = None,
    plan: ExportPlan | None = None,
    *,
    data: str | Path | None = None,
    images: Sequence[str | Path] = (),
    overrides: Sequence[Override] = (),
    progress: Progress | None = None,
    tell: Tell = lambda _: None,
) -> ExportResult:
    """Export a detector, and compare the file with it: raw outputs and boxes, on noise and on pictures.

    A file that differs by more than rounding is not left behind; one with 8-bit convolutions does, and AP says by how
    much.

    Args:
        weights: A weights file, a run folder, or ``run/best``.
        out: The file; by default beside the weights, with the suffix of the format.
        plan: Form of the file; by default ONNX for the detector's own input size and one image.
        data: Data set to evaluate both on, and to calibrate 8-bit integers with; its validation images are compared.
        images: Folders or files of pictures to compare; by default those of ``data``, or of the run's own data if they
            are there.
        overrides: Settings of ``data``, ``input`` and ``detections``, as in `evaluate`.
        progress: Progress display.
        tell: Callback for messages.

    Raises:
        WeightsError: The weights cannot be read, or are an exported file already.
        RecipeError: The form is not possible for this detector.
        RunError: A package is missing, the file cannot be written, or differs from the detector.
        DataError: The data cannot be read.
    """
    plan = plan or ExportPlan()
    if plan.kind not in WRITERS:
        raise RecipeError(f"--format {plan.kind}: expected one of {', '.join(WRITERS)}")
    if plan.int8 and (plan.kind != "onnx" or data is None):
        raise RecipeError("--int8 is for --format onnx, and needs images to calibrate with: pass --data FOLDER")
    check_packages(plan.kind)
    source = find(weights)
    if is_exported(source):
        raise RecipeError(f"{source} is an exported file already; give the weights it was made from")
    detector = Detector.load(source, existing_device("cpu"))
    settings, others = adjusted(detector.settings, overrides, data={} if data is None else {"path": str(data)})
    detector.settings = settings
    facts = plan.facts(detector, file_digest(source), stored_scores(source))
    suffix = next(suffix for suffix, kind in EXPORTED.items() if kind == plan.kind)
    target = source.with_suffix(suffix) if out is None else Path(out)
    if target.suffix.lower() != suffix:
        raise RecipeError(f"{target}: a file of this format ends in {suffix}")
    data_settings = None if data is None else validate(DataSettings, others["data"], "data")
    pictures = _pictures(images, data_settings or _data_of_run(source))
    if not pictures:
        tell("no pictures to compare on, noise alone; pass --images or --data")
    make_folder(target.parent)
    with tempfile.TemporaryDirectory(prefix=f".{target.stem}-", dir=target.parent) as name, writing(target):
        file = Path(name) / target.name
        tell(f"writing {target}")
        WRITERS[plan.kind](ExportedNetwork(detector, boxes=facts.outputs != "raw"), facts, file)
        if plan.int8:
            assert data_settings is not None
            tell("calibrating")
            quantised(file, facts, detector, data_settings)
        tell("comparing it with the detector")
        checks = _compared(file, facts, detector, pictures)
        wrong = [check for check in checks if not check.equal]
        if wrong and not plan.int8:
            raise RunError(
                f"the file differs from the detector and was not written: {wrong[0].what}, {wrong[0].images} of "
                f"{wrong[0].size}, raw outputs by {wrong[0].raw:.2g} of the largest, {wrong[0].stray} stray detections "
                f"for {wrong[0].detections}; please report it with the versions of torch, onnx and onnxruntime"
            )
        result = ExportResult(target, facts, tuple(checks))
        if data is not None:
            both = {"detector": source, "file": file}
            found = {
                which: evaluate(path, data, overrides=overrides, device="cpu", progress=progress)
                for which, path in both.items()
            }
            result = replace(
                result,
                metrics={which: each.metrics for which, each in found.items()},
                per_class={
                    which: {c: v["AP"] or math.nan for c, v in each.per_class.items()} for which, each in found.items()
                },
            )
        parts = sorted(Path(name).iterdir(), key=lambda part: part == file)  # the file itself appears last
        for part in parts:
            with replacing(target.with_name(part.name)) as new:
                shutil.copyfile(part, new)
    size = sum(target.with_name(part.name).stat().st_size for part in parts)
    return replace(result, megabytes=size / 1e6)


def _compared(file: Path, facts: FileFacts, detector: Detector, pictures: Sequence[Path]) -> list[Check]:
    """Compare a file with its detector.

    Raises:
        RunError: Its runtime cannot run it.
    """
    run, _ = open_file(file)
    try:
        return compare(detector, run, facts, pictures)
    except LocdistillError:
        raise
    except Exception as error:  # each runtime has its own
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise RunError(
            f"the file cannot be run at one of the sizes and was not written ({reason}); "
            "export it for a fixed size, without --dynamic (of 'auto': with --fixed)"
        ) from error


def _data_of_run(weights: Path) -> DataSettings | None:
    """Return the data settings of the run of the weights; None if there is no run, or its images are not there."""
    try:
        settings = validate(DataSettings, data_of(weights, None), "data")
        open_dataset(settings, "val", training=False, labelled=False)
    except (RecipeError, DataError):
        return None
    return settings


def _pictures(images: Sequence[str | Path], data: DataSettings | None) -> list[Path]:
    """Choose pictures of as many aspect ratios as there are."""
    files = [file for item in map(Path, images) for file in (images_below(item) if item.is_dir() else [item])]
    if files:
        return files[:_PICTURES]
    if data is None:
        return []
    records = open_dataset(data, "val", training=False, labelled=False).records
    by_shape = {(record.height, record.width): record.path for record in records}
    chosen = [*by_shape.values(), *(record.path for record in records)]
    return list(islice(dict.fromkeys(chosen), _PICTURES))
