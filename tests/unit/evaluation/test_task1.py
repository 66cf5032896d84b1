"""Task-1 files of DOTA: lines, the first corner, and the zip file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch

from locdistill.data.records import Dataset, Record
from locdistill.errors import DataError
from locdistill.evaluation.task1 import from_upper_left, write_task1
from locdistill.geometry.rotated import corners
from locdistill.types import Detections

BOXES = torch.tensor([[100.0, 80.0, 60.0, 20.0, 0.5], [200.0, 90.0, 40.0, 40.0, 0.0], [50.5, 60.25, 12.0, 50.0, -1.2]])


@pytest.fixture
def data() -> Dataset:
    quads = corners(BOXES.double()).float().numpy()
    hulls = np.concatenate((quads.min(1), quads.max(1)), 1)
    records = tuple(
        Record(Path("images") / f"{name}.png", i, 300, 300, hulls, np.array([1, 0, 1]), np.zeros(3, bool), quads=quads)
        for i, name in enumerate(("P0003", "harbour view"), 11)
    )
    return Dataset("toy", ("plane", "large-vehicle", "ship"), records, "dota", (1, 2, 3), oriented=True)


@pytest.fixture
def found() -> dict[int, Detections]:
    here = Detections(BOXES, torch.tensor([0.9, 0.8, 0.123456]), torch.tensor([1, 0, 1]))
    return {11: here, 12: Detections(*(part[:1] for part in here))}


def test_lines_and_archive(tmp_path: Path, data: Dataset, found: dict[int, Detections]) -> None:
    archive = write_task1(data, found, tmp_path / "out")
    names = ["Task1_plane.txt", "Task1_large-vehicle.txt", "Task1_ship.txt"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([*names, "Task1.zip"])
    assert (tmp_path / "out" / names[0]).read_text() == (
        "P0003 0.80000 180.00 70.00 220.00 70.00 220.00 110.00 180.00 110.00\n"
    )
    assert (tmp_path / "out" / names[2]).read_text() == ""
    lines = (tmp_path / "out" / names[1]).read_text().splitlines()
    assert [line.rsplit(maxsplit=9)[:2] for line in lines] == [
        ["P0003", "0.90000"],
        ["P0003", "0.12346"],
        ["harbour view", "0.90000"],
    ]
    c, s = 30 * math.cos(0.5) - 10 * math.sin(0.5), 30 * math.sin(0.5) + 10 * math.cos(0.5)
    assert lines[0].split()[2:4] == [f"{100 - c:.2f}", f"{80 - s:.2f}"]
    with ZipFile(archive) as together:
        assert sorted(together.namelist()) == sorted(names)
        assert together.read(names[1]).decode() == (tmp_path / "out" / names[1]).read_text()


def test_the_first_corner_is_the_upper_left_one_whatever_the_name_of_the_box() -> None:
    box = torch.tensor([[50.0, 50.0, 40.0, 10.0, 0.2]], dtype=torch.float64)
    first = corners(box)[0]
    for turn in range(-2, 3):
        other = box.clone()
        other[0, 4] += turn * math.pi / 2
        if turn % 2:
            other[0, 2:4] = box[0, [3, 2]]
        torch.testing.assert_close(from_upper_left(corners(other))[0], first)
    assert from_upper_left(torch.zeros(0, 4, 2)).shape == (0, 4, 2)


def test_upright_boxes_have_their_corners(tmp_path: Path, data: Dataset) -> None:
    upright = {11: Detections(torch.tensor([[1.0, 2, 30, 40]]), torch.tensor([0.5]), torch.tensor([2]))}
    write_task1(data.as_oriented(False), upright, tmp_path)
    assert (tmp_path / "Task1_ship.txt").read_text() == "P0003 0.50000 1.00 2.00 30.00 2.00 30.00 40.00 1.00 40.00\n"


def test_what_cannot_be_told_apart_is_an_error(tmp_path: Path, data: Dataset) -> None:
    twice = replace(data, records=(data.records[0], replace(data.records[0], image_id=5)))
    with pytest.raises(DataError, match="a second image of the name 'P0003'"):
        write_task1(twice, {}, tmp_path)
    with pytest.raises(DataError, match="class 'a/b': no file can be called"):
        write_task1(replace(data, classes=("a/b", "c", "d")), {}, tmp_path)
