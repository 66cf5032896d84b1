"""Checkpoints in the layout of Rotated-LD, against a forward pass of that network written down from its description."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, softmax

from locdistill.distillation.compatible import check_teacher
from locdistill.distillation.teacher import LiveTeacher
from locdistill.engine.log import read_metrics
from locdistill.errors import TeacherError, WeightsError
from locdistill.interop.classes import DOTA
from locdistill.interop.mmdet import ANGLE_BINS, BINS, to_mmdet
from locdistill.models.detector import Detector
from locdistill.models.foreign import detector_settings, read
from locdistill.models.mmdet import load_mmdet, save_mmdet
from locdistill.models.settings import DetectorSettings
from locdistill.publishing.publish import publish
from locdistill.recipe.defaults import resolve
from locdistill.recipe.load import load_recipe
from locdistill.recipe.request import Request
from locdistill.training.prepare import teacher_of
from locdistill.training.train import run
from tests.conftest import Answer, write_tiny_coco

CLASSES, ANCHORS, BINS_OF_EACH = 15, 9, 9
WIDTH = 64
"""Channels of pyramid and head, of which the published network has 256: how many there are is read off the tensors."""
STRIDES = (8, 16, 32, 64, 128)
LEAST_SCORE = 0.9
Layout = dict[str, Tensor]


def spread(network: torch.nn.Module) -> None:
    """Statistics of batch normalisation as after a training: no two alike."""
    for name, value in network.state_dict().items():
        if name.endswith(("running_var", "bn1.weight", "bn2.weight", "downsample.1.weight")):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bn1.bias", "bn2.bias")):
            value.normal_(std=0.1)


def layout_of_rotated_ld() -> Layout:
    """A state dict with its names, every weight another."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None)
    spread(network)
    state = {f"backbone.{key}": value for key, value in network.state_dict().items() if not key.startswith("fc.")}

    def convolution(name: str, inputs: int, outputs: int, side: int, std: float, bias: float = 0.0) -> None:
        state[f"{name}.weight"] = torch.randn(outputs, inputs, side, side) * std
        state[f"{name}.bias"] = torch.randn(outputs) * 0.1 + bias

    wide = (256 / WIDTH) ** 0.5  # sums over fewer channels, of larger weights
    for level, width in enumerate((128, 256, 512)):
        convolution(f"neck.lateral_convs.{level}.conv", width, WIDTH, 1, 0.05)
    for level in range(5):
        std = 0.02 if level == 3 else 0.02 * wide
        convolution(f"neck.fpn_convs.{level}.conv", 512 if level == 3 else WIDTH, WIDTH, 3, std)
    for tower, layer in itertools.product(("cls", "reg"), range(4)):
        convolution(f"bbox_head.{tower}_convs.{layer}.conv", WIDTH, WIDTH, 3, 0.028 * wide)
    convolution("bbox_head.retina_cls", WIDTH, ANCHORS * CLASSES, 3, 0.02 * wide, bias=-3.0)
    convolution("bbox_head.retina_reg", WIDTH, ANCHORS * 5 * BINS_OF_EACH, 3, 0.03 * wide)
    state[BINS] = torch.linspace(-2, 2, BINS_OF_EACH)
    state[ANGLE_BINS] = torch.linspace(-5, 2, BINS_OF_EACH)
    return state


def padded(state: Layout, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return conv2d(x, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2)


def pyramid(state: Layout, images: Tensor) -> list[Tensor]:
    network = torchvision.models.resnet18(weights=None).eval()
    own = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    assert network.load_state_dict(own, strict=False).missing_keys == ["fc.weight", "fc.bias"]
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    stages = []
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = layer(x)
        stages.append(x)
    stages = stages[1:]
    merged = [padded(state, f"neck.lateral_convs.{i}.conv", stage) for i, stage in enumerate(stages)]
    for i in (1, 0):
        merged[i] = merged[i] + interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
    levels = [padded(state, f"neck.fpn_convs.{i}.conv", one) for i, one in enumerate(merged)]
    levels.append(padded(state, "neck.fpn_convs.3.conv", stages[-1], 2))  # from C5
    levels.append(padded(state, "neck.fpn_convs.4.conv", levels[-1], 2))  # no ReLU between
    return levels


def anchors_of(height: int, width: int, stride: int) -> Tensor:
    """``x, y, w, h``, cell by cell; in a cell ratio by ratio, and of each ratio three sizes."""
    rows = []
    for y, x, ratio, octave in itertools.product(range(height), range(width), (1.0, 0.5, 2.0), range(3)):
        side = 4 * stride * 2 ** (octave / 3)
        rows.append((x * stride, y * stride, side / math.sqrt(ratio), side * math.sqrt(ratio)))
    return torch.tensor(rows)


def published_forward(state: Layout, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class logits, the five expectations, and boxes in pixels, of all anchors."""
    classes, values, boxes = [], [], []
    for level, stride in zip(pyramid(state, images), STRIDES, strict=True):
        towers = []
        for tower in ("cls", "reg"):
            x = level
            for layer in range(4):
                x = padded(state, f"bbox_head.{tower}_convs.{layer}.conv", x).relu()
            towers.append(padded(state, f"bbox_head.retina_{tower}", x).permute(0, 2, 3, 1))
        classes.append(towers[0].reshape(len(images), -1, CLASSES))
        probs = softmax(towers[1].reshape(len(images), -1, 5, BINS_OF_EACH), -1)
        lengths, angle = probs[..., :4, :] @ state[BINS], probs[..., 4, :] @ state[ANGLE_BINS]
        x, y, w, h = anchors_of(*level.shape[-2:], stride).unbind(-1)
        dx, dy, dw, dh = lengths.unbind(-1)
        boxes.append(torch.stack((x + w * dx, y + h * dy, w * dw.exp(), h * dh.exp(), angle), -1))
        values.append(torch.cat((lengths, angle[..., None]), -1))
    return torch.cat(classes, 1), torch.cat(values, 1), torch.cat(boxes, 1)


@pytest.fixture(scope="module")
def theirs() -> Layout:
    return layout_of_rotated_ld()


@pytest.fixture(scope="module")
def file(theirs: Layout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the training program writes it: the teacher is not in it."""
    path = tmp_path_factory.mktemp("theirs") / "epoch_12.pth"
    torch.save({"meta": {"epoch": 12, "CLASSES": DOTA[:15]}, "state_dict": theirs, "optimizer": {"lr": 1}}, path)
    return path


@torch.no_grad()
def test_the_numbers_are_those_of_the_published_network(theirs: Layout) -> None:
    detector = load_mmdet(theirs)
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    classes, values, boxes = published_forward(theirs, images)
    dense, grid = detector(images), detector.grid_for((96, 128))
    torch.testing.assert_close(dense.cls_logits, classes, rtol=1e-5, atol=1e-5)
    own = detector.bins.expect(dense.edge_logits)
    torch.testing.assert_close(own, values, rtol=0, atol=1e-5)
    decoded = detector.coding.kind.scaled(detector.coding.decode(grid, own), grid.strides[:, None])
    torch.testing.assert_close(decoded, boxes, rtol=1e-5, atol=1e-5 * STRIDES[-1])
    # The example would show an exchange of bins, edges or anchors: no two of them are alike.
    assert values.std(1).min() > 0.1
    assert classes.std() > 0.3


@torch.no_grad()
def test_what_is_reported_is_what_the_published_network_reports(file: Path, theirs: Layout, tmp_path: Path) -> None:
    """One pass from the picture on, without suppression: scores, and boxes whose centre is limited to the image."""
    picture = tmp_path / "picture.png"
    pixels = torch.randint(0, 256, (96, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    Image.fromarray(pixels.numpy()).save(picture)
    settings = {"input": {"short": 96, "long": 128}, "detections": {"nms_iou": 1.0, "candidates": 9999}}
    settings["detections"] |= {"max_detections": 99999, "score_threshold": LEAST_SCORE}
    (found,) = load_mmdet(file, settings=settings).detect(picture)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    classes, _, boxes = published_forward(theirs, ((pixels - mean) / std).permute(2, 0, 1)[None])
    scores = classes[0].sigmoid()
    anchor, label = (scores > LEAST_SCORE).nonzero(as_tuple=True)
    own, best = scores[anchor, label].sort(descending=True)
    expected = boxes[0, anchor[best]]
    expected[:, 0].clamp_(0, 128)
    expected[:, 1].clamp_(0, 96)
    assert len(found.scores) == len(best) > 20
    torch.testing.assert_close(found.scores, own, rtol=1e-5, atol=1e-5)
    gaps = torch.cat((own.new_ones(1), own[:-1] - own[1:], own.new_ones(1)))
    apart = (gaps[:-1] > 1e-5) & (gaps[1:] > 1e-5)  # closer ones may change places
    assert apart.sum() > 20
    torch.testing.assert_close(moments(found.boxes[apart]), moments(expected[apart]), rtol=1e-4, atol=1e-3)
    assert torch.equal(found.labels[apart], label[best][apart])
    assert bool(((found.boxes[:, 4] > 0) & (found.boxes[:, 4] <= math.pi / 2)).all())  # the range oc


def moments(boxes: Tensor) -> Tensor:
    """Centres, and sizes and directions by the second moments: the same whichever way a rectangle is named."""
    x, y, w, h, theta = boxes.unbind(-1)
    long, wide, cos, sin = w.square(), h.square(), theta.cos(), theta.sin()
    spread_x, spread_y = long * cos**2 + wide * sin**2, long * sin**2 + wide * cos**2
    return torch.stack((x, y, spread_x.sqrt(), spread_y.sqrt(), (long - wide) * cos * sin / (w * h)), -1)


def test_what_is_recognised(file: Path, theirs: Layout, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "locdistill"):
        settings = Detector.load(file).settings
    assert settings == detector_settings(file)
    assert (settings.model, settings.backbone, settings.reg_max) == ("rotated_retinanet", "resnet18", 8)
    assert (settings.angles, settings.angle_bins, settings.angle_unit) == ("oc", "linear", 1.0)
    assert (settings.classes, settings.levels, settings.anchor_scale) == (DOTA[:15], (3, 4, 5, 6, 7), 4.0)
    assert (settings.detections.nms_iou, settings.detections.max_detections) == (0.1, 2000)
    assert settings.input.long == settings.input.short == 1024
    for words in (
        f"rotated_retinanet, {WIDTH} wide, towers of 4",
        "angles: oc, in units of 1 radians, linear bins",
        "15 (plane, ",
        f"left out: {ANGLE_BINS} (1): positions of the bins",
        "left out: optimizer",
    ):
        assert words in caplog.text
    assert load_mmdet(theirs).settings.classes == DOTA[:15]  # its file need not name them


def test_it_is_what_the_recipes_train(file: Path) -> None:
    """Nothing but the width and what does not concern the weights differs from the recipe of the published student."""
    trained = load_recipe("rotated_retinanet_gwd_r18_1x").detector.model_dump()
    its = detector_settings(file).model_dump()
    assert {key for key in its if its[key] != trained[key]} <= {
        "channels",
        "backbone",
        "pretrained",
        "classes",
        "mean",
        "std",
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({BINS: torch.linspace(-2.5, 2.5, 9)}, r"integral\.project: its 9 bins .* -2\.5, .*, 2\.5; .* at -2, -1\.5"),
        (
            {ANGLE_BINS: torch.linspace(-2.5, 2.5, 9)},
            r"integral_angle\.project: .* at -5, -4\.125, .*, 2, and",
        ),
        ({BINS: torch.arange(9.0)}, r"integral\.project: its 9 bins lie at 0, 1, 2, \.\.\., 8"),
        ({BINS: torch.linspace(-2, 2, 9).flip(0)}, r"integral\.project: its 9 bins lie at 2, 1\.5"),
        ({ANGLE_BINS: torch.zeros(1)}, r"integral_angle\.project: its 1 bins lie at 0; "),
        ({ANGLE_BINS: torch.zeros(0)}, r"integral_angle\.project: its 0 bins lie at no positions; "),
        ({ANGLE_BINS: torch.full((9,), math.nan)}, r"integral_angle\.project: its 9 bins lie at nan"),
    ],
)
def test_other_bins_are_refused(change: Layout, said: str, theirs: Layout, tmp_path: Path) -> None:
    torch.save({"state_dict": theirs | change}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"w\.pth: bbox_head\.{said}") as caught:
        Detector.load(tmp_path / "w.pth")
    assert "Use a file that was trained with these bins" in str(caught.value)


def test_other_bins_are_refused_also_where_settings_ask_for_them(theirs: Layout) -> None:
    with pytest.raises(WeightsError, match=r"integral_angle\.project: its 9 bins lie at -5, .* expected at 0, 0\.34"):
        load_mmdet(theirs, settings={"angle_bins": "circular"})


def test_upright_detectors_have_no_bins_of_an_angle_and_theirs_at_whole_numbers() -> None:
    upright = Detector(DetectorSettings(pretrained=False, classes=("a",), channels=32, depth=1))
    state = to_mmdet(upright.state_dict())
    with pytest.raises(WeightsError, match=r"project: its 17 bins lie at 0, 2, 4, .*, 32; .* at 0, 1, 2"):
        load_mmdet(state | {BINS: torch.arange(0.0, 34.0, 2.0)})
    with pytest.raises(WeightsError, match=r"integral_angle\.project: its 17 bins lie at -5"):
        load_mmdet(state | {ANGLE_BINS: torch.linspace(-5, 2, 17)})


def test_half_precision_and_missing_constants(theirs: Layout) -> None:
    """Rounding to half precision moves no bin; without the constants their places are those that are published."""
    assert load_mmdet({k: v.half() if v.is_floating_point() else v for k, v in theirs.items()}).settings.rotated
    report = read({key: value for key, value in theirs.items() if key not in (BINS, ANGLE_BINS)}).report
    assert report.settings.model == "rotated_retinanet"
    assert any("does not contain their positions" in note for note in report.notes)


def test_convert_there_and_back(cli: Callable[..., Answer], file: Path, theirs: Layout, tmp_path: Path) -> None:
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    code, out, err = cli("convert", file, ours)
    assert code == 0, err
    for words in (
        f"rotated_retinanet, {WIDTH} wide",
        "angles",
        "oc, in units of 1 radians",
        "assumed: angles in the range",
    ):
        assert words in " ".join(out.split())
    code, _, err = cli("convert", ours, back)
    assert code == 0, err
    again = torch.load(back, weights_only=True)["state_dict"]
    assert again.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in again.items())
    assert Detector.load(back).settings == Detector.load(ours).settings == Detector.load(file).settings
    code, out, _ = cli("convert", file, ours, "angles=le90", "--force", "--json")
    assert (code, json.loads(out)["settings"]["angles"]) == (0, "le90")


def test_what_its_layout_cannot_say_is_not_written(tmp_path: Path) -> None:
    plain = {"pretrained": False, "classes": ("a",), "channels": 32, "depth": 1, "model": "rotated_retinanet"}
    for change, said in (({}, "angle_bins circular"), ({"angle_bins": "linear", "angle_unit": math.pi}, "angle_unit")):
        detector = Detector(DetectorSettings.model_validate(plain | change))
        with pytest.raises(WeightsError, match=f"MMDetection has no detector of this kind: here {said}"):
            save_mmdet(detector, tmp_path / "w.pth")


# -- as a teacher

SMALL = (
    *("data.format=coco", "data.sizes=[[96, 64]]", "data.batch_per_device=2", "data.workers=0", "engine.epochs=1"),
    *("detector.pretrained=false", "detector.backbone=test_resnet", "engine.milestones=[0.9]", "engine.steps=2"),
    *("engine.progress=false", "data.classes=[ship, plane]"),
)


def oriented_data(folder: Path) -> Path:
    """Drawn pictures whose boxes are turned, of two classes of DOTA."""
    write_tiny_coco(folder, train=4, val=2)
    for split in ("train", "val"):
        content = json.loads((folder / f"{split}.json").read_text())
        content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(("ship", "plane"))]
        kept = [entry for entry in content["annotations"] if entry["category_id"] < 3]
        for entry in kept:
            x, y, w, h = entry["bbox"]
            entry["rbox"] = [x + w / 2, y + h / 2, w, h, 0.3]
        (folder / f"{split}.json").write_text(json.dumps(content | {"annotations": kept}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oriented_data(tmp_path_factory.mktemp("oriented"))


def student(name: str, data: Path, teacher: Path, *more: str) -> Any:
    return load_recipe(name, (*SMALL, f"data.path={data}", f"teacher.weights={teacher}", *more))


def test_a_published_file_teaches_the_published_student(file: Path, data: Path, tmp_path: Path) -> None:
    """Named as it is; its 15 classes are matched with those of the data by name."""
    recipe = student("rotated_ld_gwd_r18_from_r34", data, file)
    teacher = teacher_of(recipe.model_copy(update={"detector": with_classes(recipe)}))
    assert any("2 of the student's 2 and the teacher's 15" in note for note in teacher.notes)
    run(recipe, tmp_path / "run")
    losses = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if "train/ld" in row]
    assert losses
    for row in losses:
        assert all(0 < float(row[f"train/{name}"] or 0) < math.inf for name in ("cls", "bbox", "ld", "kd"))
    card = publish(tmp_path / "run").card.read_text()
    assert "| boxes | rotated: centre, sides and angle, in the range oc |" in card
    assert "| ld | edge_kl (temperature 5.0" in card


def with_classes(recipe: Any) -> DetectorSettings:
    return recipe.detector.model_copy(update={"classes": ("ship", "plane")})


def test_a_student_of_ones_own_takes_after_a_published_file(file: Path, data: Path) -> None:
    recipe = resolve(Request(data=data, teacher=file, backbone="resnet18", pretrained="none"))
    its, mine = detector_settings(file), recipe.detector
    for name in ("model", "reg_max", "angles", "angle_bins", "angle_unit", "levels"):
        assert getattr(mine, name) == getattr(its, name), name
    check_teacher(mine.model_copy(update={"classes": ("ship", "plane")}), its, str(file))


def small(**settings: Any) -> DetectorSettings:
    plain = {"backbone": "test_resnet", "pretrained": False, "channels": 16, "depth": 1, "norm_groups": 0}
    return DetectorSettings.model_validate(plain | {"classes": ("ship", "plane")} | settings)


PUBLISHED = {"model": "rotated_retinanet", "angle_bins": "linear"}
OURS = {"model": "rotated_gfl"}


@pytest.mark.parametrize(
    ("name", "teacher", "said"),
    [
        ("rotated_ld_gwd_r18_from_r34", {"model": "retinanet"}, "axis-aligned ones, the student rotated ones"),
        ("rotated_ld_gfl_r18_from_r50", {"model": "gfl"}, "take a teacher with rotated boxes"),
        ("ld_r18_from_r101", OURS, "has rotated ones, the student axis-aligned ones"),
        ("ld_retinanet_r50_from_r101", PUBLISHED, "take a teacher with axis-aligned boxes"),
        ("rotated_ld_gwd_r18_from_r34", {**PUBLISHED, "angles": "le90"}, r"detector\.angles=le90"),
        ("rotated_ld_gwd_r18_from_r34", {"model": "rotated_retinanet"}, r"detector\.angle_bins=circular"),
        ("rotated_ld_gwd_r18_from_r34", {**PUBLISHED, "angle_unit": 2.0}, r"detector\.angle_unit=2\.0"),
        ("rotated_ld_gfl_r18_from_r50", PUBLISHED, r"detector\.model=rotated_retinanet"),
    ],
)
def test_teachers_whose_numbers_mean_something_else(
    name: str, teacher: dict[str, Any], said: str, data: Path, tmp_path: Path
) -> None:
    """Refused before anything is computed, with the remedy; in the published code four numbers gave NaN."""
    weights = Detector(small(**teacher)).save(tmp_path / "teacher")
    with pytest.raises(TeacherError, match=rf"teacher\.safetensors cannot teach this student:(.|\n)*{said}"):
        run(student(name, data, weights), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_the_remedy_is_one(data: Path, tmp_path: Path) -> None:
    """A student that is changed as the message says goes with that teacher."""
    its = small(**PUBLISHED, angles="le90", angle_unit=2.0, reg_max=16)
    mine = small(**PUBLISHED | {"angle_bins": "circular"})
    with pytest.raises(TeacherError) as caught:
        check_teacher(mine, its, "t")
    words = [word.rstrip(",") for word in str(caught.value).split("; set ")[1].split()]
    changes = dict(word.removeprefix("detector.").split("=") for word in words)
    assert changes.keys() == {"angles", "angle_bins", "angle_unit"}
    check_teacher(DetectorSettings.model_validate(mine.model_dump() | changes), its, "t")
    assert LiveTeacher(Detector(its)).notes == ()


@pytest.mark.parametrize(
    ("name", "teacher"),
    [
        ("rotated_ld_gwd_r18_from_r34", {**PUBLISHED, "reg_max": 12}),
        ("rotated_ld_gfl_r18_from_r50", {**OURS, "reg_max": 8}),
    ],
)
def test_teachers_of_other_bins_are_bridged(name: str, teacher: dict[str, Any], data: Path, tmp_path: Path) -> None:
    weights = Detector(small(**teacher)).save(tmp_path / "teacher")
    result = run(student(name, data, weights), tmp_path / "run")
    own = {"rotated_ld_gwd_r18_from_r34": 9, "rotated_ld_gfl_r18_from_r50": 17}[name]
    said = f"bins: the teacher's {teacher['reg_max'] + 1} are put into the student's {own}; means are kept (det"
    assert said in (result.out / "log.txt").read_text()
    losses = [row["train/ld"] for row in read_metrics(result.out / "metrics.csv") if "train/ld" in row]
    assert losses
    assert all(0 < loss < 1e4 for loss in losses)
