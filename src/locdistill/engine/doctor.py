"""Examination of an installation and its machine, to look at when something is slow or fails, and to report it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from locdistill.engine.devices import default_device
from locdistill.engine.speed import cpu_bf16
from locdistill.files import cache_folder

NEEDED = (
    *("locdistill", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow", "pydantic"),
    *("faster-coco-eval", "safetensors", "lmdb"),
)
OPTIONAL = {
    "onnxruntime": "onnx",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
    "av": "video",
    "optuna": "tune",
}
"""Optional packages, and the extra that brings each."""
_LEAST_MEMORY, _LEAST_DISK, _LEAST_SHARED = 4.0, 5.0, 0.5
_CHANNELS, _SIDE, _IMAGES = 64, 64, 4
_SHARED = Path("/dev/shm")  # noqa: S108 - only its size is read


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        versions: Versions of Python, the system and the packages that are needed.
        optional: Versions of optional packages, or how to install them.
        devices: Names of the devices.
        cpu: Processor, cores, threads of PyTorch, and instruction sets for bf16.
        environment: Variables that change how PyTorch and this package behave.
        gigabytes: Memory and free memory, free disk here and in the cache folder, shared memory; where known.
        gflops: Speed of a training step of a convolution on the default device, in 10^9 operations a second, by
            precision.
        notes: What may cause trouble, with the remedy.
    """

    versions: dict[str, str]
    optional: dict[str, str]
    devices: list[str]
    cpu: dict[str, Any]
    environment: dict[str, str]
    gigabytes: dict[str, float]
    gflops: dict[str, float]
    notes: list[str]


def examine(*, seconds: float = 4.0) -> Examination:
    """Examine the installation and the machine.

    Args:
        seconds: Duration of the speed measurement; 0 leaves it out.
    """
    versions = {"python": platform.python_version(), "system": platform.platform()}
    installed = {}
    for name in (*NEEDED, *OPTIONAL):
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    versions |= {name: installed.get(name, "not installed") for name in NEEDED}
    if torch.version.cuda:
        versions["CUDA of torch"] = torch.version.cuda
    missing = "not installed: pip install 'locdistill[{}]'"
    optional = {name: installed.get(name, missing.format(extra)) for name, extra in OPTIONAL.items()}
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    devices = ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
    cpu = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "bf16": cpu_bf16() or "none",
    }
    named = ("OMP_", "MKL_", "ONEDNN_", "DNNL_", "ATEN_", "CUDA_VISIBLE", "GOMP_", "LOCDISTILL_", "HF_", "SLURM_JOB")
    secret = ("TOKEN", "KEY", "SECRET", "PASSWORD")
    environment = {
        name: "(hidden)" if any(word in name for word in secret) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(named)
    }
    gigabytes = _gigabytes()
    return Examination(
        versions=versions,
        optional=optional,
        devices=devices,
        cpu=cpu,
        environment=environment,
        gigabytes=gigabytes,
        gflops=_speed(seconds) if seconds else {},
        notes=_notes(gpus, gigabytes, cpu),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gigabytes() -> dict[str, float]:
    found = {}
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        found["memory"] = page * os.sysconf("SC_PHYS_PAGES") / 1e9
        found["free memory"] = page * os.sysconf("SC_AVPHYS_PAGES") / 1e9
    except (AttributeError, OSError, ValueError):  # not on Windows
        pass
    places = {"free disk here": Path.cwd(), "free disk of the cache": cache_folder(), "shared memory": _SHARED}
    for name, place in places.items():
        existing = next((each for each in (place, *place.parents) if each.exists()), None)
        if existing is not None and (name != "shared memory" or existing == place):
            found[name] = shutil.disk_usage(existing).free / 1e9
    return {name: round(value, 1) for name, value in found.items()}


def _speed(seconds: float) -> dict[str, float]:
    """Time forward and backward passes of a 3x3 convolution."""
    device = torch.device(default_device())
    layer = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1).to(device)
    images = torch.randn(_IMAGES, _CHANNELS, _SIDE, _SIDE, device=device)
    work = 3 * 2 * 9 * _CHANNELS**2 * images[:, :1].numel()  # forward, and backward to weights and to images
    found = {}
    for name, dtype in (("float32", None), ("bf16", torch.bfloat16)):
        begun, calls = time.perf_counter(), -2  # the first two are for warming up
        while time.perf_counter() - begun < seconds / 2 or calls < 1:
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                result = layer(images.requires_grad_())
            result.float().sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            calls += 1
            begun = time.perf_counter() if calls == 0 else begun
        found[name] = round(work * calls / (time.perf_counter() - begun) / 1e9, 1)
    return found


def _notes(gpus: list[str], gigabytes: dict[str, float], cpu: dict[str, Any]) -> list[str]:
    """List what may cause trouble, with the remedy."""
    notes = []
    if torch.version.cuda and not gpus:
        notes.append(f"torch was built for CUDA {torch.version.cuda}, but finds no GPU; without one this is no fault")
    if gigabytes.get("free memory", _LEAST_MEMORY) < _LEAST_MEMORY:
        notes.append(f"{gigabytes['free memory']} GB of free memory: use a smaller batch and fewer data.workers")
    notes += [
        f"{gigabytes[name]} GB of {name}: checkpoints and caches may not fit (LOCDISTILL_HOME moves the cache)"
        for name in ("free disk here", "free disk of the cache")
        if gigabytes.get(name, _LEAST_DISK) < _LEAST_DISK
    ]
    shared = gigabytes.get("shared memory", _LEAST_SHARED)
    if shared < _LEAST_SHARED:
        notes.append(f"{shared} GB of shared memory: start the container with --shm-size=2g, or set data.workers=0")
    if not gpus and cpu["threads"] < min(cpu["cores"], 4):
        notes.append(f"PyTorch uses {cpu['threads']} of {cpu['cores']} cores (OMP_NUM_THREADS)")
    if sys.prefix == sys.base_prefix:
        notes.append("no virtual environment is active: other programs may change these packages")
    return notes
