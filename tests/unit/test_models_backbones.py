"""Backbones: which maps, which weights, what is frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from locdistill.errors import RecipeError, WeightsError
from locdistill.models import backbones
from locdistill.models.backbones import Freezing, build_backbone
from locdistill.models.settings import DetectorSettings

# Small enough to build in no time, with a classifier, batch normalisation and the names of a ResNet.
SMALL: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]}


def settings(**values: Any) -> DetectorSettings:
    return DetectorSettings.model_validate({"backbone": "resnet18", "pretrained": False, "classes": ("a",)} | values)


def small(**values: Any) -> DetectorSettings:
    return settings(backbone_args=SMALL, **values)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (128, 256, 512)),
        ("tf_efficientnet_lite0", (40, 112, 320)),
        ("mobilenetv3_small_100", (24, 48, 576)),
        ("regnetx_002", (56, 152, 368)),
        ("convnext_atto", (80, 160, 320)),
    ],
)
def test_maps_are_found_by_stride(name: str, channels: tuple[int, ...]) -> None:
    net, info = build_backbone(settings(backbone=name))
    with torch.no_grad():
        maps = net.eval()(torch.zeros(1, 3, 64, 96))
    shapes = [tuple(maps[index].shape) for index in info.outputs]
    assert shapes == [(1, width, 64 // s, 96 // s) for width, s in zip(channels, (8, 16, 32), strict=True)]
    assert info.channels == channels


def test_only_the_stages_that_are_used_are_built() -> None:
    net, info = build_backbone(small(levels=(3, 4)))
    assert info.channels == (8, 16)
    assert not any(name.startswith("layer4") for name in net.state_dict())


def test_names_are_those_of_torchvision() -> None:
    net, _ = build_backbone(settings())
    names = set(net.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer4.1.bn2.bias"} <= names
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.weight"} <= names
    assert not any(name.startswith("fc") for name in names)


def test_random_weights_of_a_resnet() -> None:
    """He et al. over the fan-out, and residual blocks that start as the identity."""
    torch.manual_seed(0)
    net, _ = build_backbone(settings())
    weights = net.state_dict()
    assert weights["layer3.1.conv1.weight"].std() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert all((value == 0).all() for name, value in weights.items() if name.endswith("bn2.weight"))
    assert all((value == 1).all() for name, value in weights.items() if name.endswith("bn1.weight"))


def test_looking_does_not_disturb_the_seed() -> None:
    torch.manual_seed(5)
    net, _ = build_backbone(small())
    torch.manual_seed(5)
    plain = timm.create_model("resnet18", features_only=True, **SMALL)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("resnet18", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ("tf_efficientnet_lite0", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    ],
)
def test_input_of_pretraining(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    _, info = build_backbone(settings(backbone=name))
    assert info.mean == mean
    assert info.std == std


def test_a_small_student_with_group_normalisation() -> None:
    """Arguments for a backbone of 0.3 million parameters that trains from scratch, without batch statistics."""
    arguments = {"channels": [16, 32, 64, 96], "stem_type": "deep", "stem_width": 8, "norm_layer": "groupnorm:8"}
    net, info = build_backbone(settings(backbone="resnet10t", backbone_args=arguments))
    norms = [module for module in net.modules() if isinstance(module, nn.GroupNorm)]
    assert {module.num_groups for module in norms} == {8}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert info.channels == (32, 64, 96)
    assert sum(parameter.numel() for parameter in net.parameters()) < 0.3e6


def test_unknown_name_tells_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"no model 'resnet19'; did you mean .*resnet1"):
        build_backbone(settings(backbone="resnet19"))


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(RecipeError, match=r"cannot build 'resnet18'.*\{'depht': 3\}.*unexpected keyword.*depht"):
        build_backbone(settings(backbone_args={"depht": 3}))
    with pytest.raises(RecipeError, match="needs a number of groups, got 'groupnorm:x'"):
        build_backbone(settings(backbone_args={"norm_layer": "groupnorm:x"}))


def test_a_stride_that_is_not_there() -> None:
    """A ConvNeXt starts with stride 4."""
    with pytest.raises(RecipeError, match=r"'convnext_atto' has no map of stride 2 \(it has 4, 8, 16, 32\)"):
        build_backbone(settings(backbone="convnext_atto", frozen_stages=0))


# Weights from files.


@pytest.fixture
def classifier() -> nn.Module:
    torch.manual_seed(1)
    net: nn.Module = timm.create_model("resnet18", **SMALL)
    return net


@pytest.mark.parametrize("kind", ["plain", "nested", "parallel", "safetensors", "bare", "old"])
def test_weights_from_a_file(tmp_path: Path, classifier: nn.Module, kind: str) -> None:
    content, path = classifier.state_dict(), tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "bare":
        content = {name: value for name, value in content.items() if not name.startswith("fc.")}
    if kind == "old":
        content = {name: value for name, value in content.items() if not name.endswith("num_batches_tracked")}
    if kind == "safetensors":
        safetensors.torch.save_file(content, path)
    elif kind == "nested":
        torch.save({"epoch": 3, "state_dict": content}, path)
    elif kind == "parallel":
        torch.save({f"module.{name}": value for name, value in content.items()}, path)
    else:
        torch.save(content, path)
    net, _ = build_backbone(small(pretrained=str(path)))
    own = net.state_dict()
    assert all(torch.equal(value, classifier.state_dict()[name]) for name, value in own.items())


def test_weights_from_a_file_for_flattened_names(tmp_path: Path) -> None:
    """Where timm flattens containers, the names in the file are still those of the classifier."""
    classifier = timm.create_model("convnext_atto")
    torch.save(classifier.state_dict(), tmp_path / "w.pth")
    net, _ = build_backbone(settings(backbone="convnext_atto", pretrained=str(tmp_path / "w.pth"), frozen_stages=1))
    name = "blocks.0.conv_dw.weight"
    assert torch.equal(net.state_dict()[f"stages_1.{name}"], classifier.state_dict()[f"stages.1.{name}"])


def test_weights_are_not_read_when_they_are_at_hand() -> None:
    build_backbone(small(pretrained="/nowhere/w.pth"), weights=False)
    build_backbone(small(pretrained=True), weights=False)


def test_weights_of_another_architecture(tmp_path: Path, classifier: nn.Module) -> None:
    path, content = tmp_path / "w.pth", classifier.state_dict()
    del content["layer2.0.conv1.weight"]
    content["layer5.0.conv1.weight"] = torch.zeros(1)
    content["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save(content, path)
    with pytest.raises(WeightsError) as caught:
        build_backbone(small(pretrained=str(path)))
    message = str(caught.value)
    assert "1 missing: layer2.0.conv1.weight" in message
    assert "1 not in the model: layer5.0.conv1.weight" in message
    assert "conv1.weight (64, 3, 3, 3) instead of (64, 3, 7, 7)" in message
    assert str(path) in message


def test_a_file_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file of weights"):
        build_backbone(small(pretrained=str(tmp_path / "absent.pth")))
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(WeightsError, match=r"text\.pth"):
        build_backbone(small(pretrained=str(tmp_path / "text.pth")))
    torch.save({"x": torch.zeros(1000)}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-500])
    with pytest.raises(WeightsError, match=r"cut\.pth: damaged or no PyTorch checkpoint"):
        build_backbone(small(pretrained=str(tmp_path / "cut.pth")))
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(WeightsError, match="no safetensors file"):
        build_backbone(small(pretrained=str(tmp_path / "text.safetensors")))
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(WeightsError, match=r"expected a state dict .* got keys epoch"):
        build_backbone(small(pretrained=str(tmp_path / "none.pth")))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match=r"expected a state dict .* got a list"):
        build_backbone(small(pretrained=str(tmp_path / "list.pth")))


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def test_a_file_that_would_run_code(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload(str(tmp_path / "ran"))}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="could run code"):
        build_backbone(small(pretrained=str(tmp_path / "evil.pth")))
    assert not (tmp_path / "ran").exists()


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(*args: Any, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if pretrained:
            raise OSError("no route to host\nand a long story")
        return create(*args, **kwargs)

    monkeypatch.setattr(backbones.timm, "create_model", offline)
    with pytest.raises(WeightsError) as caught:
        build_backbone(small(pretrained=True))
    message = str(caught.value)
    assert "'resnet18' could not be had from timm's hub (no route to host)" in message
    assert "--pretrained FILE" in message
    assert "--pretrained none" in message


def test_real_weights(shared: Path) -> None:
    """The published file of EfficientNet-Lite0 is read as timm writes it: with head and classifier."""
    path = shared / "weights" / "timm_tf_efficientnet_lite0.pth"
    if not path.is_file():
        pytest.skip(f"no file {path}")
    net, _ = build_backbone(settings(backbone="tf_efficientnet_lite0", pretrained=str(path)))
    content = torch.load(path, weights_only=True)
    assert all(torch.equal(value, content[name]) for name, value in net.state_dict().items())


# The frozen part.


def frozen(net: nn.Module, values: DetectorSettings) -> set[str]:
    Freezing.of(net, values).apply(net)
    return {name for name, parameter in net.named_parameters() if not parameter.requires_grad}


def test_frozen_stages_of_a_resnet() -> None:
    beginnings = {
        -1: (),
        0: ("conv1.", "bn1."),
        1: ("conv1.", "bn1.", "layer1."),
        2: ("conv1.", "bn1.", "layer1.", "layer2."),
    }
    for stages, expected in beginnings.items():
        values = small(frozen_stages=stages)
        net, _ = build_backbone(values)
        names = {name for name, _ in net.named_parameters()}
        assert frozen(net, values) == {name for name in names if name.startswith(expected)}


def test_frozen_stages_of_another_backbone() -> None:
    """Everything that feeds the map of stride 4, whatever its modules are called."""
    values = settings(backbone="tf_efficientnet_lite0", frozen_stages=1)
    net, _ = build_backbone(values)
    modules = {".".join(name.split(".")[:2]) for name in frozen(net, values)}
    assert modules == {"conv_stem.weight", "bn1.weight", "bn1.bias", "blocks.0", "blocks.1"}


@pytest.mark.parametrize("norm_eval", [True, False])
def test_modes_of_batch_normalisation(norm_eval: bool) -> None:
    values = small(frozen_stages=1, norm_eval=norm_eval)
    net, _ = build_backbone(values)
    freezing = Freezing.of(net, values)
    assert net.training  # looking for the frozen part does not change the mode
    freezing.apply(net.train())
    norms = {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, module in norms.items():
        inside = name.startswith(("bn1", "layer1"))
        assert module.training == (not inside and not norm_eval)
        assert module.weight.requires_grad == module.bias.requires_grad == (not inside)
    assert not net.layer1.training
    assert net.layer2.training


def test_frozen_part_learns_nothing() -> None:
    values = small(frozen_stages=1, norm_eval=True)
    net, info = build_backbone(values)
    Freezing.of(net, values).apply(net.train())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    sum(net(torch.randn(2, 3, 64, 64))[index].square().sum() for index in info.outputs).backward()
    optimiser.step()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith(("conv1", "bn1", "layer1")) for name in changed)
    assert not any("running" in name for name in changed)  # statistics are kept everywhere
    assert "layer2.0.bn2.weight" in changed  # but scale and shift of the others are trained
