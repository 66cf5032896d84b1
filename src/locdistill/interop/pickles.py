"""Reading of PyTorch checkpoint files without running any code in them.

PyTorch reads such a file with ``weights_only=True``: tensors and plain containers, nothing else. Files of training
programs also hold other objects (histories of losses, configurations) that the weights do not need. Their names are
bound to inert stand-ins here, so that the file loads, while no code of its own, or of the libraries it names, is run.
Any other name is refused.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from locdistill.errors import WeightsError


class Opaque:
    """Stand-in for an object or a function's result: it accepts any arguments and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Dictionary:
    """Stand-in for a kind of dictionary: it becomes a plain one, with the same content."""

    def __new__(cls, *args: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """Keep the content if it is passed at once; otherwise it is added item by item."""
        return OrderedDict(*(arg for arg in args[:1] if isinstance(arg, Mapping)))


STAND_INS: tuple[tuple[type, tuple[str, ...]], ...] = (
    (
        Dictionary,
        (
            "addict.addict.Dict",
            "collections.defaultdict",
            "mmcv.utils.config.ConfigDict",
            "mmengine.config.config.ConfigDict",
        ),
    ),
    (
        Opaque,
        (
            "argparse.Namespace",
            *(f"builtins.{kind}" for kind in ("dict", "float", "int", "list")),  # what a defaultdict makes
            "builtins.getattr",  # how older pickles name a method: (class, name)
            "datetime.datetime",
            "datetime.timedelta",
            "mmcv.utils.config.Config",
            "mmengine.config.config.Config",
            "mmengine.logging.history_buffer.HistoryBuffer",
            "numpy._core.multiarray._reconstruct",
            "numpy._core.multiarray.scalar",
            "numpy.core.multiarray._reconstruct",
            "numpy.core.multiarray.scalar",
            "numpy.dtype",
            "numpy.ndarray",
            "pathlib.PosixPath",
            "pathlib.WindowsPath",
        ),
    ),
)
JITTOR = b"HCAJSLHD"
"""End of Jittor's files."""
REMEDY = """If you trust where it comes from, and only then, save its weights alone, on a machine that may run its code:
    content = torch.load({name!r}, map_location="cpu", weights_only=False)
    torch.save(content.get("state_dict", content), "weights.pth")"""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU, from a zip file or the format before PyTorch 1.6.

    Raises:
        WeightsError: It is damaged, not a checkpoint, or needs objects that could run code.
    """
    _refuse_others(path)
    known = [(stand_in, name) for stand_in, names in STAND_INS for name in names]
    with torch.serialization.safe_globals(known):  # type: ignore[arg-type]
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            wanting = _wanting(path, error)
            if not wanting and not zipfile.is_zipfile(path):
                raise WeightsError(_damaged(path, error)) from error
            raise WeightsError(
                f"{path}: not a plain file of tensors: it holds objects that could run code when read "
                f"({wanting or _reason(error)}). Nothing of it was run. {REMEDY.format(name=path.name)}"
            ) from error
        except PermissionError as error:
            raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
        except Exception as error:  # bytes that are no pickle end in all kinds of errors
            raise WeightsError(_damaged(path, error)) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: expected a state dict (names to tensors), got a {type(content).__name__}")
    return dict(content)


def _refuse_others(path: Path) -> None:
    """Refuse the files of Jittor, a pickle with a checksum and a mark behind it, with the reason.

    Raises:
        WeightsError: It is one.
    """
    try:
        with path.open("rb") as file:
            file.seek(-min(len(JITTOR), path.stat().st_size), os.SEEK_END)
            marked = file.read() == JITTOR
    except OSError:
        return  # reported by the reader
    if marked:
        raise WeightsError(
            f"{path}: a file of Jittor (JDet), which cannot be used here: JDet's anchors lie half a cell less half a "
            "pixel further right and down, so its boxes would be shifted by 3.5 to 63.5 pixels. Train the detector "
            "with 'locdistill train rotated_retinanet_jdet_r50_1x'"
        )


def _wanting(path: Path, error: Exception) -> str:
    """Return names in the file that are not allowed: all of them, or the first one in a file without a list."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the file is no zip file, or is hand-made
        names = sorted(set(re.findall(r"GLOBAL (\S+)", str(error))))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _reason(error: Exception) -> str:
    """Return the one sentence of PyTorch's message that states the error; the others advise unsafe reading."""
    text = str(error).split("WeightsUnpickler error:")[-1].strip()
    return re.split(r"\n|\. ", text)[0][:200] if text else type(error).__name__


def _damaged(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        begins = file.read(16)
    return (
        f"{path}: damaged or no PyTorch checkpoint ({_reason(error)}; the file begins with {begins!r}); copy or "
        "download it again"
    )
