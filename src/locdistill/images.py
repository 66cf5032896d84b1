"""Reading of images: any file or array becomes 8-bit RGB, and is resized with its aspect ratio kept."""

from __future__ import annotations

import functools
import importlib
import io
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import get_worker_info

from locdistill.errors import ImageError

ImageSource: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor

FORMATS = {
    "JPEG": "Jpeg",
    "PNG": "Png",
    "BMP": "Bmp",
    "WEBP": "WebP",
    "TIFF": "Tiff",
    "GIF": "Gif",
    "PPM": "Ppm",
    "AVIF": "Avif",
    "JPEG2000": "Jpeg2K",
}
"""Image formats, and Pillow's modules for them; files with several JPEGs (MPO) count as JPEG. No others are read,
whatever the name of a file: Pillow opens by content, and of its other formats some start a program (EPS runs
Ghostscript) and most are read by rarely used code.
"""
MAX_PIXELS = "LOCDISTILL_MAX_PIXELS"
"""Environment variable that sets another limit than `MOST_PIXELS`."""
MOST_PIXELS = 400_000_000
"""Maximum number of pixels of an image: the largest of DOTA have 20 000 x 20 000, and 1.2 GB when decoded."""
ORIENTATION_TAG = 0x0112
JPEG_FRAMES = (0xC0, 0xC1, 0xC2)
"""Markers of baseline and progressive frames, which hold the size."""
JPEG_APART = (0xE1, 0xFF, 0x01, *range(0xD0, 0xDB))
"""Markers of EXIF, without a length, or behind the header."""
EXIF_BYTES = 2**16 + 64  # what JPEG allows, and so what is ever written, plus the end of a PNG file
# EXIF 2.32, table of the tag "Orientation": transformation that turns the stored pixels upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ScaledView(NamedTuple):
    """One view of an image.

    Attributes:
        scale: Factor of the limits of its size.
        flipped: Whether it is mirrored left and right, after resizing and before padding.
    """

    scale: float = 1.0
    flipped: bool = False

    def limits(self, *, short: int, long: int) -> tuple[int, int]:
        """Return the limits of both sides, ``short, long``, times the scale: whole numbers, at least 1."""
        return max(int(short * self.scale + 0.5), 1), max(int(long * self.scale + 0.5), 1)


@contextmanager
def open_picture(source: str | Path | BinaryIO | io.BytesIO, name: str = "") -> Iterator[Image.Image]:
    """Open an image with Pillow; the only place where this happens.

    Errors inside the ``with`` block count as decoding errors, because Pillow delays decoding until pixels are needed.

    Args:
        source: A path or an open file.
        name: Name of the file in errors; the path unless given.

    Raises:
        ImageError: It is in none of ``FORMATS``, has too many pixels, or cannot be decoded.
    """
    name = name or str(source)
    limit = pixel_limit()
    with _decoding(name):
        try:
            picture = Image.open(source, formats=_formats())
        except UnidentifiedImageError as error:
            raise ImageError(f"{name}: {_what_is_it(source)}; save it as PNG or JPEG") from error
        with picture:
            if picture.width * picture.height > limit:
                raise Image.DecompressionBombError
            yield picture


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of the formats that this Pillow supports."""
    for module in FORMATS.values():
        with suppress(ImportError):
            importlib.import_module(f"PIL.{module}ImagePlugin")
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _what_is_it(source: str | Path | BinaryIO | io.BytesIO) -> str:
    """Describe the format of an unsupported file by its first bytes; nothing is decoded."""
    with Path(source).open("rb") if isinstance(source, str | Path) else nullcontext(source) as file:
        file.seek(0)
        start = file.read(16)
    Image.init()  # all formats of Pillow, only to learn their names
    accepting: list[tuple[str, Callable[[bytes], bool | str] | None]] = [
        ("PDF", lambda prefix: prefix.startswith(b"%PDF"))
    ]
    accepting += [(name, accepts) for name, (_, accepts) in Image.OPEN.items() if name not in FORMATS]
    for name, accepts in accepting:
        with suppress(Exception):  # they expect longer files
            if accepts is not None and accepts(start) is True:
                return f"looks like {name}, which is not supported; expected {', '.join(_formats())}"
    return f"not an image in a supported format; expected {', '.join(_formats())}"


def pixel_limit() -> int:
    """Return the maximum number of pixels of an image: ``LOCDISTILL_MAX_PIXELS``, or else `MOST_PIXELS`.

    Raises:
        ImageError: The variable is no whole number above 0.
    """
    asked = os.environ.get(MAX_PIXELS) or str(MOST_PIXELS)
    if not asked.isdecimal() or int(asked) < 1:
        raise ImageError(f"{MAX_PIXELS}={asked}: expected a number of pixels, such as {MOST_PIXELS}")
    Image.MAX_IMAGE_PIXELS = int(asked)  # Pillow checks it as well
    return int(asked)


def read_image(source: ImageSource, *, bits: int | None = None) -> UInt8[Tensor, "3 h w"]:
    """Read an image as 8-bit RGB, upright.

    - Grayscale, 1-bit and palette images become RGB.
    - 16-bit grayscale images keep their upper eight bits (``value >> 8``); 32-bit integer ones are taken to hold 16
      bits. The rule is fixed and never depends on the content, so that equal light gives equal pixels in all images.
      With ``bits=12`` values are taken to be below 4096. Floating-point images are refused, because their range is not
      known.
    - Transparent pixels are laid over white, as in a browser (the reference implementation drops the alpha channel,
      which uncovers any colour that an editor left there).
    - CMYK is converted without a colour profile.
    - The EXIF orientation is applied, so that boxes drawn in an image viewer fit.
    - Of an animation, the first frame is read.

    Pillow reads every header, of the ``FORMATS`` alone, and at most ``pixel_limit()`` pixels. The pixels of an upright
    gray or colour JPEG file are decoded by torchvision, which uses the same library and gives the same values without
    Pillow's intermediate copy of four bytes per pixel; what it refuses, and everything else, is decoded by Pillow.
    (Unlike in Pillow, the library then reports repairable data on the standard error output.)

    Args:
        source: A path, a PIL image, an array ``(h, w)`` or ``(h, w, 1|3|4)`` of bool, uint8 or uint16 in RGB(A) order,
            or a tensor ``(1|3, h, w)`` of uint8.
        bits: Number of bits that the values of 16-bit images use; None: all. Larger values become white.

    Returns:
        The pixels. Their memory is laid out row by row with the three channels together (as decoders write it, and as
        resizing is fastest), so the tensor is not contiguous; call ``.contiguous()`` where that matters.

    Raises:
        ImageError: The file is missing, cannot be decoded, or the array is not an image.
    """
    if isinstance(source, Tensor):
        if source.ndim != 3 or source.shape[0] not in (1, 3) or 0 in source.shape:
            raise ImageError(f"expected an image tensor of shape (3, h, w) or (1, h, w), got {tuple(source.shape)}")
        if source.dtype != torch.uint8:
            raise ImageError(
                f"expected an image tensor of uint8 in 0..255, got {source.dtype}; pass the pixels, not normalised"
            )
        return source.expand(3, -1, -1)
    if isinstance(source, np.ndarray):
        return _from_array(source, bits)
    if isinstance(source, Image.Image):
        return _decode(source, str(getattr(source, "filename", "")) or "the given PIL image", bits)
    path = _existing(source)
    with path.open("rb") as file, open_picture(file, str(path)) as image:
        decoded = _decode_plain_jpeg(image, file)
        return _decode(image, str(path), bits) if decoded is None else decoded


def wide_range(path: str | Path) -> tuple[int, int] | None:
    """Return the smallest and the largest value of a 16-bit grayscale image; None for other images.

    Only images of that kind are decoded.

    Raises:
        ImageError: The file is missing, or cannot be decoded.
    """
    with open_picture(_existing(path)) as image:
        if not image.mode.startswith("I"):
            return None
        values = np.asarray(image)
        return int(values.min()), int(values.max())


def image_size(path: str | Path) -> tuple[int, int]:
    """Return height and width of an image file as `read_image` would return it, from its header alone.

    Raises:
        ImageError: The file is missing or is no image. Damage behind the header is not detected.
    """
    path = _existing(path)
    with open_picture(path) as image:
        width, height = image.size
        if image.format == "PNG" and "exif" not in image.info:
            # The block may follow the pixels, which Pillow would decode to find it: look at the end of the file first.
            with path.open("rb") as file:
                file.seek(max(file.seek(0, 2) - EXIF_BYTES, 0))
                if b"eXIf" not in file.read():
                    return height, width
        turned = orientation(image) >= 5
    return (width, height) if turned else (height, width)


def plain_jpeg_size(start: bytes) -> tuple[int, int] | None:
    """Return height and width of a JPEG file by its first bytes; None if Pillow must look at it.

    That is so for other formats, for files with a block that may turn the picture (APP1), for kinds other than baseline
    and progressive with 8 bits, and for sizes behind the given bytes. Source: ITU-T T.81, annex B.
    """
    place = 2 if start.startswith(b"\xff\xd8\xff") else len(start)
    while place + 9 <= len(start):
        if start[place] != 0xFF or start[place + 1] in JPEG_APART:
            return None
        if start[place + 1] in JPEG_FRAMES:
            precision, height, width = struct.unpack_from(">BHH", start, place + 4)
            return (height, width) if precision == 8 and 0 < height * width <= pixel_limit() else None
        place += 2 + struct.unpack_from(">H", start, place + 2)[0]
    return None


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) where there is none or it cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block is no reason to refuse the pixels, and Pillow raises many things for it
        return 1
    return value if value in UPRIGHT else 1


def keep_ratio_size(h: int, w: int, *, short: int, long: int) -> tuple[int, int]:
    """Compute the largest height and width of the same aspect ratio with sides within ``short`` and ``long``.

    ``s = min(long / max(h, w), short / min(h, w))`` and ``int(side * s + 0.5)`` per side, at least 1; the order of the
    two sides does not matter.
    """
    scale = min(long / max(h, w), short / min(h, w))
    return max(int(h * scale + 0.5), 1), max(int(w * scale + 0.5), 1)


def resize_keep_ratio(image: UInt8[Tensor, "3 h w"], *, short: int, long: int) -> UInt8[Tensor, "3 H W"]:
    """Resize to `keep_ratio_size`, bilinear, with the filter widened when shrinking (antialias).

    The reference implementation samples four pixels at any scale (cv2 bilinear), which skips pixels when shrinking by
    more than two; when enlarging the two agree up to rounding.
    """
    height, width = image.shape[-2:]
    size = keep_ratio_size(height, width, short=short, long=long)
    return resize_to(image, size)


def resize_to(image: UInt8[Tensor, "3 h w"], size: tuple[int, int], *, flipped: bool = False) -> UInt8[Tensor, "3 H W"]:
    """Resize to a given height and width as `resize_keep_ratio` does; the same image if it has that size already.

    With ``flipped`` it is mirrored left and right too: before or after resizing, where there are fewer pixels. The
    result is the same, because the filter is symmetric, up to one grey level where PyTorch resizes in floating point
    (on CPUs without AVX2).
    """
    first = flipped and image.shape[-2] * image.shape[-1] < size[0] * size[1]
    if first:
        image = image.flip(-1)
    if tuple(image.shape[-2:]) != tuple(size):
        from torchvision.transforms.v2.functional import resize  # noqa: PLC0415 - slow to import; most need no pixels

        image = resize(image, list(size), antialias=True)
    return image.flip(-1) if flipped and not first else image


def pad_together(images: Sequence[UInt8[Tensor, "3 _h _w"]], *, height: int, width: int) -> UInt8[Tensor, "b 3 H W"]:
    """Pad images with zeros right and bottom to one size, in one tensor.

    Its memory is laid out row by row with the three channels together, as that of images is: copying then moves whole
    rows, ten times as fast as sorting pixels into planes. In a worker of a data loader the memory is shared with the
    training process, so that nothing is copied in between.
    """
    shape = (len(images), height, width, 3)
    if get_worker_info() is None:
        canvas = torch.empty(shape, dtype=torch.uint8)
    else:  # as PyTorch's own collate functions do
        size = len(images) * height * width * 3
        storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
        canvas = torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
    batch = canvas.permute(0, 3, 1, 2)
    for place, image in zip(batch, images, strict=True):
        h, w = image.shape[-2:]
        place[:, :h, :w] = image
        place[:, :h, w:] = place[:, h:] = 0
    return batch


def normalised(
    images: UInt8[Tensor, "b 3 h w"],
    sizes: Int[Tensor, "b 2"],
    *,
    mean: Float[Tensor, "3 1 1"],
    std: Float[Tensor, "3 1 1"],
    bgr: bool,
) -> Float[Tensor, "b 3 h w"]:
    """Normalise images: ``(pixels - mean) / std``, and exactly 0 beyond each image's height and width.

    They are sorted into planes first, then computed in place: computing with three channels together is slow.

    Args:
        images: RGB images, padded, in any layout.
        sizes: Height and width of each without padding.
        mean: Mean of each channel, in the network's order.
        std: Standard deviation, likewise.
        bgr: Whether the network takes blue first.

    Returns:
        A new, contiguous tensor of the dtype of ``mean``.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) < sizes[:, :1]
    columns = torch.arange(width, device=images.device) < sizes[:, 1:]
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]
    planes = images.to(mean.dtype, memory_format=torch.contiguous_format)
    if bgr:
        planes = planes.flip(1)
    return planes.sub_(mean).div_(std).masked_fill_(~inside, 0.0)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not os.path.isfile(path):  # false for a name that no file can have
        raise ImageError(f"{path}: there is no such image file; check the path")
    return path


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn any error of a decoder into an `ImageError`; damaged files make Pillow raise almost anything."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        remedy = f"cut it into pieces, or allow more with {MAX_PIXELS}=NUMBER if you trust the file"
        raise ImageError(f"{name}: has more than {pixel_limit()} pixels; {remedy}") from error
    except Exception as error:
        detail = str(error) or type(error).__name__
        remedy = "the file is damaged or cut off, copy or export it again"
        raise ImageError(f"{name}: cannot be decoded ({detail}); {remedy}") from error


def _decode_plain_jpeg(image: Image.Image, file: BinaryIO) -> Tensor | None:
    """Decode an upright gray or colour JPEG file; return None where Pillow must decode it."""
    if image.format != "JPEG" or image.mode not in ("L", "RGB") or orientation(image) != 1:
        return None
    from torchvision.io import ImageReadMode, decode_jpeg  # noqa: PLC0415 - slow to import; most need no pixels

    file.seek(0)
    try:
        pixels: Tensor = decode_jpeg(torch.from_numpy(np.fromfile(file, np.uint8)), mode=ImageReadMode.RGB)
    except RuntimeError:  # damaged, of a rare kind, or torchvision was built without it
        return None
    return pixels


def _decode(image: Image.Image, name: str, bits: int | None) -> Tensor:
    with _decoding(name):
        turn = UPRIGHT.get(orientation(image))
        rgb = _to_rgb(image, name, bits)
        return torch.from_numpy(np.array(rgb if turn is None else rgb.transpose(turn))).permute(2, 0, 1)


def _to_rgb(image: Image.Image, name: str, bits: int | None) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I"):
        return Image.fromarray(_upper(np.asarray(image), bits)).convert("RGB")
    if mode == "F":
        raise ImageError(f"{name}: floating-point pixels have no agreed range; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _upper(values: np.ndarray, bits: int | None) -> np.ndarray:
    """Return the upper eight of a number of bits; None: of 16."""
    bits = bits or 16
    return (np.clip(values.astype(np.int64), 0, 2**bits - 1) >> (bits - 8)).astype(np.uint8)


def _from_array(array: np.ndarray, bits: int | None) -> Tensor:
    shaped = array[..., None] if array.ndim == 2 else array
    if shaped.ndim != 3 or shaped.shape[-1] not in (1, 3, 4) or 0 in shaped.shape:
        raise ImageError(f"expected an image array of shape (h, w) or (h, w, 1|3|4), got {tuple(array.shape)}")
    if shaped.dtype == np.bool_:
        shaped = shaped.astype(np.uint8) * 255
    elif shaped.dtype == np.uint16:
        shaped = _upper(shaped, bits)
    elif shaped.dtype != np.uint8:
        raise ImageError(
            f"expected an image array of bool, uint8 or uint16, got {array.dtype}; scale it to 0..255 uint8"
        )
    if shaped.shape[-1] == 1:
        shaped = np.repeat(shaped, 3, axis=-1)
    if shaped.shape[-1] == 4:
        return _decode(Image.fromarray(np.ascontiguousarray(shaped), "RGBA"), "the given array", bits)
    return torch.from_numpy(np.array(shaped, order="C")).permute(2, 0, 1)
