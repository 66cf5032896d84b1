"""Files of weights: saved and read back, found by what users write, refused with a reason."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from locdistill.errors import WeightsError
from locdistill.models import weights
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings

SETTINGS = DetectorSettings.model_validate(
    {
        "backbone": "resnet18",
        "backbone_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]},
        "pretrained": False,
        "classes": ("disc", "box"),
        "channels": 8,
        "depth": 1,
        "norm_groups": 4,
        "levels": (3, 4, 5, 6),
        "input": {"short": 64, "long": 96},
        "mean": (1.0, 2.0, 3.5),
    }
)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    built = Detector(SETTINGS)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return built.eval()


def test_what_is_saved_is_read_back(detector: Detector, tmp_path: Path) -> None:
    path = detector.save(tmp_path / "new" / "best", extra={"AP": 0.5})
    assert path == tmp_path / "new" / "best.safetensors"
    again = Detector.load(path)
    assert again.settings == detector.settings
    assert not again.training
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in detector.state_dict().items())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(again(images).edge_logits, detector(images).edge_logits)
    assert weights.read_metadata(path)["extra"] == {"AP": 0.5}
    assert [file.name for file in path.parent.iterdir()] == ["best.safetensors"]


def test_the_input_of_pretraining_is_saved_with_the_weights(detector: Detector, tmp_path: Path) -> None:
    """A later timm with other numbers for the backbone would otherwise change what the detector sees."""
    saved = weights.read_metadata(detector.save(tmp_path / "w"))["settings"]
    assert saved["mean"] == [1.0, 2.0, 3.5]
    assert saved["std"] == [58.395, 57.12, 57.375]


def test_channels_last_weights_can_be_saved(tmp_path: Path) -> None:
    built = Detector(SETTINGS).to(memory_format=torch.channels_last)
    again = Detector.load(built.save(tmp_path / "w"))
    assert torch.equal(again.state_dict()["head.cls.weight"], built.state_dict()["head.cls.weight"])


def test_nothing_is_downloaded_when_loading(tmp_path: Path) -> None:
    built = Detector(SETTINGS.model_copy(update={"pretrained": "/nowhere/backbone.pth"}), pretrained=False)
    assert Detector.load(built.save(tmp_path / "w")).settings.pretrained == "/nowhere/backbone.pth"


def test_all_that_a_user_may_write(detector: Detector, tmp_path: Path) -> None:
    run = tmp_path / "run.v1"
    detector.save(run / "best")
    detector.save(run / "last")
    assert weights.locate(run) == run / "best.safetensors"
    assert weights.locate(run / "last") == run / "last.safetensors"
    assert weights.locate(str(run / "last.safetensors")) == run / "last.safetensors"
    Detector.load(run)


def test_a_failed_write_leaves_the_old_file(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = detector.save(tmp_path / "w")
    before = path.read_bytes()

    def full(tensors: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(weights.safetensors.torch, "save_file", full)
    with pytest.raises(WeightsError, match=r"w\.safetensors cannot be written \(no space.*give another file"):
        detector.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_written(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.safetensors").mkdir()
    for name, reason in (
        ("file/w", r"file/w\.safetensors cannot be written \(.*/file: File exists\); give another file"),
        ("file/a/w", r"w\.safetensors cannot be written \(.*/file/a: Not a directory\)"),
        ("folder", r"folder\.safetensors cannot be written \(Is a directory\)"),
        ("w" * 300, r"w\.safetensors cannot be written \(File name too long\)"),
        ("..", r"\.\. cannot be written: it is a folder"),
    ):
        with pytest.raises(WeightsError, match=reason) as caught:
            detector.save(tmp_path / name)
        assert ".part" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.safetensors"]


def test_files_have_the_usual_mode(detector: Detector, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = detector.save(tmp_path / "w")
        detector.save(path)
        (tmp_path / "other").touch()
    finally:
        os.umask(before)
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_checkpoint_is_no_weights_file(detector: Detector, tmp_path: Path) -> None:
    checkpoint = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}}, checkpoint)
    with pytest.raises(WeightsError, match=r"--resume.*give .*/best instead"):
        Detector.load(checkpoint)
    detector.save(tmp_path / "last")
    with pytest.raises(WeightsError, match=r"last.ckpt: a checkpoint.*give .*/last instead"):
        Detector.load(checkpoint)
    detector.save(tmp_path / "best")
    with pytest.raises(WeightsError, match=r"give .*/best instead"):
        Detector.load(checkpoint)


def test_absent(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing: no such weights \(nor nothing.safetensors\)"):
        Detector.load(tmp_path / "nothing")
    with pytest.raises(WeightsError, match="has the run saved anything yet"):
        Detector.load(tmp_path)
    detector.save(tmp_path / "last")
    with pytest.raises(WeightsError, match=r"no best.safetensors; it has last.safetensors: give one of them"):
        Detector.load(tmp_path)
    with pytest.raises(WeightsError, match="no such weights file"):
        weights.read_metadata(tmp_path / "nothing.safetensors")


def test_truncated(detector: Detector, tmp_path: Path) -> None:
    path = detector.save(tmp_path / "w")
    content = path.read_bytes()
    for size in (0, 5, 200, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(WeightsError, match="damaged or no safetensors file"):
            Detector.load(path)


def rewrite(path: Path, change: Any, tensors: Any = lambda content: content) -> Path:
    """Write the file again with changed metadata or tensors."""
    with safetensors.safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["locdistill"])
    content = tensors(safetensors.torch.load_file(path))
    safetensors.torch.save_file(content, path, metadata={"locdistill": change(described)})
    return path


def test_not_ours(detector: Detector, tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(WeightsError, match="not a detector saved by locdistill"):
        Detector.load(tmp_path / "foreign")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "x"}'])
def test_metadata_that_make_no_sense(detector: Detector, tmp_path: Path, text: str) -> None:
    with pytest.raises(WeightsError, match="metadata cannot be read"):
        Detector.load(rewrite(detector.save(tmp_path / "w"), lambda _: text))


def test_a_later_format(detector: Detector, tmp_path: Path) -> None:
    path = rewrite(detector.save(tmp_path / "w"), lambda described: json.dumps(described | {"format": 99}))
    with pytest.raises(WeightsError, match=r"format 99; this version reads up to 1: update locdistill"):
        Detector.load(path)


def test_settings_that_are_not_valid(detector: Detector, tmp_path: Path) -> None:
    path = rewrite(detector.save(tmp_path / "w"), lambda described: json.dumps(described | {"settings": {"x": 1}}))
    with pytest.raises(
        WeightsError, match="settings saved with the weights are not valid here:\n  x: no such key"
    ) as e:
        Detector.load(path)
    assert "Update locdistill" in str(e.value)
    for change in (
        {"settings": {}},
        {"settings": None},
        {"settings": {"classes": ["a"], "backbone": "resnet18", "style": "caffe"}},
    ):
        path = rewrite(detector.save(tmp_path / "w"), lambda described, change=change: json.dumps(described | change))
        with pytest.raises(WeightsError, match=r"w\.safetensors: (the settings saved with the weights|style)"):
            Detector.load(path)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (torch.tensor([1.0, float("nan")]), "1 of 2 values are NaN or infinite"),
        (torch.tensor([1.0, 1e300], dtype=torch.float64), "1 of 2 values are NaN or infinite"),
        (torch.tensor([1, 2], dtype=torch.int8), "int8 instead of floating-point numbers"),
    ],
    ids=["nan", "too large", "int8"],
)
def test_values_of_no_use(detector: Detector, tmp_path: Path, values: torch.Tensor, reason: str) -> None:
    path = rewrite(detector.save(tmp_path / "w"), json.dumps, lambda content: content | {"head.cls.bias": values})
    with pytest.raises(WeightsError, match=rf"damaged, or from a training.*head\.cls\.bias \({reason}\)"):
        Detector.load(path)


def test_keys_that_differ(detector: Detector, tmp_path: Path) -> None:
    def swap(content: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name.replace("head.cls.", "head.klass."): value for name, value in content.items()}

    path = rewrite(detector.save(tmp_path / "w"), json.dumps, swap)
    with pytest.raises(WeightsError) as caught:
        Detector.load(path)
    assert "2 missing: head.cls.weight, head.cls.bias" in str(caught.value)
    assert "2 not in the model: head.klass." in str(caught.value)


def test_many_keys_are_summed_up() -> None:
    with pytest.raises(WeightsError, match=r"9 not in the model: 0, 1, 2, 3, \.\.\. \(5 more\)"):
        weights.load_strict(torch.nn.ReLU(), {str(index): torch.zeros(1) for index in range(9)}, "file")
