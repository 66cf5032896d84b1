"""YOLO folders as exporters and people write them: read as they are with a note, or refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from locdistill.annotations.files import images_below
from locdistill.annotations.formats import available_splits, locate
from locdistill.annotations.sources import Source
from locdistill.annotations.yolo_labels import kind_of_rows, objects_of, parse
from locdistill.data.check import check
from locdistill.data.open import Scan, open_dataset, scan_dataset
from locdistill.data.records import Record
from locdistill.data.settings import DataSettings
from locdistill.errors import AnnotationError, DataError

WIDTH, HEIGHT = 100, 50
BOX = "0 0.3 0.4 0.4 0.4\n"
EDGES = [10, 10, 50, 30]
NAMED = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


def save_image(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([shade, *path.name.encode()]).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def yolo(
    folder: Path,
    rows: str | bytes = BOX,
    yaml: str = NAMED,
    *,
    images: str = "images/{}",
    labels: str = "labels/{}",
    splits: tuple[str, ...] = ("train", "val"),
) -> Path:
    """Two pictures in each split, each with the same label file."""
    for split in splits:
        for name in (f"{split}0", f"{split}1"):
            save_image(folder / images.format(split) / f"{name}.jpg")
            write(folder / labels.format(split) / f"{name}.txt", rows)
    if yaml:
        write(folder / "data.yaml", yaml)
    return folder


def scanned(path: Path, split: str = "train", **settings: Any) -> Scan:
    settings = {"filter_empty": False, **settings}
    scan = scan_dataset(DataSettings(path=str(path), **settings), split, training=False)
    assert not scan.problems, [str(problem) for problem in scan.problems]
    return scan


def records(path: Path, split: str = "train", **settings: Any) -> tuple[Record, ...]:
    return scanned(path, split, **settings).dataset.records


def notes(path: Path, split: str = "train", **settings: Any) -> dict[str, int]:
    return {note: count for note, count in scanned(path, split, **settings).notes.items() if count}


def refused(path: Path, message: str, split: str = "train", **settings: Any) -> None:
    with pytest.raises(DataError, match=message) as error:
        open_dataset(DataSettings(path=str(path), **settings), split)
    assert "\n" not in str(error.value)


def first_boxes(path: Path, split: str = "train") -> list[list[float]]:
    return records(path, split)[0].boxes.round(3).tolist()


# --- rows ----------------------------------------------------------------------------------------------------------


def test_polygons_among_boxes_become_the_boxes_around_them(tmp_path: Path) -> None:
    triangle, square = "1 0.1 0.2 0.5 0.2 0.2 0.6", "0 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6"
    folder = yolo(tmp_path, f"{triangle}\n{BOX}{square}\n")
    assert first_boxes(folder) == [[10, 10, 50, 30], EDGES, [10, 5, 50, 30]]
    assert records(folder)[0].labels.tolist() == [1, 0, 0]
    assert not scanned(folder).dataset.oriented
    assert notes(folder) == {"polygons, replaced by the boxes around them": 4}


def test_a_sixth_column_is_a_confidence(tmp_path: Path) -> None:
    folder = yolo(tmp_path, "0 0.3 0.4 0.4 0.4 0.913\n")
    assert first_boxes(folder) == [EDGES]
    assert notes(folder) == {"label lines with a confidence in the sixth column, dropped": 2}
    write(folder / "labels/train/train0.txt", "0 0.3 0.4 0.4 0.4 -0.7\n")
    refused(folder, "line 1: the sixth column is -0.7, and so no confidence .* four corners of a rotated box")


def test_four_corners_in_every_row_are_rotated_boxes(tmp_path: Path) -> None:
    folder = yolo(tmp_path, "0 0.5 0.1 0.6 0.3 0.5 0.5 0.4 0.3\n1 0.1 0.1 0.1 0.5 0.3 0.5 0.3 0.1\n")
    write(folder / "labels/train/train1.txt", "")
    scan = scanned(folder)
    full, empty = scan.dataset.records
    assert scan.dataset.oriented
    assert full.quads is not None
    assert full.quads[0].round(3).tolist() == [[50, 5], [60, 15], [50, 25], [40, 15]]
    np.testing.assert_allclose(full.quads[1], [[10, 5], [30, 5], [30, 25], [10, 25]], atol=1e-4)  # was written turned
    np.testing.assert_allclose(full.boxes, [[40, 5, 60, 25], [10, 5, 30, 25]], atol=1e-4)
    np.testing.assert_allclose(full.areas, [200, 400], rtol=1e-5)
    assert empty.quads is not None
    assert empty.quads.shape == (0, 4, 2)
    assert scan.notes["label lines with four corners, read as rotated boxes"] == 2
    assert scan.notes["quadrilaterals written counter-clockwise, turned"] == 1
    assert check(folder).ok


def test_corners_among_boxes_are_polygons(tmp_path: Path) -> None:
    folder = yolo(tmp_path, "0 0.5 0.1 0.6 0.3 0.5 0.5 0.4 0.3\n")
    write(folder / "labels/train/train1.txt", BOX)
    scan = scanned(folder)
    assert not scan.dataset.oriented
    assert first_boxes(folder) == [[40, 5, 60, 25]]


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ("0 0.3 0.4 0.4 0.4 0.2 0.3 2 0.3 0.4 1 0 0 0", ""),
        ("0 0.3 0.4 0.4 0.4 0.2 0.3 2 0.3 0.4 1", ""),  # an even number of values, with visibilities
        ("0 0.3 0.4 0.4 0.4 0.2 0.3 0.3 0.4", "kpt_shape: [2, 2]\n"),
    ],
)
def test_key_points_are_left_out(row: str, shape: str, tmp_path: Path) -> None:
    folder = yolo(tmp_path, f"{row}\n", NAMED + shape)
    write(folder / "labels/train/train1.txt", BOX)
    assert first_boxes(folder) == [EDGES]
    assert notes(folder) == {"boxes with key points, which are left out": 1}


def test_rows_of_lengths_that_mean_nothing(tmp_path: Path) -> None:
    folder = yolo(tmp_path, "0 0.3 0.4 0.4 0.4 0.2 0.3 0.7\n")
    write(folder / "labels/train/train1.txt", BOX)
    refused(folder, "line 1: has 8 fields; expected 'class cx cy w h', or a polygon; for key points set 'kpt_shape'")
    write(folder / "data.yaml", NAMED + "kpt_shape: [2, 3]\n")
    refused(folder, "line 1: has 8 fields; expected 5, or 11 for 'kpt_shape'")
    write(folder / "data.yaml", NAMED + "kpt_shape: 17\n")
    refused(folder, "'kpt_shape' is '17'; expected .number of key points, 2 or 3.")


@pytest.mark.parametrize(
    "row",
    [
        "0,0.3,0.4,0.4,0.4",
        "0, 0.3, 0.4, 0.4, 0.4",
        "0;0.3;0.4;0.4;0.4",
        "0 0,3 0,4 0,4 0,4",
        "0;0,3;0,4;0,4;0,4",
        "0 0.3,0.4 0.4,0.4",
    ],
)
def test_commas(row: str, tmp_path: Path) -> None:
    folder = yolo(tmp_path, f"{row}\n")
    assert first_boxes(folder) == [EDGES]
    assert notes(folder) == {"label lines with commas, read": 2}


def test_classes_as_floats_and_files_with_a_byte_order_mark(tmp_path: Path) -> None:
    folder = yolo(tmp_path, "1.0 0.3 0.4 0.4 0.4\n\n".encode("utf-16"))
    assert first_boxes(folder) == [EDGES]
    assert records(folder)[0].labels.tolist() == [1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("dog 0.3 0.4 0.4 0.4", "line 1: the class is 'dog', a name; write its number in 'names', 1"),
        ("cow 0.3 0.4 0.4 0.4", "line 1: the class is 'cow', which is no number; .* classes 0 to 1"),
        ("0 0.3 0.4 x 0.4", "line 1: '0 0.3 0.4 x 0.4' are not all numbers"),
        ("0 nan 0.4 0.4 0.4", "line 1: nan 0.4 0.4 0.4 are not finite numbers"),
        ("0 30 25 40 30", "line 1: values up to 40: these are pixels; YOLO rows are shares of the image's sides"),
        ("0 10 10 50 10 50 40 10 40", "line 1: values up to 50: these are pixels"),
        ("0 0.5 0.5 -0.2 0.2", "line 1: the box has width -0.2 and height 0.2; write sides of 0 or more"),
        ("0 0.5 0.5 1.2 0.2", "line 1: the box .* is not within 0..1"),
        ("0 1.2 0.5 0.1 0.2", "line 1: the box .* is not within 0..1"),
        ("0 0.3 0.4 0.4 0.4\n".encode("utf-16-le"), "another encoding than UTF-8 .*; save it as UTF-8"),
    ],
)
def test_rows_that_are_named_for_what_they_are(rows: str | bytes, message: str, tmp_path: Path) -> None:
    folder = yolo(tmp_path)
    write(folder / "labels/train/train0.txt", rows)
    refused(folder, rf"train0\.txt: .*{message}")


def test_boxes_just_outside_are_limited_and_boxes_over_the_edge_are_not(tmp_path: Path) -> None:
    rows = "0 0.9 0.4 0.2042 0.4\n1 0.5 0.5 1.0021 0.5\n0 0.95 0.4 0.2 0.4\n0 0.5 0.5 1.00002 1\n"
    folder = yolo(tmp_path, rows)
    expected = [[79.79, 10, 100, 30], [0, 12.5, 100, 37.5], [85, 10, 105, 30], [0, 0, 100, 50]]
    np.testing.assert_allclose(records(folder)[0].boxes, expected, atol=1e-3)
    assert notes(folder) == {"boxes up to 1% of a side outside the image, limited to it": 4}  # not that of rounding


def test_a_box_beside_the_image_is_not_limited_to_a_line(tmp_path: Path) -> None:
    folder = yolo(tmp_path, f"0 1.005 0.5 0.01 0.5\n{BOX}")
    np.testing.assert_allclose(records(folder)[0].boxes, [[100, 12.5, 101, 37.5], EDGES], atol=1e-3)
    assert check(folder).splits[0].notes == {"boxes outside the image, left out": 2}


def test_boxes_of_zero_size_are_counted(tmp_path: Path) -> None:
    folder = yolo(tmp_path, f"0 0.5 0.5 0 0\n0 0.5 0.5 0.1 0\n{BOX}")
    assert notes(folder) == {"boxes with a width or height of 0": 4}
    assert open_dataset(DataSettings(path=str(folder)), "train").records[0].boxes.round(3).tolist() == [EDGES]


SHARE = st.floats(0, 1)


@given(st.lists(st.tuples(st.integers(0, 1), SHARE, SHARE, SHARE, SHARE)), st.integers(4, 8))
def test_boxes_are_read_back_within_the_rounding_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, objects: list[tuple[int, float, float, float, float]], digits: int
) -> None:
    edges = np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for _, a, b, c, d in objects]).reshape(-1, 4)
    centres = np.concatenate(((edges[:, :2] + edges[:, 2:]) / 2, edges[:, 2:] - edges[:, :2]), axis=1)
    file, lines = tmp_path_factory.getbasetemp() / "box.txt", []
    for (label, *_), row in zip(objects, centres, strict=True):
        lines.append(f"{label} {' '.join(f'{value:.{digits}f}' for value in row)}\n")
    file.write_text("".join(lines))
    source, parsed = Source("", []), parse(file, ["cat", "dog"])
    found = objects_of("", parsed.rows, kind_of_rows([parsed], None), None, source)
    assert not parsed.problems + source.problems
    assert found.labels.tolist() == [label for label, *_ in objects]
    np.testing.assert_allclose(found.boxes, edges, rtol=0, atol=10.0**-digits)


@given(st.lists(st.tuples(*[st.floats(-0.5, 1.5)] * 8), min_size=1))
def test_corners_are_read_back_also_outside_the_image(
    tmp_path_factory: pytest.TempPathFactory, quads: list[tuple[float, ...]]
) -> None:
    file = tmp_path_factory.getbasetemp() / "corners.txt"
    file.write_text("".join(f"0 {' '.join(f'{value:.6f}' for value in quad)}\n" for quad in quads))
    source, parsed = Source("", []), parse(file, ["cat", "dog"])
    kind = kind_of_rows([parsed], None)
    assert kind == "corners"
    found = objects_of("", parsed.rows, kind, None, source)
    np.testing.assert_allclose(found.quads.reshape(-1, 8), quads, rtol=0, atol=1e-6)


# --- label files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/{}", "labels/{}"),
        ("{}/images", "{}/labels"),
        ("{}/images/a/b", "{}/labels/a/b"),
        ("{}/Images", "{}/Labels"),
        ("images/{}", "Labels/{}"),
        ("JPEGImages/{}", "labels/{}"),
        ("images/{}", "images/{}"),
        ("{}", "{}"),
    ],
)
def test_places_of_label_files(images: str, labels: str, tmp_path: Path) -> None:
    yaml = f"train: {images.format('train')}\nval: {images.format('val')}\nnames: [cat, dog]\n"
    folder = yolo(tmp_path / "images" / "set", yaml=yaml, images=images, labels=labels)
    assert [record.boxes.round(3).tolist() for record in records(folder)] == [[EDGES], [EDGES]]
    assert notes(folder) == {}


def test_images_without_labels_labels_without_images_and_twins(tmp_path: Path) -> None:
    folder = yolo(tmp_path)
    save_image(folder / "images/train/train0.png")
    save_image(folder / "images/train/empty.jpg")
    write(folder / "labels/train/gone.txt", BOX)
    write(folder / "labels/train/more/gone.txt", BOX)
    write(folder / "labels/train/classes.txt", "cat\ndog\n")
    assert [len(record.boxes) for record in records(folder)] == [0, 1, 1, 1]
    assert notes(folder) == {
        "images without a label file, taken as without objects": 1,
        "label files without an image, left out": 2,
        "images that share their name, and so their label file, with another": 1,
    }


def test_labels_of_other_splits_in_the_same_folder_are_no_strays(tmp_path: Path) -> None:
    folder = yolo(tmp_path, images="images", labels="labels", yaml="train: a.txt\nval: b.txt\nnames: [cat, dog]\n")
    for file, split in (("a.txt", "train"), ("b.txt", "val")):
        write(folder / file, f"images/{split}0.jpg\nimages/{split}1.jpg\n")
    assert notes(folder) == {}
    write(folder / "labels/gone.txt", BOX)
    assert notes(folder, "val") == {"label files without an image, left out": 1}


def test_label_files_are_missing_for_nearly_all_or_all(tmp_path: Path) -> None:
    folder = yolo(tmp_path)
    for number in range(20):
        save_image(folder / f"images/train/x{number}.jpg")
    doubt = "images without a label file, taken as without objects (nearly all of the split: are label files missing?)"
    assert notes(folder) == {doubt: 20}
    shutil.move(folder / "labels", folder / "annotations")
    places = r".*labels/train/train0\.txt and .*images/train/train0\.txt"
    refused(folder, f"none of the 22 images has a label file; looked for {places}; put the label files there")


def test_unlabelled_test_images_are_no_fault(tmp_path: Path) -> None:
    folder = yolo(tmp_path, yaml=f"{NAMED}test: images/test\n")
    save_image(folder / "images/test/a.jpg")
    assert [len(record.boxes) for record in records(folder, "test")] == [0]


def test_accents_that_the_disk_has_in_two_characters(tmp_path: Path) -> None:
    folder = yolo(tmp_path)
    save_image(folder / "images/train/caf\u00e9.jpg")
    write(folder / "labels/train/cafe\u0301.txt", BOX)
    assert notes(folder) == {}
    assert first_boxes(folder) == [EDGES]


# --- links ---------------------------------------------------------------------------------------------------------


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    for name in ("set/b/1.jpg", "set/a/0.jpg", "store/deep/2.jpg", "store/3.txt"):
        save_image(tmp_path / name) if name.endswith("jpg") else write(tmp_path / name, "")
    (tmp_path / "set/part").symlink_to(tmp_path / "store")
    (tmp_path / "set/a/again").symlink_to(tmp_path / "set/b")
    (tmp_path / "store/deep/circle").symlink_to(tmp_path / "set")
    (tmp_path / "set/lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "set/4.jpg").symlink_to(tmp_path / "set/b/1.jpg")
    names = [path.relative_to(tmp_path).as_posix() for path in images_below(tmp_path / "set")]
    assert names == ["set/4.jpg", "set/a/0.jpg", "set/b/1.jpg", "set/part/deep/2.jpg"]
    assert images_below(tmp_path / "nowhere") == []


def test_a_link_below_a_split(tmp_path: Path) -> None:
    folder = yolo(tmp_path / "set")
    for kind in ("images", "labels"):
        shutil.move(folder / kind / "train", tmp_path / kind)
        (folder / kind / "train").mkdir()
        (folder / kind / "train" / "part").symlink_to(tmp_path / kind)
    assert [record.boxes.round(3).tolist() for record in records(folder)] == [[EDGES], [EDGES]]
    assert notes(folder) == {}


# --- names and paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yaml", "note"),
    [
        ("path: C:/Users/someone/data\ntrain: images/train\nval: images/val\n", "that is no folder here"),
        ("path: C:\\Users\\someone\\data\ntrain: images\\train\nval: images\\val\n", "that is no folder here"),
        ("path: .\ntrain: ./images/train'\nval: ./images/val'\n", ""),
        ("path: set\ntrain: set/images/train\nval: set/images/val\n", "does not exist as written"),
        ("train: ../images/train\nval: ../images/val\n", "does not exist as written"),
        ("train: /home/someone/set/images/train\nval: /x/images/val\n", "does not exist as written"),
        ("train: [images/train]\nval: [images/val]\ntest:\n", ""),
        ("train: images/tr*\nvalid: images/va*/*.jpg\ntest: null\n", ""),
        ("Train: images/train\nValidation: images/val\n", ""),
        ("path: null\ntrain: images/train\nval: images/val\n", ""),
        ("", ""),
    ],
)
def test_paths_as_people_write_them(yaml: str, note: str, tmp_path: Path) -> None:
    folder = yolo(tmp_path / "set", yaml=f"{yaml}names: [cat, dog]\n")
    for split in ("train", "val"):
        assert [record.path.name for record in records(folder, split)] == [f"{split}0.jpg", f"{split}1.jpg"]
        assert first_boxes(folder, split) == [EDGES]
    found = " ".join(notes(folder))
    assert note in found if note else not found


def test_roboflow_with_a_test_folder_that_is_not_there(tmp_path: Path) -> None:
    yaml = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'dog']\n"
    folder = yolo(tmp_path / "s", yaml=yaml, images="{}/images", labels="{}/labels", splits=("train", "valid"))
    assert available_splits(DataSettings(path=str(folder))) == ["train", "val"]
    report = check(folder)
    assert report.ok, str(report)
    assert report.splits[0].notes == {
        f"path that does not exist as written (../train/images), read as {folder}/train/images": 1,
        "split 'test' (../test/images) that does not exist, left out": 1,
    }
    refused(folder, "no split 'test'; it has train, val", "test")
    shutil.rmtree(folder / "valid")
    assert "there is no" in str(check(folder).problems[0])
    refused(folder, "'val' is '../valid/images', but there is no .*; correct 'path' or 'val'", "val")


def test_the_same_folder_by_two_names_is_said(tmp_path: Path) -> None:
    folder = yolo(tmp_path, yaml="train: images/train\nval: ./images/../images/train/\nnames: [cat, dog]\n")
    assert available_splits(DataSettings(path=str(folder))) == ["train", "val"]
    assert any("images to evaluate on are trained on" in problem.what for problem in check(folder).problems)


@pytest.mark.parametrize(
    ("line", "guessed"),
    [
        ("./images/{0}/{1}", False),
        ("images\\{0}\\{1}\r", False),
        ("{root}/images/{0}/{1}", False),
        ("data/images/{0}/{1}", True),
        ("/home/someone/set/images/{0}/{1}", True),
        ("C:\\set\\images\\{0}\\{1}\r", True),
    ],
)
def test_lists_of_images(line: str, guessed: bool, tmp_path: Path) -> None:
    folder = yolo(tmp_path, yaml="train: lists/train.txt\nval: lists/val.txt\nnames: [cat, dog]\n")
    for split in ("train", "val"):
        names = [line.format(split, f"{split}{n}.jpg", root=tmp_path) for n in (0, 1)]
        write(folder / "lists" / f"{split}.txt", "\n".join(names) + "\n")
    assert [record.path.name for record in records(folder)] == ["train0.jpg", "train1.jpg"]
    note = "listed images that do not exist as written, found by the last parts of their names"
    assert notes(folder) == ({note: 2} if guessed else {})


def test_images_elsewhere_need_a_root(tmp_path: Path) -> None:
    yolo(tmp_path / "store", yaml="")
    for split in ("train", "val"):
        names = [f"{tmp_path}/store/images/{split}/{split}{n}.jpg" for n in (0, 1)]
        write(tmp_path / "set" / f"{split}.txt", "\n".join(names))
    write(tmp_path / "set/data.yaml", "train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    with pytest.raises(AnnotationError, match=r"leaves the data folder .*; list images below it, or set data\.root"):
        open_dataset(DataSettings(path=str(tmp_path / "set")), "train")
    assert len(records(tmp_path / "set", root=str(tmp_path / "store"))) == 2
    write(tmp_path / "set/train.txt", "images/train/train0.jpg\n")  # relative to data.root
    assert len(records(tmp_path / "set", root=str(tmp_path / "store"))) == 1
    write(tmp_path / "set/train.txt", "images/train/train0.jpg\nimages/train/lost.jpg\n")
    refused(tmp_path / "set", r"lost\.jpg: .*no such", root=str(tmp_path / "store"))


# --- names of classes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        ("[no, 5]", ("no", "5")),
        ("[yes, on, off, null, 1.0, 007]", ("yes", "on", "off", "null", "1.0", "007")),
        ("[2024-01-02, 2024-13-45, 1e3, 0x1F, ~]", ("2024-01-02", "2024-13-45", "1e3", "0x1F", "~")),
        ("{1: dog, 0: cat}", ("cat", "dog")),
        ("{'1': dog, 0: n}", ("n", "dog")),
        ("classes.txt", ("no", "café")),
        ("C:\\data\\classes.txt", ("no", "café")),
    ],
)
def test_names_are_read_as_they_are_written(names: str, classes: tuple[str, ...], tmp_path: Path) -> None:
    folder = yolo(tmp_path, yaml=f"train: images/train\nval: images/val\nnc: {len(classes)}\nnames: {names}\n")
    write(folder / "classes.txt", "no\ncafé\n\n")
    assert scanned(folder).dataset.classes == classes


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("names: {0: cat, 2: dog}", "'names' goes up to 2, but has no name for 1; name each class, from 0 on"),
        ("names: {1: cat, 2: dog}", "has no name for 0"),
        ("names: {0: cat, 0: dog}", "not valid YAML .the key '0' is written twice"),
        ("nc: 5\nnames: [cat, dog]", r"'nc' is 5, but 'names' has 2 classes \(cat, dog\); correct the wrong one"),
        ("nc: 2", "'names' is None; 'nc' .2. does not name the classes; expected a list of class names"),
        ("names: [cat, {dog: 1}]", "expected a list of class names"),
        ("names: cat", r"'names' is 'cat', which is no file here; .* such as \[cat\]"),
        ("names: holes.txt", r"holes\.txt: line 2 is empty, but each line names a class"),
        ('path: "C:\\Users\\x"\nnames: [cat]', "not valid YAML .*, and paths with / instead of"),
    ],
)
def test_names_that_do_not_name_the_classes(rest: str, message: str, tmp_path: Path) -> None:
    folder = yolo(tmp_path, yaml=f"train: images/train\nval: images/val\n{rest}\n")
    write(folder / "holes.txt", "cat\n\ndog\n")
    refused(folder, message)


def test_a_description_in_another_encoding(tmp_path: Path) -> None:
    folder = yolo(tmp_path)
    write(folder / "data.yaml", NAMED.replace("cat", "café").encode("cp1252"))
    refused(folder, r"data\.yaml: saved in another encoding than UTF-8 .*; save it as UTF-8")
    write(folder / "data.yaml", NAMED.replace("cat", "café").encode("utf-16"))
    assert scanned(folder).dataset.classes == ("café", "dog")


# --- exporters -----------------------------------------------------------------------------------------------------


def cvat(folder: Path) -> None:
    yolo(folder, yaml="", images="obj_{}_data", labels="obj_{}_data", splits=("train", "Validation"))
    for split in ("train", "Validation"):
        names = [f"data/obj_{split}_data/{split}{n}.jpg" for n in (0, 1)]
        write(folder / f"{split}.txt", "\n".join(names) + "\n")
    write(folder / "obj.names", "cat\ndog\n")
    lists = "train = data/train.txt\nValidation = data/Validation.txt\n"
    write(folder / "obj.data", f"classes = 2\n{lists}names = data/obj.names\nbackup = backup/\n")


def cvat_ultralytics(folder: Path) -> None:
    yolo(folder, yaml="path: ./ # root\ntrain: train.txt\nnames:\n  0: cat\n  1: dog\n")
    write(folder / "train.txt", "data/images/train/train0.jpg\ndata/images/train/train1.jpg\n")


def label_studio(folder: Path) -> None:
    yolo(folder, yaml="", images="images", labels="labels", splits=("train",))
    write(folder / "classes.txt", "cat\ndog")
    write(folder / "notes.json", json.dumps({"categories": [{"id": 0, "name": "cat"}], "info": {"year": 2026}}))


def fiftyone(folder: Path) -> None:
    yolo(folder, yaml="")
    splits = "train: ./images/train/\nval: ./images/val/\n"
    write(folder / "dataset.yaml", f"names:\n  0: cat\n  1: dog\npath: /home/someone/export\n{splits}")


def fiftyone_darknet(folder: Path) -> None:
    yolo(folder, yaml="", images="data", labels="data", splits=("train",))
    write(folder / "obj.names", "cat\ndog\n")
    write(folder / "images.txt", "data/train0.jpg\ndata/train1.jpg\n")


def roboflow_darknet(folder: Path) -> None:
    yolo(folder, yaml="", images="{}", labels="{}", splits=("train", "valid"))
    for split in ("train", "valid"):
        write(folder / split / "_darknet.labels", "cat\ndog\n")
    write(folder / "README.roboflow.txt", "made of")


def label_img(folder: Path) -> None:
    yolo(folder, yaml="", images=".", labels=".", splits=("train",))
    write(folder / "classes.txt", "cat\ndog\n")


def supervision(folder: Path) -> None:
    yolo(folder, yaml="names:\n- cat\n- dog\nnc: 2\n", images="images", labels="labels", splits=("train",))


def names_beside_splits(folder: Path) -> None:
    yolo(folder, yaml="")
    write(folder / "classes.txt", "cat\ndog\n")


EXPORTS = [
    (cvat, True),
    (cvat_ultralytics, False),
    (label_studio, False),
    (fiftyone, True),
    (fiftyone_darknet, False),
    (roboflow_darknet, True),
    (label_img, False),
    (supervision, False),
    (names_beside_splits, True),
]


@pytest.mark.parametrize(("export", "both"), EXPORTS)
def test_exports_are_read_as_they_come(export: Any, both: bool, tmp_path: Path) -> None:
    export(tmp_path)
    settings = DataSettings(path=str(tmp_path))
    assert locate(settings).kind == "yolo"
    assert available_splits(settings) == (["train", "val"] if both else ["train"])
    for split in available_splits(settings):
        scan = scanned(tmp_path, split)
        assert scan.dataset.classes == ("cat", "dog")
        assert [record.boxes.round(3).tolist() for record in scan.dataset.records] == [[EDGES], [EDGES]]
        assert not any("label file" in note for note, count in scan.notes.items() if count)
    assert check(tmp_path).ok


def test_names_without_labels_or_labels_without_names_are_no_yolo(tmp_path: Path) -> None:
    yolo(tmp_path / "a", yaml="")
    with pytest.raises(AnnotationError, match=r"not recognised(.|\n)*write one where only images and labels exist"):
        locate(DataSettings(path=str(tmp_path / "a")))
    write(tmp_path / "a/classes.txt", "cat\n")
    shutil.rmtree(tmp_path / "a/labels")
    with pytest.raises(AnnotationError, match="not recognised"):
        locate(DataSettings(path=str(tmp_path / "a")))


def test_a_file_of_class_names_does_not_make_other_formats_yolo(tmp_path: Path) -> None:
    save_image(tmp_path / "images/a.jpg")
    write(tmp_path / "labelTxt/a.txt", "1 1 9 1 9 9 1 9 ship 0\n")
    write(tmp_path / "train.txt", "a\n")
    write(tmp_path / "classes.txt", "ship\n")
    assert locate(DataSettings(path=str(tmp_path))).kind == "dota"


def test_a_split_without_images(tmp_path: Path) -> None:
    label_studio(tmp_path)
    for file in os.listdir(tmp_path / "images"):
        (tmp_path / "images" / file).unlink()
    refused(tmp_path, "'train' is images, where no images are; put them there; some exporters leave images out")
    assert check(tmp_path).splits[0].notes == {"label files without an image, left out": 2}
