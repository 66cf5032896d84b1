"""The average, the meter, the stream, and the files, each alone."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from locdistill.engine.checkpoint import load_checkpoint, random_state, restore_random_state, write_checkpoint
from locdistill.engine.log import MetricsFile, duration, read_metrics
from locdistill.engine.meter import Meter, Ratios
from locdistill.engine.result import FitResult, RunState
from locdistill.engine.signals import StopSignals, requeued
from locdistill.engine.stream import Stream
from locdistill.errors import RunError
from locdistill.models.average import Average
from tests.unit.engine.fakes import Loaders, read_json


def test_average_by_hand() -> None:
    model = nn.BatchNorm1d(1)
    average = Average(model, decay=0.15)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.running_mean.fill_(10.0)
        model.num_batches_tracked.fill_(3)
    average.update(model)  # decay 1/10: 0.1 * 1 + 0.9 * 2
    assert average.model.weight.item() == pytest.approx(1.9)
    assert average.model.running_mean.item() == pytest.approx(9.0)
    assert average.model.num_batches_tracked.item() == 3
    average.update(model)  # decay min(0.15, 2/11) = 0.15
    assert average.model.weight.item() == pytest.approx(0.15 * 1.9 + 0.85 * 2.0)


def test_average_goes_on_where_it_was() -> None:
    model = nn.Linear(2, 2)
    first = Average(model, 0.9)
    first.update(model)
    second = Average(nn.Linear(2, 2), 0.9)
    second.load_state_dict(first.state_dict())
    for average in (first, second):
        average.update(model)
    assert second.updates == 2
    assert torch.equal(first.model.weight, second.model.weight)
    assert not any(p.requires_grad for p in second.model.parameters())


def test_meter_means_and_first_broken_batch() -> None:
    meter = Meter()
    ids = torch.tensor([1, 2])
    meter.add(("cls", "ld"), torch.tensor([1.0, 3.0]), step=0, image_ids=ids)
    meter.add(("cls", "ld"), torch.tensor([2.0, 5.0]), step=1, image_ids=ids + 2)
    assert meter.take_means() == {"cls": 1.5, "ld": 4.0}
    assert meter.broken() is None
    meter.forget()
    meter.add(("cls", "ld"), torch.tensor([1.0, 1.0]), step=2, image_ids=ids + 4)
    meter.add(("cls", "ld"), torch.tensor([1.0, float("inf")]), step=3, image_ids=ids + 6)
    meter.add(("cls", "ld"), torch.tensor([float("nan"), float("nan")]), step=4, image_ids=ids + 8)
    assert bool(meter.any_broken())
    assert meter.broken() == (["ld"], 3, [7, 8])


def test_meter_goes_on_with_saved_sums() -> None:
    meter, again = Meter(), Meter()
    ids = torch.tensor([0])
    meter.add(("a",), torch.tensor([1.0]), step=0, image_ids=ids)
    again.load_state_dict(meter.state_dict())
    again.add(("a",), torch.tensor([4.0]), step=1, image_ids=ids)
    assert again.take_means() == {"a": 2.5}
    assert again.take_means() == {}


def test_ratios_weigh_batches_by_what_they_hold() -> None:
    ratios, again = Ratios(), Ratios()
    assert ratios.take_means() == {}
    ratios.add({"kl": torch.tensor([6.0, 2.0]), "iou": torch.tensor([0.0, 0.0])})
    ratios.add({"kl": torch.tensor([1.0, 8.0]), "iou": torch.tensor([0.0, 0.0])})
    again.load_state_dict(ratios.state_dict())
    assert ratios.take_means() == {"kl": 0.7}  # not the mean of 3 and 0.125; nothing is known of the other
    again.add({"kl": torch.tensor([3.0, 0.0]), "iou": torch.tensor([0.5, 1.0])})
    assert again.take_means() == {"kl": 1.0, "iou": 0.5}
    assert again.take_means() == {}


@pytest.mark.parametrize("start", [0, 1, 4, 6, 9])
def test_stream_entered_anywhere_gives_the_rest(start: int) -> None:
    loader = Loaders(count=16, batch=4)(0, 1)
    whole = list(Stream(loader, 0, 10))
    rest = list(Stream(loader, start, 10))
    assert len(rest) == 10 - start
    for ours, theirs in zip(rest, whole[start:], strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.image_ids, theirs.image_ids)
    assert not torch.equal(whole[0].images, whole[4].images)  # another epoch is another order


def test_stream_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(Stream(Loaders()(0, 1), 0, 6))
    assert torch.equal(torch.get_rng_state(), before)


def test_stream_names_a_sampler_that_cannot_resume() -> None:
    with pytest.raises(TypeError, match="set_epoch"):
        list(Stream([1, 2], 0, 2))


def test_checkpoints_hold_no_code(tmp_path: Path) -> None:
    write_checkpoint({"a": torch.ones(2), "b": [1, (2, "x")], "random": random_state()}, tmp_path / "good.ckpt")
    assert load_checkpoint(tmp_path / "good.ckpt")["b"] == [1, (2, "x")]
    torch.save({"a": RunState()}, tmp_path / "object.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "good.ckpt").read_bytes()[:300])
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    for name in ("object", "cut", "text"):
        with pytest.raises(RunError, match=f"{name}.ckpt: not a checkpoint that a run can be resumed from"):
            load_checkpoint(tmp_path / f"{name}.ckpt")


def test_random_state_comes_back(tmp_path: Path) -> None:
    write_checkpoint(random_state(), tmp_path / "r")
    first = (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
    restore_random_state(load_checkpoint(tmp_path / "r"))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == first  # noqa: NPY002


def test_metrics_file_grows_columns_and_forgets_the_future(tmp_path: Path) -> None:
    table = MetricsFile(tmp_path / "metrics.csv", 0)
    table.write({"step": 1, "train/a": 0.1})
    table.write({"step": 2, "train/a": 1 / 3})
    table.write({"step": 2, "val/AP": 0.5})
    table.write({"step": 3, "train/a": 7.0})
    assert read_metrics(table.path) == [
        {"step": 1, "train/a": 0.1},
        {"step": 2, "train/a": 1 / 3},
        {"step": 2, "val/AP": 0.5},
        {"step": 3, "train/a": 7.0},
    ]
    with table.path.open("a") as file:
        file.write("4,7.")  # a crash in the middle of a line
    again = MetricsFile(table.path, 2)
    again.write({"step": 3, "train/a": 8.0})
    assert [row["step"] for row in read_metrics(table.path)] == [1, 2, 2, 3]
    assert read_metrics(table.path)[-1]["train/a"] == 8.0


def test_progress_chooses_the_best_and_survives_nan(tmp_path: Path) -> None:
    progress = RunState()
    courses = [float("nan"), 0.2, 0.1, float("nan"), 0.3]
    assert [progress.note(i, {"AP": ap}) for i, ap in enumerate(courses)] == [True, True, False, False, True]
    progress.write(tmp_path / "metrics.json", 12.0)
    content = read_json(tmp_path / "metrics.json")
    assert content["best"]["AP"] == content["last"]["AP"] == 0.3
    assert content["history"][0]["AP"] is None
    assert content["train_seconds"] == 12.0
    result = FitResult.read(tmp_path)
    assert result.metrics["AP"] == 0.3
    assert np.isnan(result.history[0]["AP"])


def test_signals_are_noted_once_and_given_back() -> None:
    def ours(number: int, frame: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, ours)
    try:
        signals = StopSignals()
        signals.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one ends the process
        signals = StopSignals()
        signal.signal(signal.SIGTERM, ours)
        signals.listen()
        signals.restore()
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_requeued_slurm_job_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not requeued()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert not requeued()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert requeued()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3590, "1 h 0 min"), (7800, "2 h 10 min"), (100 * 3600, "4 d 4 h")],
)
def test_a_duration_has_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words
