"""Every file of the house is whole or not there, whoever else writes it at the same time."""

from __future__ import annotations

import ast
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

import locdistill
from locdistill.data.records import Dataset, Record
from locdistill.data.tiling import TilingSettings, cut
from locdistill.engine.checkpoint import load_checkpoint, write_checkpoint
from locdistill.engine.log import MetricsFile
from locdistill.engine.result import RunState
from locdistill.evaluation.detections_file import read_detections, write_detections
from locdistill.evaluation.results import read_results, write_results
from locdistill.files import replacing, write_text
from locdistill.images import read_image
from locdistill.models import weights
from locdistill.types import Detections
from locdistill.viz.report import write_page

SIZE = 1_000_000
DATA = Dataset(
    "d/val",
    ("cat",),
    (Record(Path("1.png"), 1, 64, 64, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)),),
    "coco",
    (1,),
)
FOUND = {1: Detections(torch.rand(2000, 4).cumsum(1), torch.rand(2000), torch.zeros(2000, dtype=torch.int64))}


def _copied(path: Path) -> None:
    """Copy a file as downloads and exported files are."""
    with TemporaryDirectory() as there:
        source = Path(there) / path.name
        source.write_bytes(b"x" * SIZE)
        with replacing(path) as part:
            shutil.copyfile(source, part)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_text(path, "x" * SIZE),
    "page": lambda path: write_page(path, "title", []),
    "weights.safetensors": lambda path: weights.write(path, {"w": torch.zeros(100_000)}, settings={}),
    "checkpoint": lambda path: write_checkpoint({"w": torch.zeros(100_000)}, path),
    "metrics.csv": lambda path: MetricsFile(path, 0),
    "metrics.json": lambda path: RunState().write(path, 1.0),
    "results.json": lambda path: write_results(path, DATA, FOUND),
    "detections.npz": lambda path: write_detections(path, "stamp", {1: [FOUND[1]]}),
    "copied": _copied,
}
"""Each writer of a file, under the name of what it writes."""


def _write_often(name: str, path: Path, gate: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    for _ in range(10):
        WRITERS[name](path)


@pytest.mark.parametrize("name", WRITERS)
def test_threads_that_write_the_same_file_leave_one_and_nothing_beside(name: str, tmp_path: Path) -> None:
    target = tmp_path / "out" / name
    target.parent.mkdir()
    gate = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(_write_often, name, target, gate) for _ in range(4)]:
            job.result()
    assert os.listdir(target.parent) == [name]
    alone = tmp_path / "alone" / name
    alone.parent.mkdir()
    WRITERS[name](alone)
    if name not in ("checkpoint", "detections.npz", "metrics.json"):  # which note the time
        assert target.read_bytes() == alone.read_bytes()


def test_what_threads_left_can_be_read(tmp_path: Path) -> None:
    for name in ("checkpoint", "detections.npz", "results.json"):
        gate = threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _, name=name, gate=gate: _write_often(name, tmp_path / name, gate), range(4)))
    assert load_checkpoint(tmp_path / "checkpoint")["w"].shape == (100_000,)
    assert len(read_detections(tmp_path / "detections.npz", "stamp")[1][0].scores) == 2000
    assert len(read_results(tmp_path / "results.json", DATA)[1].scores) == 2000


def test_processes_that_write_the_same_file_leave_one_and_nothing_beside(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(4)
    processes = [context.Process(target=_write_often, args=("text", tmp_path / "a", gate)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").stat().st_size == SIZE


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    from locdistill.files import replacing

    path = tmp_path / "weights.bin"
    with replacing(path) as part:
        part.write_text("old")
    with pytest.raises(type(error)), replacing(path) as part:  # noqa: PT012
        part.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["weights.bin"]


def test_the_usual_mode_and_the_name_that_the_user_knows(tmp_path: Path) -> None:
    from locdistill.files import replacing

    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a") as part:
            part.unlink()
            os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "no" / "a"):
        pass
    assert caught.value.filename == str(tmp_path / "no" / "a")


def test_nobody_else_moves_files_into_place() -> None:
    package = Path(locdistill.__file__).parent
    moving = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and (
                node.func.attr == "rename"
                or (node.func.attr == "replace" and len(node.args) == 1 and not node.keywords)
            )
        )
        or (
            (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os")
            and node.attr in ("replace", "rename", "renames")
        )
    }
    # weights are named by their content, and a folder of tiles is one thing; both are beside the target until then
    assert moving == {"files.py", "publishing/publish.py", "data/tiling.py", "models/foreign.py"}


def test_processes_that_cut_the_same_tiles_leave_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.io import encode_png

    from locdistill.data import tiling

    def pixels(index: int) -> torch.Tensor:
        return torch.randint(0, 256, (3, 90, 130), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)

    records = []
    for index in range(6):
        path = tmp_path / f"{index}.png"
        path.write_bytes(encode_png(pixels(index)).numpy().tobytes())
        records.append(replace(DATA.records[0], path=path, image_id=index + 1, width=130, height=90))
    data = replace(DATA, records=tuple(records))
    read: list[str] = []
    monkeypatch.setattr(tiling, "read_image", lambda path, **how: (read.append(path.name), read_image(path, **how))[1])
    folder = tmp_path / "tiles" / "val"
    gate = threading.Barrier(4)

    def start(_: int) -> object:
        gate.wait()
        return cut(data, folder, TilingSettings(size=64, overlap=16), threads=2)

    with ThreadPoolExecutor(4) as pool:
        tiles = list(pool.map(start, range(4)))
    assert sorted(read) == [f"{index}.png" for index in range(6)]  # each once
    assert os.listdir(folder.parent) == ["val"]
    assert sorted(path.stem for path in (folder / "images").iterdir()) == sorted(tiles[0].windows)
    assert json.loads((folder / "windows.json").read_text())["name"] == "d/val"
