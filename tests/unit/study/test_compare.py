"""A comparison: how runs are grouped, how differences are judged; training and detecting are replaced by fakes."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from locdistill.data.digest import data_digest
from locdistill.data.settings import DataSettings
from locdistill.distillation import presets
from locdistill.distillation.settings import TeacherSettings
from locdistill.engine.settings import EngineSettings
from locdistill.errors import RecipeError, RunError, TeacherError
from locdistill.evaluation.bootstrap import Judgement, image_weights
from locdistill.evaluation.detections_file import read_detections, write_detections
from locdistill.evaluation.evaluator import Evaluator
from locdistill.evaluation.paired import OverImages, Paired
from locdistill.models.settings import DetectorSettings
from locdistill.recipe.load import dump_recipe
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.request import Request
from locdistill.recipe.terms import TermSettings
from locdistill.study.arms import NOTHING, finished_run
from locdistill.study.compare.arms import NAMES, USE, arms_of, changes, chosen_seeds, flat
from locdistill.study.compare.compare import ComparisonPlan, compare, run_plan
from locdistill.study.compare.result import Comparison, Measured, class_metric, difference_table, summary_table
from locdistill.types import Detections
from tests.unit.evaluation.test_coco import dataset, detections, record

IMAGES = 60
DATA = dataset(*(record(i, [[0, 0, 50, 50]], [i % 2]) for i in range(IMAGES)))
DIGEST = data_digest(DATA, ordered=False)


def recipe(name: str, **engine: Any) -> Recipe:
    settings = EngineSettings(**({"steps": 100, "schedule": "cosine"} | engine))
    return Recipe(name=name, detector=DetectorSettings(), data=DataSettings(path="somewhere"), engine=settings)


def taught(name: str, weights: str | None = "absent.safetensors") -> Recipe:
    terms = {n: TermSettings.of_term(term) for n, term in presets.ld_main().items()}
    plain = recipe(name)
    return plain.model_copy(update={"terms": plain.terms | terms, "teacher": TeacherSettings(weights=weights)})


def finish(folder: Path, made: Recipe, *, stopped: str | None = "finished", seconds: float = 10.0) -> Path:
    """Write what a finished run leaves, as far as it is read here."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(dump_recipe(made))
    numbers = dict.fromkeys(("AP", "AP50", "AP75", "AP90"), 0.5)
    content = {"last": numbers, "train_seconds": seconds, "steps": made.engine.steps, "stopped": stopped}
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def found(quality: float, seed: int) -> dict[int, Detections]:
    """Detections that find a share of the objects, with scores by chance; which ones, the seed decides."""
    rng = np.random.default_rng(seed)
    hit, score = rng.random(IMAGES) < quality, rng.random(IMAGES)
    boxes = ([0, 0, 50, 50], [100, 100, 150, 150])
    return {i: detections([boxes[0 if hit[i] else 1]], [score[i]], [i % 2]) for i in range(IMAGES)}


@functools.cache
def judged(quality: float, seed: int) -> Judgement:
    """They are judged once for all tests."""
    return Evaluator(DATA).judge(found(quality, seed))


class Fakes:
    """Trains by writing what a training leaves, and measures what it made up; some trainings are interrupted."""

    def __init__(
        self, quality: dict[str, float], *, stop_in: str = "", seconds: dict[str, float] | None = None
    ) -> None:
        self.quality, self.stop_in, self.seconds = quality, stop_in, seconds or {}
        self.calls: list[tuple[str, bool]] = []
        self.steps: dict[str, int | None] = {}

    def train(self, made: Recipe, folder: Path, resume: bool) -> None:
        self.calls.append((folder.name, resume))
        self.steps[folder.name] = made.engine.steps
        stop = folder.name == self.stop_in
        per_step = self.seconds.get(folder.name.rpartition("-")[0], 0.1)
        assert made.engine.steps is not None
        finish(folder, made, stopped=None if stop else "finished", seconds=per_step * made.engine.steps)
        (folder / "last.ckpt").write_text("")
        if stop:
            raise KeyboardInterrupt

    def measure(self, arm: str, seed: int, folder: Path) -> Measured:
        judgement = judged(self.quality[arm], seed)
        numbers = judgement.numbers()
        metrics, classes = ({k: 100 * float(v[0]) for k, v in of.items()} for of in (numbers.means, numbers.classes))
        return Measured(replace(finished_run(arm, seed, folder), metrics=metrics), classes, judgement, DIGEST)


def plan(out: Path, *recipes: Recipe, seeds: tuple[int, ...] = (0, 1, 2), **more: Any) -> ComparisonPlan:
    return ComparisonPlan(arms=arms_of(recipes, Request(), seeds), out=out, **({"resamples": 100} | more))


def quiet(line: str) -> None:
    assert line


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page, whose charts take longer than the rest."""
    monkeypatch.setattr("locdistill.study.compare.page.write_page", lambda result, _: result.out)


def compared(out: Path, quality: dict[str, float], **more: Any) -> Comparison:
    fakes = Fakes(quality, seconds=more.pop("seconds", None))
    recipes = [recipe(name, clip_norm=1 + i) for i, name in enumerate(n for n in quality if "as-long" not in n)]
    return run_plan(plan(out, *recipes, **more), train=fakes.train, measure=fakes.measure, tell=quiet)


# ---------------------------------------------------------------------------------------------------------- statistics


def test_seeds_and_images_are_put_together_by_hand() -> None:
    images = OverImages(error=1.0, low=2.1, high=5.9)
    pair = Paired.of((54.0, 55.0, 56.0), (50.0, 52.0, 51.0), images)
    over_seeds = Paired.of((54.0, 55.0, 56.0), (50.0, 52.0, 51.0))
    assert pair.mean == over_seeds.mean == 4.0
    half = ((4.303 / 3**0.5) ** 2 + 1.96**2) ** 0.5
    assert (pair.low, pair.high) == pytest.approx((4 - half, 4 + half))
    assert pair.low < over_seeds.low


@pytest.mark.parametrize(
    ("seeds", "over_seeds", "over_images", "together"),
    [(3, 1.0, 0.0, 0.0), (3, 0.0, 10.0, 0.0), (3, 1.0, 10.0, 3.0), (2, 0.3, 10.0, 10.0), (5, 0.0, 0.0, 10.0)],
)
def test_the_interval_covers_what_it_promises(
    seeds: int, over_seeds: float, over_images: float, together: float
) -> None:
    """Differences of known mean 0 that depend on seed, image, and both: the interval contains 0 in 95 of 100 cases.

    Whichever of the three there is, and more often where it counts what both do together twice.
    """
    rng, images, cases = np.random.default_rng(0), 60, 300
    weights = image_weights(images, 200) / images
    held = 0
    for _ in range(cases):
        shares = (over_seeds, (seeds, 1)), (over_images, (1, images)), (together, (seeds, images))
        gaps = sum(rng.normal(0, size, shape) for size, shape in shares)
        pair = Paired.of(gaps.mean(1).tolist(), [0.0] * seeds, OverImages.of((gaps @ weights.T).mean(0)))
        held += pair.low <= 0 <= pair.high
    assert held / cases > 0.92  # three deviations of the count below 0.95 are 0.912
    assert held / cases < 0.97 or together  # and not for being too wide


def test_images_are_resampled_in_pairs() -> None:
    """Images that are hard for both sides do not blur the difference between them."""
    weights = image_weights(IMAGES, 200)
    first, second = (judged(quality, seed=2).numbers(weights).means["AP"] for quality in (0.6, 0.7))
    assert np.std(second - first) < 0.6 * np.hypot(np.std(first), np.std(second))


def test_one_seed_has_the_interval_over_images_and_concludes_nothing() -> None:
    pair = Paired.of((54.0,), (50.0,), OverImages(error=0.5, low=3.0, high=5.0))
    assert pair.finding == "unknown"
    assert "over images alone +3.0 to +5.0" in pair.text()


def test_resamples_without_objects_say_nothing() -> None:
    over = OverImages.of(np.array([1.0, np.nan, 3.0]))
    assert over is not None
    assert over.error == pytest.approx(2**0.5)
    assert OverImages.of(np.array([np.nan, 1.0])) is None


# ---------------------------------------------------------------------------------------------------------- comparison


def test_a_clear_difference_is_told(tmp_path: Path) -> None:
    result = compared(tmp_path, {"poor": 0.3, "good": 0.9})
    pair = result.difference("good")
    assert pair.low > 0
    assert pair.finding == "higher"
    assert pair.images is not None
    assert 0 < pair.images.low < pair.mean < pair.images.high
    assert pair.low < pair.images.low  # seeds come on top
    assert result.verdict.startswith("good against poor: At equal steps good helps: AP +")
    assert "hurts" in compared(tmp_path / "turned", {"good": 0.9, "poor": 0.3}).verdict
    by_class = result.difference("good", class_metric("cat"))
    assert by_class.low > 0
    assert result.metrics == ("AP", "AP50", "AP75", "AP90", "APm")  # all objects are of medium size


@pytest.mark.usefixtures("no_page")
def test_equal_runs_differ_by_exactly_nothing(tmp_path: Path) -> None:
    result = compared(tmp_path, {"one": 0.6, "same": 0.6})
    pair = result.difference("same")
    assert pair.differences == (0.0, 0.0, 0.0)
    assert (pair.low, pair.high) == (0.0, 0.0)
    assert pair.images == OverImages(0.0, 0.0, 0.0)
    assert "within noise" in result.verdict


@pytest.mark.usefixtures("no_page")
def test_the_interval_over_images_is_that_of_the_resampled_library(tmp_path: Path) -> None:
    """The same resamples, one at a time: the mean over seeds of the difference of AP."""
    result = compared(tmp_path, {"a": 0.5, "b": 0.7}, resamples=12)

    def ap(arm: str, row: np.ndarray) -> float:
        return float(np.mean([m.judgement.numbers(row[None]).means["AP"] for m in result.runs[arm]]))

    gaps = [ap("b", row) - ap("a", row) for row in image_weights(IMAGES, 12)]
    images = result.difference("b").images
    assert images is not None
    assert images.error == pytest.approx(100 * np.std(gaps, ddof=1))


def test_results_are_written(tmp_path: Path) -> None:
    compared(tmp_path, {"poor": 0.3, "good": 0.9, "worse": 0.1}, command="locdistill compare")
    content = json.loads((tmp_path / "compare.json").read_text(), parse_constant=pytest.fail)
    assert content["first"] == "poor"
    assert set(content["differences"]) == {"good", "worse"}
    assert content["differences"]["worse"]["as_trained"]["AP"]["finding"] == "lower"
    assert content["settings"]["worse"] == {"engine.clip_norm": {"first": "1.0", "here": "3.0"}}
    assert any("of twenty" in note for note in content["notes"])
    assert len(content["runs"]) == 9
    text = (tmp_path / "compare.md").read_text()
    for expected in ("| good |", "| engine.clip_norm |", "hurts", "locdistill compare", "| cat |"):
        assert expected in text
    assert "Seed by seed" in (tmp_path / "report.html").read_text()


def test_one_seed_is_valid_json(tmp_path: Path) -> None:
    result = compared(tmp_path, {"poor": 0.3, "good": 0.9}, seeds=(0,))
    content = json.loads((tmp_path / "compare.json").read_text(), parse_constant=pytest.fail)
    pair = content["differences"]["good"]["as_trained"]["AP"]
    assert pair["low"] is None
    assert pair["images"]["low"] > 0
    assert "one seed says nothing" in result.verdict


@pytest.mark.usefixtures("no_page")
def test_a_teacher_that_looks_once_for_all_seeds(tmp_path: Path) -> None:
    fakes = Fakes({"a": 0.6, "b": 0.7, "a-as-long-as-b": 0.6}, seconds={"a": 0.1, "b": 0.1})
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes(b"")
    own = taught("b", str(weights)).model_copy(update={"engine": recipe("b").engine})
    wanted = plan(tmp_path / "out", recipe("a"), own, equal_time=True, cache=True)
    looked: list[str] = []
    trained: dict[str, Recipe] = {}

    def train(made: Recipe, folder: Path, resume: bool) -> None:
        trained[folder.name] = made
        fakes.train(made, folder, resume)

    def remember(made: Recipe) -> float:
        looked.append(str(made.teacher.cache.path))  # type: ignore[union-attr]
        return 6.0

    for _ in range(2):
        result = run_plan(wanted, train=train, measure=fakes.measure, tell=quiet, remember=remember)
    assert looked == [str(tmp_path / "out" / "cache-b")]
    assert trained["a-0"].teacher is None
    assert trained["b-2"].teacher.cache.path == looked[0]  # type: ignore[union-attr]
    # A hundred steps of b take as long as those of a, and 6 s are shared by three seeds: 20 steps of a.
    assert fakes.steps["a-as-long-as-b-0"] == 120
    assert any("were computed once, in 6.0 s" in note for note in result.notes)


def test_equal_time(tmp_path: Path) -> None:
    """The dear recipe takes twice as long per step: the first gets twice the steps; the cheap one's time is its own."""
    quality = {"a": 0.5, "dear": 0.7, "cheap": 0.5, "a-as-long-as-dear": 0.9}
    fakes = Fakes(quality, seconds={"dear": 0.2})
    recipes = [recipe(name, clip_norm=1 + i) for i, name in enumerate(("a", "dear", "cheap"))]
    wanted = plan(tmp_path, *recipes, equal_time=True)
    result = run_plan(wanted, train=fakes.train, measure=fakes.measure, tell=quiet)
    assert fakes.steps["a-as-long-as-dear-1"] == 200
    assert len(fakes.calls) == 12
    assert result.equal_time["cheap"].name == "a"
    assert result.difference("dear").finding == "higher"
    assert result.difference("dear", equal_time=True).finding == "lower"
    assert "a, trained for longer, is ahead - the opposite sign" in result.verdicts["dear"]
    rows = {row[0]: row for row in summary_table(result).rows}
    assert rows["a, as long as dear"][-2:] == ("200", "3")
    assert rows["dear"][-3] == "2.00"
    assert sum("at equal time" in row[0] for row in difference_table(result).rows) == 2 * len(result.metrics)


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("stop", ["b-1", "a-as-long-as-b-2"])
def test_an_interrupted_comparison_goes_on(tmp_path: Path, stop: str) -> None:
    quality = {"a": 0.5, "b": 0.7, "a-as-long-as-b": 0.6}
    wanted = plan(tmp_path, recipe("a"), recipe("b", clip_norm=1), equal_time=True)
    stopped = Fakes(quality, stop_in=stop, seconds={"b": 0.2})
    with pytest.raises(KeyboardInterrupt):
        run_plan(wanted, train=stopped.train, measure=stopped.measure, tell=quiet)
    again = Fakes(quality, seconds={"b": 0.2})
    run_plan(wanted, train=again.train, measure=again.measure, tell=quiet)
    assert again.calls[0] == (stop, True)
    assert not {name for name, _ in again.calls} & {name for name, _ in stopped.calls[:-1]}
    idle = Fakes(quality)
    run_plan(wanted, train=idle.train, measure=idle.measure, tell=quiet)
    assert idle.calls == []


@pytest.mark.usefixtures("no_page")
def test_recipes_and_seeds_can_be_added_but_not_changed(tmp_path: Path) -> None:
    quality = {"a": 0.5, "b": 0.7, "c": 0.6}
    first, more = Fakes(quality), Fakes(quality)
    begun = plan(tmp_path, recipe("a"), recipe("b", clip_norm=1), seeds=(0,))
    run_plan(begun, train=first.train, measure=first.measure, tell=quiet)
    added = plan(tmp_path, recipe("a"), recipe("c", clip_norm=2), seeds=(0, 1))
    run_plan(added, train=more.train, measure=more.measure, tell=quiet)
    assert [name for name, _ in more.calls] == ["c-0", "a-1", "c-1"]
    changed = plan(tmp_path, recipe("a", lr=0.5), recipe("c", clip_norm=2))
    with pytest.raises(RunError, match=r"a has another engine\.lr"):
        run_plan(changed, train=more.train, measure=more.measure, tell=quiet)


def test_runs_on_other_images_are_refused(tmp_path: Path) -> None:
    fakes = Fakes({"a": 0.5, "b": 0.7})

    def measure(arm: str, seed: int, folder: Path) -> Measured:
        return replace(fakes.measure(arm, seed, folder), images=arm)

    with pytest.raises(RunError, match="cannot be compared"):
        run_plan(plan(tmp_path, recipe("a"), recipe("b", clip_norm=1)), train=fakes.train, measure=measure, tell=quiet)


# ------------------------------------------------------------------------------------------------ folders and bad input


def test_folders_are_grouped_by_what_their_recipe_says(tmp_path: Path) -> None:
    folders = [
        finish(tmp_path / "x", recipe("first", seed=1)),
        finish(tmp_path / "y", recipe("another_name", seed=0, progress=False)),
        finish(tmp_path / "z", recipe("first", seed=0, lr=0.5)),
    ]
    arms = arms_of(folders, Request(), None)
    assert [arm.name for arm in arms] == ["first", "first-2"]
    assert arms[0].there == {1: folders[0], 0: folders[1]}
    assert arms[0].seeds == (0, 1)
    assert arms[1].there == {0: folders[2]}
    numbered = [finish(tmp_path / f"n{i}", recipe(f"n-{i}", seed=i, lr=0.7)) for i in (1, 0)]
    assert [arm.name for arm in arms_of([folders[2], *numbered], Request(), None)] == ["first", "n"]
    assert arms_of(folders, Request(), (0, 1, 2))[1].seeds == (0, 1, 2)  # missing ones are trained
    mixed = arms_of([folders[2], recipe("new")], Request(), None)
    assert mixed[1].seeds == (0,)
    with pytest.raises(RunError, match="same recipe with the same seed"):
        arms_of([*folders, finish(tmp_path / "again", recipe("first", seed=1))], Request(), None)
    with pytest.raises(RecipeError, match="came runs of a single recipe"):
        arms_of(folders[:2], Request(), None)


def test_folders_that_cannot_be_compared(tmp_path: Path) -> None:
    good = finish(tmp_path / "good", recipe("good"))
    half = finish(tmp_path / "half", recipe("half", clip_norm=1), stopped=None)
    with pytest.raises(RunError, match=r"half is not finished \(it is at step 100\).*locdistill train --resume"):
        arms_of([good, half], Request(), None)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(RunError, match="is not a run folder"):
        arms_of([good, tmp_path / "nothing"], Request(), None)
    other = finish(tmp_path / "other", recipe("other", clip_norm=1, seed=7))
    arms = arms_of([good, other], Request(), None)
    fakes = Fakes({})
    with pytest.raises(RunError, match="seed by seed"):
        run_plan(ComparisonPlan(arms=arms, out=tmp_path / "out"), train=fakes.train, measure=fakes.measure)
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"needs its teacher.*--teacher"):
        arms_of([recipe("a"), taught("b", weights=None)], Request(), None)
    weights = tmp_path / "t.safetensors"
    weights.write_bytes(b"")
    arms = arms_of([recipe("a"), taught("b", weights=None)], Request(teacher=weights), None)
    teacher = arms[1].recipe(0).teacher
    assert teacher is not None
    assert teacher.weights == str(weights)
    assert arms[0].recipe(0).teacher is None
    with pytest.raises(RecipeError, match="no data set given"):
        arms_of([recipe("a").model_copy(update={"data": DataSettings()}), recipe("b")], Request(), None)


def test_seeds_and_resamples_are_checked() -> None:
    assert chosen_seeds(2) == (0, 1)
    assert chosen_seeds([4, 2]) == (4, 2)
    assert chosen_seeds(None) is None
    for bad in (0, [1, 1], []):
        with pytest.raises(RecipeError, match="seeds: expected"):
            chosen_seeds(bad)
    with pytest.raises(RecipeError, match="resamples: expected at least 2, better 1000 or more, came 1"):
        compare(recipe("a"), recipe("b"), resamples=1)


def test_settings_reach_all_recipes() -> None:
    request = Request(data="elsewhere", overrides=("engine.lr=0.5",))
    for arm in arms_of([recipe("a"), recipe("b", clip_norm=1)], request, None):
        made = arm.recipe(2)
        assert (made.data.path, made.engine.lr, made.engine.seed) == ("elsewhere", 0.5, 2)


def test_what_differs_is_told_in_full_and_without_what_is_usual(tmp_path: Path) -> None:
    """Two terms that differ in their normaliser or schedule alone do not read alike; a teacher is named once."""
    (weights := tmp_path / "t.safetensors").write_bytes(b"")
    alone, ld = recipe("alone"), taught("ld", str(weights))
    slow = ld.terms["ld"].model_copy(update={"norm": {"constant": {"divisor": 4.0}}, "schedule": {"cosine": {}}})
    arms = arms_of(
        [alone, ld, ld.model_copy(update={"name": "slow", "terms": ld.terms | {"ld": slow}})], Request(), None
    )
    first = {key: (there, here) for key, there, here in changes(arms[0], arms[1])}
    assert first["teacher.weights"] == (NOTHING, str(weights))
    assert not {"teacher.share", "teacher.scale", "teacher.more"} & set(first)
    assert first["terms.ld"][1].startswith("edge_kl on positives (by student_confidence) over per_image")
    assert first["terms.ld"][1].endswith("weight 0.25")
    ((key, there, here),) = changes(arms[1], arms[2])
    assert key == "terms.ld"
    assert "per_image" in there
    assert here.endswith("over constant (divisor 4.0), weight 0.25, cosine")


def test_flat_settings_leave_out_what_makes_no_other_recipe() -> None:
    settings = flat(taught("a"), without=USE | NAMES)
    assert not {"name", "engine.seed", "data.path", "teacher.weights"} & set(settings)
    assert settings["terms.ld"]["weight"] == 0.25
    assert settings["engine.steps"] == 100
    assert settings == flat(taught("b"), without=USE | NAMES)


def test_detections_are_kept_and_read_again(tmp_path: Path) -> None:
    two, nothing = detections([[0, 0, 5, 5], [1, 1, 2, 2]], [0.5, 0.4], [0, 1]), detections([], [], [])
    here = {3: [two, nothing], 1: [nothing, two]}
    write_detections(tmp_path / "a.npz", "stamp", here)
    again = read_detections(tmp_path / "a.npz", "stamp")
    assert again is not None
    assert list(again) == [3, 1]
    torch.testing.assert_close(again, here)
    assert read_detections(tmp_path / "a.npz", "other weights") is None
    assert read_detections(tmp_path / "b.npz", "stamp") is None


def test_the_digest_of_images_does_not_depend_on_order() -> None:
    turned = [replace(r, labels=1 - r.labels) for r in reversed(DATA.records)]
    other = replace(DATA, records=tuple(turned), classes=("dog", "cat"))
    assert data_digest(other, ordered=False) == data_digest(DATA, ordered=False)
    assert data_digest(replace(DATA, classes=("dog", "cat")), ordered=False) != data_digest(DATA, ordered=False)
    assert data_digest(replace(DATA, records=DATA.records[1:]), ordered=False) != data_digest(DATA, ordered=False)
