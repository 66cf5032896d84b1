"""Tiles of large images in DOTA's layout: what their names and the file beside them say of the original data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

WINDOWS = "windows.json"


class Origin(NamedTuple):
    """Facts about the original data that the label files of the tiles do not contain.

    Attributes:
        oriented: Whether the objects were rotated.
        classes: Class names by their names in label files, in the order of the original data.
    """

    oriented: bool
    classes: dict[str, str]


def origin(folder: Path) -> Origin | None:
    """Return the facts about the original data of tiles; None if `locdistill data tile` did not write the folder."""
    try:
        content = json.loads((folder / WINDOWS).read_text(encoding="utf-8"))
        return Origin(bool(content["oriented"]), {written_class(name): name for name in content["classes"]})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # Tiles.read reports the fault
        return None


def image_name(name: str) -> str:
    """Return the image name in a tile's name, also for names of other programs; any other name unchanged."""
    tile = re.fullmatch(r"(.+)__[\d.]+__-?\d+___-?\d+", name)
    return tile[1] if tile else name


def written_class(name: str) -> str:
    """Return the name of a class in label files."""
    return "-".join(name.split())
