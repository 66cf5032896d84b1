"""Charts of an evaluation and of a data set's objects: one class, many, and nothing to draw."""

from __future__ import annotations

import numpy as np
import pytest

from locdistill.evaluation.error_types import ERROR_TYPES
from locdistill.viz.judged import ScoreCurve, plot_class_curves, plot_confusion, plot_errors
from locdistill.viz.labels import plot_labels
from locdistill.viz.style import LINES
from tests.unit.viz.test_charts import near

NOTHING = np.zeros(0)


def colour(text: str) -> tuple[int, int, int]:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:], 16)


def curve(ap: float) -> ScoreCurve:
    scores = np.linspace(0.9, 0.1, 9)
    return ScoreCurve(scores, np.linspace(1, ap, 9), np.linspace(0.1, ap, 9), ap, 0.5)


def test_values_over_the_score_are_those_of_what_is_kept() -> None:
    values = ScoreCurve(np.array([0.8, 0.4]), np.array([1.0, 0.5]), np.array([0.5, 1.0]), 0.9, 0.8).over_score()
    at = {
        score: tuple(values[name][round(200 * score)] for name in ("precision", "recall", "f1")) for score in (0, 0.6)
    }
    assert at[0] == pytest.approx((0.5, 1.0, 2 / 3))
    assert at[0.6] == pytest.approx((1.0, 0.5, 2 / 3))
    assert np.isnan(values["precision"][-1])
    assert values["recall"][-1] == values["f1"][-1] == 0


@pytest.mark.parametrize("classes", [1, 30])
def test_curves_by_class(classes: int) -> None:
    picture = plot_class_curves({f"class {i}": curve(0.2 + 0.7 * i / classes) for i in range(classes)})
    assert picture.size == (2200, 1760)
    drawn = [name for name in LINES if near(picture, colour(name)) > 300]
    assert len(drawn) == min(classes, len(LINES))
    assert (near(picture, (200, 204, 209)) > 20_000) == (classes > len(LINES))  # the others are grey


def test_curves_of_nothing() -> None:
    for curves in ({}, {"cat": ScoreCurve(NOTHING, NOTHING, NOTHING, None, None)}):
        assert near(plot_class_curves(curves), colour(LINES[0])) == 0
    missed = ScoreCurve(NOTHING, NOTHING, NOTHING, 0.0, None)
    assert plot_class_curves({"cat": missed, "dog": curve(0.5)}).size == (2200, 1760)


@pytest.mark.parametrize("classes", [0, 1, 100])
def test_confusion(classes: int) -> None:
    matrix = 9 * np.eye(classes + 1, dtype=np.int64)
    matrix[-1, -1] = 0
    picture = plot_confusion(matrix, [f"class {i}" for i in range(classes)])
    assert max(picture.size) < 3000
    dark = near(picture, (8, 48, 107), 1)  # full rows
    assert (dark > 1000) == (classes > 0)


def test_errors() -> None:
    costs = dict(zip(ERROR_TYPES, (0.1, 0.2, 0.0, 0.05, 0.0, 0.3), strict=True))
    picture = plot_errors(costs, dict.fromkeys(ERROR_TYPES, 3), 0.4)
    areas = [near(picture, colour(line)) for line in LINES[:6]]
    assert areas[5] > areas[1] > areas[0] > areas[3] > areas[2] == areas[4] == 0
    assert (
        near(plot_errors(dict.fromkeys(ERROR_TYPES, 0.0), dict.fromkeys(ERROR_TYPES, 0), None), colour(LINES[1])) == 0
    )


@pytest.mark.parametrize("classes", [0, 1, 50])
def test_labels(classes: int) -> None:
    objects = 40 * (classes > 0)
    rng = np.random.default_rng(0)
    picture = plot_labels(
        {f"class {i}": i + 1 for i in range(classes)}, rng.uniform(3, 90, (objects, 2)), rng.random((objects, 2)), 7
    )
    assert picture.width == (2000 if classes > 36 else 2600)  # where there are many, panels stand below each other
