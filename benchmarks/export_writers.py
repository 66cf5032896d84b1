"""Data sets written by the programs that people export from, each in its environment.

``benchmarks/exports.py`` starts it:

    PROGRAM_ENVIRONMENT/bin/python benchmarks/export_writers.py PROGRAM TRUTH_JSON OUT_FOLDER

``TRUTH_JSON`` has ``classes`` and, for each split, a list of images: ``path``, ``width``, ``height``, ``labels`` and
``boxes`` as ``x1, y1, x2, y2``. Each function writes one folder per format in ``OUT_FOLDER``. Nothing of locdistill is
imported here.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

Truth = dict[str, Any]


def write_datumaro(truth: Truth, out: Path) -> None:
    """Write with datumaro, which CVAT exports with; an image goes to its split."""
    import datumaro as dm  # noqa: PLC0415 - of its own environment

    items = [
        dm.DatasetItem(
            id=Path(image["path"]).stem,
            subset=split,
            media=dm.Image.from_file(path=image["path"], size=(image["height"], image["width"])),
            annotations=[
                dm.Bbox(x1, y1, x2 - x1, y2 - y1, label=label)
                for label, (x1, y1, x2, y2) in zip(image["labels"], image["boxes"], strict=True)
            ],
        )
        for split, images in truth["splits"].items()
        for image in images
    ]
    dataset = dm.Dataset.from_iterable(items, categories=truth["classes"])
    for kind in ("coco_instances", "voc_detection", "yolo", "yolo_ultralytics"):
        dataset.export(str(out / f"datumaro-{kind}"), kind, save_media=True)


def write_supervision(truth: Truth, out: Path) -> None:
    """Write with supervision, which has no splits."""
    import numpy as np  # noqa: PLC0415
    import supervision as sv  # noqa: PLC0415

    images = [image for images in truth["splits"].values() for image in images]
    detections = {
        image["path"]: sv.Detections(
            xyxy=np.array(image["boxes"], dtype=float).reshape(-1, 4), class_id=np.array(image["labels"], dtype=int)
        )
        for image in images
    }
    dataset = sv.DetectionDataset(truth["classes"], [image["path"] for image in images], detections)
    coco, voc, yolo = (out / f"supervision-{kind}" for kind in ("coco", "voc", "yolo"))
    dataset.as_coco(str(coco / "images"), str(coco / "annotations.json"))
    dataset.as_pascal_voc(str(voc / "images"), str(voc / "annotations"))
    dataset.as_yolo(str(yolo / "images"), str(yolo / "labels"), str(yolo / "data.yaml"))


def write_label_studio(truth: Truth, out: Path) -> None:
    """Write with the converter of Label Studio; boxes are percentages of the sides, and in one set rotated."""
    from label_studio_sdk.converter import Converter  # noqa: PLC0415

    names = "".join(f'<Label value="{name}"/>' for name in truth["classes"])
    config = (
        '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
        f"{names}</RectangleLabels></View>"
    )
    uploads = out / "label-studio-uploads"
    (uploads / "1").mkdir(parents=True)
    for kind, turned in (("COCO_WITH_IMAGES", False), ("YOLO_WITH_IMAGES", False), ("VOC", False), ("YOLO_OBB", True)):
        tasks = []
        for number, image in enumerate(image for images in truth["splits"].values() for image in images):
            name = f"{number:08x}-{Path(image['path']).name}"
            shutil.copy(image["path"], uploads / "1" / name)
            rows = zip(image["labels"], image["boxes"], image["angles"], strict=True)
            results = [_rectangle(truth["classes"][k], box, angle * turned, image) for k, box, angle in rows]
            task = {"id": number, "data": {"image": f"/data/upload/1/{name}"}}
            tasks.append(task | {"annotations": [{"id": number, "completed_by": 1, "result": results}]})
        listed = out / f"label-studio-{kind}.json"
        listed.write_text(json.dumps(tasks))
        folder = out / f"label-studio-{kind.lower()}"
        converter = Converter(config, str(uploads), upload_dir=str(uploads), download_resources=True)
        converter.convert(str(listed), str(folder), f"{kind}_WITH_IMAGES" if turned else kind, is_dir=False)
        listed.unlink()
    shutil.rmtree(uploads)


def _rectangle(name: str, box: list[float], degrees: float, image: Truth) -> Truth:
    """Return a result of Label Studio: a box with its upper left corner, around which it is turned clockwise."""
    x1, y1, x2, y2 = box
    sides = {"original_width": image["width"], "original_height": image["height"], "image_rotation": 0}
    value = {
        "x": 100 * x1 / image["width"],
        "y": 100 * y1 / image["height"],
        "width": 100 * (x2 - x1) / image["width"],
        "height": 100 * (y2 - y1) / image["height"],
        "rotation": degrees,
        "rectanglelabels": [name],
    }
    return {**sides, "from_name": "label", "to_name": "image", "type": "rectanglelabels", "value": value}


def write_fiftyone(truth: Truth, out: Path) -> None:
    """Write with the exporters of FiftyOne, without its database, which they do not need."""
    os.environ["FIFTYONE_DISABLE_SERVICES"] = "1"
    import fiftyone as fo  # noqa: PLC0415
    import fiftyone.utils.coco as fouc  # noqa: PLC0415
    import fiftyone.utils.voc as fouv  # noqa: PLC0415
    import fiftyone.utils.yolo as fouy  # noqa: PLC0415

    classes = truth["classes"]
    exporters: list[tuple[str, list[str], Any]] = [
        ("coco", ["train", "val"], lambda folder, _: fouc.COCODetectionDatasetExporter(folder, classes=classes)),
        ("voc", ["train", "val"], lambda folder, _: fouv.VOCDetectionDatasetExporter(folder)),
        ("yolov4", ["train", "val"], lambda folder, _: fouy.YOLOv4DatasetExporter(folder, classes=classes)),
        ("yolov5", ["train"], lambda folder, split: fouy.YOLOv5DatasetExporter(folder, split=split, classes=classes)),
        ("yolov5", ["val"], lambda folder, split: fouy.YOLOv5DatasetExporter(folder, split=split, classes=classes)),
    ]
    for kind, splits, make in exporters:
        with make(str(out / f"fiftyone-{kind}"), splits[0]) as exporter:
            for image in (image for split in splits for image in truth["splits"][split]):
                w, h = image["width"], image["height"]
                found = [
                    fo.Detection(label=classes[k], bounding_box=[x1 / w, y1 / h, (x2 - x1) / w, (y2 - y1) / h])
                    for k, (x1, y1, x2, y2) in zip(image["labels"], image["boxes"], strict=True)
                ]
                metadata = fo.ImageMetadata.build_for(image["path"])
                exporter.export_sample(image["path"], fo.Detections(detections=found), metadata)


def write_labelme(truth: Truth, out: Path) -> None:
    """Write the files of labelme, with the pictures inside as well."""
    from labelme._label_file import write_label_file  # noqa: PLC0415

    for split, images in truth["splits"].items():
        folder = out / "labelme" / split
        folder.mkdir(parents=True)
        for image in images:
            picture = Path(shutil.copy(image["path"], folder))
            shapes = [
                {
                    "label": truth["classes"][k],
                    "points": [[x1, y1], [x2, y2]],
                    "group_id": None,
                    "description": "",
                    "shape_type": "rectangle",
                    "flags": {},
                    "mask": None,
                }
                for k, (x1, y1, x2, y2) in zip(image["labels"], image["boxes"], strict=True)
            ]
            write_label_file(
                str(picture.with_suffix(".json")),
                shapes=shapes,
                image_path=picture.name,
                image_height=image["height"],
                image_width=image["width"],
                image_data=picture.read_bytes(),
            )


WRITERS = {
    "datumaro": write_datumaro,
    "supervision": write_supervision,
    "label-studio-sdk": write_label_studio,
    "fiftyone": write_fiftyone,
    "labelme": write_labelme,
}

if __name__ == "__main__":
    program, file, folder = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    WRITERS[program](json.loads(Path(file).read_text()), Path(folder))
