"""Errors for users. Each message states what was expected, what was given, where, and the remedy.

LocdistillError
├── DataError            a data set that cannot be read in its stated format
│   ├── AnnotationError  broken annotations; lists all that were found
│   └── ImageError       an image that cannot be decoded, or lies outside its folder
│       └── PartialImageError  likewise, after the other pictures were processed (inference/predict.py)
├── RecipeError          a description of a run with an unknown key, a wrong type or an impossible combination
├── WeightsError         weights that are absent, truncated, foreign, or would run code
│   └── HubError         a model hub that cannot be reached, or does not have what was requested
├── TeacherError         a teacher that cannot teach this student
│   ├── CacheError       a cache of its predictions that is another one's, incomplete, or cannot be written
│   └── MismatchError    a teacher that does not match its student, beyond a bridge (distillation/compatible.py)
├── RunError             a run folder that is in the way or cannot be resumed, or a device that is not available
├── RunInterrupted       a run that was stopped by a signal, after a checkpoint
└── NonFiniteLossError   a loss term that became NaN or infinite

Errors with a file name in brackets carry objects of higher-level packages, and are defined there.
"""

from __future__ import annotations


class LocdistillError(Exception):
    """Base of every error of this package that is meant for users."""


class DataError(LocdistillError):
    """Data set that cannot be read in its stated format."""


class AnnotationError(DataError):
    """Broken annotations; the message lists all that were found."""


class ImageError(DataError):
    """Image that cannot be decoded, or whose path is outside the image folder."""


class RecipeError(LocdistillError):
    """Description of a run with an unknown key, a wrong type, or an impossible combination."""


class WeightsError(LocdistillError):
    """Weights that are absent, truncated, of another architecture, or would run code."""


class HubError(WeightsError):
    """Model hub that cannot be reached, denies access, or does not have what was requested."""


class TeacherError(LocdistillError):
    """Teacher that cannot teach this student."""


class CacheError(TeacherError):
    """Cache of a teacher's predictions that is another teacher's or run's, damaged, or cannot be written."""


class RunError(LocdistillError):
    """Run folder that is in the way or cannot be resumed, or a device that is not available."""


class RunInterrupted(LocdistillError):  # noqa: N818 (an event, not a mistake)
    """Training that was stopped by a signal, after a checkpoint.

    Attributes:
        signal_number: Number of the signal.
        exit_code: Exit status for a command line: 128 plus the signal's number.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number, self.exit_code = signal_number, 128 + signal_number

    def __reduce__(self) -> tuple[type[RunInterrupted], tuple[str, int]]:
        """Support pickling, so that the error passes between processes with its attributes."""
        return type(self), (str(self), self.signal_number)


class NonFiniteLossError(LocdistillError):
    """Loss term that became NaN or infinite.

    Attributes:
        terms: Names of the terms.
        step: Number of the optimiser step, from 1.
    """

    def __init__(self, message: str, terms: tuple[str, ...] = (), step: int = 0) -> None:
        super().__init__(message)
        self.terms, self.step = terms, step

    def __reduce__(self) -> tuple[type[NonFiniteLossError], tuple[str, tuple[str, ...], int]]:
        """Support pickling, so that the error passes between processes with its attributes."""
        return type(self), (str(self), self.terms, self.step)
