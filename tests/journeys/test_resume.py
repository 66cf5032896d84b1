"""A run that was killed or asked to stop goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from locdistill.engine.log import Row, read_metrics
from locdistill.engine.result import FitResult
from tests.processes import Child, Running, wait_until

from .engine_run import distill, main, run

pytestmark = pytest.mark.journey


def start(out: Path, *, variables: dict[str, str] | None = None, **arguments: Any) -> Child:
    return Child(main, out, arguments, variables=variables)


def wait_for_rows(process: Running, out: Path, count: int) -> None:
    metrics = out / "metrics.csv"
    wait_until(lambda: metrics.exists() and len(read_metrics(metrics)) >= count, process)


def told(out: Path) -> list[Row]:
    """The log without the columns that tell the time."""
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}
        for row in read_metrics(out / "metrics.csv")
    ]


def assert_same_run(ours: FitResult, theirs: FitResult) -> None:
    assert told(ours.last.parent) == told(theirs.last.parent)
    assert ours.history == theirs.history
    for file in ("best.safetensors", "last.safetensors"):
        one, other = load_file(ours.last.parent / file), load_file(theirs.last.parent / file)
        assert all(torch.equal(one[name], other[name]) for name in other)


# Four batches an epoch. Checkpoints: every second step and at the ends of epochs.
@pytest.mark.parametrize(
    ("name", "settings", "kill_at", "rows_left"),
    [
        ("middle of an epoch", {"checkpoint_every_steps": 2, "ema": 0.9, "schedule": "cosine", "clip_norm": 0.1}, 7, 6),
        ("groups across epochs", {"checkpoint_every_steps": 1, "accumulate": 3, "optimizer": "adamw"}, 8, 2),
        ("means over several steps", {"log_every": 3, "precision": "bf16"}, 10, 8),
    ],
)
def test_killed_and_resumed(tmp_path: Path, name: str, settings: dict[str, Any], kill_at: int, rows_left: int) -> None:
    process = start(tmp_path / "killed", settings=settings, kill_at=kill_at)
    code, output = process.end()
    assert code == -signal.SIGKILL, output
    if rows_left:
        saved = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)
        assert saved["run"]["state"]["step"] == rows_left
    torch.manual_seed(99)  # the state of this process must not matter
    resumed = run(tmp_path / "killed", settings, resume=True)
    whole = run(tmp_path / "whole", settings)
    assert_same_run(resumed, whole)
    steps = [row["step"] for row in told(tmp_path / "killed") if "lr" in row]
    assert steps == sorted(set(steps))


def test_a_teacher_that_follows_goes_on_where_it_was(tmp_path: Path) -> None:
    settings = {"checkpoint_every_steps": 1, "log_every": 3}
    process = start(tmp_path / "killed", settings=settings, kill_at=7, pupil=True)
    code, output = process.end()
    assert code == -signal.SIGKILL, output
    resumed = run(tmp_path / "killed", settings, resume=True, pupil=True)
    whole = run(tmp_path / "whole", settings, pupil=True)
    assert_same_run(resumed, whole)
    taught = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["run"]["teacher"] for name in ("killed", "whole")
    ]
    assert all(torch.equal(taught[0][name], value) for name, value in taught[1].items())
    assert {"agree/mean_id", "agree/odd_id"} <= set(whole.history[-1])


def test_killed_twice(tmp_path: Path) -> None:
    settings = {"checkpoint_every_steps": 1, "ema": 0.5}
    for kill_at in (3, 4):
        process = start(tmp_path / "killed", settings=settings, kill_at=kill_at, resume=kill_at == 4)
        assert process.end().code == -signal.SIGKILL
    resumed = run(tmp_path / "killed", settings, resume=True)
    assert_same_run(resumed, run(tmp_path / "whole", settings))
    assert resumed.steps == 12


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path / "stopped", settings={}, hold_at=4)
    wait_for_rows(process, tmp_path / "stopped", 2)
    process.signal(number)
    (tmp_path / "go").touch()
    code, output = process.end()
    assert code == 128 + number, output
    last = output.strip().splitlines()[-1]
    assert last.startswith(f"stopped by {number.name} after optimiser step")
    assert last.endswith(f"Resume with the same command and --resume --out {tmp_path / 'stopped'}")
    assert "Traceback" not in output
    stopped_at = torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)["run"]["state"]["step"]
    assert 0 < stopped_at < 12
    assert json.loads((tmp_path / "stopped" / "metrics.json").read_text())["stopped"] is None
    assert_same_run(run(tmp_path / "stopped", {}, resume=True), run(tmp_path / "whole", {}))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_whole_group_is_asked_to_stop(tmp_path: Path, tiny_coco: Path, number: signal.Signals) -> None:
    """As by a terminal, ``timeout`` and SLURM, which signal the workers of the loader too."""
    job: dict[str, Any] = {"data": str(tiny_coco), "batch": 2, "workers": 2}
    process = start(tmp_path / "stopped", settings={"epochs": 500}, **job)
    wait_for_rows(process, tmp_path / "stopped", 2)
    process.signal(number, group=True)
    code, output = process.end()
    assert code == 128 + number, output
    assert "Traceback" not in output
    assert torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)["run"]["state"]["step"] > 0


def test_preempted_by_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGUSR1 saves between two steps and queues the job again, which then resumes by itself."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    job = {"SLURM_JOB_ID": "17017", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
    job |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1"}
    job["PATH"] = f"{scontrol.parent}:{os.environ['PATH']}"
    process = start(tmp_path / "job", settings={}, hold_at=4, variables=job)
    wait_for_rows(process, tmp_path / "job", 2)
    process.signal(signal.SIGUSR1)
    (tmp_path / "go").touch()
    code, output = process.end()
    assert code == 128 + signal.SIGUSR1, output
    assert "(SLURM requeues the job automatically)" in output
    assert (tmp_path / "asked").read_text() == "requeue 17017\n"
    monkeypatch.setenv("SLURM_JOB_ID", "17017")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert_same_run(run(tmp_path / "job", {}), run(tmp_path / "whole", {}))


@pytest.mark.parametrize(
    "methods",
    [
        pytest.param({}, id="paper", marks=pytest.mark.long),
        pytest.param({"methods": ("ld", "crosskd", "mgd"), "balance": 0.5}, id="more"),
    ],
)
def test_distillation_with_workers_killed_and_resumed(tmp_path: Path, tiny_coco: Path, methods: dict[str, Any]) -> None:
    """With the paper's terms; with adapters, generators, balances and schedules, which go on where they were too."""
    job: dict[str, Any] = {"data": str(tiny_coco), "batch": 2, "workers": 2} | methods
    settings = {"epochs": 2, "checkpoint_every_steps": 1, "accumulate": 3}  # four batches an epoch, three steps in all
    process = start(tmp_path / "killed", settings=settings, kill_at=7, **job)
    code, output = process.end()
    assert code == -signal.SIGKILL, output
    assert torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["run"]["state"]["step"] == 2
    resumed = distill(tmp_path / "killed", settings, resume=True, **job)
    assert_same_run(resumed, distill(tmp_path / "whole", settings, **job))
    ours, theirs = (
        torch.load(tmp_path / n / "last.ckpt", weights_only=True)["state_dict"] for n in ("killed", "whole")
    )
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    owners = {name.split(".")[1] for name in theirs if name.startswith("learned.")}
    assert owners == ({"terms", "cross", "balance"} if methods else set())
    last = "train/mgd" if methods else "train/kd"
    assert {"train/cls", "train/ld", "train/ld_vlr", last} <= set(told(tmp_path / "whole")[0])


def taught(out: Path) -> dict[str, torch.Tensor]:
    """Weights of a teacher that follows the student."""
    saved = torch.load(out / "last.ckpt", weights_only=True)["run"]["teacher"]
    assert saved["updates"] == torch.load(out / "last.ckpt", weights_only=True)["run"]["state"]["step"]
    return saved["model"]


def test_a_student_that_teaches_itself_killed_and_resumed(tmp_path: Path, tiny_coco: Path) -> None:
    job: dict[str, Any] = {"data": str(tiny_coco), "batch": 2, "average": 0.5}
    settings = {"epochs": 2, "checkpoint_every_steps": 1, "log_every": 3, "lr": 0.1}  # eight steps
    process = start(tmp_path / "killed", settings=settings, kill_at=5, **job)
    code, output = process.end()
    assert code == -signal.SIGKILL, output
    resumed = distill(tmp_path / "killed", settings, resume=True, **job)
    whole = distill(tmp_path / "whole", settings, **job)
    assert_same_run(resumed, whole)
    ours, theirs = taught(tmp_path / "killed"), taught(tmp_path / "whole")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert {"agree/edge_kl", "agree/box_iou", "train/ld"} <= set(told(tmp_path / "whole")[0])
    assert 0 < whole.history[-1]["agree/edge_kl"] < 1  # neither the student itself nor something else
