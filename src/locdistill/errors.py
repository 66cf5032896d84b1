"""Errors for users. Each message states what was expected, what was given, where, and the remedy.

LocdistillError
├── DataError            a data set that cannot be read in its stated format
│   ├── AnnotationError  broken annotations; lists all that were found
│   └── ImageError       an image that cannot be decoded, or lies outside its folder
│       └── PartialImageError  likewise, after the other images were processed (inference/predict.py)
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
    """Base of every error that this package raises for a user to read."""


class DataError(LocdistillError):
    """A data set cannot be read as what it claims to be."""


class AnnotationError(DataError):
    """Annotations are broken; the message lists all offenders that were found."""


class ImageError(DataError):
    """An image cannot be decoded, or its path leaves the image folder."""


class RecipeError(LocdistillError):
    """A run description has an unknown key, a wrong type, or an impossible combination."""


class WeightsError(LocdistillError):
    """Weights are absent, truncated, of another architecture, or would run code."""


class HubError(WeightsError):
    """A model hub cannot be reached, does not let one in, or has not what was asked for."""


class TeacherError(LocdistillError):
    """A teacher cannot teach this student."""


class CacheError(TeacherError):
    """A cache of a teacher's predictions is another teacher's or run's, damaged, or cannot be written."""


class RunError(LocdistillError):
    """A run folder is in the way or cannot be resumed, or a device is not there."""


class RunInterrupted(LocdistillError):  # noqa: N818 (an event, not a mistake)
    """Training was asked to stop by a signal, and did so after a checkpoint.

    Attributes:
        signal_number: Of that signal.
        exit_code: What a command line should return: 128 plus the signal's number.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number, self.exit_code = signal_number, 128 + signal_number

    def __reduce__(self) -> tuple[type[RunInterrupted], tuple[str, int]]:
        """Come whole from a process beside this one."""
        return type(self), (str(self), self.signal_number)


class NonFiniteLossError(LocdistillError):
    """A loss term became NaN or infinite."""
