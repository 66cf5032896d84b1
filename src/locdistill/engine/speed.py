"""Choice of the parts of ``engine.speed`` for a machine, with reasons.

These are the choices of ``auto``; ``benchmarks/step.py`` measures them on a machine. The choices for CUDA and MPS
follow PyTorch's documentation.

- bf16 where the device supports its multiplication: on CUDA since Ampere, on CPUs with AMX or AVX-512 BF16, unless the
  user disables these in oneDNN (ONEDNN_MAX_CPU_ISA). Elsewhere it is emulated and slower than float32. AVX-512 BF16
  doubles the speed on some processors and halves it on others, so one convolution is timed there.
- channels last on CUDA, where tensor cores use that order; not elsewhere: on CPU, backward passes of narrow networks
  take 1.5 times as long with it.
- a folded teacher always, and a fused optimiser on CPU and CUDA, except with gradient clipping (engine.clip_norm) in
  half precision, which Lightning does not support for a fused optimiser.
- compiled code on CUDA, in runs that are long enough to compensate for the time of compilation. Not on CPU, where
  compilation takes minutes for each of student, teacher and objective.
- TF32 on CUDA; cuDNN's search for the best algorithm where all images have one size, since it is repeated for each
  size.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from locdistill.engine.devices import device_kind
from locdistill.engine.settings import EngineSettings

LEAST_GAIN = 1.3
"""Ratio of the speed of a convolution in bf16 to that in float32 above which bf16 pays: the casts take time too."""
STEPS_TO_COMPILE = 2000
"""Minimum number of optimiser steps for which compilation is worthwhile."""
Precision = Literal["32", "bf16", "fp16"]
ONEDNN_WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
"""Limits of oneDNN's instruction set without bf16 multiplication (AVX2_VNNI_2 only converts bf16)."""
DTYPES: dict[Precision, torch.dtype | None] = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Properties of a machine that determine the choice.

    Attributes:
        device: Kind of the training device.
        bf16: Whether it multiplies in bf16 natively, without emulation, and on a CPU faster than in float32.
        triton: Whether Triton, the compiler for CUDA, is installed.
    """

    device: Literal["cpu", "cuda", "mps"]
    bf16: bool = False
    triton: bool = False

    @classmethod
    def here(cls, settings: EngineSettings) -> Machine:
        """Return this machine with the training device of these settings."""
        device = device_kind(settings)
        cuda = device == "cuda" and torch.cuda.is_available()
        units = cpu_bf16() if device == "cpu" else None
        faster = units == "AMX" or (units == "AVX-512" and bf16_gain() > LEAST_GAIN)
        bf16 = faster or (cuda and torch.cuda.is_bf16_supported(including_emulation=False))
        return cls(device=device, bf16=bf16, triton=importlib.util.find_spec("triton") is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Chosen speed options; the parts are those of `SpeedSettings`."""

    precision: Precision = "32"
    channels_last: bool = False
    teacher: bool = False
    fused: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    checkpointing: bool = False
    tf32: bool = False
    cudnn_benchmark: bool = False
    must_compile: bool = False
    """Whether a failure to compile ends the run, because compilation was requested explicitly."""

    @property
    def dtype(self) -> torch.dtype | None:
        """Data type of multiplications; None for float32."""
        return DTYPES[self.precision]

    def words(self, optimizer: str) -> str:
        """Return the choice in one line."""
        switches = {
            "channels-last": self.channels_last,
            f"fused {'AdamW' if optimizer == 'adamw' else 'SGD'}": self.fused,
            "frozen teacher folded": self.teacher,
            "compiled": self.compile,
            "CUDA graphs": self.cuda_graphs,
            "checkpointing": self.checkpointing,
            "TF32": self.tf32,
            "cuDNN benchmark": self.cudnn_benchmark,
        }
        precision = "float32" if self.precision == "32" else self.precision
        return ", ".join([precision, *(name for name, chosen in switches.items() if chosen)])


def choose(settings: EngineSettings, machine: Machine, *, steps: int = 0, one_size: bool = False) -> Speed:
    """Choose the speed options for a machine.

    Args:
        settings: Settings of the run.
        machine: The machine of the run.
        steps: Approximate number of optimiser steps; 0 if unknown.
        one_size: Whether all its batches have one height and width.
    """
    parts, cuda = settings.speed, machine.device == "cuda"
    precision: Precision
    if settings.precision == "auto":
        precision = "bf16" if machine.bf16 and any(parts.model_dump().values()) else "32"
    elif settings.precision == "fp16" and machine.device == "cpu":
        precision = "bf16"  # PyTorch has no fp16 training on CPU
    else:
        precision = settings.precision
    graphs = cuda and parts.cuda_graphs is True
    auto = {
        "channels_last": cuda,
        "teacher": True,
        "fused": machine.device != "mps",
        "compile": graphs or (cuda and machine.triton and steps >= STEPS_TO_COMPILE),
        "cuda_graphs": False,
        "checkpointing": False,
        "tf32": True,
        "cudnn_benchmark": one_size and not settings.deterministic,
    }
    chosen = auto | {name: switch for name, switch in parts.model_dump().items() if switch != "auto"}
    if precision != "32" and settings.clip_norm is not None:
        chosen["fused"] = False
    if not cuda:
        chosen |= dict.fromkeys(("cuda_graphs", "tf32", "cudnn_benchmark"), False)
    return Speed(precision=precision, must_compile=parts.compile is True, **chosen)


def cpu_bf16() -> Literal["AMX", "AVX-512"] | None:
    """Return the units in which oneDNN, used on CPUs, multiplies bf16 without emulation; None if in none.

    The processor must support it (according to PyTorch, or else to Linux), and the user must not have limited oneDNN to
    an older instruction set. As in oneDNN, the case of the limit and unknown limits are ignored.
    """
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()
    if limit in ONEDNN_WITHOUT_BF16:
        return None
    avx512, amx = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    if amx is not None and amx() and ("AMX" in limit or limit in ("", "DEFAULT", "ALL")):
        return "AMX"
    if avx512 is not None and amx is not None:
        return "AVX-512" if avx512() or amx() else None
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if platform.system() == "Linux" else ""
    return "AVX-512" if "avx512_bf16" in flags or "amx_bf16" in flags else None


@functools.cache
def bf16_gain() -> float:
    """Measure the time of a convolution and its gradients in float32 over that in bf16, in this process."""
    fastest: dict[torch.dtype, float] = {}
    for _ in range(5):
        for dtype in (torch.float32, torch.bfloat16):
            images, weights = (
                torch.ones(s, dtype=dtype, requires_grad=True) for s in ((4, 64, 32, 32), (64, 64, 3, 3))
            )
            begun = time.perf_counter()
            torch.autograd.grad(torch.nn.functional.conv2d(images, weights, padding=1).sum(), (images, weights))
            fastest[dtype] = min(fastest.get(dtype, math.inf), time.perf_counter() - begun)
    return fastest[torch.float32] / fastest[torch.bfloat16]


def set_backends(*, tf32: bool, cudnn_benchmark: bool) -> None:
    """Set PyTorch's global options for the whole process."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.benchmark = cudnn_benchmark


@contextmanager
def own_backends(*, deterministic: bool = False) -> Iterator[None]:
    """Restore PyTorch's global options on exit; inside, use deterministic algorithms if requested."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]
        if deterministic:
            torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
