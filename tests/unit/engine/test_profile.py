"""Who waits for whom, and where the time of a step goes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from locdistill.cli.options import of_a_run
from locdistill.engine import profile
from locdistill.engine.profile import PARTS, Laps, StepTimes
from locdistill.errors import NonFiniteLossError
from tests.unit.engine.fakes import FakeObjective, FakeTeacher, Judge, Loaders, collate
from tests.unit.engine.test_fit import run, settings_of


class Clock:
    """Time that passes only where a fake says so: no machine is too slow or too fast."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that the profile reads."""
    ours = Clock()
    monkeypatch.setattr(profile, "time", ours)
    return ours


class SlowLoaders(Loaders):
    """As long for each batch."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def __call__(self, rank: int, world: int) -> DataLoader:
        loader = super().__call__(rank, world)
        loader.collate_fn = self.slowly
        return loader

    def slowly(self, items: Any) -> Any:
        self.clock.sleep(self.seconds)
        return collate(items)


class SlowObjective(FakeObjective):
    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__(needs_teacher=True)
        self.clock, self.seconds = clock, seconds

    def losses(self, scene: Any) -> dict[str, torch.Tensor]:
        self.clock.sleep(self.seconds)
        return super().losses(scene)


class SlowJudge(Judge):
    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def __call__(self, *arguments: Any) -> Any:
        self.clock.sleep(self.seconds)
        return super().__call__(*arguments)


def shares(out: Path) -> dict[str, float]:
    """Per cent of each part, as the table tells."""
    names = {what: part for part, what in PARTS.items()}
    lines = [line.rsplit(maxsplit=2) for line in (out / "profile.txt").read_text().splitlines()]
    return {names[cells[0]]: float(cells[2].rstrip("%")) for cells in lines if cells and cells[0] in names}


# --- what is measured ----------------------------------------------------------------------------------------------


def test_laps_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    laps = Laps(torch.device("cpu"))
    readings = iter([10.0, 11.0, 13.0, 17.0, 20.0])
    monkeypatch.setattr(profile, "time", SimpleNamespace(perf_counter=readings.__next__))
    for part in ("loader", "student", "loader", None):  # the first has no beginning
        laps.lap(part)
    laps.settle()
    assert laps.seconds == {"student": 1.0, "loader": 2.0}
    laps.lap("student")
    laps.settle()
    assert laps.seconds == {"student": 4.0, "loader": 2.0}


def test_on_cuda_laps_are_those_of_the_device_and_nothing_waits_before_they_are_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Event:
        recorded = waited = 0

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            Event.recorded += 1
            self.progress = 100.0 * Event.recorded**2

        def synchronize(self) -> None:
            Event.waited += 1

        def elapsed_time(self, other: Event) -> float:
            return other.progress - self.progress

    monkeypatch.setattr(torch.cuda, "Event", Event)
    laps = Laps(torch.device("cuda"))
    for part in ("between", "loader", "student"):
        laps.lap(part)
    assert (Event.recorded, Event.waited) == (3, 0)
    laps.settle()
    assert laps.seconds == pytest.approx({"loader": 0.3, "student": 0.5})  # 400 - 100 and 900 - 400 milliseconds
    assert Event.waited > 0


def times(loader: float, *, workers: int = 2, steps: int = 10) -> StepTimes:
    return StepTimes(
        steps=steps, images=4, parts={"loader": loader, "student": 10 - loader}, workers=workers, memory=2 * 10**9
    )


def test_what_is_said_of_it() -> None:
    assert times(0.3).verdict() == "training waited for the loader 3 % of the time"
    assert times(1).verdict() == "training waited for the loader 10 % of the time"
    starved = times(4).verdict()
    assert starved.startswith("training waited for the loader 40 % of the time: raise data.workers (now 2)")
    assert starved.endswith("(data.cache=true)")
    assert "set data.workers (now 0)" in times(4, workers=0).verdict()
    assert times(0, steps=0).verdict().startswith("too few steps")
    lines = [line.split() for line in times(4).table().splitlines()]
    assert lines[1] == ["waiting", "for", "the", "loader", "0.400000", "40.0%"]
    assert lines[2] == ["student", "0.600000", "60.0%"]
    assert lines[3] == ["together", "1.000000"]
    assert times(4).table().splitlines()[4] == "10 steps; 4.0 images per second; peak memory 2.00 GB; 2 workers"


# --- runs ----------------------------------------------------------------------------------------------------------


def test_a_slow_loader_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    caplog.set_level("INFO", logger="locdistill.engine")
    parts = {"make_train_loader": SlowLoaders(clock, 3.0), "objective": SlowObjective(clock, 1.0)}
    run(tmp_path / "run", settings_of(profile=True, epochs=6), teacher=FakeTeacher(), **parts)
    found = shares(tmp_path / "run")
    assert (found["loader"], found["losses"]) == (75, 25)
    (line,) = [record.message for record in caplog.records if record.message.startswith("profile: ")]
    assert "set data.workers (now 0)" in line


def test_a_slow_step_is_told_by_its_parts(tmp_path: Path, clock: Clock) -> None:
    settings = settings_of(profile=True, epochs=6, log_every=3)
    parts = {"make_train_loader": SlowLoaders(clock, 1.0), "objective": SlowObjective(clock, 4.0)}
    run(tmp_path / "run", settings, teacher=FakeTeacher(), evaluate=SlowJudge(clock, 50.0), **parts)
    found = shares(tmp_path / "run")
    # Without the evaluations, which take ten times as long as a step.
    assert found == {part: {"loader": 20, "losses": 80}.get(part, 0) for part in PARTS}
    text = (tmp_path / "run" / "profile.txt").read_text()
    assert "aten::convolution_backward" in text
    assert json.loads((tmp_path / "run" / "profile.json").read_text())["traceEvents"]


def test_measuring_changes_no_number(tmp_path: Path) -> None:
    files = []
    for name, profiled in (("plain", False), ("profiled", True)):
        module, _ = run(tmp_path / name, settings_of(profile=profiled, accumulate=2))
        files.append(module.detector.state_dict())
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    assert not (tmp_path / "plain" / "profile.txt").exists()


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_short_runs(steps: int, tmp_path: Path) -> None:
    run(tmp_path / "run", settings_of(profile=True, steps=steps))
    text = (tmp_path / "run" / "profile.txt").read_text()
    assert ("too few steps" in text) == (steps < 3)
    assert (f"\n{steps - 2} steps; " in text) == (3 <= steps < 4)


def test_a_run_that_breaks_stops_recording(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with pytest.raises(NonFiniteLossError):
            run(tmp_path / name, settings_of(profile=True), objective=FakeObjective(breaks_on=1))


def test_a_resumed_run_may_be_profiled(tmp_path: Path) -> None:
    run(tmp_path / "run", settings_of(epochs=1))
    run(tmp_path / "run", settings_of(epochs=5, profile=True), resume=True)
    assert "loader" in shares(tmp_path / "run")


def test_the_option_of_the_command_line() -> None:
    @of_a_run("profile", "seed")
    def verb(request: dict[str, Any]) -> None:
        assert request == {"recipe": None, "overrides": expected}

    expected = ["engine.seed=0", "engine.profile=True", "engine.lr=1"]
    verb(words=["engine.lr=1"], settings=None, profile=True, seed=0)
    expected = []
    verb(words=None, settings=None, profile=False, seed=None)
