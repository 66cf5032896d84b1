"""Curves of a growing file: only new rows, none of them half, in bounded memory."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locdistill.monitor import curves
from locdistill.monitor.curves import Columns, last_rows, read_rows

HEADER = "step,seconds,train/total,val/AP\n"
TEXT = HEADER + "".join(
    f"{step},{step / 8},{100 / step!r},{'0.25' if step % 20 == 0 else ''}\n" for step in range(10, 90, 10)
)


def write(folder: Path, text: str) -> Path:
    (folder / "metrics.csv").write_text(text)
    return folder


def test_columns_have_the_steps_at_which_they_have_a_value(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, HEADER + "10,1,3,\n20,2,nan,0.5\n,3,1,1\n30,x,inf,\n"))
    assert rows.columns == {
        "seconds": ([10.0, 20.0], [1.0, 2.0]),
        "train/total": ([10.0], [3.0]),
        "val/AP": ([20.0], [0.5]),
    }
    assert rows.fresh


@given(st.lists(st.integers(0, len(TEXT)), max_size=8))
def test_readings_of_a_growing_file_add_up_to_the_whole(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("growing")
    collected: Columns = {}
    mark = ""
    with (folder / "metrics.csv").open("w") as file:
        written = 0
        for length in [*sorted(lengths), len(TEXT)]:
            file.write(TEXT[written:length])
            file.flush()
            written = length
            rows = read_rows(folder, mark)
            if rows.fresh:
                collected = {}
            for name, (steps, values) in rows.columns.items():
                kept = collected.setdefault(name, ([], []))
                kept[0].extend(steps)
                kept[1].extend(values)
            assert collected == read_rows(folder).columns
            assert len(collected.get("seconds", ([], []))[0]) == max(TEXT[:length].count("\n") - 1, 0)
            mark = rows.mark
    assert read_rows(folder, mark).columns == {}
    assert not read_rows(folder, mark).fresh


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(HEADER + "10,9,9,9\n", id="shorter"),
        pytest.param(TEXT.replace("total", "other"), id="other columns"),
        pytest.param(TEXT.replace("80,10.0", "80,11.0"), id="same length, other rows"),
        pytest.param(TEXT.replace("80,10.0", "80,11.0") + "90,9,9,9\n", id="longer, other rows"),
    ],
)
def test_a_replaced_file_is_read_anew(tmp_path: Path, text: str) -> None:
    mark = read_rows(write(tmp_path, TEXT)).mark
    rows = read_rows(write(tmp_path, text), mark)  # in place: the file has the same number
    assert rows.fresh
    assert rows.columns == read_rows(tmp_path).columns != {}


def test_a_file_put_in_its_place_is_read_anew(tmp_path: Path) -> None:
    mark = read_rows(write(tmp_path, TEXT)).mark
    (tmp_path / "part").write_text(TEXT)
    os.replace(tmp_path / "part", tmp_path / "metrics.csv")
    assert read_rows(tmp_path, mark).fresh


@given(st.text(max_size=30) | st.from_regex(r"[0-9a-f]*\.-?[0-9a-f_]{0,40}\.[0-9a-f]*", fullmatch=True))
def test_any_text_may_be_given_as_mark(tmp_path_factory: pytest.TempPathFactory, mark: str) -> None:
    folder = write(tmp_path_factory.getbasetemp(), TEXT)
    assert read_rows(folder, mark) == read_rows(folder)


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path, read_rows(tmp_path).mark) == curves.NewRows({}, "", fresh=True)
    assert last_rows(tmp_path) == {}


@pytest.mark.parametrize("count", [1, 2, 599, 600, 601, 5000])
def test_long_curves_are_thinned_evenly_and_keep_both_ends(tmp_path: Path, count: int) -> None:
    write(tmp_path, HEADER + "".join(f"{step},{2 * step},,\n" for step in range(1, count + 1)))
    steps, values = read_rows(tmp_path).columns["seconds"]
    assert len(steps) <= curves.POINTS
    assert len(steps) >= min(count, curves.POINTS // 2)
    assert (steps[0], steps[-1]) == (1, count)
    assert values == [2 * step for step in steps]
    assert len({after - before for before, after in pairwise(steps[:-1])}) <= 1


def test_the_last_rows_of_a_long_file_are_whole_and_few(tmp_path: Path) -> None:
    write(tmp_path, HEADER + "".join(f"{step},{2 * step},,\n" for step in range(1, 20_001)) + "20001,4")
    steps, values = last_rows(tmp_path)["seconds"]
    assert steps[0] > 15_000
    assert (steps[-1], values[-1]) == (20_000, 40_000)
    assert values == [2 * step for step in steps]
    write(tmp_path, TEXT)
    assert last_rows(tmp_path) == read_rows(tmp_path).columns
