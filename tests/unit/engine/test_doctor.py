"""The examination of an installation: complete, readable, without secrets, and with remedies."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from locdistill.engine import doctor
from locdistill.engine.doctor import examine
from tests.conftest import Answer


def test_everything_is_found() -> None:
    found = examine(seconds=0)
    assert torch.__version__.startswith(found.versions["torch"])
    assert found.devices[0] == "cpu"
    assert found.cpu["threads"] == torch.get_num_threads()
    assert found.gigabytes["free disk here"] > 0
    assert found.gflops == {}


def test_the_speed_is_measured() -> None:
    found = examine(seconds=0.02)
    assert set(found.gflops) == {"float32", "bf16"}
    assert all(value > 0 for value in found.gflops.values())


def test_secrets_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "abc")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("PASSWORD", "def")
    found = examine(seconds=0).environment
    assert found["HF_TOKEN"] == "(hidden)"
    assert found["OMP_NUM_THREADS"] == "3"
    assert "PASSWORD" not in found


def test_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_gigabytes", lambda: {"free memory": 1.0, "free disk here": 2.0, "shared memory": 0.1})

    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(doctor, "version", version)
    found = examine(seconds=0)
    text = " ".join(found.notes)
    for remedy in ("smaller batch", "LOCDISTILL_HOME", "--shm-size"):
        assert remedy in text
    assert found.optional["av"] == "not installed: pip install 'locdistill[video]'"
    assert found.versions["timm"] == "not installed"


def test_the_command_line(cli: Callable[..., Answer]) -> None:
    code, text, _ = cli("doctor", "--seconds", 0)
    assert code == 0
    assert torch.__version__.partition("+")[0] in text
    code, text, _ = cli("doctor", "--seconds", 0, "--json")
    assert code == 0
    assert json.loads(text)["cpu"]["cores"] >= 1
