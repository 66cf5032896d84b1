"""State of runs, read from folders in any condition."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locdistill.monitor import runs

HEADER = "step,epoch,seconds,lr,train/total,val/AP\n"
ROWS = "10,0.5,5.0,0.01,3.0,\n20,1.0,10.0,0.01,2.0,0.25\n"
RECIPE = "detector: {model: gfl, backbone: resnet18}\nterms:\n  cls: {of: quality_focal, on: counted}\nteacher: null\n"


def write_run(folder: Path, *, stopped: str | None = None, rows: str = ROWS) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "run.json").write_text("{}")
    (folder / "metrics.csv").write_text(HEADER + rows)
    (folder / "log.txt").write_text("2026-01-01 INFO step 20/40  epoch 1.00  total 2\n")
    scores = {"AP": 0.25, "AP50": 0.5, "AP75": None}
    (folder / "metrics.json").write_text(json.dumps({"stopped": stopped, "best": scores, "last": scores}))
    return folder


def age(folder: Path, seconds: float) -> None:
    for path in folder.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


def test_a_run_is_running_then_silent_then_finished(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    state = runs.summary("a", run)
    assert (state.state, state.step, state.steps) == ("running", 20, 40)
    assert state.seconds_left == pytest.approx(10.0)  # half a second a step, twenty steps to go
    assert state.best == {"AP": 25.0, "AP50": 50.0}
    assert (state.detector, state.teacher, state.terms) == ("gfl resnet18", "", ("cls",))
    age(run, 119)
    assert runs.summary("a", run).state == "running"
    age(run, 121)
    assert runs.summary("a", run).state == "silent"
    (run / "metrics.json").write_text(json.dumps({"stopped": "steps"}))
    age(run, 1e6)
    assert (runs.summary("a", run).state, runs.summary("a", run).why) == ("finished", "steps")


def test_slow_steps_are_given_more_time(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", rows="10,0.5,100,0.01,3,\n20,1,400,0.01,2,\n")
    age(run, 1700)
    assert runs.summary("a", run).state == "running"
    age(run, 1900)
    assert runs.summary("a", run).state == "silent"


def test_runs_are_found_the_latest_first_and_no_deeper_than_a_run(tmp_path: Path) -> None:
    for name, old in (("x/old", 500), ("x/new", 5), ("deep/er/run", 50)):
        age(write_run(tmp_path / name), old)
    write_run(tmp_path / "x" / "new" / "inside")
    (tmp_path / "recipe.yaml").write_text(RECIPE)  # a recipe alone is no run
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert list(runs.find_runs(tmp_path)) == ["x/new", "deep/er/run", "x/old"]


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.json", "recipe.yaml", "run.json", "log.txt"])
@pytest.mark.parametrize("content", [None, b"", b"\0\0\xff\xfe", b"{", b'"text"', b"[1,", b"a: [", b"step\n1,2,3\nx"])
def test_any_file_may_be_missing_or_damaged(tmp_path: Path, name: str, content: bytes | None) -> None:
    run = write_run(tmp_path / "a")
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    runs.summary("a", run)
    runs.read_curves(run)
    runs.pictures(run)
    runs.log_tail(run)


@given(st.integers(0, len(HEADER + ROWS)))
def test_a_log_cut_off_anywhere_keeps_its_whole_rows(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    run = tmp_path_factory.mktemp("cut")
    (run / "metrics.csv").write_text((HEADER + ROWS)[:length])
    curves = runs.read_curves(run)
    whole = (HEADER + ROWS)[:length].count("\n") - 1
    seconds = curves.get("seconds", ([], []))
    assert seconds[0][: max(whole, 0)] == [10.0, 20.0][: max(whole, 0)]
    assert all(math.isfinite(value) for steps, values in curves.values() for value in (*steps, *values))


def test_links_lead_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    run = write_run(tmp_path / "root" / "a")
    (run / "fine.png").write_bytes(b"png")
    (run / "linked.png").symlink_to(secret)
    (run / "log.txt").unlink()
    (run / "log.txt").symlink_to(secret)
    assert list(runs.pictures(run)) == ["fine.png"]
    assert runs.log_tail(run) == ""


@pytest.mark.parametrize("count", [0, 1, 599, 600, 601, 5000])
def test_long_curves_are_thinned_to_their_end(count: int) -> None:
    steps, values = runs.thinned(([float(i) for i in range(count)], [0.0] * count))
    assert len(steps) == len(values) <= runs.POINTS
    assert not count or steps[-1] == count - 1


def test_settings_are_flat() -> None:
    assert runs.flat_settings({"a": {"b": [1, 2], "c": None}, "d": {}}) == {"a.b": "[1, 2]", "a.c": "–", "d": "{}"}  # noqa: RUF001
