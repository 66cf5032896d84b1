"""Large images: cutting into tiles for training and detection, and merging of detections on tiles."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from locdistill.annotations.formats import available_splits
from locdistill.annotations.tiles import WINDOWS, written_class
from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset
from locdistill.data.settings import DataSettings
from locdistill.data.tiling import Tiles, TilingSettings, cut, merged, placed, windows
from locdistill.errors import DataError
from locdistill.evaluation.results import read_results, write_results
from locdistill.evaluation.task1 import write_task1
from locdistill.files import make_folder, writing
from locdistill.geometry.kinds import kind_of
from locdistill.inference.evaluate import EvaluationResult
from locdistill.models.detector import Detector
from locdistill.recipe.load import Override, validate
from locdistill.recipe.overrides import apply_overrides
from locdistill.types import Detections, Progress

log = logging.getLogger("locdistill")
ROTATED_IOU, UPRIGHT_IOU = 0.1, 0.3
"""Overlap above which the worse of two detections is removed: MMRotate's for rotated boxes, DOTA kit's for upright."""
RESULTS = "results.json"
_CUT = 2.0
"""Distance in pixels from the edge of a tile within which a detection counts as cut."""


@dataclass(frozen=True)
class TilingResult:
    """Result of a cut.

    Attributes:
        out: The folder of the tiles, which is a data set in DOTA's layout.
        splits: The tiles of each split.
    """

    out: Path
    splits: dict[str, Tiles]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        counts = {
            name: {
                "images": len(tiles.original),
                "tiles": len(tiles.windows),
                "left_out": tiles.left_out,
                "folder": str(tiles.folder),
            }
            for name, tiles in self.splits.items()
        }
        return {"out": str(self.out), "splits": counts}


def tile(
    data: str | Path,
    out: str | Path,
    *,
    splits: Sequence[str] = (),
    size: int = 1024,
    overlap: int = 200,
    scales: Sequence[float] = (1.0,),
    overrides: Sequence[Override] = (),
    progress: Progress | None = None,
) -> TilingResult:
    """Cut the images of a data set into overlapping square tiles; the tiles are a data set in DOTA's layout.

    Any data set is accepted. Upright boxes are written as quadrilaterals of their corners, and read back as upright
    boxes. An interrupted call is continued. Classes of ``data.ignore_classes`` are kept as classes: set
    ``data.ignore_classes`` again when using the tiles, as with whole images.

    Args:
        data: Folder of the data set, as for training.
        out: Folder for the tiles: ``out/SPLIT/images``, ``out/SPLIT/labelTxt`` and ``out/SPLIT/windows.json``.
        splits: Splits to cut; by default all existing ones of train, val and test.
        size: Height and width of a tile, in pixels.
        overlap: Overlap of neighbouring tiles, in pixels of the tile.
        scales: Scale factors; images are cut once at each.
        overrides: Settings of ``data``, such as ``"data.classes=[ship]"``, and of ``tiling`` (see
            :class:`locdistill.data.tiling.TilingSettings`), such as ``"tiling.pad=[0, 0, 0]"``.
        progress: Progress display.

    Raises:
        DataError: The data cannot be read, or a folder of ``out`` has other content.
        RecipeError: A setting is wrong.
        RunError: ``out`` cannot be written to.
    """
    numbers = {"size": size, "overlap": overlap, "scales": list(scales)}
    plain = apply_overrides({"data": {"path": str(data)}, "tiling": numbers}, overrides)
    settings = validate(DataSettings, plain["data"], "data")
    how = validate(TilingSettings, {"bits": settings.bits} | plain["tiling"], "tiling")
    names = splits or available_splits(settings)
    if not names:
        raise DataError(f"{data}: no split train, val or test; name the splits to cut with --split")
    # Ignored classes are cut as ordinary ones.
    classes = None if settings.classes is None else (*settings.classes, *settings.ignore_classes)
    settings = settings.model_copy(update={"classes": classes, "ignore_classes": ()})
    datasets = {name: open_dataset(settings, name, training=False, labelled=False) for name in names}
    out = Path(out)
    make_folder(out)
    tiles = {}
    for name, dataset in datasets.items():
        with writing(out):
            tiles[name] = cut(dataset, out / Path(name).stem, how, progress=progress)
    return TilingResult(out, tiles)


def merge(
    results: str | Path | Mapping[int, Detections],
    tiles: str | Path,
    out: str | Path,
    *,
    split: str = "val",
    data: str | Path | None = None,
    iou: float | None = None,
    overrides: Sequence[Override] = (),
) -> EvaluationResult:
    """Merge detections on tiles to detections on the whole images, and evaluate them if there are annotations.

    Detections are shifted to their position in the image; of overlapping ones of a class the best is kept. The output
    is ``results.json`` and, for rotated boxes, the ``Task1_*.txt`` files of DOTA with their archive ``Task1.zip``.

    Args:
        results: Detections on the tiles: the file of ``evaluate --format-only``, ``predictions.json`` of ``predict
            --save``, or in memory by identifier of the tile, as returned by :func:`locdistill.evaluate`.
        tiles: The folder that :func:`tile` wrote, or that of one split in it.
        out: Output folder.
        split: The split of the tiles.
        data: The original data set, for the evaluation.
        iou: Overlap above which the worse of two detections is removed; by default 0.1 for rotated boxes and 0.3 for
            upright ones.
        overrides: Settings of ``data``, such as ``data.ignore_classes``, as in the training on the tiles.

    Raises:
        DataError: Results, tiles or data cannot be read, or do not belong together.
        RecipeError: A setting is wrong.
        RunError: ``out`` cannot be written to.
    """
    folder = Path(tiles) / Path(split).stem
    if not folder.is_dir():
        there = sorted(file.parent.name for file in Path(tiles).glob(f"*/{WINDOWS}"))
        if there:
            raise DataError(f"{tiles}: no tiles of split '{split}', only of {', '.join(there)}; use --split")
        folder, split = Path(tiles), Path(tiles).resolve().name
    cut_up = Tiles.read(folder)
    dataset = cut_up.original if data is None else _original(data, split, cut_up, overrides)
    found = _by_tile(results, cut_up, dataset.classes)
    numbers = {here.boxes.shape[1] for here in found.values() if len(here.boxes)}
    rotated = 5 in numbers if numbers else cut_up.oriented
    if iou is None:
        iou = ROTATED_IOU if rotated else UPRIGHT_IOU
    joined = cut_up.joined(found, iou=iou)
    dataset = dataset.as_oriented(rotated)
    out = Path(out)
    with writing(out):
        file = write_results(out / RESULTS, dataset, joined)
        archive = write_task1(dataset, joined, out) if rotated else None
    result = EvaluationResult({}, {}, (), joined, dataset, file, archive)
    return result if data is None else result.judged()


def detect_in_tiles(
    detector: Detector, image: UInt8[Tensor, "3 h w"], side: int, overlap: int, *, batch: int = 8
) -> Detections:
    """Detect objects in a large image, tile by tile and once in the whole image for large objects.

    Detections that touch an edge of their tile inside the image are left out: a neighbouring tile, or the whole image,
    shows that object complete, if the tiles overlap by the size of the small objects. Of overlapping ones of a class
    the best is kept, by the detector's own ``detections.nms_iou``.

    Args:
        detector: The detector.
        image: RGB.
        side: Side of a tile, in pixels of the image.
        overlap: Overlap of neighbouring tiles in pixels.
        batch: Tiles per batch.

    Returns:
        Detections in pixels of the image.
    """
    height, width = image.shape[-2:]
    if max(height, width) <= side:
        return detector.detect([image])[0]
    places = windows(width, height, TilingSettings(size=side, overlap=overlap))
    tiles = [image[:, y : y + side, x : x + side] for x, y, _ in places]
    whole, *found = detector.detect([image, *tiles], batch=batch)
    parts = [Detections(*(value.cpu() for value in whole))]
    for place, here in zip(places, found, strict=True):
        moved = placed(Detections(*(value.cpu() for value in here)), place)
        around = kind_of(moved.boxes).hull(moved.boxes)
        start = around.new_tensor([place.x, place.y])
        end = around.new_tensor([min(place.x + side, width), min(place.y + side, height)])
        cut = (around[:, :2] < start + _CUT) & (start > 0)
        cut |= (around[:, 2:] > end - _CUT) & (end < end.new_tensor([width, height]))
        parts.append(Detections(*(value[~cut.any(1)] for value in moved)))
    exact = [part._replace(boxes=part.boxes.double()) for part in parts]
    return merged(exact, iou=detector.settings.detections.nms_iou)


def _by_tile(
    results: str | Path | Mapping[int, Detections], tiles: Tiles, wanted: tuple[str, ...]
) -> dict[str, Detections]:
    """Return detections by the name of the tile, labelled by the wanted classes; others are left out."""
    content = _predictions(results)
    if content is not None:
        if threshold := content.get("threshold"):
            log.warning(
                "%s has no scores below %g, which AP needs too; run predict with --threshold 0",
                results,
                threshold,
            )
        classes = tuple(content["classes"])
        named = {}
        for image in content["images"]:
            entries = image["detections"]
            boxes = torch.tensor([entry["box"] for entry in entries], dtype=torch.float32)
            named[Path(image["image"]).stem] = Detections(
                boxes if len(boxes) else boxes.reshape(0, 4),
                torch.tensor([entry["score"] for entry in entries], dtype=torch.float32),
                torch.tensor([entry["label"] for entry in entries], dtype=torch.int64),
            )
    else:
        settings = DataSettings(path=str(tiles.folder.parent), format="dota")
        dataset = open_dataset(settings, tiles.folder.name, training=False)
        classes = dataset.classes
        by_id = results if isinstance(results, Mapping) else read_results(results, dataset)
        names = {record.image_id: record.path.stem for record in dataset.records}
        named = {names.get(image_id, str(image_id)): here for image_id, here in by_id.items()}
    strangers = [name for name in named if name not in tiles.windows]
    if strangers:
        raise DataError(
            f"{tiles.folder}: no tile {strangers[0]!r}, for which there are detections ({len(strangers)} such tiles); "
            "name the folder and the --split that the detections were made on"
        )
    own = {written_class(name): label for label, name in enumerate(wanted)}
    labels = torch.tensor([own.get(written_class(name), -1) for name in classes] or [-1])
    relabelled = {}
    for name, here in named.items():
        label = labels[here.labels]
        kept = label >= 0
        relabelled[name] = Detections(here.boxes[kept], here.scores[kept], label[kept])
    return relabelled


def _predictions(results: object) -> dict[str, Any] | None:
    """Read the results if they are a file written by ``predict``; else return None."""
    if not isinstance(results, str | Path):
        return None
    try:
        content = json.loads(Path(results).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{results}: not a readable JSON file of detections: {error}") from error
    return content if isinstance(content, dict) and {"images", "classes"} <= content.keys() else None


def _original(path: str | Path, split: str, tiles: Tiles, overrides: Sequence[Override]) -> Dataset:
    """Open the data set that was cut, with its objects.

    Raises:
        DataError: The data set is not the one that was cut.
    """
    plain = apply_overrides({"data": {"path": str(path)}}, overrides)["data"]
    settings = validate(DataSettings, plain, "data")
    if settings.classes is None:
        classes = tuple(name for name in tiles.original.classes if name not in settings.ignore_classes)
        settings = settings.model_copy(update={"classes": classes})
    dataset = open_dataset(settings, split, training=False, labelled=False)
    there, asked = ({r.image_id: r.path.name for r in data.records} for data in (dataset, tiles.original))
    if there != asked:
        raise DataError(
            f"{path}: the {len(there)} images of {dataset.name} are not the {len(asked)} that were cut into "
            f"{tiles.folder}; name that data set and split"
        )
    return dataset
