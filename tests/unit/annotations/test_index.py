"""What was read of a large data set is kept, and read again as soon as it is in doubt."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import locdistill
from locdistill.annotations import coco, dota, index, labelme, voc, yolo
from locdistill.annotations.files import Seen, look
from locdistill.annotations.sources import Source
from locdistill.data.open import open_dataset
from locdistill.data.settings import DataSettings
from locdistill.errors import ImageError
from tests.unit.annotations import test_exports as exports


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCDISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(index, "MANY_FILES", 1)
    monkeypatch.setattr(index, "LARGE_FILE", 1)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pictures that are looked at."""
    found: list[str] = []

    def spy(path: Path) -> Seen:
        found.append(path.name)
        return look(path)

    monkeypatch.setattr(index, "look", spy)
    return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the annotation files that are read."""
    found: list[str] = []
    read: Callable[..., Source] = coco.read_coco

    def spy(file: Path, **words: object) -> Source:
        found.append(file.name)
        return read(file, **words)

    monkeypatch.setattr(coco, "read_coco", spy)
    return found


def write(folder: Path, *, rotated: bool = False) -> Path:
    """Three pictures; two objects in the first, one in the second."""
    (folder / "images").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (40 + number, 30), (9, 9, 9)).save(folder / "images" / f"{number}é.png")
    boxes = [(0, [1, 2, 10, 12]), (0, [3, 4, 8, 9]), (1, [5, 6, 7, 8])]
    entries = [
        {"id": n, "image_id": i, "category_id": 1 + n % 2, "bbox": b, "area": 5 + n, "iscrowd": n % 2}
        | ({"rbox": [15, 15, 10, 6, 0.3]} if rotated else {})
        for n, (i, b) in enumerate(boxes)
    ]
    content = {
        "images": [{"id": n, "file_name": f"{n}é.png", "width": 40 + n, "height": 30} for n in range(3)],
        "annotations": entries,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def opened(folder: Path) -> list[tuple[object, ...]]:
    dataset = open_dataset(DataSettings(path=str(folder), filter_empty=False), "train", training=False)
    return [
        (
            *(record.path, record.image_id, record.width, record.height, record.boxes.tolist(), record.labels.tolist()),
            *(record.ignored.tolist(), record.areas.tolist()),
            None if record.quads is None else record.quads.tolist(),
        )
        for record in dataset.records
    ]


@pytest.mark.parametrize("rotated", [False, True])
def test_nothing_is_read_twice(rotated: bool, tmp_path: Path, looks: list[str], reads: list[str]) -> None:
    folder = write(tmp_path / "data", rotated=rotated)
    first = opened(folder)
    assert (len(looks), reads) == (3, ["train.json"])
    assert opened(folder) == first
    assert (len(looks), reads) == (3, ["train.json"])


def test_what_changed_is_read_again(tmp_path: Path, looks: list[str], reads: list[str]) -> None:
    folder = write(tmp_path / "data")
    opened(folder)
    looks.clear()
    Image.new("RGB", (41, 30), (1, 2, 3)).save(folder / "images" / "1é.png", compress_level=0)
    opened(folder)
    assert looks == ["1é.png"]
    content = json.loads((folder / "train.json").read_text())
    content["annotations"][0]["bbox"] = [1, 2, 10, 13]
    (folder / "train.json").write_text(json.dumps(content))
    os.utime(folder / "train.json", ns=(1, 1))  # as if within the resolution of the clock
    assert opened(folder)[0][4] == [[1, 2, 11, 15], [3, 4, 11, 13]]
    assert reads == ["train.json"] * 2


def test_a_picture_that_moved_is_found(tmp_path: Path, reads: list[str]) -> None:
    folder = write(tmp_path / "data")
    opened(folder)
    (folder / "images").rename(folder / "train")
    assert [record[0].parent.name for record in opened(folder)] == ["train"] * 3  # type: ignore[attr-defined]
    assert reads == ["train.json"] * 2


def test_faults_are_not_kept(tmp_path: Path, looks: list[str], reads: list[str]) -> None:
    folder = write(tmp_path / "data")
    (folder / "images" / "0é.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(Exception, match=r"0é\.png"):
            opened(folder)
    assert looks.count("0é.png") == 2
    content = json.loads((folder / "train.json").read_text())
    content["annotations"][0]["bbox"] = [1]
    (folder / "train.json").write_text(json.dumps(content))
    for _ in range(2):
        with pytest.raises(Exception, match="four finite numbers"):
            opened(folder)
    assert reads == ["train.json"] * 3


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_index_is_written_anew(damage: str, tmp_path: Path, reads: list[str]) -> None:
    folder = write(tmp_path / "data")
    first = opened(folder)
    kept = list((tmp_path / "home").rglob("*.npz"))
    assert len(kept) == 2
    for file in kept:
        content = {"cut": file.read_bytes()[:-50], "empty": b"", "other": b"no archive"}[damage]
        file.write_bytes(content)
    assert opened(folder) == opened(folder) == first
    assert len(reads) == 2


def test_a_folder_that_cannot_be_written_to_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "data")
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCDISTILL_HOME", str(tmp_path / "file"))
    with caplog.at_level("INFO", "locdistill"):
        assert opened(folder) == opened(folder)
    assert "what was read is not kept for the next run" in caplog.text


def test_arrays_are_equal_to_lists(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", rotated=True)
    source = coco.read_coco(folder / "train.json", root=folder, split="train")
    again = index._unpacked(index._packed(source), "")
    assert (again.file, again.categories, again.notes, again.labelled) == (
        source.file,
        source.categories,
        source.notes,
        source.labelled,
    )
    for one, other in zip(again.images, source.images, strict=True):
        assert (one.path, one.image_id, one.declared, one.where) == (
            other.path,
            other.image_id,
            other.declared,
            other.where,
        )
        for name in ("boxes", "categories", "ignored", "areas", "quads"):
            a, b = getattr(one, name), getattr(other, name)
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)


def write_dota(folder: Path) -> None:
    for split, names in exports.SPLITS:
        exports.pictures(folder / split / "images", names)
        exports.labels(folder / split / "labelTxt", names, exports.DOTA_ROWS)


@pytest.mark.parametrize(
    ("write_set", "module", "function", "label"),
    [
        (exports.labels_in_one_folder, yolo, "parse", "labels/img_0.txt"),
        (exports.roboflow_voc, voc, "_parse", "train/img_0.xml"),
        (write_dota, dota, "_parse", "train/labelTxt/img_0.txt"),
        (exports.shapes_in_one_folder, labelme, "_parse", "labels/img_0.json"),
    ],
)
def test_small_files_are_not_read_twice(
    write_set: Callable[[Path], None],
    module: object,
    function: str,
    label: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless one of them changed, or a picture was added, moved or taken away."""
    read: list[Path] = []
    parse = getattr(module, function)

    def spy(file: Path, **words: object) -> object:
        read.append(file)
        return parse(file, **words)

    monkeypatch.setattr(module, function, spy)
    folder = tmp_path / "data"
    write_set(folder)
    first = opened(folder)
    assert read
    read.clear()
    assert opened(folder) == first
    assert not read
    text = (folder / label).read_text()
    (folder / label).write_text(f"{text}\n")
    assert opened(folder) == first
    assert read
    picture = next(folder.rglob("img_0.jpg"))
    picture.rename(tmp_path / "img_0.jpg")
    with suppress(ImageError):  # of DOTA, where a label file without a picture is a fault
        assert all(record[0] != picture for record in opened(folder))
    (tmp_path / "img_0.jpg").rename(picture)
    assert opened(folder) == first
    read.clear()
    assert opened(folder) == first
    assert not read


@pytest.mark.parametrize(
    "write_set", [exports.roboflow_voc, exports.shapes_in_one_folder, exports.labels_in_one_folder]
)
def test_relative_paths(write_set: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as absolute ones, also of the folder itself, and of another folder by the same words."""
    for name in ("one", "other"):
        write_set(tmp_path / name)
    Image.new("RGB", (64, 64), (1, 2, 3)).save(next((tmp_path / "other").rglob("img_0.jpg")))
    for name in ("one", "other", "one"):
        monkeypatch.chdir(tmp_path / name)
        here, absolute = opened(Path()), opened(tmp_path / name)
        assert [record[1:] for record in here] == [record[1:] for record in absolute]
        assert [tmp_path / name / record[0] for record in here] == [record[0] for record in absolute]  # type: ignore[operator]


def test_a_block_reads_once_and_gives_copies(tmp_path: Path, looks: list[str], reads: list[str]) -> None:
    folder = write(tmp_path / "data")
    (tmp_path / "home").touch()  # nothing is kept
    with index.reading_once():
        first = opened(folder)
        settings = DataSettings(path=str(folder), holdout=0.4, filter_empty=False)
        parts = [open_dataset(settings, split, training=False) for split in ("train", "val")]
        assert sorted(len(part) for part in parts) == [1, 2]
        assert opened(folder) == first
        assert (len(looks), reads) == (3, ["train.json"])
        index.forget()
        assert opened(folder) == first
        assert len(reads) == 2
    opened(folder)
    assert len(reads) == 3


def test_a_run_reads_its_data_once(tmp_path: Path, looks: list[str], reads: list[str]) -> None:
    """To choose its settings and to train; the images to evaluate on are a tenth of those of the same file."""
    (tmp_path / "home").touch()
    folder = write(tmp_path / "data")
    overrides = (
        *("detector.backbone=test_resnet", "detector.pretrained=false", "engine.accelerator=cpu", "data.workers=0"),
        *("engine.steps=1", "engine.eval_every=0", "engine.progress=false", "data.sizes=[[64, 64]]", "data.min_side=8"),
        *("data.batch_per_device=2", "detector.channels=16", "detector.depth=1", "detector.norm_groups=4"),
    )
    locdistill.train(folder, out=tmp_path / "run", overrides=overrides)
    assert reads == ["train.json"]
    assert sorted(looks) == ["0é.png", "1é.png", "2é.png"]
    assert not index.remembered("seen", dict)
