"""Which files are opened as pictures, whatever they are called: a list of formats, none of which starts a program."""

from __future__ import annotations

import ast
import io
import os
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from locdistill import images
from locdistill.annotations.files import look, look_closely
from locdistill.errors import ImageError
from locdistill.images import FORMATS, MAX_PIXELS, MOST_PIXELS, image_size, open_picture, pixel_limit, read_image
from locdistill.viz.report import Picture, Section, render_page

ROOT = Path(__file__).resolve().parents[2]
Image.init()
OTHERS = sorted(set(Image.OPEN) - set(FORMATS))


@pytest.fixture(autouse=True)
def _no_program_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **_: Any) -> None:
        pytest.fail(f"a program is started: {arguments}")

    for place, name in ((subprocess, "Popen"), (os, "system"), (os, "posix_spawn"), (os, "fork"), (os, "execv")):
        monkeypatch.setattr(place, name, refuse)


def written(name: str) -> bytes | None:
    """A small picture in a format; None where Pillow cannot write it."""
    for mode in ("RGB", "L", "1", "P", "RGBA"):
        buffer = io.BytesIO()
        try:
            Image.new(mode, (32, 32)).save(buffer, name)
        except (OSError, KeyError, ValueError, AttributeError, RuntimeError):
            continue
        return buffer.getvalue()
    return None


WRITTEN = {name: content for name in sorted(set(Image.OPEN) | {"PDF", "MPO"}) if (content := written(name))}


def _opened(path: Path) -> None:
    with open_picture(path) as picture:
        picture.load()


def ways(path: Path) -> dict[str, Callable[[], Any]]:
    """All that opens a file which somebody else gives."""
    return {
        "read": lambda: read_image(path),
        "size": lambda: image_size(path),
        "open": lambda: _opened(path),
        "page": lambda: render_page("a", [Section("b", [Picture(path)])]),
    }


@pytest.mark.parametrize("name", WRITTEN)
def test_only_the_formats_of_the_list_are_opened(name: str, tmp_path: Path) -> None:
    """A file that is called ``.jpg`` and holds any format that Pillow can write."""
    path = tmp_path / "picture.jpg"
    path.write_bytes(WRITTEN[name])
    for way in ways(path).values():
        if name in FORMATS or name == "MPO":
            way()
        else:
            with pytest.raises(ImageError, match=r"picture\.jpg: .*expected JPEG, PNG.*save it as PNG or JPEG"):
                way()
    for seen in (look(path), look_closely(path)):
        assert (seen.size == (32, 32)) == (name in FORMATS or name == "MPO")


def test_what_the_others_do_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the first step of a format that is not on the list: also of those that others register."""
    for name in [*OTHERS, "PLUGIN"]:
        monkeypatch.setitem(Image.OPEN, name, (lambda *_, n=name: pytest.fail(f"{n} is opened"), lambda _: True))
    if "PLUGIN" not in Image.ID:
        monkeypatch.setattr(Image, "ID", [*Image.ID, "PLUGIN"])
    for content in (b"\x89PNG\r\n\x1a\n" + bytes(20), b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(20), b"", b"\xff\xd8\xff"):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ImageError):
            read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["jpg", "eps", "png"])
def test_an_eps_is_refused_by_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{suffix}"
    path.write_bytes(WRITTEN["EPS"])
    with pytest.raises(
        ImageError, match=rf"picture\.{suffix}: looks like EPS, which is not supported; expected JP.*save"
    ):
        read_image(path)
    assert "EPS" in look(path).fault
    path.write_bytes(WRITTEN["PDF"])
    with pytest.raises(ImageError, match="looks like PDF"):
        read_image(path)


def test_the_list_holds_no_format_that_calls_a_program_or_is_not_there() -> None:
    assert not {"EPS", "PDF", "PS", "WMF", "EMF", "FITS", "IPTC", "HDF5", "GRIB", "BUFR"} & set(FORMATS)
    assert set(images._formats()) <= set(Image.OPEN)
    absent = [name for name, module in FORMATS.items() if find_spec(f"PIL.{module}ImagePlugin") is None]
    assert absent in ([], ["AVIF"])  # which came with Pillow 11.3
    assert {"JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM"} <= set(images._formats())


def test_a_picture_of_too_many_pixels_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within twice Pillow's limit, which warns, and beyond it, which fails; also where warnings are errors."""
    path = tmp_path / "bomb.png"
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(path)
    for limit in (1199, 100):
        monkeypatch.setenv(MAX_PIXELS, str(limit))
        for way in ways(path).values():
            with pytest.raises(ImageError, match=rf"bomb\.png: has more than {limit} pixels; .*{MAX_PIXELS}"):
                way()
    monkeypatch.setenv(MAX_PIXELS, "1200")
    assert read_image(path).shape == (3, 30, 40)
    monkeypatch.delenv(MAX_PIXELS)
    assert pixel_limit() == MOST_PIXELS
    assert read_image(path).shape == (3, 30, 40)
    monkeypatch.setenv(MAX_PIXELS, "many")
    with pytest.raises(ImageError, match=f"{MAX_PIXELS}=many: expected a number"):
        pixel_limit()


def _opens_with_pillow(path: Path) -> list[int]:
    """Lines that name ``Image.open`` of Pillow, in whatever spelling."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module == "PIL.Image"
            and any(a.name == "open" for a in node.names)
        ):
            found.append(node.lineno)
        if isinstance(node, ast.Attribute) and node.attr in ("open", "imread"):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if (node.attr == "open" and "Image" in name) or (node.attr == "imread" and name in ("plt", "image")):
                found.append(node.lineno)
    return found


def test_pictures_are_opened_in_one_place() -> None:
    files = [path for folder in ("src", "benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
    places = {path.relative_to(ROOT).as_posix(): lines for path in files if (lines := _opens_with_pillow(path))}
    apart = places.pop("examples/detect_without_torch.py")  # without this package, and of the same formats
    lines = (ROOT / "examples" / "detect_without_torch.py").read_text(encoding="utf-8").splitlines()
    assert all("formats=FORMATS" in lines[number - 1] for number in apart)
    assert list(places) == ["src/locdistill/images.py"]
    assert len(places["src/locdistill/images.py"]) == 1
