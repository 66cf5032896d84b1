"""A worker of the loader against OpenCV pipelines doing the same work on the same files, one thread each.

    python -m benchmarks.loader [--images FOLDER] [--json]

All decode, resize with the ratio kept into 1333 x 800, flip the same half of the images and pad to multiples of 32.
OpenCV's pipelines also normalise, in planes of float32; here the training process does that on the device, and its cost
is stated beside. There are two of them: ``toolbox`` takes the steps of MMDetection's transforms, most of which make a
new array; ``tuned`` does in place what can be. Compared are

- images: the pipelines up to finished images; ours with five boxes per image, and up to the batch;
- as a worker: all up to a batch in the memory that workers share with the training process.

All candidates take turns on every batch, so that a machine that gets slower does so for all. Numbers are medians of
processor time, so that other work on the machine is not counted; on a GPU of wall time.

Pictures of 480 x 640 are drawn (noise of all scales with rectangles, JPEG of quality 92, as large as photographs are)
unless a folder of real ones is given. Needs OpenCV, which the package does not:

    pip install --target cvlib opencv-python-headless
    PYTHONPATH=cvlib python -m benchmarks.loader
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import PIL
import torch
import torchvision
from benchmarks.machine import about
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from locdistill.data.loader import Pictures, training_plan
from locdistill.data.records import Dataset, Record
from locdistill.data.samplers import Draw
from locdistill.data.settings import DataSettings
from locdistill.images import (
    image_size,
    keep_ratio_size,
    normalised,
    open_picture,
    pad_together,
    read_image,
    resize_to,
)

try:
    import cv2
except ImportError:
    raise SystemExit(
        "this benchmark needs OpenCV: pip install --target DIR opencv-python-headless, PYTHONPATH=DIR"
    ) from None

SETTINGS = DataSettings(sizes=((1333, 800),), flip=0.5)
LONG, SHORT = SETTINGS.sizes[0]
MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])
OBJECTS = 5
SHARE = ", as a worker"
WORKER = "torch.utils.data.get_worker_info"
SUFFIXES = {".jpg", ".jpeg", ".png"}


def draw_pictures(folder: Path, count: int, size: tuple[int, int] = (480, 640)) -> None:
    """Noise whose strength grows with its scale, as in photographs, and some rectangles with sharp edges."""
    random = np.random.default_rng(0)
    height, width = size
    for i in range(count):
        pixels = np.full((height, width, 3), 128.0)
        for scale in (2, 4, 8, 16, 32, 64):
            coarse = random.normal(0, 1, (-(-height // scale), -(-width // scale), 3)).astype(np.float32)
            pixels += 2.2 * np.sqrt(scale) * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(OBJECTS):
            y, x = random.integers(0, height - 60), random.integers(0, width - 60)
            pixels[y : y + 60, x : x + 60] += random.normal(0, 40, 3)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.jpg", quality=92)


def pictures_of(files: Sequence[Path]) -> Pictures:
    """The files as a training set with a few boxes each."""
    records = []
    for i, file in enumerate(files):
        height, width = image_size(file)
        corners = np.random.default_rng(i).random((OBJECTS, 2)) * (width / 2, height / 2)
        sides = np.broadcast_to((width / 4, height / 4), (OBJECTS, 2))
        boxes = np.concatenate((corners, corners + sides), -1).astype(np.float32)
        ignored = np.zeros(OBJECTS, np.bool_)
        records.append(Record(file, i, width, height, boxes, np.zeros(OBJECTS, np.int64), ignored))
    dataset = Dataset("benchmark", ("object",), tuple(records), "coco", (1,))
    return Pictures(dataset, training_plan(SETTINGS, 0, len(records)))


def opencv_pixels(file: Path) -> np.ndarray:
    """Blue first, resized, 8 bits."""
    pixels = cv2.imread(str(file))
    height, width = keep_ratio_size(*pixels.shape[:2], short=SHORT, long=LONG)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)


def normalise_in_place(real: np.ndarray) -> None:
    """Red first, normalised."""
    cv2.cvtColor(real, cv2.COLOR_BGR2RGB, real)
    cv2.subtract(real, MEAN.reshape(1, -1), real)
    cv2.multiply(real, 1 / STD.reshape(1, -1), real)


def toolbox(pixels: np.ndarray, size: Sequence[int], *, flipped: bool) -> np.ndarray:
    """Step by step: flipped (a view), copied, converted, normalised, padded, in planes."""
    turned = np.flip(pixels, 1) if flipped else pixels
    real = turned.copy().astype(np.float32)
    normalise_in_place(real)
    below, beside = size[0] - real.shape[0], size[1] - real.shape[1]
    real = cv2.copyMakeBorder(real, 0, below, 0, beside, cv2.BORDER_CONSTANT, value=0)
    return np.ascontiguousarray(real.transpose(2, 0, 1))


def tuned(pixels: np.ndarray, size: Sequence[int], *, flipped: bool) -> np.ndarray:
    """The same with OpenCV's own flip, and without a copy."""
    real = (cv2.flip(pixels, 1) if flipped else pixels).astype(np.float32)
    normalise_in_place(real)
    whole = np.zeros((*size, 3), np.float32)
    whole[: real.shape[0], : real.shape[1]] = real
    return np.ascontiguousarray(whole.transpose(2, 0, 1))


PIPELINES = {"toolbox": toolbox, "tuned": tuned}


def opencv_images(name: str, files: Sequence[Path], flips: Sequence[bool]) -> list[np.ndarray]:
    """All that such a pipeline does to some images, padded to the largest of them."""
    pixels = [opencv_pixels(file) for file in files]
    size = padded([image.shape[:2] for image in pixels])
    return [PIPELINES[name](image, size, flipped=flip) for image, flip in zip(pixels, flips, strict=True)]


def opencv_worker(name: str, files: Sequence[Path], flips: Sequence[bool]) -> Tensor:
    """The same as one batch, in shared memory if called by a worker."""
    return default_collate([torch.from_numpy(image) for image in opencv_images(name, files, flips)])


def padded(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Height and width of a batch."""
    return [-(-max(sides) // SETTINGS.pad_to) * SETTINGS.pad_to for sides in zip(*sizes, strict=True)]


def in_planes(images: Sequence[Tensor], height: int, width: int) -> Tensor:
    """What `pad_together` does, with a batch that is laid out in planes."""
    batch = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch


def pillow(file: Path) -> Image.Image:
    """Decoded."""
    with open_picture(file) as image:
        return image.convert("RGB")


class Clock:
    """Seconds per image of named parts; gives back what a part gives."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = defaultdict(list)

    def time(self, name: str, images: int, work: Callable[[], Any], *, on_gpu: bool = False) -> Any:
        """Do it once."""
        now = time.perf_counter if on_gpu else time.process_time
        start = now()
        result = work()
        self._seconds[name].append((now() - start) / images)
        return result

    def medians(self, *, skip: int) -> dict[str, float]:
        """Without the first so many of each."""
        return {name: statistics.median(seconds[skip:]) for name, seconds in self._seconds.items()}


def time_parts(clock: Clock, files: Sequence[Path]) -> None:
    """Decoding, resizing, flipping and collating by each library that could do it."""
    n = len(files)
    ours = clock.time("decode: read_image (torchvision)", n, lambda: [read_image(f) for f in files])
    clock.time("decode: Pillow", n, lambda: [np.array(pillow(f)) for f in files])
    others = [pillow(f) for f in files]
    theirs = clock.time("decode: OpenCV", n, lambda: [cv2.imread(str(f)) for f in files])
    sizes = [keep_ratio_size(*image.shape[-2:], short=SHORT, long=LONG) for image in ours]
    bilinear, linear = Image.Resampling.BILINEAR, cv2.INTER_LINEAR
    ours = clock.time("resize: resize_to (torchvision)", n, lambda: [*map(resize_to, ours, sizes)])
    pairs = [(image, size[::-1]) for image, size in zip(others, sizes, strict=True)]
    others = clock.time("resize: Pillow", n, lambda: [image.resize(size, bilinear) for image, size in pairs])
    pairs = [(image, size[::-1]) for image, size in zip(theirs, sizes, strict=True)]
    theirs = clock.time("resize: OpenCV", n, lambda: [cv2.resize(i, size, interpolation=linear) for i, size in pairs])
    clock.time("flip: torchvision", n, lambda: [image.flip(-1) for image in ours])
    clock.time("flip: Pillow", n, lambda: [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in others])
    clock.time("flip: OpenCV", n, lambda: [cv2.flip(image, 1) for image in theirs])
    height, width = padded(sizes)
    clock.time("collate: pad_together", n, lambda: pad_together(ours, height=height, width=width))
    clock.time("collate: in planes", n, lambda: in_planes(ours, height, width))
    for name, ready in PIPELINES.items():
        work = partial(ready, size=(height, width), flipped=False)
        clock.time(f"rest: {name} (float32, normalise, pad, planes)", n, lambda work=work: [*map(work, theirs)])


def compare(files: Sequence[Path], rounds: int, batch: int) -> tuple[dict[str, float], int]:
    """Seconds per image of everything, and the largest difference of a pixel in grey levels."""
    pictures, clock, worst = pictures_of(files), Clock(), 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mean, std = (torch.tensor(v, dtype=torch.float32, device=device)[:, None, None] for v in (MEAN, STD))
    plan = training_plan(SETTINGS, 0, len(files))
    starts = range(0, len(files), batch)
    for epoch in range(rounds + 1):
        for start in starts:
            chosen = files[start : start + batch]
            draws = [Draw(start + i, epoch) for i in range(len(chosen))]
            flips, n = [plan.view(draw).flipped for draw in draws], len(chosen)
            ours = clock.time("ours", n, partial(pictures.__getitem__, draws))
            for name in PIPELINES:
                clock.time(name, n, partial(opencv_images, name, chosen, flips))
            with patch("locdistill.images.get_worker_info", object), patch(WORKER, object):
                clock.time(f"ours{SHARE}", n, partial(pictures.__getitem__, draws))
                for name in PIPELINES:
                    clock.time(f"{name}{SHARE}", n, partial(opencv_worker, name, chosen, flips))
            there = ours.images.to(device), ours.sizes.to(device)
            work = partial(on_device, *there, mean=mean, std=std)
            clock.time("normalise on the device", n, work, on_gpu=device.type == "cuda")
            time_parts(clock, chosen)
            if epoch == 0:
                theirs = [
                    opencv_pixels(f)[:, :: -1 if flip else 1, ::-1] for f, flip in zip(chosen, flips, strict=True)
                ]
                worst = max(worst, *(difference(*pair) for pair in zip(ours.images, theirs, strict=True)))
    return clock.medians(skip=len(starts)), worst


def on_device(images: Tensor, sizes: Tensor, *, mean: Tensor, std: Tensor) -> None:
    """What the training process does to a batch, until the device is done."""
    normalised(images, sizes, mean=mean, std=std, bgr=False)
    if images.is_cuda:
        torch.cuda.synchronize()


def difference(ours: Tensor, theirs: np.ndarray) -> int:
    """Largest difference in grey levels, where there is an image."""
    height, width = theirs.shape[:2]
    own = ours[:, :height, :width].permute(1, 2, 0).numpy()
    return int(np.abs(own.astype(np.int16) - theirs).max())


def report(files: Sequence[Path], rounds: int, batch: int) -> dict[str, Any]:
    seconds, worst = compare(files, rounds, batch)
    return {
        "about": about(),
        "libraries": {"torchvision": torchvision.__version__, "Pillow": PIL.__version__, "OpenCV": cv2.__version__},
        "files": {"count": len(files), "mean_bytes": sum(f.stat().st_size for f in files) // len(files)},
        "batch": batch,
        "rounds": rounds,
        "images_per_second_per_core": {name: 1 / value for name, value in seconds.items() if ":" not in name},
        "times_as_fast": {
            f"{name}{kind}": seconds[f"{name}{kind}"] / seconds[f"ours{kind}"]
            for kind in ("", SHARE)
            for name in PIPELINES
        },
        "largest_difference_in_grey_levels": worst,
        "seconds_per_image": seconds,
    }


def show(found: dict[str, Any]) -> None:
    for name, seconds in found["seconds_per_image"].items():
        print(f"{name:50}{seconds * 1e3:9.2f} ms per image")
    for name, rate in found["images_per_second_per_core"].items():
        print(f"{name:50}{rate:9.0f} images per second and core")
    for name, ratio in found["times_as_fast"].items():
        print(f"{f'as fast as {name}':50}{ratio:9.1f} times")
    print(f"largest difference of pixels: {found['largest_difference_in_grey_levels']} grey levels")
    print({key: found[key] for key in ("about", "libraries", "files", "batch", "rounds")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of photographs instead of drawn pictures")
    parser.add_argument("--count", type=int, default=32, help="of pictures")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="times that all files are gone through")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.images is None:
            draw_pictures(Path(folder), args.count)
        found = sorted(f for f in (args.images or Path(folder)).rglob("*") if f.suffix.lower() in SUFFIXES)
        if not found:
            raise SystemExit(f"{args.images}: no .jpg or .png file in it")
        outcome = report(found[: args.count], args.rounds, args.batch)
    print(json.dumps(outcome, indent=2)) if args.json else show(outcome)


if __name__ == "__main__":
    main()
