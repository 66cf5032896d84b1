"""Detectors in files of other formats, which `locdistill export` wrote, as detectors like any other.

A file takes ``images`` ``(b, 3, h, w)``, 8-bit RGB padded at the right and the bottom, and ``sizes`` ``(b, 2)``, height
and width of each image without padding. Its raw outputs are those of `Dense`; boxes are lists over all images of a
batch, best first. Metadata under the name ``locdistill`` say everything else.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from locdistill.errors import ImageError, RunError, WeightsError
from locdistill.geometry.grid import Grid
from locdistill.images import ImageSource, read_image, resize_to
from locdistill.models.detector import Detector, Prepared
from locdistill.models.settings import DetectorSettings
from locdistill.models.weights import EXPORTED, is_exported, locate, read_thresholds
from locdistill.settings import problems
from locdistill.types import Dense, Detections

Outputs = Literal["raw", "boxes", "both"]
KEY = "locdistill"
"""Name of the metadata."""
FORMAT = 1
"""Version of the metadata."""
INPUTS = ("images", "sizes")
RAW = ("cls_logits", "edge_logits", "quality_logits")
BOXES = ("boxes", "scores", "labels", "image_index")


@dataclass(frozen=True)
class FileFacts:
    """Metadata of an exported file.

    Attributes:
        settings: Settings of the detector.
        outputs: Which outputs the file has.
        size: Height and width of its input; None for any multiples of 32.
        batch: Number of images; None for any.
        weights: SHA-256 of the weights that were exported.
        version: Version of the package that wrote it.
        quantised: Whether its convolutions compute with 8-bit integers.
        scores: Score with the best F1 on the validation images, by class, from which `predict` shows detections; empty
            if the weights have none.
    """

    settings: DetectorSettings
    outputs: Outputs
    size: tuple[int, int] | None
    batch: int | None
    weights: str
    version: str
    quantised: bool = False
    scores: dict[str, float] = field(default_factory=dict)

    def as_text(self) -> dict[str, str]:
        """Return the metadata as texts by name: all under `KEY`, and what other programs need under plain names."""
        own = self.settings
        everything = asdict(self) | {"format": FORMAT, "settings": own.model_dump(mode="json")}
        fit = (
            {"fit": list(self.size)}
            if self.size
            else {"short": own.input.short, "long": own.input.long, "pad_to": own.input.pad_to}
        )
        plain = {
            "classes": list(own.classes),
            "strides": list(own.strides),
            "bins": own.reg_max + 1,
            "resize": fit,
            "thresholds": {
                "score": own.detections.score_threshold,
                "iou": own.detections.nms_iou,
                "detections": own.detections.max_detections,
                "show": self.scores,
            },
            "version": self.version,
            "weights_sha256": self.weights,
        }
        return {KEY: json.dumps(everything)} | {name: json.dumps(value) for name, value in plain.items()}

    @classmethod
    def of_text(cls, text: str, file: Path) -> FileFacts:
        """Parse the metadata of a file.

        Raises:
            WeightsError: They are damaged, or of a later version.
        """
        try:
            content = json.loads(text)
            if int(content.pop("format")) > FORMAT:
                raise WeightsError(f"{file}: written by locdistill {content.get('version')}; update this one")
            settings = DetectorSettings.model_validate(content.pop("settings"))
            size = content.pop("size")
            return cls(settings=settings, size=None if size is None else (int(size[0]), int(size[1])), **content)
        except pydantic.ValidationError as error:
            wrong = problems(error, DetectorSettings, json.loads(text)["settings"])
            raise WeightsError("\n  ".join([f"{file}: its settings are not valid here:", *wrong])) from None
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise WeightsError(f"{file}: its metadata '{KEY}' cannot be read ({error!r}); export it again") from error


class OnnxFile:
    """A file run by ONNX Runtime."""

    def __init__(self, file: Path, device: torch.device) -> None:
        runtime = _imported("onnxruntime", file)
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.type == "cuda":
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        with _reading(file):
            self.session = runtime.InferenceSession(str(file), options, providers=providers)
        if device.type == "cuda" and self.session.get_providers()[0] != "CUDAExecutionProvider":
            raise RunError(
                f"{file}: this ONNX Runtime cannot compute on a GPU; pip install onnxruntime-gpu, or pass --device cpu"
            )
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        return dict(zip(self.names, self.session.run(None, {"images": images, "sizes": sizes}), strict=True))


class OpenVinoFile:
    """A file run by OpenVINO, on the CPU."""

    def __init__(self, file: Path, device: torch.device) -> None:
        openvino = _imported("openvino", file)
        if device.type != "cpu":
            raise RunError(f"{file}: OpenVINO computes on the CPU here; pass --device cpu")
        core = openvino.Core()
        with _reading(file):
            model = core.read_model(str(file))
            exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
            self.compiled = core.compile_model(model, "CPU", exact)
        there = model.has_rt_info(["framework", KEY])
        self.metadata = {KEY: str(model.get_rt_info(["framework", KEY]).astype(str))} if there else {}
        self.names = [next(iter(output.get_names())) for output in self.compiled.outputs]

    def __call__(self, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        found = self.compiled({"images": images, "sizes": sizes})
        return {name: np.array(found[output]) for name, output in zip(self.names, self.compiled.outputs, strict=True)}


class TorchFile:
    """A file of ``torch.export``, which holds a graph and weights, run by PyTorch."""

    def __init__(self, file: Path, device: torch.device) -> None:
        extra = {KEY: "", "outputs": ""}
        with _reading(file):
            program = torch.export.load(str(file), extra_files=extra)
            self.module: Any = program.module().to(device)
        self.device, self.metadata = device, {KEY: extra[KEY]}
        self.names = json.loads(extra["outputs"] or "[]")

    @torch.no_grad()
    def __call__(self, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        found = self.module(*(torch.from_numpy(values).to(self.device) for values in (images, sizes)))
        return {name: value.cpu().numpy() for name, value in zip(self.names, found, strict=True)}


RunFile = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
_READERS: dict[str, Any] = {"onnx": OnnxFile, "openvino": OpenVinoFile, "torch": TorchFile}


def _imported(name: str, file: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        extra = "onnx" if name == "onnxruntime" else name
        raise WeightsError(f"{file} needs {name}, which is not installed: pip install 'locdistill[{extra}]'") from None


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each runtime has its own errors for damaged files
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise WeightsError(f"{file}: cannot be read ({reason}); export or copy it again") from error


def open_file(file: Path, device: torch.device | str = "cpu") -> tuple[RunFile, FileFacts | None]:
    """Open an exported file; without metadata of this package, it is another program's.

    Raises:
        WeightsError: It cannot be read, or its runtime is not installed.
        RunError: Its runtime cannot compute on the device.
    """
    run = _READERS[EXPORTED[file.suffix.lower()]](file, torch.device(device))
    text = run.metadata.get(KEY)
    return run, FileFacts.of_text(text, file) if text else None


def stored_scores(path: str | Path) -> dict[str, float]:
    """Return the score with the best F1 of each class in a weights file or an exported file; empty if it has none."""
    file = locate(path)
    return _scores(file, file.stat().st_mtime_ns) if is_exported(file) else read_thresholds(file)


@functools.lru_cache(maxsize=8)
def _scores(file: Path, _changed: int) -> dict[str, float]:
    facts = open_file(file)[1]
    return {} if facts is None else facts.scores


def open_detector(path: str | Path, device: torch.device | str = "cpu") -> Detector:
    """Open a detector in a file of any kind, in evaluation mode: weights as for `Detector.load`, or an exported file.

    Raises:
        WeightsError: The file is absent, damaged, of an unsupported architecture, or needs a package.
        RunError: The runtime of the file cannot compute on the device.
    """
    file = locate(path)
    return ExportedDetector(file, device) if is_exported(file) else Detector.load(file, device)


class ExportedDetector(Detector):
    """A detector whose network is in an exported file; it predicts, and cannot be trained.

    A file for one size of images is given images that are resized to fit it, and padded to it. A file for a fixed
    number of images is run in parts. A file with boxes alone gives them as they are: its thresholds are those of the
    export.

    Args:
        file: The file.
        device: Device to compute on.

    Attributes:
        facts: Metadata of the file.

    Raises:
        WeightsError: The file cannot be read, or was not exported by this package.
        RunError: Its runtime cannot compute on the device.
    """

    def __init__(self, file: Path, device: torch.device | str = "cpu") -> None:
        run, facts = open_file(file, device)
        if facts is None:
            raise WeightsError(
                f"{file}: not written by 'locdistill export' (no '{KEY}' in its metadata); as a teacher, describe it "
                "with teacher.onnx"
            )
        nn.Module.__init__(self)
        self.describe(facts.settings)
        self.file, self.facts, self._run = file, facts, run
        self.to(device).eval()

    def train(self, _mode: bool = True) -> ExportedDetector:
        """Do nothing: the network is as it was exported."""
        return self

    def pyramid(self, _images: Tensor) -> list[Tensor]:
        """Raise an error, as the file has no maps.

        Raises:
            WeightsError: Always.
        """
        raise WeightsError(f"{self.file}: an exported file has predictions alone; give the weights it was made from")

    def see(
        self, images: UInt8[Tensor, "b 3 h w"], sizes: Int[Tensor, "b 2"], network: Callable[..., Dense] | None = None
    ) -> tuple[Dense, Grid]:
        """Predict from padded images; see :meth:`Detector.see`.

        Raises:
            ImageError: The file is for images of another size.
            WeightsError: The file has boxes alone.
        """
        assert network is None, "there is one form of the network, that in the file"
        if self.facts.outputs == "boxes":
            raise WeightsError(f"{self.file}: has boxes alone; export it with --outputs raw or both to use it here")
        values, (height, width) = self._values(images, sizes)
        dense = Dense(
            values["cls_logits"],
            values["edge_logits"],
            values.get("quality_logits"),
            quality_in_score=self.kind.quality == "in_score",
        )
        return dense, self.grid_for((height, width))

    def look(
        self,
        images: UInt8[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"],
        original_sizes: Int[Tensor, "b 2"],
        *,
        flipped: bool = False,
    ) -> list[Detections]:
        """Return the candidates in padded images; those of a file with boxes alone are suppressed already.

        Raises:
            ImageError: The file is for images of another size.
            WeightsError: The file has boxes alone, and their thresholds were changed.
        """
        if self.facts.outputs != "boxes":
            return super().look(images, sizes, original_sizes, flipped=flipped)
        both = self.facts.settings, self.settings
        inside, wanted = (settings.detections.model_dump(exclude={"augment"}) for settings in both)
        if changed := [name for name in inside if inside[name] != wanted[name]]:
            raise WeightsError(
                f"{self.file}: has boxes alone, computed with detections.{changed[0]}={inside[changed[0]]}, not "
                f"{wanted[changed[0]]}; export it with --outputs both to change that"
            )
        values, _ = self._values(images, sizes)
        sizes, original_sizes = sizes.to(self.device), original_sizes.to(self.device)
        scales = (sizes / original_sizes).to(values["boxes"]).flip(-1)
        found = []
        for image in range(len(images)):
            boxes, scores, labels = (values[name][values["image_index"] == image] for name in BOXES[:3])
            boxes = self.coding.kind.mirrored(boxes, sizes[image, 1:].to(boxes)) if flipped else boxes
            found.append(Detections(self.coding.kind.shrunk(boxes, scales[image, None]), scores, labels))
        return found

    def suppress(self, views: Sequence[list[Detections]]) -> list[Detections]:
        """Return detections from candidates; those of a file with boxes alone are detections, if there is one view."""
        return views[0] if self.facts.outputs == "boxes" and len(views) == 1 else super().suppress(views)

    def _values(self, images: Tensor, sizes: Tensor) -> tuple[dict[str, Tensor], tuple[int, int]]:
        """Run the file on padded images; also return the height and width that it was given.

        Raises:
            ImageError: The file is for images of another size.
        """
        height, width = self.facts.size or images.shape[-2:]
        below, right = height - images.shape[-2], width - images.shape[-1]
        if below < 0 or right < 0:
            raise ImageError(
                f"{self.file} takes images of {height}x{width} (height x width), and these have "
                f"{images.shape[-2]}x{images.shape[-1]}; export it with --dynamic, or with another --size"
            )
        padded = nn.functional.pad(images, (0, right, 0, below)).cpu().contiguous().numpy()
        real = sizes.cpu().long().numpy()
        step = self.facts.batch or len(padded)
        parts: list[dict[str, Tensor]] = []
        for first in range(0, len(padded), step):
            some = [values[first : first + step] for values in (padded, real)]
            count = len(some[0])
            if count < step:  # repeat the last image
                some = [np.concatenate((x, np.repeat(x[-1:], step - count, 0))) for x in some]
            found = self._run(*some)
            part = {name: torch.from_numpy(found[name][:count]) for name in RAW if name in found}
            if not part:
                own = found["image_index"] < count
                part = {name: torch.from_numpy(found[name][own]) for name in BOXES}
                part["image_index"] = part["image_index"] + first
            parts.append(part)
        return {name: torch.cat([part[name] for part in parts]).to(self.device) for name in parts[0]}, (height, width)

    def prepare(self, source: ImageSource) -> Prepared:
        """Read an image and resize it for the file.

        Raises:
            ImageError: It cannot be read.
            WeightsError: The file is for one size, and the settings are for others.
        """
        if self.facts.size is None:
            return super().prepare(source)
        if len(self.settings.detections.augment.views) > 1:
            raise WeightsError(f"{self.file}: is for one size of images; detections.augment needs --dynamic")
        inside, wanted = (
            settings.input.model_dump(exclude={"bits"}) for settings in (self.facts.settings, self.settings)
        )
        if inside != wanted:
            raise WeightsError(f"{self.file}: is for one size of images; settings of input need --dynamic")
        return fitted(source, self.facts.size, bits=self.settings.input.bits)


def fitted(source: ImageSource, size: tuple[int, int], *, bits: int | None = None) -> Prepared:
    """Read an image and resize it, with its aspect ratio kept, to the largest size within a file's input size.

    Sides are ``floor(side * scale + 0.5)``, at least 1.
    """
    image = read_image(source, bits=bits)
    height, width = image.shape[-2:]
    scale = min(size[0] / height, size[1] / width)
    inner = (max(math.floor(height * scale + 0.5), 1), max(math.floor(width * scale + 0.5), 1))
    return Prepared((resize_to(image, inner),), (height, width), (size,))
