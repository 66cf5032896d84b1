"""Teachers: frozen ones, and the running average of the student."""

from __future__ import annotations

import pytest
import torch

from locdistill.distillation.teacher import AverageTeacher, LiveTeacher
from locdistill.engine.module import Teacher
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.types import Batch, Instances


def detector(seed: int) -> Detector:
    torch.manual_seed(seed)
    settings = DetectorSettings(
        backbone="test_resnet",
        pretrained=False,
        classes=("a", "b"),
        channels=16,
        depth=1,
        norm_groups=4,
        levels=(3, 4, 5),
    )
    return Detector(settings)


@pytest.fixture
def batch() -> Batch:
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[64, 96], [50, 80]])
    nothing = torch.zeros(2, 0)
    truth = Instances(torch.zeros(2, 0, 4), nothing.long(), nothing.bool(), nothing.bool(), sizes)
    return Batch(images=images, sizes=sizes, original_sizes=sizes, image_ids=torch.tensor([1, 2]), instances=truth)


def moved(student: Detector) -> Detector:
    """The student after something that changed its weights and its statistics."""
    with torch.no_grad():
        for value in student.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=torch.Generator().manual_seed(3)) / 20)
    return student


def test_a_frozen_teacher_learns_nothing_and_has_nothing_to_save(batch: Batch) -> None:
    teacher = LiveTeacher(detector(0))
    assert isinstance(teacher, Teacher)
    before = teacher(batch).edge_logits
    teacher.after_step(moved(detector(1)))
    assert torch.equal(teacher(batch).edge_logits, before)
    assert teacher.state_dict() == {}
    assert not before.requires_grad


@pytest.mark.parametrize("kind", [LiveTeacher, lambda d: AverageTeacher(d, 0.9)])
def test_maps_are_handed_out_when_asked_for(kind: object, batch: Batch) -> None:
    teacher = kind(detector(0))  # type: ignore[operator]
    assert teacher(batch).features == ()
    maps = teacher(batch, features=True).features
    assert [tuple(m.shape) for m in maps] == [(2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3)]
    assert not any(m.requires_grad for m in maps)


def test_an_average_is_the_student_at_first_and_follows_it(batch: Batch) -> None:
    student = detector(0)
    teacher = AverageTeacher(student, decay=0.15)
    assert isinstance(teacher, Teacher)
    assert student.training
    with torch.no_grad():
        own = student.eval()(student.normalise(batch.images, batch.sizes))
    torch.testing.assert_close(teacher(batch).edge_logits, own.edge_logits)
    first = {name: value.clone() for name, value in student.state_dict().items()}
    moved(student.train())
    second = student.state_dict()
    teacher.after_step(student)  # decay 1/10
    teacher.after_step(student)  # decay 0.15 rather than 2/11
    average = teacher.detector.state_dict()
    share = 0.15 * 0.1
    for name in ("fpn.laterals.0.weight", "backbone.conv1.1.running_mean"):
        torch.testing.assert_close(average[name], share * first[name] + (1 - share) * second[name])
    assert not teacher.detector.training
    assert not any(parameter.requires_grad for parameter in teacher.detector.parameters())
    assert any(parameter.requires_grad for parameter in student.parameters())


def test_an_average_goes_on_where_it_was(batch: Batch) -> None:
    student = moved(detector(0))
    teacher, again = AverageTeacher(detector(0), 0.9), AverageTeacher(detector(5), 0.9)
    teacher.after_step(student)
    again.load_state_dict(teacher.state_dict())
    for one in (teacher, again):
        one.after_step(student)
    assert teacher.average.updates == again.average.updates == 2
    assert torch.isfinite(teacher(batch).edge_logits).all()
    assert torch.equal(teacher(batch).edge_logits, again(batch).edge_logits)
    assert not torch.equal(teacher(batch).edge_logits, LiveTeacher(detector(0))(batch).edge_logits)
