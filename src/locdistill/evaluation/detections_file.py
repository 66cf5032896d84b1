"""Files of detections, so that an interrupted or repeated evaluation need not process images again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from locdistill.files import replacing
from locdistill.types import Detections

_PARTS = Detections._fields


def write_detections(path: Path, stamp: str, found: Mapping[int, Sequence[Detections]]) -> None:
    """Write detections, the same number of sets for each image; the file is written atomically.

    Args:
        path: The file.
        stamp: Identifier of the model and the data that they come from.
        found: By image identifier.
    """
    here = list(chain.from_iterable(found.values()))
    content: dict[str, Any] = {part: torch.cat([getattr(one, part) for one in here]).numpy() for part in _PARTS}
    counts = np.array([len(one.scores) for one in here]).reshape(len(found), -1)
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, stamp=np.array(stamp), images=list(found), counts=counts, **content)


def read_detections(path: Path, stamp: str) -> dict[int, list[Detections]] | None:
    """Read the detections with this stamp, by image identifier; return None if there are none."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as kept:
        if str(kept["stamp"]) != stamp:
            return None
        counts = kept["counts"]
        parts = [torch.split(torch.from_numpy(kept[part]), counts.flatten().tolist()) for part in _PARTS]
        here = [Detections(*one) for one in zip(*parts, strict=True)]
        each = counts.shape[1]
        return {image: here[i * each : (i + 1) * each] for i, image in enumerate(kept["images"].tolist())}
