"""The demonstration from the command line, small enough for a test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from locdistill.cli.demo import NEXT
from locdistill.errors import RunError
from locdistill.study.compare.compare import ComparisonPlan
from locdistill.study.compare.result import Comparison
from locdistill.study.demo import FAST, DemoSettings, Pace, _fitting, demo_plan, run_demo
from tests.conftest import Answer
from tests.processes import STUCK, wait_until

pytestmark = pytest.mark.journey


def test_demo_is_stopped_goes_on_and_compares(
    tmp_path: Path, cli: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings beside it stop with it; what had finished is not trained again, and the rest here, one by one."""
    out = tmp_path / "demo"
    words = ["demo", "--fast", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "locdistill", *words]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    wait_until((out / "alone-0" / "recipe.yaml").is_file, first)
    first.send_signal(signal.SIGTERM)
    _, error = first.communicate(timeout=STUCK)
    assert first.returncode == 128 + signal.SIGTERM, error
    assert "Traceback" not in error, error

    monkeypatch.setattr("locdistill.study.demo.cores", lambda: 1)
    code, printed, error = cli(*words)
    assert code == 0, error
    assert "training: teacher" not in printed
    for expected in ("student alone", "student + LD", "AP75", "95 % interval", "report.html", *NEXT):
        assert expected in printed
    assert "At equal steps" in printed
    assert "At equal time" in printed

    content = json.loads((out / "compare.json").read_text())
    assert {(run["arm"], run["seed"]) for run in content["runs"]} >= {("alone", 0), ("distilled", 0)}
    assert all(run["steps"] >= 4 and run["seconds"] > 0 for run in content["runs"])
    assert content["command"] == "locdistill demo --fast"
    assert content["teacher"]["steps"] == 4
    assert "| teacher |" in (out / "compare.md").read_text()
    page = (out / "report.html").read_text()
    assert page.count("data:image/") >= 5
    for expected in ("The same images", "The edges of one object", "Where distillation acts"):
        assert expected in page
    recipe = (out / "distilled-0" / "recipe.yaml").read_text()
    assert "ld_vlr:" in recipe


SIZES = DemoSettings()


@pytest.mark.parametrize(
    ("second", "minutes", "fixed", "share", "seeds"),
    [
        (0.04, 4, False, 1.0, 3),
        (0.09, 4, False, 0.75, 3),
        (0.13, 4, False, 0.5, 2),
        (10.0, 4, False, 0.5, 1),
        (10.0, 4, True, 0.5, 3),
        (0.3, 100, False, 1.0, 3),
    ],
)
def test_a_slow_machine_takes_fewer_steps_then_fewer_seeds(
    second: float, minutes: float, fixed: bool, share: float, seeds: int
) -> None:
    said: list[str] = []
    pace = Pace(teacher=second, student=second, jobs=2)
    chosen = _fitting(SIZES, pace, minutes, fixed_seeds=fixed, tell=said.append)
    assert (chosen.student_steps, chosen.seeds) == (round(SIZES.student_steps * share), seeds)
    assert chosen.teacher_steps == round(SIZES.teacher_steps * share)
    assert f"about {pace.minutes(chosen):.1f} minutes" in said[1]
    assert (f"instead of {SIZES.seeds}" in said[1]) == (chosen != SIZES)
    assert ("is too short even for the smallest" in said[1]) == (pace.minutes(chosen) > minutes)


def test_what_was_chosen_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A demonstration goes on with its steps, however fast the machine is by then; seeds can be added."""
    plans: list[ComparisonPlan] = []

    def carry_out(plan: ComparisonPlan, **_: object) -> Comparison:
        plans.append(plan)
        return Comparison(plan.arms, {})

    monkeypatch.setattr("locdistill.study.demo.carry_out", carry_out)
    monkeypatch.setattr("locdistill.study.demo.measured_pace", lambda *_: Pace(teacher=9, student=9, jobs=2))
    slow = FAST.model_copy(update={"student_steps": 40, "seeds": 3})
    run_demo(tmp_path, slow, minutes=0.1, tell=lambda _: None)
    monkeypatch.setattr("locdistill.study.demo.measured_pace", lambda *_: Pace(teacher=0, student=0, jobs=2))
    run_demo(tmp_path, slow, minutes=60, tell=lambda _: None)
    run_demo(tmp_path, slow.model_copy(update={"seeds": 5}), minutes=60, fixed_seeds=True, tell=lambda _: None)
    assert [plan.arms[0].recipe(0).engine.steps for plan in plans] == [20, 20, 20]
    assert [len(plan.arms[0].seeds) for plan in plans] == [1, 1, 5]
    (tmp_path / "demo.json").write_text("{}")
    with pytest.raises(RunError, match=r"demo\.json cannot be read"):
        run_demo(tmp_path, slow, tell=lambda _: None)


def test_the_arms_differ_in_the_teacher_alone(tmp_path: Path) -> None:
    plan = demo_plan(tmp_path / "shapes", tmp_path, SIZES, jobs=2)
    alone, taught = (arm.recipe(1) for arm in plan.arms)
    assert set(taught.terms) - set(alone.terms) == {"ld", "ld_vlr"}
    assert taught.teacher is not None
    assert taught.teacher.weights == str(tmp_path / "teacher-0" / "last.safetensors")
    same = taught.model_copy(update={"name": alone.name, "terms": alone.terms, "teacher": None})
    assert same == alone
