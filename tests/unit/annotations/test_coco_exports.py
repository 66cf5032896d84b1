"""COCO files as exporters and people write them: read as they are with a note, or refused in one line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import mask as native
from PIL import Image

from locdistill.annotations.coco_files import find_annotations, split_of, splits
from locdistill.annotations.files import read_text
from locdistill.annotations.formats import available_splits, locate
from locdistill.annotations.masks import box_around
from locdistill.data.check import check
from locdistill.data.open import Scan, open_dataset, scan_dataset
from locdistill.data.records import Dataset
from locdistill.data.settings import DataSettings
from locdistill.errors import AnnotationError, DataError
from locdistill.inference.evaluate import evaluate
from locdistill.models.detector import Detector
from locdistill.models.settings import InputSettings
from tests.conftest import CLASSES, write_tiny_coco
from tests.small import small_detector

WIDTH, HEIGHT = 96, 64
BOX, AREA = [10.0, 12.0, 50.0, 40.0], 40 * 28
Change = Callable[[dict[str, Any]], object]


def save_pictures(folder: Path, split: str = "", count: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (WIDTH, HEIGHT), (20 * i, len(split), 90)).save(folder / f"{split}{i}.png")


def content_of(split: str = "", folder: str = "", count: int = 3) -> dict[str, Any]:
    """One object in each image, alternately a cat and a dog."""
    return {
        "images": [
            {"id": i + 1, "file_name": f"{folder}{split}{i}.png", "width": WIDTH, "height": HEIGHT}
            for i in range(count)
        ],
        "annotations": [
            {"id": i + 1, "image_id": i + 1, "category_id": 1 + i % 2, "bbox": [10, 12, 40, 28], "iscrowd": 0}
            for i in range(count)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def write(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def written(folder: Path, change: Change = lambda _: None) -> Path:
    """A folder with ``train.json``, changed."""
    content = content_of()
    change(content)
    save_pictures(folder / "images")
    write(folder / "train.json", content)
    return folder


def settings_of(path: Path, **values: Any) -> DataSettings:
    return DataSettings(path=str(path), **{"filter_empty": False, "holdout": 0, **values})


def opened(path: Path, split: str = "train", **values: Any) -> Dataset:
    return open_dataset(settings_of(path, **values), split)


def scanned(path: Path, split: str = "train", **values: Any) -> Scan:
    return scan_dataset(settings_of(path, **values), split)


def notes_of(path: Path, split: str = "train") -> dict[str, int]:
    return {note: count for note, count in scanned(path, split).notes.items() if count}


def assert_whole(dataset: Dataset, count: int = 3) -> None:
    assert dataset.classes == ("cat", "dog")
    assert [record.labels.tolist() for record in dataset.records] == [[i % 2] for i in range(count)]
    assert [record.boxes.tolist() for record in dataset.records] == [[BOX]] * count


# --- files ---------------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, dict[str, tuple[str, str]]] = {  # split: annotation file, folder of its pictures
    "CVAT": {"train": ("annotations/instances_default.json", "images/default")},
    "CVAT, pictures in one folder": {"train": ("annotations/instances_default.json", "images")},
    "CVAT, subsets": {
        "train": ("annotations/instances_Train.json", "images/Train"),
        "val": ("annotations/instances_Validation.json", "images/Validation"),
    },
    "capitals": {"train": ("annotations/instances_TRAIN.json", "images/train"), "val": ("VAL.json", "Val")},
    "years": {
        "train": ("annotations/instances_train2014.json", "train2014"),
        "val": ("annotations/instances_val2014.json", "val2014"),
        "test": ("annotations/instances_test2015.json", "test2015"),
    },
    "Label Studio": {"train": ("result.json", "images")},
    "FiftyOne": {"train": ("labels.json", "data")},
    "FiftyOne, splits": {
        "train": ("train/labels.json", "train/data"),
        "val": ("validation/labels.json", "validation/data"),
    },
    "Roboflow": {
        split: (f"{name}/_annotations.coco.json", name) for split, name in (("train", "train"), ("val", "valid"))
    },
    "Roboflow, other names": {
        split: (f"{name}/annotations_{name}.json", name)
        for split, name in (("train", "train"), ("val", "valid"), ("test", "test"))
    },
    "a folder of CVAT for each split": {
        split: (f"{split}/annotations/instances_default.json", f"{split}/images/default") for split in ("train", "val")
    },
    "own names": {"train": ("my-train-set.json", "photos"), "val": ("cocoVal.json", "val_photos")},
    "one file of any name": {"train": ("cells.json", "cells")},
    "one file in annotations": {"train": ("Annotations/all.json", "JPEGImages")},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_exports_are_recognised_as_they_come(name: str, tmp_path: Path) -> None:
    for split, (file, pictures) in LAYOUTS[name].items():
        save_pictures(tmp_path / pictures, split)
        write(tmp_path / file, content_of(split))
    assert locate(DataSettings(path=str(tmp_path))).kind == "coco"
    assert available_splits(DataSettings(path=str(tmp_path))) == list(LAYOUTS[name])
    for split, (_, pictures) in LAYOUTS[name].items():
        dataset = opened(tmp_path, split)
        assert_whole(dataset)
        assert {record.path.parent for record in dataset.records} == {tmp_path / pictures}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_of_an_export_as_path_finds_the_others(name: str, tmp_path: Path) -> None:
    for split, (file, pictures) in LAYOUTS[name].items():
        save_pictures(tmp_path / pictures, split)
        write(tmp_path / file, content_of(split))
    same = name not in (
        "own names",
        "capitals",
        "years",
    )  # beside each other, with names that differ in the split alone
    for split, (_, pictures) in LAYOUTS[name].items():
        for other, (file, _) in LAYOUTS[name].items():
            if other == split or same:
                assert {record.path.parent for record in opened(tmp_path / file, split).records} == {
                    tmp_path / pictures
                }


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("instances_train2017", "train"), ("Train", "train"), ("TRAIN", "train"), ("training_set", "train")),
        *(("valid", "val"), ("Validation", "val"), ("trainVal_val", None), ("my-val-2", "val"), ("cocoTest", "test")),
        *(("image_info_test-dev2017", None), ("minival2014", None), ("trainval", None), ("constraint", None)),
        *(("train_and_val", None), ("instances_default", None), ("latest", None), ("test2017", "test")),
    ],
)
def test_the_split_in_a_name(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_the_split_that_was_named_comes_first(tmp_path: Path) -> None:
    for name in ("val.json", "valid.json", "annotations/instances_val2017.json", "annotations/instances_val2014.json"):
        write(tmp_path / name, content_of())
    found = {split: find_annotations(tmp_path, split) for split in ("val", "valid", "val2017", "val2014", "train")}
    names = {split: file and file.relative_to(tmp_path).as_posix() for split, file in found.items()}
    years = {f"val{year}": f"annotations/instances_val{year}.json" for year in (2017, 2014)}
    assert names == {"val": "val.json", "valid": "valid.json", **years, "train": None}
    assert splits(tmp_path) == ["val", "valid", "val2014", "val2017"]


def test_files_beside_the_annotations_are_passed_over(tmp_path: Path) -> None:
    folder = written(tmp_path)
    for name in ("captions_train", "person_keypoints_train", "panoptic_train"):
        write(folder / "annotations" / f"{name}.json", content_of())
    write(folder / "config.json", {"images": 3})
    assert_whole(opened(folder))
    (folder / "train.json").rename(folder / "cats.json")
    (folder / "annotations" / "captions_train.json").unlink()
    for name in ("person_keypoints_train", "panoptic_train"):
        (folder / "annotations" / f"{name}.json").write_text('{"model": "x"}')
    assert_whole(opened(folder))  # the only one of COCO
    assert notes_of(folder) == {"files without a split in their name, taken as the training images": 1}


def test_several_files_without_a_split_are_named(tmp_path: Path) -> None:
    for name in ("First.json", "second.json"):
        write(tmp_path / name, content_of())
    save_pictures(tmp_path / "images")
    with pytest.raises(AnnotationError, match=r": First\.json, second\.json; pass data\.train=First\.json$"):
        opened(tmp_path)
    assert_whole(opened(tmp_path, train="second.json"))
    for i in range(30):  # too many to look into
        write(tmp_path / f"x{i}.json", {"points": []})
    with pytest.raises(AnnotationError, match="not recognised"):
        opened(tmp_path)


def test_files_in_folders_of_other_names_are_named(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save_pictures(tmp_path / "images" / split)
        write(tmp_path / "notes" / f"{split}.json", content_of())
    with pytest.raises(AnnotationError, match=r"train: notes/train\.json, notes/val\.json; pass data\.train=notes/"):
        opened(tmp_path)
    for split in ("train", "val"):
        chosen = opened(tmp_path, split, train="notes/train.json", val="notes/val.json")
        assert {record.path.parent.name for record in chosen.records} == {split}


def test_the_ids_of_a_file_with_a_capital_ending(tmp_path: Path) -> None:
    folder = written(tmp_path, lambda content: content["categories"].append({"id": 90, "name": "cow"}))
    (folder / "train.json").rename(folder / "TRAIN.JSON")
    assert opened(folder).category_ids == (1, 2, 90)


def test_another_format_goes_before_a_json_of_any_name(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images" / "train")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    write(tmp_path / "some.json", content_of())
    assert locate(DataSettings(path=str(tmp_path))).kind == "coco"  # a description without any label file
    (tmp_path / "images" / "train" / "0.txt").write_text("0 0.5 0.5 0.1 0.1")
    assert locate(DataSettings(path=str(tmp_path))).kind == "yolo"


# --- categories and values -----------------------------------------------------------------------------------------


def with_root(identifier: Any, **more: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        for entry in content["categories"]:
            entry["supercategory"] = "pets"
        content["categories"].append({"id": identifier, "name": "pets", "supercategory": "none", **more})

    return change


@pytest.mark.parametrize("identifier", [0, 3, "77"])
def test_a_root_category_without_objects_is_dropped(identifier: Any, tmp_path: Path) -> None:
    folder = written(tmp_path, with_root(identifier))
    assert_whole(opened(folder))
    assert notes_of(folder)["categories that only group others and have no objects, left out"] == 1


def test_a_parent_with_objects_in_any_split_stays(tmp_path: Path) -> None:
    folder = written(tmp_path, with_root(0, supercategory="pets"))
    content = content_of()
    with_root(0)(content)
    content["annotations"][2]["category_id"] = 0
    write(folder / "val.json", content)
    assert opened(folder).classes == opened(folder, "val").classes == ("pets", "cat", "dog")
    assert not [problem for problem in check(folder).problems if "classes" in problem.what]
    write(folder / "val.json", ["no", "COCO"])
    assert opened(folder).classes == ("cat", "dog")


def test_a_root_category_with_the_name_of_a_class(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["categories"][0]["supercategory"] = "cat"
        content["categories"].append({"id": 0, "name": "cat", "supercategory": "none"})

    folder = written(tmp_path, change)
    write(folder / "val.json", json.loads((folder / "train.json").read_text()))
    assert_whole(opened(folder))


def test_a_category_that_is_its_own_parent_stays(tmp_path: Path) -> None:
    assert_whole(opened(written(tmp_path, lambda content: content["categories"][0].update(supercategory="cat"))))


def every(kind: str, **types: Callable[[Any], Any]) -> Change:
    def change(content: dict[str, Any]) -> None:
        for entry in content[kind]:
            entry.update({key: convert(entry[key]) for key, convert in types.items()})

    return change


IDS = "ids written as text or with a fraction of zero, read as whole numbers"
NUMBERS = "numbers written as text, read as numbers"
SIDES = "sides of images written as text or with a fraction of zero, read as whole numbers"
VALUES: dict[str, tuple[Change, dict[str, int]]] = {
    "image ids as text": (every("images", id=str), {IDS: 3}),
    "references as text": (every("annotations", image_id=str, category_id="{:03d}".format), {IDS: 6}),
    "floats": (every("annotations", image_id=float, category_id=float), {IDS: 6}),
    "floats as text": (every("annotations", image_id="{}.0".format), {IDS: 3}),
    "categories as text": (every("categories", id=str), {IDS: 2}),
    "annotation ids as text": (every("annotations", id=str), {IDS: 3}),
    "boxes as text": (every("annotations", bbox=lambda box: [str(value) for value in box]), {NUMBERS: 12}),
    "areas as text": (lambda content: content["annotations"][0].update(area="1120.0"), {NUMBERS: 1}),
    "sides as text": (every("images", width=str), {SIDES: 3}),
    "sides as floats": (every("images", width=float, height=float), {SIDES: 6}),
    "crowd as text": (every("annotations", iscrowd=str), {}),
    "crowd as truth": (every("annotations", iscrowd=bool), {}),
    "crowd as word": (every("annotations", iscrowd=lambda _: "False"), {}),
    "no crowd": (every("annotations", iscrowd=lambda _: None), {}),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_in_other_types_are_taken(kind: str, tmp_path: Path) -> None:
    change, notes = VALUES[kind]
    folder = written(tmp_path, change)
    assert_whole(opened(folder))
    assert notes_of(folder) == notes
    assert not any(record.ignored.any() for record in opened(folder).records)


def test_flags_as_text_and_names_as_numbers(tmp_path: Path) -> None:
    folder = written(tmp_path, every("annotations", iscrowd=lambda _: "1"))
    assert all(record.ignored.all() for record in opened(folder).records)
    folder = written(tmp_path, lambda content: content["annotations"][0].update(ignore="0"))
    assert not opened(folder).records[0].ignored.any()
    folder = written(tmp_path, lambda content: content["categories"][1].update(name=7))
    assert opened(folder).classes == ("cat", "7")
    assert notes_of(folder) == {"category names that are numbers, read as text": 1}


def image(**values: Any) -> Change:
    return lambda content: content["images"][0].update(values)


def annotation(**values: Any) -> Change:
    return lambda content: content["annotations"][0].update(values)


REFUSED: dict[str, tuple[Change, str]] = {
    "ids that become equal": (image(id="2"), "image 2: the id is used twice"),
    "an id with a fraction": (annotation(image_id=1.5), r"no image has the id 1\.5"),
    "an id with an underscore": (annotation(image_id="1_0"), "no image has the id '1_0'"),
    "a truth for an id": (annotation(category_id=True), "no category has the id True"),
    "an id of more than 64 bits": (annotation(image_id=2**63), "no image has the id 9223372036854775808"),
    "an infinite id": (annotation(image_id=float("inf")), "no image has the id inf"),
    "a comma": (annotation(bbox=["1,5", "1", "3", "3"]), r"'1,5'.* is not four finite numbers"),
    "nan as text": (annotation(bbox=["nan", "1", "3", "3"]), "is not four finite numbers"),
    "a crowd of two": (annotation(iscrowd="2"), "'iscrowd' is '2'; write 0 or 1"),
    "an odd ignore": (annotation(ignore="maybe"), "'ignore' is 'maybe'; write 0 or 1"),
    "a name that is nothing": (lambda content: content["categories"][0].update(name=None), "text 'name'"),
    "no mask": (annotation(bbox=None, segmentation=[[1, 2, 3]]), "'segmentation' is no mask"),
    "a mask of another size": (
        annotation(bbox=None, segmentation={"size": [4, 4], "counts": [4, 12]}),
        "'segmentation' is no mask; .* with the image's size",
    ),
    "neither box nor mask": (annotation(bbox=None, segmentation=[]), "box None is not four finite numbers"),
    "fractions": (every("annotations", bbox=lambda _: [0.1, 0.2, 0.4, 0.5]), "all boxes lie between 0 and 1"),
    "corners": (every("annotations", bbox=lambda _: [50, 20, 90, 60]), r"3 of 3 boxes leave .* fit them as \[x1, y1"),
    "captions": (lambda content: content.update(annotations=[{"caption": "a cat"}]), "holds captions, not annotated"),
    "panoptic": (lambda content: content.update(annotations=[{"segments_info": []}]), "holds panoptic segments"),
    "key points": (lambda content: content.update(annotations=[{"keypoints": []}]), "holds key points, not annotated"),
    "one picture twice": (image(file_name="1.png"), "image 2: is the same file as image 1, 1.png; list each file once"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_leads_to_the_remedy(kind: str, tmp_path: Path) -> None:
    change, message = REFUSED[kind]
    with pytest.raises(AnnotationError, match=message) as error:
        opened(written(tmp_path, change))
    assert "\n" not in str(error.value) or "problems" in str(error.value)


def test_results_are_no_annotations(tmp_path: Path) -> None:
    file = write(tmp_path / "found.json", [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}])
    with pytest.raises(AnnotationError, match="holds results of a detector"):
        opened(file)


def test_boxes_that_reach_over_the_edge_are_no_corners(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [60, 20, 50, 30]  # leaves, and would have no width
        content["annotations"][1]["bbox"] = [0, 0, 97, 64]

    assert len(opened(written(tmp_path, change))) == 3


def test_zero_boxes_are_named_for_what_they_are(tmp_path: Path) -> None:
    folder = written(tmp_path, annotation(bbox=[0, 0, 0, 0], area=0))
    assert notes_of(folder) == {"boxes with a side below 1 px, left out": 1}


# --- masks ---------------------------------------------------------------------------------------------------------

MASK = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
MASK[12:40, 10:50] = 1
RUNS: list[int] = [len(run) for run in np.split(MASK.T.ravel(), np.flatnonzero(np.diff(MASK.T.ravel())) + 1)]
CORNERS = [10, 12, 50, 12, 50, 40, 10, 40]
MASKS: dict[str, object] = {
    "polygon": [CORNERS],
    "polygons": [[10, 12, 20, 12, 20, 30], [30, 20, 50, 20, 50, 40]],
    "a polygon without brackets": CORNERS,
    "pairs": [[[10, 12], [50, 12], [50, 40]]],
    "run lengths": {"size": [HEIGHT, WIDTH], "counts": RUNS},
    "compressed": {
        "size": [HEIGHT, WIDTH],
        "counts": native.encode(np.asfortranarray(MASK))["counts"].decode(),
    },
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("box", [None, []])
def test_masks_become_boxes(kind: str, box: object, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry |= {"bbox": box, "segmentation": MASKS[kind]}

    folder = written(tmp_path, change)
    assert_whole(opened(folder))
    assert notes_of(folder) == {"objects without a box, given the box around their mask": 3}


def test_a_box_goes_before_its_mask(tmp_path: Path) -> None:
    folder = written(tmp_path, annotation(segmentation=[[0, 0, 5, 0, 5, 5]]))
    assert_whole(opened(folder))
    assert not notes_of(folder)


def test_boxes_around_run_lengths_are_those_of_coco() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = (rng.random((17, 23)) < rng.choice([0.01, 0.1, 0.9])).astype(np.uint8)
        rle = native.encode(np.asfortranarray(mask))
        expected = native.toBbox(rle).tolist() if mask.any() else None
        found = box_around({"size": rle["size"], "counts": rle["counts"].decode()})
        assert (found and list(found)) == expected


@pytest.mark.parametrize(
    "mask",
    [
        *("x", [], {}, [[]], [1, 2, 3], [[1, 2], 3], [["1", "2"]], [[float("nan"), 1]], [[10**400, 1]], [[[[]]]]),
        {"size": [4, 4], "counts": [8, 9]},  # more than the image has
        {"size": [4, 4], "counts": [16]},  # empty
        {"size": [4, 4], "counts": [20, -4]},
        {"size": [4, 0], "counts": []},
        {"size": [4, 4], "counts": "\x01"},
        {"size": [4, 4], "counts": "oooooooooooooooooooooooooo"},
        {"size": [10**400, 4], "counts": [1]},
        {"counts": [1]},
    ],
)
def test_what_is_no_mask(mask: object) -> None:
    assert box_around(mask) is None


# --- names of pictures ---------------------------------------------------------------------------------------------

BACKSLASHES = "file names with backslashes, read as slashes"
BY_END = "file names that are not there as written, found by the end of the name"
PREFIXES: dict[str, tuple[str, str]] = {
    "images\\": ("images", BACKSLASHES),
    "part\\": ("images/part", BACKSLASHES),
    "..\\..\\media\\upload\\4\\": ("images", BY_END),
    "../../images/": ("images", BY_END),
    "images/1/": ("images", BY_END),
    "C:\\Users\\me\\data\\": ("images", BY_END),
    "/home/me/data/images/": ("images", BY_END),
    "/data/local-files/?d=shared/images/": ("images", BY_END),
    "https://host.example/a/b/": ("images", BY_END),
    "s3://bucket/a%20b/": ("images", BY_END),
    "file:///data/train/": ("images/train", BY_END),
    "": ("photos/summer", BY_END),
    "summer/": ("photos/summer", BY_END),
}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_names_of_another_machine_are_found_by_their_end(prefix: str, tmp_path: Path) -> None:
    folder, note = PREFIXES[prefix]
    save_pictures(tmp_path / folder)
    write(tmp_path / "train.json", content_of(folder=prefix))
    dataset = opened(tmp_path)
    assert_whole(dataset)
    assert {record.path.parent for record in dataset.records} == {tmp_path / folder}
    assert notes_of(tmp_path) == {note: 3}


def test_absolute_names_inside_the_data_folder(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images" / "b")
    save_pictures(tmp_path / "images" / "a")
    write(tmp_path / "train.json", content_of(folder=f"{tmp_path}/images/b/"))
    assert {record.path.parent.name for record in opened(tmp_path).records} == {"b"}


def test_a_url_may_have_a_query_and_coded_signs(tmp_path: Path) -> None:
    folder = written(tmp_path, image(file_name="https://host.example/a%20b.png?size=3#top"))
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "a b.png")
    assert opened(folder).records[0].path.name == "a b.png"
    folder = written(tmp_path, lambda content: content["images"][0].update(coco_url="http://x.example/1/0.png"))
    content = json.loads((folder / "train.json").read_text())
    content["images"][0].pop("file_name")
    write(folder / "train.json", content)
    assert opened(folder).records[0].path.name == "0.png"


def test_a_last_part_that_is_there_twice(tmp_path: Path) -> None:
    for folder in ("images/a", "images/b"):
        save_pictures(tmp_path / folder)
    write(tmp_path / "train.json", content_of(folder="..\\upload\\"))
    with pytest.raises(AnnotationError, match=r"could be images/a/0\.png or images/b/0\.png; write the folder"):
        opened(tmp_path)


def test_pictures_of_another_split_are_not_taken(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images" / "train")
    write(tmp_path / "val.json", content_of(folder="images/val/"))
    write(tmp_path / "train.json", content_of())
    assert_whole(opened(tmp_path))
    with pytest.raises(AnnotationError, match="none of its first images"):
        opened(tmp_path, "val")


@pytest.mark.parametrize("name", ["a" * 5000, "\ud800.png", "images", "%zz?", "http://["])
def test_names_that_no_picture_has(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such image file"):
        opened(written(tmp_path, image(file_name=name)))


@pytest.mark.parametrize("name", ["../secret.png", "..\\secret.png", "/{}/secret.png", "file:///{}/secret.png"])
def test_names_never_lead_outside(name: str, tmp_path: Path) -> None:
    save_pictures(tmp_path)
    (tmp_path / "0.png").rename(tmp_path / "secret.png")
    folder = written(tmp_path / "set", image(file_name=name.format(tmp_path)))
    with pytest.raises(DataError, match=r"leaves the image folder|no such image file"):
        opened(folder)


# --- encodings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_in_an_encoding_that_is_unambiguous(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('{"a": "café 고양이"}'.encode(encoding))
    assert read_text(tmp_path / "a.json") == '{"a": "café 고양이"}'


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    folder = written(tmp_path)
    (folder / "cats.json").write_bytes((folder / "train.json").read_text().encode(encoding))
    (folder / "train.json").unlink()
    assert_whole(opened(folder))


@pytest.mark.parametrize(
    ("encoding", "byte"), [("latin-1", "0xe9 at 10"), ("cp1251", "0xe9 at 10"), ("utf-16-le", "0x00 at 1")]
)
def test_text_in_another_encoding_is_named_as_such(encoding: str, byte: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('{"a": "caf'.encode(encoding) + (b"\xe9" if encoding != "utf-16-le" else b""))
    with pytest.raises(AnnotationError, match=f"another encoding than UTF-8 .byte {byte}.; save it as UTF-8"):
        opened(tmp_path / "a.json")


def test_text_that_cannot_be_read_or_is_absent(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "absent.txt")
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_text(tmp_path)


# --- images of test servers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO's folders with test images, whose annotations are not public."""
    folder = write_tiny_coco(tmp_path_factory.mktemp("coco"))
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / f"{split}.json").rename(folder / "annotations" / f"instances_{split}2017.json")
    (folder / "images").rename(folder / "train2017")
    (folder / "val2017").symlink_to(folder / "train2017")
    content = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    content.pop("annotations")
    for name in ("test-dev2017", "test2017", "unlabeled2017"):
        pictures = folder / ("unlabeled2017" if name == "unlabeled2017" else "test2017")
        pictures.mkdir(exist_ok=True)
        for entry in content["images"]:
            (pictures / entry["file_name"]).write_bytes((folder / "train2017" / entry["file_name"]).read_bytes())
        categories = [] if name == "unlabeled2017" else content["categories"]
        write(folder / "annotations" / f"image_info_{name}.json", content | {"categories": categories})
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = small_detector(backbone="mobilenetv3_small_050", input=InputSettings(short=64, long=96))
    return Detector(tiny).save(tmp_path_factory.mktemp("weights") / "w")


@pytest.mark.parametrize("split", ["test-dev2017", "test2017", "unlabeled2017", "by its path", "as data"])
def test_results_for_a_test_server(split: str, server: Path, weights: Path, tmp_path: Path) -> None:
    data, options = server, {"split": split}
    if split == "by its path":
        options["split"] = "annotations/image_info_test-dev2017.json"
    elif split == "as data":
        data, options = server / "annotations" / "image_info_test-dev2017.json", {}
    overrides = ["data.workers=0", "detections.score_threshold=0"]
    result = evaluate(weights, data, format_only=tmp_path / "out.json", overrides=overrides, **options)
    entries = json.loads((tmp_path / "out.json").read_text())
    assert [record.image_id for record in result.dataset.records] == [1001, 1002, 1003, 1004]
    assert {entry["image_id"] for entry in entries} <= {1001, 1002, 1003, 1004}
    assert {entry["category_id"] for entry in entries} <= {1, 2, 3}
    assert len(entries) > 0
    assert result.dataset.classes == CLASSES
    folder = "unlabeled2017" if split == "unlabeled2017" else "test2017"
    assert {record.path.parent.name for record in result.dataset.records} == {folder}


def test_metrics_and_training_need_annotations(server: Path, weights: Path, tmp_path: Path) -> None:
    message = r"image_info_test-dev2017\.json: has no annotations, .* --format-only FILE"
    with pytest.raises(AnnotationError, match=message):
        evaluate(weights, server, split="test-dev2017", overrides=["data.workers=0"])
    with pytest.raises(AnnotationError, match=message):
        opened(server, train="test-dev2017")
    with pytest.raises(AnnotationError, match="it has train, val, test-dev2017, test2017, unlabeled2017"):
        opened(server, "minival")


def test_the_check_of_files_without_annotations(server: Path, tmp_path: Path) -> None:
    report = check(server)
    assert [split.name for split in report.splits] == ["train", "val"]  # as their own names only
    folder = written(tmp_path)
    content = content_of()
    content.pop("annotations")
    write(folder / "test.json", content)
    report = check(settings_of(folder))
    assert not [problem for problem in report.problems if "no annotations" in problem.what]
    assert report.splits[-1].notes == {"files without annotations": 1}
    write(folder / "train.json", content)
    assert [problem.what for problem in check(settings_of(folder)).problems] == [
        "has no annotations, like files of test images whose labels are not public"
    ]


def test_ids_of_classes_must_be_known(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images")
    file = write(tmp_path / "image_info_x.json", {"images": content_of()["images"]})
    with pytest.raises(AnnotationError, match=r"has no categories, .* copy 'categories' from the file of the training"):
        scanned(file)
    write(tmp_path / "train.json", content_of())
    scan = scanned(tmp_path, "x")
    assert scan.dataset.category_ids == (1, 2)
    expected = {
        "files without annotations": 1,
        "files without categories, which are taken from another file of the folder": 1,
    }
    assert Counter(scan.notes) == Counter(expected)
