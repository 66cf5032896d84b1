"""How many workers read images, and how much memory decoded ones may take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from locdistill.data import resources
from locdistill.data.loader import training_loader
from locdistill.data.open import open_dataset
from locdistill.data.resources import picture_memory, processes_here, worker_count
from locdistill.data.settings import DataSettings
from locdistill.errors import RecipeError
from locdistill.recipe.load import dump_recipe, load_recipe

GIGABYTE = 10**9


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """24 cores and 64 GB, no container, no SLURM, no torchrun; the folder of the control group."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(24)), raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 64 * 10**6, "SC_PAGE_SIZE": 1000}.__getitem__, raising=False)
    monkeypatch.setattr(resources, "CONTROL_GROUPS", tmp_path)
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NNODES", "SLURM_NTASKS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(("processes", "workers"), [(1, 16), (2, 11), (4, 5), (24, 1), (100, 1)])
def test_training_processes_share_the_cores(processes: int, workers: int) -> None:
    assert worker_count(None, processes) == workers
    assert worker_count(0, processes) == 0
    assert worker_count(40, processes) == 40


def test_processes_of_other_machines_take_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes_here(8) == 8
    monkeypatch.setenv("SLURM_NNODES", "3")
    assert processes_here(8) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert processes_here(8) == 4
    assert worker_count(None, 8) == 5
    assert picture_memory(8, 8) == 2 * GIGABYTE


def test_a_slurm_task_has_cores_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert worker_count(None, 2) == 5
    assert worker_count(None, 8) == 2  # four in each task


def test_a_container_may_have_fewer_cores_and_less_memory(machine: Path) -> None:
    (machine / "cpu.max").write_text("max 100000\n")
    (machine / "memory.max").write_text("max\n")
    assert (worker_count(None, 1), picture_memory(None, 1)) == (16, 16 * GIGABYTE)
    (machine / "cpu.max").write_text("350000 100000\n")
    (machine / "memory.max").write_text(f"{8 * GIGABYTE}\n")
    assert (worker_count(None, 1), picture_memory(None, 1)) == (2, 2 * GIGABYTE)


def test_memory_for_pictures() -> None:
    assert picture_memory(None, 1) == 16 * GIGABYTE
    assert picture_memory(None, 4) == 4 * GIGABYTE
    assert picture_memory(0.5, 2) == GIGABYTE // 4
    with pytest.raises(RecipeError, match=r"data\.cache is 65 GB, but this machine has 64\.0 GB .* set data\.cache"):
        picture_memory(65, 1)


@pytest.mark.parametrize(("said", "kept"), [(True, True), (False, False), (0, False), (8, 8.0), (1, 1.0), (0.5, 0.5)])
def test_the_cache_is_on_off_or_so_large(said: object, kept: bool | float, tmp_path: Path) -> None:
    cache = DataSettings(cache=said).cache  # type: ignore[arg-type]
    assert cache == kept
    assert isinstance(cache, bool) == isinstance(kept, bool)
    recipe = load_recipe("gfl_r50_1x", [f"data.cache={said}"])
    assert recipe.data.cache == kept
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("said", ["-1", "8GB", "[8]", ".inf", ".nan", "null"])
def test_no_size_of_a_cache(said: str) -> None:
    with pytest.raises(RecipeError, match=r"data\.cache: expected true, false, or a number of GB, such"):
        load_recipe("gfl_r50_1x", [f"data.cache={said}"])


def test_a_bound_keeps_some_images_and_reads_the_others(tiny_coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 3 * 3 * 60 * 80 / GIGABYTE  # for three of eight images
    settings = DataSettings(
        path=str(tiny_coco), sizes=((80, 60),), batch_per_device=2, workers=0, filter_empty=False, cache=room
    )
    loader = training_loader(open_dataset(settings, "train"), settings, seed=0)
    list(loader)
    read: list[str] = []
    monkeypatch.setattr("locdistill.data.loader.read_image", lambda path, **_: read.append(path) or 1 / 0)
    for image in range(8):
        try:
            loader.dataset._picture(image, (60, 80))  # type: ignore[attr-defined]
        except ZeroDivisionError:
            continue
    assert len(read) == 5
