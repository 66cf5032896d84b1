"""Detection in pictures and videos: what comes out, what is drawn and written, and what a stop leaves behind."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from locdistill.data.open import open_dataset
from locdistill.data.settings import DataSettings
from locdistill.errors import RecipeError, RunError, RunInterrupted
from locdistill.inference.predict import PartialImageError, predict, stream
from locdistill.inference.prediction import Prediction
from locdistill.inference.saving import WRITERS
from locdistill.inference.tiles import detect_in_tiles
from locdistill.models.detector import Detector
from locdistill.types import Detections
from tests.small import small_detector
from tests.unit.inference.test_inputs import LENGTH, write_video

ROTATED = torch.tensor([[40.0, 30.0, 20.0, 10.0, 0.5]])


def busy_detector(**changes: Any) -> Detector:
    """A detector with random weights that sees something everywhere."""
    torch.manual_seed(0)
    built = Detector(small_detector(**changes)).eval()
    nn.init.normal_(built.head.cls.weight, std=0.5)
    nn.init.constant_(built.head.cls.bias, -2)
    return built


@pytest.fixture(scope="module")
def detector() -> Detector:
    return busy_detector()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    (root / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.jpg", (64, 96)), ("below/a.png", (60, 80)), ("c.png", (96, 96))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name)
    return root


def decoded(path: Path) -> list[Any]:
    av = pytest.importorskip("av", reason="videos need PyAV: pip install 'locdistill[video]'")
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_pictures_and_videos_are_drawn_and_listed(detector: Detector, folder: Path, tmp_path: Path) -> None:
    write_video(folder / "clip.mkv")
    found = predict(detector, folder, save=tmp_path / "out", threshold=0.3, batch=3)
    out = tmp_path / "out"
    assert {str(each.picture.relative_to(out)) for each in found if each.picture} == {
        "a.jpg",
        "below/a.png",
        "c.png",
        "clip.mp4",
    }
    assert [each.number for each in found if each.number is not None] == list(range(LENGTH))
    assert np.asarray(Image.open(out / "a.jpg")).shape == (64, 96, 3)
    assert [frame.shape for frame in decoded(out / "clip.mp4")] == [(48, 64, 3)] * LENGTH
    written = json.loads((out / "predictions.json").read_text())["images"]
    assert written == [each.as_dict() for each in found]
    assert [each.get("frame") for each in written][-1] == LENGTH - 1
    assert not list(out.rglob("*.part"))


def test_a_stream_yields_the_same_and_keeps_its_pictures(detector: Detector, folder: Path) -> None:
    listed = predict(detector, folder, threshold=0.3)
    yielded = list(stream(detector, folder, threshold=0.3))
    assert [each.as_dict() for each in yielded] == [each.as_dict() for each in listed]
    assert [json.loads(each.to_json()) for each in yielded] == [each.as_dict() for each in yielded]
    assert all(each.pixels is None for each in listed)
    for one, other in zip(listed, yielded, strict=True):
        assert other.pixels is not None
        assert other.pixels.shape[1:] == (other.height, other.width)
        assert one.plot().tobytes() == other.plot().tobytes()


def test_a_stream_warns_of_broken_pictures_and_goes_on(
    detector: Detector, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "b.png").write_bytes(b"no picture")
    assert len(list(stream(detector, folder))) == 3
    assert "b.png" in caplog.text


def test_detections_are_written_for_other_programs(detector: Detector, folder: Path, tmp_path: Path) -> None:
    write_video(folder / "clip.mkv", length=2)
    out = tmp_path / "out"
    found = predict(detector, folder, save=out, threshold=0.2, formats=["coco", "yolo", "csv"])
    names = ["a.jpg", "below/a.png", "c.png", "clip_000000.jpg", "clip_000001.jpg"]
    total = sum(len(each.detections.scores) for each in found)
    assert total > 10
    rows = list(csv.DictReader((out / "detections.csv").open()))
    assert len(rows) == total
    assert set(rows[0]) == {"image", "frame", "seconds", "class", "score", "x1", "y1", "x2", "y2"}
    assert [row["image"] for row in rows if row["frame"] == "1"] == [names[4]] * len(found[4].detections.scores)
    coco = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == names
    for each, image in zip(found, coco["images"], strict=True):
        boxes = torch.tensor([a["bbox"] for a in coco["annotations"] if a["image_id"] == image["id"]]).reshape(-1, 4)
        corners = torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)
        torch.testing.assert_close(corners, each.detections.boxes, atol=0.011, rtol=0)
        lines = (out / "labels" / image["file_name"]).with_suffix(".txt").read_text().splitlines()
        values = torch.tensor([[float(word) for word in line.split()] for line in lines]).reshape(-1, 6)
        centre, side = values[:, 1:3], values[:, 3:5]
        size = torch.tensor([each.width, each.height])
        back = torch.cat((centre - side / 2, centre + side / 2), 1) * size.repeat(2)
        torch.testing.assert_close(back, each.detections.boxes, atol=2e-6 * max(each.width, each.height) + 1e-4, rtol=0)
        assert values[:, 0].long().tolist() == each.detections.labels.tolist()


def test_the_coco_file_is_a_data_set_of_its_own_pictures(detector: Detector, folder: Path, tmp_path: Path) -> None:
    """Detections become annotations to correct: the file opens as a data set beside the pictures."""
    found = predict(detector, folder, save=tmp_path / "out", threshold=0.2, formats=["coco"])
    settings = DataSettings(
        path=str(folder), train=str(tmp_path / "out" / "coco.json"), root=str(folder), format="coco"
    )
    dataset = open_dataset(settings, "train")
    assert [len(record.boxes) for record in dataset.records] == [len(each.detections.scores) for each in found]


def test_rotated_boxes_are_written_with_their_corners(detector: Detector, folder: Path, tmp_path: Path) -> None:
    here = Detections(ROTATED, torch.tensor([0.5]), torch.tensor([1]))
    found = [Prediction("a.jpg", 64, 96, here, ("x", "y"))]
    for write in WRITERS.values():
        write(tmp_path, found, ["a.jpg"])
    (entry,) = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    corners = torch.tensor(entry["segmentation"][0]).reshape(4, 2)
    torch.testing.assert_close(corners.mean(0), ROTATED[0, :2], atol=0.011, rtol=0)
    x, y, w, h = entry["bbox"]
    torch.testing.assert_close(torch.tensor([x, y]), corners.min(0).values, atol=0.011, rtol=0)
    assert w * h > 20 * 10
    words = (tmp_path / "labels" / "a.txt").read_text().split()
    assert len(words) == 1 + 8 + 1
    torch.testing.assert_close(
        torch.tensor([float(w) for w in words[1:9]]).reshape(4, 2) * torch.tensor([96, 64]), corners, atol=0.011, rtol=0
    )
    assert (tmp_path / "detections.csv").read_text().splitlines()[0].endswith("cx,cy,w,h,angle")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"formats": ["xml"], "save": "out"}, "format 'xml': expected coco, yolo, csv"),
        ({"formats": ["csv"]}, "format 'csv' needs a folder"),
        ({"tiles": (64, 64)}, "tiles of 64 pixels cannot overlap by 64"),
    ],
)
def test_wrong_words(detector: Detector, folder: Path, words: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        predict(detector, folder, **words)


def test_a_stop_leaves_whole_files(detector: Detector, folder: Path, tmp_path: Path) -> None:
    clip, out = write_video(folder / "clip.mkv"), tmp_path / "out"

    def stop_soon(items: Any, total: int | None) -> Any:
        assert total == LENGTH
        for number, item in enumerate(items):
            if number == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            yield item

    with pytest.raises(RunInterrupted, match="stopped after") as caught:
        predict(detector, clip, save=out, formats=["csv"], batch=2, progress=stop_soon)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    written = json.loads((out / "predictions.json").read_text())["images"]
    assert 6 <= len(written) <= 9
    assert len(decoded(out / "clip.mp4")) == len(written)
    assert not list(out.rglob("*.part"))


def test_a_full_disk_is_said(detector: Detector, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(RunError, match="No space left"):
        predict(detector, folder, save=tmp_path / "out")


@pytest.fixture
def from_colour(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Let the detector see one object where a picture is white, whole or cut; return the sizes that it is shown."""
    sizes = []

    def detect(images: list[torch.Tensor], *, batch: int = 8) -> list[Detections]:
        assert batch == 8
        found = []
        for image in images:
            sizes.append(tuple(image.shape[-2:]))
            white = (image[0] > 128).nonzero()
            boxes = torch.zeros(0, 4)
            if len(white):
                (y1, x1), (y2, x2) = white.min(0).values.tolist(), white.max(0).values.tolist()
                boxes = torch.tensor([[x1, y1, x2 + 1, y2 + 1]]).float()
            found.append(Detections(boxes, torch.full((len(boxes),), 0.9), torch.zeros(len(boxes), dtype=torch.long)))
        return found

    monkeypatch.setattr(detector, "detect", detect)
    return sizes


@pytest.mark.parametrize(("x", "y"), [(0, 0), (90, 40), (110, 88), (180, 130), (62, 50)])
def test_an_object_in_tiles_is_found_once_and_whole(
    detector: Detector, from_colour: list[tuple[int, ...]], x: int, y: int
) -> None:
    image = torch.zeros(3, 150, 200, dtype=torch.uint8)
    image[:, y : y + 20, x : x + 20] = 255
    found = detect_in_tiles(detector, image, 64, 24)
    assert found.boxes.tolist() == [[x, y, x + 20, y + 20]]
    assert from_colour[0] == (150, 200)
    assert set(from_colour[1:]) == {(64, 64)}


@pytest.mark.usefixtures("from_colour")
def test_an_object_larger_than_a_tile_is_found_in_the_whole_image(detector: Detector) -> None:
    image = torch.zeros(3, 150, 200, dtype=torch.uint8)
    image[:, 20:130, 30:170] = 255
    assert detect_in_tiles(detector, image, 64, 24).boxes.tolist() == [[30, 20, 170, 130]]


def test_tiles_of_a_real_detector(detector: Detector, folder: Path) -> None:
    small, large = (predict(detector, folder / "c.png", threshold=0.2, tiles=tiles)[0] for tiles in (None, 64))
    whole = predict(detector, folder / "c.png", threshold=0.2, tiles=96)[0]
    assert whole.as_dict() == small.as_dict()  # not larger than a tile
    assert large.as_dict() != small.as_dict()
    rotated = busy_detector(model="rotated_gfl")
    assert predict(rotated, folder / "c.png", threshold=0.2, tiles=64)[0].detections.boxes.shape[1] == 5


def test_detections_for_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Detections(ROTATED, torch.tensor([0.5]), torch.tensor([1]))
    prediction = Prediction("a.jpg", 64, 96, here, ("x", "y"))
    fake = ModuleType("supervision")
    fake.Detections = lambda **words: words  # type: ignore[attr-defined]
    fake.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "supervision", fake)
    words = prediction.to_supervision()
    assert words["xyxy"].shape == (1, 4)
    assert words["data"]["xyxyxyxy"].shape == (1, 4, 2)
    assert words["data"]["class_name"] == ["y"]
    monkeypatch.setitem(sys.modules, "supervision", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RunError, match="pip install supervision"):
        prediction.to_supervision()


def test_a_stream_without_end_is_taken_in_parts(detector: Detector, folder: Path) -> None:
    assert len(list(islice(stream(detector, write_video(folder / "clip.mkv"), batch=1), 3))) == 3


def test_partial_errors_carry_what_was_found(detector: Detector, folder: Path) -> None:
    (folder / "b.png").write_bytes(b"no picture")
    with pytest.raises(PartialImageError, match="3 of 4 images are done") as caught:
        predict(detector, folder)
    assert len(caught.value.found) == 3
