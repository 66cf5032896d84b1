"""Large images by the command line: cut, detect, merge, evaluate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from shapely import Polygon
from shapely import box as rectangle

from locdistill import merge, tile
from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset, Record
from locdistill.data.settings import DataSettings
from locdistill.errors import DataError
from locdistill.evaluation.evaluator import Evaluator
from locdistill.evaluation.results import read_results, write_results
from locdistill.evaluation.voc import NAMES
from locdistill.geometry.rotated import canonical, corners, fit
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.types import Detections
from tests.conftest import Answer

pytestmark = pytest.mark.journey
Cli = Callable[..., Answer]
CLASSES = ("large vehicle", "ship")
COLOURS = ((200, 60, 50), (60, 90, 210))


def scene_boxes(width: int, height: int, rng: np.random.Generator) -> torch.Tensor:
    """Rotated boxes of all sizes up to what tiles have in common, one in each cell of a grid, so that none overlap."""
    cell = 190
    x, y = np.meshgrid(np.arange(cell // 2, width - cell // 2, cell), np.arange(cell // 2, height - cell // 2, cell))
    count = x.size
    sides = np.exp(rng.uniform(np.log(14), np.log(120), (count, 2)))
    columns = (x.ravel() + rng.uniform(-10, 10, count), y.ravel() + rng.uniform(-10, 10, count), *sides.T)
    return torch.tensor(np.column_stack((*columns, rng.uniform(-np.pi, np.pi, count))), dtype=torch.float64)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn picture of 3000 x 2500 pixels and a small one, as COCO with rotated boxes; treat as read-only."""
    folder, rng = tmp_path_factory.mktemp("scene"), np.random.default_rng(0)
    (folder / "images").mkdir()
    images, annotations = [], []
    for image_id, (width, height) in ((17, (3000, 2500)), (5, (700, 400))):
        picture = Image.new("RGB", (width, height), (90, 100, 90))
        canvas, boxes = ImageDraw.Draw(picture), scene_boxes(width, height, rng)
        for box, quad in zip(boxes.tolist(), corners(boxes), strict=True):
            category = int(rng.integers(2))
            canvas.polygon([tuple(corner) for corner in quad.tolist()], fill=COLOURS[category])
            (x1, y1), (x2, y2) = quad.amin(0).tolist(), quad.amax(0).tolist()
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": (4, 9)[category], "rbox": box}
            crowd = int(rng.random() < 0.05)
            annotations.append(entry | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": box[2] * box[3], "iscrowd": crowd})
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height})
        picture.save(folder / "images" / f"{image_id}.png")
    categories = [{"id": number, "name": name} for number, name in zip((4, 9), CLASSES, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "val.json").write_text(json.dumps(content))
    return folder


def perfect(dataset: Dataset, *, rng: np.random.Generator | None = None) -> dict[int, Detections]:
    """Every object as a detection; given a generator, in some angle range or other."""
    found = {}
    for record in dataset.records:
        assert record.quads is not None
        boxes = fit(torch.from_numpy(record.quads).double(), "oc")
        if rng is not None:
            ranges = rng.integers(3, size=len(boxes)).tolist()
            again = [canonical(box[None], ("oc", "le90", "le135")[r]) for box, r in zip(boxes, ranges, strict=True)]
            boxes = torch.cat([boxes[:0], *again])
        scores = torch.linspace(0.95, 0.05, len(boxes))
        found[record.image_id] = Detections(boxes.float(), scores, torch.from_numpy(record.labels))
    return found


def opened(path: Path) -> Dataset:
    return open_dataset(DataSettings(path=str(path)), "val", training=False)


@pytest.mark.parametrize(("scales", "another_range"), [((1.0,), False), ((0.5, 1.0, 1.5), True)])
def test_perfect_detections_have_ap_1_at_all_overlaps_after_tiling_and_merging(
    scene: Path, tmp_path: Path, scales: tuple[float, ...], another_range: bool
) -> None:
    tiled = tile(scene, tmp_path / "tiles", scales=scales)
    counts = tiled.as_dict()["splits"]["val"]
    assert counts["images"] == 2
    assert counts["tiles"] == {1: 4 * 3 + 1, 3: 4 * 3 + 1 + 2 * 2 + 1 + 6 * 5 + 2}[len(scales)]
    tiles = opened(tmp_path / "tiles")
    found = perfect(tiles, rng=np.random.default_rng(1) if another_range else None)
    assert sum(len(d.scores) for d in found.values()) > sum(len(r.boxes) for r in opened(scene).records)
    for results in (found, write_results(tmp_path / "found.json", tiles, found)):
        result = merge(results, tmp_path / "tiles", tmp_path / "merged", data=scene)
        assert {result.metrics[name] for name in ("AP", *NAMES)} == {1.0}
        assert result.dataset.classes == CLASSES
        # Nothing twice, nothing lost: crowd regions too are found once.
        assert [len(result.detections[r.image_id].scores) for r in result.dataset.records] == [
            len(r.boxes) for r in result.dataset.records
        ]
    whole = opened(scene)
    read = read_results(tmp_path / "merged" / "results.json", whole)
    assert Evaluator(whole, False)(read)["AP"] == 1.0


def test_the_two_verbs(cli: Cli, scene: Path, tmp_path: Path) -> None:
    tiles, merged = tmp_path / "tiles", tmp_path / "merged"
    words = ("data", "tile", scene, tiles, "--size", 640, "--overlap", 200, "--scale", 1, "--scale", 0.5)
    code, out, _ = cli(*words)
    assert code == 0
    assert out == f"val: 54 tiles of 2 images in {tiles / 'val'}\n"
    code, out, _ = cli(*words, "--json")
    assert json.loads(out)["splits"] == {"val": {"images": 2, "tiles": 54, "left_out": 0, "folder": str(tiles / "val")}}
    code, _, error = cli("data", "tile", scene, tiles, "--size", 512)
    assert code == 2
    assert "holds other content than the tiles of" in error
    code, _, error = cli("data", "tile", scene, tiles, "--scale", 0)
    assert (code, error.splitlines()[-2:]) == (
        2,
        ["RecipeError: tiling: 1 problem:", "  scales.0: expected greater than 0, came 0.0"],
    )
    assert cli("data", "check", tiles)[0] == 0

    found = perfect(opened(tiles))
    write_results(tmp_path / "found.json", opened(tiles), found)
    code, out, _ = cli("data", "merge", tmp_path / "found.json", tiles, "--out", merged)
    assert code == 0
    assert f"are in {merged / 'results.json'} and {merged / 'Task1.zip'}" in out
    assert "AP" not in out
    assert sorted(p.name for p in merged.iterdir()) == [
        "Task1.zip",
        "Task1_large vehicle.txt",
        "Task1_ship.txt",
        "results.json",
    ]
    words = ("data", "merge", tmp_path / "found.json", tiles, "-o", merged, "--data", scene, "--published-sum")
    code, out, _ = cli(*words)
    assert code == 0
    assert "Rotated boxes: metrics (%, area)" in out
    assert "running sum" in out
    code, out, _ = cli(*words, "--eleven-point", "--json")
    content = json.loads(out)
    assert content["metrics"]["AP"] == 1.0
    assert content["published_sum"]["AP95"] == pytest.approx(1.0714285714)
    assert content["task1"] == str(merged / "Task1.zip")
    code, _, error = cli(*words[:6], "--published-sum")
    assert (code, "no AP is computed here" in error) == (2, True)


def test_predictions_of_tile_files_are_merged_too(scene: Path, tmp_path: Path) -> None:
    tile(scene, tmp_path / "tiles")
    tiles = opened(tmp_path / "tiles")
    images = [
        {
            "image": str(record.path),
            "detections": [
                {"class": tiles.classes[label], "label": label, "score": score, "box": box}
                for box, score, label in zip(*(value.tolist() for value in here), strict=True)
            ],
        }
        for record, here in zip(tiles.records, perfect(tiles).values(), strict=True)
    ]
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps({"classes": tiles.classes, "images": images}))
    assert merge(file, tmp_path / "tiles" / "val", tmp_path / "merged", data=scene).metrics["AP"] == 1.0
    images[0]["image"] = "elsewhere.png"
    file.write_text(json.dumps({"classes": tiles.classes, "images": images}))
    with pytest.raises(DataError, match="no tile 'elsewhere', for which there are detections"):
        merge(file, tmp_path / "tiles", tmp_path / "merged")


def test_upright_boxes_are_tiled_and_merged_alike(tiny_coco: Path, tmp_path: Path) -> None:
    tile(tiny_coco, tmp_path / "tiles", size=80, overlap=60)
    assert sorted(path.name for path in (tmp_path / "tiles").iterdir()) == ["train", "val"]
    upright = opened(tmp_path / "tiles")
    assert not upright.oriented
    found = {
        r.image_id: Detections(torch.from_numpy(r.boxes), torch.full((len(r.boxes),), 0.9), torch.from_numpy(r.labels))
        for r in upright.records
    }
    result = merge(found, tmp_path / "tiles", tmp_path / "merged", data=tiny_coco)
    assert result.metrics["AP"] == pytest.approx(1.0)
    assert result.task1 is None
    again = read_results(tmp_path / "merged" / "results.json", result.dataset)
    assert all(here.boxes.shape[1] == 4 for here in again.values())


def test_objects_that_fit_no_tile_are_counted(cli: Cli, scene: Path, tmp_path: Path) -> None:
    code, out, _ = cli("data", "tile", scene, tmp_path / "tiles", "--size", 64, "--overlap", 8)
    left_out = json.loads((tmp_path / "tiles" / "val" / "windows.json").read_text())["left_out"]
    inside = {name for record in opened(scene).records for name in fits(record, side=64, step=56)}
    sought = sum(int((~record.ignored).sum()) for record in opened(scene).records)
    assert 0 < left_out == sought - len(inside)
    assert code == 0
    assert f"{left_out} objects were dropped" in out


def fits(record: Record, *, side: int, step: int) -> set[tuple[int, int]]:
    """Objects of which 0.7 or more lie in a tile, by shapely and the slow way."""
    assert record.quads is not None
    xs, ys = (
        sorted({min(start, length - side) for start in range(0, length, step)})
        for length in (record.width, record.height)
    )
    found = set()
    for index, quad in enumerate(record.quads):
        (x1, y1), (x2, y2) = quad.min(0), quad.max(0)
        for x in (x for x in xs if x1 - side < x < x2):
            for y in (y for y in ys if y1 - side < y < y2):
                part = Polygon(quad).intersection(rectangle(x, y, x + side, y + side)).area / Polygon(quad).area
                if part >= 0.7 and not record.ignored[index]:
                    found.add((record.image_id, index))
    return found


def test_nothing_is_cut_if_a_split_is_broken(tiny_coco: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_coco, data)
    file = next(data.rglob("*val*.json"))
    file.write_text(file.read_text().replace('"bbox"', '"box"', 1))
    with pytest.raises(DataError, match="not four finite numbers"):
        tile(data, tmp_path / "tiles", size=80, overlap=60)
    assert not (tmp_path / "tiles").exists()


def test_tiles_of_other_data_are_refused(scene: Path, tiny_coco: Path, tmp_path: Path) -> None:
    tile(scene, tmp_path / "tiles")
    with pytest.raises(DataError):
        merge({}, tmp_path / "tiles", tmp_path / "merged", data=tiny_coco)
    with pytest.raises(DataError, match="no tiles of split 'foo', only of val; use --split"):
        merge({}, tmp_path / "tiles", tmp_path / "merged", split="foo")
    with pytest.raises(DataError, match="no readable list of windows"):
        merge({}, tmp_path / "nothing", tmp_path / "merged")


@pytest.mark.parametrize("model", ["rotated_gfl", "gfl"])
def test_a_detector_looks_at_tiles(cli: Cli, scene: Path, tmp_path: Path, model: str) -> None:
    tiles = tmp_path / "tiles"
    assert cli("data", "tile", scene, tiles, "--size", 1280)[0] == 0
    settings = {"model": model, "backbone": "test_resnet", "pretrained": False, "classes": list(CLASSES)}
    small = {"channels": 8, "depth": 1, "norm_groups": 4, "levels": (5, 6), "input": {"short": 128, "long": 128}}
    torch.manual_seed(0)
    weights = Detector(DetectorSettings.model_validate(settings | small)).save(tmp_path / "w")
    every = ("-s", "detections.score_threshold=0.001", "-s", "detections.max_detections=7")
    found, merged = tmp_path / "found.json", tmp_path / "merged"
    assert cli("evaluate", weights, "--data", tiles, "--format-only", found, *every)[0] == 0
    entries = json.loads(found.read_text())
    assert len(entries) >= 10  # tiles
    assert {entry["category_name"] for entry in entries} <= set(settings["classes"])
    rotated = model == "rotated_gfl"
    assert all(("rbox" in entry) is rotated for entry in entries)
    code, out, _ = cli("data", "merge", found, tiles, "--out", merged, "--data", scene, "--iou", 1, "--json")
    assert code == 0
    content = json.loads(out)
    assert content["detections"] == len(entries)
    assert list(content["per_class"]) == list(CLASSES)
    assert ("task1" in content) is rotated
    labels = [entry["category_id"] for entry in json.loads((merged / "results.json").read_text())]
    numbers = {"ship": 9, "large vehicle": 4}
    assert sorted(labels) == sorted(numbers[entry["category_name"]] for entry in entries)

    code, out, error = cli("evaluate", weights, "--data", tiles, "--published-sum", "--area", "--json", *every)
    if rotated:
        content = json.loads(out)
        assert content["published_sum"]["AP50"] == content["metrics"]["AP50"]
    else:
        assert code == 2
        assert "by COCO's rules" in error
    pictures = (tiles / "val" / "images", "--save", tmp_path / "out", "--threshold", 0.001)
    assert cli("predict", weights, *pictures, "-s", "detections.max_detections=7")[0] == 0
    drawn = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {len(found["box"]) for image in drawn["images"] for found in image["detections"]} == {5 if rotated else 4}
    words = ("data", "merge", tmp_path / "out" / "predictions.json", tiles, "--out", tmp_path / "again", "--iou", 1)
    assert cli(*words)[0] == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert sorted(entry["category_id"] for entry in again) == sorted(labels)


def with_ignored(scene: Path, folder: Path) -> Path:
    """The same scene with one of its classes under a name that is to be ignored."""
    folder.mkdir()
    (folder / "images").symlink_to(scene / "images")
    for file in scene.glob("*.json"):
        content = json.loads(file.read_text())
        content["categories"][0]["name"] = "DontCare"
        (folder / file.name).write_text(json.dumps(content))
    return folder


def test_classes_to_be_ignored_stay_what_they_are(scene: Path, tmp_path: Path):
    """They are written under their own name, whatever is said when cutting, and ignored when merging."""
    data, ignore = with_ignored(scene, tmp_path / "data"), ["data.ignore_classes=[DontCare]"]
    cut_up = tile(data, tmp_path / "tiles", size=600, overlap=150, overrides=ignore, splits=["val"])
    text = "".join(file.read_text() for file in (cut_up.splits["val"].folder / "labelTxt").glob("*.txt"))
    assert "DontCare" in text
    settings = DataSettings(path=str(data), ignore_classes=("DontCare",))
    assert open_dataset(settings, "val", training=False).classes == CLASSES[1:]
    tiles = open_dataset(DataSettings(path=str(tmp_path / "tiles"), format="dota"), "val", training=False)
    perfect = {
        record.image_id: Detections(
            fit(torch.from_numpy(record.quads), "le90"), torch.ones(len(record.boxes)), torch.from_numpy(record.labels)
        )
        for record in tiles.records
    }
    merged = merge(perfect, tmp_path / "tiles", tmp_path / "merged", data=data, overrides=ignore)
    assert set(merged.dataset.classes) == {"ship"}
    assert merged.metrics["AP50"] == 1.0


def test_nothing_found_is_as_rotated_as_the_data(scene: Path, tmp_path: Path):
    tile(scene, tmp_path / "tiles", size=600, overlap=150, splits=["val"])
    merged = merge({}, tmp_path / "tiles", tmp_path / "merged", data=scene)
    assert merged.metrics["AP"] == 0
    assert (tmp_path / "merged" / "Task1.zip").is_file()


def test_detections_on_other_tiles_are_refused(scene: Path, tmp_path: Path):
    """Identifiers of tiles count from 1 in every cut; names of files tell them apart."""
    tile(scene, tmp_path / "some", size=600, overlap=150, splits=["val"])
    tile(scene, tmp_path / "others", size=512, overlap=100, splits=["val"])
    tiles = open_dataset(DataSettings(path=str(tmp_path / "some"), format="dota"), "val", training=False)
    one = Detections(torch.tensor([[50.0, 50, 20, 10, 0]]), torch.ones(1), torch.zeros(1, dtype=torch.int64))
    file = write_results(tmp_path / "found.json", tiles, {tiles.records[0].image_id: one})
    with pytest.raises(DataError, match="file_name is"):
        merge(file, tmp_path / "others", tmp_path / "merged")
