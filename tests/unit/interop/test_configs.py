"""Configuration files of MMDetection: taken as plain data, never executed; and a file of JDet, which is refused."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from locdistill.errors import WeightsError
from locdistill.interop.configs import architecture_of, read_config, settings_of
from locdistill.interop.pickles import read_checkpoint
from locdistill.models.detector import Detector
from locdistill.models.mmdet import load_mmdet, save_mmdet
from locdistill.models.settings import DetectorSettings
from tests.conftest import Answer

BASE = """
dataset_type = 'CocoDataset'
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='Pad', size_divisor=32)])]
"""
OWN = '''
"""A teacher."""
_base_ = ['base/coco.py']
conv = 256
model = dict(
    type='GFL',
    backbone=dict(type='ResNet', depth=18, style='pytorch', norm_cfg=dict(type='BN', requires_grad=False)),
    neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=conv),
    bbox_head=dict(type='GFLHead', num_classes=2, in_channels=256, feat_channels=32, stacked_convs=1, reg_max=16),
    test_cfg=dict(nms_pre=500, score_thr=0.1, nms=dict(type='nms', iou_threshold=0.5), max_per_img=200))
classes = ('disc', 'box')
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
optimizer = dict(lr=0.01 / 4, weight_decay=-1e-4)
'''


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "coco.py").write_text(BASE)
    (tmp_path / "gfl.py").write_text(OWN)
    return tmp_path / "gfl.py"


def test_a_configuration_is_read_over_its_base(config: Path) -> None:
    found = read_config(config)
    assert found["dataset_type"] == "CocoDataset"
    assert found["model"]["neck"]["out_channels"] == 256
    assert found["optimizer"] == {"lr": 0.0025, "weight_decay": -1e-4}
    assert settings_of(found) == {
        "style": "pytorch",
        "norm_frozen": True,
        "mean": (103.53, 116.28, 123.675),
        "std": (1.0, 1.0, 1.0),
        "bgr": True,
        "classes": ("disc", "box"),
        "detections": {
            "score_threshold": 0.1,
            "candidates": 500,
            "max_detections": 200,
            "nms_iou": 0.5,
            "nms": "plain",
        },
        "input": {"short": 800, "long": 1333, "pad_to": 32},
    }
    assert architecture_of(found) == {
        "backbone": "resnet18",
        "deformable": (),
        "reg_max": 16,
        "channels": 32,
        "depth": 1,
        "number of classes": 2,
    }


def test_a_configuration_of_version_3(tmp_path: Path) -> None:
    text = """
model = dict(
    data_preprocessor=dict(mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb=True, pad_size_divisor=64),
    backbone=dict(type='ResNeXt', depth=101, groups=64, base_width=4, dcn=dict(type='DCN'),
                  stage_with_dcn=(False, False, True, True)),
    test_cfg=dict(nms=dict(type='voting_cluster_diounms')))
train_dataloader = dict(dataset=dict(metainfo=dict(classes=('a', 'b'))))
test_dataloader = dict(dataset=dict(pipeline=[dict(type='Resize', scale=(640, 512))]))
"""
    (tmp_path / "v3.py").write_text(text)
    found = read_config(tmp_path / "v3.py")
    assert settings_of(found) == {
        "mean": (1.0, 2.0, 3.0),
        "std": (4.0, 5.0, 6.0),
        "bgr": False,
        "classes": ("a", "b"),
        "detections": {"nms": "voting_cluster_diou"},
        "input": {"short": 512, "long": 640, "pad_to": 64},
    }
    assert architecture_of(found) == {"backbone": "resnext101_64x4d", "deformable": (3, 4)}


def test_a_part_that_is_deleted_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = dict(a=1, b=dict(c=2))\n")
    (tmp_path / "b.py").write_text("_base_ = './a.py'\nx = dict(b=dict(_delete_=True, d=3))\n")
    assert read_config(tmp_path / "b.py") == {"x": {"a": 1, "b": {"d": 3}}}


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "x = open('harm', 'w')",
        "x = __import__('os').system('touch harm')",
        "x = [i for i in range(3)]",
        "x = dict(**y)",
        "x = {**y}",
        "x, y = 1, 2",
        "x.y = 1",
        "for i in range(3):\n    pass",
        "x = 'a' * 1000000000",
        "x = 2 ** 1000000000",
        "x = 1 / 0",
        "x = 10000000000 * 10",
        "x = unknown",
        "x = f'{1}'",
        "open('harm', 'w')",
        "with read_base():\n    from .a import *",
    ],
)
def test_what_would_have_to_be_executed_is_refused(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "config.py"
    file.write_text(f"y = dict(a=1)\n{line}\n")
    with pytest.raises(WeightsError, match=r"line 2 is not plain data \(.+never executed here.*KEY=VALUE"):
        read_config(file)
    assert list(tmp_path.iterdir()) == [file]


def test_bases_that_are_not_there_or_lead_back(tmp_path: Path) -> None:
    file = tmp_path / "config.py"
    file.write_text("_base_ = ['../_base_/datasets/coco_detection.py']\n")
    with pytest.raises(
        WeightsError, match=r"coco_detection.py: cannot be read.*'_base_' of .*config.py: copy that file"
    ):
        read_config(file)
    file.write_text("_base_ = 'config.py'\n")
    with pytest.raises(WeightsError, match="leads back to itself"):
        read_config(file)
    file.write_text("x = (\n")
    with pytest.raises(WeightsError, match="no Python file"):
        read_config(file)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_config(tmp_path / "none.py")


def test_another_suppression_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("test_cfg = dict(nms=dict(type='soft_nms'))\n")
    with pytest.raises(WeightsError, match="soft_nms; offered are nms"):
        settings_of(read_config(tmp_path / "a.py"))


@pytest.fixture
def weights(tmp_path: Path, zero_weights: None) -> Path:
    plain = {"backbone": "resnet18", "channels": 32, "depth": 1, "pretrained": False, "classes": ("disc", "box")}
    return save_mmdet(Detector(DetectorSettings.model_validate(plain)), tmp_path / "gfl.pth")


def test_a_configuration_completes_the_weights(
    config: Path, weights: Path, tmp_path: Path, cli: Callable[..., Answer]
) -> None:
    code, _, err = cli("convert", weights, tmp_path / "out", f"config={config}")
    assert code == 0, err
    settings = Detector.load(tmp_path / "out").settings
    assert (settings.norm_frozen, settings.bgr, settings.mean) == (True, True, (103.53, 116.28, 123.675))
    assert (settings.detections.max_detections, settings.detections.nms_iou) == (200, 0.5)
    assert (settings.input.short, settings.input.long) == (800, 1333)
    own = load_mmdet(weights, settings={"config": config, "bgr": False}).settings
    assert (own.norm_frozen, own.bgr) == (True, False)


def test_a_configuration_of_another_detector_is_refused(config: Path, weights: Path) -> None:
    config.write_text(OWN.replace("depth=18", "depth=50").replace("reg_max=16", "reg_max=12"))
    with pytest.raises(WeightsError, match=r"backbone resnet50, but the weights have resnet18; reg_max 12, but.* 16"):
        load_mmdet(weights, settings={"config": config})


def test_a_file_of_jdet_is_refused_with_the_reason(tmp_path: Path) -> None:
    content = pickle.dumps({"meta": {"jdet_version": "0.2"}, "model": {}}, 4)
    file = tmp_path / "ckpt_12.pkl"
    file.write_bytes(content + hashlib.sha1(content).digest() + b"HCAJSLHD")
    with pytest.raises(
        WeightsError, match=r"a file of Jittor.*anchors.*locdistill train rotated_retinanet_jdet_r50_1x"
    ):
        read_checkpoint(file)
