"""Arms of a comparison: what is trained, taken over, gone on with and left alone; training itself is a fake."""

from __future__ import annotations

import json
import math
import pickle
import threading
from pathlib import Path

import pytest

from locdistill.data.settings import DataSettings
from locdistill.engine.settings import EngineSettings
from locdistill.errors import RunError, RunInterrupted
from locdistill.evaluation.paired import Paired, t_quantile, verdict
from locdistill.models.settings import DetectorSettings
from locdistill.recipe.recipe import Recipe
from locdistill.study.arms import Arm, Run, equal_time_steps, train_arms

SEEDS = (0, 1, 2)


def arms(*names: str) -> list[Arm]:
    engine = EngineSettings(steps=200, schedule="cosine")
    recipe = Recipe(name="student", detector=DetectorSettings(), data=DataSettings(path="somewhere"), engine=engine)
    return [Arm(name, f"arm {name}", recipe, SEEDS) for name in names]


class FakeTraining:
    """Writes what a training leaves; stops in the middle of the run whose name it is told."""

    def __init__(self, *, stop_in: str = "") -> None:
        self.stop_in = stop_in
        self.calls: list[tuple[str, bool]] = []

    def __call__(self, recipe: Recipe, folder: Path, resume: bool) -> None:
        self.calls.append((folder.name, resume))
        folder.mkdir(parents=True, exist_ok=resume)
        numbers = {"AP": 0.5 + recipe.engine.seed / 100, "AP50": 0.7, "AP75": 0.5, "AP90": 0.2}
        content = {"best": {k: v + 0.01 for k, v in numbers.items()}, "last": numbers, "train_seconds": 20.0}
        content |= {"seconds": 21.0, "steps": recipe.engine.steps, "stopped": "finished"}
        (folder / "last.ckpt").write_text("")
        if folder.name == self.stop_in:
            (folder / "metrics.json").write_text(json.dumps(content | {"stopped": None}))
            raise KeyboardInterrupt
        (folder / "metrics.json").write_text(json.dumps(content))


def quiet(line: str) -> None:
    assert line


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


def test_steps_of_equal_time_by_hand(tmp_path: Path) -> None:
    alone = _finished("alone", [20.0, 22.0, 90.0], 200)  # the median is not moved by one disturbed run
    distilled = _finished("distilled", [33.0, 31.0, 34.0], 200)
    assert equal_time_steps(tmp_path / "distilled.json", alone, distilled) == 300
    assert equal_time_steps(tmp_path / "alone.json", distilled, alone) == 200


def test_each_arm_of_a_seed_in_turn(tmp_path: Path) -> None:
    train = FakeTraining()
    runs = train_arms(arms("a", "b"), tmp_path, train=train, tell=quiet)
    assert train.calls == [(name, False) for name in ("a-0", "b-0", "a-1", "b-1", "a-2", "b-2")]
    assert [(run.arm, run.seed, run.metrics["AP"]) for run in runs[2:4]] == [("a", 1, 51.0), ("b", 1, 51.0)]
    again = FakeTraining()
    assert train_arms(arms("a", "b"), tmp_path, train=again, tell=quiet) == runs
    assert not again.calls


@pytest.mark.parametrize("stop", ["a-0", "b-1"])
def test_what_was_interrupted_goes_on(tmp_path: Path, stop: str) -> None:
    stopped, again = FakeTraining(stop_in=stop), FakeTraining()
    with pytest.raises(KeyboardInterrupt):
        train_arms(arms("a", "b"), tmp_path, train=stopped, tell=quiet)
    train_arms(arms("a", "b"), tmp_path, train=again, tell=quiet)
    assert again.calls[0] == (stop, True)
    assert not {name for name, _ in again.calls} & {name for name, _ in stopped.calls[:-1]}


def test_a_stopped_run_of_several_says_how_to_go_on(tmp_path: Path) -> None:
    """Not with --resume, which is for single runs."""

    def stop(made: Recipe, folder: Path, resume: bool) -> None:
        raise RunInterrupted("stopped. Go on with the same command and --resume", 2)

    with pytest.raises(RunInterrupted, match="start the same command again") as stopped:
        train_arms(arms("a"), tmp_path, train=stop, tell=quiet)
    assert "--resume" not in str(stopped.value)
    assert stopped.value.exit_code == 130
    again = pickle.loads(pickle.dumps(stopped.value))  # from a process beside this one
    assert (str(again), again.exit_code) == (str(stopped.value), 130)


def test_trainings_side_by_side(tmp_path: Path) -> None:
    """Two at a time: each waits for the other, which one after the other would never come."""
    both, train = threading.Barrier(2), FakeTraining()

    def meet(recipe: Recipe, folder: Path, resume: bool) -> None:
        both.wait(timeout=600)
        train(recipe, folder, resume)

    runs = train_arms(arms("a", "b"), tmp_path, train=meet, tell=quiet, jobs=2)
    assert [(run.arm, run.seed) for run in runs] == [(arm, seed) for seed in SEEDS for arm in ("a", "b")]


def test_a_failure_ends_those_that_wait(tmp_path: Path) -> None:
    def fail(recipe: Recipe, folder: Path, resume: bool) -> None:
        raise RunError("no room")

    with pytest.raises(RunError, match="no room"):
        train_arms(arms("a", "b"), tmp_path, train=fail, tell=quiet, jobs=2)


OURS = ("recipe.yaml", "run.json", "log.txt", "metrics.csv", "logs/events.out.tfevents.1.host", ".recipe.yaml.7.part")


@pytest.mark.parametrize("files", [(), OURS[:1], OURS[:3], OURS])
def test_a_run_without_checkpoint_begins_again(tmp_path: Path, files: tuple[str, ...]) -> None:
    folder = tmp_path / "a-0"
    (folder / "logs").mkdir(parents=True)
    for name in files:
        (folder / name).write_text("stopped early")
    seen = []

    def train(recipe: Recipe, folder: Path, resume: bool) -> None:
        seen.append((folder.name, resume, folder.exists() and list(folder.iterdir())))
        FakeTraining()(recipe, folder, True)

    train_arms(arms("a"), tmp_path, train=train, tell=quiet)
    assert seen[0] == ("a-0", False, [])


@pytest.mark.parametrize(
    "foreign",
    [
        "thesis.tex",
        "photos/a.jpg",
        "logs/mine.txt",
        "logs/deeper/events.out.tfevents.1",
        "empty/deeper/.keep",
        ".git/config",
        "run.json/x",
    ],
)
@pytest.mark.parametrize("beside", [(), OURS])
def test_what_we_did_not_write_is_never_removed(tmp_path: Path, foreign: str, beside: tuple[str, ...]) -> None:
    """A folder that happens to have an arm's name: nothing of it is touched, and it is named."""
    folder = tmp_path / "a-0"
    for name in (foreign, *(name for name in beside if name.split("/")[0] != foreign.split("/", maxsplit=1)[0])):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("years of work")
    before = {path: path.read_text() for path in folder.rglob("*") if path.is_file()}
    train = FakeTraining()
    with pytest.raises(RunError, match="a-0 is in use"):
        train_arms(arms("a"), tmp_path, train=train, tell=quiet)
    assert {path: path.read_text() for path in folder.rglob("*") if path.is_file()} == before
    assert not train.calls


def test_a_file_or_a_link_in_place_of_a_folder_is_left(tmp_path: Path) -> None:
    (tmp_path / "a-0").write_text("a file")
    with pytest.raises(RunError, match="is in use"):
        train_arms(arms("a"), tmp_path, train=FakeTraining(), tell=quiet)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (tmp_path / "a-0").unlink()
    (tmp_path / "a-0").mkdir()
    (tmp_path / "a-0" / "logs").symlink_to(elsewhere)
    with pytest.raises(RunError, match="is in use"):
        train_arms(arms("a"), tmp_path, train=FakeTraining(), tell=quiet)
    assert (elsewhere / "deep").is_dir()


def test_steps_of_equal_time_are_kept(tmp_path: Path) -> None:
    stamp, alone = tmp_path / "equal_time.json", _finished("alone", [20.0], 200)
    assert equal_time_steps(stamp, alone, _finished("distilled", [30.0], 200)) == 300
    assert equal_time_steps(stamp, alone, _finished("distilled", [50.0], 200)) == 300
