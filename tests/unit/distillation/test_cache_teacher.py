"""A teacher that is remembered says what it said; and no other cache is taken for its own."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from locdistill.data.loader import training_loader, training_plan
from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset, Record
from locdistill.data.samplers import Draw
from locdistill.data.settings import DataSettings
from locdistill.distillation.cache import open as cache_open
from locdistill.distillation.cache.open import contents, missing_draws
from locdistill.distillation.cache.record import Layout
from locdistill.distillation.cache.store import Store
from locdistill.distillation.cache.teacher import CachedTeacher, Recall
from locdistill.distillation.methods import METHODS
from locdistill.distillation.presets import ld_full, ld_sharp, supervised
from locdistill.distillation.settings import CacheSettings, TeacherSettings
from locdistill.distillation.teacher import LiveTeacher
from locdistill.engine.module import TrainingModule
from locdistill.engine.plan import Plan
from locdistill.engine.settings import EngineSettings
from locdistill.errors import CacheError, RecipeError
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings, InputSettings
from locdistill.objective.term import Term
from locdistill.recipe.load import validate
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.terms import TermSettings
from locdistill.training.build_cache import Forecast, build_cache_of, cache_info
from locdistill.training.preflight.look import Preflight, examine
from locdistill.training.prepare import Parts, compose
from locdistill.types import Batch
from tests.conftest import write_tiny_coco

SMALL = DetectorSettings(
    backbone="test_resnet",
    pretrained=False,
    classes=("disc", "box", "bar"),
    channels=16,
    depth=2,
    norm_groups=4,
    levels=(3, 4, 5),
    reg_max=7,
    input=InputSettings(short=96, long=128),
)
VIEWS = 14
"""Seven images with objects, each as it is and mirrored."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_coco(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("teachers")
    return {model: saved(folder, model, 3, model=model) for model in ("gfl", "gflv2", "retinanet")}


def saved(folder: Path, name: str, seed: int, **changes: Any) -> Path:
    torch.manual_seed(seed)
    return Detector(SMALL.model_copy(update=changes)).save(folder / name)


def recipe(
    data: Path,
    weights: Path,
    cache: Path | None,
    *,
    terms: dict[str, Term] | None = None,
    model: str = "gfl",
    numbers: str = "half",
    **settings: Any,
) -> Recipe:
    terms = supervised(model) | (ld_sharp() if terms is None else terms)
    return Recipe(
        name="cached",
        detector=SMALL.model_copy(update={"model": model, "channels": settings.pop("channels", 16)}),
        teacher=TeacherSettings(
            weights=str(weights), cache=None if cache is None else CacheSettings(path=str(cache), numbers=numbers)
        ),
        data=DataSettings(path=str(data), sizes=((128, 96),), batch_per_device=2, workers=0).model_copy(
            update=settings
        ),
        engine=EngineSettings(precision="32", speed="off", accelerator="cpu"),
        terms={name: TermSettings.of_term(term) for name, term in terms.items()},
    )


def batches(parts: Parts) -> Iterator[Batch]:
    settings = parts.recipe.data
    yield from training_loader(parts.datasets["train"], settings, seed=0, memory=parts.memory)


def module_of(parts: Parts) -> TrainingModule:
    module = TrainingModule(parts.detector, parts.objective, parts.teacher, parts.recipe.engine)
    module.plan = Plan(batches_per_epoch=1, accumulate=1, batch_per_device=2, world=1, total_steps=1)
    module.speed_up(torch.device("cpu"))
    return module


def losses(parts: Parts) -> list[dict[str, float]]:
    """The terms of some batches, without learning anything."""
    module = module_of(parts)
    steps = [module(batch) for batch in islice(batches(parts), 2)]
    return [dict(zip(step.names, step.terms.tolist(), strict=True)) for step in steps]


# --------------------------------------------------------------------------------------------- what is taught is equal


SHORT = ("ld", "gi", "mgd", "fgd", "crosskd")
"""Methods that look at logits, at regions by scores, at features, at both, and at what the teacher's head says."""
CASES = [
    *(pytest.param(method, "gfl", marks=() if method in SHORT else pytest.mark.long) for method in METHODS),
    ("ld", "retinanet"),
    pytest.param("fgd", "retinanet", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("method", "model"), CASES)
def test_every_method_learns_the_same_of_a_remembered_teacher(
    method: str, model: str, data: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    terms = METHODS[method](model)

    def parts(cache: Path | None) -> Parts:
        return compose(recipe(data, teachers[model], cache, terms=terms, model=model), fresh=False)

    live = losses(parts(None))
    first = losses(parts(tmp_path / "cache"))  # the teacher looks
    again = losses(parts(tmp_path / "cache"))  # it is remembered, of these batches
    assert first == again
    # Where the best few of nearly equal scores are chosen, rounding decides on some.
    for mine, its in zip(first, live, strict=True):
        assert mine == pytest.approx(its, rel=5e-2 if method == "gi" else 3e-3, abs=1e-4)
    assert any(abs(step[name]) > 1e-4 for step in live for name in terms)


@pytest.mark.parametrize("numbers", ["half", "8bit"])
def test_images_of_several_sizes_and_a_quality_beside_the_score(
    numbers: str, teachers: dict[str, Path], tmp_path: Path
) -> None:
    data = write_tiny_coco(tmp_path / "data")
    resize(data, {1: (128, 60), 3: (128, 33), 4: (90, 128)})
    parts = [
        compose(recipe(data, teachers["gflv2"], cache, terms=ld_full(), model="gflv2", numbers=numbers), fresh=False)
        for cache in (None, tmp_path / "cache", tmp_path / "cache")
    ]
    assert {tuple(e) for batch in batches(parts[0]) for e in batch.instances.extents.tolist()} > {(96, 128)}
    live, first, again = (losses(each) for each in parts)
    assert first == again
    for mine, its in zip(first, live, strict=True):
        # The live teacher sees the padding that images get from each other; a remembered one never does.
        assert mine == pytest.approx(its, rel=0.1, abs=2e-2)


def resize(data: Path, sizes: dict[int, tuple[int, int]]) -> None:
    """Cut images of the training split to other sizes, and drop their boxes but one small one."""
    file = data / "train.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        if image["id"] in sizes:
            width, height = sizes[image["id"]]
            path = data / "images" / image["file_name"]
            Image.open(path).resize((width, height)).save(path)
            image |= {"width": width, "height": height}
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            for annotation in own:
                annotation["bbox"] = [4, 4, 24, 24]
                annotation["area"] = 576
    file.write_text(json.dumps(content))


def test_a_wider_teacher_teaches_through_its_own_head(data: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    """CrossKD between unequal widths: of the teacher's maps only mean and spread are kept."""
    terms = METHODS["crosskd"]("gfl")
    live, first = (
        losses(compose(recipe(data, teachers["gfl"], cache, terms=terms, channels=8), fresh=False))
        for cache in (None, tmp_path / "cache")
    )
    for mine, its in zip(first, live, strict=True):
        assert mine == pytest.approx(its, rel=3e-3, abs=1e-4)
    contract = cache_info(tmp_path / "cache").contract
    assert (contract["maps"], contract["regions"]) == (["moments"], ["everywhere"])


# ------------------------------------------------------------------------------------------------------------ building


def test_nothing_is_asked_after_a_build(
    data: Path, teachers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recipe(data, teachers["gfl"], tmp_path / "cache")
    told: list[Forecast] = []
    report = build_cache_of(whole, device="cpu", tell=told.append)
    assert (report.views, report.built, report.complete) == (VIEWS, VIEWS, True)
    assert (told[0].views, told[0].missing) == (VIEWS, VIEWS)
    assert 0.3 < told[0].bytes / report.bytes < 3
    assert report.errors is not None
    assert 0 < report.errors["edge"] < 0.02
    parts = compose(whole, fresh=False)
    monkeypatch.setattr(LiveTeacher, "__call__", None)
    losses(parts)
    assert "14 of 14 views are there; the teacher does not run" in parts.teacher.notes[-1]  # type: ignore[union-attr]


def test_a_build_that_was_stopped_goes_on(data: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    whole = recipe(data, teachers["gfl"], tmp_path / "cache")
    parts = compose(recipe(data, teachers["gfl"], tmp_path / "cache"), fresh=False)
    batch = next(batches(parts))
    module_of(parts)(batch)
    assert cache_info(tmp_path / "cache").views == 2
    report = build_cache_of(whole, device="cpu")
    assert (report.built, report.views) == (VIEWS - 2, VIEWS)
    assert build_cache_of(whole, device="cpu").built == 0


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 2, 3, 1)])
@pytest.mark.parametrize("ranks", [False, True])
def test_parts_of_a_build_make_a_whole_one_after_the_other(
    order: tuple[int, ...],
    ranks: bool,
    data: Path,
    teachers: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, built = recipe(data, teachers["gfl"], tmp_path / "cache"), 0
    monkeypatch.setenv("WORLD_SIZE", "3")
    for share in order:
        monkeypatch.setenv("RANK", str(share - 1))
        report = build_cache_of(whole, device="cpu", part=None if ranks else (share, 3))
        built += report.built
        assert report.complete == (built == VIEWS)
    assert built == VIEWS


class _Known(Store):
    """A cache of which the keys alone are there."""

    keys: set[bytes]

    def has(self, keys: Iterable[bytes]) -> list[bool]:
        return [key in self.keys for key in keys]


def _image(index: int) -> Record:
    nothing = np.zeros((0, 4), np.float32)
    return Record(Path(f"{index}.png"), index, 64, 48, nothing, np.zeros(0, np.int64), np.zeros(0, bool))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_parts_cover_everything_whenever_each_begins_and_however_they_mix(choice: st.DataObject) -> None:
    count, shares = choice.draw(st.integers(1, 12), label="images"), choice.draw(st.integers(1, 5), label="parts")
    images = Dataset("d", (), tuple(_image(i) for i in range(count)), "coco", ())
    whole = Recipe(name="a", data=DataSettings(flip=0.5))
    store = _Known(Path("nowhere"))
    object.__setattr__(store, "keys", set())
    contents = np.arange(16 * count, dtype=np.uint8).reshape(count, 16)
    recall = Recall(store, contents, Layout(strides=(8,), per_cell=1, pad_to=32))
    plan = training_plan(whole.data, whole.engine.seed, count)

    def look_at(draw: Draw) -> None:
        view = plan.view(draw)
        store.keys.add(recall.key(draw.image, view.size(48, 64), view))

    for draw in missing_draws(recall, images, plan):
        if choice.draw(st.booleans(), label="there before"):
            look_at(draw)
    waiting: dict[int, list[Draw] | None] = dict.fromkeys(range(1, shares + 1))
    while waiting:  # a part begins, looks at one more image, or is over
        part = choice.draw(st.sampled_from(sorted(waiting)))
        todo = waiting[part]
        if todo is None:
            waiting[part] = missing_draws(recall, images, plan, (part, shares))
        elif todo:
            look_at(todo.pop())
        else:
            del waiting[part]
    assert missing_draws(recall, images, plan) == []
    assert len(store.keys) == 2 * count


def test_of_two_caches_that_are_begun_at_once_the_second_is_refused(
    data: Path, teachers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (recipe(data, teachers["gfl"], tmp_path / "cache", numbers=numbers) for numbers in ("half", "8bit"))
    real = cache_open.contents

    def meanwhile(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(cache_open, "contents", real)
        compose(one, fresh=False)
        return real(*args, **options)

    monkeypatch.setattr(cache_open, "contents", meanwhile)
    with pytest.raises(CacheError, match="numbers half there, 8bit here"):
        compose(two, fresh=False)


def test_too_little_room_is_told_before(
    data: Path, teachers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CacheError, match=r"14 views need about .* GB, and the disk has 1e-06 GB free.*8bit"):
        build_cache_of(recipe(data, teachers["gfl"], tmp_path / "cache"), device="cpu")


# ---------------------------------------------------------------------------------------------- whose predictions


def test_other_settings_are_refused_by_name(data: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    build_cache_of(recipe(data, teachers["gfl"], cache), device="cpu")
    other = saved(tmp_path, "other", 4)
    with pytest.raises(CacheError, match=r"teachers \[\{sha256: \w{12}\.\.\., share: 1.0\}\] there"):
        compose(recipe(data, other, cache), fresh=False)
    with pytest.raises(CacheError, match="numbers half there, 8bit here"):
        compose(recipe(data, teachers["gfl"], cache, numbers="8bit"), fresh=False)
    with pytest.raises(CacheError, match="pad_to 32 there, 64 here"):
        compose(recipe(data, teachers["gfl"], cache, pad_to=64), fresh=False)
    with pytest.raises(CacheError, match="maps none there, features needed"):
        compose(recipe(data, teachers["gfl"], cache, terms=METHODS["pkd"]("gfl")), fresh=False)
    with pytest.raises(CacheError, match="needed"):
        compose(recipe(data, teachers["gfl"], cache, terms=METHODS["bckd"]("gfl")), fresh=False)


def test_a_cache_that_holds_more_will_do_if_it_is_complete(
    data: Path, teachers: dict[str, Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    more = recipe(data, teachers["gfl"], cache, terms=METHODS["bckd"]("gfl"))
    compose(more, fresh=False)
    less = recipe(data, teachers["gfl"], cache)
    with pytest.raises(CacheError, match=r"lacks 14 of this run's 14 views"):
        compose(less, fresh=False)
    build_cache_of(more, device="cpu")
    live, cached = (losses(compose(each, fresh=False)) for each in (recipe(data, teachers["gfl"], None), less))
    for mine, its in zip(cached, live, strict=True):
        assert mine == pytest.approx(its, rel=3e-3, abs=1e-4)


def test_another_image_or_box_is_looked_at_anew(teachers: dict[str, Path], tmp_path: Path) -> None:
    data = write_tiny_coco(tmp_path / "data")
    whole = recipe(data, teachers["gfl"], tmp_path / "cache")
    build_cache_of(whole, device="cpu")
    Image.new("RGB", (128, 96), (9, 9, 9)).save(data / "images" / "train_002.png")
    content = json.loads((data / "train.json").read_text())
    content["annotations"][0]["bbox"][2] += 3
    (data / "train.json").write_text(json.dumps(content))
    assert build_cache_of(whole, device="cpu").built == 4
    moved = tmp_path / "elsewhere"
    shutil.copytree(data, moved)
    assert build_cache_of(recipe(moved, teachers["gfl"], tmp_path / "cache"), device="cpu").built == 0


def test_sizes_from_a_range_need_a_number_of_views(data: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    several: dict[str, Any] = {"sizes": ((128, 64), (128, 96)), "size_mode": "range"}
    drawn = recipe(data, teachers["gfl"], tmp_path / "cache", **several, views=3)
    report = build_cache_of(drawn, device="cpu")
    assert 7 < report.views <= 21
    assert report.complete
    seen = list(batches(compose(drawn, fresh=False)))
    assert len({tuple(size) for batch in seen for size in batch.sizes.tolist()}) > 3
    assert all(len(batch.from_cache or ()) > 1 for batch in seen)
    plain = drawn.model_dump(mode="json")
    plain["data"]["views"] = None
    with pytest.raises(RecipeError, match=r"limit the versions of each image with data\.views=8"):
        validate(Recipe, plain, "recipe")


def test_turned_images_are_remembered(data: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    countable = recipe(data, teachers["gfl"], tmp_path / "turns", turns=True, flip_vertical=0.5)
    report = build_cache_of(countable, device="cpu")
    assert (report.views, report.complete) == (7 * 8, True)
    ways: dict[str, Any] = {"flip_vertical": 0.5, "rotate": 30.0, "scale": (0.7, 1.4), "views": 3, "crowd": "ignore"}
    drawn = recipe(data, teachers["gfl"], tmp_path / "drawn", **ways)
    report = build_cache_of(drawn, device="cpu")
    assert (report.views, report.complete) == (7 * 3, True)
    for chosen in (countable, drawn):
        assert all(len(batch.from_cache or ()) > 1 for batch in batches(compose(chosen, fresh=False)))
    live = losses(compose(recipe(data, teachers["gfl"], None, **ways), fresh=False))
    for mine, its in zip(losses(compose(drawn, fresh=False)), live, strict=True):
        assert mine == pytest.approx(its, rel=3e-3, abs=1e-4)
    for name, value in (("rotate", 5.0), ("scale", [0.5, 2.0])):
        plain = countable.model_dump(mode="json")
        plain["data"][name] = value
        with pytest.raises(RecipeError, match=rf"data\.{name} is a continuous range; limit .* data\.views=8"):
            validate(Recipe, plain, "recipe")


def test_other_corners_of_an_object_are_looked_at_anew(data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(DataSettings(path=str(data)), "train").as_oriented(True)
    (first, *others), store = dataset.records, Store(tmp_path)
    assert first.quads is not None
    changed = replace(dataset, records=(replace(first, quads=first.quads + 1), *others))
    before, after = (contents(each, store, keep_ignored=False) for each in (dataset, changed))
    assert (before != after).any(-1).tolist() == [True] + [False] * len(others)


def test_terms_that_look_at_the_padding_are_refused(teachers: dict[str, Path], tmp_path: Path) -> None:
    data = write_tiny_coco(tmp_path / "data")
    terms = METHODS["gi"]("gfl")
    on = {name: term.on for name, term in terms.items()}
    per_batch = {
        name: Term(of=term.of, on=type(on[name])(per="batch"), norm=term.norm, weight=term.weight)  # type: ignore[call-arg]
        for name, term in terms.items()
    }
    compose(recipe(data, teachers["gfl"], tmp_path / "equal", terms=per_batch), fresh=False)
    resize(data, {1: (128, 60)})
    with pytest.raises(CacheError, match=r"use the padding .* per=image"):
        compose(recipe(data, teachers["gfl"], tmp_path / "cache", terms=per_batch), fresh=False)


def test_the_preflight_looks_at_the_teacher_itself(data: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    parts = compose(recipe(data, teachers["gfl"], tmp_path / "cache"), fresh=False)
    report = examine(parts, Preflight(images=2, seconds=math.inf))
    plain = examine(compose(recipe(data, teachers["gfl"], None), fresh=False), Preflight(images=2, seconds=math.inf))
    assert [str(stop) for stop in report.stops] == [str(stop) for stop in plain.stops]
    assert set(report.notes) - set(plain.notes) == {parts.teacher.notes[-1]}  # type: ignore[union-attr]
    assert cache_info(tmp_path / "cache").views == 0


def test_a_cache_has_a_folder_of_its_own(data: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="has other contents"):
        compose(recipe(data, teachers["gfl"], data), fresh=False)
    with pytest.raises(CacheError, match="is a file; expected the folder of a cache"):
        cache_info(teachers["gfl"])
    with pytest.raises(CacheError, match="holds no cache"):
        cache_info(tmp_path)


def test_who_fills_the_cache_notes_the_errors(data: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    losses(compose(recipe(data, teachers["gfl"], tmp_path / "cache"), fresh=False))
    errors = cache_info(tmp_path / "cache").errors
    assert errors is not None
    assert 0 < errors["edge"] < 0.02


def test_the_mean_of_the_student_cannot_be_remembered() -> None:
    with pytest.raises(ValueError, match=r"change at each step and cannot be cached"):
        TeacherSettings(weights="ema", cache="folder")  # type: ignore[arg-type]


def test_validation_images_are_never_kept(data: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    parts = compose(recipe(data, teachers["gfl"], tmp_path / "cache"), fresh=False)
    plain = next(iter(training_loader(parts.datasets["val"], parts.recipe.data, seed=0)))
    assert isinstance(parts.teacher, CachedTeacher)
    assert isinstance(parts.teacher.teacher, LiveTeacher)
    said = parts.teacher(plain)
    assert torch.equal(said.cls_logits, parts.teacher.teacher(plain).cls_logits)
    assert cache_info(tmp_path / "cache").views == 0
