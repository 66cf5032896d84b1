"""Fixtures that all tests share."""

from __future__ import annotations

import os

# Read once, when PyTorch is imported; workers of xdist and processes that tests start inherit them. With one thread,
# sums are the same here and there, and two test processes fill two cores. Threads that wait sleep.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import ctypes
import gc
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image, ImageDraw

from tests import shape_checks

# A shared machine may take its time over an example, and over making it up; to be slow is no failure.
SLOW = [HealthCheck.too_slow]
settings.register_profile("locdistill", deadline=None, max_examples=50, derandomize=True, suppress_health_check=SLOW)
settings.load_profile("locdistill")
torch.set_num_threads(1)
shape_checks.install()

SHARED = Path(os.environ.get("LOCDISTILL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
CLASSES = ("disc", "box", "bar")
GROWTH = 100 * 2**20
_kept = [0]
Answer = tuple[int, str, str]
"""Exit code, standard output and standard error of a command."""


def _resident() -> int:
    """Bytes of this process in memory; 0 where that cannot be read."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Give memory back once tests have left some: networks in the tracebacks of expected errors, pages of the heap.

    Looking for garbage after each test would take longer than most of them.
    """
    yield
    if _resident() - _kept[0] > GROWTH:
        gc.collect()
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
        _kept[0] = _resident()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden arrays and real data, which lies beside the project and not in it."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED}: golden arrays and real data lie beside the project, see LOCDISTILL_SHARED")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Callable[[str], dict[str, np.ndarray]]:
    """Loader of the arrays that the executed reference produced."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = shared / "golden" / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"no golden file {path}")
        with np.load(path) as arrays:
            return dict(arrays)

    return load


def _draw_image(rng: np.random.Generator, objects: int) -> tuple[Image.Image, list[tuple[int, list[float]]]]:
    width, height = 128, 96
    image = Image.fromarray(rng.integers(90, 130, (height, width, 3), dtype=np.uint8))
    canvas, found = ImageDraw.Draw(image), []
    for _ in range(objects):
        label = int(rng.integers(3))
        w, h = (float(v) for v in rng.integers(20, 48, 2))
        x, y = float(rng.integers(0, int(width - w))), float(rng.integers(0, int(height - h)))
        colour = [(220, 40, 40), (40, 200, 60), (60, 80, 230)][label]
        shape = canvas.ellipse if label == 0 else canvas.rectangle
        shape((x, y, x + w - 1, y + h - 1), fill=colour)
        found.append((label, [x, y, w, h]))
    return image, found


def write_tiny_coco(folder: Path, *, train: int = 8, val: int = 4, seed: int = 0) -> Path:
    """Draw a seeded COCO folder: ``images/``, ``train.json``, ``val.json``; the second training image has no box."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    annotation_id = 1
    for split, count in (("train", train), ("val", val)):
        images, annotations = [], []
        for i in range(count):
            image_id = len(images) + (1 if split == "train" else 1001)
            objects = 0 if split == "train" and i == 1 else int(rng.integers(1, 4))
            picture, found = _draw_image(rng, objects)
            name = f"{split}_{i:03d}.png"
            picture.save(folder / "images" / name)
            images.append({"id": image_id, "file_name": name, "width": picture.width, "height": picture.height})
            for label, box in found:
                annotations.append(
                    {
                        "id": annotation_id,
                        "image_id": image_id,
                        "category_id": label + 1,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                )
                annotation_id += 1
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def tiny_coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded COCO folder of eight training and four validation images; treat as read-only."""
    return write_tiny_coco(tmp_path_factory.mktemp("tiny_coco"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is kept in the user's cache folder, or taken from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCDISTILL_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def zero_weights() -> Iterator[None]:
    """Networks begin at zero: random values take most of the time of building large ones, where others replace them."""

    def zero(tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        with torch.no_grad():
            return tensor.zero_()

    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "xavier_uniform_"):
            patch.setattr(torch.nn.init, name, zero)
        yield


@pytest.fixture(scope="module")
def no_pictures_of_runs() -> Iterator[None]:
    """Runs draw nothing, which takes half the time of a tiny one.

    Journeys look at the pictures in the folders of the main job and of a rotated run; test_charts draws curves.
    """
    from locdistill.training import fit

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_draw_batch", "_draw_labels", "_draw_results"):
            patch.setattr(fit, name, lambda *_: None)
        yield


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run the command line within this process."""
    from locdistill.cli import main

    def run(*words: object) -> Answer:
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run
