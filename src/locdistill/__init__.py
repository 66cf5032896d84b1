"""Localization distillation for dense object detectors.

::

    import locdistill

    teacher = locdistill.train(data="bccd", backbone="resnet50", out="runs/teacher")
    student = locdistill.distill(teacher.best, "bccd", backbone="tf_efficientnet_lite0", out="runs/student")
    print(locdistill.evaluate(student.best, "bccd").metrics["AP"])
    detector = locdistill.Detector.load(student.best)
    detections = detector.detect("image.jpg")

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from locdistill.errors import LocdistillError
    from locdistill.models.detector import Detector
    from locdistill.models.mmdet import load_mmdet, save_mmdet
    from locdistill.models.settings import DetectorSettings
    from locdistill.objective.objective import Objective
    from locdistill.objective.term import Term
    from locdistill.recipes.benchmark import benchmark
    from locdistill.recipes.benchmark_result import BenchmarkResult
    from locdistill.recipes.cache import CacheReport, build_cache, cache_info
    from locdistill.recipes.compare import compare
    from locdistill.recipes.comparison import Comparison
    from locdistill.recipes.diagnose import diagnose
    from locdistill.recipes.diagnosis import Diagnosis
    from locdistill.recipes.fit import RunResult
    from locdistill.recipes.hub import pull
    from locdistill.recipes.landscape import LandscapeResult, landscape
    from locdistill.recipes.load import dump_recipe, load_recipe
    from locdistill.recipes.predict import Prediction, predict
    from locdistill.recipes.preflight import Preflight
    from locdistill.recipes.preflight_report import PreflightReport
    from locdistill.recipes.publish import PublishedModel, publish
    from locdistill.recipes.push import PushResult, push
    from locdistill.recipes.recipe import Recipe
    from locdistill.recipes.run import distill, preflight, run, train
    from locdistill.recipes.tiling import TilingResult, merge, tile
    from locdistill.recipes.tune import tune
    from locdistill.recipes.tune_result import TuneResult
    from locdistill.recipes.use import EvaluationResult, evaluate
    from locdistill.types import Batch, Dense, Detections, Instances

__all__ = [
    "Batch",
    "BenchmarkResult",
    "CacheReport",
    "Comparison",
    "Dense",
    "Detections",
    "Detector",
    "DetectorSettings",
    "Diagnosis",
    "EvaluationResult",
    "Instances",
    "LandscapeResult",
    "LocdistillError",
    "Objective",
    "Prediction",
    "Preflight",
    "PreflightReport",
    "PublishedModel",
    "PushResult",
    "Recipe",
    "RunResult",
    "Term",
    "TilingResult",
    "TuneResult",
    "benchmark",
    "build_cache",
    "cache_info",
    "compare",
    "diagnose",
    "distill",
    "dump_recipe",
    "evaluate",
    "landscape",
    "load_mmdet",
    "load_recipe",
    "merge",
    "predict",
    "preflight",
    "publish",
    "pull",
    "push",
    "run",
    "save_mmdet",
    "tile",
    "train",
    "tune",
]

_HOMES = {
    "Batch": "types",
    "BenchmarkResult": "recipes.benchmark_result",
    "CacheReport": "recipes.cache",
    "Comparison": "recipes.comparison",
    "Dense": "types",
    "Detections": "types",
    "Detector": "models.detector",
    "DetectorSettings": "models.settings",
    "Diagnosis": "recipes.diagnosis",
    "EvaluationResult": "recipes.use",
    "Instances": "types",
    "LandscapeResult": "recipes.landscape",
    "LocdistillError": "errors",
    "Objective": "objective.objective",
    "Prediction": "recipes.predict",
    "Preflight": "recipes.preflight",
    "PreflightReport": "recipes.preflight_report",
    "PublishedModel": "recipes.publish",
    "PushResult": "recipes.push",
    "Recipe": "recipes.recipe",
    "RunResult": "recipes.fit",
    "Term": "objective.term",
    "TilingResult": "recipes.tiling",
    "TuneResult": "recipes.tune_result",
    "benchmark": "recipes.benchmark",
    "build_cache": "recipes.cache",
    "cache_info": "recipes.cache",
    "compare": "recipes.compare",
    "diagnose": "recipes.diagnose",
    "distill": "recipes.run",
    "dump_recipe": "recipes.load",
    "evaluate": "recipes.use",
    "landscape": "recipes.landscape",
    "load_mmdet": "models.mmdet",
    "load_recipe": "recipes.load",
    "merge": "recipes.tiling",
    "predict": "recipes.predict",
    "preflight": "recipes.run",
    "publish": "recipes.publish",
    "pull": "recipes.hub",
    "push": "recipes.push",
    "run": "recipes.run",
    "save_mmdet": "models.mmdet",
    "tile": "recipes.tiling",
    "train": "recipes.run",
    "tune": "recipes.tune",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'locdistill' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"locdistill.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
