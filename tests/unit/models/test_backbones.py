"""Backbones: which maps, which weights, what is frozen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from locdistill.errors import RecipeError, WeightsError
from locdistill.models import backbones
from locdistill.models.backbones import Freezing, build_backbone
from locdistill.models.deform import DeformConv2d
from locdistill.models.settings import DetectorSettings

# Small enough to build in no time, with a classifier, batch normalisation and the names of a ResNet.
SMALL: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]}
# With bottlenecks, the same in groups, and with splits.
BOTTLENECKS = {"backbone": "resnet50", "backbone_args": {"layers": [2, 1, 1, 2], "channels": [8, 8, 16, 24]}}
GROUPS = {
    "backbone": "resnext50_32x4d",
    "backbone_args": {"layers": [1, 1, 1, 1], "cardinality": 2, "channels": [16, 16, 32, 32], "base_width": 32},
}
SPLITS = {"backbone": "res2net50d", "backbone_args": {"layers": [2, 1, 1, 2], "channels": [24, 24, 24, 32]}}


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


# Residual networks of the reference.


def bottlenecks(**values: Any) -> DetectorSettings:
    return settings(**BOTTLENECKS, **values)


@pytest.mark.parametrize(
    ("name", "million"),
    [
        ("resnet18", 11.177),
        ("resnet34", 21.285),
        ("resnet50", 23.508),
        ("resnet101", 42.500),
        ("resnext101_32x4d", 42.129),
        ("resnext101_64x4d", 81.406),
        ("res2net101d", 43.177),
    ],
)
def test_sizes_of_the_networks(name: str, million: float) -> None:
    """Those of torchvision and MMDetection without their classifier; memory for the numbers is not needed to count."""
    with torch.device("meta"):
        net, info = build_backbone(settings(backbone=name))
    assert round(sum(parameter.numel() for parameter in net.parameters()) / 1e6, 3) == million
    assert info.channels == ((128, 256, 512) if name in {"resnet18", "resnet34"} else (512, 1024, 2048))


def test_position_of_the_stride() -> None:
    """On the 3x3 convolution of the first block of a stage, or with ``caffe`` on the 1x1 convolution before it."""
    for style, first, second in (("pytorch", (1, 1), (2, 2)), ("caffe", (2, 2), (1, 1))):
        net, _ = build_backbone(bottlenecks(style=style))
        for stage, halves in (("layer1", False), ("layer2", True), ("layer3", True), ("layer4", True)):
            block = net.get_submodule(stage)[0]
            assert block.conv1.stride == (first if halves else (1, 1))
            assert block.conv2.stride == (second if halves else (1, 1))
            assert block.downsample[0].stride == ((2, 2) if halves else (1, 1))
        assert {module.stride for module in net.layer4[1].modules() if isinstance(module, nn.Conv2d)} == {(1, 1)}
        with torch.no_grad():
            assert [tuple(map_.shape[-2:]) for map_ in net(torch.zeros(2, 3, 64, 96))] == [(8, 12), (4, 6), (2, 3)]


def test_caffe_style_sees_every_other_pixel() -> None:
    """A block whose first convolution has the stride reads only even rows and columns; else all."""
    for style, reads_all in (("pytorch", True), ("caffe", False)):
        net, _ = build_backbone(bottlenecks(style=style))
        x = torch.rand(1, 32, 8, 8, requires_grad=True)  # the width of layer1
        block = net.eval().layer2[0]
        block.bn3.weight.data.fill_(1.0)
        block.downsample = None
        inner = block.act2(block.bn2(block.conv2(block.act1(block.bn1(block.conv1(x))))))
        (gradient,) = torch.autograd.grad(inner.square().sum(), x)
        assert bool(gradient[..., 1::2, :].any()) == reads_all
        assert gradient[..., ::2, ::2].any()


@pytest.mark.parametrize("base", [{"backbone": "resnet18"}, SPLITS, {"backbone": "convnext_atto"}])
def test_caffe_style_needs_bottlenecks(base: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"style: 'caffe' .* 'pytorch', or a backbone such as resnet50"):
        build_backbone(settings(**base, style="caffe"))


@pytest.mark.parametrize(
    ("base", "child"),
    [
        ({"backbone_args": SMALL}, ("conv2",)),
        (BOTTLENECKS, ("conv2",)),
        (GROUPS, ("conv2",)),
        (SPLITS, ("convs.0", "convs.1", "convs.2")),
    ],
    ids=["basic", "bottleneck", "groups", "splits"],
)
def test_deformable_stages(base: dict[str, Any], child: tuple[str, ...]) -> None:
    """Every block of the stages that were named; nothing else changes, and at first nothing at all."""
    torch.manual_seed(0)
    plain, _ = build_backbone(settings(**base, frozen_stages=1))
    torch.manual_seed(0)
    net, _ = build_backbone(settings(**base, frozen_stages=1, deformable=(2, 4)))
    blocks = [f"layer2.{i}" for i in range(len(net.layer2))] + [f"layer4.{i}" for i in range(len(net.layer4))]
    expected = {f"{block}.{name}" for block in blocks for name in child}
    found = {name: module for name, module in net.named_modules() if isinstance(module, DeformConv2d)}
    assert found.keys() == expected
    new = {f"{name}.conv_offset.{kind}" for name in expected for kind in ("weight", "bias")}
    assert net.state_dict().keys() - plain.state_dict().keys() == new
    assert all(torch.equal(net.state_dict()[name], value) for name, value in plain.state_dict().items())
    for name, module in found.items():
        original = plain.get_submodule(name)
        assert (module.stride, module.padding) == (original.stride, original.padding)
        assert module.conv_offset.weight.shape == (18, original.in_channels, 3, 3)  # whatever the groups
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(net.eval()(images), plain.eval()(images), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_deformable_and_caffe_style() -> None:
    """The stride has left the 3x3 convolution before it became deformable."""
    net, _ = build_backbone(bottlenecks(style="caffe", deformable=(3, 3)))  # saying it twice does nothing
    assert net.layer3[0].conv1.stride == (2, 2)
    assert net.layer3[0].conv2.stride == net.layer3[0].conv2.conv_offset.stride == (1, 1)


def test_deformable_where_it_cannot_be() -> None:
    with pytest.raises(RecipeError, match=r"'convnext_atto' is no residual network .* res2net101d"):
        build_backbone(settings(backbone="convnext_atto", deformable=(3,)))
    with pytest.raises(RecipeError, match=r"levels \[3, 4\] do not use stage 4 of 'resnet18'"):
        build_backbone(small(levels=(3, 4), deformable=(3, 4)))


def test_res2net_hands_the_last_split_on() -> None:
    """Averaged over 3x3 only where the resolution is halved: not in layer1, where timm does it too."""
    net, _ = build_backbone(settings(**SPLITS, frozen_stages=1))
    pools = [type(net.get_submodule(f"layer{stage}")[0].pool) for stage in (1, 2, 3, 4)]
    assert pools == [nn.Identity, nn.AvgPool2d, nn.AvgPool2d, nn.AvgPool2d]
    assert net.layer1[1].pool is None
    timms = timm.create_model("res2net50d", features_only=True, **SPLITS["backbone_args"])
    timms.load_state_dict(net.state_dict(), strict=False)  # timm builds all stages; the names are the same
    for network, averaged in ((net, False), (timms, True)):
        block = network.eval().layer1[0]
        seen: list[Tensor] = []
        block.conv3.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        x = torch.rand(1, 64, 8, 8)
        with torch.no_grad():
            block(x)
            last = block.relu(block.bn1(block.conv1(x)))[:, -block.width :]
        expected = nn.functional.avg_pool2d(last, 3, stride=1, padding=1) if averaged else last
        torch.testing.assert_close(seen[0][:, -block.width :], expected)


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


@pytest.mark.parametrize("base", [BOTTLENECKS, GROUPS, SPLITS], ids=["bottleneck", "groups", "splits"])
def test_weights_from_a_file_for_deformable_convolutions(tmp_path: Path, base: dict[str, Any]) -> None:
    """ImageNet weights have no offsets, which stay at 0; a file that has them is read with them."""
    classifier = timm.create_model(base["backbone"], **base["backbone_args"])
    torch.save(classifier.state_dict(), tmp_path / "w.pth")
    values = settings(**base, deformable=(3, 4), pretrained=str(tmp_path / "w.pth"))
    net, _ = build_backbone(values)
    for name, value in net.state_dict().items():
        expected = classifier.state_dict().get(name)
        assert torch.equal(value, torch.zeros_like(value) if expected is None else expected)
        assert (expected is None) == (".conv_offset." in name)
    offsets = {name: torch.randn_like(value) for name, value in net.state_dict().items() if ".conv_offset." in name}
    torch.save(net.state_dict() | offsets, tmp_path / "own.pth")
    again, _ = build_backbone(values.model_copy(update={"pretrained": str(tmp_path / "own.pth")}))
    assert all(torch.equal(again.state_dict()[name], value) for name, value in offsets.items())
    plain = values.model_copy(update={"pretrained": str(tmp_path / "own.pth"), "deformable": ()})
    with pytest.raises(WeightsError, match=r"not in the model: layer3\.0\.conv.*conv_offset"):
        build_backbone(plain)


def test_weights_of_res2net_under_the_names_of_mmdetection(tmp_path: Path) -> None:
    content = timm.create_model(SPLITS["backbone"], **SPLITS["backbone_args"]).state_dict()
    theirs = {
        re.sub(r"^conv1\.", "stem.", re.sub(r"^bn1\.", "stem.7.", name)): value for name, value in content.items()
    }
    assert {"stem.0.weight", "stem.6.weight", "stem.7.running_var", "layer1.0.bn1.weight"} <= theirs.keys()
    torch.save({"state_dict": theirs}, tmp_path / "w.pth")
    net, _ = build_backbone(settings(**SPLITS, deformable=(4,), pretrained=str(tmp_path / "w.pth")))
    assert all(torch.equal(value, content[name]) for name, value in net.state_dict().items() if name in content)


def test_hub_weights_for_deformable_convolutions(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What timm loads into ordinary convolutions is what the deformable ones have; for ``caffe`` it was not trained."""
    create = timm.create_model

    def hub(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        net: nn.Module = create(name, **kwargs)
        for parameter in net.parameters() if pretrained else ():
            nn.init.constant_(parameter, 0.5)
        return net

    monkeypatch.setattr(backbones.timm, "create_model", hub)
    values = settings(**BOTTLENECKS, style="caffe", deformable=(4,)).model_copy(update={"pretrained": True})
    net, _ = build_backbone(values)
    for name, parameter in net.named_parameters():
        assert (parameter == (0.0 if ".conv_offset." in name else 0.5)).all()
    assert "give Detectron's as a file" in caplog.text
    caplog.clear()
    build_backbone(values.model_copy(update={"style": "pytorch"}))
    build_backbone(values, weights=False)
    assert "Detectron" not in caplog.text


def test_a_bias_before_normalisation(tmp_path: Path, classifier: nn.Module) -> None:
    """Detectron's first convolution has one; it moves the mean, so that the network computes the same."""
    classifier.conv1.bias = nn.Parameter(torch.randn(64))
    classifier.eval().bn1.running_mean.normal_()
    torch.save(classifier.state_dict(), tmp_path / "w.pth")
    net, _ = build_backbone(small(pretrained=str(tmp_path / "w.pth"), style="pytorch"))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net.eval().bn1(net.conv1(images)), classifier.bn1(classifier.conv1(images)))
    assert "conv1.bias" not in net.state_dict()


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
    with pytest.raises(WeightsError, match="no such weights file"):
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
    assert "'resnet18' could not be downloaded from timm's hub (no route to host)" in message
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


@pytest.mark.parametrize("norm_eval", [True, False])
def test_frozen_normalisation(norm_eval: bool) -> None:
    """Scale and shift are not trained anywhere; statistics are another matter."""
    values = small(frozen_stages=0, norm_eval=norm_eval, norm_frozen=True)
    net, _ = build_backbone(values)
    Freezing.of(net, values).apply(net.train())
    for name, module in net.named_modules():
        stem = name in {"conv1", "bn1"}
        if isinstance(module, nn.BatchNorm2d):
            assert not module.weight.requires_grad
            assert not module.bias.requires_grad
            assert module.training == (not stem and not norm_eval)
        elif isinstance(module, nn.Conv2d):
            assert module.weight.requires_grad == (not stem)


@pytest.mark.parametrize("base", [BOTTLENECKS, SPLITS], ids=["bottleneck", "splits"])
def test_frozen_stages_of_a_deformable_backbone(base: dict[str, Any]) -> None:
    """Offsets, which start at 0, belong to the part that they are in."""
    values = settings(**base, deformable=(1, 2), frozen_stages=1, norm_eval=True)
    net, _ = build_backbone(values)
    names = {name for name, _ in net.named_parameters()}
    assert frozen(net, values) == {name for name in names if name.startswith(("conv1.", "bn1.", "layer1."))}
    assert any(name.startswith("layer1.") and ".conv_offset." in name for name in names)


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


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir", "out_indices"])
def test_arguments_that_would_read_files_are_refused(key: str) -> None:
    with pytest.raises(ValidationError, match=f"properties of the architecture, not {key}"):
        DetectorSettings(backbone="resnet18", backbone_args={key: "evil.pth"})
