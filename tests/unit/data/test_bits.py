"""16-bit pictures whose values use fewer bits: read, trained, detected and tiled with ``data.bits``, and said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from locdistill.annotations.brightness import describe_brightness
from locdistill.data.loader import evaluation_loader, training_loader
from locdistill.data.open import open_dataset
from locdistill.data.settings import DataSettings
from locdistill.images import read_image, wide_range
from locdistill.inference.evaluate import evaluate
from locdistill.inference.evaluation_files import Findings, pair
from locdistill.inference.predict import predict
from locdistill.inference.tiles import tile
from locdistill.models.detector import Detector
from locdistill.models.settings import InputSettings
from locdistill.recipe.load import load_recipe
from locdistill.training.overfit.before import blank_images
from locdistill.training.overfit.overfit import draw
from tests.small import small_detector

WIDTH, HEIGHT = 96, 64
DARK, BRIGHT = 900, 3000


@pytest.fixture
def camera(tmp_path: Path) -> Path:
    """A data set of one picture of a 12-bit camera, in 16 bits."""
    values = np.full((HEIGHT, WIDTH), DARK, dtype=np.uint16)
    values[10:40, 10:50] = BRIGHT
    (tmp_path / "images").mkdir()
    Image.fromarray(values).save(tmp_path / "images" / "a.tif")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.3 0.4 0.4 0.45\n")
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: images\nval: images\n")
    return tmp_path


def test_bits_are_scaled_to_eight(camera: Path) -> None:
    file = camera / "images" / "a.tif"
    for bits, dark, bright in (
        (None, DARK >> 8, BRIGHT >> 8),
        (16, DARK >> 8, BRIGHT >> 8),
        (12, 56, 187),
        (10, 225, 255),
    ):
        for source in (file, np.asarray(Image.open(file)), Image.open(file)):
            image = read_image(source, bits=bits)
            assert image[:, 0, 0].tolist() == [dark] * 3
            assert image[:, 20, 20].tolist() == [bright] * 3
    assert read_image(np.array([[4095]], dtype=np.uint16), bits=12)[0].tolist() == [[255]]
    assert read_image(np.array([[7]], dtype=np.uint8), bits=12)[0].tolist() == [[7]]


def test_training_evaluation_and_tiles_read_so_many_bits(camera: Path) -> None:
    settings = DataSettings(path=str(camera), bits=12, sizes=((WIDTH, HEIGHT),), batch_per_device=1, workers=0, flip=0)
    dataset = open_dataset(settings, "val")
    (batch,) = training_loader(dataset, settings, seed=0)
    assert int(batch.images.max()) == BRIGHT >> 4
    limits = InputSettings(short=HEIGHT, long=WIDTH, bits=12)
    (batch,) = evaluation_loader(dataset, limits, workers=0)
    assert int(batch.images.max()) == BRIGHT >> 4
    cut = tile(camera, camera / "tiles", splits=["val"], size=96, overlap=0, overrides=["data.bits=12"])
    (picture,) = (cut.splits["val"].folder / "images").iterdir()
    assert int(read_image(picture)[:, :HEIGHT].max()) == BRIGHT >> 4


def test_a_detector_keeps_the_bits_it_was_trained_with(camera: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("gfl_r50_1x", ["data.bits=12"])
    assert recipe.detector.input.bits == recipe.data.bits == 12
    again = load_recipe("gfl_r50_1x", ["detector.input.bits=null", "data.bits=12"])  # a complete recipe has both
    assert again.detector.input.bits == 12
    assert load_recipe("gfl_r50_1x").detector.input.bits is None
    detector = Detector(small_detector(input=InputSettings(short=HEIGHT, long=WIDTH, bits=12)))
    file = camera / "images" / "a.tif"
    detector.save(camera / "detector.safetensors")
    loaded = Detector.load(camera / "detector.safetensors")
    seen: list[int] = []
    see = loaded.see
    monkeypatch.setattr(loaded, "see", lambda images, sizes: (seen.append(int(images.max())), see(images, sizes))[1])
    loaded.detect([file])
    predict(loaded, file)
    assert seen == [BRIGHT >> 4] * 2


def test_the_range_of_values_is_said(camera: Path) -> None:
    files = [camera / "images" / "a.tif", camera / "images" / "b.png", camera / "images" / "c.png"]
    files[1].write_bytes(b"damaged")
    Image.new("RGB", (8, 8)).save(files[2])
    assert wide_range(files[0]) == (DARK, BRIGHT)
    assert wide_range(files[2]) is None
    line, warning = describe_brightness(files, None)
    assert line.startswith("1 pictures of 16 bits have values from 900 to 3000, of 0 to 65535, and so become nearly")
    assert line.endswith("set data.bits=12")
    assert warning
    assert describe_brightness(files, 12) == ("1 pictures of 16 bits have values from 900 to 3000, of 0 to 4095", False)
    assert describe_brightness(files, 10)[0].endswith("the larger ones become white; set data.bits=12")
    assert describe_brightness(files[1:], None) == ("", False)
    assert torch.equal(read_image(files[0], bits=12).amax(), torch.tensor(BRIGHT >> 4, dtype=torch.uint8))


def test_pictures_are_drawn_with_the_bits_that_were_trained_on(camera: Path, tmp_path: Path) -> None:
    dataset = open_dataset(DataSettings(path=str(camera), bits=12), "val")
    (record,) = dataset.records
    assert int(dataset.picture(record).max()) == BRIGHT >> 4
    drawn = np.asarray(pair(Findings(dataset, {}), record, WIDTH))
    assert (drawn == BRIGHT >> 4).all(-1).any()
    draw(tmp_path / "sheet.png", dataset, {})
    assert (np.asarray(Image.open(tmp_path / "sheet.png").convert("L")) == BRIGHT >> 4).any()
    assert blank_images(dataset) == ()
    detector = Detector(small_detector(classes=("cat",), input=InputSettings(short=HEIGHT, long=WIDTH, bits=12)))
    detector.save(camera / "detector.safetensors")
    result = evaluate(camera / "detector.safetensors", camera, overrides=["data.workers=0"])
    assert result.dataset.bits == 12
    (prediction,) = predict(detector, record.path)
    assert (np.asarray(prediction.plot().convert("L")) == BRIGHT >> 4).any()
