"""From a user's words to a recipe, and the folder of a run."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset, Record
from locdistill.data.settings import DataSettings
from locdistill.distillation.bridges import Facts, MapClasses, Rebin, Soften
from locdistill.distillation.compatible import Bridge, check_start, check_teacher
from locdistill.distillation.methods import METHODS
from locdistill.distillation.needs import Needs
from locdistill.distillation.presets import ld_sharp, supervised
from locdistill.errors import DataError, ImageError, RecipeError, RunError, TeacherError, WeightsError
from locdistill.files import make_folder
from locdistill.geometry.bins import Bins
from locdistill.geometry.rotated import hull
from locdistill.inference.evaluate import evaluate, evaluation_batch
from locdistill.inference.inputs import inputs
from locdistill.inference.predict import PartialImageError, predict
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings, InputSettings
from locdistill.recipe import run_folder
from locdistill.recipe.defaults import resolve
from locdistill.recipe.load import load_recipe
from locdistill.recipe.request import Request
from locdistill.training.prepare import objective_of
from locdistill.training.resume import resumed_recipe
from locdistill.training.train import distill, run, train
from locdistill.types import Instances

TINY = DetectorSettings(
    backbone="mobilenetv3_small_050",
    pretrained=False,
    classes=("box", "disc", "bar"),
    channels=16,
    depth=1,
    norm_groups=4,
    levels=(3, 4),
    anchor_scale=4,
    input=InputSettings(short=64, long=96),
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Detector(TINY).save(tmp_path_factory.mktemp("teacher") / "best")


def dataset(*sides: tuple[int, int]) -> Dataset:
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    records = tuple(Record(Path(f"{i}.png"), i, w, h, *empty) for i, (w, h) in enumerate(sides))
    return Dataset("d", ("a",), records, "coco", (1,))


def test_choices_for_ones_own_data(tiny_coco: Path) -> None:
    recipe = resolve(Request(data=tiny_coco, backbone="resnet34", epochs=3, pretrained="none"))
    assert recipe.name == "gfl_resnet34"
    assert recipe.data.sizes == ((128, 96),)
    assert (recipe.detector.input.short, recipe.detector.input.long) == (96, 128)
    assert recipe.detector.backbone == "resnet34"
    assert recipe.detector.pretrained is False
    assert recipe.detector.frozen_stages == -1  # nothing random is frozen
    assert recipe.engine.epochs == 3
    assert {name: term.build() for name, term in recipe.terms.items()} == supervised()
    assert recipe.teacher is None


def test_settings_win_over_words_and_choices(tiny_coco: Path) -> None:
    settings = ("data.sizes=[[64, 48]]", "detector.backbone=resnet50", "data.batch_per_device=2", "engine.epochs=5")
    recipe = resolve(Request(data=tiny_coco, backbone="resnet34", epochs=3, overrides=settings))
    assert recipe.data.sizes == ((64, 48),)
    assert recipe.detector.input.long == 64
    assert recipe.detector.backbone == "resnet50"
    assert recipe.data.batch_per_device == 2
    assert recipe.engine.epochs == 5


def test_a_student_agrees_with_its_teacher(tiny_coco: Path, teacher: Path) -> None:
    recipe = resolve(Request(data=tiny_coco, teacher=teacher, backbone="resnet18"))
    student = recipe.detector
    assert recipe.name == "ld_resnet18_from_mobilenetv3_small_050"
    assert recipe.data.classes == ("box", "disc", "bar")
    assert (student.levels, student.reg_max, student.anchor_scale) == ((3, 4), 16, 4.0)
    assert (student.input.short, student.input.long) == (64, 96)
    assert (student.channels, student.depth) == (64, 2)  # the rest is the student's own
    assert {name: term.build() for name, term in recipe.terms.items()} == supervised() | ld_sharp()
    assert recipe.teacher is not None
    assert recipe.teacher.weights == str(teacher)


def test_classes_that_the_teacher_does_not_know_are_not_dropped_in_silence(
    tiny_coco: Path, teacher: Path, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        content = json.loads((tiny_coco / f"{split}.json").read_text())
        content["categories"].append({"id": 4, "name": "star"})
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(tiny_coco / "images")
    recipe = resolve(Request(data=tmp_path, teacher=teacher, backbone="test_resnet", pretrained="none"))
    assert recipe.data.classes is None  # the student learns all that the data have
    student = recipe.detector.model_copy(update={"classes": ("disc", "box", "bar", "star")})
    bridge = check_teacher(student, TINY, "t")
    assert bridge.steps == (MapClasses(sources=(1, 0, 2, None)),)
    assert "3 of the student's 4" in bridge.notes[0]
    assert "does not know ['star']" in bridge.notes[1]
    fewer = resolve(Request(data=tmp_path, teacher=teacher, overrides=("data.classes=[box, disc, bar]",)))
    assert fewer.data.classes == ("box", "disc", "bar")


@pytest.mark.parametrize(
    ("epochs", "milestones"), [(12, (8, 11)), (24, (16, 22)), (6, (4, 5.5)), (1, (8 / 12, 11 / 12))]
)
def test_milestones_move_with_the_epochs(epochs: int, milestones: tuple[float, ...]) -> None:
    recipe = resolve(Request(recipe="gfl_r50_1x", epochs=epochs))
    assert recipe.engine.epochs == epochs
    assert recipe.engine.milestones == pytest.approx(milestones)


def test_a_request_for_nothing() -> None:
    with pytest.raises(RecipeError, match="--data FOLDER, --recipe NAME"):
        resolve(Request())


def test_verbs_refuse_each_others_recipes() -> None:
    with pytest.raises(RecipeError, match="locdistill distill"):
        train(recipe="ld_r18_from_r101")
    with pytest.raises(RecipeError, match="locdistill train"):
        distill(recipe="gfl_r18_1x")
    with pytest.raises(TeacherError, match="--teacher"):
        distill(data="x")


def test_a_teacher_must_be_named_and_be_there(tiny_coco: Path, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="gfl_r101_2x"):
        distill(recipe="ld_r18_from_r101", data=tiny_coco, out=tmp_path / "a")
    with pytest.raises(WeightsError, match="no such weights"):
        distill(tmp_path / "absent", tiny_coco, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_teacher_of_a_saved_recipe_must_be_the_same_file(tiny_coco: Path, teacher: Path, tmp_path: Path) -> None:
    settings = ("detector.pretrained=false", "teacher.sha256=0123456789abcdef")
    recipe = resolve(Request(data=tiny_coco, teacher=teacher, overrides=settings))
    with pytest.raises(TeacherError, match=r"teacher\.sha256=null"):
        run(recipe, tmp_path / "a")


def test_what_a_teacher_must_share() -> None:
    student = TINY.model_copy(update={"classes": ("box", "disc", "bar")})
    same = Bridge(strides=(8, 16))
    assert check_teacher(student, TINY, "t") == same
    assert check_teacher(student.model_copy(update={"channels": 64, "anchor_scale": 8.0}), TINY, "t") == same
    different = {
        "knows none of the student's": {"classes": ("cat", "dog")},
        r"detector.levels=\[3, 4\]": {"levels": (3, 4, 5)},
        "take a teacher of kind retinanet, or set detector.model=gfl": {"model": "retinanet"},
    }
    for words, change in different.items():
        with pytest.raises(TeacherError, match=words):
            check_teacher(student.model_copy(update=change), TINY, "t")
    with pytest.raises(TeacherError, match=r"strides \[4, 8\].*teacher.scale=2, with which the grids agree"):
        check_teacher(student.model_copy(update={"levels": (2, 3)}), TINY, "t")


@pytest.mark.parametrize(
    ("change", "step", "note"),
    [
        ({"classes": ("bar", "box")}, MapClasses(sources=(2, 0)), "2 of the student's 2 and the teacher's 3"),
        ({"classes": ("Bar",)}, MapClasses(sources=(2,)), "1 of the student's 1"),
        (
            {"reg_max": 8},
            Rebin(own=Bins(16), bins=Bins(8)),
            "beyond the student's",
        ),
        ({"model": "fcos"}, Rebin(own=Bins(16), bins=Bins(16), shift=0.5), "-0.5 strides"),
    ],
)
def test_what_is_bridged_is_said(change: dict[str, Any], step: object, note: str) -> None:
    bridge = check_teacher(TINY.model_copy(update=change), TINY, "t")
    assert bridge.steps == (step,)
    assert note in bridge.notes[0]
    assert check_teacher(TINY.model_copy(update={"levels": (4,)}), TINY, "t").strides == (16,)
    assert check_teacher(TINY.model_copy(update={"levels": (2, 3)}), TINY, "t", scale=2).strides == (8, 16)


@pytest.mark.parametrize(
    ("change", "notes"),
    [
        ({"channels": 64}, ["have 16 channels, the student's 64"]),
        ({"levels": (3, 4, 5)}, ["has strides [8, 16], expected are [8, 16, 32]", "only its feature maps"]),
        ({"model": "retinanet"}, ["only its feature maps"]),
        ({"classes": ("cat", "dog")}, ["only its feature maps"]),
    ],
)
def test_who_compares_maps_alone_need_not_speak_of_the_same(change: dict[str, Any], notes: list[str]) -> None:
    student = TINY.model_copy(update=change)
    bridge = check_teacher(student, TINY, "t", needs=Needs(predictions=False, features=True))
    assert (bridge.strides, bridge.steps) == ((8, 16), ())
    assert bridge.comparable == (len(notes) == 1 and "channels" in change)
    assert all(words in note for words, note in zip(notes, bridge.notes, strict=True))
    if not bridge.comparable:
        with pytest.raises(TeacherError, match="cannot teach this student"):
            check_teacher(student, TINY, "t", needs=Needs(predictions=True, features=True))


@pytest.mark.parametrize("method", METHODS)
def test_what_methods_need_of_a_teacher(method: str) -> None:
    needs = Needs.of(METHODS[method]("gfl").values())
    maps = {"fitnets", "inside_gt", "main_region", "fine_grained", "defeat", "pkd", "mgd", "fgd"}
    assert needs.predictions == (method not in maps)  # general instances are those of the teacher
    assert needs.features == (method in maps | {"gi", "frs"})
    assert needs.cross == (method == "crosskd")


def test_the_remedy_for_levels_counts_the_scale_in() -> None:
    with pytest.raises(TeacherError, match=r"set detector.levels=\[2, 3\], or teacher.scale=1"):
        check_teacher(TINY, TINY, "t", scale=2)


def test_a_teacher_of_boxes() -> None:
    boxes = replace(Facts.of(TINY), bins=None, channels=None)
    with pytest.raises(TeacherError, match=r"--method bckd.*teacher.soft_target=two_hot"):
        check_teacher(TINY, boxes, "t", needs=Needs(distributions=True))
    with pytest.raises(TeacherError, match="provides none"):
        check_teacher(TINY, boxes, "t", needs=Needs(features=True))
    assert check_teacher(TINY, boxes, "t").steps == (Soften(shift=0.0, bins=Bins(16)),)
    soft = check_teacher(TINY, boxes, "t", needs=Needs(distributions=True), soft="gaussian", soft_width=0.3)
    assert soft.steps == (Soften(shift=0.0, bins=Bins(16), kind="gaussian", width=0.3),)


def test_a_teacher_whose_file_names_no_classes() -> None:
    """What a checkpoint without names is taken for differs from the data in names alone: the remedy is to name them."""
    student = TINY.model_copy(update={"classes": ("box", "red disc")})
    unnamed = student.model_copy(update={"classes": ("class_0", "class_1")})
    convert = "NAMED.safetensors --classes 'box,red disc'"
    with pytest.raises(TeacherError, match=rf"locdistill convert 'a b\.pth' {convert}"):
        check_teacher(student, unnamed, "a b.pth")
    with pytest.raises(TeacherError, match=rf"locdistill convert CHECKPOINT\.pth {convert}"):
        check_teacher(student, unnamed, "converted.safetensors")
    with pytest.raises(WeightsError, match=rf"locdistill convert t\.pth {convert}"):
        check_start(student, unnamed, "t.pth")
    spare = unnamed.model_copy(update={"model": "gflv2", "classes": ("class_0", "class_1", "class_2")})
    with pytest.raises(TeacherError, match=f"does not name its 3 classes.*{convert}"):
        check_teacher(student, spare, "t.pth")
    with pytest.raises(TeacherError, match="the teacher knows none of the student's"):
        check_teacher(student, spare.model_copy(update={"model": "gfl"}), "t.pth")


def test_data_without_the_teachers_classes(tiny_coco: Path, teacher: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_coco, other)
    for split in ("train", "val"):
        content = json.loads((other / f"{split}.json").read_text())
        for category, name in zip(content["categories"], ("cat", "dog", "cow"), strict=True):
            category["name"] = name
        (other / f"{split}.json").write_text(json.dumps(content))
    with pytest.raises(TeacherError, match=r"knows none of the student's; it has .*disc"):
        distill(teacher, other, pretrained="none", out=tmp_path / "run", overrides=["data.sizes=[[128, 96]]"])


def test_ignored_regions_count_in_the_assigner_when_they_are_kept() -> None:
    detector = Detector(TINY)
    published = objective_of(load_recipe("gfl_r18_1x"), detector)
    kept = objective_of(load_recipe("gfl_r18_1x", ["data.crowd=ignore"]), detector)
    own = objective_of(load_recipe("gfl_r18_1x", ["data.crowd=ignore", "assigner.atss.ignore_iof=0.7"]), detector)
    assert [o.assigner.ignore_iof for o in (published, kept, own)] == [None, 0.5, 0.7]  # type: ignore[attr-defined]
    # Where difficult objects are trained, there is something to ignore only if looks cut objects.
    for some, iof in (("data.scale=[0.5, 2]", 0.5), ("data.flip=0.5", None)):
        objects = objective_of(load_recipe("gfl_r18_1x", ["data.crowd=objects", some]), detector)
        assert objects.assigner.ignore_iof == iof  # type: ignore[attr-defined]


def test_centrality_is_asked_of_detectors_alone_that_predict_distances() -> None:
    central = "terms.bbox.on={positives: {by: centerness}}"
    deltas = load_recipe("rotated_retinanet_gwd_r18_1x", [central])
    detector = Detector(deltas.detector.model_copy(update={"pretrained": False, "classes": ("a",)}))
    with pytest.raises(RecipeError, match=r"terms bbox compute centerness .* this detector predicts dx, dy"):
        objective_of(deltas, detector)
    distances = load_recipe("rotated_gfl_r18_1x", [central])
    detector = Detector(distances.detector.model_copy(update={"pretrained": False, "classes": ("a",)}))
    grid = detector.grid_for((64, 64))
    box = torch.tensor([[[32.0, 32.0, 30.0, 20.0, 0.4]]])
    one = torch.ones(1, 1, dtype=torch.bool)
    instances = Instances(hull(box), torch.zeros(1, 1).long(), one, ~one, torch.tensor([[64, 64]]), box)
    with torch.no_grad():
        losses = objective_of(distances, detector)(detector(torch.zeros(1, 3, 64, 64)), grid=grid, instances=instances)
    assert 0 < float(losses["bbox"]) < 100


def test_choices_for_rotated_data(tmp_path: Path) -> None:
    """Objects that tiling has cut, and difficult ones, are not background; tiles keep their size."""
    folder = tmp_path / "tiles" / "train"
    for name in ("images", "labelTxt"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (1024, 1024)).save(folder / "images" / "a.png")
    (folder / "labelTxt" / "a.txt").write_text(
        "10 10 200 40 190 90 5 60 ship 2\n300 300 400 300 400 360 300 360 ship 0\n"
    )
    (tmp_path / "tiles" / "val").symlink_to(folder)
    for model in (None, "gfl"):
        on_gpu = ["engine.accelerator=cuda"]
        recipe = resolve(Request(data=tmp_path / "tiles", model=model, pretrained="none", overrides=on_gpu))
        assert recipe.detector.model == (model or "rotated_gfl")
        assert recipe.data.crowd == "ignore"
        assert recipe.data.sizes == ((1024, 1024),)
    own = resolve(Request(data=tmp_path / "tiles", pretrained="none", overrides=("data.crowd=objects",)))
    assert own.data.crowd == "objects"


def test_folders_are_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_folder.new_folder(None, "train-x") == Path("runs/train-x")
    Path("runs/train-x").mkdir(parents=True)
    assert run_folder.new_folder(None, "train-x") == Path("runs/train-x-2")
    assert run_folder.new_folder("runs/train-x", "n") == Path("runs/train-x")  # empty
    Path("runs/train-x/note").touch()
    with pytest.raises(RunError, match="not overwritten; pass another"):
        run_folder.new_folder("runs/train-x", "n")
    Path("runs/train-x/recipe.yaml").touch()
    with pytest.raises(RunError, match="'--resume --out runs/train-x'"):
        run_folder.new_folder("runs/train-x", "n")


def test_a_file_in_the_place_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").write_text("x")
    monkeypatch.chdir(tmp_path)
    for out in ("runs/x", "runs/x/y", tmp_path / "runs" / "x", None):
        with pytest.raises(RunError, match=r"runs is a file; pass another folder"):
            run_folder.new_folder(out, "n")
    with pytest.raises(RunError, match=r"runs.x cannot be made or written to"):
        run_folder.write_start(Path("runs/x"), load_recipe("gfl_r18_1x"), {})


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(os, "access", lambda path, _: asked.append(path))  # file modes do not stop an administrator
    with pytest.raises(RunError, match=r"a.b cannot be written to: .* is not writable; pass another"):
        run_folder.new_folder(tmp_path / "a" / "b", "n")
    assert asked == [tmp_path]  # what would be written to is the nearest folder that is there
    assert not (tmp_path / "a").exists()

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "there")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(RunError, match=r"a cannot be made or written to \(there: Permission denied\)"):
        make_folder(tmp_path / "a")


def test_processes_beside_the_first_take_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_folder.new_folder(tmp_path, "n") == tmp_path
    monkeypatch.delenv("LOCDISTILL_OUT", raising=False)
    with pytest.raises(RunError, match="--out DIR"):
        run_folder.new_folder(None, "n")
    monkeypatch.setenv("LOCDISTILL_OUT", str(tmp_path))
    assert run_folder.new_folder(None, "n") == tmp_path


def test_processes_started_together_need_a_folder_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCDISTILL_OUT", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="--out DIR"):
        run_folder.new_folder(None, "n")
    assert run_folder.new_folder(tmp_path / "run", "n") == tmp_path / "run"


def test_resume_takes_the_saved_recipe(tmp_path: Path) -> None:
    saved = load_recipe("gfl_r18_1x", ["data.path=/a", "engine.epochs=6", "engine.milestones=[4, 5.5]"])
    run_folder.write_start(tmp_path, saved, {})
    assert resumed_recipe(Request(), tmp_path) == saved
    assert (
        resumed_recipe(Request(recipe="gfl_r18_1x", data="/a", epochs=6, backbone="resnet18.tv_in1k"), tmp_path)
        == saved
    )
    moved = resumed_recipe(Request(data="/b", overrides=("data.workers=0",)), tmp_path)
    assert (moved.data.path, moved.data.workers) == ("/b", 0)
    with pytest.raises(RunError, match=r"engine.lr: 0.01 in the run, 0.5 requested"):
        resumed_recipe(Request(overrides=("engine.lr=0.5",)), tmp_path)
    with pytest.raises(RunError, match="not of gfl_r50_1x"):
        resumed_recipe(Request(recipe="gfl_r50_1x"), tmp_path)
    with pytest.raises(RunError, match="no run to resume"):
        resumed_recipe(Request(), tmp_path / "absent")
    with pytest.raises(RunError, match="--resume --out DIR"):
        resumed_recipe(Request(), None)


def test_other_data_are_noticed(tiny_coco: Path, tmp_path: Path) -> None:
    data = open_dataset(DataSettings(path=str(tiny_coco)), "val")
    facts = run_folder.facts_of({"val": data})
    run_folder.write_start(tmp_path, load_recipe("gfl_r18_1x"), facts)
    run_folder.check_unchanged(tmp_path, facts)
    moved = data.records[0]
    boxes = moved.boxes + np.float32(1)
    record = Record(moved.path, moved.image_id, moved.width, moved.height, boxes, moved.labels, moved.ignored)
    changed = Dataset(data.name, data.classes, (record, *data.records[1:]), data.kind, data.category_ids)
    with pytest.raises(RunError, match="the val data have changed"):
        run_folder.check_unchanged(tmp_path, run_folder.facts_of({"val": changed}))


def test_the_log_holds_messages_and_what_stopped_the_run(tmp_path: Path) -> None:
    def work() -> None:
        with run_folder.logged_to(tmp_path):
            logging.getLogger("locdistill.engine").info("hello")
            raise RunError("no more")

    with pytest.raises(RunError):
        work()
    text = (tmp_path / "log.txt").read_text()
    assert "hello" in text
    assert "stopped: RunError: no more" in text


def test_only_images_of_one_size_share_a_batch_of_evaluation() -> None:
    limits = InputSettings(short=96, long=128)
    assert evaluation_batch(dataset((128, 96), (64, 48), (256, 190)), limits, 8) == 8  # 128 x 95 is padded to 128 x 96
    assert evaluation_batch(dataset((128, 96), (96, 128)), limits, 8) == 1


def test_what_can_be_adjusted_when_weights_are_used(tiny_coco: Path, teacher: Path, tmp_path: Path) -> None:
    result = evaluate(teacher, tiny_coco, overrides=["detections.score_threshold=0", "detections.max_detections=3"])
    assert {len(found.scores) for found in result.detections.values()} == {3}
    assert set(result.per_class) == {"box", "disc", "bar"}
    assert {"AP", "AP50", "AP75", "AP90"} <= set(result.metrics)
    train_split = evaluate(teacher, tiny_coco, split="train", format_only=tmp_path / "results.json")
    assert train_split.metrics == {}
    assert len(train_split.dataset) == 8  # also the image without objects, which training leaves out
    with pytest.raises(RecipeError, match="engine: trained weights can be adjusted in data, input, detections"):
        evaluate(teacher, tiny_coco, overrides=["engine.lr=1"])
    with pytest.raises(RecipeError, match="did you mean 'nms_iou'"):
        evaluate(teacher, tiny_coco, overrides=["detections.nms_iuo=1"])
    with pytest.raises(DataError, match="in this order"):
        evaluate(teacher, tiny_coco, overrides=["data.classes=[disc, box, bar]"])
    with pytest.raises(RecipeError, match="--data FOLDER"):
        evaluate(teacher)


def test_voc_data_are_evaluated_by_vocs_rules(teacher: Path, tmp_path: Path) -> None:
    year = tmp_path / "VOC2007"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (year / name).mkdir(parents=True)
    (year / "ImageSets/Main/val.txt").write_text("1\n")
    box = "<bndbox><xmin>10</xmin><ymin>10</ymin><xmax>40</xmax><ymax>40</ymax></bndbox>"
    objects = "".join(f"<object><name>{name}</name>{box}</object>" for name in ("box", "disc", "bar"))
    size = "<size><width>96</width><height>64</height><depth>3</depth></size>"
    (year / "Annotations/1.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    Image.new("RGB", (96, 64)).save(year / "JPEGImages/1.jpg")
    result = evaluate(teacher, tmp_path, overrides=["data.val=val", "data.classes=[box, disc, bar]"])
    assert {"AP", "AP50", "AP95", "mAP"} <= set(result.metrics)
    assert set(result.per_class["disc"]) == {"AP", *(f"AP{t}" for t in range(50, 100, 5)), "objects"}
    assert result.per_class["disc"]["objects"] == 1


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[3] / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_the_recipes_of_the_examples_load(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_listing_images(tiny_coco: Path, tmp_path: Path) -> None:
    image = tiny_coco / "images" / "val_000.png"
    files = inputs([image, tiny_coco / "images"])
    assert len(files) == 12
    assert (files[0].source, files[0].name) == (str(image), Path("val_000.png"))
    for wrong in (tmp_path, tmp_path / "absent.png", []):
        with pytest.raises(Exception, match=r"no image|no such file"):
            inputs(wrong)
    with pytest.raises(ImageError, match=r"(?s)nothing was done.*absent.png: no such.*no image in this"):
        inputs([image, tmp_path / "absent.png", tmp_path])


def test_drawings_never_replace_images(tiny_coco: Path, teacher: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    shutil.copy(tiny_coco / "images" / "val_000.png", image)
    before = image.read_bytes()
    with pytest.raises(RunError, match="would be replaced"):
        predict(teacher, image, save=tmp_path)
    assert image.read_bytes() == before


def test_pictures_of_equal_names_are_all_saved(tiny_coco: Path, teacher: Path, tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        shutil.copy(tiny_coco / "images" / "val_000.png", tmp_path / name / "a.png")
    found = predict(teacher, [tmp_path / "x" / "a.png", tmp_path / "y" / "a.png"], save=tmp_path / "out", threshold=0.0)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-2.png", "a.png", "predictions.json"]
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [image["image"] for image in content["images"]] == [str(prediction.path) for prediction in found]
    assert content["classes"] == ["box", "disc", "bar"]


def test_unreadable_images_do_not_stop_the_others(tiny_coco: Path, teacher: Path, tmp_path: Path) -> None:
    mixed, out = tmp_path / "mixed", tmp_path / "out"
    mixed.mkdir()
    shutil.copy(tiny_coco / "images" / "val_000.png", mixed / "b.png")
    shutil.copy(tiny_coco / "images" / "val_001.png", mixed / "d.png")
    for name in ("a.png", "c.jpg"):
        (mixed / name).write_bytes(b"no image")
    with pytest.raises(
        PartialImageError, match=r"(?s)2 of 4 images are done.*a\.png: not an.*c\.jpg: not an"
    ) as caught:
        predict(teacher, mixed, save=out, batch=3)
    assert [prediction.path for prediction in caught.value.found] == [mixed / "b.png", mixed / "d.png"]
    assert sorted(path.name for path in out.iterdir()) == ["b.png", "d.png", "predictions.json"]
    content = json.loads((out / "predictions.json").read_text())
    assert [Path(image["image"]).name for image in content["images"]] == ["b.png", "d.png"]
    alone = predict(teacher, mixed / "d.png")[0]
    assert alone.as_dict() == caught.value.found[1].as_dict()


def test_nothing_is_done_where_a_source_is_not_there(tiny_coco: Path, teacher: Path, tmp_path: Path) -> None:
    image = tiny_coco / "images" / "val_000.png"
    with pytest.raises(ImageError, match=r"(?s)absent1.*absent2"):
        predict(teacher, [image, "absent1.png", "absent2.png"], save=tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be made"):
        predict(teacher, image, save=tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_threshold_below_the_detectors_own(tiny_coco: Path) -> None:
    image = tiny_coco / "images" / "val_000.png"
    detector = Detector(TINY).eval()  # untrained: all scores are about 0.01
    before = detector.settings
    assert before.detections.score_threshold == 0.05
    assert len(predict(detector, image, threshold=0.05)[0].detections.scores) == 0
    found = predict(detector, image, threshold=0.0)[0].detections.scores
    assert len(found) > 0
    assert found.max() < 0.05
    assert detector.settings is before


def test_a_device_that_is_not_there(tiny_coco: Path, teacher: Path, tmp_path: Path) -> None:
    image = tiny_coco / "images" / "val_000.png"
    with pytest.raises(RunError, match=r"'foo': expected cpu, cuda, .*this machine has cpu"):
        predict(teacher, image, device="foo")
    with pytest.raises(RunError, match=r"'cuda:99' cannot be used .*this machine has cpu"):
        evaluate(teacher, tiny_coco, device="cuda:99")
    for absent in ("engine.devices=[98, 99]", "engine.devices=99"):
        with pytest.raises(RunError, match=r"no such device|but there (is|are)"):
            train(tiny_coco, pretrained="none", out=tmp_path / "x", overrides=[absent, "engine.accelerator=cuda"])
    assert not (tmp_path / "x").exists()
