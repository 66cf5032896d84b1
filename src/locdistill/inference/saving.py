"""Files of predictions: drawn pictures and videos, and detections as JSON, COCO, YOLO or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
from PIL import Image

from locdistill.errors import RunError
from locdistill.evaluation.results import rounded
from locdistill.files import make_folder, replacing, write_text, writing
from locdistill.geometry.kinds import kind_of
from locdistill.inference.inputs import Frame, Input, PictureInput
from locdistill.inference.prediction import Prediction
from locdistill.types import Detections
from locdistill.viz.draw import draw_detections

_THREADS, _BEHIND = 4, 32
"""Threads that draw, and the largest number of pictures that wait for them."""
_ENCODERS = {"libx264": {"preset": "veryfast", "crf": "23"}, "mpeg4": {"qscale": "4"}}
"""Encoders of videos by preference, with their options; not every build of FFmpeg has the first."""


def targets(given: Sequence[Input], save: Path) -> dict[str, Path]:
    """Choose the file of each drawing: as JPEG, PNG or MP4, numbered if names coincide.

    Raises:
        RunError: A drawing would replace one of the pictures or videos.
    """
    taken_from = {Path(each.source).resolve() for each in given}
    taken: set[Path] = set()
    chosen = {}
    for each in given:
        suffix = ".mp4"
        if isinstance(each, PictureInput):
            suffix = each.name.suffix if each.name.suffix.lower() in (".jpg", ".jpeg", ".png") else ".png"
        target, number = (save / each.name).with_suffix(suffix), 1
        while target in taken:
            number += 1
            target = (save / each.name).with_name(f"{each.name.stem}-{number}{suffix}")
        if target.resolve() in taken_from:
            raise RunError(f"{target} is one of the images and would be replaced by its drawing; choose another folder")
        taken.add(target)
        chosen[each.source] = target
    return chosen


class Drawings:
    """Drawing and encoding of pictures and videos in threads, beside the network.

    Used as a context: at its end everything is written, also after an error, so that a video of which a part was
    processed can be played.
    """

    def __init__(self, files: dict[str, Path], classes: Sequence[str]) -> None:
        self.files, self.classes = files, classes
        self._pool = ThreadPoolExecutor(_THREADS)
        self._in_order = ThreadPoolExecutor(1)  # for frames of videos
        self._waiting: deque[Future[None]] = deque()
        self._videos: dict[str, _VideoFile] = {}

    def __enter__(self) -> Drawings:
        """Return self."""
        return self

    def add(self, frame: Frame, found: Detections) -> Path:
        """Draw detections on a picture, soon; return its file, or that of its video.

        Raises:
            RunError: An earlier drawing could not be written.
        """
        pool = self._pool if frame.number is None else self._in_order
        self._waiting.append(pool.submit(self._draw, frame, found))
        while len(self._waiting) > _BEHIND or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        return self.files[frame.source]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left.

        Raises:
            RunError: A drawing could not be written.
        """
        try:
            while self._waiting:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown()
            self._in_order.shutdown()
            with ExitStack() as stack:
                for video in self._videos.values():
                    stack.callback(video.close)

    def _draw(self, frame: Frame, found: Detections) -> None:
        picture = draw_detections(frame.pixels, found, classes=self.classes, threshold=0.0)
        target = self.files[frame.source]
        make_folder(target.parent)
        with writing(target):
            if frame.rate is None:
                with replacing(target, flush=False) as part:
                    picture.save(part, format="JPEG" if target.suffix.lower() in (".jpg", ".jpeg") else "PNG")
                return
            for other in [name for name in self._videos if name != frame.source]:  # videos follow one another
                self._videos.pop(other).close()
            if frame.source not in self._videos:
                self._videos[frame.source] = _VideoFile(target, frame.rate, picture.size)
            self._videos[frame.source].add(picture)


class _VideoFile:
    """An MP4 file, written frame by frame."""

    def __init__(self, path: Path, rate: Fraction, size: tuple[int, int]) -> None:
        import av  # noqa: PLC0415 - optional; the video was read with it

        self._stack = ExitStack()
        part = self._stack.enter_context(replacing(path))
        self._container = self._stack.enter_context(av.open(str(part), "w", format="mp4"))
        name = next(each for each in _ENCODERS if each in av.codecs_available)
        stream = self._container.add_stream(name, rate=rate.limit_denominator(1000), options=_ENCODERS[name])
        self._stream = cast("Any", stream)  # a union of all kinds of streams
        self._size = (max(size[0] // 2 * 2, 2), max(size[1] // 2 * 2, 2))  # its colours have half the resolution
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"

    def add(self, picture: Image.Image) -> None:
        """Encode a frame."""
        import av  # noqa: PLC0415

        if picture.size != self._size:
            picture = picture.crop((0, 0, *self._size))
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))

    def close(self) -> None:
        """Write the end of the file."""
        with self._stack:
            self._container.mux(self._stream.encode())


def write_predictions(folder: Path, found: Sequence[Prediction], content: dict[str, Any]) -> Path:
    """Write ``predictions.json``: some words about the run, and the detections of each picture."""
    path = folder / "predictions.json"
    write_text(path, json.dumps(content | {"images": [each.as_dict() for each in found]}, indent=1) + "\n")
    return path


def write_coco(folder: Path, found: Sequence[Prediction], names: Sequence[str]) -> Path:
    """Write ``coco.json``: pictures, classes, and the detections as annotations with a ``score``.

    Rotated boxes have their four corners as ``segmentation``, and ``bbox`` around them.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (each, name) in enumerate(zip(found, names, strict=True), 1):
        images.append({"id": number, "file_name": name, "width": each.width, "height": each.height})
        boxes = each.detections.boxes
        kind = kind_of(boxes)
        around, corners = kind.hull(boxes).tolist(), kind.corners(boxes).flatten(1).tolist()
        for place, shape, score, label in zip(
            around, corners, each.detections.scores.tolist(), each.detections.labels.tolist(), strict=True
        ):
            x1, y1, x2, y2 = place
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "score": round(score, 5)}
            entry |= {
                "bbox": rounded([x1, y1, x2 - x1, y2 - y1]),
                "area": round((x2 - x1) * (y2 - y1), 2),
                "iscrowd": 0,
            }
            annotations.append(
                entry | ({"segmentation": [[round(v, 2) for v in shape]]} if boxes.shape[1] == 5 else {})
            )
    classes = found[0].classes if found else ()
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "coco.json"
    write_text(path, json.dumps(content) + "\n")
    return path


def write_yolo(folder: Path, found: Sequence[Prediction], names: Sequence[str]) -> Path:
    """Write ``labels/NAME.txt``: ``class cx cy w h score`` in shares of the picture; of rotated boxes the corners."""
    labels = folder / "labels"
    for each, name in zip(found, names, strict=True):
        boxes, size = each.detections.boxes, (each.width, each.height)
        if boxes.shape[1] == 5:
            numbers = kind_of(boxes).corners(boxes).flatten(1)
        else:
            numbers = boxes.clone()
            numbers[:, :2], numbers[:, 2:] = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        shares = (numbers / numbers.new_tensor(size).repeat(numbers.shape[1] // 2)).tolist()
        rows = zip(each.detections.labels.tolist(), shares, each.detections.scores.tolist(), strict=True)
        lines = [" ".join([str(label), *(f"{v:.6f}" for v in row), f"{score:.5f}"]) for label, row, score in rows]
        target = (labels / name).with_suffix(".txt")
        make_folder(target.parent)
        write_text(target, "".join(f"{line}\n" for line in lines))
    return labels


def write_csv(folder: Path, found: Sequence[Prediction], names: Sequence[str]) -> Path:
    """Write ``detections.csv``: a row for each detection, boxes in pixels, the angle of rotated ones in radians."""
    rotated = any(each.detections.boxes.shape[1] == 5 for each in found)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    box = ("cx", "cy", "w", "h", "angle") if rotated else ("x1", "y1", "x2", "y2")
    rows.writerow(("image", "frame", "seconds", "class", "score", *box))
    for each, name in zip(found, names, strict=True):
        number = "" if each.number is None else each.number
        seconds = "" if each.seconds is None else round(each.seconds, 4)
        for entry in each.as_dict()["detections"]:
            rows.writerow((name, number, seconds, entry["class"], entry["score"], *entry["box"]))
    path = folder / "detections.csv"
    write_text(path, text.getvalue())
    return path


Writer = Callable[[Path, Sequence[Prediction], Sequence[str]], Path]
WRITERS: dict[str, Writer] = {"coco": write_coco, "yolo": write_yolo, "csv": write_csv}
"""Functions that write detections beside ``predictions.json``, by the name of the format."""
