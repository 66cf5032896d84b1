"""The command line without training: what it answers, and what it refuses."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import locdistill
from locdistill import dist
from locdistill.cli import QUIET, main
from locdistill.cli.cache import build as cache_build
from locdistill.cli.config import config
from locdistill.cli.distill import distill
from locdistill.cli.options import spelled
from locdistill.cli.train import train
from locdistill.errors import RecipeError
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.recipe.load import dump_recipe, load_recipe, recipe_names
from tests.conftest import Answer, write_tiny_coco

VERBS = (
    "auto",
    "train",
    "distill",
    "export",
    "doctor",
    "evaluate",
    "predict",
    "benchmark",
    "recipes",
    "methods",
    "config",
    "data check",
)
ANSWERS = ("compare", "monitor", "diagnose", "landscape", "tune", "demo")
FILES = ("convert", "publish", "push", "pull")


@pytest.mark.parametrize("verb", [*VERBS, *ANSWERS, *FILES])
def test_every_verb_has_help(cli: Callable[..., Answer], verb: str) -> None:
    code, out, _ = cli(*verb.split(), "--help")
    assert code == 0
    assert "Usage:" in out
    assert verb == "demo" or f"locdistill {verb}" in out.split("Options")[0].replace("\n", " ")


def test_the_help_names_every_verb_in_its_group(cli: Callable[..., Answer]) -> None:
    shown = cli("--help")[1]
    groups = ("Train and detect", "Did it help?", "What there is", "Weights")
    places = [shown.index(f"─ {group} ─") for group in groups]
    assert places == sorted(places)
    answers = shown[places[1] : places[2]]
    for verb in ANSWERS:
        assert f"│ {verb} " in answers
    for verb in (*VERBS, *FILES):
        assert f"│ {verb.split()[0]} " in shown


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from locdistill.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'lightning', 'timm', 'numpy', 'pydantic'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_package_is_light_and_names_what_it_offers() -> None:
    code = "import sys, locdistill; assert 'torch' not in sys.modules; assert 'train' in dir(locdistill)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert set(locdistill.__all__) == set(locdistill._HOMES)
    for name in locdistill.__all__:
        assert getattr(locdistill, name).__name__.removeprefix("locdistill.") == name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        locdistill.trian  # noqa: B018


def test_verbs_and_sub_packages_do_not_share_a_name() -> None:
    """Python binds an imported sub-package to its name, which would hide a function of that name."""
    folders = {path.parent.name for path in Path(locdistill.__file__).parent.glob("*/__init__.py")}
    assert not folders & set(locdistill.__all__)


def test_distill_without_a_teacher_says_how_to_name_one() -> None:
    with pytest.raises(locdistill.LocdistillError, match="--teacher"):
        locdistill.distill(data="x")


def test_version(cli: Callable[..., Answer]) -> None:
    code, out, _ = cli("--version")
    assert code == 0
    assert out.startswith("locdistill ")


def test_recipes_as_a_table_and_as_json(cli: Callable[..., Answer]) -> None:
    code, out, _ = cli("recipes")
    assert code == 0
    assert all(name in out for name in recipe_names())
    code, out, _ = cli("recipes", "--json")
    rows = json.loads(out)
    assert [row["name"] for row in rows] == recipe_names()
    assert {"name", "detector", "teacher", "terms", "schedule", "published_ap"} <= set(rows[0])


def test_config_prints_what_loads_again(cli: Callable[..., Answer], tmp_path: Path) -> None:
    code, out, _ = cli("config", "ld_r50_from_r101", "terms.ld.weight=0.5", "--set", "engine.lr=0.02", "--devices", "2")
    assert code == 0
    (tmp_path / "mine.yaml").write_text(out)
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe == load_recipe("ld_r50_from_r101", ["engine.devices=2", "engine.lr=0.02", "terms.ld.weight=0.5"])


def test_config_of_the_defaults(cli: Callable[..., Answer]) -> None:
    code, out, _ = cli("config", "gfl_r50_1x", "--minutes", "5")
    assert code == 0
    assert out.startswith("# --minutes: the number of steps")
    code, out, _ = cli("config", "--defaults")
    assert code == 0
    assert "name: defaults" in out
    assert "warmup_steps: 500" in out


def test_errors_are_one_message_without_a_traceback(cli: Callable[..., Answer]) -> None:
    for words in (
        ("config", "gfl_r50_1x", "engine.epoch=3"),
        ("train", "gfl_r50_1", "--data", "x"),
        ("train", "--data", "/absent"),
        ("evaluate", "/absent"),
        ("predict", "/absent", "x.jpg"),
        ("distill", "--data", "x"),
        ("train", "gfl_r50_1x", "gfl_r18_1x"),
        ("train", "--resume"),
    ):
        code, out, err = cli(*words)
        assert code == 2, words
        assert "Error: " in err, words
        assert "Traceback" not in err
        assert out == ""


def test_predict_prints_what_is_done_and_names_what_is_not(
    cli: Callable[..., Answer], tiny_coco: Path, tmp_path: Path
) -> None:
    settings = {"backbone": "mobilenetv3_small_050", "pretrained": False, "classes": ["a"], "channels": 8}
    small = {"depth": 1, "norm_groups": 4, "levels": (3, 4), "input": {"short": 64, "long": 96}}
    weights = Detector(DetectorSettings.model_validate(settings | small)).save(tmp_path / "w")
    (tmp_path / "bad.png").write_bytes(b"no image")
    good = tiny_coco / "images" / "val_000.png"
    code, out, err = cli("predict", weights, tmp_path / "bad.png", good, "--save", tmp_path / "out", "--json")
    assert code == 2
    assert [prediction["image"] for prediction in json.loads(out)] == [str(good)]
    assert "ImageError: 1 of 2 images are done" in err
    assert "bad.png" in err
    code, _, err = cli("predict", weights, good, "--device", "foo")
    assert code == 2
    assert err.startswith("RunError: device 'foo'")


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(RecipeError):
        main(["config", "gfl_r50_1", "--debug"])


def test_an_unknown_option_or_verb_is_a_usage_error(cli: Callable[..., Answer]) -> None:
    assert cli("trian")[0] == 2
    assert cli("train", "--bckbone", "x")[0] == 2


def test_data_check(cli: Callable[..., Answer], tiny_coco: Path, tmp_path: Path) -> None:
    code, out, _ = cli("data", "check", tiny_coco)
    assert code == 0
    assert "no problems" in out
    broken = write_tiny_coco(tmp_path)
    content = json.loads((broken / "train.json").read_text())
    content["annotations"][0]["bbox"][2] = -3
    content["images"][2]["file_name"] = "absent.png"
    (broken / "train.json").write_text(json.dumps(content))
    code, out, _ = cli("data", "check", broken, "--json")
    assert code == 1
    report = json.loads(out)
    assert report["ok"] is False
    assert len(report["problems"]) >= 2
    code, out, err = cli("train", "--data", broken, "--out", tmp_path / "run")
    assert code == 2
    assert "absent.png" in err
    assert not (tmp_path / "run").exists()


def test_data_check_takes_settings(cli: Callable[..., Answer], tiny_coco: Path) -> None:
    code, _, err = cli("data", "check", tiny_coco, "data.formt=coco")
    assert code == 2
    assert "'format'" in err


def _parameters(verb: Callable[..., None]) -> dict[str, object]:
    """The parameters of a verb, with what they accept and stand for: metadata, type and default."""
    return {name: (p.annotation, p.default) for name, p in inspect.signature(verb).parameters.items()}


def test_config_takes_the_very_words_of_train_and_distill() -> None:
    """And ``cache build`` those of ``distill`` that say what is run; none has a meaning or default of its own."""
    trains, distils, configures, builds = (_parameters(verb) for verb in (train, distill, config, cache_build))
    assert {name: configures[name] for name in configures if name != "defaults"} == trains | distils
    assert dict(trains.items() - distils.items()).keys() == {"overfit"}
    of_the_run = {"out", "resume", "devices", "profile", "preflight", "images", "dry_run", "as_json"}
    assert {name: builds[name] for name in builds if name not in ("device", "part", "as_json")} == {
        name: distils[name] for name in distils if name not in of_the_run
    }


def test_config_shows_what_each_word_of_a_run_does(cli: Callable[..., Answer], tiny_coco: Path, tmp_path: Path) -> None:
    """Each option is given once; what stands for a field of the recipe is printed there."""
    shown = {
        ("--cache", tmp_path / "c"): ("teacher", "cache", "path", str(tmp_path / "c")),
        ("--profile",): ("engine", "profile", True),
        ("--devices", 2): ("engine", "devices", 2),
        ("--batch", 3): ("data", "batch_per_device", 3),
        ("--seed", 7): ("engine", "seed", 7),
        ("--balance", 0.5): ("balance", 0.5),
        ("--out", tmp_path / "new"): ("name", "ld_r50_from_r101"),
        ("--dry-run",): ("name", "ld_r50_from_r101"),
        ("--no-preflight",): ("name", "ld_r50_from_r101"),
        ("--preflight-images", 3): ("name", "ld_r50_from_r101"),
        ("--epochs", 3): ("engine", "epochs", 3),
        ("--start", "x"): ("start", "x"),
        ("--model", "gfl"): ("detector", "model", "gfl"),
        ("--backbone", "resnet34"): ("detector", "backbone", "resnet34"),
        ("--pretrained", "none"): ("detector", "pretrained", False),
        ("--data", tiny_coco): ("data", "path", str(tiny_coco)),
        ("--teacher", "t"): ("teacher", "weights", "t"),
    }
    for words, (*path, value) in shown.items():
        code, out, err = cli("config", "ld_r50_from_r101", *map(str, words))
        assert code == 0, err
        here = yaml.safe_load(out)
        for key in path:
            here = here[key]
        assert here == value, words
    assert not (tmp_path / "new").exists()


def test_config_of_a_run_that_is_to_go_on(cli: Callable[..., Answer], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(load_recipe("ld_r50_from_r101", ["engine.lr=0.02", "data.path=/a"])))
    code, out, _ = cli("config", "--resume", "--out", run, "--data", "/b", "--profile")
    assert code == 0
    printed = yaml.safe_load(out)
    assert (printed["engine"]["lr"], printed["engine"]["profile"], printed["data"]["path"]) == (0.02, True, "/b")
    code, out, err = cli("config", "--resume", "--out", run, "engine.lr=0.5")
    assert (code, out) == (2, "")
    assert "engine.lr: 0.02 in the run, 0.5 requested" in err
    assert "--out" in cli("config", "--resume")[2]
    assert "holds no run" in cli("config", "--resume", "--out", tmp_path / "absent")[2]


def test_every_verb_that_prints_a_result_can_print_json(cli: Callable[..., Answer]) -> None:
    for verb in (*VERBS, *ANSWERS, *FILES, "data tile", "data merge", "cache build", "cache info"):
        assert "--json" in cli(*verb.split(), "--help")[1], verb


def test_the_result_of_a_run_is_json_beside_its_progress(
    cli: Callable[..., Answer], tiny_coco: Path, tmp_path: Path
) -> None:
    tiny = ("detector.backbone=test_resnet", "detector.channels=16", "detector.depth=1", "detector.norm_groups=4")
    words = ("train", "--data", tiny_coco, *tiny, "--pretrained", "none", "engine.steps=1", "data.workers=0")
    code, out, progress = cli(*words, "engine.accelerator=cpu", "--out", tmp_path / "one", "--json")
    assert code == 0
    assert json.loads(out)["metrics"]["steps"] == 1
    assert "training 1 steps" in progress
    code, out, progress = cli(*words, "engine.accelerator=cpu", "--out", tmp_path / "two", "--json", "--quiet")
    assert code == 0
    assert json.loads(out)["last"] == str(tmp_path / "two" / "last.safetensors")
    assert progress == ""
    assert QUIET not in os.environ


def test_quiet_has_one_name() -> None:
    assert dist.QUIET == QUIET


def test_a_command_is_spelled_as_it_was_given() -> None:
    told = spelled("locdistill", "x", "a=b c", seeds=3, data=None, equal_time=True, cache=False, set=["k=1", "l=2"])
    assert told == "locdistill x 'a=b c' --seeds 3 --equal-time --set k=1 --set l=2"
    assert spelled("x", set=[], epochs=0) == "x --epochs 0"
