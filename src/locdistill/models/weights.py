"""Weights files: read without running code, written atomically, compared key by key."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from locdistill.errors import RecipeError, WeightsError
from locdistill.files import replacing
from locdistill.interop.pickles import read_checkpoint

SUFFIX = ".safetensors"
EXPORTED = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}
"""Formats of exported files by their suffix; the extras of the package that read them have the same names."""
CHECKPOINT = ".ckpt"
METADATA_KEY = "locdistill"
FORMAT = 1
THRESHOLDS = "thresholds"
# Counter of batches; old versions of PyTorch have none.
COUNTER = "num_batches_tracked"
# Names under which training programs nest a state dict in a checkpoint.
NESTED = ("state_dict", "model", "module")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file or from a PyTorch checkpoint, on the CPU.

    A checkpoint may nest it under ``state_dict``, ``model`` or ``module``, and may carry the prefix ``module.`` of
    data-parallel training. No code in it is run: see `interop.pickles`.

    Raises:
        WeightsError: The file is absent, damaged, would run code, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; check the path")
    content = read_tensors(path) if path.suffix == SUFFIX else read_checkpoint(path)
    for name in NESTED:
        if isinstance(content.get(name), Mapping):
            content = dict(content[name])
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path}: expected a state dict (names to tensors), got keys {_few(list(content))}")
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return content


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        WeightsError: The file is damaged or has another format.
    """
    try:
        return dict(safetensors.torch.load_file(path, device=str(device)))
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged or no safetensors file ({error}); copy or download it again") from error


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata that `write` stored with the tensors: ``format``, ``settings``, ``extra``.

    Raises:
        WeightsError: The file is absent, damaged, not written by this package, or by a later version of it.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; check the path")
    if path.suffix == CHECKPOINT:
        names = ("best", "last")
        there = next((name for name in names if (path.parent / f"{name}{SUFFIX}").is_file()), names[0])
        raise WeightsError(
            f"{path}: a checkpoint to resume training from (--resume), but expected weights ({SUFFIX}): give "
            f"{path.parent / there} instead"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged or no safetensors file ({error}); copy or download it again") from error
    if text is None:
        raise WeightsError(
            f"{path}: a safetensors file, but not a detector saved by locdistill (no '{METADATA_KEY}' in its metadata);"
            " weights of a backbone go into 'detector.pretrained'"
        )
    try:
        metadata = json.loads(text)
        version = int(metadata["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: the '{METADATA_KEY}' metadata cannot be read ({error!r})") from error
    if version > FORMAT:
        raise WeightsError(f"{path}: written in format {version}; this version reads up to {FORMAT}: update locdistill")
    return dict(metadata)


def write(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    settings: dict[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write tensors and their description to a safetensors file, atomically.

    Args:
        path: Path of the file; ``.safetensors`` is added if missing.
        tensors: Names to tensors, none sharing memory.
        settings: Plain data that describes the model.
        extra: Plain data of the caller's choice, such as the metrics that the weights reached.

    Returns:
        The path written to.

    Raises:
        WeightsError: It cannot be written.
    """
    path = file_name(path)
    if path.suffix != SUFFIX:
        path = path.with_name(path.name + SUFFIX)
    metadata = {METADATA_KEY: json.dumps({"format": FORMAT, "settings": settings, "extra": dict(extra or {})})}
    on_cpu = {key: value.detach().to("cpu").contiguous() for key, value in tensors.items()}
    with whole_file(path) as part:
        safetensors.torch.save_file(on_cpu, part, metadata=metadata)
    return path


def add_extra(path: str | Path, extra: Mapping[str, Any]) -> None:
    """Add plain data to the ``extra`` of a weights file, which is replaced atomically; the tensors stay.

    Raises:
        WeightsError: The file cannot be read or written.
    """
    metadata = read_metadata(path)
    write(
        path, read_tensors(Path(path)), settings=metadata["settings"], extra={**(metadata.get("extra") or {}), **extra}
    )


def read_thresholds(path: str | Path) -> dict[str, float]:
    """Read the score with the best F1 of each class from a weights file; empty if it has none.

    They are stored as ``thresholds`` of ``extra``, by class name. A file of another program has none.
    """
    try:
        found = (read_metadata(path).get("extra") or {}).get(THRESHOLDS)
    except WeightsError:
        return {}
    if not isinstance(found, dict) or not all(isinstance(v, int | float) and 0 <= v <= 1 for v in found.values()):
        return {}
    return dict(found)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which replaces the file atomically at the end; create the folder.

    Raises:
        WeightsError: The folder cannot be created, or the file not written.
    """
    path = file_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            yield part
    except (OSError, safetensors.SafetensorError) as error:
        reason, where = getattr(error, "strerror", None) or error, getattr(error, "filename", None)
        at = "" if where is None or Path(where) == path else f"{where}: "  # the path at fault if it is another one
        raise WeightsError(f"{path} cannot be written ({at}{reason}); give another file") from error


def is_exported(file: Path) -> bool:
    """Return whether a file has the suffix of an exported one; others may have it too."""
    return file.suffix.lower() in EXPORTED


def file_name(path: str | Path) -> Path:
    """Return a path after checking that it ends in the name of a file.

    Raises:
        WeightsError: It does not.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise WeightsError(f"{path} cannot be written: it is a folder; give a file in it")
    return path


@contextmanager
def building(source: str | Path) -> Iterator[None]:
    """Turn settings that no detector can be built from into an error that names their file.

    Raises:
        WeightsError: The block raised `RecipeError`.
    """
    try:
        yield
    except RecipeError as error:
        raise WeightsError(f"{source}: {error}") from error


def locate(path: str | Path) -> Path:
    """Find the weights file that a user names: a file, a path without its suffix, or a run folder (its best).

    Raises:
        WeightsError: None of them exists.
    """
    path = Path(path)
    candidates = (path, path.with_name(path.name + SUFFIX), path / f"best{SUFFIX}") if path.name else (path,)
    for candidate in candidates:
        if os.path.isfile(candidate):  # unlike `Path.is_file`, never an error
            return candidate
    if os.path.isdir(path):
        found = sorted(file.name for file in path.glob(f"*{SUFFIX}"))
        hint = f"it has {', '.join(found)}: give one of them" if found else "has the run saved anything yet?"
        raise WeightsError(f"{path}: the folder has no best{SUFFIX}; {hint}")
    raise WeightsError(f"{path}: no such weights (nor {path.name}{SUFFIX}); give a file or a run folder")


@dataclass(frozen=True, slots=True)
class Differences:
    """Differences between a state dict and that of a module.

    Attributes:
        missing: Names that only the module has. ``num_batches_tracked`` is not among them: weights of old PyTorch
            versions have none, and inference does not use it.
        foreign: Names that only the state dict has.
        shapes: Names whose shapes differ, with both shapes as text.
        values: Names whose values are unusable in the module, with the reason.
    """

    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    shapes: dict[str, str]
    values: dict[str, str]

    @classmethod
    def between(cls, module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> Differences:
        """Compare names and shapes, and check the values."""
        own = module.state_dict()
        shapes: dict[str, str] = {}
        values: dict[str, str] = {}
        for key, value in own.items():
            if key not in tensors:
                continue
            given = tensors[key]
            if given.shape != value.shape:
                shapes[key] = f"{tuple(given.shape)} instead of {tuple(value.shape)}"
            elif value.is_floating_point() and not given.is_floating_point():
                values[key] = f"{str(given.dtype).removeprefix('torch.')} instead of floating-point numbers"
            elif value.is_floating_point():
                # Converted first: values may be too large for the data type of the detector.
                wrong = given.numel() - int(given.to(value.dtype).isfinite().sum())
                if wrong:
                    values[key] = f"{wrong} of {given.numel()} values are NaN or infinite"
        return cls(
            missing=tuple(key for key in own if key not in tensors and not key.endswith(COUNTER)),
            foreign=tuple(key for key in tensors if key not in own),
            shapes=shapes,
            values=values,
        )

    def __str__(self) -> str:
        shapes = [f"{key} {what}" for key, what in self.shapes.items()]
        values = [f"{key} ({why})" for key, why in self.values.items()]
        listed = (
            *((self.missing, "missing"), (self.foreign, "not in the model"), (shapes, "of another shape")),
            (values, "with unusable values"),
        )
        return "; ".join(f"{len(keys)} {what}: {_few(list(keys))}" for keys, what in listed if keys)


def load_strict(module: torch.nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict whose names and shapes must be the module's own, except for ignorable `Differences`.

    Raises:
        WeightsError: Names or shapes differ, or values are not finite; the message lists a few of each.
    """
    differ = Differences.between(module, tensors)
    if differ.missing or differ.foreign or differ.shapes:
        raise WeightsError(f"{source}: the weights are of another architecture: {differ}")
    if differ.values:
        raise WeightsError(f"{source}: damaged, or from a training that failed: {differ}")
    module.load_state_dict(dict(tensors), strict=False)


def _few(keys: list[str], count: int = 4) -> str:
    """Return the first keys as text, and the number of the others."""
    more = f", ... ({len(keys) - count} more)" if len(keys) > count else ""
    return ", ".join(keys[:count]) + more
