"""`make test-all`: every test, the long ones too, and a note of when that was done and with what result."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_name("last_full_run.json")
WORDS = ("--numprocesses", "2", "--dist", "loadfile", "-m", "")


def words(note: dict[str, Any]) -> str:
    """A record in one line."""
    return (
        f"{note['date']}, commit {note['commit']}, {note['instruction_set']}: {note['passed']} passed, "
        f"{note['failed']} failed, {note['skipped']} skipped, {note['minutes']} minutes"
    )


def record(report: Path, commit: str) -> dict[str, Any]:
    """What a report in the form of JUnit says of a run."""
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    tests, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "passed": tests - skipped - failed,
        "failed": failed,
        "skipped": skipped,
        "minutes": round(float(suite.attrib["time"]) / 60, 1),
    }


def main(arguments: list[str]) -> int:
    """Say when this was last done, do it, and note it, unless only some of the tests were asked for."""
    if RECORD.is_file():
        print("last full run:", words(json.loads(RECORD.read_text())), flush=True)
    else:
        print("there was no full run yet", flush=True)
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *WORDS, f"--junit-xml={report}", *arguments]
        code = subprocess.call(command, cwd=ROOT)
        if report.is_file():
            note = record(report, described.stdout.strip() or "unknown")
            print("this run:", words(note))
            if not arguments and code in (0, 1):  # 1: some tests failed; above it, pytest was stopped or did not begin
                RECORD.write_text(json.dumps(note, indent=1) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
