"""COCO files as exporters and people write them: read as they are with a note, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from locdistill.data.files import read_text
from locdistill.errors import AnnotationError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_in_an_encoding_that_is_unambiguous(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('{"a": "café 고양이"}'.encode(encoding))
    assert read_text(tmp_path / "a.json") == '{"a": "café 고양이"}'


@pytest.mark.parametrize(
    ("encoding", "byte"), [("latin-1", "0xe9 at 10"), ("cp1251", "0xe9 at 10"), ("utf-16-le", "0x00 at 1")]
)
def test_text_in_another_encoding_is_named_as_such(encoding: str, byte: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('{"a": "caf'.encode(encoding) + (b"\xe9" if encoding != "utf-16-le" else b""))
    with pytest.raises(AnnotationError, match=f"another encoding than UTF-8 .byte {byte}.; save it as UTF-8"):
        read_text(tmp_path / "a.json")


def test_text_that_cannot_be_read_or_is_absent(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "absent.txt")
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_text(tmp_path)
