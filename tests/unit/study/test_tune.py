"""Tuning: what is searched, what is proposed, and what is concluded; training is replaced by a formula."""

from __future__ import annotations

import csv
import json
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from locdistill.data.settings import DataSettings
from locdistill.distillation import presets
from locdistill.distillation.methods import METHODS
from locdistill.distillation.settings import TeacherSettings
from locdistill.engine.settings import EngineSettings
from locdistill.errors import NonFiniteLossError, RecipeError, RunError
from locdistill.models.settings import DetectorSettings
from locdistill.recipe.load import load_recipe
from locdistill.recipe.recipe import Recipe, supervised_terms
from locdistill.recipe.terms import TermSettings
from locdistill.study.tune.result import expected_best, seed_noise
from locdistill.study.tune.sampler import propose
from locdistill.study.tune.space import check_space, default_space, draw, own_values, parse_search, with_values
from locdistill.study.tune.tune import SearchPlan, run_plan, shortened, tune

TEMPERATURE = "terms.ld.of.edge_kl.temperature,terms.ld_vlr.of.edge_kl.temperature"


def recipe(**engine: Any) -> Recipe:
    taught = {name: TermSettings.of_term(term) for name, term in presets.ld_full().items()}
    return Recipe(
        name="student",
        detector=DetectorSettings(),
        data=DataSettings(path="somewhere", holdout=0.2),
        engine=EngineSettings(**({"steps": 100, "schedule": "cosine"} | engine)),
        teacher=TeacherSettings(weights="ema"),
        terms=supervised_terms("gfl") | taught,
    )


def test_what_is_searched_unless_something_is_named() -> None:
    space = default_space(recipe())
    assert [str(one) for one in space] == [
        f"{TEMPERATURE}=1..10:log",
        "terms.kd.of.class_kl.temperature=1..10:log",
        "terms.ld.weight=0.025..2.5:log",
        "terms.ld_vlr.weight=0.025..2.5:log",
        "terms.kd.weight=1..100:log",
        "terms.ld_vlr=on|off",
        "terms.kd=on|off",
    ]
    assert [one.label for one in space[:3]] == ["edge_kl.temperature", "kd.class_kl.temperature", "ld.weight"]
    check_space(space, recipe())
    own = own_values(recipe(), space)
    assert own is not None
    assert own[TEMPERATURE] == 10
    assert own["terms.ld_vlr"] == "on"
    assert with_values(recipe(), space, own) == recipe()


def test_a_balanced_term_is_searched_by_its_balance() -> None:
    plain = recipe()
    terms = plain.terms | {"ld": plain.terms["ld"].model_copy(update={"balance": 0.5})}
    words = [str(one) for one in default_space(plain.model_copy(update={"terms": terms}))]
    assert "terms.ld.balance=0.05..5:log" in words
    assert not any(word.startswith("terms.ld.weight") for word in words)
    all_of_them = recipe().model_copy(update={"terms": terms, "balance": 1.0})
    words = [str(one) for one in default_space(all_of_them)]
    assert "balance=0.1..10:log" in words  # of the others, whose weights cancel
    assert "terms.ld.balance=0.05..5:log" in words
    assert not any(".weight=" in word for word in words)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_searched(method: str) -> None:
    terms = {name: TermSettings.of_term(term) for name, term in METHODS[method]("gfl").items()}
    made = recipe().model_copy(update={"terms": supervised_terms("gfl") | terms})
    space = default_space(made)
    check_space(space, made)
    assert own_values(made, space) is not None
    assert {key.split(".")[1] for one in space for key in one.keys} == set(terms)


def test_what_lies_below_a_term_that_is_off_is_left_out() -> None:
    space = default_space(recipe())
    off = {"terms.ld_vlr": "off", "terms.kd": "off"}
    values = draw(space, lambda one: off.get(one.name, one.rounded(one.low)))
    assert set(values) == {*off, TEMPERATURE, "terms.ld.weight"}
    tried = with_values(recipe(), space, values)
    assert set(tried.terms) == {"cls", "bbox", "dfl", "ld"}
    assert tried.terms["ld"].of["edge_kl"]["temperature"] == 1
    assert tried.terms["ld"].weight == 0.025


def test_searches_are_read() -> None:
    made = recipe()
    number = parse_search("engine.warmup_steps=10..500:log", made)
    assert number.integer
    assert number.rounded(17.4) == 17
    real = parse_search("terms.ld.weight=1e-1..16", made)
    assert (real.low, real.high, real.log, real.integer) == (0.1, 16, False, False)
    assert real.rounded(0.123456) == 0.1235
    assert real.rounded(0.1000001) == 0.1
    words = parse_search("terms.ld.on=positives|{valuable_locations: {gamma: 0.5}}", made)
    values = {"terms.ld.on": words.choices[1]}
    assert with_values(made, [words], values).terms["ld"].on["valuable_locations"]["gamma"] == 0.5
    assert own_values(made, [words]) is None  # the recipe has positives by confidence
    assert own_values(made, [parse_search("terms.ld.weight=1..16", made)]) is None  # 0.25 lies outside
    assert own_values(made, [parse_search("engine.optimizer=adamw|sgd", made)]) == {"engine.optimizer": "sgd"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("terms.ld.weight", "cannot be searched"),
        ("terms.ld.weight=3", "cannot be searched"),
        ("=1..2", "cannot be searched"),
        ("a=b|b", "cannot be searched"),
        ("terms.ld.weight=3..2", "LOW below HIGH"),
        ("terms.ld.weight=0..2:log", "LOW above 0"),
        ("terms.ld.weight=a..b", "expected numbers"),
        ("engine.warmup_steps=1.5..3", "expected whole numbers"),
        ("terms.ld.wieght=1..2", "did you mean 'weight'"),
        ("terms.ld_vrl=on|off", "did you mean 'ld_vlr'"),
        ("engine.optimizer=sgd|adam", "adam"),
        ("terms.ld_vlr.on.valuable_locations.metric=diou|giou", "metric"),
    ],
)
def test_a_wrong_search_is_said(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_space([parse_search(text, recipe())], recipe())


def test_a_setting_is_searched_once() -> None:
    twice = [parse_search(text, recipe()) for text in ("terms.ld.weight=1..2", "terms.ld.weight=1|2")]
    with pytest.raises(RecipeError, match=r"terms\.ld\.weight is searched twice"):
        check_space(twice, recipe())
    plain = recipe().model_copy(update={"teacher": None, "terms": supervised_terms("gfl")})
    with pytest.raises(RecipeError, match="--search"):
        default_space(plain)


@pytest.mark.parametrize(
    ("engine", "length", "epochs", "steps", "milestones", "warmup"),
    [
        ({"steps": None}, {}, 3, None, (8 / 12, 11 / 12), 125),  # a quarter of twelve epochs
        ({"steps": None}, {"epochs": 6}, 6, None, (8 / 12, 11 / 12), 250),
        ({"steps": None, "milestones": (0.5,)}, {"steps": 60}, 12, 60, (0.5,), 250),  # of 120 steps: ten per epoch
        ({"steps": 100}, {}, 12, 25, (0.8,), 125),  # the second milestone lies behind the end
        ({"steps": 100}, {"epochs": 5}, 5, None, (0.8,), 250),
    ],
)
def test_a_short_run_has_the_shape_of_the_long_one(
    engine: dict[str, Any], length: dict[str, int], epochs: int, steps: int | None, milestones: Any, warmup: int
) -> None:
    made = recipe(**({"schedule": "step"} | engine))
    short = shortened(made.model_copy(update={"data": DataSettings(path="x", batch_per_device=4)}), 40, **length)
    found = (short.engine.epochs, short.engine.steps, short.engine.milestones, short.engine.warmup_steps)
    assert found == (epochs, steps, pytest.approx(milestones), warmup)
    assert short.engine.eval_every == 0


def test_a_trial_has_one_length() -> None:
    with pytest.raises(RecipeError, match="given as the length of a trial"):
        shortened(recipe(), 40, epochs=1, steps=1)


def test_proposals_follow_from_what_is_known() -> None:
    space = default_space(recipe())
    first = [propose(space, [], number) for number in range(1, 11)]
    assert [propose(space, [], number) for number in range(1, 11)] == first
    assert len({json.dumps(values) for values in first}) == 10
    for values in first:
        check = with_values(recipe(), space, values)  # each makes a recipe
        assert 1 <= check.terms["ld"].of["edge_kl"]["temperature"] <= 10


def test_proposals_learn() -> None:
    """Where one value of two is always better and a weight near 4 best, later proposals gather there."""
    made = recipe()
    space = [parse_search(text, made) for text in ("terms.ld.weight=0.25..64:log", "engine.optimizer=sgd|adamw")]

    def quality(values: dict[str, Any]) -> float:
        return -abs(math.log2(values["terms.ld.weight"] / 4)) - 3 * (values["engine.optimizer"] == "adamw")

    known: list[tuple[dict[str, Any], float]] = []
    for number in range(1, 31):
        values = propose(space, known, number)
        known.append((values, quality(values)))
    start, end = ([value for _, value in part] for part in (known[:10], known[-10:]))
    assert statistics.median(end) > statistics.median(start) + 1


class Formula:
    """Trains by a formula of the recipe, or is interrupted, or diverges."""

    def __init__(self, stop_at: int | None = None, *, diverges: bool = False) -> None:
        self.stop_at, self.diverges, self.trained = stop_at, diverges, list[str]()

    def __call__(self, made: Recipe, folder: Path, resume: bool) -> None:  # noqa: ARG002 - what is called has it
        self.trained.append(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "last.ckpt").touch()
        if len(self.trained) == self.stop_at:
            raise KeyboardInterrupt
        ld = made.terms.get("ld")
        if self.diverges and ld is not None and ld.weight > 0.25:
            raise NonFiniteLossError("ld is nan at step 3")
        ap = 0.2 if ld is None else 0.3 - 0.02 * abs(math.log2(ld.weight / 0.5)) + 0.01 * made.engine.seed
        ap += 0.004 * (-1) ** (made.engine.seed * len(made.terms))
        numbers = dict.fromkeys(("AP", "AP50", "AP75", "AP90"), ap)
        content = {"last": numbers, "train_seconds": 1.0, "steps": made.engine.steps, "stopped": "finished"}
        (folder / "metrics.json").write_text(json.dumps(content))


def plan(out: Path, **changes: Any) -> SearchPlan:
    made = recipe()
    space = tuple(parse_search(text, made) for text in ("terms.ld.weight=0.1..4:log", "terms.ld_vlr=on|off"))
    base = SearchPlan(
        recipe=made.model_copy(update={"data": DataSettings(path="somewhere")}),
        short=shortened(made, 40),
        space=space,
        trials=5,
        seeds=(0,),
        judged_on="9 held-out training images",
        images="digest",
        out=out,
    )
    return replace(base, **changes)


def test_a_search_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = run_plan(plan(tmp_path / "whole"), train=Formula(), tell=lambda _: None)
    stopped = Formula(stop_at=5)
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan(tmp_path / "parts"), train=stopped, tell=lambda _: None)
    assert stopped.trained == ["alone-0", "as_is-0", "trial-001-0", "trial-002-0", "trial-003-0"]
    rest = Formula()
    result = run_plan(plan(tmp_path / "parts"), train=rest, tell=lambda _: None)
    assert rest.trained == ["trial-003-0", "trial-004-0", "trial-005-0"]
    assert [(t.values, t.ap) for t in result.trials] == [(t.values, t.ap) for t in whole.trials]
    more = Formula()
    longer = run_plan(plan(tmp_path / "parts", trials=6, seeds=(0, 1)), train=more, tell=lambda _: None)
    assert [name for name in more.trained if name.endswith("-0")] == ["trial-006-0"]
    assert len(more.trained) == 9  # and the second seed of all
    assert [t.values for t in longer.trials[:5]] == [t.values for t in whole.trials]
    assert not list((tmp_path / "parts").glob("*/last.ckpt"))
    with pytest.raises(RunError, match="another search"):
        run_plan(plan(tmp_path / "parts", space=plan(tmp_path).space[:1]), train=Formula(), tell=lambda _: None)
    with pytest.raises(RunError, match=r"another engine\.lr"):
        run_plan(plan(tmp_path / "parts", short=shortened(recipe(lr=1), 40)), train=Formula(), tell=lambda _: None)


def test_what_is_written(tmp_path: Path) -> None:
    told: list[str] = []
    result = run_plan(plan(tmp_path, seeds=(0, 1)), train=Formula(), tell=told.append)
    content = json.loads((tmp_path / "tune.json").read_text())
    assert content["best"] == result.best.name
    assert [trial["name"] for trial in content["trials"]][-1] == "alone"
    assert len(content["trials"]) == 7
    ranked = [trial["AP"] for trial in content["trials"]]
    assert ranked == sorted(ranked, reverse=True)
    rows = list(csv.DictReader((tmp_path / "tune.csv").open()))
    assert len(rows) == 14
    assert {row["trial"] for row in rows} == {trial["name"] for trial in content["trials"]}
    assert (tmp_path / "tune.png").stat().st_size > 5000
    names = ("alone", "as_is", "best")
    as_is, best = (load_recipe(tmp_path / f"{name}.yaml") for name in names[1:])
    assert as_is == plan(tmp_path).recipe  # at full length, on the validation images
    assert best.terms["ld"].weight == result.best.values["terms.ld.weight"]
    assert (best.engine.steps, best.data.holdout, best.name) == (100, None, "student-tuned")
    assert result.table().rows[0][0] == result.best.label
    assert any("9 held-out training images" in line for line in told)
    files = " ".join(str(tmp_path / f"{name}.yaml") for name in names)
    assert result.commands[1] == f"locdistill compare {files} --seeds 3 --out {tmp_path / 'compared'}"
    assert result.alone is not None
    assert f"student alone {result.alone.ap:.1f}" in result.verdict
    assert "equally good settings" in result.verdict


def test_the_student_alone_has_nothing_of_the_teachers(tmp_path: Path) -> None:
    made = recipe().model_copy(update={"balance": 1.0})
    run_plan(plan(tmp_path, recipe=made, short=made, trials=1), train=Formula(), tell=lambda _: None)
    alone = load_recipe(tmp_path / "alone.yaml")
    assert (alone.teacher, alone.balance, set(alone.terms)) == (None, None, {"cls", "bbox", "dfl"})


def test_the_recipe_can_be_best_and_losses_can_fail(tmp_path: Path) -> None:
    told: list[str] = []
    near = (parse_search("terms.ld.weight=0.25..64:log", recipe()),)
    result = run_plan(plan(tmp_path, space=near), train=Formula(diverges=True), tell=told.append)
    assert result.best is result.as_is
    assert "None of 5 trials is better than the recipe as it is" in result.verdict
    assert "needs several seeds and trials" in result.verdict
    assert all(trial.failed == "ld is nan at step 3" for trial in result.trials)
    assert [row[1] for row in result.table().rows].count("failed") == 5
    again = Formula()
    run_plan(plan(tmp_path, space=near), train=again, tell=told.append)
    assert not again.trained  # that a loss is not finite is a result
    assert load_recipe(tmp_path / "best.yaml").terms == recipe().terms
    assert result.commands[1].count(".yaml") == 2


def test_values_that_are_possible_alone_but_not_together(tmp_path: Path) -> None:
    made = recipe()
    keys = ("terms.ld=on|off", "terms.ld_vlr=on|off", "terms.kd=on|off")
    space = tuple(parse_search(text, made) for text in keys)
    check_space(space, made)
    result = run_plan(plan(tmp_path, space=space, trials=12), train=Formula(), tell=lambda _: None)
    none = [trial for trial in result.trials if set(trial.values.values()) == {"off"}]
    assert none
    assert all("no term uses it" in trial.failed for trial in none)


def test_the_noise_that_seeds_make() -> None:
    """A seed that suits all settings alike is no noise; what is left is that of a two-way table."""
    assert seed_noise([[30, 32, 35], [31, 33, 36]]) == pytest.approx(0)
    # Residuals of +-1: sum of squares 4, one degree of freedom, over the root of two seeds.
    assert seed_noise([[1, -1], [-1, 1]]) == pytest.approx(math.sqrt(2))
    assert math.isnan(seed_noise([[1], [2]]))
    assert math.isnan(seed_noise([[1, 2]]))
    drawn = np.random.default_rng(0).normal(size=(2000, 8)).max(1)
    assert expected_best(8) == pytest.approx(drawn.mean(), abs=0.05)
    assert expected_best(1) == 0


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RunError, match=r"pip install 'locdistill\[tune\]'"):
        tune("ema", "somewhere")
