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
    from locdistill.inference.benchmark.benchmark import benchmark
    from locdistill.inference.benchmark.result import BenchmarkResult
    from locdistill.inference.evaluate import EvaluationResult, evaluate
    from locdistill.inference.predict import predict, stream
    from locdistill.inference.prediction import Prediction
    from locdistill.inference.tiles import TilingResult, merge, tile
    from locdistill.models.detector import Detector
    from locdistill.models.hub import pull
    from locdistill.models.mmdet import load_mmdet, save_mmdet
    from locdistill.models.settings import DetectorSettings
    from locdistill.objective.objective import Objective
    from locdistill.objective.term import Term
    from locdistill.publishing.publish import PublishedModel, publish
    from locdistill.publishing.push import PushResult, push
    from locdistill.recipe.load import dump_recipe, load_recipe
    from locdistill.recipe.recipe import Recipe
    from locdistill.study.compare.compare import compare
    from locdistill.study.compare.result import Comparison
    from locdistill.study.diagnose.diagnose import diagnose
    from locdistill.study.diagnose.result import Diagnosis
    from locdistill.study.landscape import LandscapeResult, landscape
    from locdistill.study.tune.result import TuneResult
    from locdistill.study.tune.tune import tune
    from locdistill.training.build_cache import CacheReport, build_cache, cache_info
    from locdistill.training.fit import RunResult
    from locdistill.training.overfit.overfit import OverfitResult, overfit
    from locdistill.training.preflight.look import Preflight
    from locdistill.training.preflight.report import PreflightReport
    from locdistill.training.train import distill, preflight, run, train
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
    "OverfitResult",
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
    "overfit",
    "predict",
    "preflight",
    "publish",
    "pull",
    "push",
    "run",
    "save_mmdet",
    "stream",
    "tile",
    "train",
    "tune",
]

_HOMES = {
    "Batch": "types",
    "BenchmarkResult": "inference.benchmark.result",
    "CacheReport": "training.build_cache",
    "Comparison": "study.compare.result",
    "Dense": "types",
    "Detections": "types",
    "Detector": "models.detector",
    "DetectorSettings": "models.settings",
    "Diagnosis": "study.diagnose.result",
    "EvaluationResult": "inference.evaluate",
    "Instances": "types",
    "LandscapeResult": "study.landscape",
    "LocdistillError": "errors",
    "Objective": "objective.objective",
    "OverfitResult": "training.overfit.overfit",
    "Prediction": "inference.prediction",
    "Preflight": "training.preflight.look",
    "PreflightReport": "training.preflight.report",
    "PublishedModel": "publishing.publish",
    "PushResult": "publishing.push",
    "Recipe": "recipe.recipe",
    "RunResult": "training.fit",
    "Term": "objective.term",
    "TilingResult": "inference.tiles",
    "TuneResult": "study.tune.result",
    "benchmark": "inference.benchmark.benchmark",
    "build_cache": "training.build_cache",
    "cache_info": "training.build_cache",
    "compare": "study.compare.compare",
    "diagnose": "study.diagnose.diagnose",
    "distill": "training.train",
    "dump_recipe": "recipe.load",
    "evaluate": "inference.evaluate",
    "landscape": "study.landscape",
    "load_mmdet": "models.mmdet",
    "load_recipe": "recipe.load",
    "merge": "inference.tiles",
    "overfit": "training.overfit.overfit",
    "predict": "inference.predict",
    "preflight": "training.train",
    "publish": "publishing.publish",
    "pull": "models.hub",
    "push": "publishing.push",
    "run": "training.train",
    "save_mmdet": "models.mmdet",
    "stream": "inference.predict",
    "tile": "inference.tiles",
    "train": "training.train",
    "tune": "study.tune.tune",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'locdistill' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"locdistill.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
