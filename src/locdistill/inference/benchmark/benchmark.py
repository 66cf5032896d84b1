"""Benchmark of a detector: latency, throughput, memory and cost, with PyTorch and ONNX Runtime."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import torch

from locdistill.annotations.files import images_below
from locdistill.engine.devices import default_device, existing_device
from locdistill.engine.speed import Precision
from locdistill.errors import ImageError, LocdistillError, RunError, WeightsError
from locdistill.files import make_folder, write_text, writing
from locdistill.images import pad_together, read_image, resize_to
from locdistill.inference.benchmark.engines import ENGINES, OF_FILES, Build
from locdistill.inference.benchmark.measure import COMPARED, Answer, ImagesInMemory, Workload, difference
from locdistill.inference.benchmark.result import NOISE, RANDOM, BenchmarkResult, EngineResult, notes
from locdistill.interop.classes import COCO
from locdistill.models.count import multiply_adds, parameters
from locdistill.models.detector import Detector
from locdistill.models.exported import ExportedDetector, open_detector
from locdistill.models.hub import find, is_address
from locdistill.recipe.load import load_recipe, recipe_names
from locdistill.settings import finite, nearest
from locdistill.types import Tell

WARM_UP = 5
"""Number of untimed calls, as in the reference's benchmark."""
STEPS = {"cpu": 20}
STEPS_ON_GPU = 200
HELD = 32
"""Number of images kept in memory and used in turn."""
TRAINED = "as trained"
RECIPE_SUFFIXES = (".yaml", ".yml")
CLASSES = len(COCO)
"""Number of classes for a recipe that leaves them to its data."""


def benchmark(  # noqa: PLR0913 - one parameter per option
    model: str | Path,
    *,
    input: str | None = None,
    batch: int = 8,
    device: str | None = None,
    precision: str = "32",
    steps: int | None = None,
    engines: Sequence[str] | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    tell: Tell = lambda _: None,
) -> BenchmarkResult:
    """Measure the speed of a detector, post-processing included, and its cost.

    Images are resized and in memory before timing; reading and resizing do not count, as in the reference's benchmark.
    The first calls do not count either.

    Args:
        model: A weights file, a run folder, ``run/best``, an address on a hub, or the name of a recipe, whose detector
            then has random weights.
        input: Width and height, such as ``1333x800``, before padding; by default the detector's input size.
        batch: Number of images per batch for the throughput.
        device: Device such as ``cuda:0``; by default a GPU if available.
        precision: Precision of PyTorch's arithmetic: ``32``, ``bf16`` or ``fp16``.
        steps: Number of timed calls; by default 20 on a CPU and 200 on a GPU.
        engines: Some of ``eager``, ``compiled`` and ``onnxruntime``; by default all that are available. An exported
            file has the engine ``file`` alone.
        data: Folder of images, each resized to fit the input; noise by default.
        out: JSON file for the result.
        tell: Callback for progress messages; a benchmark can take minutes.

    Raises:
        RunError: The input, the device or an engine is wrong, a requested engine is not available, or ``out`` cannot
            be written.
        WeightsError: There is no such file or recipe.
        ImageError: The folder has no images, or one cannot be read.
    """
    where = existing_device(device or default_device())
    unknown = [name for name in engines or () if name not in ENGINES | OF_FILES]
    if unknown:
        raise RunError(f"--engine {unknown[0]}: expected one of {', '.join(ENGINES)}")
    if out is not None:
        _check_out(Path(out))
    detector, random = _open(model, where)
    there = OF_FILES if isinstance(detector, ExportedDetector) else ENGINES
    if strange := [name for name in engines or () if name not in there]:
        raise RunError(f"--engine {strange[0]}: {model} has {' and '.join(there)} alone; leave it out")
    limits = detector.settings.input
    fixed = detector.facts.size if isinstance(detector, ExportedDetector) else None
    inner = fixed or ((limits.short, limits.long) if input is None else parse_size(input))
    height, width = (-(-side // limits.pad_to) * limits.pad_to for side in inner)
    size = height, width
    work = Workload(
        detector=detector,
        pictures=_pictures(data, inner, size, batch),
        precision=_known(precision, where),
        batch=batch,
        calls=steps or STEPS.get(where.type, STEPS_ON_GPU),
        warm_up=WARM_UP,
    )
    chosen = {name: there[name] for name in engines or there}
    results, missing, answers = _run(work, chosen, tell, strict=bool(engines))
    facts = _facts(work, answers) | {
        "weights": RANDOM if random else TRAINED,
        "images": NOISE if data is None else str(data),
    }
    result = BenchmarkResult(
        model=str(model),
        size=size,
        facts=facts,
        parameters=parameters(detector),
        multiply_adds=multiply_adds(detector.settings, size),
        engines=results,
        missing=missing,
        notes=notes(facts, results),
    )
    if out is not None:
        with writing(Path(out)):
            write_text(Path(out), json.dumps(finite(result.as_dict()), indent=2) + "\n")
    return result


def _run(
    work: Workload, engines: Mapping[str, Build], tell: Tell, *, strict: bool
) -> tuple[dict[str, EngineResult], dict[str, str], list[Answer]]:
    """Run the engines; return results, unusable engines with reasons, and the outputs of the first usable engine.

    Raises:
        RunError: No engine can be used, or one cannot where this is ``strict``.
    """
    results: dict[str, EngineResult] = {}
    missing: dict[str, str] = {}
    first: list[Answer] = []
    for name, build in engines.items():
        tell(f"{name}: {work.calls} calls with one image" + (f", then with {work.batch}" if work.batch > 1 else ""))
        try:
            measured = work.measured(build, tell)
        except LocdistillError as error:
            missing[name] = str(error)
        except Exception as error:  # compilers and runtimes raise exceptions of any type
            missing[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"
        else:
            results[name] = EngineResult(
                precision="32" if name == "onnxruntime" else work.precision,
                single=measured.single,
                batched=measured.batched,
                memory_mb=measured.memory_mb,
                difference=difference(work.detector, first, measured.answers) if first else None,
            )
            first = first or measured.answers
    if not results or (strict and missing):
        raise RunError("; ".join(f"engine '{name}' cannot be used: {reason}" for name, reason in missing.items()))
    return results, missing, first


def _check_out(out: Path) -> None:
    """Check that the file can be written before the benchmark, which can take minutes."""
    make_folder(out.absolute().parent)
    if out.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise RunError(f"--out {out}: expected a file in a folder that can be written to")


def _known(precision: str, device: torch.device) -> Precision:
    names: tuple[Precision, ...] = get_args(Precision)
    found = next((name for name in names if name == precision), None)
    if found is None:
        raise RunError(f"--precision {precision}: expected one of {', '.join(names)}")
    if found == "fp16" and device.type == "cpu":
        raise RunError("--precision fp16 needs a GPU; on a CPU use bf16 or 32")
    return found


def _open(model: str | Path, device: torch.device) -> tuple[Detector, bool]:
    """Open the detector; also return whether its weights are random."""
    name = str(model)
    if name not in recipe_names() and Path(name).suffix not in RECIPE_SUFFIXES:
        try:
            return open_detector(find(model), device), False
        except WeightsError as error:
            if Path(name).exists() or is_address(name):
                raise
            close = nearest(name, recipe_names())
            hint = f", such as {close}" if close else ""
            raise WeightsError(f"{error}; or the name of a recipe{hint} ('locdistill recipes' lists them)") from error
    settings = load_recipe(name).detector
    named = settings.classes or tuple(f"class {c}" for c in range(CLASSES))
    detector = Detector(settings.model_copy(update={"classes": named}), pretrained=False)
    return detector.eval().to(device), True


def _pictures(folder: str | Path | None, inner: tuple[int, int], size: tuple[int, int], batch: int) -> ImagesInMemory:
    """Read the images of a folder, each resized to the largest size that fits; without a folder, create noise."""
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        shape = (3, *inner)
        noise = [
            torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(max(batch, COMPARED))
        ]
        sizes = torch.tensor(inner).expand(len(noise), -1)
        return ImagesInMemory(pad_together(noise, height=size[0], width=size[1]), sizes, sizes)
    files = images_below(Path(folder))[: max(batch, HELD)]
    if not files:
        raise ImageError(f"{folder}: no image in this folder; name one with images, or leave out --data")
    originals = [read_image(file) for file in files]
    images = []
    for picture in originals:
        height, width = picture.shape[-2:]
        scale = min(inner[0] / height, inner[1] / width)
        images.append(resize_to(picture, (max(round(height * scale), 1), max(round(width * scale), 1))))
    sizes, before = (torch.tensor([image.shape[-2:] for image in some]) for some in (images, originals))
    return ImagesInMemory(pad_together(images, height=size[0], width=size[1]), sizes, before)


def _facts(work: Workload, answers: Sequence[Answer]) -> dict[str, Any]:
    settings, device = work.detector.settings, work.detector.device
    return {
        "detector": {"model": settings.model, "backbone": settings.backbone, "classes": len(settings.classes)},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch": work.batch,
        "warm_up": work.warm_up,
        "candidates": mean(len(found.scores) for answer in answers for found in answer.candidates),
        "detections": mean(len(found.scores) for answer in answers for found in answer.detections),
    }


def parse_size(text: str, option: str = "--input") -> tuple[int, int]:
    """Parse ``1333x800`` (width by height), given with an option, to height and width.

    Raises:
        RunError: The text has another form.
    """
    found = re.fullmatch(r"(\d+)[xX](\d+)", text.strip())
    width, height = map(int, found.groups()) if found else (0, 0)
    if min(width, height) < 1:
        raise RunError(f"{option} {text}: expected width and height in pixels, such as 1333x800")
    return height, width
