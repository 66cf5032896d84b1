"""Two processes on one machine (gloo) train as one would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import ROOT, STUCK, Ended, free_port, together

from .engine_run import distill, main, run
from .test_resume import taught, told, wait_for_rows

pytestmark = pytest.mark.journey
RANKS = {"LOCDISTILL_TEST_RANKS": "1"}


def launch(out: Path, *, torchrun: bool = False, **arguments: Any) -> subprocess.Popen[str]:
    """Have Lightning, or ``torchrun``, start the two processes."""
    settings = {"devices": 2, "launch": "subprocess"} | arguments.pop("settings", {})
    if torchrun:
        settings.pop("devices")
    launcher = ["-m", "torch.distributed.run", f"--master-port={free_port()}", "--nproc-per-node=2"] if torchrun else []
    job = ["-m", "tests.journeys.engine_run", str(out), json.dumps(arguments | {"settings": settings})]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK")}
    return subprocess.Popen(
        [sys.executable, *launcher, *job],
        cwd=ROOT,
        env=environment | RANKS | {"MASTER_PORT": str(free_port())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def two_processes(out: Path, **arguments: Any) -> Ended:
    """Two processes that are there already, as under ``torchrun``."""
    return together(main, out, arguments, variables=RANKS)


def ranks(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"rank{r}.json").read_text()) for r in range(2)]


def test_two_processes_stop_together_go_on_and_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    """Begun by themselves, stopped by a signal to the first of them, and resumed under ``torchrun``."""
    out, settings = tmp_path / "two", {"ema": 0.9, "epochs": 2}
    process = launch(out, settings=settings, plain=True, batch=2, hold_at=4)
    wait_for_rows(process, out, 2)
    process.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    begun, _ = process.communicate(timeout=STUCK)
    assert process.returncode == 128 + signal.SIGTERM, begun
    assert begun.count("stopped by SIGTERM after optimiser step") == 1
    assert 0 < torch.load(out / "last.ckpt", weights_only=True)["run"]["state"]["step"] < 8

    process = launch(out, torchrun=True, settings=settings, plain=True, batch=2, resume=True)
    resumed, _ = process.communicate(timeout=STUCK)
    assert process.returncode == 0, resumed
    one = run(tmp_path / "one", settings, plain=True, batch=4)
    first, second = ranks(out)
    assert first["weights"] == second["weights"]  # to the last bit
    assert first["steps"] == second["steps"] == one.steps == 8
    assert first["images"] == list(range(8))  # each process detected on its share, the first one judged all
    assert second["images"] is None
    ours, theirs = load_file(out / "last.safetensors"), load_file(one.last)
    # Sums over images are added up in another order: eps for each of some hundred terms, in each of eight steps.
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)
    for row, expected in zip(told(out), told(tmp_path / "one"), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    for output in (begun, resumed):
        assert "(2 epochs, 2 processes), learning rate 0.05" in output
    assert (begun + resumed).count("evaluation after step") == 2  # told once, not once per process


def test_distillation_by_two_processes_equals_one(tmp_path: Path, tiny_coco: Path) -> None:
    settings = {"epochs": 2, "warmup_steps": 0}  # a step is the whole data set: eight images, or two times four
    code, output = two_processes(tmp_path / "two", settings=settings, data=str(tiny_coco), batch=4)
    assert code == 0, output
    one = distill(tmp_path / "one", settings, data=str(tiny_coco), batch=8)
    ours, theirs = load_file(tmp_path / "two" / "last.safetensors"), load_file(one.last)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)
    for row, expected in zip(told(tmp_path / "two"), told(tmp_path / "one"), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, nan_ok=True)


def test_what_terms_learn_is_learned_by_two_processes_as_by_one(tmp_path: Path, tiny_coco: Path) -> None:
    """Adapters, also before the teacher's head, contexts and balances; no holes, which differ between processes."""
    job: dict[str, Any] = {"data": str(tiny_coco), "methods": ("pkd", "fgd", "crosskd"), "balance": 0.5}
    settings = {"epochs": 2, "warmup_steps": 0, "ema": None}
    code, output = two_processes(tmp_path / "two", settings=settings, batch=4, **job)
    assert code == 0, output
    one = distill(tmp_path / "one", settings, batch=8, **job)
    saved = [torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("two", "one")]
    assert {name.split(".")[0] for name in saved[0]} == {"detector", "learned"}
    for name, value in saved[1].items():
        torch.testing.assert_close(saved[0][name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert not any(name.startswith("learned") for name in load_file(one.last))
    for row, expected in zip(told(tmp_path / "two"), told(tmp_path / "one"), strict=True):
        assert row == pytest.approx(expected, rel=1e-3, nan_ok=True)


def test_two_processes_teach_one_student_itself(tmp_path: Path, tiny_coco: Path) -> None:
    """Each process normalises by statistics of its own images; the teacher has the first one's on both."""
    job: dict[str, Any] = {"data": str(tiny_coco), "batch": 2, "average": 0.5}
    job["settings"] = {"epochs": 2, "checkpoint_every_steps": 1, "lr": 0.1}  # four steps
    code, output = two_processes(tmp_path / "killed", kill_at=3, **job)
    assert code == -signal.SIGKILL, output
    code, output = two_processes(tmp_path / "killed", resume=True, **job)
    assert code == 0, output
    code, output = two_processes(tmp_path / "whole", **job)
    assert code == 0, output
    assert told(tmp_path / "killed") == told(tmp_path / "whole")
    ours, theirs = taught(tmp_path / "killed"), taught(tmp_path / "whole")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_two_processes_resume_exactly(tmp_path: Path) -> None:
    settings = {"checkpoint_every_steps": 1, "accumulate": 2, "ema": 0.9}
    code, output = two_processes(tmp_path / "killed", settings=settings, batch=2, kill_at=7)
    assert code == -signal.SIGKILL, output
    saved = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)
    assert saved["run"]["state"]["step"] == 3
    assert len(saved["run"]["random"]) == 2
    code, output = two_processes(tmp_path / "killed", settings=settings, batch=2, resume=True)
    assert code == 0, output
    code, output = two_processes(tmp_path / "whole", settings=settings, batch=2)
    assert code == 0, output
    assert told(tmp_path / "killed") == told(tmp_path / "whole")
    assert ranks(tmp_path / "killed") == ranks(tmp_path / "whole")


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run", {"epochs": 1}, batch=2)
    code, output = two_processes(tmp_path / "run", settings={"epochs": 2}, batch=2, resume=True)
    assert code != 0
    assert "processes: 1 then, 2 now" in output


@pytest.mark.long
def test_spawned_from_python(tmp_path: Path) -> None:
    result = run(tmp_path / "run", {"devices": 2, "launch": "spawn", "epochs": 1, "progress": False}, batch=2)
    assert (result.steps, result.stopped, len(result.history)) == (4, "finished", 1)
    assert result.metrics["AP"] == result.history[0]["AP"]
    assert result.last.is_file()


def test_a_loss_that_breaks_on_one_process_stops_both(tmp_path: Path) -> None:
    code, output = two_processes(tmp_path / "run", settings={}, batch=2, breaks_on=13)
    assert code != 0
    assert "NonFiniteLossError: loss term 'edge' became NaN or infinite" in output
    assert not (tmp_path / "run" / "last.ckpt").exists()
