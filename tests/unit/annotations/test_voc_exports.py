"""VOC and labelme as programs write them: layouts, classes, the counting of pixels; and pictures in other formats."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from locdistill.annotations.folders import note_unreadable
from locdistill.annotations.formats import available_splits, locate
from locdistill.annotations.voc import CLASSES
from locdistill.data.open import Scan, open_dataset, scan_dataset
from locdistill.data.records import Dataset
from locdistill.data.settings import DataSettings
from locdistill.errors import AnnotationError, DataError

WIDTH, HEIGHT = 96, 64
BOX = (11, 12, 50, 40)


def save_picture(path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (90, len(path.name), 30)).save(path, **options)
    return path


def an_object(box: tuple[Any, ...] = BOX, name: str = "cat", extra: str = "") -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def write_xml(file: Path, objects: str, filename: str = "", *, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    file.write_text(f"<annotation><filename>{filename}</filename>{sides}{objects}</annotation>", encoding="utf-8")


def write_set(folder: Path, split: str, *objects: str, names: tuple[str, ...] = ()) -> list[str]:
    """Write pictures, XML files and the list of an image set in the layout of the devkit."""
    names = names or tuple(f"{split}{number}" for number in range(len(objects)))
    for name, own in zip(names, objects, strict=True):
        save_picture(folder / "JPEGImages" / f"{name}.jpg")
        write_xml(folder / "Annotations" / f"{name}.xml", own, f"{name}.jpg")
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return list(names)


def scanned(path: Path, split: str = "train", **settings: Any) -> Scan:
    return scan_dataset(DataSettings(path=str(path), **{"holdout": 0, **settings}), split, training=False)


def opened(path: Path, split: str = "train", **settings: Any) -> Dataset:
    return open_dataset(DataSettings(path=str(path), **{"holdout": 0, **settings}), split, training=False)


def boxes_of(dataset: Dataset) -> list[list[float]]:
    return [box for record in dataset.records for box in record.boxes.tolist()]


def count(scan: Scan, part: str) -> int:
    return sum(number for note, number in scan.notes.items() if part in note)


# --- counting of pixels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "settings", "read", "note"),
    [
        ((10.75, 10.75, 14.75, 14.75), {}, [10.75, 10.75, 14.75, 14.75], "counted from 0"),
        ((0, 5, 40, 30), {}, [0, 5, 40, 30], "counted from 0"),
        ((-2, 5, 40, 30), {}, [-2, 5, 40, 30], "counted from 0"),
        ((11, 12, 50, 40), {}, [10, 11, 49, 39], "counted from 1, moved by one pixel"),
        (("11.0", " 12 ", "50.00", "40"), {}, [10, 11, 49, 39], "counted from 1, moved by one pixel"),
        ((11, 12, 50, 40), {"one_based": False}, [11, 12, 50, 40], "counted from 0"),
        ((10.75, 10.75, 14.75, 14.75), {"one_based": True}, [9.75, 9.75, 13.75, 13.75], "counted from 1"),
    ],
)
def test_corners_are_counted_as_the_data_set_does(
    written: tuple[Any, ...], settings: dict[str, Any], read: list[float], note: str, tmp_path: Path
) -> None:
    write_set(tmp_path / "VOC2007", "train", an_object(written))
    scan = scanned(tmp_path, **settings)
    assert boxes_of(scan.dataset) == [read]
    assert count(scan, note) == 1
    assert scan.dataset.classes == ("cat",)


def test_one_split_decides_for_all(tmp_path: Path) -> None:
    """A data set counts in one way: a fraction or a 0 in another split shows which."""
    write_set(tmp_path, "train", an_object())
    write_set(tmp_path, "val", an_object((0, 0, 9, 9), "dog"))
    assert boxes_of(opened(tmp_path)) == [list(BOX)]
    assert opened(tmp_path).classes == opened(tmp_path, "val").classes == ("cat", "dog")


def test_the_devkit_is_read_as_the_reference_does(tmp_path: Path) -> None:
    """The twenty classes, and ``int() - 1`` even of fractions, which VOC2012 has; no other files are read for it."""
    objects = [an_object((1, "45.70000076293945", 30.5, 60), name) for name in CLASSES[:10]]
    write_set(tmp_path / "VOCdevkit" / "VOC2012", "train", "".join(objects))
    write_set(tmp_path / "VOCdevkit" / "VOC2012", "val", an_object((1, 2, 3, 4), "cat"))
    scan = scanned(tmp_path)
    assert scan.dataset.classes == CLASSES
    assert boxes_of(scan.dataset) == [[0, 44, 29, 59]] * 10
    assert count(scan, "counted from 1") == 10
    assert opened(tmp_path, "val").classes == CLASSES
    assert boxes_of(opened(tmp_path, "val")) == [[0, 1, 2, 3]]
    assert boxes_of(opened(tmp_path, one_based=False))[0] == [1, np.float32(45.70000076293945), 30.5, 60]


# --- layouts ----------------------------------------------------------------------------------------------------------


def write_layout(root: Path, annotations: str, pictures: str, names: tuple[str, ...] = ("a", "b")) -> None:
    for name in names:
        save_picture(root / pictures / f"{name}.jpg")
        write_xml(root / annotations / f"{name}.xml", an_object(), f"{name}.jpg")


@pytest.mark.parametrize(
    ("annotations", "pictures"),
    [
        ("VOC2007/Annotations", "VOC2007/JPEGImages"),
        ("Annotations", "JPEGImages"),
        ("Annotations", "images"),  # Label Studio
        ("annotations", "Images"),
        ("labels", "data"),  # FiftyOne
        ("Annotations", "."),
        (".", "."),  # labelImg
        (".", "images"),
        ("Annotations", "Annotations"),
    ],
)
def test_folders_without_image_sets_are_trained_on_whole(annotations: str, pictures: str, tmp_path: Path) -> None:
    write_layout(tmp_path, annotations, pictures)
    settings = DataSettings(path=str(tmp_path))
    assert locate(settings).kind == "voc"
    assert available_splits(settings) == ["train"]
    assert [record.path.name for record in opened(tmp_path).records] == ["a.jpg", "b.jpg"]
    with pytest.raises(AnnotationError, match="no split 'val'; it has train"):
        opened(tmp_path, "val")


@pytest.mark.parametrize(
    "layout",
    [
        ("{}", "{}"),  # Roboflow
        ("{}/annotations", "{}/images"),
        ("images/{}", "images/{}"),
        ("Annotations/{}", "JPEGImages/{}"),
        ("annotations/{}", "images"),
    ],
)
@pytest.mark.parametrize("spelling", [("train", "valid", "test"), ("Training", "Validation", "Test")])
def test_folders_of_splits(layout: tuple[str, str], spelling: tuple[str, ...], tmp_path: Path) -> None:
    for own in spelling:
        write_layout(tmp_path, layout[0].format(own), layout[1].format(own), (f"{own}_1",))
    (tmp_path / "README.roboflow.txt").write_text("about")
    assert available_splits(DataSettings(path=str(tmp_path))) == ["train", "val", "test"]
    for split, own in zip(("train", "val", "test"), spelling, strict=True):
        scan = scanned(tmp_path, split)
        assert [record.path.stem for record in scan.dataset.records] == [f"{own}_1"]
        assert not count(scan, "left out")


def test_folders_of_other_names_are_splits_if_they_are_chosen(tmp_path: Path) -> None:
    for name in ("batch1", "batch2"):
        write_layout(tmp_path, name, name, (name,))
    assert len(opened(tmp_path, train="batch1", val="batch2")) == 1
    assert len(opened(tmp_path, train=("batch1", "batch2"))) == 2
    with pytest.raises(AnnotationError, match=r"several are in it \(batch1, batch2\); pass --data .*batch1"):
        opened(tmp_path)


def test_cvat_exports_one_image_set_of_any_name(tmp_path: Path) -> None:
    """Names of images may have folders, and spaces, which are written in quotes."""
    names = ("sub/a", "my image 2")
    for name in names:
        save_picture(tmp_path / "JPEGImages" / f"{name}.png")
        write_xml(tmp_path / "Annotations" / f"{name}.xml", an_object((1.5, 2, 30, 40)), f"{name}.png")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "default.txt").write_text('sub/a\n"my image 2"\n')
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:1,2,3::\n")
    dataset = opened(tmp_path)
    assert [record.path.name for record in dataset.records] == ["a.png", "my image 2.png"]
    assert available_splits(DataSettings(path=str(tmp_path))) == ["train"]


def test_lists_may_leave_out_a_folder(tmp_path: Path) -> None:
    save_picture(tmp_path / "JPEGImages" / "default" / "a.jpg")
    write_xml(tmp_path / "Annotations" / "default" / "a.xml", an_object())
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "default.txt").write_text("a\n")
    assert boxes_of(opened(tmp_path)) == [[10, 11, 49, 39]]


@pytest.mark.parametrize("names", [("Train", "validation"), ("TRAIN", "Valid"), ("training", "val")])
def test_lists_in_other_spellings(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        write_set(tmp_path, name, an_object())
    assert [record.path.stem for record in opened(tmp_path).records] == [f"{names[0]}0"]
    assert [record.path.stem for record in opened(tmp_path, "val").records] == [f"{names[1]}0"]


@pytest.mark.parametrize(
    "line", ["a.jpg", "./a", "JPEGImages/a.jpg Annotations/a.xml", "C:\\x\\JPEGImages\\a.jpg", "a 1"]
)
def test_lines_of_lists(line: str, tmp_path: Path) -> None:
    write_layout(tmp_path, "Annotations", "JPEGImages")
    (tmp_path / "train.txt").write_text(f"{line}\n{line}\n")
    scan = scanned(tmp_path)
    assert [record.path.name for record in scan.dataset.records] == ["a.jpg"]
    assert count(scan, "images listed twice") == 1


def test_trainval_alone_is_trained_on(tmp_path: Path) -> None:
    write_set(tmp_path, "trainval", an_object())
    assert len(opened(tmp_path)) == 1
    write_set(tmp_path, "val", an_object())
    with pytest.raises(AnnotationError, match=r"no split 'train'.*it has trainval, val"):  # of which val is a part
        opened(tmp_path)


def test_an_image_set_without_its_first_xml_file_is_not_dropped(tmp_path: Path) -> None:
    write_set(tmp_path / "VOC2007", "train", an_object(), an_object())
    (tmp_path / "VOC2007" / "Annotations" / "train0.xml").unlink()
    with pytest.raises(AnnotationError, match=r"train0\.xml: there is no such annotation file"):
        opened(tmp_path)


def test_image_sets_without_any_xml_file_are_counted(tmp_path: Path) -> None:
    write_set(tmp_path / "VOC2007", "test", an_object())
    write_set(tmp_path / "VOC2012", "train", an_object())
    (tmp_path / "VOC2012" / "ImageSets" / "Main" / "test.txt").write_text("2008_1\n2008_2\n")
    scan = scanned(tmp_path, "test")
    assert len(scan.dataset) == 1
    assert count(scan, "image sets without any XML file") == 1


def test_what_is_no_voc(tmp_path: Path) -> None:
    """HRSC2016's files, CVAT's own, and label folders of YOLO."""
    for number, root in enumerate(("<HRSC_Image/>", "<annotations><image/></annotations>", "<annotationset/>")):
        folder = tmp_path / str(number)
        (folder / "Annotations").mkdir(parents=True)
        (folder / "images").mkdir()
        (folder / "Annotations" / "a.xml").write_text(root)
        with pytest.raises(AnnotationError, match="not recognised"):
            locate(DataSettings(path=str(folder)))


def test_annotation_files_left_beside_pictures_do_not_hide_the_data_set(tmp_path: Path) -> None:
    """They stay when a data set is converted to YOLO; with image sets it could be either."""
    write_layout(tmp_path, "images/train", "images/train")
    write_shapes(tmp_path / "images" / "train" / "c.json", a_shape(RECTANGLE))
    settings = DataSettings(path=str(tmp_path))
    with pytest.raises(AnnotationError, match=r"could be voc or labelme; set data\.format"):
        locate(settings)
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: images/train\nval: images/train\n")
    (tmp_path / "images" / "train" / "c.txt").write_text("0 0.5 0.5 0.1 0.1")
    assert locate(settings).kind == "yolo"
    write_set(tmp_path, "train", an_object())
    with pytest.raises(AnnotationError, match=r"could be voc or yolo; set data\.format"):
        locate(settings)


def test_annotation_files_left_beside_a_coco_file_of_any_name(tmp_path: Path) -> None:
    write_layout(tmp_path, "images", "images")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}],
        "categories": [{"id": 1, "name": "dog"}],
    }
    (tmp_path / "all_of_it.json").write_text(json.dumps(content))
    write_layout(tmp_path, "Annotations", "images")
    assert locate(DataSettings(path=str(tmp_path))).kind == "coco"


# --- the picture of an XML file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["b.png", "images\\b.png", "C:\\set\\images\\b.png", "b", "b.JPG", "/home/x/b.png"])
def test_a_picture_of_another_name_than_the_xml_file(given: str, tmp_path: Path) -> None:
    write_xml(tmp_path / "Annotations" / "1.xml", an_object(), given)
    save_picture(tmp_path / "images" / "b.png")
    assert [record.path.name for record in opened(tmp_path).records] == ["b.png"]


def test_a_copy_keeps_its_own_picture(tmp_path: Path) -> None:
    """Programs that augment write a copy of the XML file in which the original's picture is named."""
    for name in ("a", "a_flipped"):
        write_xml(tmp_path / f"{name}.xml", an_object(), "a.jpg")
        save_picture(tmp_path / f"{name}.jpg")
    scan = scanned(tmp_path)
    assert [record.path.name for record in scan.dataset.records] == ["a.jpg", "a_flipped.jpg"]
    assert count(scan, "name the picture of another") == 1


def test_pictures_of_one_name_and_two_endings(tmp_path: Path) -> None:
    write_xml(tmp_path / "a.xml", an_object(), "a.png")
    for ending in ("bmp", "jpg", "png", "webp"):
        save_picture(tmp_path / f"a.{ending}")
    scan = scanned(tmp_path)
    assert [record.path.name for record in scan.dataset.records] == ["a.png"]
    assert count(scan, "names with several pictures") == 1


def test_files_without_a_partner_are_counted(tmp_path: Path) -> None:
    write_layout(tmp_path, "Annotations", "JPEGImages", ("a", "b", "c", "d"))
    for name in ("JPEGImages/a.jpg", "Annotations/b.xml"):
        (tmp_path / name).unlink()
    scan = scanned(tmp_path)
    assert [record.path.stem for record in scan.dataset.records] == ["c", "d"]
    assert count(scan, "annotation files without a picture") == 1
    assert count(scan, "pictures without an annotation file") == 1
    (tmp_path / "JPEGImages" / "c.jpg").unlink()
    with pytest.raises(AnnotationError, match=r"2 of 3 annotation files have no picture in .*JPEGImages"):
        opened(tmp_path)


def test_background_images_stay(tmp_path: Path) -> None:
    write_set(tmp_path, "train", "", an_object())
    assert [len(record.boxes) for record in opened(tmp_path).records] == [0, 1]


# --- content of XML files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (an_object((50, 12, 11, 40)), "object 1: the box has width -39.0"),
        (an_object((11, 12, "inf", 40)), "are not four finite numbers"),
        (an_object((11, 12, 2e9, 40)), "are not four finite numbers of a sensible size"),
        (an_object(("11,5", 12, 50, 40)), "with a point instead of a comma"),
        ("<object><name>cat</name></object>", "are not four finite numbers"),
        ("<object><name>cat</name><polygon><x1>3</x1><y1>b</y1></polygon></object>", "are not four finite numbers"),
        ("<object><name>cat</name><robndbox><cx>9</cx></robndbox></object>", "rotated box .* is not five numbers"),
        (
            "<object><name>cat</name><robndbox><cx>9</cx><cy>9</cy><w>9</w><h>9</h><angle>45</angle></robndbox></object>",
            "are these degrees",
        ),
    ],
)
def test_broken_objects_are_named(objects: str, message: str, tmp_path: Path) -> None:
    write_layout(tmp_path, "Annotations", "images", ("a",))
    write_xml(tmp_path / "Annotations" / "a.xml", objects)
    with pytest.raises(AnnotationError, match=message) as error:
        opened(tmp_path)
    assert "a.xml: object 1" in str(error.value)


def test_swapped_sides_are_named(tmp_path: Path) -> None:
    write_layout(tmp_path, "Annotations", "images", ("a",))
    write_xml(tmp_path / "Annotations" / "a.xml", an_object(), size=(HEIGHT, WIDTH))
    with pytest.raises(DataError, match=r"declared as 64x96, but the file has 96x64; .*sides are swapped"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "points",
    [
        "<x1>10.5</x1><y1>20</y1><x2>40</x2><y2>12.5</y2><x3>30</x3><y3>50</y3>",  # Roboflow
        "<username>x</username><pt><x>10.5</x><y>20</y></pt><pt><x>40</x><y>12.5</y></pt><pt><x>30</x><y>50</y></pt>",
    ],
)
def test_a_polygon_without_a_box(points: str, tmp_path: Path) -> None:
    write_layout(tmp_path, "Annotations", "images", ("a",))
    write_xml(tmp_path / "Annotations" / "a.xml", f"<object><name>cat</name><polygon>{points}</polygon></object>")
    scan = scanned(tmp_path)
    assert boxes_of(scan.dataset) == [[10.5, 12.5, 40, 50]]
    assert count(scan, "polygons without a box") == 1


def test_cvat_turned_boxes(tmp_path: Path) -> None:
    """CVAT writes the box before it is turned, and the angle in degrees as an attribute; most are 0."""
    attribute = "<attributes><attribute><name>rotation</name><value>{}</value></attribute></attributes>"
    objects = [an_object((10, 20, 50, 30), extra=attribute.format(degrees)) for degrees in ("0.0", "90.0")]
    write_layout(tmp_path, "Annotations", "images", ("a",))
    write_xml(tmp_path / "Annotations" / "a.xml", "".join(objects) + an_object((0, 0, 5, 5)))
    scan = scanned(tmp_path)
    np.testing.assert_allclose(boxes_of(scan.dataset), [[10, 20, 50, 30], [25, 5, 35, 45], [0, 0, 5, 5]], atol=1e-5)
    assert count(scan, "'rotation'") == 1


def test_rotated_boxes_of_labelimg2(tmp_path: Path) -> None:
    turned = f"<cx>30</cx><cy>25</cy><w>20</w><h>10</h><angle>{math.pi / 2}</angle>"
    turned = f"<object><type>robndbox</type><name>ship</name><robndbox>{turned}</robndbox></object>"
    write_set(tmp_path, "train", turned + an_object((11, 12, 50, 40), "ship"))
    write_set(tmp_path, "val", an_object((11, 12, 50, 40), "ship"))
    scan = scanned(tmp_path)
    assert scan.dataset.oriented
    record = scan.dataset.records[0]
    np.testing.assert_allclose(record.boxes, [[25, 15, 35, 35], [11, 12, 50, 40]], atol=1e-4)
    assert record.quads is not None
    np.testing.assert_allclose(record.quads[0], [[35, 15], [35, 35], [25, 35], [25, 15]], atol=1e-4)
    np.testing.assert_allclose(record.areas, [200, 39 * 28], rtol=1e-5)
    assert count(scan, "without 'robndbox', taken as upright") == 1
    assert opened(tmp_path, "val").oriented  # as the other split is


@pytest.mark.parametrize(
    ("declared", "saved", "message"),
    [
        ("", "utf-8", None),
        ("", "utf-8-sig", None),
        ("", "utf-16", None),
        ("utf-8", "utf-8", None),
        ("ISO-8859-1", "latin-1", None),
        ("windows-1252", "cp1252", None),
        ("", "latin-1", "saved in another encoding than UTF-8, and its first line declares none"),
        ("UTF-8", "latin-1", "its first line declares utf-8, but it was saved in another encoding"),
        ("ISO-8859-1", "utf-8", "its first line declares iso-8859-1, but"),
        ("utf-16", "utf-8", "its first line declares utf-16, but"),
        ("klingon", "utf-8", "its first line declares klingon, but"),
    ],
)
def test_encodings(declared: str, saved: str, message: str | None, tmp_path: Path) -> None:
    write_layout(tmp_path, "Annotations", "images", ("a", "b"))
    first = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
    text = f"{first}<annotation>{an_object(name='café')}</annotation>"
    (tmp_path / "Annotations" / "b.xml").write_bytes(text.encode(saved))
    if message is None:
        assert opened(tmp_path).classes == ("café", "cat")
        return
    with pytest.raises(AnnotationError, match=message):
        opened(tmp_path)


def test_chinese_encodings(tmp_path: Path) -> None:
    """The XML library itself knows no encodings of several bytes."""
    write_layout(tmp_path, "Annotations", "images", ("a",))
    text = f'<?xml version="1.0" encoding="GB2312"?><annotation>{an_object(name="猫")}</annotation>'
    (tmp_path / "Annotations" / "a.xml").write_bytes(text.encode("gb2312"))
    assert opened(tmp_path).classes == ("猫",)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_in_all_formats_that_are_read(tmp_path: Path) -> None:
    endings = {"JPG": "JPEG", "jfif": "JPEG", "jpe": "JPEG", "mpo": "MPO", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP"}
    endings |= {"gif": "GIF", "ppm": "PPM", "pgm": "PPM", "jp2": "JPEG2000", "j2k": "JPEG2000", "png": "PNG"}
    if "AVIF" in Image.SAVE:
        endings["avif"] = "AVIF"
    for number, (ending, kind) in enumerate(endings.items()):
        save_picture(tmp_path / f"{number}.{ending}", format=kind)
        write_xml(tmp_path / f"{number}.xml", an_object())
    save_picture(tmp_path / "99.jpg", format="WEBP")  # a name does not matter
    write_xml(tmp_path / "99.xml", an_object())
    assert len(opened(tmp_path)) == len(endings) + 1


def test_pictures_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.heic", "d.HEIC", "e.dng"):
        save_picture(tmp_path / name, format="JPEG")
        write_xml(tmp_path / f"{Path(name).stem}.xml", an_object(), name)
    (tmp_path / "notes.txt").write_text("")
    scan = scanned(tmp_path)
    assert [record.path.stem for record in scan.dataset.records] == ["a", "b"]
    expected = "pictures in formats that cannot be read (dng: 1, heic: 2), left out; convert them to JPEG"
    assert scan.notes[expected] == 3
    assert not count(scan, "without a picture")
    notes = type(scan.notes)()
    assert note_unreadable(tmp_path, notes) == {"c", "d", "e"}
    assert dict(notes) == {expected: 3}


def test_unreadable_pictures_of_yolo_are_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.heic"):
        save_picture(tmp_path / "images" / name, format="JPEG")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: images\n")
    assert count(scanned(tmp_path), "cannot be read (heic: 1), left out") == 1


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    write_layout(tmp_path / "store", "xml", "pictures")
    for name, target in (("Annotations", "xml"), ("images", "pictures")):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "part").symlink_to(tmp_path / "store" / target)
    assert len(opened(tmp_path / "set")) == 2


# --- labelme ----------------------------------------------------------------------------------------------------------


def a_shape(points: Any, kind: str | None = "rectangle", label: Any = "cat", **others: Any) -> dict[str, Any]:
    return {"label": label, "points": points, **({"shape_type": kind} if kind else {}), **others}


def write_shapes(file: Path, *shapes: Any, picture: bool = True, **others: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "5.4.1", "flags": {}, "shapes": list(shapes), "imagePath": f"{file.stem}.png"}
    content |= {"imageData": "QUJD" * 2000, "imageHeight": HEIGHT, "imageWidth": WIDTH, **others}
    file.write_text(json.dumps(content))
    if picture:
        save_picture(file.with_suffix(".png"))


RECTANGLE = [[40.5, 30.0], [10.0, 12.5]]


def test_shapes_of_labelme(tmp_path: Path) -> None:
    write_shapes(
        tmp_path / "a.json",
        a_shape(RECTANGLE),
        a_shape([[10, 10], [30, 12], [20, 40]], "polygon", "dog"),
        a_shape([[10, 10], [30, 12], [20, 40]], None, "dog"),
        a_shape([[50, 30], [53, 34]], "circle"),
        a_shape([[5, 5], [20, 25]], "mask", mask="QUJD"),
        a_shape([[5, 5]], "point"),
        a_shape([[5, 5], [9, 9]], "linestrip"),
        a_shape(RECTANGLE, difficult=True),
    )
    write_shapes(tmp_path / "b.json")
    settings = DataSettings(path=str(tmp_path))
    assert locate(settings).kind == "labelme"
    assert available_splits(settings) == ["train"]
    scan = scanned(tmp_path)
    dataset = scan.dataset
    assert (dataset.classes, dataset.kind, dataset.category_ids) == (("cat", "dog"), "labelme", (1, 2))
    rectangle = [10.0, 12.5, 40.5, 30.0]
    triangle = [10, 10, 30, 40]
    assert boxes_of(dataset) == [rectangle, triangle, triangle, [45, 25, 55, 35], [5, 5, 20, 25], rectangle]
    assert dataset.records[0].ignored.tolist() == [False] * 5 + [True]
    assert len(dataset.records[1].boxes) == 0
    assert count(scan, "no rectangles (polygon), taken as the box around them") == 2
    assert count(scan, "no rectangles (circle)") == count(scan, "no rectangles (mask)") == 1
    assert count(scan, "without an extent (point), left out") == count(scan, "(linestrip), left out") == 1


def test_a_group_of_labelme_is_one_object(tmp_path: Path) -> None:
    parts = [[[0, 0], [5, 0], [5, 9]], [[20, 10], [30, 10], [30, 20]]]
    shapes = [a_shape(points, "polygon", group_id=7) for points in parts]
    write_shapes(tmp_path / "a.json", *shapes, a_shape(parts[0], "polygon", "dog", group_id=7))
    scan = scanned(tmp_path)
    assert boxes_of(scan.dataset) == [[0, 0, 30, 20], [0, 0, 5, 9]]
    assert count(scan, "shapes of one group") == 1


@pytest.mark.parametrize("layout", ["{}", "images/{}"])
def test_splits_of_labelme(layout: str, tmp_path: Path) -> None:
    for split, label in (("train", "cat"), ("val", "dog")):
        write_shapes(tmp_path / layout.format(split) / f"{split}.json", a_shape(RECTANGLE, label=label))
    assert available_splits(DataSettings(path=str(tmp_path))) == ["train", "val"]
    for split in ("train", "val"):
        dataset = opened(tmp_path, split)
        assert [record.path.stem for record in dataset.records] == [split]
        assert dataset.classes == ("cat", "dog")


def test_pictures_of_labelme(tmp_path: Path) -> None:
    """In a folder beside, named with backslashes; other JSON files and files without a picture are counted."""
    for name in ("1", "2", "3"):
        write_shapes(
            tmp_path / "json" / f"{name}.json", a_shape(RECTANGLE), picture=False, imagePath=f"..\\i\\{name}x.jpg"
        )
    for name in ("1x.jpg", "2x.jpg", "9.jpg"):
        save_picture(tmp_path / "images" / name)
    (tmp_path / "json" / "classes.json").write_text('["cat"]')
    scan = scanned(tmp_path)
    assert [record.path.name for record in scan.dataset.records] == ["1x.jpg", "2x.jpg"]
    assert not scan.problems
    assert count(scan, "annotation files without a picture") == count(scan, "pictures without an annotation file") == 1
    assert count(scan, "JSON files without 'shapes'") == 1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (a_shape([[1, 2], [3, "x"]]), "shape 2: its points .* are not pairs of numbers"),
        (a_shape([]), "are not pairs of numbers"),
        (a_shape([[1, 2], [3, math.nan]]), "are not pairs of numbers"),
        (a_shape([[1, 2], [3, 4, 5]]), "are not pairs of numbers"),
        (a_shape(None), "are not pairs of numbers"),
        ("x", "are not pairs of numbers"),
        (a_shape(RECTANGLE, label=""), "its label is ''; write the class"),
        (a_shape(RECTANGLE, label=None), "its label is None"),
    ],
)
def test_broken_shapes_are_named(shape: Any, message: str, tmp_path: Path) -> None:
    write_shapes(tmp_path / "a.json", a_shape(RECTANGLE), shape)
    with pytest.raises(AnnotationError, match=message):
        opened(tmp_path)


def test_broken_files_of_labelme_are_named(tmp_path: Path) -> None:
    write_shapes(tmp_path / "a.json", a_shape(RECTANGLE))
    for name, content in (("b", b'{"shapes": ['), ("c", '{"shapes": [], "imagePath": "é.png"}'.encode("latin-1"))):
        (tmp_path / f"{name}.json").write_bytes(content)
        save_picture(tmp_path / f"{name}.png")
    with pytest.raises(AnnotationError) as error:
        opened(tmp_path)
    assert "b.json: not valid JSON" in str(error.value)
    assert "c.json: saved in another encoding than UTF-8" in str(error.value)
