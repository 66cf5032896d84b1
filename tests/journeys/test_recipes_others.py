"""Every recipe of the other kinds of detectors trains on photographs, resumes and evaluates."""

from __future__ import annotations

from pathlib import Path

import pytest

from locdistill.models.kinds import KINDS
from tests.every_recipe import check, names_of, photographs

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def data(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(shared, tmp_path_factory.mktemp("recipes") / "cells")


@pytest.mark.parametrize("name", [name for kind in KINDS if kind != "gfl" for name in names_of(kind)])
def test_recipe(name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(name, data, tmp_path, monkeypatch)
