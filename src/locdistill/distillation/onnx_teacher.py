"""A detector in an ONNX file as teacher: class scores and edge distributions, or boxes, at every location."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from locdistill.distillation.bridges import Facts
from locdistill.distillation.settings import OnnxSettings
from locdistill.distillation.teacher import FrozenTeacher
from locdistill.errors import TeacherError
from locdistill.geometry.bins import Bins
from locdistill.geometry.coding import encode
from locdistill.geometry.constant import constant
from locdistill.geometry.grid import Grid
from locdistill.images import normalised
from locdistill.interop.classes import COCO, VOC
from locdistill.models.exported import ExportedDetector, open_file
from locdistill.models.settings import NormalisationSettings
from locdistill.models.weights import EXPORTED
from locdistill.types import Batch, Dense, Triple

EDGES = 4
STRIDES = (4, 8, 16, 32, 64, 128)
PROBE = 256
"""Side of the image used to examine the outputs of a file with variable input size."""
EPSILON = 1e-7
BoxUnits = Literal["strides", "pixels", "corners"]
_KNOWN = {len(COCO): COCO, len(VOC): VOC}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLayout:
    """Positions of the predictions in the outputs of a file.

    Attributes:
        strides: Strides of the levels, finest first.
        shapes: Height and width of the levels in the examined outputs.
        scores: Index of the output with each level's class scores; a single index if one output has all levels.
        edges: Likewise for the edges; equal to ``scores`` if one output has scores followed by edges.
        classes: Number of classes.
        bins: Numbers per edge; 1 for boxes without distributions.
    """

    strides: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    scores: tuple[int, ...]
    edges: tuple[int, ...]
    classes: int
    bins: int


def flat(output: Float[Tensor, "..."]) -> Float[Tensor, "b l k"]:
    """Return an output as ``(b, l, k)``: unchanged, or converted from a map ``(b, k, h, w)``."""
    return output if output.ndim == 3 else output.flatten(2).transpose(1, 2)


def recognise(shapes: Sequence[tuple[int, ...]], size: tuple[int, int], classes: int | None = None) -> OutputLayout:
    """Determine the layout of the outputs from their shapes.

    Outputs are ``(b, l, k)`` or maps ``(b, k, h, w)``; one per level, or one for all levels, finest first. Scores have
    as many numbers per location as there are classes, edges four times the number of bins (``4``: boxes); both may be
    in one output, scores first. Other outputs are not allowed, so that no output is ignored by mistake.

    Args:
        shapes: Shapes of the outputs.
        size: Height and width of the input.
        classes: Number of classes; None for that of COCO or VOC.

    Raises:
        ValueError: The layout cannot be determined; the message has the reason.
    """
    if not shapes or any(len(shape) not in (3, 4) for shape in shapes):
        raise ValueError("outputs must be (images, locations, numbers), or maps (images, numbers, height, width)")
    sizes = [(s[1], s[2]) if len(s) == 3 else (s[2] * s[3], s[1]) for s in shapes]
    scores, edges, count, bins = _columns([width for _, width in sizes], classes)
    order = sorted(scores, key=lambda i: -sizes[i][0])
    places = sorted(edges, key=lambda i: -sizes[i][0])
    if [sizes[i][0] for i in order] != [sizes[i][0] for i in places]:
        raise ValueError(
            f"scores are given at {[sizes[i][0] for i in order]} locations, edges at {[sizes[i][0] for i in places]}"
        )
    strides = _strides([sizes[i][0] for i in order], size)
    levels = tuple((math.ceil(size[0] / s), math.ceil(size[1] / s)) for s in strides)
    return OutputLayout(
        strides=strides, shapes=levels, scores=tuple(order), edges=tuple(places), classes=count, bins=bins
    )


def _columns(widths: Sequence[int], classes: int | None) -> tuple[list[int], list[int], int, int]:
    """Return outputs with scores, outputs with edges, number of classes, number of bins."""
    different = sorted(set(widths))
    for count in [classes] if classes is not None else list(_KNOWN):
        rest = [width for width in different if width != count]
        if count in different and len(rest) == 1 and rest[0] % EDGES == 0:
            scores = [i for i, width in enumerate(widths) if width == count]
            return scores, [i for i in range(len(widths)) if i not in scores], count, rest[0] // EDGES
        if len(different) == 1 and different[0] > count and (different[0] - count) % EDGES == 0:
            everything = list(range(len(widths)))
            return everything, everything, count, (different[0] - count) // EDGES
    known = f"{classes} classes" if classes is not None else "the 80 classes of COCO or the 20 of VOC"
    raise ValueError(
        f"the outputs have {different} numbers per location, which is not {known} and four edges; name the file's "
        "classes, in its order, with teacher.onnx.classes"
    )


def _strides(counts: Sequence[int], size: tuple[int, int]) -> tuple[int, ...]:
    """Return the strides of levels with these numbers of locations; one count may be the sum of consecutive levels."""
    locations = [math.ceil(size[0] / stride) * math.ceil(size[1] / stride) for stride in STRIDES]
    if len(counts) == 1:
        for first in range(len(STRIDES)):
            for last in range(first + 1, len(STRIDES) + 1):
                if sum(locations[first:last]) == counts[0]:
                    return STRIDES[first:last]
    by_count = dict(reversed([*zip(locations, STRIDES, strict=True)]))
    if len(counts) == 1 or not set(counts) <= set(by_count) or len(set(counts)) != len(counts):
        raise ValueError(
            f"{list(counts)} locations are not those of levels with one location per cell and strides among "
            f"{list(STRIDES)}, of an input of {size[0]}x{size[1]}"
        )
    return tuple(by_count[count] for count in counts)


def runtime() -> Any:
    """Import and return ONNX Runtime.

    Raises:
        TeacherError: It is not installed.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError:
        raise TeacherError(
            "a teacher in an ONNX file needs ONNX Runtime, which is not installed: pip install 'locdistill[onnx]'"
        ) from None


class OnnxTeacher(FrozenTeacher):
    """A detector in an ONNX file, run by ONNX Runtime.

    Images are normalised as in the training of the file's network, which the file does not record. For a file with a
    fixed input size, each batch is padded to that size at the right and bottom with zeros, and predictions of the
    padding are left out; larger images are not supported. For a file with a fixed number of images, the batch is
    processed in parts of that number.

    Args:
        file: The file.
        classes: Names of its classes, in its order; None for those of COCO if there are 80, of VOC if there are 20.
        mean: Mean of the input channels, in the network's order, 0 to 255.
        std: Standard deviation, likewise.
        bgr: Whether the network's channel order is blue, green, red.
        offset: Position of a location within its cell, in strides.
        boxes: Meaning of four numbers per location: distances to the edges in ``strides`` or ``pixels``, or
            ``corners``, ``x1, y1, x2, y2`` in pixels.

    Attributes:
        facts: Properties of its predictions.
        normalisation: Its normalisation of images, in an exported file part of the file.
        size: Height and width of its input; None for any.

    Raises:
        TeacherError: ONNX Runtime is not installed or cannot read the file, or its inputs or outputs are not those of a
            detector.
    """

    def __init__(
        self,
        file: str | Path,
        *,
        classes: Sequence[str] | None = None,
        mean: Triple,
        std: Triple,
        bgr: bool = True,
        offset: float = 0.5,
        boxes: BoxUnits = "strides",
    ) -> None:
        self.file, self.offset, self.boxes = Path(file), offset, boxes
        self.normalisation = NormalisationSettings(mean=mean, std=std, bgr=bgr)
        self.device, self.scale = torch.device("cpu"), 1
        self.session = self._open(["CPUExecutionProvider"])
        # name of the input, its height and width, and its number of images; None for any
        inputs = self.session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(shape) != 4 or shape[1] != 3 or "float" not in inputs[0].type:
            found = ", ".join(f"{i.name} {i.shape} of {i.type}" for i in inputs)
            raise TeacherError(f"{self.file}: expected one input (images, 3, height, width) of floats, found {found}")
        height, width = shape[2], shape[3]
        fixed = isinstance(height, int) and isinstance(width, int)
        self.input, self.size, self.images = (
            inputs[0].name,
            (height, width) if fixed else None,
            shape[0] if isinstance(shape[0], int) else None,
        )
        self.layout, self.probabilities = self._look(None if classes is None else len(classes))
        names = tuple(classes) if classes is not None else _KNOWN[self.layout.classes]
        self.facts = Facts(
            classes=names,
            strides=self.layout.strides,
            offset=offset,
            bins=Bins(self.layout.bins - 1) if self.layout.bins > 1 else None,
        )
        self.strides = self.layout.strides

    def looking(self, strides: Sequence[int], scale: int = 1) -> OnnxTeacher:
        """Restrict predictions to some of its levels, set the enlargement of its input, and return itself."""
        self.strides, self.scale = tuple(strides), scale
        return self

    def normalise_as(self, how: NormalisationSettings) -> None:
        """Change the normalisation of images; settings that are None stay unchanged."""
        self.normalisation = self.normalisation.model_copy(update=how.model_dump(exclude_none=True))

    def to(self, device: torch.device) -> OnnxTeacher:
        """Return predictions on this device; on a GPU, also run there if ONNX Runtime can."""
        self.device = device
        gpu = "CUDAExecutionProvider"
        if device.type == "cuda" and gpu in runtime().get_available_providers():
            self.session = self._open([(gpu, {"device_id": device.index or 0}), "CPUExecutionProvider"])
        return self

    @torch.no_grad()
    def __call__(self, batch: Batch, *, features: bool = False, towers: bool = False) -> Dense:
        """Return predictions on the batch, as logits; for boxes, the four distances in strides replace edge logits."""
        assert not features, "the recipe's checks refuse terms that look at maps"
        assert not towers, "and at what a head makes of the student's"
        how = self.normalisation
        assert how.mean is not None
        assert how.std is not None
        mean, std = (constant(values, batch.images, torch.float32)[:, None, None] for values in (how.mean, how.std))
        images = normalised(batch.images, batch.sizes, mean=mean, std=std, bgr=bool(how.bgr))
        if self.scale > 1:
            images = torch.nn.functional.interpolate(images, scale_factor=float(self.scale), mode="bilinear")
        height, width = int(images.shape[-2]), int(images.shape[-1])
        if self.size is not None:
            if height > self.size[0] or width > self.size[1]:
                raise TeacherError(
                    f"{self.file} needs images of at most {self.size[0]}x{self.size[1]} (height x width), but a batch "
                    f"has {height}x{width}; set data.sizes=[[{max(self.size)}, {min(self.size)}]] or smaller"
                )
            images = torch.nn.functional.pad(images, (0, self.size[1] - width, 0, self.size[0] - height))
        seen = int(images.shape[-2]), int(images.shape[-1])
        layout, outputs = self.layout, self._run(images)
        scores = torch.cat([flat(outputs[i])[..., : layout.classes] for i in layout.scores], 1)
        edges = torch.cat([flat(outputs[i])[..., -EDGES * layout.bins :] for i in layout.edges], 1)
        edges = edges.reshape(*edges.shape[:2], EDGES, layout.bins)
        if layout.bins == 1 and self.boxes != "strides":  # boxes as distances to the edges, in strides
            boxes = edges[..., 0]
            shapes = tuple((math.ceil(seen[0] / s), math.ceil(seen[1] / s)) for s in layout.strides)
            grid = Grid.build(shapes, layout.strides, offset=self.offset, device=boxes.device)
            pixels = boxes if self.boxes == "pixels" else encode(grid.points, boxes)
            edges = (pixels / grid.strides[:, None])[..., None]
        if self.probabilities:
            scores = torch.logit(scores, eps=EPSILON)
        kept = self._kept(layout.strides, seen, (height, width)).to(scores.device)
        return Dense(scores[:, kept], edges[:, kept])

    def _open(self, providers: list[Any]) -> Any:
        library = runtime()
        options = library.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # old exporters list weights as inputs, with a warning for each
        try:
            return library.InferenceSession(str(self.file), options, providers=providers)
        except Exception as error:
            raise TeacherError(f"{self.file}: ONNX Runtime cannot read it: {error}") from error

    def _look(self, classes: int | None) -> tuple[OutputLayout, bool]:
        """Return the layout of the outputs, and whether scores are probabilities, determined from a noise image."""
        size = self.size or (PROBE, PROBE)
        outputs = self._run(torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)))
        try:
            layout = recognise([tuple(output.shape) for output in outputs], size, classes)
        except ValueError as error:
            found = ", ".join(str(tuple(output.shape)) for output in outputs)
            raise TeacherError(f"{self.file}: not the outputs of a dense detector, {found}: {error}") from None
        scores = torch.cat([flat(outputs[i])[..., : layout.classes] for i in layout.scores], 1)
        return layout, bool(((scores >= 0) & (scores <= 1)).all())

    def _run(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return all outputs, with the images along the first axis."""
        array = np.ascontiguousarray(images.float().cpu().numpy())
        step = self.images or len(array)
        groups = []
        for start in range(0, len(array), step):
            part = array[start : start + step]
            missing = step - len(part)  # a file for a fixed number of images accepts no fewer
            filled = np.concatenate((part, np.zeros((missing, *part.shape[1:]), part.dtype))) if missing else part
            outputs = self.session.run(None, {self.input: filled})
            groups.append([np.asarray(output)[: len(part)] for output in outputs])
        return [
            torch.from_numpy(np.concatenate(parts)).float().to(images.device) for parts in zip(*groups, strict=True)
        ]

    def _kept(
        self, strides: Sequence[int], seen: tuple[int, int], wanted: tuple[int, int], per_cell: int = 1
    ) -> Int[Tensor, " k"]:
        """Return indices of the locations of the selected levels within ``wanted``, of those for an image ``seen``."""
        masks = []
        for stride in strides:
            mask = torch.zeros(math.ceil(seen[0] / stride), math.ceil(seen[1] / stride), dtype=torch.bool)
            if stride in self.strides:
                mask[: math.ceil(wanted[0] / stride), : math.ceil(wanted[1] / stride)] = True
            masks.append(mask.flatten().repeat_interleave(per_cell))
        return torch.cat(masks).nonzero()[:, 0]


class ExportedTeacher(OnnxTeacher):
    """A detector in a file that `locdistill export` wrote with raw outputs; its metadata describe it.

    Args:
        detector: The detector in the file.

    Raises:
        TeacherError: The file has no raw outputs.
    """

    def __init__(self, detector: ExportedDetector) -> None:
        if detector.facts.outputs == "boxes":
            raise TeacherError(f"{detector.file}: has boxes alone; export it with --outputs raw or both to teach")
        self.detector, self.file, self.size = detector, detector.file, detector.facts.size
        self.facts = replace(Facts.of(detector.settings), channels=None)
        self.strides, self.scale = self.facts.strides, 1
        own = detector.settings
        self.normalisation = NormalisationSettings(mean=own.mean, std=own.std, bgr=own.bgr)

    def looking(self, strides: Sequence[int], scale: int = 1) -> OnnxTeacher:
        """Restrict predictions to some of its levels, and return itself.

        Raises:
            TeacherError: The input is to be enlarged.
        """
        if scale != 1:
            raise TeacherError(f"{self.file}: teacher.scale={scale} needs a teacher's weights, not an exported file")
        return super().looking(strides)

    def to(self, device: torch.device) -> OnnxTeacher:
        """Return predictions on this device; on a GPU, also run there.

        Raises:
            RunError: ONNX Runtime cannot compute on it.
        """
        if device != self.detector.device:
            self.detector = ExportedDetector(self.file, device)
        return self

    @torch.no_grad()
    def __call__(self, batch: Batch, *, features: bool = False, towers: bool = False) -> Dense:
        """Return predictions on the batch."""
        assert not features, "the recipe's checks refuse terms that look at maps"
        assert not towers, "and at what a head makes of the student's"
        dense, grid = self.detector.see(batch.images, batch.sizes)
        height, width = (int(side) for side in batch.images.shape[-2:])
        kept = self._kept(self.facts.strides, self.size or (height, width), (height, width), grid.per_cell)
        quality = dense.quality_logits
        return dense._replace(
            cls_logits=dense.cls_logits[:, kept],
            edge_logits=dense.edge_logits[:, kept],
            quality_logits=None if quality is None else quality[:, kept],
        )


def onnx_teacher(file: Path, settings: OnnxSettings | None) -> OnnxTeacher:
    """Load the teacher in a file that `locdistill export` wrote, or in another program's ONNX file as the settings say.

    Raises:
        TeacherError: ONNX Runtime is not installed, or the file's inputs or outputs are not those of a detector.
        WeightsError: The file is not an ONNX file, and was not exported by this package or cannot be read.
    """
    if EXPORTED[file.suffix.lower()] != "onnx":
        if settings is not None:
            raise TeacherError(f"{file}: teacher.onnx is for ONNX files of other programs; leave it out")
        return ExportedTeacher(ExportedDetector(file))
    runtime()
    if settings is None and open_file(file)[1] is not None:
        return ExportedTeacher(ExportedDetector(file))
    own = settings or OnnxSettings()
    return OnnxTeacher(
        file, classes=own.classes, mean=own.mean, std=own.std, bgr=own.bgr, offset=own.offset, boxes=own.boxes
    )
