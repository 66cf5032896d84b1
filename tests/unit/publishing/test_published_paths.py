"""Nothing that is published names a place on a machine; the card and run.json name what was used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from locdistill.engine.settings import EngineSettings
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.models.weights import read_metadata
from locdistill.publishing.card import Card
from locdistill.publishing.publish import publish, shareable
from locdistill.recipe import run_folder
from locdistill.recipe.load import load_recipe
from locdistill.recipe.recipe import Recipe

SMALL = DetectorSettings(
    backbone="test_resnet", pretrained=False, classes=("a",), channels=16, depth=1, norm_groups=4, levels=(3, 4)
)
PLACES = ("/private/place/{}", "private/place/{}", "../private/place/{}", "~/private/place/{}", "C:\\private\\{}")


def paths(place: str) -> list[str]:
    """Every setting that names a file or folder of the machine."""
    return [
        f"data.path={place.format('data')}",
        f"teacher.weights=[{place.format('a.safetensors')}, {place.format('b.safetensors')}]",
        f"teacher.cache={{path: '{place.format('cache')}', numbers: 8bit}}",
        f"detector.pretrained={place.format('backbone.pth')}",
        f"start={place.format('run/best.safetensors')}",
        "detector.classes=[a]",
        "data.views=3",
    ]


@pytest.fixture(params=PLACES)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder as a run leaves it."""
    recipe = load_recipe("ld_r50_from_r101", paths(request.param))
    path = tmp_path / "run"
    start = {"weights": request.param.format("run/best.safetensors"), "sha256": "a" * 64}
    run_folder.write_start(path, recipe, run_folder.facts_of({}) | {"start": start})
    torch.manual_seed(0)
    detector = Detector(SMALL)
    detector.settings = SMALL.model_copy(update={"pretrained": request.param.format("backbone.pth")})
    detector.settings = detector.settings.model_copy(update={"mean": (1.0, 1.0, 1.0), "std": (1.0, 1.0, 1.0)})
    detector.save(path / "best")
    (path / "metrics.json").write_text(json.dumps({"best": {"AP": 0.5, "epoch": 1}, "stopped": "epochs"}))
    return path


def test_no_place_is_in_a_published_folder(run: Path, tmp_path: Path) -> None:
    made = publish(run, out=tmp_path / "published")
    for file in (tmp_path / "published").iterdir():
        assert b"private" not in file.read_bytes(), file
    assert made.recipe is not None
    recipe = load_recipe(made.recipe)
    assert recipe.teacher is not None
    assert (recipe.teacher.cache, recipe.teacher.weights, recipe.teacher.more[0].weights) == (None, None, None)
    assert (recipe.start, recipe.detector.pretrained) == ("./best.safetensors", "backbone.pth")
    assert read_metadata(made.weights)["extra"]["start"]["weights"] == "best.safetensors"
    again = publish(made.weights, out=tmp_path / "again")  # a file alone, whose metadata have the recipe
    assert again.recipe is not None
    assert load_recipe(again.recipe) == recipe


def test_metadata_of_another_version_are_cleaned_too(tmp_path: Path) -> None:
    recipe = load_recipe("ld_r50_from_r101", paths("private/{}"))
    file = Detector(SMALL).save(tmp_path / "old", extra={"recipe": recipe.model_dump(mode="json")})
    publish(file, out=tmp_path / "published")
    for path in (tmp_path / "published").iterdir():
        assert b"private" not in path.read_bytes(), path


def _strings(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [each for key, item in value.items() for each in _strings(item, f"{path}.{key}")]
    if isinstance(value, list):
        return [each for item in value for each in _strings(item, path)]
    return [(path, value)] if isinstance(value, str) else []


def test_what_is_for_everybody_stays() -> None:
    hub = ["teacher.weights=[hf://o/a, hf://o/b]", "start=hf://o/c", "detector.pretrained=true"]
    plain = shareable(load_recipe("ld_r50_from_r101", hub)).model_dump(mode="json")
    assert {"hf://o/a", "hf://o/b", "hf://o/c"} <= {text for _, text in _strings(plain)}
    assert plain["detector"]["pretrained"] is True
    ema = load_recipe("ld_r50_from_r101", ["teacher.weights=ema", "start=null"])
    assert shareable(ema).teacher == ema.teacher


def _card(recipe: Recipe) -> str:
    record = {"recipe": recipe.model_dump(mode="json")}
    settings = SMALL.model_copy(update={"mean": (1.0, 1.0, 1.0), "std": (1.0, 1.0, 1.0)})
    return Card(file="a.safetensors", sha256="f" * 64, settings=settings, parameters=1, record=record).text()


def test_the_card_names_every_teacher() -> None:
    more = "teacher.more=[{weights: b, sha256: " + "b" * 64 + ", share: 3}, {weights: c, sha256: " + "c" * 64 + "}]"
    text = _card(load_recipe("ld_r50_from_r101", ["teacher.sha256=" + "a" * 64, "teacher.name=first", more]))
    row = next(line for line in text.splitlines() if line.startswith("| teacher |"))
    assert row == (
        f"| teacher | first, SHA-256 {'a' * 64}, a share of 20%; SHA-256 {'b' * 64}, a share of 60%; "
        f"SHA-256 {'c' * 64}, a share of 20% |"
    )
    alone = _card(load_recipe("ld_r50_from_r101", ["teacher.sha256=" + "a" * 64, "teacher.name=first"]))
    assert f"| teacher | first, SHA-256 {'a' * 64} |" in alone


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        ({}, "GPU 0"),
        ({"devices": 2}, "GPU 0"),
        ({"devices": (1, 2)}, "GPU 1"),
        ({"accelerator": "cuda"}, "GPU 0"),
        ({"accelerator": "cpu"}, "cpu ("),
        ({"accelerator": "cpu", "devices": (1, 2)}, "cpu ("),
        ({"accelerator": "mps"}, "mps"),
    ],
)
def test_a_run_names_the_device_that_it_used(
    engine: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: f"GPU {index}")
    assert run_folder.facts_of({}, EngineSettings(**engine))["device"].startswith(name)
