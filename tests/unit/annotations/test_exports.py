"""Exports as programs write them and as archives, disks and people change them: read without a word from the user."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from locdistill.annotations.files import hidden_below
from locdistill.annotations.formats import available_splits, locate
from locdistill.data.check import check
from locdistill.data.open import open_dataset
from locdistill.data.settings import DataSettings
from locdistill.errors import AnnotationError

WIDTH, HEIGHT = 100, 50
CLASSES = ("cat", "dog")
NAMES = tuple(f"img_{number}.jpg" for number in range(5))
UPLOADED = tuple(f"3f2a1b7{number}-{name}" for number, name in enumerate(NAMES))
ROWS = "0 0.3 0.4 0.4 0.4\n1 0.3 0.4 0.4 0.4\n"
DOTA_ROWS = "10 10 50 10 50 30 10 30 ship 0\n10 10 50 10 50 30 10 30 plane 0\n"
SPLITS = (("train", NAMES[:3]), ("valid", NAMES[3:]))
APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        \0\2" + b"\0" * 200 + b"\xff\xd8\xe9"


def text(file: Path, content: str | bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def pictures(folder: Path, names: Sequence[str] = NAMES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        noise = np.random.default_rng(list(name.encode())).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)


def labels(folder: Path, names: Sequence[str] = NAMES, rows: str = ROWS) -> None:
    for name in names:
        text(folder / f"{name[:-4]}.txt", rows)


def xmls(folder: Path, names: Sequence[str] = NAMES) -> None:
    corners = "<xmin>10.00001</xmin><ymin>10</ymin><xmax>50</xmax><ymax>30</ymax>"
    objects = "".join(f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>" for name in CLASSES)
    for name in names:
        text(folder / f"{name[:-4]}.xml", f"<annotation><filename>{name}</filename>{objects}</annotation>")


def shapes(folder: Path, names: Sequence[str] = NAMES) -> None:
    for name in names:
        rows = [{"label": one, "points": [[10, 10], [50, 30]], "shape_type": "rectangle"} for one in CLASSES]
        text(folder / f"{name[:-4]}.json", json.dumps({"version": "5.5.0", "shapes": rows, "imagePath": name}))


def coco(file: Path, names: Sequence[str] = NAMES, lead: str = "", **annotation: Any) -> None:
    box = annotation or {"bbox": [10, 10, 40, 20]}
    content = {
        "images": [{"id": n, "file_name": lead + name} for n, name in enumerate(names)],
        "annotations": [
            {"id": 2 * n + k, "image_id": n, "category_id": k, **box} for n in range(len(names)) for k in range(2)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES)],
    }
    text(file, json.dumps(content, indent=1))


def darknet(folder: Path, *splits: str, key: str = "valid") -> None:
    keys = ("train", key)[: len(splits)]
    lines = "".join(f"{key} = data/{split}.txt\n" for key, split in zip(keys, splits, strict=True))
    text(folder / "obj.data", f"classes = 2\n{lines}names = data/obj.names\nbackup = backup/\n")
    text(folder / "obj.names", "cat\ndog\n")


Write = Callable[[Path], None]
ONE: dict[str, Write] = {}
"""Exports of five pictures in one split."""
TWO: dict[str, Write] = {}
"""Exports of three pictures to train on and two to evaluate on."""


def export(table: dict[str, Write]) -> Callable[[Write], Write]:
    def keep(write: Write) -> Write:
        table[write.__name__] = write
        return write

    return keep


@export(ONE)
def cvat_coco(folder: Path) -> None:
    coco(folder / "annotations" / "instances_My Task.json")
    pictures(folder / "images" / "My Task")


@export(ONE)
def cvat_voc(folder: Path) -> None:
    xmls(folder / "Annotations")
    pictures(folder / "JPEGImages")
    text(folder / "ImageSets" / "Main" / "default.txt", "".join(f"{name[:-4]}\n" for name in NAMES))
    text(folder / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\n")


@export(ONE)
def cvat_yolo(folder: Path) -> None:
    labels(folder / "obj_train_data")
    pictures(folder / "obj_train_data")
    text(folder / "train.txt", "".join(f"data/obj_train_data/{name}\n" for name in NAMES))
    darknet(folder, "train")


@export(TWO)
def cvat_yolo_subsets(folder: Path) -> None:
    for (_, names), split in zip(SPLITS, ("Train", "Validation"), strict=True):
        labels(folder / f"obj_{split}_data", names)
        pictures(folder / f"obj_{split}_data", names)
        text(folder / f"{split}.txt", "".join(f"data/obj_{split}_data/{name}\n" for name in names))
    darknet(folder, "Train", "Validation", key="Validation")


@export(ONE)
def cvat_ultralytics(folder: Path) -> None:
    labels(folder / "labels" / "default")
    pictures(folder / "images" / "default")
    text(folder / "default.txt", "".join(f"data/images/default/{name}\n" for name in NAMES))
    text(folder / "data.yaml", "names:\n  0: cat\n  1: dog\npath: .\ndefault: default.txt\n")


@export(ONE)
def label_studio_coco(folder: Path) -> None:
    coco(folder / "result.json", UPLOADED, lead="images\\")
    pictures(folder / "images", UPLOADED)


@export(ONE)
def label_studio_coco_with_own_pictures(folder: Path) -> None:
    coco(folder / "result.json", UPLOADED, lead="/data/upload/1/")
    pictures(folder / "images")


@export(ONE)
def label_studio_yolo(folder: Path) -> None:
    labels(folder / "labels", UPLOADED)
    pictures(folder / "images", UPLOADED)
    text(folder / "classes.txt", "cat\ndog\n")
    text(folder / "notes.json", '{"categories": [{"id": 0, "name": "cat"}], "info": {}}')


@export(ONE)
def label_studio_yolo_with_own_pictures(folder: Path) -> None:
    label_studio_yolo(folder)
    for name, own in zip(UPLOADED, NAMES, strict=True):
        (folder / "images" / name).rename(folder / "images" / own)


@export(ONE)
def label_studio_voc(folder: Path) -> None:
    xmls(folder / "Annotations", UPLOADED)
    pictures(folder / "images", UPLOADED)


@export(ONE)
def fiftyone_coco(folder: Path) -> None:
    coco(folder / "labels.json")
    pictures(folder / "data")


@export(ONE)
def fiftyone_voc(folder: Path) -> None:
    xmls(folder / "labels")
    pictures(folder / "data")


@export(ONE)
def fiftyone_yolo(folder: Path) -> None:
    labels(folder / "labels" / "val")
    pictures(folder / "images" / "val")
    text(folder / "dataset.yaml", "names:\n  0: cat\n  1: dog\npath: /home/someone\nval: ./images/val/\n")


@export(ONE)
def roboflow_without_valid(folder: Path) -> None:
    labels(folder / "train" / "labels")
    pictures(folder / "train" / "images")
    paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    text(folder / "data.yaml", f"{paths}\nnc: 2\nnames: ['cat', 'dog']\n\nroboflow:\n  version: 1\n")


@export(TWO)
def roboflow_coco(folder: Path) -> None:
    for split, names in SPLITS:
        coco(folder / split / "_annotations.coco.json", names)
        pictures(folder / split, names)


@export(TWO)
def roboflow_voc(folder: Path) -> None:
    for split, names in SPLITS:
        xmls(folder / split, names)
        pictures(folder / split, names)
    text(folder / "README.dataset.txt", "x")


@export(TWO)
def roboflow_darknet(folder: Path) -> None:
    for split, names in SPLITS:
        labels(folder / split, names)
        pictures(folder / split, names)
        text(folder / split / "_darknet.labels", "cat\ndog\n")


@export(ONE)
def labelme(folder: Path) -> None:
    shapes(folder)
    pictures(folder)


@export(ONE)
def make_sense_voc(folder: Path) -> None:
    xmls(folder / "labels_my-project-name_2026")
    pictures(folder / "shots")


@export(ONE)
def make_sense_yolo(folder: Path) -> None:
    labels(folder / "labels")
    pictures(folder / "images")
    text(folder / "labels.txt", "cat\ndog\n")


@export(ONE)
def supervision_yolo(folder: Path) -> None:
    labels(folder / "labels")
    pictures(folder / "images")
    text(folder / "data.yaml", "names:\n- cat\n- dog\nnc: 2\n")
    text(folder / "hyp.yaml", "lr0: 0.01\n")


@export(TWO)
def labels_in_one_folder(folder: Path) -> None:
    labels(folder / "labels")
    for split, names in SPLITS:
        pictures(folder / "images" / split, names)
    text(folder / "own.yaml", "train: images/train\nval: images/valid\nnames: [cat, dog]\n")
    text(folder / "hyp.yaml", "lr0: 0.01\n")


@export(TWO)
def labels_in_folders_and_pictures_in_one(folder: Path) -> None:
    pictures(folder / "images")
    for split, names in SPLITS:
        labels(folder / "labels" / split, names)
        text(folder / f"{split}.txt", "".join(f"images/{name}\n" for name in names))
    text(folder / "data.yaml", "train: train.txt\nval: valid.txt\nnames: [cat, dog]\n")


@export(TWO)
def labels_in_folders_called_after_the_split(folder: Path) -> None:
    for split, names in SPLITS:
        pictures(folder / split, names)
        labels(folder / f"{split}_labels", names)
    text(folder / "data.yaml", "train: train\nval: valid\nnames: [cat, dog]\n")


@export(TWO)
def yolo_in_capitals(folder: Path) -> None:
    for split, names in SPLITS:
        pictures(folder / "Images" / split.title(), names)
        labels(folder / "Labels" / split.title(), names)
    text(folder / "Classes.txt", "cat\ndog\n")


@export(TWO)
def xmls_in_one_folder(folder: Path) -> None:
    xmls(folder / "annotations")
    for split, names in SPLITS:
        pictures(folder / split, names)


@export(TWO)
def shapes_in_one_folder(folder: Path) -> None:
    shapes(folder / "labels")
    for split, names in SPLITS:
        pictures(folder / "images" / split, names)


@export(TWO)
def coco_beside_the_pictures(folder: Path) -> None:
    for split, names in SPLITS:
        coco(folder / "images" / split / "annotations.json", names)
        pictures(folder / "images" / split, names)


@export(TWO)
def coco_among_labels(folder: Path) -> None:
    for split, names in SPLITS:
        coco(folder / "labels" / f"{split}.json", names)
        pictures(folder / "images" / split, names)


def as_they_come(_folder: Path) -> None:
    """Change nothing."""


def from_a_mac(folder: Path) -> None:
    """Put a file of resources beside each file, once there and once in a folder of their own, and the finder's."""
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        text(file.parent / f"._{file.name}", APPLE_DOUBLE)
        text(folder / "__MACOSX" / file.parent.relative_to(folder) / f"._{file.name}", APPLE_DOUBLE)
    for place in [folder, *(place for place in folder.rglob("*") if place.is_dir())]:
        text(place / ".DS_Store", b"\0\0\0\1Bud1")


def from_windows(folder: Path) -> None:
    """End lines with CRLF, begin texts with a byte order mark, and add the files of the explorer."""
    for file in folder.rglob("*"):
        if file.suffix in (".txt", ".yaml", ".xml", ".json", ".names", ".data", ".labels"):
            file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    for place in [folder, *(place for place in folder.rglob("*") if place.is_dir())]:
        text(place / "Thumbs.db", b"\xd0\xcf\x11\xe0")
        text(place / "desktop.ini", "[.ShellClassInfo]\r\n")


def from_a_camera(folder: Path) -> None:
    """Give pictures endings in capitals, which the annotations do not have."""
    for file in list(folder.rglob("*.jpg")):
        file.rename(file.with_suffix(".JPG"))


def unpacked_into_a_folder(folder: Path) -> None:
    """Move everything into a folder, beside one that has nothing to do with it."""
    inner = folder / "project-1 at 2026"
    items = list(folder.iterdir())
    inner.mkdir()
    for item in items:
        item.rename(inner / item.name)
    text(folder / "notes" / "readme.md", "hello")


def through_many_hands(folder: Path) -> None:
    """Do all of it."""
    for change in (from_windows, from_a_mac, from_a_camera, unpacked_into_a_folder):
        change(folder)


@pytest.mark.parametrize("change", [as_they_come, through_many_hands], ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", [*ONE, *TWO])
def test_an_export_is_read_as_it_comes(name: str, change: Write, tmp_path: Path) -> None:
    write = (ONE | TWO)[name]
    write(tmp_path)
    change(tmp_path)
    report = check(tmp_path)
    assert report.ok, str(report)
    assert [(split.name, split.images) for split in report.splits] == (
        [("train", 3), ("val", 2)] if name in TWO else [("train", 4), ("val", 1)]
    )
    for split in report.splits:
        assert split.per_class == dict.fromkeys(CLASSES, split.images)
        settings = DataSettings(path=str(tmp_path), holdout=None if name in TWO else 0.1)
        for record in open_dataset(settings, split.name, training=False).records:
            np.testing.assert_allclose(record.boxes, [[10, 10, 50, 30]] * 2, atol=2e-5)
        hidden = sum(count for note, count in split.notes.items() if note.startswith("hidden files"))
        assert hidden == hidden_below(tmp_path)
        assert bool(hidden) == (change is through_many_hands)
        inner = any(note.startswith("folder that is no data set itself") for note in split.notes)
        assert inner == (locate(settings).path != tmp_path)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("label_studio_coco_with_own_pictures", "5 file names with the eight digits of Label Studio before them"),
        ("labels_in_one_folder", "3 label files that are not in the usual place, found by name in labels"),
        ("fiftyone_yolo", "1 split 'val', the only one, which is trained on"),
        ("roboflow_without_valid", "1 split 'val' (../valid/images) that does not exist, left out"),
    ],
)
def test_what_is_guessed_is_said(name: str, note: str, tmp_path: Path) -> None:
    (ONE | TWO)[name](tmp_path)
    assert note in str(check(tmp_path))


def test_copies_of_jupyter_are_passed_over(tmp_path: Path) -> None:
    labelme(tmp_path)
    pictures(tmp_path / ".ipynb_checkpoints", ["img_0-checkpoint.jpg"])
    shapes(tmp_path / ".ipynb_checkpoints", ["img_0-checkpoint.jpg"])
    report = check(tmp_path)
    assert report.ok
    assert sum(split.images for split in report.splits) == len(NAMES)
    assert "2 hidden files" in str(report)


def test_several_data_sets_in_a_folder_are_named(tmp_path: Path) -> None:
    for name in ("first", "second"):
        labelme(tmp_path / name)
    with pytest.raises(AnnotationError, match=r"several are in it \(first, second\); pass --data .*first"):
        locate(DataSettings(path=str(tmp_path)))
    assert locate(DataSettings(path=str(tmp_path / "second"))) == ("labelme", tmp_path / "second")


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    text(tmp_path / "export.zip", b"PK")
    with pytest.raises(AnnotationError, match="it is an archive: unpack it"):
        locate(DataSettings(path=str(tmp_path / "export.zip")))


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        (
            "annotations.xml",
            "<?xml version='1.0'?>\n<annotations><version>1.1</version>",
            "CVAT's own format: export as",
        ),
        (
            "project-1.json",
            '[{"id": 1,\n "data": {"image": "/data/upload/1/a.jpg"}, "annotations": []}]',
            "Label Studio",
        ),
        (
            "_annotations.createml.json",
            '[{"image": "a.jpg", "annotations": [{"coordinates": {}}]}]',
            "CreateML's format",
        ),
        (
            "_annotations.csv",
            "filename,width,height,class,xmin,ymin,xmax,ymax\n",
            "is a table of boxes: export as COCO",
        ),
        ("labels/img_0.txt", ROWS, r"label files without names; write the classes, one a line, to .*classes\.txt"),
        ("cfg/own.yaml", "train: ../images\nnames: [cat]\n", r"cfg/own\.yaml may describe it; pass --data .*own\.yaml"),
        ("notes.csv", "who,when\n", "images"),
    ],
)
def test_what_is_nearly_a_data_set_leads_to_one(name: str, content: str, hint: str, tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    text(tmp_path / name, content)
    with pytest.raises(AnnotationError, match=f"not recognised as a data set(.|\n)*{hint}"):
        locate(DataSettings(path=str(tmp_path)))


@pytest.mark.parametrize("layout", ["{split}/{part}", "{part}/{split}"])
def test_layouts_of_dota(layout: str, tmp_path: Path) -> None:
    for split, names in SPLITS:
        pictures(tmp_path / layout.format(split=split, part="images"), names)
        labels(tmp_path / layout.format(split=split, part="labelTxt"), names, DOTA_ROWS)
    from_a_mac(tmp_path)
    text(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: [ship, plane]\n")
    report = check(tmp_path)  # Roboflow's file has no label files of YOLO
    assert report.ok, str(report)
    assert (report.kind, [split.boxes for split in report.splits]) == ("dota", [6, 4])


def test_label_files_of_a_name_that_two_pictures_have_are_not_guessed(tmp_path: Path) -> None:
    for split in (1, 2):
        pictures(tmp_path / "images" / str(split), NAMES[:2])
    labels(tmp_path / "labels", NAMES[:2])
    text(tmp_path / "data.yaml", "train: images\nval: images\nnames: [cat, dog]\n")
    assert "none of the 4 images has a label file" in str(check(tmp_path))


@pytest.mark.parametrize(
    ("row", "oriented"),
    [
        ("0 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6 0.93\n1 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6\n", True),
        ("0 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6 0.93\n1 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6 1\n", True),
        ("0 0.1 0.2 0.5 0.2 0.5 0.4 0.5 0.6 0.1 0.6 0.93\n1 0.3 0.4 0.4 0.4\n", False),
    ],
)
def test_a_confidence_behind_corners_is_dropped(row: str, oriented: bool, tmp_path: Path) -> None:
    cvat_ultralytics(tmp_path)
    labels(tmp_path / "labels" / "default", rows=row)
    dataset = open_dataset(DataSettings(path=str(tmp_path)), "train", training=False)
    assert dataset.oriented == oriented
    assert dataset.notes["label lines with a confidence behind the corners, dropped"] == 5 * (1 + row.endswith(" 1\n"))
    np.testing.assert_allclose(dataset.records[0].boxes, [[10, 10, 50, 30]] * 2, atol=1e-5)


def test_no_confidence_behind_corners(tmp_path: Path) -> None:
    cvat_ultralytics(tmp_path)
    labels(tmp_path / "labels" / "default", rows="0 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6 3\n")
    assert "line 1: has 10 fields" in str(check(tmp_path))


def test_a_rotated_box_alone(tmp_path: Path) -> None:
    quarter = np.pi / 2
    coco(tmp_path / "train.json", rbox=[30, 20, 20, 40, quarter])
    pictures(tmp_path / "images")
    dataset = open_dataset(DataSettings(path=str(tmp_path)), "train", training=False)
    assert dataset.oriented
    np.testing.assert_allclose(dataset.records[0].boxes, [[10, 10, 50, 30]] * 2, atol=1e-5)
    assert dataset.records[0].areas.tolist() == [800, 800]
    assert dataset.notes["objects with a rotated box alone, given the box around it"] == 10
    coco(tmp_path / "train.json", rbox=[30, 20, 20, 40, 90])
    assert "are these degrees?" in str(check(tmp_path))


def test_a_split_that_is_absent_leads_to_one_that_is_there(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", NAMES[:3])
    pictures(tmp_path / "images")
    settings = DataSettings(path=str(tmp_path))
    with pytest.raises(AnnotationError, match=r"no split 'val'; it has train; hold .* data\.holdout=0\.1"):
        open_dataset(settings, "val")
    coco(tmp_path / "test.json", NAMES[3:])
    with pytest.raises(AnnotationError, match=r"it has train, test; .* data\.val=test"):
        open_dataset(settings, "val")
    (tmp_path / "train.json").unlink()
    with pytest.raises(AnnotationError, match=r"no split 'train'; it has test; .* data\.train=test"):
        open_dataset(settings, "train")


def test_only_images_to_evaluate_on_of_another_format_are_not_trained_on(tmp_path: Path) -> None:
    coco(tmp_path / "annotations" / "instances_val2017.json")
    pictures(tmp_path / "val2017")
    settings = DataSettings(path=str(tmp_path))
    assert available_splits(settings) == ["val"]
    with pytest.raises(AnnotationError, match=r"no split 'train'; it has val; .* data\.train=val"):
        open_dataset(settings, "train")


def test_exports_of_the_real_programs_were_read() -> None:
    """The results of ``benchmarks/exports.py``, which needs the programs, and its table in the guide."""
    docs = Path(__file__).parents[3] / "docs"
    content = json.loads((docs / "results" / "exports.json").read_text())
    table = (docs / "guide.md").read_text(encoding="utf-8")
    assert len(content["results"]) >= 10
    for found in content["results"].values():
        assert not found["problems"]
        assert found["equal"]
        assert found["largest_difference"] <= 2  # whole corners and whole sides
    for program, version in content["programs"].items():
        assert f"\n| {program.replace('-', ' ')} {version.rpartition('.')[0]} |" in table.lower()
