"""Faults of a data set, collected and reported together."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from locdistill.errors import AnnotationError, DataError, ImageError

LINES = 50


@dataclass(frozen=True)
class Problem:
    """A fault that must be repaired before training.

    Attributes:
        file: The annotation file or image.
        where: The place in the file; empty for the whole file.
        what: The expected and the actual content.
        remedy: How to repair it.
        image: Whether the fault is in the image file rather than in an annotation.
    """

    file: str
    where: str
    what: str
    remedy: str
    image: bool = False

    def __str__(self) -> str:
        place = f"{self.file}: {self.where}" if self.where else self.file
        return f"{place}: {self.what}; {self.remedy}"


def error_of(problems: Sequence[Problem], name: str, path: str) -> DataError:
    """Build one error that lists all problems, at most ``LINES`` of them line by line.

    It is an `ImageError` if only image files are at fault, otherwise an `AnnotationError`.
    """
    kind = ImageError if all(problem.image for problem in problems) else AnnotationError
    if len(problems) == 1:
        return kind(str(problems[0]))
    lines = [f"{name}: {len(problems)} problems", *(f"  {problem}" for problem in problems[:LINES])]
    if len(problems) > LINES:
        lines.append(f"  ... and {len(problems) - LINES} more; 'locdistill data check {shlex.quote(path)}' lists all")
    return kind("\n".join(lines))
