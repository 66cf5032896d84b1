"""Whole detectors from and to files of MMDetection: nothing left over, equal outputs, or a reason why not."""

from __future__ import annotations

import inspect
import json
import logging
import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import locdistill
from locdistill.errors import WeightsError
from locdistill.interop.classes import COCO
from locdistill.interop.mmdet import ANGLE_BINS, BINS, to_mmdet
from locdistill.models import mmdet
from locdistill.models.detector import Detector
from locdistill.models.foreign import detector_settings, read
from locdistill.models.mmdet import load_mmdet, save_mmdet
from locdistill.models.settings import DetectorSettings
from tests.conftest import Answer

SMALL = {
    "channels": 32,
    "depth": 1,
    "pretrained": False,
    "frozen_stages": 1,
    "norm_eval": True,
    "classes": ("disc", "box"),
}
RGB = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
ROTATED: dict[str, Any] = {
    "model": "rotated_retinanet",
    "angle_bins": "linear",
    "input": {"short": 1024, "long": 1024},
}
BGR = {"mean": (103.53, 116.28, 123.675), "std": (1.0, 1.0, 1.0), "bgr": True, "style": "caffe", "norm_frozen": True}
ARCHITECTURES: list[dict[str, Any]] = [
    *({"model": model, "backbone": "resnet18"} for model in ("gfl", "gflv2", "atss", "fcos", "retinanet")),
    {"model": "gfl", "backbone": "resnet50"},
    {"model": "fcos", "backbone": "resnet50", **BGR},
    {"model": "gfl", "backbone": "resnet34", "levels": (2, 3, 4, 5)},
    {"model": "gfl", "backbone": "resnet101", "deformable": (2, 3, 4), "reg_max": 7},
    {**ROTATED, "backbone": "resnet18"},
    {**ROTATED, "predictor": 1, "reg_max": 12},
]
MORE: list[dict[str, Any]] = [
    *({"model": model, "backbone": "resnet50"} for model in ("gflv2", "atss", "retinanet")),
    {"model": "gflv2", "backbone": "resnext101_64x4d"},
    {"model": "gfl", "backbone": "resnext101_32x4d", "deformable": (3, 4)},
    {"model": "gflv2", "backbone": "res2net101d", "deformable": (3, 4), "background_channel": True},
    *({**ROTATED, "backbone": backbone} for backbone in ("resnet34", "resnet50")),
]
"""The same heads on other backbones."""


def build(**settings: Any) -> Detector:
    """A small detector, every value of which is another, so that a swapped pair would show."""
    detector = Detector(DetectorSettings.model_validate(SMALL | RGB | settings)).eval()
    values, start = some_values(), 0
    for name, value in detector.state_dict().items():
        if not value.is_floating_point():
            continue
        start = (start + 1009) % (len(values) - value.numel())
        value.copy_(values[start : start + value.numel()].view_as(value))
        if name.endswith("running_var"):
            value.abs_().add_(0.5)
        elif value.ndim == 1 and name.endswith("weight"):
            value.add_(1.0)
    return detector


@cache
def some_values() -> Tensor:
    """As many random numbers as the largest tensor has, and more: to make them for each takes longer than the test."""
    return torch.randn(5_000_000, generator=torch.Generator().manual_seed(0)) * 0.05


def same(one: Detector, other: Detector) -> bool:
    """Whether two detectors have the same weights and say the same."""
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pairs = zip(one(images)[:3], other(images)[:3], strict=True)
        equal = all(a is b is None or (torch.equal(a, b) and bool(a.isfinite().all())) for a, b in pairs)  # type: ignore[union-attr]
    return equal and all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


pytestmark = pytest.mark.usefixtures("zero_weights")  # `build` or what is loaded replaces them


@pytest.fixture(scope="module")
def gfl(zero_weights: None) -> Detector:
    return build()


@pytest.fixture
def theirs(gfl: Detector) -> dict[str, Tensor]:
    return to_mmdet(gfl.state_dict())


NAMES = SMALL["classes"]


@pytest.mark.parametrize(
    "settings",
    [*ARCHITECTURES, *(pytest.param(settings, marks=pytest.mark.long) for settings in MORE)],
    ids=lambda s: f"{s['model']}-{s.get('backbone')}-{len(s)}",
)
def test_round_trip(settings: dict[str, Any]) -> None:
    """From the state dict alone: everything but the input size is recognised, and nothing is left over."""
    detector = build(**settings)
    state = to_mmdet(detector.state_dict(), settings["model"])
    found = read(state, classes=NAMES)
    assert found.report.settings == detector.settings
    assert [group.what for group in found.report.skipped] == [BINS, ANGLE_BINS][: detector.settings.edges - 3]
    assert found.tensors.keys() == detector.state_dict().keys()
    again = Detector(found.report.settings, pretrained=False)
    report = found.fill(again)
    assert report.missing == ()
    assert report.parameters == sum(parameter.numel() for parameter in detector.parameters())
    assert same(detector, again.eval())


def test_what_is_written_is_read_back_as_it_was(tmp_path: Path) -> None:
    """Also what shapes do not tell: the size of the input, thresholds, statistics."""
    settings = {"input": {"short": 64}, "detections": {"nms_iou": 0.5}, "mean": (1, 2, 3), "frozen_stages": 0}
    detector = build(**settings)
    path = save_mmdet(detector, tmp_path / "new" / "w.pth")
    assert [file.name for file in path.parent.iterdir()] == ["w.pth"]
    again = Detector.load(path)
    assert not again.training
    assert again.settings == detector.settings == detector_settings(path)
    assert same(detector, again)
    content = torch.load(path, weights_only=True)
    assert content["meta"]["CLASSES"] == content["meta"]["dataset_meta"]["classes"] == NAMES
    assert len(content["state_dict"]) == len(detector.state_dict()) + 1


def test_only_what_mmdetection_has_is_written(tmp_path: Path) -> None:
    narrow = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]}
    for settings, message in (
        ({"backbone_args": narrow}, "1-1-1-1 basic blocks"),
        ({"backbone": "mobilenetv3_small_050"}, "its backbone looks like"),
        ({"norm_groups": 8}, "norm_groups 8, there 32"),
        ({"backbone_args": {"output_stride": 32}}, "backbone_args"),
        ({"model": "rotated_gfl"}, "no MMDetection names are known for rotated_gfl"),
        ({"model": "rotated_retinanet"}, "angle_bins circular, there linear"),
        ({**ROTATED, "angle_unit": 3.0}, r"angle_unit 3\.0, there 1\.0"),
    ):
        with pytest.raises(WeightsError, match=rf"MMDetection has no detector of this kind: .*{message}"):
            save_mmdet(build(**settings), tmp_path / "w.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["state dict", "checkpoint", "legacy", "safetensors", "ddp", "old meta", "new meta"])
def test_forms_of_a_file(form: str, gfl: Detector, theirs: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    meta = {"epoch": 12, "CLASSES": NAMES} if form == "old meta" else {"dataset_meta": {"classes": list(NAMES)}}
    if form == "safetensors":
        safetensors.torch.save_file(theirs, path)
    elif form == "ddp":
        torch.save({"state_dict": {f"module.{key}": value for key, value in theirs.items()}}, path)
    else:
        content = theirs if form == "state dict" else {"state_dict": theirs, "optimizer": {"lr": 1.0}}
        content = content | ({"meta": meta} if "meta" in form else {})
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    detector = Detector.load(path)
    expected = NAMES if "meta" in form else ("class_0", "class_1")
    assert detector.settings == gfl.settings.model_copy(update={"classes": expected})
    assert not detector.training
    assert same(gfl, detector)
    assert same(gfl, load_mmdet(path))
    assert detector_settings(path).classes == expected


def test_old_names(tmp_path: Path) -> None:
    detector = build(model="fcos", deformable=(4,))
    state = to_mmdet(detector.state_dict(), "fcos")
    old = {
        key.replace("head.conv_", "head.fcos_").replace("conv2.conv_offset", "conv2_offset"): v
        for key, v in state.items()
    }
    assert len(old.keys() - state.keys()) == 6 + 4
    assert same(detector, load_mmdet(old, classes=NAMES))


def test_weights_of_older_pytorch_and_of_half_precision(gfl: Detector, theirs: dict[str, Tensor]) -> None:
    found = read({key: value for key, value in theirs.items() if not key.endswith("num_batches_tracked")})
    detector = Detector(found.report.settings, pretrained=False)
    report = found.fill(detector)
    assert any("20 counters of batches" in note for note in report.notes)
    assert report.missing == ()
    assert same(gfl, detector.eval())
    half = load_mmdet({key: v.half() if v.is_floating_point() else v for key, v in theirs.items()})
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    torch.testing.assert_close(half.head.cls.weight, gfl.head.cls.weight, rtol=1e-3, atol=1e-4)


def test_the_81_channels_of_the_published_gfl_v2() -> None:
    state = to_mmdet(build(model="gflv2", classes=COCO, background_channel=True).state_dict(), "gflv2")
    detector = load_mmdet(state)
    assert (len(detector.settings.classes), detector.settings.background_channel) == (80, True)
    assert state["bbox_head.gfl_cls.bias"].shape == (81,)


def test_a_teacher_and_an_average_inside(
    gfl: Detector, theirs: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    other = {key: value + 1 for key, value in theirs.items()}
    state = theirs | {f"teacher.{key}": value for key, value in other.items()}
    content = {"state_dict": state, "ema_state_dict": {f"module.{k}": v for k, v in other.items() if k != BINS}}
    content["ema_state_dict"] |= {"steps": torch.tensor(1), f"module.{BINS}": theirs[BINS]}
    with caplog.at_level(logging.INFO, "locdistill"):
        assert same(gfl, load_mmdet(content))
    assert f"left out: teacher. ({len(theirs)}): a teacher that was stored with it" in caplog.text
    assert "left out: weights without averaging" in caplog.text
    raw = load_mmdet(content, weights="raw")
    assert torch.equal(raw.head.cls.bias, gfl.head.cls.bias + 1)  # type: ignore[operator]


def test_settings_that_a_file_does_not_tell(theirs: dict[str, Tensor]) -> None:
    given = {"mean": (1.0, 2.0, 3.0), "bgr": True, "input": {"short": 64}}
    found = load_mmdet(theirs, settings=given, classes=["a", "b"]).settings
    assert (found.mean, found.bgr, found.input.short, found.input.long) == ((1, 2, 3), True, 64, 1333)
    assert found.classes == ("a", "b")
    with pytest.raises(WeightsError, match=r"reg_maximum: no such key; did you mean 'reg_max'") as caught:
        load_mmdet(theirs, settings={"reg_maximum": 3})
    assert not {"pydantic", "--classes"} & set(str(caught.value).replace("/", " ").split())
    with pytest.raises(WeightsError, match="3 classes are named, but it has 2 channels"):
        load_mmdet(theirs, classes=["a", "b", "c"])


def test_classes_that_are_no_list_of_names(theirs: dict[str, Tensor]) -> None:
    assert load_mmdet(theirs, classes=(name for name in "ab")).settings.classes == ("a", "b")
    assert load_mmdet(theirs, settings={"classes": ["a", "b"]}).settings.classes == ("a", "b")
    given: list[dict[str, Any]] = [{"classes": "ab"}, {"settings": {"classes": "ab"}}, {"settings": {"classes": 2}}]
    for wrong in given:
        with pytest.raises(WeightsError, match="classes: expected a list of names"):
            load_mmdet(theirs, **wrong)


def test_settings_that_make_no_detector(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    """The message is readable, and says how to correct what the file tells wrongly."""
    with pytest.raises(WeightsError, match=r"\n  style: expected 'pytorch' or 'caffe', came 'foo'$"):
        load_mmdet(theirs, settings={"style": "foo"})
    with pytest.raises(WeightsError, match=r"the state dict: style: 'caffe' moves the stride"):
        load_mmdet(theirs, settings={"style": "caffe"})
    path, metas = tmp_path / "w.pth", {"same": {"CLASSES": ["a", "a"]}, "std": {"cfg": "std=[0.0, 1.0, 1.0]"}}
    for meta, message in zip(
        metas.values(), ("class names must differ", "std: expected positive numbers"), strict=True
    ):
        torch.save({"state_dict": theirs, "meta": meta}, path)
        with pytest.raises(WeightsError, match=rf"w\.pth: .*\n  {message}.*\n.*--classes A,B,.* std=\[") as caught:
            Detector.load(path)
        assert "pydantic" not in str(caught.value)
    torch.save({"state_dict": theirs, "meta": {"locdistill": "{}"}}, path)
    with pytest.raises(WeightsError, match=r"w\.pth: its settings have no names of classes.*--classes A,B"):
        Detector.load(path)
    torch.save({"state_dict": theirs, "meta": {"locdistill": '{"style": "caffe", "classes": ["a", "b"]}'}}, path)
    with pytest.raises(WeightsError, match=r"w\.pth: style: 'caffe'"):
        Detector.load(path)


def test_classes_of_a_file_with_our_settings(gfl: Detector, tmp_path: Path) -> None:
    """They are counted as those of any other file; one channel more may be for background."""
    path = save_mmdet(gfl, tmp_path / "w.pth")
    assert load_mmdet(path, classes=("a", "b")).settings == gfl.settings.model_copy(update={"classes": ("a", "b")})
    with pytest.raises(WeightsError, match="3 classes are named, but it has 2 channels"):
        load_mmdet(path, classes=("a", "b", "c"))
    v2 = build(model="gflv2", classes=tuple(map(str, range(81))))
    named = load_mmdet(save_mmdet(v2, tmp_path / "v2.pth"), classes=COCO).settings
    assert (named.classes, named.background_channel) == (COCO, True)


def test_values_of_no_use_are_listed(theirs: dict[str, Tensor], caplog: pytest.LogCaptureFixture) -> None:
    nan = theirs["bbox_head.gfl_cls.bias"].clone()
    nan[1] = float("nan")
    bad = {"bbox_head.gfl_cls.bias": nan, "neck.fpn_convs.0.conv.bias": torch.ones(32, dtype=torch.int8)}
    reasons = ("1 of 2 values are NaN or infinite", "int8 instead of floating-point numbers")
    with pytest.raises(WeightsError, match="2 with unusable values") as caught:
        load_mmdet(theirs | bad)
    assert all(f"{name} ({why})" in str(caught.value) for name, why in zip(bad, reasons, strict=True))
    with caplog.at_level(logging.WARNING, "locdistill"):
        partial = load_mmdet(theirs | bad, strict=False)
    assert all(value.isfinite().all() for value in partial.state_dict().values())
    for name, why in zip(bad, reasons, strict=True):
        assert f"left out: {name} (1): {why}" in caplog.text
    assert "missing, at random initial values (2): " in caplog.text


LOST = ("backbone.layer2.0.bn1.weight", "neck.fpn_convs.1.conv.bias", "bbox_head.gfl_cls.weight")


def test_missing_weights_are_listed(gfl: Detector, theirs: dict[str, Tensor], caplog: pytest.LogCaptureFixture) -> None:
    cut = {key: value for key, value in theirs.items() if key not in LOST}
    cut["backbone.layer1.0.conv1.weight"] = torch.zeros(64, 32, 3, 3)
    with pytest.raises(WeightsError, match="recognised as gfl with resnet18, but its weights do not fit") as caught:
        load_mmdet(cut)
    message = str(caught.value)
    assert f"3 missing: {', '.join(LOST)}" in message
    assert "1 of another shape: backbone.layer1.0.conv1.weight (64, 32, 3, 3) instead of (64, 64, 3, 3)" in message
    assert "strict=False" in message
    with caplog.at_level(logging.WARNING, "locdistill"):
        partial = load_mmdet(cut, strict=False)
    assert f"missing, at random initial values (4): {', '.join(LOST)}, backbone.layer1.0.conv1.weight" in caplog.text
    assert torch.equal(partial.head.reg.weight, gfl.head.reg.weight)  # type: ignore[arg-type]
    assert not torch.equal(partial.head.cls.weight, gfl.head.cls.weight)  # type: ignore[arg-type]


def test_tensors_without_a_place_are_listed(theirs: dict[str, Tensor]) -> None:
    more = theirs | {"mask_head.x": torch.zeros(1), "bbox_head.adaption.weight": torch.zeros(1)}
    with pytest.raises(
        WeightsError, match=r"does not have 2 of the tensors: bbox_head\.adaption\.weight, mask_head\.x"
    ) as caught:
        load_mmdet(more)
    assert "strict=False" in str(caught.value)
    extra = theirs | {"backbone.layer1.0.se.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"1 not in the detector: backbone\.layer1\.0\.se\.weight"):
        load_mmdet(extra)
    far = theirs | {"bbox_head.cls_convs.0.gn.x": torch.zeros(1), "neck.fpn_convs.9.bn.x": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"neck looks like an FPN with normalisation"):
        load_mmdet(far)
    del far["neck.fpn_convs.9.bn.x"]
    with pytest.raises(WeightsError, match=r"1 not in the detector: bbox_head\.cls_convs\.0\.gn\.x"):
        load_mmdet(far)
    report = read(more, strict=False).report
    assert [group.what for group in report.skipped] == [BINS, "bbox_head.adaption.weight", "mask_head.x"]


def test_files_that_are_refused(gfl: Detector, theirs: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(gfl.state_dict(), path)
    with pytest.raises(WeightsError, match=r"w\.pth: it looks like a detector under locdistill's own names"):
        Detector.load(path)
    plain = {key.replace("gfl_", "atss_"): value for key, value in theirs.items()}
    plain |= {"bbox_head.atss_reg.bias": torch.zeros(4), "bbox_head.atss_reg.weight": torch.zeros(4, 32, 3, 3)}
    torch.save({"state_dict": plain}, path)
    with pytest.raises(WeightsError, match=r"w\.pth: it looks like a plain ATSS.*nothing to distill from"):
        Detector.load(path)
    torch.save({"state_dict": theirs, "meta": {"locdistill": "{"}}, path)
    with pytest.raises(WeightsError, match=r"w\.pth: its 'locdistill' settings cannot be read"):
        Detector.load(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"w\.pth: damaged or no PyTorch checkpoint"):
        Detector.load(path)
    with pytest.raises(WeightsError, match="no such weights"):
        load_mmdet(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="no such weights file"):
        read(tmp_path / "absent.pth")
    ours = gfl.save(tmp_path / "ours")
    with pytest.raises(WeightsError, match=r"ours\.safetensors: not a file of MMDetection; use Detector\.load"):
        load_mmdet(ours)


def test_whatever_is_wrong_with_the_tensors_is_said_in_one_way(theirs: dict[str, Tensor]) -> None:
    """Names lost, doubled and misspelt, shapes of all kinds, metadata that make no sense."""
    rng, names = random.Random(0), list(theirs)
    shapes = [(), (0,), (1,), (0, 0, 1, 1), (64, 64, 3), (68, 1, 1, 1)]
    read_at_all, messages = 0, set()
    for _ in range(300):
        state = {name: value for name, value in theirs.items() if rng.random() < rng.choice([0.3, 1, 1, 1])}
        for name in rng.sample(names, rng.choice([1, 2, 30])):
            value = torch.zeros(rng.choice(shapes))
            prefix = rng.choice(["", "", "teacher.", "module.", "x.", "bbox_head."])
            state[prefix + rng.choice([name, name.replace("weight", "wait")])] = value
        classes = rng.choice([None, 3, ("a",), ["a", "b"], ["a", "a"], {"a": 1}])
        text = rng.choice([None, "mean=[", "mean=[1,2,3], std=[0,0,0]", 7])
        try:
            read({"state_dict": state, "meta": {"CLASSES": classes, "config": text}}, strict=rng.random() < 0.5)
            read_at_all += 1
        except WeightsError as error:
            messages.add(str(error).split(":")[0])
    assert messages == {"the state dict"}
    assert 0 < read_at_all < 300


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_file_with_code_is_refused_and_not_run(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": theirs, "meta": {"x": Payload(tmp_path / "ran")}}, tmp_path / "w.pth")
    for strict in (True, False):
        with pytest.raises(WeightsError, match=r"could run code when read \((posix|nt)\.system\)"):
            load_mmdet(tmp_path / "w.pth", strict=strict)
    with pytest.raises(WeightsError, match="could run code"):
        Detector.load(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_nothing_is_downloaded(theirs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create = timm.create_model

    def offline(*args: Any, pretrained: bool = False, **kwargs: Any) -> Any:
        assert not pretrained
        return create(*args, pretrained=False, **kwargs)

    monkeypatch.setattr("timm.create_model", offline)
    load_mmdet(theirs)


def test_the_package_offers_it(theirs: dict[str, Tensor]) -> None:
    dense = locdistill.load_mmdet(theirs)(torch.zeros(1, 3, 64, 64))
    assert isinstance(dense, locdistill.Dense)
    assert dense.edge_logits.shape == (1, 64 + 16 + 4 + 1 + 1, 4, 17)
    assert locdistill.save_mmdet is save_mmdet


# -- the command line


def test_convert_there_and_back(
    cli: Callable[..., Answer], gfl: Detector, theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    source, ours, back = tmp_path / "in.pth", tmp_path / "ours.safetensors", tmp_path / "back.pth"
    torch.save({"state_dict": theirs, "optimizer": {"a": 1}}, source)
    (tmp_path / "names.txt").write_text("disc\nbox\n")
    code, out, _ = cli("convert", source, ours, "input.short=64", "--classes", tmp_path / "names.txt")
    assert code == 0
    for line in (
        "gfl, 32 wide",
        "resnet18, style pytorch",
        "2 (disc, box)",
        "left out: optimizer (1): state of the",
        f"{ours}",
    ):
        assert line in out
    assert same(gfl, Detector.load(ours))
    assert Detector.load(ours).settings.input.short == 64
    code, out, err = cli("convert", ours, back)
    assert code == 0, err
    assert torch.load(back, weights_only=True)["state_dict"].keys() == theirs.keys()
    assert same(gfl, Detector.load(back))
    code, _, err = cli("convert", source, ours)
    assert (code, "exists already; give another name, or --force" in err) == (2, True)
    code, out, _ = cli("convert", source, tmp_path / "ours", "--classes", "a,b", "--force", "--json")
    assert json.loads(out)["settings"]["classes"] == ["a", "b"]
    assert json.loads(out)["out"] == str(ours)
    code, _, err = cli("convert", ours, tmp_path / "x.pth", "--classes", "c,d")
    assert (code, "written by locdistill, with settings" in err) == (2, True)


def test_convert_an_incomplete_file(cli: Callable[..., Answer], theirs: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({key: value for key, value in theirs.items() if key not in LOST}, tmp_path / "in.pth")
    code, _, err = cli("convert", tmp_path / "in.pth", tmp_path / "out")
    assert (code, "3 missing" in err, (tmp_path / "out.safetensors").exists()) == (2, True, False)
    code, out, _ = cli("convert", tmp_path / "in.pth", tmp_path / "out", "--partial")
    assert (code, (tmp_path / "out.safetensors").exists()) == (0, True)
    assert "missing, at random initial values (3): " in out


def test_convert_says_what_kind_of_file_to_write(gfl: Detector, tmp_path: Path) -> None:
    ours = gfl.save(tmp_path / "run" / "best")
    path, report = mmdet.convert(ours.parent, tmp_path / "w.bin", to="mmdet")
    assert path == tmp_path / "w.bin"
    assert report.as_dict()["tensors"] == len(gfl.state_dict())
    assert same(gfl, Detector.load(path))


@pytest.mark.parametrize("out", ["file/w.safetensors", "file/a/w.pth", "folder.pth"])
def test_convert_to_where_nothing_can_be_written(
    out: str, cli: Callable[..., Answer], theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(theirs, tmp_path / "in.pth")
    (tmp_path / "file").touch()
    (tmp_path / "folder.pth").mkdir()
    code, _, err = cli("convert", tmp_path / "in.pth", tmp_path / out, "--force")
    assert (code, f"{tmp_path / out} cannot be written (" in err) == (2, True), err
    with pytest.raises(WeightsError, match="to: expected 'locdistill' or 'mmdet', came 'onnx'"):
        inspect.unwrap(mmdet.convert)(tmp_path / "in.pth", tmp_path / "x", to="onnx")  # type: ignore[arg-type]


def test_convert_with_settings_and_classes_that_are_wrong(
    cli: Callable[..., Answer], gfl: Detector, theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    source, out, ours = tmp_path / "in.pth", tmp_path / "out", save_mmdet(gfl, tmp_path / "ours.pth")
    torch.save(theirs, source)
    (tmp_path / "picture.txt").write_bytes(b"\xff\xfe\x00")
    for words, message in (
        ((source, out, "style=foo"), "style: expected 'pytorch' or 'caffe', came 'foo'"),
        ((source, out, "input.shrt=3"), "input.shrt: no such key; did you mean 'short'"),
        ((source, out, "--classes", "a,b,c"), "3 classes are named, but it has 2 channels"),
        ((ours, out, "--classes", "a,b,c"), "3 classes are named, but it has 2 channels"),
        ((ours, out, "classes=[a]"), "1 classes are named, but it has 2 channels"),
        ((source, out, "--classes", ",".join(["name"] * 80)), "80 classes are named"),
        ((source, out, "--classes", "nofile.txt"), "--classes nofile.txt: cannot be read as a text file (No such file"),
        ((source, out, "--classes", "no/file"), "--classes no/file: cannot be read as a text file"),
        ((source, out, "--classes", tmp_path / "picture.txt"), "picture.txt: cannot be read as a text file"),
        (("w" * 300, out), "no such weights"),
    ):
        code, _, err = cli("convert", *words)
        assert (code, message in err, "pydantic" in err) == (2, True, False), err
    assert not (tmp_path / "out.safetensors").exists()
    code, _, _ = cli("convert", source, out, "--classes", "a/b,c.txt", "--json")
    assert (code, Detector.load(out).settings.classes) == (0, ("a/b", "c.txt"))
