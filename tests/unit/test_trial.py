"""A trial: what is run, what is compared, what is concluded; training itself is replaced by a fake."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from locdistill.data.settings import DataSettings
from locdistill.distillation import presets
from locdistill.engine.settings import EngineSettings
from locdistill.errors import RunError, RunInterrupted
from locdistill.models.settings import DetectorSettings
from locdistill.recipes.paired import Paired, t_quantile, verdict
from locdistill.recipes.recipe import Recipe
from locdistill.recipes.terms import TermSettings
from locdistill.recipes.trial import (
    ALONE,
    DISTILLED,
    LONGER,
    Run,
    TrialSettings,
    difference_table,
    equal_time_steps,
    run_trial,
    runs_table,
    summary_table,
)

SECONDS_PER_STEP = {"teacher": 0.2, "alone": 0.1, "distilled": 0.15, "alone_longer": 0.1}
AP = {"alone": (0.50, 0.52, 0.51), "distilled": (0.54, 0.55, 0.56), "alone_longer": (0.55, 0.57, 0.57)}


def _settings(**changes: Any) -> TrialSettings:
    engine = EngineSettings(steps=200, schedule="cosine")
    recipe = Recipe(name="student", detector=DetectorSettings(), data=DataSettings(path="somewhere"), engine=engine)
    terms = {name: TermSettings.of_term(term) for name, term in presets.ld_main().items()}
    given: dict[str, Any] = {"name": "T", "teacher": recipe, "student": recipe, "terms": terms, "command": "make it"}
    return TrialSettings(**(given | changes))


class FakeTraining:
    """Writes what a training leaves; stops in the middle of the run whose name it is told."""

    def __init__(self, *, stop_in: str = "") -> None:
        self.stop_in = stop_in
        self.calls: list[tuple[str, bool]] = []
        self.recipes: dict[str, Recipe] = {}

    def __call__(self, recipe: Recipe, folder: Path, resume: bool) -> None:
        self.calls.append((folder.name, resume))
        self.recipes[folder.name] = recipe
        folder.mkdir(parents=True, exist_ok=resume)
        arm, _, seed = folder.name.partition("-")
        assert recipe.engine.steps is not None
        ap = AP[arm][int(seed)] if arm in AP else 0.7
        numbers = {"AP": ap, "AP50": ap + 0.2, "AP75": ap, "AP90": ap - 0.3}
        seconds = SECONDS_PER_STEP[arm] * recipe.engine.steps
        content = {"best": {k: v + 0.01 for k, v in numbers.items()}, "last": numbers, "train_seconds": seconds}
        content |= {"seconds": seconds + 1, "steps": recipe.engine.steps, "stopped": "finished"}
        (folder / "last.ckpt").write_text("")
        if folder.name == self.stop_in:
            (folder / "metrics.json").write_text(json.dumps(content | {"stopped": None}))
            raise KeyboardInterrupt
        (folder / "metrics.json").write_text(json.dumps(content))


def _quiet(line: str) -> None:
    assert line


def _run(settings: TrialSettings, out: Path, train: Callable[[Recipe, Path, bool], None]) -> Any:
    return run_trial(settings, out, train=train, tell=_quiet)


def test_t_quantiles() -> None:
    assert t_quantile(1) == pytest.approx(12.706)
    assert t_quantile(2) == pytest.approx(4.303)
    assert t_quantile(30) == pytest.approx(2.042)
    assert t_quantile(60) == pytest.approx(2.000, abs=0.002)
    assert t_quantile(10**6) == pytest.approx(1.96, abs=0.001)


def test_paired_by_hand() -> None:
    pair = Paired.of((54.0, 55.0, 56.0), (50.0, 52.0, 51.0))
    assert pair.differences == (4.0, 3.0, 5.0)
    assert pair.mean == 4.0
    assert pair.deviation == pytest.approx(1.0)
    assert pair.error == pytest.approx(1 / math.sqrt(3))
    assert (pair.low, pair.high) == pytest.approx((4 - 4.303 / math.sqrt(3), 4 + 4.303 / math.sqrt(3)))
    assert pair.finding == "higher"
    assert Paired.of((50.0, 52.0, 51.0), (54.0, 55.0, 56.0)).finding == "lower"
    assert Paired.of((1.0, 3.0), (2.0, 1.0)).finding == "within noise"


def test_one_seed_concludes_nothing() -> None:
    pair = Paired.of((60.0,), (50.0,))
    assert pair.finding == "unknown"
    assert verdict(pair, pair).startswith("At equal steps one seed says nothing")
    assert "within noise" not in verdict(pair, None)
    assert math.isnan(pair.deviation)
    assert "one seed" in pair.text()
    with pytest.raises(ValueError, match="no seed"):
        Paired.of((), ())
    with pytest.raises(ValueError, match="shorter"):
        Paired.of((1.0, 2.0), (1.0,))


def _pair(*differences: float) -> Paired:
    return Paired.of(differences, (0.0,) * len(differences))


def test_verdict_says_what_was_seen() -> None:
    up, down, noise = _pair(4.0, 3.0, 5.0), _pair(-4.0, -3.0, -5.0), _pair(1.0, -1.0, 0.3)
    both = verdict(up, up)
    assert "helps: AP +4.0 (95 % interval +1.5 to +6.5" in both
    assert "At equal time it helps too" in both
    assert "opposite" not in both
    turned = verdict(up, down)
    assert "helps" in turned
    assert "student alone, trained for longer, is ahead" in turned
    assert "opposite sign" in turned
    unclear = verdict(noise, noise)
    assert unclear.count("within noise (the interval contains 0)") == 2
    assert "helps" not in unclear
    assert "hurts" in verdict(down, up)
    assert "helps too" not in verdict(down, up)
    assert "not measured" in verdict(up, None)


def _finished(arm: str, seconds: list[float], steps: int) -> list[Run]:
    return [Run(arm, seed, steps, value, {}, Path()) for seed, value in enumerate(seconds)]


def test_steps_of_equal_time_by_hand() -> None:
    alone = _finished(ALONE, [20.0, 22.0, 90.0], 200)  # the median is not moved by one disturbed run
    distilled = _finished(DISTILLED, [33.0, 31.0, 34.0], 200)
    assert equal_time_steps(alone, distilled) == 300
    assert equal_time_steps(distilled, alone) == 200


def test_a_trial_runs_and_compares(tmp_path: Path) -> None:
    train = FakeTraining()
    result = _run(_settings(), tmp_path / "t", train)
    first = ["teacher", "alone-0", "distilled-0", "alone-1", "distilled-1", "alone-2", "distilled-2"]
    assert train.calls == [(name, False) for name in [*first, "alone_longer-0", "alone_longer-1", "alone_longer-2"]]
    assert train.recipes["alone_longer-1"].engine.steps == 300
    assert train.recipes["alone_longer-1"].teacher is None
    distilled = train.recipes["distilled-2"]
    assert distilled.engine.seed == 2
    assert distilled.engine.steps == 200
    assert set(distilled.terms) == {"cls", "bbox", "dfl", "ld"}
    assert distilled.teacher is not None
    assert distilled.teacher.weights == str(tmp_path / "t" / "teacher" / "last.safetensors")
    assert result.values(ALONE, "AP") == pytest.approx([50, 52, 51])  # of the end, not of the best
    assert result.difference(ALONE).differences == pytest.approx((4, 3, 5))
    assert result.difference(LONGER).differences == pytest.approx((-1, -2, -1))
    assert "helps" in result.verdict
    assert "opposite sign" in result.verdict
    rows = {row[0]: row for row in summary_table(result).rows}
    assert rows["student + LD"][1:] == (
        "55.0 ± 1.0",
        "75.0 ± 1.0",
        "55.0 ± 1.0",
        "25.0 ± 1.0",
        "30.0 ± 0.0",
        "200",
        "3",
    )
    assert rows["teacher"][1] == "70.0"
    assert difference_table(result).rows[0] == ("AP at equal steps", "+4.0", "1.0", "+1.5 to +6.5", "+4.0, +3.0, +5.0")
    assert len(runs_table(result).rows) == 10


def test_results_are_written(tmp_path: Path) -> None:
    _run(_settings(), tmp_path, FakeTraining())
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["differences"]["alone"]["AP"]["mean"] == pytest.approx(4.0)
    assert content["command"] == "make it"
    assert {"torch", "cores", "device"} <= set(content["environment"])
    assert [run["seconds"] for run in content["runs"] if run["arm"] == LONGER] == pytest.approx([30.0] * 3)
    text = (tmp_path / "results.md").read_text()
    assert "| student + LD | 55.0 ± 1.0 |" in text
    assert "make it" in text


def test_results_of_one_seed_are_valid_json(tmp_path: Path) -> None:
    _run(_settings(seeds=(0,)), tmp_path, FakeTraining())
    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert content["differences"]["alone"]["AP"]["low"] is None


@pytest.mark.parametrize("stop", ["teacher", "distilled-1", "alone_longer-2"])
def test_an_interrupted_trial_goes_on(tmp_path: Path, stop: str) -> None:
    stopped = FakeTraining(stop_in=stop)
    with pytest.raises(KeyboardInterrupt):
        _run(_settings(), tmp_path, stopped)
    again = FakeTraining()
    result = _run(_settings(), tmp_path, again)
    assert again.calls[0] == (stop, True)
    assert not {name for name, _ in again.calls} & {name for name, _ in stopped.calls[:-1]}
    assert len(stopped.calls) + len(again.calls) == 11
    assert len(result.runs) == 9
    idle = FakeTraining()
    _run(_settings(command="another way to call it"), tmp_path, idle)
    assert idle.calls == []


def test_a_stopped_run_of_several_says_how_to_go_on(tmp_path: Path) -> None:
    """Not with --resume, which is for single runs."""

    def stop(made: Recipe, folder: Path, resume: bool) -> None:
        raise RunInterrupted("stopped. Go on with the same command and --resume", 2)

    with pytest.raises(RunInterrupted, match="start the same command again") as stopped:
        run_trial(_settings(), tmp_path, train=stop, tell=_quiet)
    assert "--resume" not in str(stopped.value)
    assert stopped.value.exit_code == 130


def test_a_run_without_checkpoint_begins_again(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "log.txt").write_text("stopped early")
    train = FakeTraining()
    _run(_settings(), tmp_path, train)
    assert train.calls[0] == ("teacher", False)


def test_a_resumed_trial_keeps_the_steps_of_equal_time(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run(_settings(), tmp_path, FakeTraining(stop_in="alone_longer-1"))
    metrics = tmp_path / "alone-0" / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"train_seconds": 20.0', '"train_seconds": 5.0'))
    again = FakeTraining()
    _run(_settings(), tmp_path, again)
    assert {recipe.engine.steps for recipe in again.recipes.values()} == {300}


def test_another_trial_in_the_folder_is_refused(tmp_path: Path) -> None:
    _run(_settings(), tmp_path, FakeTraining())
    with pytest.raises(RunError, match="other settings"):
        _run(_settings(terms={"ld": TermSettings.of_term(presets.ld_main(weight=1.0)["ld"])}), tmp_path, FakeTraining())


def test_seeds_can_be_added(tmp_path: Path) -> None:
    _run(_settings(seeds=(0, 1)), tmp_path, FakeTraining())
    more = FakeTraining()
    result = _run(_settings(seeds=(0, 1, 2)), tmp_path, more)
    assert [name for name, _ in more.calls] == ["alone-2", "distilled-2", "alone_longer-2"]
    assert len(result.difference(ALONE).differences) == 3


def test_given_teacher_is_not_trained(tmp_path: Path) -> None:
    train = FakeTraining()
    result = _run(_settings(teacher_weights="given.safetensors", equal_time=False), tmp_path, train)
    assert "teacher" not in dict(train.calls)
    assert train.recipes["distilled-0"].teacher.weights == "given.safetensors"  # type: ignore[union-attr]
    assert result.teacher is None
    assert result.arms == [ALONE, DISTILLED]
    assert "not measured" in result.verdict


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (1, 1)}, "seeds must differ"),
        ({"student": {"engine": {"steps": None}}}, "needs steps"),
        ({"student": {"engine": {"schedule": "step"}}}, "schedule=cosine"),
        ({"terms": {"cls": presets.ld_main()["ld"]}}, "cls already"),
    ],
)
def test_impossible_trials_are_refused(changes: dict[str, Any], message: str) -> None:
    settings = _settings()
    if "student" in changes:
        engine = settings.student.engine.model_copy(update=changes["student"]["engine"])
        changes = {"student": settings.student.model_copy(update={"engine": engine})}
    if "terms" in changes:
        changes = {"terms": {name: TermSettings.of_term(term) for name, term in changes["terms"].items()}}
    with pytest.raises(ValidationError, match=message):
        _settings(**changes)
