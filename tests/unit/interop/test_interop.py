"""Foreign checkpoints as plain data: read without running anything, unpacked, recognised."""

from __future__ import annotations

import inspect
import os
import pathlib
import sys
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from locdistill.errors import WeightsError
from locdistill.interop.classes import COCO, DOTA, DOTA_BY_COUNT, VOC
from locdistill.interop.mmdet import ANGLE_BINS, BINS, to_mmdet
from locdistill.interop.pickles import read_checkpoint
from locdistill.interop.recognise import Shapes, recognise
from locdistill.interop.unpack import unpack

LEGACY = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def save(content: Any, path: Path, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call

    def __call__(self) -> None:
        """The first thing that is run must look as if it could be."""


@LEGACY
@pytest.mark.parametrize("function", [os.system, eval, open, pathlib.Path.touch], ids=lambda f: f.__name__)
def test_code_in_a_file_is_not_run(tmp_path: Path, function: Any, legacy: bool) -> None:
    victim = tmp_path / "ran"
    arguments = {
        os.system: (f"touch {victim}",),
        eval: (f"open({str(victim)!r}, 'w').close()",),
        open: (str(victim), "w"),
        pathlib.Path.touch: (victim,),
    }[function]
    path = save(
        {"meta": Runs(function, *arguments), "state_dict": {"x": torch.zeros(1)}}, tmp_path / "w.pth", legacy=legacy
    )
    with pytest.raises(
        WeightsError, match=r"w\.pth.*could run code when read \(.*\)\. Nothing of it was run"
    ) as caught:
        read_checkpoint(path)
    assert "torch.load('w.pth', map_location=\"cpu\", weights_only=False)" in str(caught.value)
    assert not victim.exists()
    torch.load(path, weights_only=False)  # the payload is real
    assert victim.exists()


def test_a_look_up_of_attributes_reaches_nothing(tmp_path: Path) -> None:
    """Old pickles name methods by getattr(class, name); a stand-in answers, and what it gives can be called in vain."""
    path = save({"x": Runs(Runs(getattr, OrderedDict, "fromkeys"), "ab"), "y": torch.zeros(1)}, tmp_path / "w.pth")
    assert torch.load(path, weights_only=False)["x"] == {"a": None, "b": None}
    with pytest.raises(WeightsError, match="could run code"):
        read_checkpoint(path)
    path = save({"x": Runs(getattr, OrderedDict, "fromkeys")}, tmp_path / "w.pth")
    assert type(read_checkpoint(path)["x"]).__name__ == "Opaque"


@LEGACY
def test_what_training_programs_store_is_read_without_their_libraries(
    tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Histories, configurations, arrays of numpy: the classes are made here, pickled, and gone before the reading."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.arange(3.0)
            self._statistics_methods = {"mean": HistoryBuffer.mean}

        def mean(self) -> float:
            raise AssertionError("was run")

        def __setstate__(self, state: Any) -> None:
            raise AssertionError("was run")

    class ConfigDict(dict):
        pass

    for module, cls in (("mmengine.logging.history_buffer", HistoryBuffer), ("mmengine.config.config", ConfigDict)):
        cls.__module__, cls.__qualname__ = module, cls.__name__
        fake = types.ModuleType(module)
        setattr(fake, cls.__name__, cls)
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, name, fake if end == len(parts) else types.ModuleType(name))
    HistoryBuffer.mean.__module__ = HistoryBuffer.__module__
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    content = {
        "meta": {
            "cfg": "model = dict()",
            "time": np.float64(2),
            "seed": np.int64(3),
            "args": ConfigDict(a=ConfigDict(b=1)),
        },
        "message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer()), "counts": defaultdict(list, x=[1])},
        "work_dir": Path("/nowhere"),
        "state_dict": OrderedDict(x=torch.ones(2)),
    }
    path = save(content, tmp_path / "w.pth", legacy=legacy)
    for name in [name for name in sys.modules if name.split(".")[0] == "mmengine"]:
        monkeypatch.delitem(sys.modules, name)
    read = read_checkpoint(path)
    assert read["state_dict"]["x"].tolist() == [1, 1]
    assert read["meta"]["args"] == {"a": {"b": 1}}
    assert read["message_hub"]["counts"] == {"x": [1]}
    assert not any(name.split(".")[0] == "mmengine" for name in sys.modules)


def test_the_stand_ins_are_gone_after_reading(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(save({"x": torch.zeros(1)}, tmp_path / "w.pth"))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"\x80\x02", b"\x80\x02}q\x00(", b"PK\x03\x04", b"text and more text"]
)
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match="damaged or no PyTorch checkpoint") as caught:
        read_checkpoint(tmp_path / "w.pth")
    assert repr(content[:16]) in str(caught.value)
    assert "weights_only" not in str(caught.value)  # no advice to read a damaged file unsafely


@LEGACY
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated(tmp_path: Path, legacy: bool, share: float) -> None:
    path = save({f"x{i}": torch.randn(50) for i in range(20)}, tmp_path / "w.pth", legacy=legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(WeightsError, match="damaged or no PyTorch checkpoint"):
        read_checkpoint(path)


def test_a_pickle_that_the_safe_reader_does_not_know(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pth", pickle_protocol=4)
    with pytest.warns(UserWarning, match="protocol"), pytest.raises(WeightsError, match="save its weights alone"):
        read_checkpoint(tmp_path / "w.pth")


# -- unpack


def tensors(**extra: Tensor) -> dict[str, Tensor]:
    names = ("backbone.conv1.weight", "neck.x", "bbox_head.gfl_cls.bias")
    return {name: torch.full((2,), float(i)) for i, name in enumerate(names)} | extra


def left_out(found: Any) -> dict[str, tuple[int, str]]:
    return {group.what: (group.count, group.reason) for group in found.skipped}


@pytest.mark.parametrize(
    "prefix", ["", "module.", "student.", "detector.", "model.", "module.student.", "architecture."]
)
@pytest.mark.parametrize("field", [None, "state_dict", "model"])
def test_prefixes_and_fields(prefix: str, field: str | None) -> None:
    inner = {prefix + key: value for key, value in tensors().items()}
    found = unpack(inner if field is None else {field: inner, "optimizer": {"a": 1, "b": 2}, "epoch": 3})
    assert found.tensors.keys() == tensors().keys()
    fields = {} if field is None else {"optimizer": 2, "epoch": 1}
    assert {what: count for what, (count, _) in left_out(found).items()} == fields


@pytest.mark.parametrize(("student", "teacher"), [("", "teacher."), ("student.", "teacher."), ("", "teacher_model.")])
@pytest.mark.parametrize("ddp", ["", "module."])
def test_a_teacher_inside_is_left_out(student: str, teacher: str, ddp: str) -> None:
    both = {f"{ddp}{student}{key}": value for key, value in tensors().items()}
    both |= {f"{ddp}{teacher}{key}": value + 9 for key, value in tensors().items()}
    found = unpack({"state_dict": both})
    assert {key: value.tolist() for key, value in found.tensors.items()} == {
        k: v.tolist() for k, v in tensors().items()
    }
    assert [(group.count, group.reason) for group in found.skipped] == [(3, "a teacher that was stored with it")]


def test_a_teacher_alone_is_not_taken_for_the_student() -> None:
    with pytest.raises(WeightsError, match=r"the only detector in it is a teacher \(under 'teacher\.'\)"):
        unpack({f"teacher.{key}": value for key, value in tensors().items()})


def test_the_average_of_mmengine_is_under_the_plain_names() -> None:
    """Its hook swaps the two when it saves, so that the plain names can be used as they are."""
    swapped = {f"module.{key}": value + 5 for key, value in tensors().items()} | {"steps": torch.tensor(7)}
    content = {"state_dict": tensors(), "ema_state_dict": swapped}
    average, raw = unpack(content, "ema"), unpack(content, "raw")
    assert average.tensors["neck.x"].tolist() == [1, 1]
    assert average.weights == "a moving average (EMA)"
    assert left_out(average) == {"weights without averaging": (3, "the moving average is used instead")}
    assert raw.tensors["neck.x"].tolist() == [6, 6]
    assert raw.tensors.keys() == tensors().keys()
    assert raw.weights.startswith("without the moving average")


def test_the_average_of_mmcv_is_under_the_plain_names() -> None:
    buffers = {f"ema_{key.replace('.', '_')}": value + 5 for key, value in tensors().items() if key != "neck.x"}
    average, raw = unpack(tensors(**buffers), "ema"), unpack(tensors(**buffers), "raw")
    assert average.tensors["backbone.conv1.weight"].tolist() == [0, 0]
    assert left_out(average)["weights without averaging"][0] == 2
    assert raw.tensors["backbone.conv1.weight"].tolist() == [5, 5]
    assert raw.tensors["neck.x"].tolist() == [1, 1]  # not averaged: a running statistic, say


def test_a_second_stage_is_not_taken_for_the_detector() -> None:
    names = ("backbone.conv1.weight", "rpn_head.rpn_cls.weight", "roi_head.bbox_head.fc_cls.weight")
    for prefix in ("", "module."):
        found = unpack({prefix + name: torch.zeros(1) for name in names})
        assert set(found.tensors) == set(names)


def test_an_average_of_its_own() -> None:
    content = {"state_dict": tensors(), "state_dict_ema": {k: v + 5 for k, v in tensors().items()}}
    assert unpack(content, "ema").tensors["neck.x"].tolist() == [6, 6]
    assert unpack(content, "raw").tensors["neck.x"].tolist() == [1, 1]


def test_without_an_average_both_are_the_same() -> None:
    for which in ("ema", "raw"):
        found = unpack({"state_dict": tensors()}, which)
        assert found.tensors["neck.x"].tolist() == [1, 1]
        assert "no moving average" in found.weights


def test_old_names() -> None:
    old = {
        "backbone.layer3.0.conv2_offset.weight": torch.zeros(1),
        "backbone.layer3.0.convs.1_offset.bias": torch.zeros(1),
        "backbone.layer4.0.conv2.conv_offset.bias": torch.zeros(1),
        "bbox_head.fcos_cls.weight": torch.zeros(1),
        "bbox_head.fcos_centerness.bias": torch.zeros(1),
    }
    assert set(unpack(old).tensors) == {
        "backbone.layer3.0.conv2.conv_offset.weight",
        "backbone.layer3.0.convs.1.conv_offset.bias",
        "backbone.layer4.0.conv2.conv_offset.bias",
        "bbox_head.conv_cls.weight",
        "bbox_head.conv_centerness.bias",
    }


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse_coo"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.empty(3, device="meta"), "without values"),
    ],
    ids=["sparse", "quantised", "meta"],
)
def test_tensors_that_are_not_plain(make: Callable[[], Tensor], what: str) -> None:
    odd = make()
    for name in ("backbone.conv1.weight", BINS):
        with pytest.raises(WeightsError, match=rf"1 tensors are not plain: {name} \({what}\); expected dense"):
            unpack(tensors() | {name: odd})
    assert unpack(tensors() | {"teacher.backbone.conv1.weight": odd}).tensors.keys() == unpack(tensors()).tensors.keys()


def test_weights_that_are_neither() -> None:
    with pytest.raises(WeightsError, match="weights: expected 'ema' or 'raw', came 'foo'"):
        inspect.unwrap(unpack)(tensors(), "foo")  # type: ignore[arg-type]  # unwrapped: as without the tests' type checks


def test_constants() -> None:
    mean, std = torch.tensor([1.0, 2.0, 3.0])[:, None, None], torch.tensor([4.0, 5.0, 6.0])[:, None, None]
    extra = {BINS: torch.arange(17.0), "data_preprocessor.mean": mean, "data_preprocessor.std": std}
    found = unpack({"state_dict": tensors(**extra), "meta": {"CLASSES": ["a"]}})
    assert found.meta == {"CLASSES": ["a"], "input_mean": [1, 2, 3], "input_std": [4, 5, 6]}
    assert left_out(found).keys() == {BINS, "data_preprocessor."}
    assert found.tensors.keys() == tensors().keys()
    assert found.constants[BINS].tolist() == list(range(17))
    turned = unpack(tensors(**{BINS: torch.linspace(-2, 2, 9), ANGLE_BINS: torch.linspace(-5, 2, 9)}))
    assert (turned.tensors.keys(), turned.constants.keys()) == (tensors().keys(), {BINS, ANGLE_BINS})
    assert left_out(turned).keys() == {BINS, ANGLE_BINS}


def test_no_state_dict() -> None:
    for content in ({"epoch": 3}, {}, {"state_dict": {}}):
        with pytest.raises(WeightsError, match="expected a state dict"):
            unpack(content)
    assert left_out(unpack({"state_dict": tensors(), "x": 1}))["x"] == (1, "no weights")
    found = left_out(unpack({"state_dict": {**tensors(), "y": 1, 7: torch.zeros(1)}}))
    assert found == {"y": (1, "no tensor"), "7": (1, "no tensor")}


# -- recognise


def shapes(
    cls: str = "gfl_cls", reg: str = "gfl_reg", *, classes: int = 80, outputs: int = 68, **extra: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Of a detector with ResNet-18, as far as they tell anything."""
    found: dict[str, tuple[int, ...]] = {
        f"backbone.layer{stage}.{block}.conv2.weight": (64, 64, 3, 3) for stage in (1, 2, 3, 4) for block in (0, 1)
    }
    found |= {f"neck.lateral_convs.{i}.conv.bias": (256,) for i in range(3)}
    found |= {f"neck.fpn_convs.{i}.conv.bias": (256,) for i in range(5)}
    found |= {f"bbox_head.{t}_convs.{i}.{k}": (256,) for t in ("cls", "reg") for i in range(4) for k in ("gn.weight",)}
    return found | {f"bbox_head.{cls}.bias": (classes,), f"bbox_head.{reg}.bias": (outputs,)} | extra


def test_a_group_norm_is_seen_by_any_of_its_tensors() -> None:
    lost = shapes()
    del lost["bbox_head.cls_convs.0.gn.weight"]
    assert recognise(lost | {"bbox_head.cls_convs.0.conv.weight": (256, 256, 3, 3)}).settings["norm_groups"] == 32
    none = {key.replace(".gn.", ".conv."): shape for key, shape in shapes().items()}
    assert recognise(none).settings["norm_groups"] == 0


def test_towers_that_are_not_as_published_are_noted() -> None:
    cut = {key: shape for key, shape in shapes().items() if "_convs.3.gn" not in key}
    found = recognise(cut)
    assert found.settings["depth"] == 3
    assert any("towers of 3 convolutions" in note and "incomplete" in note for note in found.notes)
    assert not any("towers" in note for note in recognise(shapes()).notes)


def test_what_shapes_tell() -> None:
    found = recognise(shapes()).settings
    assert (found["model"], found["backbone"], found["deformable"]) == ("gfl", "resnet18", ())
    assert (found["channels"], found["depth"], found["norm_groups"], found["reg_max"]) == (256, 4, 32, 16)
    assert found["levels"] == (3, 4, 5, 6, 7)
    assert (found["pretrained"], found["frozen_stages"], found["norm_eval"]) == (False, 1, True)
    assert recognise(shapes(outputs=4 * 9)).settings["reg_max"] == 8


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("gfl", shapes()),
        ("gflv2", shapes() | {"bbox_head.reg_conf.0.weight": (64, 20, 1, 1)}),
        ("atss", shapes("atss_cls", "atss_reg") | {"bbox_head.atss_centerness.bias": (1,)}),
        ("fcos", shapes("conv_cls", "conv_reg") | {"bbox_head.conv_centerness.bias": (1,)}),
        ("retinanet", shapes("atss_cls", "atss_reg", classes=720, outputs=612)),
    ],
)
def test_kinds(model: str, given: Shapes) -> None:
    found = recognise(given).settings
    assert (found["model"], found["reg_max"], found["classes"]) == (model, 16, COCO)


def turned(outputs: int = 9 * 5 * 9, *, angle: bool = True, classes: int = 9 * 15, side: int = 3) -> Shapes:
    """Of a rotated RetinaNet, with the constants that it stores."""
    found = shapes("retina_cls", "retina_reg", classes=classes, outputs=outputs)
    found = {key.replace(".gn.", ".conv."): shape for key, shape in found.items()} | {BINS: (9,)}
    found["bbox_head.retina_reg.weight"] = (outputs, 256, side, side)
    return found | ({ANGLE_BINS: (9,)} if angle else {})


def test_a_rotated_retinanet() -> None:
    found = recognise(turned())
    settings = found.settings
    assert (settings["model"], settings["reg_max"], settings["norm_groups"]) == ("rotated_retinanet", 8, 0)
    assert (settings["angles"], settings["angle_bins"], settings["angle_unit"]) == ("oc", "linear", 1.0)
    assert (settings["predictor"], settings["input"]) == (3, {"short": 1024, "long": 1024})
    assert settings["classes"] == DOTA[:15]
    assert DOTA[14] == "helicopter"
    assert any("15 classes without names are those of DOTA" in note for note in found.notes)
    assert any("range oc" in note for note in found.notes)
    assert not any("does not contain their positions" in note for note in found.notes)
    assert recognise(turned(side=1)).settings["predictor"] == 1
    assert recognise(turned(classes=9 * 16)).settings["classes"] == DOTA[:16]
    assert recognise(turned(classes=9)).settings["classes"] == ("class_0",)
    assert recognise(shapes(classes=15)).settings["classes"][0] == "class_0"  # upright boxes: not of DOTA


def test_a_rotated_retinanet_without_its_constants() -> None:
    """Its number of outputs tells, unless a RetinaNet with four edges may have as many."""
    found = recognise(turned(angle=False))
    assert (found.settings["model"], found.settings["reg_max"]) == ("rotated_retinanet", 8)
    assert any("does not contain their positions" in note for note in found.notes)
    assert recognise(turned(9 * 5 * 8)).settings["reg_max"] == 7
    for outputs in (9 * 5 * 8, 9 * 5, 9 * 4, 9 * 4 * 17):
        with pytest.raises(WeightsError, match=r"plain RetinaNet: bbox_head\.retina_reg gives one number"):
            recognise(turned(outputs, angle=False))
    for outputs in (9 * 5, 9 * 4 * 9):
        with pytest.raises(WeightsError, match=f"{outputs} outputs, which is no distribution for each of 5 edges of 9"):
            recognise(turned(outputs))


def residual(
    counts: tuple[int, ...],
    first: tuple[int, ...],
    *,
    bottleneck: bool = True,
    res2net: bool = False,
    stem: bool = False,
) -> Shapes:
    own = {key: shape for key, shape in shapes().items() if not key.startswith("backbone.")}
    for stage, count in enumerate(counts, 1):
        for block in range(count):
            name = f"backbone.layer{stage}.{block}"
            own |= {f"{name}.convs.{i}.weight": first for i in range(3)} if res2net else {f"{name}.conv2.weight": first}
            if bottleneck:
                own[f"{name}.conv3.weight"] = (256, first[0], 1, 1)
    return own | ({"backbone.stem.0.weight": (32, 3, 3, 3)} if stem else {})


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("resnet34", residual((3, 4, 6, 3), (64, 64, 3, 3), bottleneck=False)),
        ("resnet50", residual((3, 4, 6, 3), (64, 64, 3, 3))),
        ("resnet101", residual((3, 4, 23, 3), (64, 64, 3, 3))),
        ("resnet152", residual((3, 8, 36, 3), (64, 64, 3, 3))),
        ("resnext101_32x4d", residual((3, 4, 23, 3), (128, 4, 3, 3))),
        ("resnext101_64x4d", residual((3, 4, 23, 3), (256, 4, 3, 3))),
        ("res2net101d", residual((3, 4, 23, 3), (26, 26, 3, 3), res2net=True, stem=True)),
    ],
)
def test_backbones(name: str, given: Shapes) -> None:
    assert recognise(given).settings["backbone"] == name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (residual((3, 4, 6, 3), (64, 64, 3, 3), stem=True), "a deep stem and 3-4-6-3 bottleneck blocks"),
        (residual((3, 4, 23, 3), (256, 8, 3, 3)), "256 channels in 32 groups"),
        (residual((1, 1), (8, 8, 3, 3), bottleneck=False), "1-1 basic blocks"),
        (residual((3, 4, 23, 3), (26, 26, 3, 3), res2net=True), "a simple stem and 3-4-23-3 Res2Net blocks"),
        (residual((3,), (64, 64, 3, 3)) | {"backbone.layer1.0.conv2.fc1.weight": (1,)}, "looks like ResNeSt"),
        ({**residual((), (1, 1, 1, 1)), "backbone.patch_embed.projection.weight": (1,)}, "vision transformer"),
        ({**residual((), (1, 1, 1, 1)), "backbone.unheard_of": (1,)}, "no basic blocks"),
        (residual((), (1, 1, 1, 1)), "no weights of a backbone"),
    ],
)
def test_backbones_that_are_not_supported(given: Shapes, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        recognise(given)
    assert "supported are ResNet-18" in str(caught.value) or "no weights" in message


def test_deformable_stages() -> None:
    offsets = {f"backbone.layer{s}.{b}.conv2.conv_offset.weight": (18, 64, 3, 3) for s in (3, 4) for b in (0, 1)}
    assert recognise(shapes() | offsets).settings["deformable"] == (3, 4)
    modulated = dict.fromkeys(offsets, (27, 64, 3, 3))
    with pytest.raises(WeightsError, match=r"with 27 values per place \(version 2, with modulation"):
        recognise(shapes() | modulated)
    del offsets["backbone.layer4.0.conv2.conv_offset.weight"]
    with pytest.raises(WeightsError, match=r"backbone\.layer4: only blocks \[1\] of 2 have deformable"):
        recognise(shapes() | offsets)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (shapes("atss_cls", "atss_reg", outputs=4) | {"bbox_head.atss_centerness.bias": (1,)}, "plain ATSS or PAA"),
        (shapes("conv_cls", "conv_reg", outputs=4) | {"bbox_head.conv_centerness.bias": (1,)}, "plain FCOS"),
        (shapes("retina_cls", "retina_reg", outputs=36), r"plain RetinaNet: bbox_head\.retina_reg gives one number"),
        (shapes() | {"rpn_head.rpn_conv.weight": (1,)}, r"two-stage detector.*\(rpn_head\.rpn_conv\.weight\)"),
        ({"roi_head.bbox_head.fc_cls.weight": (1,)}, "two-stage detector"),
        ({"bbox_head.multi_level_cls_convs.0.0.conv.weight": (1,)}, "a YOLO"),
        ({"model.22.cv2.0.0.conv.weight": (1,)}, "a YOLO"),
        ({"bbox_head.gfl_cls.0.weight": (1,)}, "another head"),
        ({"fpn.laterals.0.weight": (1,)}, "locdistill's own names, without its settings"),
        ({"conv1.weight": (1,), "fc.weight": (1,)}, r"a classifier .*detector\.pretrained"),
        ({"something.weight": (1,)}, r"no detector that is known here \(names: something\.weight\)"),
    ],
)
def test_other_detectors(given: Shapes, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        recognise(given)
    assert "nothing to distill from" in str(caught.value)


def test_other_necks_and_incomplete_heads() -> None:
    with pytest.raises(WeightsError, match="neck looks like PAFPN"):
        recognise(shapes() | {"neck.downsample_convs.0.conv.weight": (1,)})
    with pytest.raises(WeightsError, match="an FPN with normalisation"):
        recognise(shapes() | {"neck.fpn_convs.0.bn.weight": (1,)})
    with pytest.raises(WeightsError, match=r"3 convolutions before the classes and 4 before the edges"):
        recognise({key: shape for key, shape in shapes().items() if "cls_convs.3" not in key})
    with pytest.raises(WeightsError, match=r"gfl_reg\.weight and \.bias are missing"):
        recognise({key: shape for key, shape in shapes().items() if "gfl_reg" not in key})
    with pytest.raises(WeightsError, match="66 outputs, which is no distribution for each of 4 edges"):
        recognise(shapes(outputs=66))


V2 = {"bbox_head.reg_conf.0.weight": (64, 20, 1, 1)}


@pytest.mark.parametrize(
    ("given", "meta", "classes", "spare"),
    [
        (shapes(classes=20), {}, VOC, False),
        (shapes(classes=3), {}, ("class_0", "class_1", "class_2"), False),
        (shapes(classes=2), {"CLASSES": ["a", "b"]}, ("a", "b"), False),
        (shapes(classes=1), {"CLASSES": "a"}, ("a",), False),
        (shapes(classes=2), {"dataset_meta": {"classes": ("a", "b")}}, ("a", "b"), False),
        (shapes(classes=2), {"dataset_meta": {"CLASSES": ("a", "b")}}, ("a", "b"), False),
        (shapes(classes=20), {"CLASSES": COCO}, VOC, False),
        (shapes(classes=81) | V2, {}, COCO, True),
        (shapes(classes=80) | V2, {}, COCO, False),
        (shapes(classes=21) | V2, {}, VOC, True),
        (shapes(classes=3) | V2, {"CLASSES": ("a", "b")}, ("a", "b"), True),
        (shapes(classes=2) | V2, {"CLASSES": ("a", "b")}, ("a", "b"), False),
        (shapes(classes=2) | V2, {}, ("class_0", "class_1"), False),
    ],
)
def test_classes(given: Shapes, meta: dict[str, Any], classes: tuple[str, ...], spare: bool) -> None:
    found = recognise(given, meta)
    assert (found.settings["classes"], found.settings["background_channel"]) == (classes, spare)
    said = any("without names" in note for note in found.notes)
    assert said == (not meta or len(meta.get("CLASSES", ())) == 80)


def test_classes_that_are_given() -> None:
    found = recognise(shapes(classes=3) | V2, {"CLASSES": ("x", "y", "z")}, classes=["a", "b"]).settings
    assert (found["classes"], found["background_channel"]) == (("a", "b"), True)
    with pytest.raises(WeightsError, match="2 classes are named, but it has 3 channels"):
        recognise(shapes(classes=3), classes=["a", "b"])


FCOS = residual((3, 4, 6, 3), (64, 64, 3, 3)) | {
    "bbox_head.conv_cls.bias": (80,),
    "bbox_head.conv_reg.bias": (68,),
    "bbox_head.conv_centerness.bias": (1,),
}
FCOS = {key: shape for key, shape in FCOS.items() if "gfl_" not in key}
DETECTRON = "mean=[102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0], to_rgb=False)"


@pytest.mark.parametrize(
    ("given", "meta", "style", "bgr", "mean", "std"),
    [
        (shapes(), {}, "pytorch", False, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        (FCOS, {}, "caffe", True, (103.53, 116.28, 123.675), (1, 1, 1)),
        (FCOS, {"config": f"style='caffe', {DETECTRON}"}, "caffe", True, (102.9801, 115.9465, 122.7717), (1, 1, 1)),
        (FCOS, {"config": "style='pytorch'"}, "pytorch", False, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        (
            shapes(),
            {"cfg": "target_means=[0, 0, 0, 0], p=dict(mean=[1, 2.5, 3e0,], std = (4, 5, 6), bgr_to_rgb=False"},
            *("pytorch", True, (1, 2.5, 3), (4, 5, 6)),
        ),
        (
            shapes(),
            {"input_mean": [1.0, 2.0, 3.0], "cfg": "mean=[9, 9, 9]"},
            "pytorch",
            False,
            (1, 2, 3),
            (58.395, 57.12, 57.375),
        ),
    ],
)
def test_style_and_input(given: Shapes, meta: dict[str, Any], style: str, bgr: bool, mean: Any, std: Any) -> None:
    found = recognise(given, meta).settings
    assert (found["style"], found["bgr"], found["mean"], found["std"]) == (style, bgr, mean, std)
    assert found["norm_frozen"] == (style == "caffe")


def test_a_style_that_is_given() -> None:
    found = recognise(FCOS, style="pytorch").settings
    assert (found["style"], found["bgr"], found["mean"]) == ("pytorch", False, (123.675, 116.28, 103.53))


def test_the_configuration_text_is_not_run(tmp_path: Path) -> None:
    text = f"__import__('os').system('touch {tmp_path}/ran')\nmean=[open('{tmp_path}/ran', 'w'), 1, 2]"
    assert recognise(shapes(), {"config": text}).settings["mean"] == (123.675, 116.28, 103.53)
    assert not (tmp_path / "ran").exists()


def test_names_without_a_counterpart() -> None:
    with pytest.raises(WeightsError, match=r"1 names have no counterpart .*: head\.extra"):
        to_mmdet({"head.extra": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"names are known for rotated_gfl; known: gfl, .*rotated_retinanet"):
        to_mmdet({}, "rotated_gfl")


def test_the_classes_of_public_data_sets() -> None:
    assert (len(set(COCO)), len(set(VOC)), len(set(DOTA))) == (80, 20, 18)
    assert [(names[0], names[-1]) for names in DOTA_BY_COUNT.values()] == [
        ("plane", last) for last in ("helicopter", "container-crane", "helipad")
    ]
    assert (COCO[0], COCO[11], COCO[79], VOC[14]) == ("person", "stop sign", "toothbrush", "person")
