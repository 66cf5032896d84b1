"""What is broken in a data set, collected before anything is said."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from locdistill.errors import AnnotationError, DataError, ImageError

LINES = 50


@dataclass(frozen=True)
class Problem:
    """Something that must be repaired before training.

    Attributes:
        file: The annotation file or image.
        where: The place in it; empty where the whole file is meant.
        what: What was expected and what came.
        remedy: What to do.
        image: Whether the image file is at fault rather than an annotation.
    """

    file: str
    where: str
    what: str
    remedy: str
    image: bool = False

    def __str__(self) -> str:
        place = f"{self.file}: {self.where}" if self.where else self.file
        return f"{place}: {self.what}; {self.remedy}"

    def as_dict(self) -> dict[str, object]:
        """The fields, for JSON."""
        return asdict(self)


def error_of(problems: Sequence[Problem], name: str, path: str) -> DataError:
    """One error that lists all problems, at most ``LINES`` of them line by line.

    An `ImageError` where only image files are at fault, an `AnnotationError` otherwise.
    """
    kind = ImageError if all(problem.image for problem in problems) else AnnotationError
    if len(problems) == 1:
        return kind(str(problems[0]))
    lines = [f"{name}: {len(problems)} problems", *(f"  {problem}" for problem in problems[:LINES])]
    if len(problems) > LINES:
        lines.append(f"  ... and {len(problems) - LINES} more; 'locdistill data check {shlex.quote(path)}' lists all")
    return kind("\n".join(lines))
