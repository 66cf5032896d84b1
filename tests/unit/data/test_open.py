"""COCO, VOC and YOLO folders: recognised, read alike, and refused with all offenders when broken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from locdistill.annotations.formats import locate
from locdistill.annotations.voc import CLASSES
from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset
from locdistill.data.settings import DataSettings
from locdistill.errors import AnnotationError, DataError, ImageError

WIDTH, HEIGHT = 64, 48
# Per image: class, x1, y1, x2, y2. The same objects are written in all three formats.
TRUTH: list[list[tuple[int, int, int, int, int]]] = [
    [(0, 4, 5, 20, 31), (1, 8, 0, 64, 48)],
    [],
    [(1, 1, 2, 33, 40)],
]
NAMES = ("cat", "dog")


def save_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), shade: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 20, 30)).save(path)


def coco_content() -> dict[str, Any]:
    annotations = [
        {"id": 10 * i + j, "image_id": i + 1, "category_id": label + 3, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for i, objects in enumerate(TRUTH)
        for j, (label, x1, y1, x2, y2) in enumerate(objects)
    ]
    return {
        "images": [{"id": i + 1, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(len(TRUTH))],
        "annotations": annotations,
        "categories": [{"id": 4, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def write_coco(folder: Path, content: dict[str, Any], file: str = "train.json", images: str = "images") -> Path:
    for i in range(len(TRUTH)):
        save_image(folder / images / f"{i}.png", shade=i)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(content))
    return folder


def voc_xml(objects: list[tuple[int, int, int, int, int]], names: tuple[str, ...] = NAMES, extra: str = "") -> str:
    parts = [
        f"<object><name>{names[label]}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin>"
        f"<ymin>{y1 + 1}</ymin><xmax>{x2 + 1}</xmax><ymax>{y2 + 1}</ymax></bndbox></object>"
        for label, x1, y1, x2, y2 in objects
    ]
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(parts)}{extra}</annotation>"


def write_voc(year: Path, split: str = "trainval", names: tuple[str, ...] = NAMES, prefix: str = "") -> None:
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (year / folder).mkdir(parents=True, exist_ok=True)
    for i, objects in enumerate(TRUTH):
        save_image(year / "JPEGImages" / f"{prefix}{i:06d}.jpg", shade=i)
        (year / "Annotations" / f"{prefix}{i:06d}.xml").write_text(voc_xml(objects, names))
    lines = [f"{prefix}{i:06d}" for i in range(len(TRUTH))]
    (year / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(lines) + "\n")


def write_yolo(folder: Path, images: str = "images/train", **content: object) -> Path:
    for i, objects in enumerate(TRUTH):
        picture = folder / images / f"{i}.png"
        save_image(picture, shade=i)
        lines = [
            f"{label} {(x1 + x2) / 2 / WIDTH} {(y1 + y2) / 2 / HEIGHT} {(x2 - x1) / WIDTH} {(y2 - y1) / HEIGHT}"
            for label, x1, y1, x2, y2 in objects
        ]
        labels = folder / images.replace("images", "labels") / f"{i}.txt"
        labels.parent.mkdir(parents=True, exist_ok=True)
        if lines:
            labels.write_text("\n".join(lines) + "\n")
    (folder / "data.yaml").write_text(json.dumps({"train": images, "names": list(NAMES), **content}))
    return folder


def opened(path: Path, split: str = "train", **settings: Any) -> Dataset:
    return open_dataset(DataSettings(path=str(path), **{"filter_empty": False, "holdout": 0, **settings}), split)


def objects_of(dataset: Dataset) -> list[list[tuple[str, list[float]]]]:
    return [
        [(dataset.classes[label], box) for label, box in zip(record.labels, record.boxes.tolist(), strict=True)]
        for record in dataset.records
    ]


TRUE_OBJECTS = [[(NAMES[label], [float(v) for v in box]) for label, *box in objects] for objects in TRUTH]


# --- the three formats ---------------------------------------------------------------------------------------------


def test_coco_boxes_classes_and_ids(tmp_path: Path) -> None:
    dataset = opened(write_coco(tmp_path, coco_content()))
    assert (dataset.kind, dataset.classes, dataset.category_ids) == ("coco", ("cat", "dog"), (3, 4))
    assert [record.image_id for record in dataset.records] == [1, 2, 3]
    assert objects_of(dataset) == TRUE_OBJECTS
    record = dataset.records[0]
    assert (record.height, record.width, record.path.name) == (HEIGHT, WIDTH, "0.png")
    assert record.areas.tolist() == [16 * 26, 56 * 48]
    assert (record.boxes.dtype, record.labels.dtype, record.ignored.dtype) == (np.float32, np.int64, np.bool_)


def test_voc_and_yolo_read_the_same_boxes_as_coco(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc" / "VOC2007")
    voc = opened(tmp_path / "voc", train="trainval")
    assert voc.kind == "voc"
    assert voc.classes == NAMES
    assert len(CLASSES) == 20
    assert list(CLASSES) == sorted(CLASSES)
    assert objects_of(voc) == TRUE_OBJECTS
    yolo = opened(write_yolo(tmp_path / "yolo"))
    assert (yolo.kind, yolo.classes, yolo.category_ids) == ("yolo", NAMES, (1, 2))
    for found, expected in zip(objects_of(yolo), TRUE_OBJECTS, strict=True):
        assert [name for name, _ in found] == [name for name, _ in expected]
        np.testing.assert_allclose([b for _, b in found], [b for _, b in expected], atol=1e-4)
    assert [record.image_id for record in yolo.records] == [1, 2, 3]


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("train.json", "images"),
        ("train.json", "."),
        ("train.json", "train"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/instances_train.json", "images/train"),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_layouts_of_coco(file: str, images: str, tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content(), file, images)
    assert objects_of(opened(tmp_path)) == TRUE_OBJECTS
    assert objects_of(opened(tmp_path, train=file)) == TRUE_OBJECTS


def test_a_json_file_as_path(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content(), "annotations/instances_train2017.json", "train2017")
    content = coco_content()
    content["images"] = content["images"][:1]
    content["annotations"] = content["annotations"][:1]
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    save_image(tmp_path / "val2017" / "0.png")
    path = tmp_path / "annotations" / "instances_train2017.json"
    assert len(opened(tmp_path)) == len(opened(path)) == 3
    assert len(opened(tmp_path, "val")) == len(opened(path, "val")) == 1
    assert len(opened(tmp_path / "annotations" / "instances_val2017.json", "train")) == 3
    (tmp_path / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(AnnotationError, match="no split 'val'"):
        opened(path, "val")


def test_roboflow_valid_and_heading_category(tmp_path: Path) -> None:
    content = coco_content()
    content["categories"] = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 3, "name": "cat", "supercategory": "pets"},
        {"id": 4, "name": "dog", "supercategory": "pets"},
    ]
    write_coco(tmp_path, content, "valid/_annotations.coco.json", "valid")
    assert opened(tmp_path, "val").classes == ("cat", "dog")


def test_images_are_not_found_anywhere(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps(coco_content()))
    with pytest.raises(AnnotationError) as error:
        opened(tmp_path)
    assert "0.png" in str(error.value)
    for folder in ("images", "images/train", "train2017"):
        assert str(tmp_path / folder) in str(error.value)


def test_voc_years_are_concatenated(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOCdevkit" / "VOC2007")
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", prefix="2008_")
    write_voc(tmp_path / "VOCdevkit" / "VOC2007", "test", prefix="9")
    (tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main" / "test.txt").write_text("2008_999999\n")
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert objects_of(train) == TRUE_OBJECTS * 2
    assert [record.image_id for record in train.records] == list(range(1, 7))
    assert [record.path.name for record in val.records] == ["9000000.jpg", "9000001.jpg", "9000002.jpg"]
    assert len(opened(tmp_path, train="VOC2012/trainval")) == 3
    with pytest.raises(AnnotationError, match="no split 'minival'; it has test, trainval"):
        opened(tmp_path, "minival")


def test_voc_without_test_set_keeps_train_and_val_apart(tmp_path: Path) -> None:
    for split in ("train", "val", "trainval"):
        write_voc(tmp_path, split)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("000002\n")
    assert len(opened(tmp_path)) == 3
    assert [record.path.name for record in opened(tmp_path, "val").records] == ["000002.jpg"]


def test_voc_difficult_objects_and_own_classes(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", names=("zebra", "ant"))
    extra = (
        "<object><name>zebra</name><difficult>1</difficult>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    )
    (tmp_path / "Annotations" / "000001.xml").write_text(voc_xml([], extra=extra))
    dataset = opened(tmp_path, filter_empty=True)  # difficult objects keep an image
    assert dataset.classes == ("ant", "zebra")
    assert len(dataset) == 3
    assert dataset.records[1].ignored.tolist() == [True]
    assert dataset.records[1].boxes.tolist() == [[0, 0, 8, 8]]


def test_yolo_path_names_and_list_files(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "set", path="../set", names={0: "cat", 1: "dog"}, val=["val.txt"])
    (folder / "val.txt").write_text("./images/train/2.png\nimages/train/0.png\n")
    text = (folder / "data.yaml").read_text()
    (folder / "data.yaml").write_text(text.replace('"0"', "0").replace('"1"', "1"))
    dataset = opened(folder / "data.yaml", "val")
    assert [record.path.name for record in dataset.records] == ["2.png", "0.png"]
    assert dataset.classes == NAMES
    assert len(opened(folder, "val").records[0].boxes) == 1


def test_yolo_list_files_may_not_leave_the_folder(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "set", val="val.txt")
    save_image(tmp_path / "outside.png")
    (folder / "val.txt").write_text(f"../outside.png\n{tmp_path / 'outside.png'}\nimages/train/0.png\n")
    with pytest.raises(AnnotationError) as error:
        opened(folder, "val")
    assert "2 problems" in str(error.value)
    assert str(error.value).count("leaves the data folder") == 2


# --- recognition ---------------------------------------------------------------------------------------------------


def test_recognition(tmp_path: Path) -> None:
    write_voc(tmp_path / "v")
    write_yolo(tmp_path / "y")
    write_coco(tmp_path / "c", coco_content())
    for name, kind in (("v", "voc"), ("y", "yolo"), ("c", "coco"), ("c/train.json", "coco"), ("y/data.yaml", "yolo")):
        assert locate(DataSettings(path=str(tmp_path / name))).kind == kind
    write_yolo(tmp_path / "c")
    with pytest.raises(AnnotationError, match=r"could be coco or yolo; set data\.format"):
        locate(DataSettings(path=str(tmp_path / "c")))
    assert locate(DataSettings(path=str(tmp_path / "c"), format="yolo")).kind == "yolo"


def test_what_is_not_recognised(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(AnnotationError) as error:
        locate(DataSettings(path=str(tmp_path)))
    for expected in ("train.json", "ImageSets/Main", "data.yaml", "notes.txt"):
        assert expected in str(error.value)
    with pytest.raises(AnnotationError, match="there is no such file or folder"):
        locate(DataSettings(path=str(tmp_path / "absent")))
    with pytest.raises(AnnotationError, match="no data set given"):
        locate(DataSettings())


def test_a_split_that_is_absent_names_those_that_are_there(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content())
    (tmp_path / "test.json").write_text(json.dumps(coco_content()))
    with pytest.raises(AnnotationError, match=r"no split 'val'; it has train, test; .*data\.val=test"):
        opened(tmp_path, "val")
    assert len(opened(tmp_path, "val", val="test")) == 3
    assert len(opened(tmp_path, "test")) == 3


# --- classes, filters, concatenation -------------------------------------------------------------------------------


def test_classes_are_selected_and_reordered_by_name(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, coco_content())
    swapped = opened(folder, classes=("dog", "cat"))
    assert (swapped.classes, swapped.category_ids) == (("dog", "cat"), (4, 3))
    assert objects_of(swapped) == TRUE_OBJECTS
    only = opened(folder, classes=("dog",), filter_empty=True)
    assert [record.labels.tolist() for record in only.records] == [[0], [0]]
    with pytest.raises(AnnotationError, match=r"no class dot; did you mean 'dog'\?"):
        opened(folder, classes=("dot",))


def test_what_training_leaves_out_and_evaluation_keeps(tmp_path: Path) -> None:
    content = coco_content()
    for box, more in (
        ([70, 0, 5, 5], {}),  # beside the image
        ([5, 5, 0.9, 20], {}),  # narrower than a pixel
        ([5, 5, 10, 10], {"area": 0}),
        ([5, 5, 0, 10], {}),
        ([60, 40, 10, 10], {}),  # reaches beyond: stays as it is
        ([0, 0, 30, 30], {"iscrowd": 1, "area": 500}),
    ):
        content["annotations"].append(
            {"id": 100 + len(content["annotations"]), "image_id": 2, "category_id": 3, "bbox": box, **more}
        )
    save_image(tmp_path / "images" / "small.png", (40, 31))
    content["images"].append({"id": 9, "file_name": "small.png", "width": 40, "height": 31})
    content["annotations"].append({"id": 999, "image_id": 9, "category_id": 3, "bbox": [1, 1, 9, 9]})
    write_coco(tmp_path, content)
    train, val = opened(tmp_path, filter_empty=True), opened(tmp_path, "val", val="train")
    assert [record.image_id for record in train.records] == [1, 2, 3]
    assert train.records[1].boxes.tolist() == [[60, 40, 70, 50], [0, 0, 30, 30]]
    assert train.records[1].ignored.tolist() == [False, True]
    assert train.records[1].areas.tolist() == [100, 500]
    assert [len(record.boxes) for record in val.records] == [2, 6, 1, 1]
    assert [record.image_id for record in opened(tmp_path, min_side=1).records] == [1, 2, 3, 9]


def test_empty_images_leave_training_only_if_asked(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, coco_content())
    assert len(opened(folder, filter_empty=True)) == 2
    assert opened(folder).records[1].boxes.shape == (0, 4)
    content = coco_content()
    content["annotations"] = []
    (folder / "train.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=r"no image of .* can be used .* 3 images without objects"):
        opened(folder, filter_empty=True)


def test_several_files_are_concatenated(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, coco_content())
    (folder / "more.json").write_text(json.dumps(coco_content()))
    dataset = opened(folder, train=("train", "more.json"))
    assert objects_of(dataset) == TRUE_OBJECTS * 2
    assert [record.image_id for record in dataset.records] == [1, 2, 3, 4, 5, 6]
    content = coco_content()
    content["categories"][0]["name"] = "cow"
    (folder / "other.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match="have different classes"):
        opened(folder, train=("train", "other.json"))


# --- broken data ---------------------------------------------------------------------------------------------------


def annotation(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][0].update(changes)


def image(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["images"][0].update(changes)


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "negative width": (annotation(bbox=[1, 1, -3, 5]), r"annotation 0 \(image 1\): the box has width -3.0"),
    "negative height": (annotation(bbox=[1, 1, 3, -5]), "height -5.0"),
    "nan": (annotation(bbox=[1, 1, float("nan"), 5]), "not four finite numbers"),
    "infinite": (annotation(bbox=[1, 1, float("inf"), 5]), "not four finite numbers"),
    "huge": (annotation(bbox=[10**400, 1, 5, 5]), "not four finite numbers"),
    "three numbers": (annotation(bbox=[1, 1, 3]), "not four finite numbers"),
    "text": (annotation(bbox=["1", "1", "3", "wide"]), "not four finite numbers"),
    "no box": (annotation(bbox=None), "not four finite numbers"),
    "area": (annotation(area="big"), "'area' is 'big'"),
    "crowd": (annotation(iscrowd="yes"), "'iscrowd' is 'yes'"),
    "unknown image": (annotation(image_id=77), "no image has the id 77"),
    "unknown category": (annotation(category_id=9), "no category has the id 9.*known ids: 3, 4"),
    "category as text": (annotation(category_id="cat"), "no category has the id 'cat'"),
    "not an object": (lambda content: content["annotations"].append(5), r"annotations\[3\]: is not an object"),
    "image id twice": (image(id=2), "image 2: the id is used twice"),
    "image id as text": (image(id="a"), r"images\[0\]: has no integer 'id'"),
    "no file name": (image(file_name=None), "'file_name' is None"),
    "size": (image(width=0), "declared size"),
    "size as text": (image(height="48.5"), "declared size"),
    "category twice": (lambda content: content["categories"][0].update(id=3), "id 3 is used twice"),
    "category name twice": (lambda content: content["categories"][0].update(name="cat"), "'cat' is used twice"),
    "category without name": (lambda content: content["categories"][0].pop("name"), "has no integer 'id' and text"),
    "other size": (image(width=65), "declared as 65x48, but the file has 64x48"),
    "sides swapped": (image(width=HEIGHT, height=WIDTH), "stored rotated"),
    "missing file": (image(file_name="gone.png"), r"gone\.png: there is no such image file"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_each_kind_of_broken_coco(kind: str, tmp_path: Path) -> None:
    content = coco_content()
    change, message = BROKEN[kind]
    change(content)
    folder = write_coco(tmp_path, content)
    with pytest.raises(DataError, match=message):
        opened(folder)


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "a/../../secret.png", "/etc/passwd", "C:\\secret.png", "..\\secret.png", "\\secret.png", "  "],
)
def test_a_file_name_that_leaves_the_image_folder(name: str, tmp_path: Path) -> None:
    content = coco_content()
    content["images"][0]["file_name"] = name
    save_image(tmp_path / "secret.png")
    folder = write_coco(tmp_path / "set", content)
    with pytest.raises(AnnotationError, match=r"image 1: file name .* leaves the image folder"):
        opened(folder)


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set", coco_content())
    save_image(tmp_path / "elsewhere.png")
    (folder / "images" / "0.png").unlink()
    (folder / "images" / "0.png").symlink_to(tmp_path / "elsewhere.png")
    assert len(opened(folder)) == 3


def test_all_offenders_are_in_one_error(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0]["bbox"] = [0, 0, -1, 5]
    content["annotations"][2]["category_id"] = 99
    content["images"][1]["width"] = 63
    folder = write_coco(tmp_path, content)
    (folder / "images" / "2.png").write_bytes((folder / "images" / "2.png").read_bytes()[:50])
    with pytest.raises(AnnotationError) as error:
        opened(folder)
    lines = str(error.value).splitlines()
    assert "4 problems" in lines[0]
    assert len(lines) == 5
    for expected in ("annotation 0", "annotation 20", "image 2 (1.png)", "2.png: cannot be decoded"):
        assert expected in str(error.value)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"] = [{"id": i, "image_id": 1, "category_id": 3, "bbox": [0, 0, -1, 1]} for i in range(60)]
    with pytest.raises(AnnotationError) as error:
        opened(write_coco(tmp_path, content))
    assert "60 problems" in str(error.value)
    assert "... and 10 more; 'locdistill data check" in str(error.value)
    assert len(str(error.value).splitlines()) == 52


def test_only_images_at_fault_is_an_image_error(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, coco_content())
    (folder / "images" / "1.png").unlink()
    with pytest.raises(ImageError, match=r"1\.png: there is no such image file"):
        opened(folder)


def test_a_truncated_jpeg_is_found_before_training(tmp_path: Path) -> None:
    content = coco_content()
    for entry in content["images"]:
        entry["file_name"] = entry["file_name"].replace("png", "jpg")
    folder = write_coco(tmp_path, content)
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for i in range(3):
        Image.fromarray(noise).save(folder / "images" / f"{i}.jpg")
    path = folder / "images" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError, match=r"1\.jpg: cannot be decoded"):
        opened(folder)
    # bytes that an editor appended are no damage
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes() + b"appended" * 20)
    assert len(opened(folder)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "not valid JSON"),
        ("[1, 2]", "expected a COCO object"),
        ('{"images": [], "annotations": []}', "no list 'categories'"),
        ('{"images": [], "annotations": {}, "categories": []}', "no list 'annotations'"),
    ],
)
def test_files_that_are_no_coco(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(AnnotationError, match=message):
        opened(tmp_path)


def corner(**changes: str) -> str:
    values = {"xmin": "1", "ymin": "1", "xmax": "9", "ymax": "9", **changes}
    box = "".join(f"<{key}>{value}</{key}>" for key, value in values.items())
    return f"<object><name>cat</name><bndbox>{box}</bndbox></object>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (voc_xml([], extra=corner(xmax="0")), r"object 1: the box has width -1.0"),
        (voc_xml([], extra=corner(xmax="nan")), "not four finite numbers"),
        (voc_xml([], extra=corner(ymin="inf")), "not four finite numbers"),
        (voc_xml([], extra="<object><name>cat</name></object>"), "not four finite numbers"),
        (voc_xml([], extra=corner().replace("cat", "")), "has no name"),
        (voc_xml([], extra=corner().replace("<bnd", "<difficult>maybe</difficult><bnd")), "'difficult' is 'maybe'"),
        ("<annotation><object>", "not valid XML"),
        (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><object><name>&x;</name></object>'
            "</annotation>",
            "defines entities",
        ),
        (voc_xml([]).replace(f"<width>{WIDTH}", "<width>99"), "declared as 99x48"),
        (voc_xml([]).replace(f"<width>{WIDTH}", "<width>x"), "size: is not in whole pixels"),
    ],
)
def test_each_kind_of_broken_voc(text: str, message: str, tmp_path: Path) -> None:
    write_voc(tmp_path, "train")
    (tmp_path / "Annotations" / "000001.xml").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        opened(tmp_path)
    assert "000001" in str(error.value)


def test_broken_image_sets_of_voc(tmp_path: Path) -> None:
    write_voc(tmp_path, "train")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("000000\n../../secret\n000077\n")
    with pytest.raises(AnnotationError) as error:
        opened(tmp_path)
    assert "../../secret: the name leaves the image folder" in str(error.value)
    assert "000077.xml: there is no such annotation file" in str(error.value)
    (tmp_path / "Annotations" / "000001.xml").write_text(voc_xml([]).replace(f"<width>{WIDTH}", "<width>0"))
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("000000\n000001  -1\n")
    assert len(opened(tmp_path)) == 2  # a size of zero means "not known"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "the class is 2; the data set has the classes 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "the class is -1"),
        ("0.5 0.5 0.5 0.1 0.1", "the class is 0.5"),
        ("0 0.5 0.5 0.1", "has 4 fields"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.3", "has 8 fields"),
        ("0 32 24 10 10", "these are pixels"),
        ("0 0.5 0.5 -0.1 0.1", "has width -0.1"),
        ("0 0.5 nan 0.1 0.1", "not finite numbers"),
        ("cat 0.5 0.5 0.1 0.1", "the class is 'cat', a name"),
    ],
)
def test_each_kind_of_broken_yolo(line: str, message: str, tmp_path: Path) -> None:
    folder = write_yolo(tmp_path)
    (folder / "labels" / "train" / "2.txt").write_text(f"0 0.5 0.5 0.2 0.2\n{line}\n")
    with pytest.raises(AnnotationError, match=rf"2\.txt: line 2: .*{message}"):
        opened(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a", "not valid YAML"),
        ("- 1", "found a list"),
        ("train: images/train", "'names' is None"),
        ("train: images/train\nnames: {1: a}", "'names' goes up to 1, but has no name for 0"),
        ("train: images/train\nnames: [a, a]", "holds a class twice"),
        ("names: [a]\nval: x", "no split 'train'; it has val"),
        ("names: [a]\ntrain: nowhere", "'train' is 'nowhere', but there is no"),
        ("names: !!python/object/apply:os.system ['touch hacked']\ntrain: images/train", "not valid YAML"),
    ],
)
def test_yaml_files_that_describe_no_data(text: str, message: str, tmp_path: Path) -> None:
    folder = write_yolo(tmp_path)
    (folder / "data.yaml").write_text(text)
    with pytest.raises(AnnotationError, match=message):
        opened(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sizes": ((800, 1333),)}, "long >= short"),
        ({"sizes": ()}, "at least one pair"),
        ({"size_mode": "range"}, "needs two pairs"),
        ({"classes": ("a", "a")}, "each once"),
        ({"flip": 1.5}, "less than or equal to 1"),
        ({"batch_per_device": 0}, "greater than or equal to 1"),
        ({"batch": 3}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSettings(path="x", **values)


PACKS = [("bccd", "train", 3), ("bccd", "val", 3), ("deeppcb", "test", 6), ("coco-val2017-2.8k-320", "val", 80)]


@pytest.mark.parametrize(("pack", "split", "classes"), PACKS)
def test_real_data_opens(pack: str, split: str, classes: int, shared: Path) -> None:
    if not (shared / "data" / pack).is_dir():
        pytest.skip(f"no data pack {pack} in {shared / 'data'}")
    dataset = open_dataset(DataSettings(path=str(shared / "data" / pack)), split)
    content = json.loads((shared / "data" / pack / f"{split}.json").read_text())
    assert len(dataset.classes) == classes
    assert sum(len(record.boxes) for record in dataset.records) == len(content["annotations"])


def test_held_out_images_are_not_trained_on(tiny_coco: Path) -> None:
    whole = open_dataset(DataSettings(path=str(tiny_coco)), "train", training=False)
    settings = DataSettings(path=str(tiny_coco), holdout=0.25)
    rest, held = (open_dataset(settings, split, training=False) for split in ("train", "val"))
    names = [{record.path.name for record in part.records} for part in (whole, rest, held)]
    assert names[1] | names[2] == names[0]
    assert not names[1] & names[2]
    assert len(held) == 2
    assert held.name.endswith("/train (held out)")
    # A share of two images of eight, in the order of the digests of their names.
    ranked = sorted(names[0], key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert names[2] == set(ranked[:2])
    assert len(open_dataset(settings, "val.json")) == 4  # any other split is itself
    assert len(open_dataset(settings.model_copy(update={"holdout": 0.01}), "val")) == 1  # at least one
