"""Data sets as people brought them to public threads: each is read as it should be, or refused in a line that helps.

The script that writes them is not part of the project (see `CASES`); without it these tests are skipped.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import NamedTuple

import pytest

import locdistill
from locdistill.data.check import check
from locdistill.data.open import open_dataset
from locdistill.data.settings import DataSettings
from locdistill.errors import DataError

pytestmark = [pytest.mark.journey, pytest.mark.usefixtures("no_pictures_of_runs")]
CASES = Path(os.environ.get("LOCDISTILL_CASES", Path(__file__).resolve().parents[3] / "shared" / "cases"))
SCRIPT = CASES / "make_cases.py"
CATS, CAT, BOX = ("cat", "dog"), ("cat",), [9.6, 11.2, 48, 40]


class Right(NamedTuple):
    """What is read: classes, images and boxes to train on, and something that is said."""

    classes: tuple[str, ...]
    images: int
    boxes: int
    said: str = ""


class Refused(NamedTuple):
    """Part of the message."""

    message: str


COCO, YOLO, VOC = Right(CATS, 4, 4), Right(CATS, 3, 3), Right(CAT, 3, 3)
WANTED: dict[str, Right | Refused] = {
    "01_category_ids_with_gaps": Right(("cat", "dog", "cow"), 4, 12),
    "02a_roboflow_root_class": COCO._replace(said="1 categories that only group others"),
    "02b_root_class_renamed_file": COCO._replace(said="1 categories that only group others"),
    "03_string_ids": COCO._replace(said="ids written as text"),
    "04_float_ids": COCO._replace(said="ids written as text or with a fraction of zero"),
    "05_annotation_id_twice": COCO._replace(said="3 annotation ids used twice"),
    "06_no_area_no_iscrowd": COCO,
    "07_everything_is_crowd": COCO._replace(said="no image has an object to learn"),
    "08a_backslashes": COCO._replace(said="4 file names with backslashes, read as slashes"),
    "08b_parent_backslashes": COCO._replace(said="found by the end of the name"),
    "08c_project_folder_in_name": COCO._replace(said="found by the end of the name"),
    "08d_absolute_names": COCO._replace(said="found by the end of the name"),
    "09a_label_studio_result_json": Right(CATS, 3, 3, "images held out of train by name"),
    "09b_cvat_instances_default": Right(CATS, 3, 3, "images held out of train by name"),
    "09c_cvat_subset_capital": COCO,
    "09d_fiftyone_data_labels": Right(CATS, 3, 3, "images held out of train by name"),
    "10_annotation_id_zero": COCO,
    "11a_negatives_same_image_id": Refused("image 4: the id is used twice; give each image its own id"),
    "11b_negative_written_as_zero_box": Right(CATS, 4, 4, "boxes with a side below 1 px, left out"),
    "12_only_negatives_in_train": Right(CATS, 4, 0, "no image has an object to learn"),
    "12b_half_negatives": Right(CATS, 4, 2, "4 images (2 without boxes)"),
    "13a_exif_boxes_on_upright": COCO,
    "13b_exif_declared_as_stored": Refused("declared as 96x64, but the file has 64x96; the picture is stored rotated"),
    "14_segmentation_without_bbox": COCO._replace(said="4 objects without a box, given the box around their mask"),
    "15_corners_instead_of_sides": Refused("4 of 4 boxes leave their images, and fit them as [x1, y1, x2, y2]"),
    "16_utf8_bom_and_cyrillic": Right(("кошка", "고양이"), 4, 4),
    "16b_latin1_json": Refused("saved in another encoding than UTF-8 (byte 0xe9 at"),
    "17_no_categories_used_in_val_only": Refused("has the classes ['cat', 'dog'], but train has ['cat']"),
    "18_captions_style_no_annotations_key": Refused("has no annotations"),
    "19_numbers_as_text": COCO._replace(said="16 numbers written as text, read as numbers"),
    "20_nan_in_json": Refused("box [nan, 1, 2, 3] is not four finite numbers"),
    "21a_roboflow_parent_paths": YOLO._replace(said="split 'test' (../test/images) that does not exist, left out"),
    "21b_path_of_another_machine": YOLO._replace(said="replaced by the folder of data.yaml"),
    "21c_quote_in_path": YOLO,
    "21d_path_repeats_folder": YOLO._replace(said="path that does not exist as written"),
    "22a_images_folder_is_link": YOLO,
    "22b_split_folder_is_link": YOLO,
    "22c_link_below_split": YOLO,
    "23a_some_polygons": Right(CATS, 3, 4, "1 polygons, replaced by the boxes around them"),
    "23b_confidence_column": YOLO._replace(said="3 label lines with a confidence in the sixth column, dropped"),
    "23c_obb_corners": YOLO._replace(said="3 label lines with four corners, read as rotated boxes"),
    "24a_slightly_outside": Right(CATS, 3, 6, "6 boxes up to 1% of a side outside the image, limited to it"),
    "24b_box_spills_over_edge": YOLO._replace(said="3 boxes that reach beyond the image"),
    "24c_pixels": Refused("values up to 40: these are pixels; YOLO rows are shares of the image's sides"),
    "24d_negative_size": Refused("the box has width -0.2"),
    "24e_zero_size": Right(CATS, 3, 6, "3 boxes with a width or height of 0"),
    "25a_capital_suffixes": YOLO,
    "25b_formats": Right(CATS, 10, 10, "pictures in formats that cannot be read (heic: 1), left out"),
    "25c_mpo_inside_jpg": YOLO,
    "26_cut_jpeg": Refused("the file is damaged or cut off"),
    "27a_16_bit_tif": YOLO._replace(said="set data.bits=12"),
    "28a_names_with_gap": Refused("'names' goes up to 2, but has no name for 1"),
    "28b_nc_differs": Refused("'nc' is 5, but 'names' has 2 classes (cat, dog)"),
    "28c_class_out_of_range": Refused("the class is 2; the data set has the classes 0 to 1"),
    "28d_names_missing_only_nc": Refused("'nc' (2) does not name the classes"),
    "28e_name_is_number_or_no": Right(("no", "5"), 3, 3),
    "29a_list_files_outside_root": Refused("list images below it, or set data.root to a folder above the images"),
    "29b_list_files_dot_slash": YOLO,
    "29c_list_files_backslash": YOLO,
    "30_val_is_train": Refused("all 3 images to evaluate on are trained on; name other images with data.val=NAME"),
    "31_label_in_local_code_page": Refused("saved in another encoding than UTF-8 (byte 0xe9 at"),
    "32_utf16_labels": YOLO,
    "33_unicode_names": YOLO,
    "34_labels_missing_for_most": Right(CATS, 4, 1, "3 images without a label file, taken as without objects"),
    "35_labels_folder_misnamed": Refused("none of the 3 images has a label file; looked for"),
    "36_orphan_labels": YOLO._replace(said="1 label files without an image, left out"),
    "37_comma_separated": YOLO._replace(said="3 label lines with commas, read"),
    "38_same_stem_two_suffixes": Right(CATS, 4, 4, "1 images that share their name"),
    "41_voc_float_corners": VOC._replace(said="boxes counted from 0, kept as they are"),
    "42_voc_background_image": Right(CAT, 3, 2, "boxes counted from 1, moved by one pixel"),
    "43_voc_zero_based_corner": VOC._replace(said="boxes counted from 0, kept as they are"),
    "44_voc_swapped_size": Refused("declared as 64x96, but the file has 96x64"),
    "45_voc_no_image_sets": Right(CAT, 5, 5, "images held out of train by name"),
    "46_voc_roboflow_flat": VOC,
    "51_dota_no_difficulty": Right(("ship",), 1, 1),
    "52_dota_corner_outside": Right(("ship",), 1, 1, "1 boxes that reach beyond the image"),
    "53_dota_header_gsd_null": Right(("ship",), 1, 1),
    "54_coco_rbox_degrees": Refused("the angle 45, more than a full turn: are these degrees?"),
    "54b_coco_rbox_small_degrees": COCO._replace(said="whose angle is in radians, clockwise"),
    "55_yolo_obb_dataset": Right(("ship",), 3, 3, "read as rotated boxes"),
}
FIRST_BOX = {
    "14_segmentation_without_bbox": [10, 10, 50, 40],
    "23a_some_polygons": [9.6, 6.4, 48, 38.4],
    "24a_slightly_outside": [76.5984, 11.2, 96, 40],
    "37_comma_separated": BOX,
    "41_voc_float_corners": [10.75, 10.75, 14.75, 14.75],
    "43_voc_zero_based_corner": [0, 0, 40, 30],
    "45_voc_no_image_sets": [10, 10, 49, 39],
}
TINY = (
    *("detector.backbone=test_resnet", "detector.pretrained=false", "engine.accelerator=cpu", "data.workers=0"),
    *("engine.steps=2", "engine.progress=false", "data.batch_per_device=2", "data.sizes=[[96, 96]]"),
    *("detector.channels=16", "detector.depth=1", "detector.norm_groups=4", "engine.precision=32"),
)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not SCRIPT.is_file():
        pytest.skip(f"no {SCRIPT}, which writes the cases; LOCDISTILL_CASES names another folder")
    folder = tmp_path_factory.mktemp("cases")
    for name, make in runpy.run_path(str(SCRIPT))["CASES"].items():
        (folder / name).mkdir()
        make(folder / name)
    return folder


def at(cases: Path, name: str) -> Path:
    return cases / name / "set" if name.startswith("29a") else cases / name


def test_every_case_is_known(cases: Path) -> None:
    assert set(WANTED) == {path.name for path in cases.iterdir() if not path.name.endswith("_store")}


@pytest.mark.parametrize("name", WANTED)
def test_it_is_read_or_refused(name: str, cases: Path) -> None:
    wanted, report = WANTED[name], check(at(cases, name))
    if isinstance(wanted, Refused):
        assert any(wanted.message in str(problem) for problem in report.problems), str(report)
        return
    assert report.ok, str(report)
    split = report.splits[0]
    dota = report.kind == "dota"  # has the fifteen classes of its first version
    assert tuple(name for name, count in split.per_class.items() if count or not dota) == wanted.classes
    assert (split.images, split.boxes) == (wanted.images, wanted.boxes)
    assert wanted.said in str(report)


@pytest.mark.parametrize("name", FIRST_BOX)
def test_its_first_box(name: str, cases: Path) -> None:
    dataset = open_dataset(DataSettings(path=str(at(cases, name))), "train", training=False)
    assert dataset.records[0].boxes[0].tolist() == pytest.approx(FIRST_BOX[name], abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, wanted in WANTED.items() if isinstance(wanted, Right)])
def test_it_trains(name: str, cases: Path, tmp_path: Path) -> None:
    locdistill.train(at(cases, name), out=tmp_path / "run", overrides=[*TINY])
    assert (tmp_path / "run" / "last.safetensors").is_file()


def test_a_refused_set_does_not_train(cases: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images to evaluate on are trained on"):
        locdistill.train(at(cases, "30_val_is_train"), out=tmp_path / "run", overrides=[*TINY])
