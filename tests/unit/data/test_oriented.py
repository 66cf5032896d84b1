"""Rotated objects: COCO with ``rbox``, DOTA, HRSC2016; classes that are to be ignored."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from locdistill.annotations.formats import locate
from locdistill.annotations.sources import clockwise, signed_areas
from locdistill.data.open import class_names, open_dataset, scan_dataset
from locdistill.data.records import Dataset
from locdistill.data.settings import DataSettings
from locdistill.errors import AnnotationError, ImageError
from locdistill.interop.classes import DOTA

SQUARE = [[10.0, 10], [30, 10], [30, 20], [10, 20]]


def opened(path: Path, split: str = "train", **settings: Any) -> Dataset:
    return open_dataset(DataSettings(path=str(path), **{"filter_empty": False, **settings}), split)


def save_image(path: Path, size: tuple[int, int] = (64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (len(path.stem), 20, 30)).save(path)


# --- COCO with rbox ------------------------------------------------------------------------------------------------


def coco(folder: Path, annotations: list[dict[str, Any]], *, images: int = 2) -> Path:
    entries = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(1, images + 1)]
    for entry in entries:
        save_image(folder / "images" / str(entry["file_name"]))
    content = {
        "images": entries,
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, **a} for i, a in enumerate(annotations)],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "person"}, {"id": 3, "name": "unsure"}],
    }
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def test_rboxes_become_corners_clockwise_on_screen(tmp_path: Path) -> None:
    turned = {"bbox": [10, 5, 12, 12], "rbox": [16, 11, 8, 4, math.pi / 2], "area": 40}
    plain = {"bbox": [1, 2, 3, 4]}
    dataset = opened(coco(tmp_path, [turned, plain]))
    first, second = dataset.records
    assert dataset.oriented
    assert first.quads is not None
    assert second.quads is not None
    # A quarter turn clockwise takes the corner at -w/2, -h/2 from the upper left to the upper right.
    np.testing.assert_allclose(first.quads[0], [[18, 7], [18, 15], [14, 15], [14, 7]], atol=1e-5)
    np.testing.assert_allclose(first.quads[1], [[1, 2], [4, 2], [4, 6], [1, 6]])
    assert first.boxes.tolist() == [[10, 5, 22, 17], [1, 2, 4, 6]]
    assert first.areas.tolist() == [40, 12]
    assert (first.quads.dtype, second.quads.shape) == (np.float32, (0, 4, 2))
    assert not opened(coco(tmp_path / "plain", [plain])).oriented
    scan = scan_dataset(DataSettings(path=str(tmp_path)), "train")
    assert scan.notes["objects without 'rbox', taken as upright"] == 1


@pytest.mark.parametrize(
    ("rbox", "said"),
    [
        ([1, 2, 3, 4], "not five numbers of a sensible size"),
        ([1, 2, 3, 4, float("nan")], "not five numbers of a sensible size"),
        ([1, 2, 3, 4, "flat"], "not five numbers of a sensible size"),
        ("12345", "not five numbers of a sensible size"),
        ([], "not five numbers of a sensible size"),
        (7, "not five numbers of a sensible size"),
        ([1, 2, 3, -4, 0], "sides 3 and -4"),
        ([1, 2, 3, 4, 45], "the angle 45, more than a full turn: are these degrees"),
    ],
)
def test_broken_rboxes(rbox: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=rf"annotation 1 \(image 1\).*{said}.*radians, clockwise on screen"):
        opened(coco(tmp_path, [{"bbox": [1, 2, 3, 4]}, {"bbox": [1, 2, 3, 4], "rbox": rbox}]))


def test_training_leaves_out_by_the_sides_of_the_object_itself(tmp_path: Path) -> None:
    thin = {"bbox": [10, 10, 20, 20], "rbox": [20, 20, 28, 0.9, math.pi / 4]}
    slim = {"bbox": [10, 10, 20, 20], "rbox": [20, 20, 28, 1.1, math.pi / 4]}
    dataset = opened(coco(tmp_path, [thin, slim, {"bbox": [70, 5, 5, 5], "rbox": [72, 7, 5, 5, 0]}]))
    (quads,) = (record.quads for record in dataset.records if len(record.boxes))
    assert quads is not None
    assert len(quads) == 1
    np.testing.assert_allclose(np.linalg.norm(quads[0, 1] - quads[0, 2]), 1.1, rtol=1e-4)
    assert sum(len(record.boxes) for record in opened(tmp_path, min_box_side=1.2).records) == 0
    everything = opened(tmp_path, "val", val="train")
    assert len(everything.records[0].boxes) == 3


def test_as_oriented_goes_both_ways(tmp_path: Path) -> None:
    dataset = opened(coco(tmp_path, [{"bbox": [10, 5, 12, 12], "rbox": [16, 11, 8, 4, 0.3]}]))
    flat = dataset.as_oriented(False)
    assert not flat.oriented
    assert flat.records[0].quads is None
    assert dataset.as_oriented(True).records is dataset.records
    again = flat.as_oriented(True)
    assert again.records[0].quads is not None
    assert again.records[0].quads[0].tolist() == [[10, 5], [22, 5], [22, 17], [10, 17]]


# --- classes that are to be ignored --------------------------------------------------------------------------------


def test_ignored_classes_are_ignored_objects_of_every_class(tmp_path: Path) -> None:
    annotations = [
        {"bbox": [1, 1, 9, 9], "category_id": 3, "rbox": [5, 5, 8, 8, 0.1]},
        {"bbox": [2, 2, 9, 9], "category_id": 2},
        {"bbox": [3, 3, 9, 9], "category_id": 1, "iscrowd": 1},
    ]
    settings = {"ignore_classes": ("unsure",)}
    dataset = opened(coco(tmp_path, annotations), **settings)
    record = dataset.records[0]
    assert dataset.classes == ("car", "person")
    assert class_names(DataSettings(path=str(tmp_path), **settings), "train") == ("car", "person")
    assert record.labels.tolist() == [1, 0, 0, 1]
    assert record.ignored.tolist() == [False, True, True, True]
    assert record.boxes.tolist() == [[2, 2, 11, 11], [3, 3, 12, 12], [1, 1, 10, 10], [1, 1, 10, 10]]
    assert record.quads is not None
    assert np.array_equal(record.quads[2], record.quads[3])
    only = opened(tmp_path, classes=("person",), **settings)
    assert only.records[0].labels.tolist() == [0, 0]
    assert DataSettings(ignore_classes=("unsure",)).crowd == "ignore"
    with pytest.raises(AnnotationError, match=r"no class unsur; did you mean 'unsure'\?"):
        opened(tmp_path, ignore_classes=("unsur",))


def test_ignored_classes_that_contradict_others() -> None:
    with pytest.raises(ValueError, match="both name unsure"):
        DataSettings(classes=("car", "unsure"), ignore_classes=("unsure",))
    with pytest.raises(ValueError, match="set crowd to ignore"):
        DataSettings(ignore_classes=("unsure",), crowd="background")


def test_difficult_objects_may_be_trained_on(tmp_path: Path) -> None:
    annotations = [{"bbox": [1, 1, 9, 9], "iscrowd": 1}, {"bbox": [1, 1, 9, 9], "category_id": 3}]
    settings: dict[str, Any] = {"crowd": "objects", "ignore_classes": ("unsure",)}
    folder = coco(tmp_path, annotations)
    assert opened(folder, **settings).records[0].ignored.tolist() == [False, True, True]
    assert opened(folder, "val", val="train", **settings).records[0].ignored.tolist() == [True, True, True]


# --- quadrilaterals ------------------------------------------------------------------------------------------------


def test_corners_are_put_in_order() -> None:
    square = np.array(SQUARE)
    back = square[[0, 3, 2, 1]]
    crossed = square[[0, 2, 1, 3]]
    twisted = square[[0, 1, 3, 2]]
    concave = np.array([[0.0, 0], [10, 0], [3, 3], [0, 10]])
    point = np.full((4, 2), 7.0)
    notes: Counter[str] = Counter()
    found = clockwise(np.stack((square, back, crossed, twisted, concave, point)), notes)
    assert np.array_equal(found, np.stack((square, square, square, square, concave, point)))
    assert sorted(notes.values()) == [1, 2]
    np.testing.assert_allclose(signed_areas(found), [200, 200, 200, 200, 30, 0])
    assert clockwise(np.zeros((0, 4, 2)), notes).shape == (0, 4, 2)


# --- DOTA ----------------------------------------------------------------------------------------------------------


def line(quad: list[list[float]], *more: object) -> str:
    return " ".join(str(value) for value in (*np.array(quad).ravel().tolist(), *more))


def dota(folder: Path, labels: dict[str, str | None], *, suffix: str = ".png") -> Path:
    """Images and ``labelTxt`` in one folder; an image without a label file where the label is None."""
    (folder / "labelTxt").mkdir(parents=True, exist_ok=True)
    for name, text in labels.items():
        save_image(folder / "images" / f"{name}{suffix}")
        if text is not None:
            (folder / "labelTxt" / f"{name}.txt").write_text(text)
    return folder


def test_dota_in_folders_of_splits(tmp_path: Path) -> None:
    back = [SQUARE[i] for i in (1, 0, 3, 2)]
    text = f"imagesource:GoogleEarth\ngsd:null\n{line(SQUARE, 'ship', 0)}\n{line(back, 'plane')}\n"
    dota(tmp_path / "train", {"P2": text + line(SQUARE, "ship", 2), "P10": None, "P3": ""})
    dota(tmp_path / "val", {"P5": line(SQUARE, "harbor", 1)}, suffix=".bmp")
    dataset, val = opened(tmp_path), opened(tmp_path, "val")
    lost = "images without a label file, taken as without objects"
    assert scan_dataset(DataSettings(path=str(tmp_path)), "train").notes[lost] == 1
    assert (dataset.kind, dataset.oriented, dataset.classes) == ("dota", True, DOTA[:15])
    assert dataset.classes[:2] == ("plane", "baseball-diamond")
    assert [record.path.name for record in dataset.records] == ["P10.png", "P2.png", "P3.png"]
    record = dataset.records[1]
    assert record.labels.tolist() == [6, 0, 6]
    assert record.ignored.tolist() == [False, False, True]
    assert record.boxes.tolist() == [[10, 10, 30, 20]] * 3
    assert record.areas.tolist() == [200] * 3
    assert record.quads is not None
    assert record.quads[0].tolist() == SQUARE
    assert record.quads[1].tolist() == [SQUARE[i] for i in (1, 2, 3, 0)]  # the first corner stays the first
    assert [len(other.boxes) for other in dataset.records] == [0, 3, 0]
    assert (val.classes, val.records[0].path.name) == (dataset.classes, "P5.bmp")
    assert [r.path.name for r in opened(tmp_path, train=("train", "val")).records][-1] == "P5.bmp"


def test_dota_with_lists(tmp_path: Path) -> None:
    folder = dota(tmp_path, {"a": line(SQUARE, "ship"), "b": "", "c": line(SQUARE, "ship")})
    (folder / "train.txt").write_text("c\na.png\n")
    (folder / "ImageSets").mkdir()
    (folder / "ImageSets" / "val.txt").write_text("b\n")
    assert locate(DataSettings(path=str(folder))).kind == "dota"
    assert [record.path.name for record in opened(folder).records] == ["c.png", "a.png"]
    assert [record.path.name for record in opened(folder, "val").records] == ["b.png"]
    with pytest.raises(AnnotationError, match="no split 'test'; it has train, val"):
        opened(folder, "test")
    (folder / "train.txt").write_text("../a\nb\n")
    with pytest.raises(AnnotationError, match="leaves the image folder"):
        opened(folder)


@pytest.mark.parametrize(
    ("extra", "classes"),
    [
        ("ship", DOTA[:15]),
        ("container-crane", DOTA[:16]),
        ("helipad", DOTA),
        ("yacht", ("plane", "yacht")),
    ],
)
def test_dota_classes_are_those_of_the_version_whatever_the_split(
    extra: str, classes: tuple[str, ...], tmp_path: Path
) -> None:
    dota(tmp_path / "train", {"a": line(SQUARE, "plane")})
    dota(tmp_path / "val", {"b": line(SQUARE, extra)})
    assert opened(tmp_path).classes == opened(tmp_path, "val").classes == classes


def test_broken_dota_labels_are_all_listed(tmp_path: Path) -> None:
    lines = ["1 2 3 4 5 6 7 8", line(SQUARE, "ship", "x"), "a 2 3 4 5 6 7 8 ship 0", "inf 2 3 4 5 6 7 8 ship 0"]
    dota(tmp_path / "train", {"a": "\n".join([*lines, line(SQUARE, "ship")])})
    with pytest.raises(AnnotationError) as error:
        opened(tmp_path)
    message = str(error.value)
    for expected in ("4 problems", "line 1: has 8 fields", "'difficult' is 'x'", "line 3: the corners a 2 3", "inf 2"):
        assert expected in message
    (tmp_path / "train" / "labelTxt" / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AnnotationError, match="cannot be read as text"):
        opened(tmp_path)


def test_a_label_file_that_lost_its_image(tmp_path: Path) -> None:
    folder = dota(tmp_path / "train", {"a": line(SQUARE, "ship")})
    (folder / "labelTxt" / "b.txt").write_text(line(SQUARE, "ship"))
    with pytest.raises(ImageError, match=r"b\.png.*there is no such image file"):
        opened(tmp_path)


def test_tiles_of_an_image_are_held_out_together(tmp_path: Path) -> None:
    names = [f"P{image}__1024__{x}___{y}" for image in range(6) for x in (0, 824) for y in (0, -3)]
    dota(tmp_path / "train", {name: line(SQUARE, "ship") for name in (*names, "P1__x")})
    parts = [opened(tmp_path, split, holdout=0.3) for split in ("train", "val")]
    images = [{record.path.stem.split("__")[0] for record in part.records} for part in parts]
    assert not images[0] & images[1] - {"P1"}
    assert len(images[1]) == 2
    assert sum(map(len, parts)) == len(names) + 1


# --- HRSC2016 ------------------------------------------------------------------------------------------------------


def ship(cx: object, cy: float, w: float, h: float, angle: float, *, difficult: object = 0) -> str:
    numbers = zip(("cx", "cy", "w", "h", "ang"), (cx, cy, w, h, angle), strict=True)
    inner = "".join(f"<mbox_{name}>{value}</mbox_{name}>" for name, value in numbers)
    return f"<HRSC_Object><Class_ID>100000001</Class_ID><difficult>{difficult}</difficult>{inner}</HRSC_Object>"


def hrsc(folder: Path, sets: dict[str, list[str]], objects: dict[str, str], *, inside: str = ".") -> Path:
    data = folder / inside
    for sub in (data / "Annotations", folder / "ImageSets"):
        sub.mkdir(parents=True, exist_ok=True)
    for name, content in objects.items():
        save_image(data / "AllImages" / f"{name}.bmp")
        size = "<Img_SizeWidth>64</Img_SizeWidth><Img_SizeHeight>48</Img_SizeHeight>"
        xml = f"<HRSC_Image>{size}<HRSC_Objects>{content}</HRSC_Objects></HRSC_Image>"
        (data / "Annotations" / f"{name}.xml").write_text(xml)
    for name, images in sets.items():
        (folder / "ImageSets" / f"{name}.txt").write_text("\n".join(images))
    return folder


@pytest.mark.parametrize("inside", [".", "FullDataSet"])
def test_hrsc(inside: str, tmp_path: Path) -> None:
    objects = {"1": ship(20, 20, 10, 4, math.pi / 2, difficult=1) + ship(30, 20, 10, 4, 0), "2": "", "3": ""}
    sets = {"train": ["1"], "val": ["2"], "trainval": ["1", "2"], "test": ["3"]}
    folder = hrsc(tmp_path, sets, objects, inside=inside)
    dataset = opened(folder)
    assert (dataset.kind, dataset.oriented, dataset.classes) == ("hrsc", True, ("ship",))
    assert [record.path.name for record in dataset.records] == ["1.bmp", "2.bmp"]  # trainval, as is usual
    record = dataset.records[0]
    assert record.ignored.tolist() == [True, False]
    assert record.areas.tolist() == [40, 40]
    np.testing.assert_allclose(record.boxes, [[18, 15, 22, 25], [25, 18, 35, 22]], atol=1e-5)
    assert record.quads is not None
    np.testing.assert_allclose(record.quads[0], [[22, 15], [22, 25], [18, 25], [18, 15]], atol=1e-5)
    assert [record.path.name for record in opened(folder, "val").records] == ["3.bmp"]
    assert [record.path.name for record in opened(folder, train="train").records] == ["1.bmp"]
    with pytest.raises(AnnotationError, match="no split 'mini'; it has test, train, trainval, val"):
        opened(folder, "mini")


def test_hrsc_without_test_set_keeps_train_and_val_apart(tmp_path: Path) -> None:
    folder = hrsc(tmp_path, {"train": ["1"], "val": ["2"], "trainval": ["1", "2"]}, {"1": "", "2": ""})
    assert [record.path.name for record in opened(folder).records] == ["1.bmp"]
    assert [record.path.name for record in opened(folder, "val").records] == ["2.bmp"]


def test_broken_hrsc_annotations(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aa">]><HRSC_Image>&a;</HRSC_Image>'
    objects = {"1": ship("x", 1, 2, 3, 0) + ship(1, 1, -2, 3, 0) + ship(1, 1, 2, 3, 0, difficult="often"), "2": ""}
    objects["1"] += ship(1, 1, 2, 3, -90)
    folder = hrsc(tmp_path, {"train": ["1", "2", "4"]}, objects)
    (folder / "Annotations" / "2.xml").write_text(bomb)
    with pytest.raises(AnnotationError) as error:
        opened(folder)
    message = str(error.value)
    for expected in (
        "object 1: rotated box ['x', 1.0, 2.0, 3.0, 0.0] is not five numbers of a sensible size",
        "object 2: the rotated box has sides -2.0 and 3.0",
        "object 3: 'difficult' is 'often'",
        "object 4: the rotated box has the angle -90.0, more than a full turn",
        "defines entities",
        "there is no such annotation file",
    ):
        assert expected in message


def test_what_an_unknown_folder_was_searched_for(tmp_path: Path) -> None:
    (tmp_path / "labelTxt").mkdir()
    with pytest.raises(AnnotationError, match=r"(?s)labelTxt in train and val.*AllImages"):
        locate(DataSettings(path=str(tmp_path)))


# --- real data -----------------------------------------------------------------------------------------------------


def test_real_rotated_data(shared: Path) -> None:
    folder = shared / "data" / "hit-uav-half"
    if not folder.is_dir():
        pytest.skip(f"no data pack {folder}")
    dataset = opened(folder, "val", ignore_classes=("DontCare",))
    assert dataset.oriented
    assert dataset.classes == ("Person", "Car", "Bicycle", "OtherVehicle")
    for record in dataset.records:
        assert record.quads is not None
        hull = np.concatenate((record.quads.min(1), record.quads.max(1)), axis=1)
        np.testing.assert_allclose(hull, record.boxes, atol=1.01)
