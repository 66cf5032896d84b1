"""Whatever words began a run, the same words with ``--resume`` go on with it, and others are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from locdistill.errors import LocdistillError, RunError
from locdistill.files import write_text
from locdistill.recipe import run_folder
from locdistill.recipe.defaults import resolve
from locdistill.recipe.load import load_recipe, recipe_data
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.request import Request
from locdistill.training import train
from locdistill.training.fit import RunResult
from locdistill.training.resume import _MAY_CHANGE, resumed_recipe

NAME = "ld_r50_from_r101"
BASE = Request(
    recipe=NAME,
    data="/data",
    teacher="/teacher",
    overrides=("data.views=3", "data.sizes=[[1333, 640], [1333, 800]]", "teacher.cache.path=/cache"),
)
DIGESTS = ("a" * 64, "b" * 64, "c" * 64)


def begun(request: Request, path: Path) -> Recipe:
    """The recipe that a run with these words has in its folder: what was left open is filled in."""
    recipe = resolve(request)
    classes = recipe.detector.classes or recipe.data.classes or ("cat", "dog")
    detector = {
        "classes": classes,
        "mean": recipe.detector.mean or (1.0, 2.0, 3.0),
        "std": recipe.detector.std or (1.0, 1.0, 2.0),
    }
    engine = {"precision": "bf16"} if recipe.engine.precision == "auto" else {}
    teacher = recipe.teacher
    if teacher is not None and not teacher.follows:
        more = [each.model_copy(update={"sha256": d}) for each, d in zip(teacher.more, DIGESTS[1:], strict=False)]
        teacher = teacher.model_copy(update={"sha256": teacher.sha256 or DIGESTS[0], "more": tuple(more)})
    recipe = recipe.model_copy(
        update={
            "detector": recipe.detector.model_copy(update=detector),
            "data": recipe.data.model_copy(update={"classes": classes}),
            "engine": recipe.engine.model_copy(update=engine),
            "teacher": teacher,
        }
    )
    run_folder.write_start(path, recipe, {})
    return recipe


def changed(request: Request, **words: Any) -> Request:
    return {**request, **words}


def with_words(*overrides: str, **words: Any) -> Request:
    return changed(BASE, overrides=(*BASE["overrides"], *overrides), **words)


# ----------------------------------------------------------------------------------------------------- every setting

VALUES: dict[str, Any] = {
    "name": "mine",
    "detector.model": "gflv2",
    "detector.backbone_args": {"drop_path_rate": 0.1},
    "detector.deformable": [3],
    "detector.style": "caffe",
    "detector.classes": ["cat", "dog", "cow"],
    "detector.channels": 128,
    "detector.norm_groups": 16,
    "detector.angles": "oc",
    "detector.angle_bins": "linear",
    "detector.predictor": 1,
    "detector.mean": [1, 2, 3.5],
    "detector.std": [1, 2, 3.5],
    "detector.detections.nms": "voting_cluster_diou",
    "detector.detections.augment.scales": [0.8, 1.0],
    "teacher.sha256": "f" * 64,
    "teacher.soft_target": "two_hot",
    "teacher.classes": ["dog", "cat"],
    "teacher.input": {"bgr": True},
    "teacher.onnx": {"bgr": False},
    "teacher.more": [{"weights": "/second"}],
    "teacher.cache.numbers": "8bit",
    "start": "/start",
    "data.format": "voc",
    "data.train": ["a.json"],
    "data.val": ["b.json"],
    "data.classes": ["cat", "dog", "cow"],
    "data.ignore_classes": ["cow"],
    "data.size_mode": "range",
    "data.scale": [0.5, 2],
    "data.augment": "light",
    "data.mosaic_scale": [0.5, 2],
    "data.crowd": "ignore",
    "data.one_based": True,
    "data.bits": 12,
    "data.holdout": 0.2,
    "data.holdout_by": "video[0-9]+",
    "detector.input.bits": 12,
    "engine.optimizer": "adamw",
    "engine.schedule": "cosine",
    "engine.precision": "32",
    "engine.ema": 0.99,
    "engine.devices": [0, 2],
    "engine.accelerator": "cpu",
    "engine.launch": "spawn",
    "assigner": {"atss": {"topk": 5}},
    "published": {"ap": 40.0},
    "published.source": "elsewhere",
    "published.test_dev": {"ap": 40.0},
}
NOT_HERE = {"teacher.decay", "detector.background_channel", "terms"}  # below, or of other detectors


def _leaves(data: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    key = ".".join(path)
    if isinstance(data, dict) and data and path not in (("terms",), ("assigner",)):
        for name, value in data.items():
            yield from _leaves(value, (*path, name))
    elif key not in NOT_HERE:
        yield key, data


def _other(key: str, value: Any) -> Any:
    if key in VALUES:
        return VALUES[key]
    changes: dict[type, Callable[[Any], Any]] = {
        bool: lambda value: not value,
        int: lambda value: value + 1,
        float: lambda value: value / 2 if value else 0.5,
        str: lambda value: True if key.startswith("engine.speed.") else value + "x",
        list: lambda value: value[:-1] if len(value) > 1 else [*value, *value],
        type(None): lambda _: 2,
    }
    return changes[type(value)](value)


SETTINGS = dict(_leaves(resolve(BASE).model_dump(mode="json")))


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_of_a_recipe(key: str, tmp_path: Path) -> None:
    word = f"{key}={json.dumps(_other(key, SETTINGS[key]))}"
    saved = begun(with_words(word), tmp_path / "with")
    assert resumed_recipe(with_words(word), tmp_path / "with") == saved
    assert resumed_recipe(Request(overrides=(word,)), tmp_path / "with") == saved
    assert resumed_recipe(Request(), tmp_path / "with") == saved
    plain = begun(BASE, tmp_path / "without")
    assert saved != plain or key in ("detector.backbone_args",)
    if key in _MAY_CHANGE:
        changed = resumed_recipe(with_words(word), tmp_path / "without").model_dump(mode="json")
        for part in key.split("."):
            changed = changed[part]
        assert changed == json.loads(json.dumps(_other(key, SETTINGS[key])))
        return
    named = "is a run of the recipe" if key == "name" else key.replace(".", r"\.")
    with pytest.raises(RunError, match=named):
        resumed_recipe(Request(overrides=(word,)), tmp_path / "without")


# -------------------------------------------------------------------------------------------------- all kinds of words

WORDS: dict[str, tuple[Request, Request | None]] = {
    "name": (with_words("name=mine"), with_words("name=yours")),
    "name of a plain training": (
        Request(recipe="gfl_r18_1x", data="/d", overrides=("name=a",)),
        Request(recipe="gfl_r18_1x", data="/d", overrides=("name=b",)),
    ),
    "recipe": (BASE, changed(BASE, recipe="ld_r34_from_r101")),
    "model": (with_words(model="gflv2"), with_words(model="gfl")),
    "backbone": (with_words(backbone="resnet18"), with_words(backbone="resnet34")),
    "epochs": (with_words(epochs=6), with_words(epochs=7)),
    "epochs twice": (with_words("engine.epochs=24", epochs=6), with_words("engine.epochs=8", epochs=6)),
    "epochs and milestones": (with_words("engine.milestones=[3]", epochs=6), None),
    "pretrained hub": (with_words(pretrained="hub"), with_words(pretrained="none")),
    "pretrained file": (with_words(pretrained="/backbone.pth"), with_words(pretrained="/other.pth")),
    "start": (with_words(start="/run"), with_words(start="/other")),
    "start teacher": (with_words(start="teacher"), with_words(start="/teacher")),
    "method": (with_words(methods=("ld",)), with_words(methods=("pkd",))),
    "methods": (with_words("terms.ld.weight=3", methods=("ld", "kd")), with_words(methods=("ld", "kd"))),
    "teacher ema": (
        with_words("teacher.cache=null", "teacher.decay=0.9", teacher="ema"),
        with_words("teacher.cache=null", "teacher.decay=0.99", teacher="ema"),
    ),
    "teachers": (
        with_words("teacher.weights=[/a, /b]"),
        with_words("teacher.weights=[/a, /b, /c]"),
    ),
    "one teacher in a list": (with_words("teacher.weights=[/a]"), with_words("teacher.weights=[/a, /b]")),
    "more teachers": (
        with_words("teacher.more=[{weights: /b, share: 2}, {weights: /c}]"),
        with_words("teacher.more=[{weights: /b, share: 3}, {weights: /c}]"),
    ),
    "any teacher": (with_words("teacher.sha256=null"), with_words("teacher.sha256=" + "e" * 64)),
    "teacher as a group": (
        with_words("teacher={weights: /a, scale: 2}"),
        with_words("teacher={weights: /a, scale: 4}"),
    ),
    "cache as a group": (with_words("teacher.cache={path: /c, numbers: 8bit}"), None),
    "no cache": (with_words("teacher.cache=null"), with_words("teacher.cache=/c")),
    "term taken out": (with_words("terms.ld_vlr=null"), with_words("terms.kd=null")),
    "term changed, then taken out": (with_words("terms.kd.weight=2", "terms.kd=null"), None),
    "term added": (
        with_words("terms.mine={of: edge_kl, on: positives, weight: 1}"),
        with_words("terms.mine={of: edge_kl, on: positives, weight: 2}"),
    ),
    "term added, beside a method": (
        with_words("terms.mine={of: edge_kl, on: positives, weight: 1}", methods=("pkd",)),
        with_words(methods=("pkd",)),
    ),
    "term changed": (with_words("terms.ld.of.edge_kl.temperature=2"), with_words("terms.ld.of.edge_kl.temperature=3")),
    "component by name": (with_words("terms.ld.on=everywhere"), with_words("terms.ld.on=positives")),
    "balance": (with_words("balance=1"), with_words("balance=2")),
    "balance of a term": (with_words("terms.ld.balance=1"), with_words("terms.ld.balance=2")),
    "assigner by name": (with_words("assigner=max_iou"), with_words("assigner=atss")),
    "assigner left open": (with_words("assigner=null"), None),
    "terms left open": (with_words("terms=null", "terms.ld={of: edge_kl, on: positives}"), None),
    "speed off": (with_words("engine.speed=off"), None),
    "speed off but for": (with_words("engine.speed=off", "engine.speed.compile=true"), None),
    "precision left open": (with_words("engine.precision=auto"), with_words("engine.precision=fp16")),
    "precision as a number": (with_words("engine.precision=16"), with_words("engine.precision=32")),
    "classes left open": (
        with_words("data.classes=null", "detector.classes=[]"),
        with_words("data.classes=[dog, cat]"),
    ),
    "normalisation left open": (with_words("detector.mean=null", "detector.std=null"), None),
    "sizes": (with_words("data.sizes=[[640, 480]]"), with_words("data.sizes=[[640, 512]]")),
    "sizes and input": (with_words("data.sizes=[[640, 480]]", "detector.input.long=800"), None),
    "the last of two": (with_words("engine.lr=1", "engine.lr=0.5"), with_words("engine.lr=0.5", "engine.lr=1")),
    "balance null": (with_words("balance=1", "balance=null"), None),
    "devices": (with_words("engine.devices=2"), with_words("engine.devices=4")),
    "student alone": (
        changed(BASE, teacher=None, overrides=("teacher=null", *(f"terms.{n}=null" for n in ("ld", "ld_vlr", "kd")))),
        None,
    ),
}
"""Words that begin a run, and others that ask for another train."""


@pytest.mark.parametrize("kind", WORDS)
def test_the_same_words_go_on_with_a_run_and_others_are_refused(kind: str, tmp_path: Path) -> None:
    words, others = WORDS[kind]
    saved = begun(words, tmp_path)
    again = resumed_recipe(words, tmp_path)
    assert again == saved
    assert list(again.terms) == list(saved.terms)  # the order in which they are added up
    assert resumed_recipe(changed(words, recipe=None), tmp_path) == saved
    if others is not None:
        with pytest.raises(RunError):
            resumed_recipe(others, tmp_path)


def test_a_file_of_a_recipe_and_the_folder_of_the_run(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("base: ld_r50_from_r101\nengine: {epochs: 6, milestones: [4, 5]}\nterms: {kd: null}\n")
    for words in (changed(BASE, recipe=file), changed(BASE, recipe=file, epochs=3)):
        path = tmp_path / f"run-{words.get('epochs')}"
        saved = begun(words, path)
        assert resumed_recipe(words, path) == saved
        assert resumed_recipe(changed(words, recipe=path), path) == saved
    assert recipe_data(file)["name"] == "own"


def test_teachers_that_were_moved(tmp_path: Path) -> None:
    begun(with_words("teacher.weights=[/a, /b]"), tmp_path)
    now = resumed_recipe(with_words("teacher.weights=[/there/a, /there/b]"), tmp_path)
    assert now.teacher is not None
    assert [now.teacher.weights, now.teacher.more[0].weights] == ["/there/a", "/there/b"]
    assert (now.teacher.sha256, now.teacher.more[0].sha256) == DIGESTS[:2]  # and are those of before


# ------------------------------------------------------------------------------------------------------- a SLURM job


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCDISTILL_OUT", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "17")


def _noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, Path, bool]]:
    """What is run from now on: recipe, folder, and whether it goes on with what is there."""
    began: list[tuple[Recipe, Path, bool]] = []

    def note(recipe: Recipe, out: Path | str, resume: bool = False, **_: object) -> RunResult:
        began.append((recipe, Path(out), resume))
        return RunResult(Path(out), None, Path(out), {})

    monkeypatch.setattr(train, "run", note)
    return began


@pytest.mark.parametrize("kind", ["name", "teachers", "term taken out", "teacher ema", "epochs twice", "methods"])
@pytest.mark.parametrize("out", [None, "runs/here"])
def test_a_job_that_was_preempted_goes_on_with_its_run(
    kind: str, out: str | None, job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = WORDS[kind][0]
    recipe = resolve(words)
    verb = "distill" if recipe.distils else "train"
    path = run_folder.new_folder(out, f"{verb}-{recipe.name}")
    saved = begun(words, path)
    write_text(path / "run.json", json.dumps(run_folder.facts_of({})))
    for number in (16, 18):  # runs of other jobs
        other = Path(f"runs/{verb}-{recipe.name}-{number}")
        run_folder.write_start(other, saved, {"job": str(number)})
    began = _noted(monkeypatch)
    train._start(words, verb, None if out is None else f"runs/{verb}-{recipe.name}-2", False)
    assert began.pop()[1:] == (Path(f"runs/{verb}-{recipe.name}-2"), False)  # another run with the same words
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    train._start(words, verb, out, False)
    assert began == [(saved, path, True)]


def test_a_job_of_several_runs_finds_each(job: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    words = [with_words(f"engine.seed={seed}") for seed in range(3)]
    for seed in (0, 1):
        path = run_folder.new_folder(None, f"distill-{NAME}")
        run_folder.write_start(path, begun(words[seed], path), run_folder.facts_of({}))
    began = _noted(monkeypatch)
    for each in words:
        train._start(each, "distill", None, False)
    runs = [Path(f"runs/distill-{NAME}{ending}") for ending in ("", "-2", "-3")]
    seeds = [(recipe.engine.seed, out, resume) for recipe, out, resume in began]
    assert seeds == [(0, runs[0], True), (1, runs[1], True), (2, runs[2], False)]


def test_what_cannot_be_a_recipe_is_still_said(tmp_path: Path) -> None:
    begun(BASE, tmp_path)
    for word in ("engine.lr=fast", "engine.speeed=off", "terms.lt=2"):
        with pytest.raises(LocdistillError, match=word.partition("=")[0].replace(".", r"\.")):
            resumed_recipe(with_words(word), tmp_path)
    assert load_recipe(tmp_path).name == NAME
