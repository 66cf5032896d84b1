"""Any image becomes upright 8-bit RGB, or one clear error."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from locdistill import images
from locdistill.errors import ImageError
from locdistill.images import (
    ORIENTATION_TAG,
    image_size,
    keep_ratio_size,
    normalised,
    pad_together,
    plain_jpeg_size,
    read_image,
    resize_keep_ratio,
)


def rows(*pixels: tuple[int, int, int]) -> torch.Tensor:
    """One row of RGB pixels as an image."""
    return torch.tensor(pixels, dtype=torch.uint8).T[:, None]


def palette_image(transparency: int | None) -> tuple[Image.Image, dict[str, object]]:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    return image, {} if transparency is None else {"transparency": transparency}


def from_pixels(mode: str, pixels: list[object]) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
CASES = {
    "gray": (from_pixels("L", [7, 200]), "png", {}, [(7, 7, 7), (200, 200, 200)]),
    "one bit": (from_pixels("1", [0, 255]), "png", {}, [BLACK, WHITE]),
    "palette": (*palette_image(None)[:1], "png", {}, [RED, BLUE]),
    "palette with a transparent colour": (palette_image(1)[0], "png", palette_image(1)[1], [RED, WHITE]),
    "gray with a transparent value": (from_pixels("L", [7, 9]), "png", {"transparency": 9}, [(7, 7, 7), WHITE]),
    "gray and alpha": (from_pixels("LA", [(10, 255), (10, 0)]), "png", {}, [(10, 10, 10), WHITE]),
    "colour and alpha": (
        from_pixels("RGBA", [(255, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 51)]),
        "png",
        {},
        [RED, WHITE, (204, 204, 204)],
    ),
    "cmyk": (from_pixels("CMYK", [(0, 255, 255, 0), (0, 0, 0, 255)]), "tiff", {}, [RED, BLACK]),
    "16 bits": (
        Image.fromarray(np.array([[0, 255, 256, 65535]], dtype=np.uint16)),
        "png",
        {},
        [BLACK, BLACK, (1, 1, 1), WHITE],
    ),
    "32 bits": (
        Image.fromarray(np.array([[-5, 512, 70000]], dtype=np.int32)),
        "tiff",
        {},
        [BLACK, (2, 2, 2), WHITE],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_mode_becomes_rgb(case: str, tmp_path: Path) -> None:
    image, suffix, options, expected = CASES[case]
    path = tmp_path / f"picture.{suffix}"
    image.save(path, **options)
    read = read_image(path)
    assert read.dtype == torch.uint8
    assert torch.equal(read, rows(*expected))
    assert image_size(path) == (1, len(expected))


def test_a_16_bit_tiff_of_the_other_byte_order(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (2, 1), b"\x01\x00\xff\xff")
    image.save(tmp_path / "big.tiff")
    assert torch.equal(read_image(tmp_path / "big.tiff"), rows((1, 1, 1), WHITE))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(pixels).save(path, exif=exif)
    read = read_image(path)
    with Image.open(path) as image:
        upright = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(read.permute(1, 2, 0).numpy(), upright)
    assert image_size(path) == tuple(read.shape[-2:]) == ((3, 2) if orientation >= 5 else (2, 3))
    # the stored first pixel ends up in this corner (EXIF 2.32): row, column
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert read[:, corner[orientation][0], corner[orientation][1]].tolist() == [0, 1, 2]


def test_exif_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3)).save(buffer, "png", exif=exif)
    raw = buffer.getvalue()
    start = raw.index(b"eXIf") - 4
    length = int.from_bytes(raw[start : start + 4], "big") + 12
    chunk, end = raw[start : start + length], raw.index(b"IEND") - 4
    path = tmp_path / "late.png"
    path.write_bytes(raw[:start] + raw[start + length : end] + chunk + raw[end:])
    assert image_size(path) == tuple(read_image(path).shape[-2:]) == (5, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_file_that_is_cut_off_is_an_error_that_names_it(suffix: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ImageError, match=rf"cut\.{suffix}: cannot be decoded"):
        read_image(path)


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth colours, as JPEG is made for."""
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 20}])
def test_a_plain_jpeg_has_the_pixels_that_pillow_sees(mode: str, options: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "photograph.jpg"
    photograph(61, 87).convert(mode).save(path, **options)
    with Image.open(path) as image:
        expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    read = read_image(path)
    assert torch.equal(read, expected)
    assert read.permute(1, 2, 0).is_contiguous()  # row by row, channels together


@pytest.mark.parametrize("case", ["cmyk", "turned", "png"])
def test_what_is_no_plain_jpeg_is_left_to_pillow(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.io.decode_jpeg", lambda *_, **__: pytest.fail("not for torchvision"))
    picture, path = photograph(30, 20), tmp_path / f"picture.{'png' if case == 'png' else 'jpg'}"
    exif = Image.Exif()
    exif[0x0112] = 6 if case == "turned" else 1
    (picture.convert("CMYK") if case == "cmyk" else picture).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), expected)


def test_pillow_reads_a_jpeg_that_torchvision_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("compiled without libjpeg")

    photograph(9, 11).save(tmp_path / "a.jpg")
    expected = read_image(tmp_path / "a.jpg")
    monkeypatch.setattr("torchvision.io.decode_jpeg", refuse)
    assert torch.equal(read_image(tmp_path / "a.jpg"), expected)


def test_other_files_are_errors_that_name_them(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(ImageError, match=r"text\.jpg: not an image"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(ImageError, match=r"text\.jpg: not an image"):
        image_size(tmp_path / "text.jpg")
    with pytest.raises(ImageError, match=r"absent\.png: there is no such image file"):
        read_image(str(tmp_path / "absent.png"))
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ImageError, match=r"float\.tiff: floating-point"):
        read_image(tmp_path / "float.tiff")


def test_arrays_and_tensors() -> None:
    colour = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert torch.equal(read_image(colour), torch.from_numpy(colour).permute(2, 0, 1))
    assert torch.equal(read_image(colour[..., 0]), torch.from_numpy(colour[..., :1]).permute(2, 0, 1).expand(3, 2, 2))
    assert read_image(np.array([[256, 65535]], dtype=np.uint16))[0].tolist() == [[1, 255]]
    assert read_image(np.array([[True, False]]))[0].tolist() == [[255, 0]]
    assert read_image(np.array([[[9, 9, 9, 0]]], dtype=np.uint8)).flatten().tolist() == [255] * 3
    tensor = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
    assert torch.equal(read_image(tensor), tensor)
    assert read_image(tensor[:1]).shape == (3, 2, 2)
    assert torch.equal(read_image(Image.fromarray(colour)), read_image(colour))


def test_reading_an_array_does_not_share_its_memory() -> None:
    array = np.zeros((2, 2, 3), dtype=np.uint8)
    image = read_image(array)
    array[:] = 9
    assert int(image.max()) == 0


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((2, 2, 2), np.uint8),
        np.zeros((2, 2), np.float64),
        np.zeros((0, 2, 3), np.uint8),
        torch.zeros(3, 2, 2),
        torch.zeros(2, 2, dtype=torch.uint8),
    ],
)
def test_arrays_that_are_no_pictures(source: object) -> None:
    with pytest.raises(ImageError, match="got"):
        read_image(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1067)),
        (427, 640, (800, 1199)),
        (640, 427, (1199, 800)),
        (100, 1000, (133, 1333)),
        (1, 4000, (1, 1333)),
    ],
)
def test_keep_ratio_size(height: int, width: int, expected: tuple[int, int]) -> None:
    assert keep_ratio_size(height, width, short=800, long=1333) == expected


def test_resize_keep_ratio() -> None:
    image = torch.full((3, 4, 8), 77, dtype=torch.uint8)
    larger = resize_keep_ratio(image, short=8, long=100)
    assert larger.shape == (3, 8, 16)
    assert bool((larger == 77).all())
    assert resize_keep_ratio(image, short=4, long=8) is image
    # Bilinear with half-pixel centres: the middle of a step from 0 to 100, enlarged twice, is at 25 and 75.
    step = torch.tensor([[0, 100]], dtype=torch.uint8).expand(3, 2, 2)
    assert resize_keep_ratio(step, short=4, long=4)[0, 0].tolist() == [0, 25, 75, 100]
    # Antialias: shrinking stripes of one pixel four times gives their mean, not one of them.
    stripes = torch.tensor([0, 200], dtype=torch.uint8).repeat(16).expand(3, 32, 32)
    assert resize_keep_ratio(stripes, short=8, long=8)[0, 4, 2:6].tolist() == [100] * 4


@pytest.mark.parametrize("worker", [None, object()])
def test_images_padded_together_lie_row_by_row(worker: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "get_worker_info", lambda: worker)
    first, second = (torch.full((3, *size), value, dtype=torch.uint8) for size, value in (((2, 5), 7), ((4, 3), 8)))
    batch = pad_together([first, second], height=4, width=6)
    expected = torch.zeros(2, 3, 4, 6, dtype=torch.uint8)
    expected[0, :, :2, :5], expected[1, :, :4, :3] = 7, 8
    assert torch.equal(batch, expected)
    assert batch.permute(0, 2, 3, 1).is_contiguous()
    assert batch.is_shared() == (worker is not None)  # where it is handed on, it need not be copied


@pytest.mark.parametrize("bgr", [False, True])
def test_normalising_gives_the_same_whatever_the_layout(bgr: bool) -> None:
    planes = torch.randint(0, 256, (2, 3, 6, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = planes.clone()
    mean, std = torch.tensor([123.675, 116.28, 103.53])[:, None, None], torch.tensor([58.4, 57.1, 57.4])[:, None, None]
    sizes = torch.tensor([[6, 9], [4, 5]])
    expected = ((planes.flip(1) if bgr else planes) - mean) / std  # exactly: the same operations in the same order
    expected[1, :, 4:], expected[1, :, :, 5:] = 0, 0
    for layout in (planes, planes.to(memory_format=torch.channels_last)):
        ready = normalised(layout, sizes, mean=mean, std=std, bgr=bgr)
        assert torch.equal(ready, expected)
        assert ready.is_contiguous()
    assert torch.equal(planes, before)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"shot by hand"}, {"dpi": (300, 300)}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_size_in_the_first_bytes_of_a_jpeg(mode: str, options: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    Image.new(mode, (37, 21)).save(file, **options)
    content = file.read_bytes()
    assert plain_jpeg_size(content[:1024]) == image_size(file) == (21, 37)
    frame = max(content.find(b"\xff\xc0\x00"), content.find(b"\xff\xc2\x00"))
    for end in range(frame + 9):
        assert plain_jpeg_size(content[:end]) is None


def test_files_whose_first_bytes_do_not_hold_the_size(tmp_path: Path) -> None:
    file, turned = tmp_path / "a.jpg", Image.Exif()
    turned[ORIENTATION_TAG] = 6
    Image.new("RGB", (37, 21)).save(file, exif=turned)
    assert plain_jpeg_size(file.read_bytes()) is None
    assert image_size(file) == (37, 21)
    Image.new("RGB", (37, 21)).save(file, icc_profile=b"0" * 5000)
    assert plain_jpeg_size(file.read_bytes()[:1024]) is None
    assert plain_jpeg_size(file.read_bytes()) == (21, 37)
    Image.new("RGB", (37, 21)).save(tmp_path / "a.png")
    for content in ((tmp_path / "a.png").read_bytes(), b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\0\0" + b"\0" * 99):
        assert plain_jpeg_size(content) is None


def test_a_jpeg_with_too_many_pixels_is_left_to_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (37, 21)).save(tmp_path / "a.jpg")
    monkeypatch.setenv("LOCDISTILL_MAX_PIXELS", "100")
    assert plain_jpeg_size((tmp_path / "a.jpg").read_bytes()) is None
