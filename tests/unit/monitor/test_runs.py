"""State of runs, read from folders in any condition."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locdistill.monitor import runs
from locdistill.monitor.curves import read_rows
from locdistill.monitor.reading import open_plain

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


@pytest.mark.parametrize(
    ("lines", "state", "why"),
    [
        ("ERROR stopped: RunInterrupted: stopped by SIGTERM", "stopped", "RunInterrupted: stopped by SIGTERM"),
        ("ERROR stopped: ValueError: two\nlines", "stopped", "ValueError: two"),
        ("ERROR stopped: ValueError: it\n2026-01-01 10:00:00 INFO resuming after step 20 of 80 steps", "running", ""),
        ("ERROR stopped: ValueError: it\n2026-01-01 10:00:00 INFO something", "running", ""),
    ],
)
def test_a_log_tells_why_a_run_stopped_and_that_it_goes_on(tmp_path: Path, lines: str, state: str, why: str) -> None:
    run = write_run(tmp_path / "a")
    with (run / "log.txt").open("a") as log:
        log.write(f"2026-01-01 09:00:00 {lines}\n")
    found = runs.summary("a", run)
    assert (found.state, found.why) == (state, why)
    assert (found.seconds_left is None) == (state == "stopped")
    assert found.steps == (80 if "resuming" in lines else 40)
    age(run, 1e6)
    assert runs.summary("a", run).state == ("silent" if state == "running" else "stopped")


def test_a_finished_run_that_is_resumed_is_running(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", stopped="time")
    (run / "metrics.json").write_text(json.dumps({"stopped": "time", "steps": 20}))
    assert runs.summary("a", run).state == "finished"
    with (run / "metrics.csv").open("a") as file:
        file.write("30,0.2,20,0.01,1,\n")
    assert runs.summary("a", run).state == "running"


def test_the_total_is_known_where_a_progress_bar_takes_the_place_of_lines(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    evaluations = "2026-01-01 10:00:00 INFO evaluation after step 1\n" * 1000
    (run / "log.txt").write_text("2026-01-01 09:00:00 INFO training 1560 steps of 8 images (60 epochs)\n" + evaluations)
    assert runs.summary("a", run).steps == 1560


def test_everything_below_a_root_is_found_the_latest_run_first(tmp_path: Path) -> None:
    for name, old in (("x/old", 500), ("x/new", 5), ("deep/er/run", 50)):
        age(write_run(tmp_path / name), old)
    write_run(tmp_path / "x" / "new" / "inside")
    (tmp_path / "x" / "new" / "inside" / "report.html").write_text("page")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "data.mdb").write_bytes(b"records")
    (tmp_path / "recipe.yaml").write_text(RECIPE)  # a recipe alone is no run
    (tmp_path / "link").symlink_to(tmp_path / "x")
    found = runs.find(tmp_path)
    assert list(found.runs) == ["x/new", "deep/er/run", "x/old"]
    assert list(found.reports) == ["x/new/inside/report.html"]
    assert list(found.caches) == ["cache"]
    assert found.complete


@pytest.mark.parametrize(("limit", "value"), [("MOST_RUNS", 2), ("MOST_FOLDERS", 3)])
def test_more_than_is_shown_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    for name, old in (("a", 30), ("b", 20), ("c", 10)):
        age(write_run(tmp_path / name), old)
    monkeypatch.setattr(runs, limit, value)
    found = runs.find(tmp_path)
    assert list(found.runs) == (["c", "b"] if limit == "MOST_RUNS" else ["b", "a"])
    assert not found.complete


FILES = ("metrics.csv", "metrics.json", "recipe.yaml", "run.json", "log.txt")


def as_plain_data(run: Path) -> str:
    """Everything that is read of a run, as JSON that a browser takes."""
    settings = runs.flat_settings(runs.read_recipe(run)[1])
    read = (
        asdict(runs.summary("a", run)),
        settings,
        read_rows(run).columns,
        list(runs.pictures(run)),
        runs.log_tail(run),
    )
    return json.dumps(read, allow_nan=False)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [None, b"", b"\0\0\xff\xfe", b"{", b'"text"', b"[1,", b"a: [", b"step\n1,2,3\nx"])
def test_any_file_may_be_missing_or_damaged(tmp_path: Path, name: str, content: bytes | None) -> None:
    run = write_run(tmp_path / "a")
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    assert as_plain_data(run)


@given(st.sampled_from(FILES), st.data())
def test_any_bytes_may_be_in_any_file(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    run = tmp_path_factory.mktemp("any") / "a"
    write_run(run)
    whole = (run / name).read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    (run / name).write_bytes(whole[:start] + data.draw(st.binary(max_size=20)) + whole[start + 5 :])
    assert as_plain_data(run)


BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 8)}]\n" for i in range(10)
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("recipe.yaml", BOMB, id="a billion aliases"),
        pytest.param("recipe.yaml", "a: " + "[" * 900 + "]" * 900, id="nested lists"),
        pytest.param("recipe.yaml", "a: " + "{b: " * 200 + "1" + "}" * 200, id="nested groups"),
        pytest.param("recipe.yaml", "a: " + "9" * 5000, id="many digits"),
        pytest.param("log.txt", f"2026-01-01 09:00:00 INFO step 1/{'9' * 5000}\n", id="many steps"),
        pytest.param("metrics.json", '{"best": {"AP": 1e400}, "last": {"AP": NaN}}', id="infinite scores"),
        pytest.param("metrics.json", "[" * 100_000, id="nested numbers"),
        pytest.param("metrics.csv", "step,seconds\n1,0\n1.0000000000000002,1e308\n", id="endless"),
        pytest.param("metrics.csv", "step,seconds\n1e300,1e308\n-1e308,-1e308\n", id="far"),
        pytest.param("metrics.csv", "step,a\n1," + "5" * 200_000 + "\n2,3\n", id="a long line"),
    ],
)
def test_nothing_in_a_file_takes_the_monitor_down(tmp_path: Path, name: str, content: str) -> None:
    run = write_run(tmp_path / "a")
    (run / name).write_text(content)
    assert len(as_plain_data(run)) < 100_000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "a")
    (run / name).unlink()
    os.mkfifo(run / name)
    os.mkfifo(run / "picture.png")
    assert as_plain_data(run)
    assert not runs.pictures(run)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text on this system")
def test_names_that_are_no_text_are_written_out(tmp_path: Path) -> None:
    run = write_run(Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff")))
    picture = Path(os.fsdecode(os.fsencode(run) + b"/\xfe.png"))
    picture.write_bytes(b"png")
    assert runs.find(tmp_path).runs == {r"b\xff": run}
    assert runs.pictures(run) == {r"\xfe.png": picture}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    with open_plain(tmp_path / "file") as file:
        assert file.read() == b"content"
    for name in ("link", "pipe", ".", "none"):
        with pytest.raises(OSError):  # noqa: PT011 - each for its own reason
            open_plain(tmp_path / name)


def test_a_folder_with_linked_files_is_no_run(tmp_path: Path) -> None:
    away = write_run(tmp_path / "away")
    folder = tmp_path / "root" / "a"
    folder.mkdir(parents=True)
    for name in (*FILES, "report.html", "data.mdb"):
        (away / name).touch()
        (folder / name).symlink_to(away / name)
    assert runs.find(tmp_path / "root") == runs.Listing({}, {}, {}, complete=True)


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


def test_settings_are_flat() -> None:
    assert runs.flat_settings({"a": {"b": [1, 2], "c": None}, "d": {}}) == {"a.b": "[1, 2]", "a.c": "–", "d": "{}"}  # noqa: RUF001
