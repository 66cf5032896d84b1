"""A training among many, of several processes of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from locdistill.errors import RunError
from locdistill.recipe.load import load_recipe
from locdistill.training import separately


@pytest.mark.parametrize(
    ("name", "verb"), [("gfl_r18_1x", ["train"]), ("ld_r18_from_r101", ["distill", "--no-preflight"])]
)
@pytest.mark.parametrize("resume", [False, True])
def test_several_processes_have_a_command_of_their_own(
    name: str, verb: list[str], resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them begins with the command that was given, which must not be the one that trains many times."""
    asked: list[list[str]] = []

    def note(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 3 if len(asked) > 1 else 0)

    monkeypatch.setattr(separately.subprocess, "run", note)
    recipe = load_recipe(name, ["engine.devices=2", "engine.launch=subprocess", "engine.accelerator=cpu"])
    out = tmp_path / "all" / "run-0"
    separately.run_apart(recipe, out, resume)
    last = ["--resume"] if resume else ["--recipe", f"{out}.yaml"]
    assert asked == [[sys.executable, "-m", "locdistill", *verb, "--out", str(out), *last]]
    assert load_recipe(f"{out}.yaml") == recipe
    with pytest.raises(RunError, match="exit code 3"):
        separately.run_apart(recipe, out, resume)
