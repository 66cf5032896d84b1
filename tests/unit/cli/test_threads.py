"""How the command line shares a machine: decided before PyTorch is imported, unless the user decides."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from locdistill.cli import threads

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
LOOK = """
import os, sys
from locdistill.cli import main
assert "torch" not in sys.modules
main(["--version"])
assert "torch" not in sys.modules
print(*(os.environ.get(name, "-") for name in %r))
"""


def environment(**given: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in NAMES} | given


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "PASSIVE 3000 -"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE - -"),
        ({"GOMP_SPINCOUNT": "7"}, "- 7 -"),
        ({"OMP_NUM_THREADS": "1"}, "PASSIVE 3000 1"),
    ],
)
def test_the_command_line_does_not_spin(given: dict[str, str], expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK % (NAMES,)], env=environment(**given), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize(("allowed", "given", "expected"), [(2, None, "2"), (8, None, None), (2, "5", "5")])
def test_a_container_gets_no_more_threads_than_cores(
    monkeypatch: pytest.MonkeyPatch, allowed: int, given: str | None, expected: str | None
) -> None:
    """OpenMP counts the cores of the machine, and not what the container may use of them."""
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads, "allowed_cores", lambda: allowed)
    monkeypatch.setattr(threads, "visible_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    threads.share_politely()
    assert os.environ.get("OMP_NUM_THREADS") == expected


def test_a_process_that_computes_already_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert sys.modules["torch"] is torch
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    threads.share_politely()
    assert not [name for name in NAMES if name in os.environ]
