"""Names with the checksum of their file: ``NAME-<first 8 hexadecimal digits of the SHA-256>.safetensors``.

MMDetection, torchvision and timm name their published files the same way, so these can be checked too. Eight digits
that are a date are no checksum.
"""

from __future__ import annotations

import re
from pathlib import Path

from locdistill.errors import WeightsError
from locdistill.files import file_digest

_ENDING = re.compile(r"(?P<name>.+)-(?P<checksum>(?!(19|20)\d\d[01]\d[0-3]\d$)[0-9a-f]{8,64})")


def split_checksum(stem: str) -> tuple[str, str | None]:
    """Split a stem into name and checksum; None if it does not end in a checksum."""
    found = _ENDING.fullmatch(stem)
    return (found["name"], found["checksum"]) if found else (stem, None)


def check_checksum(path: Path) -> str:
    """Return the SHA-256 of a file, after checking it against the checksum in its name, if there is one.

    Raises:
        WeightsError: It does not match.
    """
    digest, (_, checksum) = file_digest(path), split_checksum(path.stem)
    if checksum is not None and not digest.startswith(checksum):
        raise WeightsError(
            f"{path}: the content does not match the name: its SHA-256 begins with {digest[:8]}, expected {checksum}; "
            "the file is damaged or was changed: download or copy it again"
        )
    return digest
