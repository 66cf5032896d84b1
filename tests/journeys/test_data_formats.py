"""``data check`` and batches of tiny DOTA and HRSC2016 folders, by the real command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from locdistill.geometry.rotated import corners
from tests.conftest import Answer

pytestmark = pytest.mark.journey
NAMES = ("ship", "plane", "harbor")
SIDE = 96


def draw(path: Path, seed: int) -> list[tuple[int, list[float]]]:
    """A picture with three turned bars; class and rotated box of each."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(20, 60, (SIDE, SIDE, 3), dtype=np.uint8))
    found = []
    for label in range(3):
        box = [*random.uniform(25, 70, 2), random.uniform(16, 30), random.uniform(6, 12), random.uniform(0, math.pi)]
        box = [float(value) for value in box]
        ImageDraw.Draw(image).polygon([tuple(p) for p in corners(torch.tensor(box)).tolist()], fill=(200, 90, 90))
        found.append((label, box))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return found


def write_dota(folder: Path) -> Path:
    for split, images in (("train", 4), ("val", 2)):
        (folder / split / "labelTxt").mkdir(parents=True)
        for i in range(images):
            name = f"P{len(split)}{i}"
            lines = ["imagesource:GoogleEarth", "gsd:0.2"]
            for label, box in draw(folder / split / "images" / f"{name}.png", i + 10 * images):
                points = corners(torch.tensor(box)).flatten().tolist()
                lines.append(" ".join([*(f"{value:.1f}" for value in points), NAMES[label], str(int(i == 1))]))
            (folder / split / "labelTxt" / f"{name}.txt").write_text("\n".join(lines))
    return folder


def write_hrsc(folder: Path) -> Path:
    for sub in ("FullDataSet/Annotations", "ImageSets"):
        (folder / sub).mkdir(parents=True)
    for i in range(4):
        objects = ""
        for _, box in draw(folder / "FullDataSet" / "AllImages" / f"10000{i}.bmp", i):
            numbers = zip(("cx", "cy", "w", "h", "ang"), box, strict=True)
            inner = "".join(f"<mbox_{name}>{value}</mbox_{name}>" for name, value in numbers)
            objects += f"<HRSC_Object><difficult>0</difficult>{inner}</HRSC_Object>"
        size = f"<Img_SizeWidth>{SIDE}</Img_SizeWidth><Img_SizeHeight>{SIDE}</Img_SizeHeight>"
        xml = f"<HRSC_Image>{size}<HRSC_Objects>{objects}</HRSC_Objects></HRSC_Image>"
        (folder / "FullDataSet" / "Annotations" / f"10000{i}.xml").write_text(xml)
    for name, images in (("trainval", (0, 1, 2)), ("test", (3,))):
        (folder / "ImageSets" / f"{name}.txt").write_text("".join(f"10000{i}\n" for i in images))
    return folder


def test_dota(tmp_path: Path, cli: Callable[..., Answer]) -> None:
    folder = write_dota(tmp_path / "dota")
    code, out, err = cli("data", "check", folder)
    assert code == 0, err + out
    for expected in (
        "dota: dota",
        "train: 4 images (0 without boxes), 12 boxes (3 ignored)",
        "rotated: ",
        "no problems",
    ):
        assert expected in out
    labels = folder / "val" / "labelTxt" / "P30.txt"
    first, *lines = labels.read_text().splitlines()[2:]
    x1, y1, x2, y2, *rest = first.split()
    crossed = " ".join([x2, y2, x1, y1, *rest])
    labels.write_text("\n".join([crossed, *lines, "1 2 3 ship 0", "1 2 3 4 5 6 7 nan ship 0"]))
    code, out, _ = cli("data", "check", folder, "--json")
    report = json.loads(out)
    assert code == 1
    assert [(Path(p["file"]).name, p["where"]) for p in report["problems"]] == [
        ("P30.txt", "line 4"),
        ("P30.txt", "line 5"),
    ]
    (val,) = (split for split in report["splits"] if split["name"] == "val")
    assert val["notes"] == {"quadrilaterals whose sides cross, corners put in order": 1}


def test_hrsc(tmp_path: Path, cli: Callable[..., Answer]) -> None:
    folder = write_hrsc(tmp_path / "hrsc")
    code, out, err = cli("data", "check", folder)
    assert code == 0, err + out
    for expected in ("hrsc: hrsc", "train: 3 images", "val: 1 images", "ship  9", "rotated: ", "no problems"):
        assert expected in out
    (folder / "FullDataSet" / "AllImages" / "100001.bmp").unlink()
    code, out, _ = cli("data", "check", folder)
    assert code == 1
    assert "100001.bmp: there is no such image file" in out
