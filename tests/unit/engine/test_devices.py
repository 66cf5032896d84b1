"""How many processes, started by whom."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.single_device import SingleDeviceStrategy

from locdistill.engine.devices import existing_device
from locdistill.engine.launch import build_fabric, check_training_devices, device_count
from locdistill.engine.settings import EngineSettings
from locdistill.engine.speed import Speed
from locdistill.errors import RunError

OUTSIDE = ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_JOB_NAME", "SLURM_NNODES")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OUTSIDE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1, 1)),
        ({"devices": 4}, (4, 1)),
        ({"devices": 2, "nodes": 3}, (2, 3)),
        ({"devices": (0, 2), "accelerator": "cpu"}, (2, 1)),
        ({"devices": (1, 3)}, (2, 1)),  # no GPU here: two processes on the CPU
    ],
)
def test_devices_of_the_settings(settings: dict[str, Any], expected: tuple[int, int]) -> None:
    assert device_count(EngineSettings(**settings)) == expected


def test_gpus_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_count(EngineSettings(devices=(1, 3))) == ([1, 3], 1)


def test_torchrun_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device_count(EngineSettings()) == (4, 2)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    chosen = build_fabric(EngineSettings(accelerator="cpu", launch="spawn"), Speed()).strategy
    assert isinstance(chosen, DDPStrategy)
    assert chosen._start_method == "popen"  # what torchrun started is not started again


def test_slurm_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "6")
    monkeypatch.setenv("SLURM_NNODES", "3")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    assert device_count(EngineSettings()) == (2, 3)
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        monkeypatch.setenv(name, "0")
    chosen = build_fabric(EngineSettings(accelerator="cpu"), Speed()).strategy
    assert isinstance(chosen, DDPStrategy)
    assert isinstance(chosen.cluster_environment, SLURMEnvironment)
    assert not chosen.cluster_environment.auto_requeue  # our own handler saves between steps


def test_one_device_needs_no_strategy() -> None:
    assert isinstance(build_fabric(EngineSettings(accelerator="cpu"), Speed()).strategy, SingleDeviceStrategy)


@pytest.mark.parametrize(
    ("how", "interactive", "method"),
    [
        ("auto", False, "popen"),
        ("auto", True, "fork"),
        ("subprocess", True, "popen"),
        ("spawn", False, "spawn"),
        ("fork", False, "fork"),
    ],
)
def test_several_devices(monkeypatch: pytest.MonkeyPatch, how: Any, interactive: bool, method: str) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "train.py", raising=False)
    if interactive:
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    chosen = build_fabric(EngineSettings(accelerator="cpu", launch=how, devices=2), Speed()).strategy
    assert isinstance(chosen, DDPStrategy)
    assert chosen._start_method == method
    assert chosen._ddp_kwargs == {"find_unused_parameters": False}


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize("accelerator", ["cuda", "mps"])
def test_an_accelerator_that_is_not_there(monkeypatch: pytest.MonkeyPatch, accelerator: Any) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(RunError, match=rf"engine.accelerator is {accelerator}, .*this machine has cpu.*auto or cpu"):
        check_training_devices(EngineSettings(accelerator=accelerator))
    check_training_devices(EngineSettings(devices=4))  # processes, on the CPU


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("devices", [4, (0, 2), (1, 1)])
def test_more_devices_than_there_are(devices: Any) -> None:
    with pytest.raises(RunError, match=r"there are 2 of kind cuda|a device twice"):
        check_training_devices(EngineSettings(devices=devices))


@pytest.mark.usefixtures("two_gpus")
def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for devices in ("auto", 1, 2, (1,), (0, 1)):
        check_training_devices(EngineSettings(devices=devices))
    check_training_devices(EngineSettings(devices=4, accelerator="cpu"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")  # its processes may each see one of the devices only
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_training_devices(EngineSettings(devices=4))


def test_a_device_by_name() -> None:
    assert existing_device("cpu") == torch.device("cpu")
    with pytest.raises(RunError, match="'gpu': expected cpu, cuda"):
        existing_device("gpu")
    with pytest.raises(RunError, match="'meta' cannot be used"):
        existing_device("meta")
