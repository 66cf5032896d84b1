"""Whole runs of a tiny detector."""

from __future__ import annotations

import logging
import warnings
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from locdistill.engine import training
from locdistill.engine.log import read_metrics
from locdistill.engine.loop import fit
from locdistill.engine.module import TrainingModule
from locdistill.engine.optim import schedule
from locdistill.engine.plan import Plan
from locdistill.engine.result import FitResult
from locdistill.engine.settings import EngineSettings
from locdistill.errors import LocdistillError, NonFiniteLossError, RunError, TeacherError
from tests.unit.engine.fakes import (
    FakeDetector,
    FakeObjective,
    FakePupil,
    FakeTeacher,
    Judge,
    Loaders,
    read_json,
    watch,
)


def settings_of(**changes: Any) -> EngineSettings:
    values: dict[str, Any] = {"epochs": 2, "lr": 0.2, "log_every": 1, "accelerator": "cpu", "progress": False}
    values["precision"] = "32"
    return EngineSettings(**(values | changes))


def run(out: Path, settings: EngineSettings, **changes: Any) -> tuple[TrainingModule, FitResult]:
    detector = changes.pop("detector", None) or FakeDetector()
    objective = changes.pop("objective", None) or FakeObjective()
    module = TrainingModule(
        detector, objective, changes.pop("teacher", None), settings, watch=changes.pop("watch", None)
    )
    arguments: dict[str, Any] = {
        "make_train_loader": Loaders(),
        "make_val_loader": Loaders(count=8, batch=4, shuffle=False),
        "evaluate": Judge(),
        "out": out,
    }
    return module, fit(module, **(arguments | changes))


def test_a_run_writes_what_it_promises(tmp_path: Path) -> None:
    module, result = run(tmp_path / "run", settings_of())
    out = tmp_path / "run"
    assert {p.name for p in out.iterdir()} == {
        "best.safetensors",
        "last.ckpt",
        "last.safetensors",
        "logs",
        "metrics.csv",
        "metrics.json",
    }
    assert result.steps == 8
    assert result.stopped == "finished"
    assert result.best == out / "best.safetensors"
    assert len(result.history) == 2
    rows = read_metrics(out / "metrics.csv")
    trained = [row for row in rows if "lr" in row]
    assert [row["step"] for row in trained] == list(range(1, 9))
    assert trained[-1]["train/total"] == pytest.approx(trained[-1]["train/cls"] + trained[-1]["train/edge"])
    assert trained[-1]["train/total"] < trained[0]["train/total"]
    assert [row["step"] for row in rows if "val/AP" in row] == [4, 8]
    content = read_json(out / "metrics.json")
    assert content["best"]["AP"] == max(entry["AP"] for entry in result.history)
    assert 0 < content["train_seconds"] < content["seconds"]
    assert list((out / "logs").glob("events.out.tfevents.*"))
    for name, value in module.detector.state_dict().items():
        assert torch.equal(load_file(out / "last.safetensors")[name], value), name


def test_the_optimizer_follows_the_schedule(tmp_path: Path) -> None:
    settings = settings_of(epochs=3, warmup_steps=2, milestones=(1, 2))
    run(tmp_path / "run", settings)
    plan = Plan.of(Loaders()(0, 1), settings, 1)
    factor = schedule(settings, plan)
    rates = [row["lr"] for row in read_metrics(tmp_path / "run" / "metrics.csv") if "lr" in row]
    assert rates == pytest.approx([0.2 * 4 / 16 * factor(k) for k in range(12)])
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert saved["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.05 * factor(11))


def test_the_logged_rate_is_the_one_that_was_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []
    step = torch.optim.SGD.step

    def spy(optimizer: torch.optim.SGD, *rest: Any) -> Any:
        used.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *rest)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    settings = settings_of(warmup_steps=1, accumulate=2, milestones=(1,))
    module = TrainingModule(FakeDetector(), FakeObjective(), None, settings)
    fit(module, make_train_loader=Loaders(), out=tmp_path / "run")
    assert used == [row["lr"] for row in read_metrics(tmp_path / "run" / "metrics.csv")]
    assert len(used) == 4


def test_the_teacher_is_in_no_checkpoint_and_no_optimizer(tmp_path: Path) -> None:
    teacher = FakeTeacher()
    objective = FakeObjective(needs_teacher=True)
    module, _ = run(tmp_path / "run", settings_of(), teacher=teacher, objective=objective)
    assert teacher.calls == 8  # and none in evaluation
    assert teacher.gradients == {False}
    assert all(name.startswith("detector.") for name in module.state_dict())
    assert len(list(module.parameters())) == len(list(module.detector.parameters()))
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == {f"detector.{name}" for name in module.detector.state_dict()}
    learning = sum(p.requires_grad for p in module.detector.parameters())
    assert sum(len(g["params"]) for g in saved["optimizer"]["param_groups"]) == learning
    assert set(load_file(tmp_path / "run" / "best.safetensors")) == set(module.detector.state_dict())
    assert "train/ld" in read_metrics(tmp_path / "run" / "metrics.csv")[0]


def test_a_teacher_is_asked_for_only_when_a_term_needs_one(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="no teacher was given"):
        TrainingModule(FakeDetector(), FakeObjective(needs_teacher=True), None, settings_of())
    teacher = FakeTeacher()
    run(tmp_path / "run", settings_of(epochs=1), teacher=teacher)
    assert teacher.calls == 0


def test_maps_are_handed_out_only_when_a_term_looks_at_them(tmp_path: Path) -> None:
    objective = FakeObjective(needs_teacher=True, needs_features=True)  # without: the fake asserts that there are none
    run(tmp_path / "run", settings_of(epochs=1), teacher=FakeTeacher(), objective=objective)
    assert read_metrics(tmp_path / "run" / "metrics.csv")[0]["train/imitation"] > 0


def test_what_is_watched_is_logged_by_interval_and_by_evaluation(tmp_path: Path) -> None:
    _, result = run(tmp_path / "run", settings_of(log_every=3, accumulate=2, epochs=3), watch=watch)
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    seen = [(row["step"], row["agree/mean_id"], row["agree/odd_id"]) for row in rows if "lr" in row]
    assert [step for step, _, _ in seen] == [3, 6]
    # 16 images an epoch, 8 a step: three steps see every image once, and eight of them once more.
    for entry in result.history:
        assert (entry["agree/mean_id"], entry["agree/odd_id"]) == (7.5, 8.0)
    assert seen[0][1] * 24 + seen[1][1] * 24 == 3 * sum(range(16))
    assert "agree/mean_id" not in next(row for row in rows if "val/AP" in row)
    assert read_json(tmp_path / "run" / "metrics.json")["last"]["agree/odd_id"] == 8.0


def test_a_teacher_that_follows_is_in_the_checkpoint_and_in_no_weights(tmp_path: Path) -> None:
    teacher, objective = FakePupil(), FakeObjective(needs_teacher=True)
    module, result = run(tmp_path / "run", settings_of(steps=1, warmup_steps=0), teacher=teacher, objective=objective)
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    learned = saved["run"]["teacher"]
    expected = (FakePupil().detector.head.weight + module.detector.state_dict()["head.weight"]) / 2
    torch.testing.assert_close(learned["head.weight"], expected)  # once, after the step
    assert set(saved["state_dict"]) == {f"detector.{name}" for name in module.detector.state_dict()}
    for file in (result.last, result.best):
        assert file is not None
        assert set(load_file(file)) == set(module.detector.state_dict())
        assert torch.equal(load_file(file)["head.weight"], module.detector.state_dict()["head.weight"])


@pytest.mark.parametrize(("first", "second"), [(FakePupil, FakeTeacher), (FakeTeacher, FakePupil)])
def test_a_run_does_not_change_the_kind_of_its_teacher(tmp_path: Path, first: type, second: type) -> None:
    objective = FakeObjective(needs_teacher=True)
    run(tmp_path / "run", settings_of(epochs=1), teacher=first(), objective=objective)
    kinds = {FakePupil: "follows the student", FakeTeacher: "frozen"}
    with pytest.raises(RunError, match=f"teacher: {kinds[first]} then, {kinds[second]} now"):
        run(tmp_path / "run", settings_of(epochs=2), teacher=second(), objective=objective, resume=True)


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    weights = []
    for accumulate, batch in ((1, 8), (2, 4), (4, 2)):
        detector = FakeDetector(dropout=0.0, norm_eval=True)
        settings = settings_of(accumulate=accumulate, epochs=3)
        _, result = run(
            tmp_path / f"run{accumulate}", settings, detector=detector, make_train_loader=Loaders(batch=batch)
        )
        assert result.steps == 6
        weights.append(load_file(result.last))
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)


def test_steps_across_the_end_of_an_epoch_are_whole(tmp_path: Path) -> None:
    _, result = run(tmp_path / "run", settings_of(accumulate=3, epochs=3))  # 4 batches an epoch
    assert result.steps == 4
    assert [entry["step"] for entry in result.history] == [2, 3, 4]
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["epoch"] for row in rows if "lr" in row] == [0.75, 1.5, 2.25, 3.0]


def test_steps_instead_of_epochs(tmp_path: Path) -> None:
    _, result = run(tmp_path / "run", settings_of(steps=6, eval_every=0))
    assert result.steps == 6
    assert [entry["step"] for entry in result.history] == [6]


def test_the_average_is_what_is_evaluated_and_published(tmp_path: Path) -> None:
    judge = Judge()
    detector = FakeDetector()
    module, result = run(tmp_path / "run", settings_of(ema=0.9), evaluate=judge, detector=detector)
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    average = saved["run"]["average"]
    published, raw = load_file(result.last), module.detector.state_dict()
    assert average["updates"] == 8
    for name, value in average["model"].items():
        assert torch.equal(published[name], value)
    assert not torch.equal(published["head.weight"], raw["head.weight"])
    assert torch.equal(saved["state_dict"]["detector.head.weight"], raw["head.weight"])
    best = FakeDetector()
    best.load_state_dict(load_file(result.best))
    again = Judge()
    images = next(iter(Loaders(count=8, batch=8, shuffle=False)(0, 1)))
    dense = best.eval()(best.normalise(images.images, images.sizes))
    found = best.candidates(dense, best.grid_for((16, 16)), images.sizes, images.sizes)
    score = again(dict(enumerate(found)))["score"]
    assert score == pytest.approx(result.metrics["score"], abs=1e-6)


def test_evaluation_does_not_disturb_training(tmp_path: Path) -> None:
    _, often = run(tmp_path / "often", settings_of(epochs=3, eval_every=1))
    _, once = run(tmp_path / "once", settings_of(epochs=3, eval_every=0))
    _, never = run(tmp_path / "never", settings_of(epochs=3), evaluate=None)
    for name, value in load_file(often.last).items():
        assert torch.equal(load_file(once.last)[name], value)
        assert torch.equal(load_file(never.last)[name], value)
    assert never.best is None
    assert never.metrics == {}


def test_evaluation_runs_in_eval_mode_and_training_goes_on(tmp_path: Path) -> None:
    modes: list[bool] = []

    class Watched(FakeDetector):
        def forward(self, images: torch.Tensor, **maps: bool) -> Any:
            modes.append(self.training)
            return super().forward(images, **maps)

    run(tmp_path / "run", settings_of(), detector=Watched())
    assert modes == [True] * 4 + [False] * 2 + [True] * 4 + [False] * 2


def test_early_stopping_by_patience(tmp_path: Path) -> None:
    course = (0.1, 0.3, 0.2, 0.3, 0.25, 0.9)
    _, result = run(tmp_path / "run", settings_of(epochs=6, patience=3), evaluate=Judge(course))
    assert result.stopped == "patience"
    assert [entry["AP"] for entry in result.history] == [0.1, 0.3, 0.2, 0.3, 0.25]
    assert result.metrics["AP"] == 0.3
    assert result.metrics["step"] == 8
    _, again = run(tmp_path / "run", settings_of(epochs=6, patience=3), resume=True)
    assert again.steps == 20  # a run that is over stays over
    assert again.stopped == "patience"


def test_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = count(step=0.25)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(moments)))  # it passes as it is read
    _, result = run(tmp_path / "run", settings_of(epochs=10_000, time_limit_seconds=20, eval_every=0))
    assert result.stopped == "time"
    assert 20 <= result.train_seconds < 25
    assert 0 < result.steps <= 80
    assert len(result.history) == 1
    assert read_json(tmp_path / "run" / "metrics.json")["stopped"] == "time"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_stops_with_its_name(tmp_path: Path, accumulate: int) -> None:
    objective = FakeObjective(breaks_on=13)
    with pytest.raises(NonFiniteLossError) as caught:
        run(tmp_path / "run", settings_of(epochs=4, accumulate=accumulate), objective=objective)
    message = str(caught.value)
    assert "loss term 'edge' became NaN or infinite at optimiser step" in message
    assert "13" in message.split("ids")[1].split("]", maxsplit=1)[0]
    for remedy in ("engine.lr (0.2)", "engine.clip_norm=10", "engine.precision", "warmup_steps"):
        assert remedy in message
    assert "'cls'" not in message
    assert not (tmp_path / "run" / "last.ckpt").exists()  # broken in the first epoch: nothing broken is saved


def test_checkpoints_by_the_clock(tmp_path: Path) -> None:
    settings = settings_of(checkpoint_every_minutes=1e-9)
    with pytest.raises(NonFiniteLossError, match="The last checkpoint before it is") as caught:
        run(tmp_path / "run", settings, objective=FakeObjective(breaks_on=13))
    broken_at = int(str(caught.value).split("optimiser step ")[1].split(" ")[0])
    assert 1 < broken_at <= 4
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["run"]["state"]["step"] == broken_at - 1


def test_broken_weights_are_never_saved(tmp_path: Path) -> None:
    settings = settings_of(lr=1e30, scale_lr=False, warmup_steps=0, epochs=4, log_every=1000)
    with pytest.raises(NonFiniteLossError, match="clip_norm"):
        run(tmp_path / "run", settings, detector=FakeDetector(dropout=0.0, norm_eval=True))
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_weights_of_epochs_are_kept_also_after_resume(tmp_path: Path) -> None:
    _, whole = run(tmp_path / "whole", settings_of(epochs=5, save_every=2, warmup_steps=0))
    run(tmp_path / "run", settings_of(epochs=3, save_every=2, warmup_steps=0))
    _, resumed = run(tmp_path / "run", settings_of(epochs=5, save_every=2, warmup_steps=0), resume=True)
    for out in (whole.last.parent, resumed.last.parent):
        assert sorted(path.name for path in out.glob("epoch-*")) == ["epoch-002.safetensors", "epoch-004.safetensors"]
    fourth = [load_file(out.last.parent / "epoch-004.safetensors") for out in (whole, resumed)]
    assert all(torch.equal(fourth[0][name], fourth[1][name]) for name in fourth[0])
    assert not torch.equal(fourth[0]["head.weight"], load_file(whole.last)["head.weight"])
    assert not any((tmp_path / "whole").glob("epoch-005*"))


def test_an_epoch_that_ends_within_a_step_is_kept_after_it(tmp_path: Path) -> None:
    run(tmp_path / "run", settings_of(accumulate=3, epochs=3, save_every=1))  # 4 batches an epoch
    assert len(list((tmp_path / "run").glob("epoch-*"))) == 3


def test_clipping(tmp_path: Path) -> None:
    _, free = run(tmp_path / "free", settings_of(steps=1, warmup_steps=0))
    _, clipped = run(tmp_path / "clipped", settings_of(steps=1, warmup_steps=0, clip_norm=1e-3, weight_decay=0))
    start = FakeDetector().state_dict()
    names = [name for name, p in FakeDetector().named_parameters() if p.requires_grad]

    def moved(result: FitResult) -> float:
        weights = load_file(result.last)
        return float(sum((weights[n] - start[n]).double().square().sum() for n in names) ** 0.5)

    assert moved(clipped) == pytest.approx(1e-3 * 0.2 * 4 / 16, rel=1e-2)
    assert moved(free) > 10 * moved(clipped)


@pytest.mark.parametrize("precision", ["32", "bf16", "fp16"])
def test_precisions_on_cpu(tmp_path: Path, precision: str, caplog: pytest.LogCaptureFixture) -> None:
    teacher, objective = FakeTeacher(), FakeObjective(needs_teacher=True)
    settings = settings_of(precision=precision, optimizer="adamw", lr=0.01)
    _, result = run(tmp_path / "run", settings, teacher=teacher, objective=objective)
    network = torch.float32 if precision == "32" else torch.bfloat16
    assert objective.dtypes == {network}  # predictions as they are; the scene of the real one takes them to float32
    assert teacher.dtypes == {network}
    assert all(value.dtype != torch.bfloat16 for value in load_file(result.last).values())
    assert ("bf16 is used" in caplog.text) == (precision == "fp16")


def test_seeds_decide_the_run(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(123 if name == "a" else 456)  # what happened before does not matter
        _, result = run(tmp_path / name, settings_of(seed=seed), detector=FakeDetector())
        weights.append(load_file(result.last)["head.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path / "run", settings_of(epochs=1))
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    with pytest.raises(RunError, match="holds a run already"):
        run(tmp_path / "run", settings_of(epochs=1))
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "loaders", "says"),
    [
        ({"seed": 1}, Loaders(), "seed: 0 then, 1 now"),
        ({"accumulate": 2}, Loaders(), "accumulate: 1 then, 2 now"),
        ({"ema": 0.9}, Loaders(), "ema: off then, 0.9 now"),
        ({}, Loaders(count=20), "batches_per_epoch: 4 then, 5 now"),
        ({}, Loaders(count=8, batch=2), "batch_per_device: 4 then, 2 now"),
    ],
)
def test_another_run_is_not_resumed(tmp_path: Path, changes: dict[str, Any], loaders: Loaders, says: str) -> None:
    run(tmp_path / "run", settings_of(epochs=1))
    with pytest.raises(RunError, match=says):
        run(tmp_path / "run", settings_of(epochs=2, **changes), resume=True, make_train_loader=loaders)


def test_resume_without_a_checkpoint_begins_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, fresh = run(tmp_path / "fresh", settings_of())
    _, resumed = run(tmp_path / "run", settings_of(), resume=True)
    assert "begins at its first step" in caplog.text
    assert torch.equal(load_file(fresh.last)["head.weight"], load_file(resumed.last)["head.weight"])


def test_a_run_that_is_over_goes_on_only_when_given_more(tmp_path: Path) -> None:
    _, first = run(tmp_path / "run", settings_of(epochs=1))
    _, again = run(tmp_path / "run", settings_of(epochs=1), resume=True)
    assert (again.steps, again.stopped, again.metrics) == (first.steps, "finished", first.metrics)
    _, longer = run(tmp_path / "run", settings_of(epochs=3), resume=True)
    assert longer.steps == 12
    assert [entry["step"] for entry in longer.history] == [4, 8, 12]
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.csv") if "lr" in row] == list(range(1, 13))


def test_a_student_from_a_file_is_put_into_training_mode(tmp_path: Path) -> None:
    _, fresh = run(tmp_path / "fresh", settings_of(epochs=1))
    _, loaded = run(tmp_path / "loaded", settings_of(epochs=1), detector=FakeDetector().eval())
    assert torch.equal(load_file(fresh.last)["norm.running_mean"], load_file(loaded.last)["norm.running_mean"])
    assert load_file(loaded.last)["norm.num_batches_tracked"] == 4


def test_evaluation_must_give_ap(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="without 'AP'"):
        run(tmp_path / "run", settings_of(), evaluate=lambda _: {"mAP": 1.0})


def test_terminal_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught, warnings.catch_warnings():
        warnings.simplefilter("always")
        run(tmp_path / "run", settings_of(progress=True))
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[0] == "training 8 steps of 4 images (2 epochs, 1 process), learning rate 0.05"
    assert lines[1] == "warm-up shortened from 500 to 1 steps, a fifth of this short run"
    assert "step 8/8  epoch 2.00  cls " in captured.err
    assert "evaluation after step 8, epoch 2: AP 0." in captured.err
    assert "Lightning" not in captured.err
    assert "GPU available" not in captured.err
    assert not [w for w in caught if "lightning" in str(w.filename)]


def test_quiet_without_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", settings_of())
    assert capsys.readouterr() == ("", "")


def test_lines_go_to_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="locdistill"):
        run(tmp_path / "run", settings_of())
    assert "evaluation after step 8" in caplog.text


def test_errors_are_ours() -> None:
    assert issubclass(NonFiniteLossError, LocdistillError)
