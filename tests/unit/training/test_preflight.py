"""The look before the first step: what is caught, with its remedy and the setting that applies it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import locdistill
from locdistill.data.open import open_dataset
from locdistill.data.settings import DataSettings
from locdistill.distillation.teacher import LiveTeacher
from locdistill.errors import TeacherError
from locdistill.models.detector import Detector
from locdistill.models.settings import NormalisationSettings
from locdistill.recipe.defaults import resolve
from locdistill.recipe.request import Request
from locdistill.training.preflight.data import look_at_data, look_at_regions, region_problems
from locdistill.training.preflight.judge import Suspect, doubts, no_better_than_start, stopping, unlike_assigners
from locdistill.training.preflight.look import Preflight
from locdistill.training.preflight.report import Finding, PreflightReport, network
from locdistill.training.preflight.teacher import START, Measurement, NormalisationTrial, TeacherScore, judged, usual
from locdistill.training.prepare import Parts, compose, objective_of, teacher_of
from locdistill.types import Batch, Detections, Instances
from tests.conftest import CLASSES, write_tiny_coco
from tests.small import small_detector

COLOURS = {"disc": (220, 40, 40), "box": (40, 200, 60), "bar": (60, 80, 230)}
MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)  # BGR, what the recipes assume of an ONNX file
STUDENT = (
    *("detector.levels=[3,4]", "detector.channels=16", "detector.depth=1", "detector.norm_groups=4"),
    *("data.sizes=[[128,96]]", "data.workers=0", "engine.accelerator=cpu", "engine.progress=false"),
)
LOOK = Preflight(images=40, seconds=math.inf)


def runs(mask: np.ndarray) -> np.ndarray:
    """At each place, how many neighbours to the left are in the mask, itself left out; -1 outside."""
    place = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
    return place - np.maximum.accumulate(np.where(mask, -1, place), 1) - 1


class Colours:
    """A made-up ONNX file that finds the drawn objects by their colour, if it gets to see them as they are.

    Scores are highest in the middle of an object; edges are where its colour ends.
    """

    names: tuple[str, ...] = CLASSES
    bins = 8

    def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
        del path, options, providers

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="x", shape=[None, 3, 96, 128], type="tensor(float)")]

    def run(self, names: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        del names
        pictures = (feeds["x"] * np.array(STD)[:, None, None] + np.array(MEAN)[:, None, None])[:, ::-1]
        levels = [[self._level(picture, stride) for picture in pictures] for stride in (8, 16)]
        return [np.stack([one[part] for one in level]) for level in levels for part in (0, 1)]

    def _level(self, picture: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
        at = np.ix_(np.arange(stride // 2, 96, stride), np.arange(stride // 2, 128, stride))
        scores = np.zeros((len(at[0]) * at[1].size, len(self.names)), np.float32)
        distances = np.zeros((len(scores), 4))
        for label, name in enumerate(self.names):
            mask = np.abs(picture - np.array(COLOURS[name])[:, None, None]).max(0) < 40
            left, right = runs(mask), runs(mask[:, ::-1])[:, ::-1]
            top, bottom = runs(mask.T).T, runs(mask[::-1].T).T[::-1]
            edges = np.stack([side[at].flatten() for side in (left, top, right, bottom)], 1)
            low, high = np.minimum(edges[:, :2], edges[:, 2:]) + 1, np.maximum(edges[:, :2], edges[:, 2:]) + 1
            inside = mask[at].flatten()
            scores[:, label] = np.where(inside, (low / np.maximum(high, 1)).prod(1), 0)
            distances[inside] = edges[inside] + 0.5
        steps = np.arange(self.bins)
        near = np.clip(1 - np.abs(np.clip(distances / stride, 0, self.bins - 1)[..., None] - steps), 1e-9, None)
        return scores, np.log(near).reshape(len(scores), -1).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the tiny folder, with enough objects to judge a teacher by."""
    return write_tiny_coco(tmp_path_factory.mktemp("data"), train=8, val=40)


@pytest.fixture
def onnx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    def install(**attributes: Any) -> Path:
        kind = type("Made", (Colours,), attributes)
        made = SimpleNamespace(SessionOptions=SimpleNamespace, InferenceSession=kind)
        monkeypatch.setitem(sys.modules, "onnxruntime", made)
        (tmp_path / "colours.onnx").touch()
        return tmp_path / "colours.onnx"

    return install


def looked(teacher: Path, data: Path, *settings: str, **words: Any) -> PreflightReport:
    """The report on a run from a file with the drawn classes."""
    own = [f"teacher.onnx.classes=[{','.join(CLASSES)}]"] if teacher.suffix == ".onnx" else []
    overrides = [*STUDENT, *own, *settings]
    recipe = {"recipe": str(written(data, teacher))}
    return locdistill.preflight(teacher, data, how=LOOK, overrides=overrides, **recipe, **words)


def written(data: Path, teacher: Path) -> Path:
    """A recipe of GFL with LD; a teacher's own settings are asked for nowhere."""
    file = teacher.parent / "recipe.yaml"
    file.write_text(
        "name: r\n"
        "detector: {backbone: test_resnet, pretrained: false}\n"
        "teacher: {}\n"
        f"data: {{path: '{data}', batch_per_device: 4}}\n"
        "terms:\n"
        "  qfl: {of: quality_focal, on: counted, norm: positive_count}\n"
        "  ld: {of: {edge_kl: {temperature: 1}}, on: positives, norm: {per_image: {reference_batch: 3}}}\n"
        "  ld_vlr: {of: {edge_kl: {temperature: 1}}, on: valuable_locations, norm: {per_image: {reference_batch: 3}}}\n"
    )
    return file


# ------------------------------------------------------------------------------- a teacher that is heard as in training


def test_a_good_teacher_is_said_to_be_so(onnx: Callable[..., Path], data: Path) -> None:
    report = looked(onnx(), data)
    own = report.numbers["ap"]["teacher"]
    assert own["ap"] > 0.5
    assert own["images"] == 40
    assert own["objects"] >= 50
    assert all(trial["ap"] < 0.8 * own["ap"] for trial in own["other_normalisations"].values())
    assert report.stops == ()
    assert not [p for p in report.warnings if "teacher" in p.what]
    text = report.text()
    for words in (
        "gfl on test_resnet",
        "ONNX file",
        "17, 0 to 16 strides",
        "8, 0 to 7 strides",
        "3: disc, box, bar",
        "BGR, mean 104/116/124, std 57.4/57.1/58.4",
        "training images    8, of which 1 (12%) have no box and are left out",
        "on 40 of 40 validation images",
        "locdistill train RUN/recipe.yaml teacher=null terms.ld=null terms.ld_vlr=null --out ALONE",
    ):
        assert words in text, text
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["facts"]["student"]["strides"] == "8, 16"


def test_wrong_colours_are_measured_and_named(onnx: Callable[..., Path], data: Path) -> None:
    for given, want in (
        (
            ("teacher.onnx.bgr=false", "teacher.onnx.mean=[123.675,116.28,103.53]"),
            ("'teacher.onnx.mean=[103.53,116.28,123.675]'", "teacher.onnx.bgr=true"),
        ),
        (
            ("teacher.onnx.mean=[0,0,0]", "teacher.onnx.std=[255,255,255]"),
            ("'teacher.onnx.mean=[103.53,116.28,123.675]'", "'teacher.onnx.std=[57.375,57.12,58.395]'"),
        ),
    ):
        report = looked(onnx(), data, *given)
        level, cause = report.stops[:2]  # the drawn classes are colours: red for blue looks like disc for bar as well
        assert "is at chance level: AP 0.0" in level.what
        assert "--no-preflight" in level.remedy
        assert "teacher receives wrong colours: normalised as" in cause.what
        assert "(ImageNet statistics, BGR)" in cause.what or "(the other order of channels, BGR)" in cause.what
        assert set(want) <= set(cause.settings)
        again = looked(onnx(), data, *given, *(setting.strip("'") for setting in cause.settings))
        assert again.stops == ()
        assert again.numbers["ap"]["teacher"]["ap"] > 0.5


def test_classes_that_only_share_their_names(onnx: Callable[..., Path], data: Path) -> None:
    report = looked(onnx(names=("box", "bar", "disc")), data)
    level, *_, cause = report.stops
    assert "is at chance level" in level.what
    assert "of the objects that it finds, 100% have another class (bar where there is disc" in cause.what
    assert cause.settings == ("'teacher.onnx.classes=[box,bar,disc]'",)
    again = looked(onnx(names=("box", "bar", "disc")), data, cause.settings[0].strip("'"))
    assert again.stops == ()


def test_a_teacher_of_other_classes_is_refused_with_both_sides(onnx: Callable[..., Path], data: Path) -> None:
    report = looked(onnx(), data, "teacher.onnx.classes=[cat,dog,cow]")
    (stop,) = report.stops
    assert "the teacher knows none of the student's; it has ['cat', 'dog', 'cow']" in stop.what
    assert "take a teacher that was trained on some of these classes, or rename" in stop.what
    assert report.facts["teacher"]["classes"] == "3: cat, dog, cow"
    assert report.facts["student"]["classes"] == "3: disc, box, bar"
    some = looked(onnx(), data, "teacher.onnx.classes=[disc,cat,dog]")
    assert "colours.onnx: classes: the teacher does not know ['box', 'bar']" in " ".join(some.notes)
    assert some.numbers["ap"]["teacher"]["ap"] > 0.5  # over those that it knows
    assert some.numbers["ap"]["teacher"]["objects"] < report_objects(data)


def report_objects(data: Path) -> int:
    return sum(len(r.boxes) for r in open_dataset(DataSettings(path=str(data)), "val").records)


def test_bins_are_bridged_and_too_few_are_said(onnx: Callable[..., Path], data: Path) -> None:
    report = looked(onnx(), data)
    assert "8, up to 7 strides, are put into the student's 17" in report.notes[0]
    assert "(detector.reg_max=7 gives both the same)" in report.notes[0]
    few = looked(onnx(bins=3), data, "detector.reg_max=2")
    own = next(p for p in few.warnings if p.what.startswith("too few bins"))
    (setting,) = own.settings
    assert setting.startswith("detector.reg_max=")
    wider = looked(onnx(bins=3), data, setting)
    assert not [p for p in wider.warnings if p.what.startswith("too few bins")]
    its = next(p for p in wider.warnings if p.what.startswith("the teacher has too few bins"))
    assert "further than its last bin (2 strides)" in its.what
    assert "use a teacher with more bins" in its.remedy


# -------------------------------------------------------------------------------------------------- teachers of weights

SMALL = small_detector()


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return Detector(SMALL).save(tmp_path_factory.mktemp("untrained") / "best")


def test_a_teacher_at_chance_level_stops_the_run(untrained: Path, data: Path, tmp_path: Path) -> None:
    words = {"recipe": written(data, untrained), "overrides": [*STUDENT, "engine.steps=1", "data.sizes=[[64,48]]"]}
    with pytest.raises(TeacherError) as stopped:
        locdistill.distill(untrained, data, out=tmp_path / "run", preflight=LOOK, **words)
    said = str(stopped.value)
    for part in (
        "teacher is at chance level: AP 0.0, AP50 0.0 on 40 validation images",
        "to start all the same, pass --no-preflight",
        "its images had another size in training: 128 pixels long, here 64; train at its size: data.sizes=[[128,96]]",
        "it may not be a trained detector",
        "locdistill evaluate WEIGHTS --data PATH",
        f"locdistill train --data {data}",
    ):
        assert part in said
    assert not (tmp_path / "run").exists()
    result = locdistill.distill(untrained, data, out=tmp_path / "run", preflight=None, **words)
    assert result.last.is_file()
    assert not (tmp_path / "run" / "preflight.txt").exists()


def suspect(untrained: Path, data: Path, measurement: Measurement, position: int = 0) -> Suspect:
    recipe = resolve(Request(recipe=written(data, untrained), teacher=untrained, overrides=STUDENT))
    return Suspect(compose(recipe, fresh=True), "teacher", measurement, LiveTeacher(Detector.load(untrained)), position)


def test_remedies_for_weights_are_settings_of_the_teacher(untrained: Path, data: Path) -> None:
    own, better = TeacherScore(0.2, 0.4, 100, 32), TeacherScore(0.3, 0.5, 100, 32)
    swapped = dict(usual(LiveTeacher(Detector.load(untrained)).normalisation))["the other order of channels, BGR"]
    measurement = Measurement(own, trials=(NormalisationTrial("swapped", swapped, better, own),))
    (cause,) = doubts(suspect(untrained, data, measurement))
    assert "teacher.input.bgr=true" in cause.settings
    assert "AP 20.0, AP50 40.0" in cause.what
    assert "AP 30.0, AP50 50.0, on the same 32 images" in cause.what
    second = doubts(suspect(untrained, data, measurement, position=2))[0]
    assert second.settings == ()
    assert "in entry 2 of teacher.more" in second.remedy
    little = replace(better, ap=0.215)
    assert (
        doubts(
            suspect(untrained, data, Measurement(own, trials=(NormalisationTrial("swapped", swapped, little, own),)))
        )
        == []
    )
    named = TeacherScore(0.1, 0.2, 100, 32, 50, 0.1, (("box", "disc"), ("disc", "box")))
    (renamed,) = doubts(suspect(untrained, data, Measurement(named)))
    assert renamed.settings == ("'teacher.classes=[box,disc,bar]'",)
    foreign = TeacherScore(0.1, 0.2, 100, 32, 50, 0.1, (("box", "disc"), ("bar", "disc")))
    (taken,) = doubts(suspect(untrained, data, Measurement(foreign)))
    assert taken.remedy == "use a teacher trained on these classes"


def test_a_poor_teacher_and_too_few_objects(untrained: Path, data: Path) -> None:
    (poor,) = doubts(suspect(untrained, data, Measurement(TeacherScore(0.1, 0.2, 100, 32))))
    assert "is poor on these data: AP 10.0" in poor.what
    assert "train the student alone first and compare" in poor.remedy
    (few,) = doubts(suspect(untrained, data, Measurement(TeacherScore(0.0, 0.0, 19, 32))))
    assert "cannot be assessed: only 19 objects" in few.what
    assert stopping(suspect(untrained, data, Measurement(TeacherScore(0.0, 0.0, 49, 32)))) == []
    start = {
        "teacher": Measurement(TeacherScore(0.3, 0.5, 100, 32)),
        START: Measurement(TeacherScore(0.4, 0.5, 100, 32)),
    }
    (worse,) = no_better_than_start(start)
    assert "teacher is no better than the student at its start: AP 30.0, AP50 50.0 against AP 40.0" in worse.what
    assert no_better_than_start({"teacher": start["teacher"]}) == []


def test_what_a_recipe_says_of_a_teachers_weights_is_followed(untrained: Path, data: Path) -> None:
    how = {"bgr": True, "mean": [1, 2, 3], "std": [4, 5, 6]}
    settings = {"weights": str(untrained), "input": how, "classes": ["box", "bar", "disc"]}
    recipe = resolve(Request(recipe=written(data, untrained), overrides=(*STUDENT, (("teacher",), settings))))
    recipe = recipe.model_copy(update={"detector": recipe.detector.model_copy(update={"classes": CLASSES})})
    teacher = teacher_of(recipe)
    plain = Detector.load(untrained)
    plain.settings = plain.settings.model_copy(update={"bgr": True})
    plain.mean.copy_(torch.tensor([1.0, 2, 3])[:, None, None])
    plain.std.copy_(torch.tensor([4.0, 5, 6])[:, None, None])
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes, nothing = torch.tensor([[64, 96]]), torch.zeros(1, 0)
    truth = Instances(torch.zeros(1, 0, 4), nothing.long(), nothing.bool(), nothing.bool(), sizes)
    batch = Batch(images=images, sizes=sizes, original_sizes=sizes, image_ids=torch.tensor([1]), instances=truth)
    said, want = teacher(batch), LiveTeacher(plain)(batch)
    assert torch.equal(said.cls_logits, want.cls_logits[..., [2, 0, 1]])
    assert torch.equal(said.edge_logits, want.edge_logits)
    wrong = recipe.teacher.model_copy(update={"classes": ("a", "b")})
    with pytest.raises(TeacherError, match=r"teacher.classes has 2 names, but .* has 3 classes"):
        teacher_of(recipe.model_copy(update={"teacher": wrong}))


def test_normalisations_that_are_nearly_the_same_are_tried_once() -> None:
    own = NormalisationSettings(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4), bgr=False)
    names = [name for name, _ in usual(own)]
    assert "ImageNet statistics, RGB" not in names  # its own
    assert "ImageNet statistics, BGR" not in names  # the other order
    assert names[0] == "the other order of channels, BGR"
    assert len(names) == 5


# ----------------------------------------------------------------------------------------------------------------- data


def test_detections_are_judged_over_the_classes_that_are_known(data: Path) -> None:
    dataset = open_dataset(DataSettings(path=str(data)), "val")
    perfect = {
        r.image_id: Detections(torch.from_numpy(r.boxes), torch.ones(len(r.boxes)), torch.from_numpy(r.labels))
        for r in dataset.records[:20]
    }
    score = judged(dataset, perfect, None)
    assert (score.ap, score.images, score.right) == (pytest.approx(1), 20, 1.0)
    assert score.found == score.objects == sum(len(r.boxes) for r in dataset.records[:20])
    only = {i: Detections(*(v[d.labels == 1] for v in d)) for i, d in perfect.items()}
    assert judged(dataset, only, (1,)).ap == pytest.approx(1)
    assert judged(dataset, only, None).ap == pytest.approx(1 / 3)
    other = {i: d._replace(labels=(d.labels + 1) % 3) for i, d in perfect.items()}
    wrong = judged(dataset, other, None)
    assert wrong.right == 0
    assert dict(wrong.called) == {CLASSES[k]: CLASSES[(k + 1) % 3] for k in range(3)}


def parts_of(data: Path, untrained: Path, *settings: str) -> Parts:
    recipe = resolve(Request(recipe=written(data, untrained), teacher=untrained, overrides=(*STUDENT, *settings)))
    return compose(recipe, fresh=True)


def test_data_without_boxes_and_batches_larger_than_the_data(data: Path, untrained: Path, tmp_path: Path) -> None:
    parts = parts_of(data, untrained, "data.batch_per_device=16")
    _, numbers, (batch,) = look_at_data(parts)
    assert numbers == {
        "train_images": 8,
        "train_images_without_boxes": 1,
        "val_images": 40,
        "val_images_without_boxes": 0,
    }
    assert "an epoch draws 16 images, of 7 in the data" in batch.what
    assert batch.settings == ("data.batch_per_device=3",)
    kept = parts_of(data, untrained, "data.filter_empty=false")
    assert look_at_data(kept)[0]["training images"].endswith("trained on as background")

    bare = write_tiny_coco(tmp_path / "bare")
    for split in ("train", "val"):
        content = json.loads((bare / f"{split}.json").read_text())
        content["annotations"] = content["annotations"][:1] if split == "train" else []
        (bare / f"{split}.json").write_text(json.dumps(content))
    report = looked(untrained, bare, "data.filter_empty=false")
    said = {p.what: p for p in report.warnings}
    nothing = next(p for what, p in said.items() if "no image of the validation split" in what)
    assert "AP will be undefined in the whole run" in nothing.what
    assert nothing.settings == ("data.holdout=0.1",)
    assert report.numbers["ap"] == {}
    mostly = next(p for what, p in said.items() if "of the images that are trained on have no box" in what)
    assert mostly.settings == ("data.filter_empty=true",)


def test_regions_and_the_anchors_that_suit_the_objects(data: Path, untrained: Path) -> None:
    parts = parts_of(data, untrained, "detector.anchor_scale=4")
    regions = look_at_regions(parts)
    assert regions.images == 8  # one of the seven with boxes comes twice
    assert regions.locations == 12 * 16 + 6 * 8
    assert 0 < regions.main < regions.valuable < regions.locations
    assert len(regions.distances) == regions.main * regions.images
    assert regions.beyond(100) == 0
    assert regions.beyond(0) > 0.9
    assert region_problems(parts, regions, None) == []

    none = replace(regions, valuable=0.0)
    (empty,) = region_problems(parts, none, None)
    assert "the valuable region is empty: ld_vlr will have no effect" in empty.what
    assert empty.settings[0].startswith("detector.anchor_scale=")
    far = replace(regions, answered=torch.arange(len(regions.sides)) >= 5)
    (missed,) = region_problems(parts, far, None)
    assert "of the objects have no assigned location" in missed.what
    assert missed.settings[0].startswith("detector.anchor_scale=")
    tiny = replace(far, sides=torch.cat((torch.full((5,), 4.0), regions.sides[5:])))
    (small,) = region_problems(parts, tiny, None)
    assert small.settings == ("data.sizes=[[512,384]]",)
    (fixed,) = region_problems(parts, tiny, None, seen=128)
    assert fixed.settings == ()
    assert "teacher with a larger input size" in fixed.remedy
    (some,) = region_problems(parts, tiny, None, seen=160)
    assert some.settings == ("data.sizes=[[160,120]]",)
    assert "1.25 times, the most that the teacher's input size allows" in some.remedy


# ---------------------------------------------------------------------------------------------- kinds of teachers, text


def test_several_teachers_are_measured_one_by_one_and_together(untrained: Path, data: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = Detector(SMALL).save(tmp_path / "other")
    few = replace(LOOK, images=8)
    report = locdistill.preflight(
        None,
        data,
        how=few,
        recipe=written(data, untrained),
        overrides=[*STUDENT, f"teacher.weights=[{untrained},{other}]"],
    )
    assert set(report.numbers["ap"]) == {"teacher 1", "teacher 2", "all teachers together"}
    assert list(report.facts) == ["student", "teacher 1", "teacher 2"]


def test_a_teacher_that_follows_has_no_ap_and_a_student_that_begins_has_one(untrained: Path, data: Path) -> None:
    words = {"recipe": written(data, untrained), "overrides": STUDENT}
    report = locdistill.preflight("ema", data, how=LOOK, **words)
    assert report.numbers["ap"] == {}
    assert report.facts["teacher"] == {"head": "the running average of the student itself"}
    assert report.stops == ()
    few = replace(LOOK, images=8)
    same = locdistill.preflight(untrained, data, how=few, start="teacher", **words)
    assert set(same.numbers["ap"]) == {"teacher"}
    begun = locdistill.preflight(untrained, data, how=few, start=untrained, **words)
    assert set(begun.numbers["ap"]) == {"teacher", START}
    assert any("is no better than the student at its start" in p.what for p in begun.warnings)
    assert begun.numbers["ap"]["teacher"]["ap"] == begun.numbers["ap"][START]["ap"]
    none = locdistill.preflight(untrained, data, how=replace(LOOK, images=0), **words)
    assert none.numbers["ap"] == {}


def test_looking_changes_nothing_of_the_run(untrained: Path, data: Path) -> None:
    parts = parts_of(data, untrained)
    before = {name: value.clone() for name, value in parts.detector.state_dict().items()}
    torch.manual_seed(11)
    want = torch.rand(3)
    torch.manual_seed(11)
    report = locdistill.training.preflight.look.examine(parts, replace(LOOK, images=4))
    assert torch.equal(torch.rand(3), want)
    assert parts.detector.training
    assert all(torch.equal(before[name], value) for name, value in parts.detector.state_dict().items())
    assert "cannot be assessed" in report.text()
    assert objective_of(parts.recipe, parts.detector) == parts.objective


def test_the_text_is_in_order_and_says_what_applies_a_remedy() -> None:
    problem = Finding(what="it is [bold]so[/bold]", remedy="do that", settings=("a.b=[1,2]",))
    report = PreflightReport(
        facts={"student": {"head": "gfl"}}, notes=("n",), warnings=(problem,), stops=(Finding(what="no"),)
    )
    lines = [line.strip() for line in report.text().splitlines() if line.strip()]
    order = ["Before the first step", "Notes", "- n", "Warnings", "- it is [bold]so[/bold]", "-> do that", "a.b=[1,2]"]
    places = [lines.index(line) for line in [*order, "Stop", "- no"]]
    assert places == sorted(places)
    assert str(problem) == "it is [bold]so[/bold]; do that: a.b=[1,2]"


def test_a_teacher_of_another_assigner_is_said_where_terms_compare_locations(
    data: Path, tmp_path: Path, zero_weights: None
) -> None:
    for model in ("fcos", "atss"):
        Detector(small_detector(model=model, reg_max=16)).save(tmp_path / f"{model}.safetensors")
    asked = Request(
        teacher=str(tmp_path / "fcos.safetensors"), data=str(data), model="gfl", pretrained="none", overrides=STUDENT
    )

    def found(**words: Any) -> list[Finding]:
        parts = compose(resolve(Request(**{**asked, "backbone": "test_resnet", **words})), fresh=False)
        assert parts.teacher is not None
        return unlike_assigners(parts, {"teacher": network(parts.teacher)})

    (finding,) = found()
    assert "another assigner (fcos, here atss)" in finding.what
    assert "ld, ld_vlr compare" in finding.what
    assert "--method crosskd" in finding.remedy
    assert found(methods=["crosskd"]) == []
    assert found(methods=["pkd"]) == []
    assert found(teacher=str(tmp_path / "atss.safetensors")) == []  # the same assigner
