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
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from locdistill.errors import LocdistillError
    from locdistill.models.detector import Detector
    from locdistill.models.settings import DetectorSettings
    from locdistill.objective.objective import Objective
    from locdistill.objective.term import Term
    from locdistill.recipes.load import dump_recipe, load_recipe
    from locdistill.recipes.recipe import Recipe
    from locdistill.recipes.run import RunResult, distill, run, train
    from locdistill.recipes.use import EvaluationResult, Prediction, evaluate, predict
    from locdistill.types import Batch, Dense, Detections, Instances

__all__ = [
    "Batch",
    "Dense",
    "Detections",
    "Detector",
    "DetectorSettings",
    "EvaluationResult",
    "Instances",
    "LocdistillError",
    "Objective",
    "Prediction",
    "Recipe",
    "RunResult",
    "Term",
    "distill",
    "dump_recipe",
    "evaluate",
    "load_recipe",
    "predict",
    "run",
    "train",
]

_HOMES = {
    "Batch": "types",
    "Dense": "types",
    "Detections": "types",
    "Detector": "models.detector",
    "DetectorSettings": "models.settings",
    "EvaluationResult": "recipes.use",
    "Instances": "types",
    "LocdistillError": "errors",
    "Objective": "objective.objective",
    "Prediction": "recipes.use",
    "Recipe": "recipes.recipe",
    "RunResult": "recipes.run",
    "Term": "objective.term",
    "distill": "distill",  # the sub-package and the function share the name, see _Verb
    "dump_recipe": "recipes.load",
    "evaluate": "recipes.use",
    "load_recipe": "recipes.load",
    "predict": "recipes.use",
    "run": "recipes.run",
    "train": "recipes.run",
}


class _Verb(ModuleType):
    """The sub-package ``locdistill.distill``, which can be called: Python binds a sub-package to its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Train a student; see :func:`locdistill.recipes.run.distill`."""
        return importlib.import_module("locdistill.recipes.run").distill(*args, **kwargs)


class _Package(ModuleType):
    """This package."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, as the import system does when it has imported a sub-package."""
        if name == "distill" and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'locdistill' has no attribute {name!r}")
    home = importlib.import_module(f"locdistill.{_HOMES[name]}")
    value = home if name == "distill" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
