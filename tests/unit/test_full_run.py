"""What `make test` leaves out, and what `make test-all` notes of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import full_run
from tests.full_run import RECORD, main, record, words

REPORT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites name="pytest tests"><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="20" time="90.0"/>
</testsuites>
"""
NOTE = {"date": "2026-01-02", "commit": "abc", "instruction_set": "AVX2", "passed": 5, "failed": 0, "skipped": 1}


def test_a_report_becomes_a_note(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    note = record(tmp_path / "report.xml", "1234567")
    assert (note["passed"], note["failed"], note["skipped"], note["minutes"]) == (14, 3, 3, 1.5)
    assert note["commit"] == "1234567"
    assert "14 passed, 3 failed, 3 skipped, 1.5 minutes" in words(note)


@pytest.mark.parametrize(("arguments", "code", "noted"), [([], 1, True), ([], 2, False), (["tests/unit"], 0, False)])
def test_the_last_run_is_said_and_a_whole_one_noted(
    arguments: list[str],
    code: int,
    noted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = json.dumps(NOTE | {"minutes": 7})
    (tmp_path / "record.json").write_text(kept)

    def call(command: list[str], **_: object) -> int:
        (file,) = (word.split("=")[1] for word in command if word.startswith("--junit-xml"))
        Path(file).write_text(REPORT)
        return code

    monkeypatch.setattr(full_run, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(subprocess, "call", call)
    assert main(arguments) == code
    assert "last full run: 2026-01-02, commit abc, AVX2: 5 passed" in capsys.readouterr().out
    assert ((tmp_path / "record.json").read_text() != kept) == noted


def test_the_record_that_comes_with_the_tests_can_be_read() -> None:
    assert not RECORD.exists() or " passed, " in words(json.loads(RECORD.read_text()))


def test_threads_are_set_before_anything_imports_torch(tmp_path: Path) -> None:
    """Later is too late: the variables are read once. Plugins of pytest must not import it either."""
    (tmp_path / "conftest.py").write_text("import sys\nassert 'torch' not in sys.modules\n")
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "--jaxtyping-packages=locdistill,tests.checked", str(tmp_path)]
    done = subprocess.run(command, cwd=full_run.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert os.environ["OMP_WAIT_POLICY"]
