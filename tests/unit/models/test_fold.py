"""A detector that is only looked through: folded, in half precision, and never wrong."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from locdistill.distillation.bridges import AdaptedTeacher, SeveralTeachers
from locdistill.distillation.teacher import AverageTeacher, LiveTeacher
from locdistill.models import fold
from locdistill.models.detector import Detector
from locdistill.models.fold import CannotFoldError, SpeedUps, folded
from locdistill.models.settings import DetectorSettings, NormalisationSettings
from locdistill.types import Batch, Dense, Instances

FOLDED = SpeedUps(fold=True)


def trained(net: nn.Module) -> nn.Module:
    """A network whose normalisation does something, as after training."""
    generator = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            for value, low, high in (
                (module.weight, 0.6, 1.0),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                value.data.uniform_(low, high, generator=generator)
    return net.eval().requires_grad_(False)


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in net.modules())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_lite0"])
def test_all_normalisation_of_a_network_is_folded(name: str) -> None:
    torch.manual_seed(0)
    net = trained(timm.create_model(name, pretrained=False, features_only=True))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    quick = folded(net)
    assert norms(net) > 10
    assert norms(quick) == 0
    images = torch.randn(2, 3, 96, 64)
    for ours, theirs in zip(quick(images), net(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class Branching(nn.Module):
    """Decides by its values, which no graph can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.norm(self.conv(x))
        return [x if x.mean() > 0 else -x]


class Shared(nn.Module):
    """What must not be folded: convolutions that are used twice, or whose output is, beside one that may be."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.twice, self.twice_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.seen, self.seen_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.norm(self.first(x))
        x = self.twice(self.twice_norm(self.twice(x)))
        y = self.seen(x)
        return [self.seen_norm(y) + y]


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(CannotFoldError, match="cannot be traced"):
        folded(trained(Branching()))


def test_only_what_nobody_else_sees_is_folded() -> None:
    net = trained(Shared())
    quick = folded(net)
    assert norms(quick) == 2
    assert isinstance(quick.norm, nn.Identity)
    images = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(quick(images), net(images))


def test_a_fold_that_changes_what_is_said_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(conv: nn.Conv2d, _norm: nn.Module) -> nn.Conv2d:
        return copy.deepcopy(conv)

    monkeypatch.setattr(fold, "fuse_conv_bn_eval", wrong)
    with pytest.raises(CannotFoldError, match="would change"):
        folded(trained(Shared()))


def detector(seed: int = 0, backbone: str = "resnet18") -> Detector:
    torch.manual_seed(seed)
    settings = DetectorSettings(
        backbone=backbone,
        pretrained=False,
        classes=("a", "b"),
        channels=16,
        depth=2,
        norm_groups=4,
        levels=(3, 4, 5),
    )
    made = Detector(settings)
    trained(made.backbone)
    return made


def batch_of(height: int = 64, width: int = 96) -> Batch:
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[height, width], [height - 10, width]])
    nothing = torch.zeros(2, 0)
    truth = Instances(torch.zeros(2, 0, 4), nothing.long(), nothing.bool(), nothing.bool(), sizes)
    return Batch(images=images, sizes=sizes, original_sizes=sizes, image_ids=torch.tensor([1, 2]), instances=truth)


def assert_close(ours: Dense, theirs: Dense, tolerance: float) -> None:
    for a, b in zip(
        (ours.cls_logits, ours.edge_logits, *ours.features, *ours.towers),
        (theirs.cls_logits, theirs.edge_logits, *theirs.features, *theirs.towers),
        strict=True,
    ):
        assert (a.float() - b.float()).norm() <= tolerance * b.float().norm()


MAPS = {"features": True, "towers": True}


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_optimised_teacher_says_the_same(channels_last: bool) -> None:
    slow = LiveTeacher(detector(), levels=(3, 4))
    teacher = LiveTeacher(detector(), levels=(3, 4))
    teacher.optimise(SpeedUps(fold=True, channels_last=channels_last))
    for batch in (batch_of(), batch_of(96, 32)):
        assert_close(teacher(batch, **MAPS), slow(batch, **MAPS), 1e-4)
    assert teacher.state_dict() == {}
    shown, expected = teacher.detector.state_dict(), slow.detector.state_dict()
    assert all(torch.equal(shown[name], value) for name, value in expected.items())


def test_half_precision_is_that_of_autocast_and_does_not_depend_on_the_caller() -> None:
    slow, teacher, batch = LiveTeacher(detector()), LiveTeacher(detector()), batch_of()
    teacher.optimise(SpeedUps(fold=False, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        expected = slow(batch, **MAPS)
        assert_close(teacher(batch, **MAPS), expected, 0.02)
    teacher.optimise(SpeedUps(fold=True, dtype=torch.bfloat16))
    said = teacher(batch, **MAPS)
    assert said.features[0].dtype == torch.bfloat16
    assert_close(said, expected, 0.05)


def test_weights_in_half_precision_are_what_autocast_makes_of_them() -> None:
    own, batch = detector(), batch_of()
    halved = fold._halved(own, torch.bfloat16)
    assert halved.fpn.laterals[0].weight.dtype == torch.bfloat16
    assert halved.head.cls_tower[0].norm.weight.dtype == torch.float32
    images = own.normalise(batch.images, batch.sizes)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(halved(images).edge_logits, own.eval()(images).edge_logits)


def test_what_cannot_be_folded_teaches_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    slow, teacher, batch = LiveTeacher(detector()), LiveTeacher(detector()), batch_of()

    class Deciding(type(teacher.detector.backbone)):  # type: ignore[misc]
        def forward(self, images: Tensor) -> Any:
            return super().forward(images) if float(images.mean()) < 1e9 else []

    teacher.detector.backbone.__class__ = Deciding
    with caplog.at_level(logging.INFO, "locdistill"):
        teacher.optimise(FOLDED)
    assert "not folded (it cannot be traced" in caplog.text
    assert torch.equal(teacher(batch).edge_logits, slow(batch).edge_logits)


def test_images_are_normalised_as_said_later() -> None:
    slow, teacher, batch = LiveTeacher(detector()), LiveTeacher(detector()), batch_of()
    teacher.optimise(FOLDED)
    how = NormalisationSettings(mean=(10.0, 20.0, 30.0), std=(50.0, 60.0, 70.0), bgr=True)
    before = teacher(batch)
    for each in (slow, teacher):
        each.normalise_as(how)
    assert_close(teacher(batch), slow(batch), 1e-4)
    assert not torch.allclose(before.edge_logits, teacher(batch).edge_logits)


def test_gradient_flows_through_the_head_of_a_optimised_teacher() -> None:
    gradients = []
    for how in (SpeedUps(), FOLDED, SpeedUps(fold=True, dtype=torch.bfloat16)):
        student, teacher, batch = detector(1), LiveTeacher(detector()), batch_of()
        teacher.optimise(how)
        mine = student(student.normalise(batch.images, batch.sizes), towers=True)
        with torch.no_grad():
            its = teacher(batch, towers=True)
        crossed = teacher.cross(mine, its._replace(towers=tuple(m.float() for m in its.towers)))
        gradients.append(torch.autograd.grad(crossed.edge_logits.square().sum(), student.fpn.laterals[0].weight)[0])
        assert all(p.grad is None for p in teacher.detector.parameters())
    assert gradients[0].norm() > 0
    assert (gradients[1] - gradients[0]).norm() < 1e-3 * gradients[0].norm()
    assert (gradients[2] - gradients[0]).norm() < 0.1 * gradients[0].norm()


def test_a_teacher_that_follows_its_student_still_does() -> None:
    student, batch = detector(), batch_of()
    teacher = AverageTeacher(student, 0.5)
    teacher.optimise(SpeedUps(fold=True, dtype=torch.bfloat16, channels_last=True))
    before = teacher(batch)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.8)
    for _ in range(60):
        teacher.after_step(student)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = student.eval()(student.normalise(batch.images, batch.sizes))
    assert_close(teacher(batch), expected, 0.02)
    assert (before.edge_logits - expected.edge_logits).norm() > 0.1 * expected.edge_logits.norm()
    assert teacher.state_dict()["model"]["fpn.laterals.0.weight"].dtype == torch.float32


def test_teachers_behind_others_are_optimised_too() -> None:
    inner = [LiveTeacher(detector(seed)) for seed in range(2)]
    both = SeveralTeachers([AdaptedTeacher(each) for each in inner])
    slow = SeveralTeachers([LiveTeacher(detector(seed)) for seed in range(2)])
    seen: list[str] = []
    both.optimise(SpeedUps(fold=True, wrap=lambda function, name: (seen.append(name), function)[1]))
    assert seen == ["the teacher"] * 2
    batch = batch_of()
    assert_close(both(batch), slow(batch), 1e-4)


def test_one_that_is_moved_is_as_it_was() -> None:
    teacher, batch = LiveTeacher(detector()), batch_of()
    before = teacher(batch)
    teacher.optimise(SpeedUps(fold=True, dtype=torch.bfloat16))
    teacher.to(torch.device("cpu"))
    assert torch.equal(teacher(batch).edge_logits, before.edge_logits)
