"""No training step waits for its device: the host neither asks for a value nor sends one.

A GPU is not needed to see that. On the ``meta`` device tensors have a shape and no values, so that whoever asks for one
fails, and what goes between it and the host is watched operation by operation. Where a GPU is, the same steps run on it
under ``torch.cuda.set_sync_debug_mode("error")``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from locdistill.distillation.bridges import AdaptedTeacher, MapClasses, Rebin, SeveralTeachers, Soften
from locdistill.distillation.imitation import GatedLevelMean, GeneralInstances
from locdistill.distillation.methods import METHODS
from locdistill.distillation.presets import supervised
from locdistill.distillation.teacher import AverageTeacher, FrozenTeacher, LiveTeacher
from locdistill.engine.meter import Meter, Ratios
from locdistill.engine.module import TrainingModule
from locdistill.engine.optim import build_optimizer, parameter_groups
from locdistill.engine.settings import EngineSettings
from locdistill.evaluation.agreement import agreement
from locdistill.geometry.bins import Bins
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.objective.objective import Objective
from locdistill.objective.schedules import Cosine
from locdistill.recipe.vocabulary import ASSIGNERS
from locdistill.types import Batch, Dense, Instances
from tests.scenes import ASSIGNER_OF, ROTATED_ASSIGNER_OF, meaning_of, turned

CLASSES = ("a", "b", "c")
MODELS = tuple(ASSIGNER_OF | ROTATED_ASSIGNER_OF)


class NoTraffic(TorchDispatchMode):
    """Refuses operations on tensors of host and device both. What asks for a value fails by itself: there is none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        # A single number of the host goes along with the call of an operation.
        devices = {x.device.type for x in tensors if x.ndim or x.device.type != "cpu"}
        assert len(devices) <= 1, f"{func} goes between {' and '.join(sorted(devices))}"
        return out


class NoNumbers(TorchFunctionMode):
    """Refuses to make tensors of Python's numbers on the device: a GPU is sent them, and is waited for."""

    SENDING = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in self.SENDING:
            assert out.device.type == "cpu", f"{func.__name__} sends numbers"
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device.type != "cpu":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(part, list | np.ndarray) for part in index), "an index of numbers is sent"
        return out


@contextmanager
def no_waits(device: str) -> Iterator[None]:
    """Within it nothing may wait for the device."""
    if device != "cuda":
        with NoTraffic(), NoNumbers():
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


devices = pytest.mark.parametrize(
    "device",
    [
        "meta",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")),
    ],
)


# ------------------------------------------------------------------------------------------------- the watch can see


WAITING: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "truth": lambda x: bool(x.any()),
    "tolist": lambda x: x.tolist(),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "mask as index": lambda x: x[x > 0],
    "one argument of where": lambda x: torch.where(x > 0),
    "unique": lambda x: x.unique(),
    "list as index": lambda x: x[:, [0, 1]],
    "list among indices": lambda x: x.__setitem__((..., [0]), 1.0),
    "numbers": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "new numbers": lambda x: x.new_tensor([1.0, 2.0]),
    "one number": lambda x: torch.tensor(1.0, device=x.device),
    "to the host": lambda x: x.cpu(),
    "from the host": lambda x: torch.zeros(3).to(x.device),
    "copy": lambda x: x.copy_(torch.zeros(2, 3)),
}
FINE: dict[str, Callable[[Tensor], object]] = {
    "numbers of an operation": lambda x: (x * 2 + 1).clamp(min=0).masked_fill(x > 0, 3.0),
    "made there": lambda x: torch.arange(3, device=x.device) + x.new_zeros(3) + x.new_full((3,), 2.0),
    "places that are there": lambda x: x[:, torch.arange(2, device=x.device)],
}


@devices
@pytest.mark.parametrize("name", WAITING)
def test_the_watch_sees_what_waits(device: str, name: str):
    x = torch.zeros(2, 3, device=device)
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError)), no_waits(device):
        WAITING[name](x)


@devices
@pytest.mark.parametrize("name", FINE)
def test_the_watch_lets_pass_what_does_not(device: str, name: str):
    x = torch.zeros(2, 3, device=device)
    with no_waits(device):
        FINE[name](x)


# ----------------------------------------------------------------------------------------------------- a whole step


def detector(model: str, *, width: int = 8, levels: tuple[int, ...] = (5, 6), **changes: Any) -> Detector:
    return Detector(
        DetectorSettings(
            model=model,
            backbone="test_resnet",
            pretrained=False,
            classes=changes.pop("classes", CLASSES),
            channels=width,
            norm_groups=2,
            depth=1,
            levels=levels,
            **changes,
        )
    )


def batch_on(device: str, *, slots: int = 3, model: str = "gfl") -> Batch:
    """Two images with boxes, a crowd among them; on the meta device there are no values, and none are needed."""
    corner = torch.rand(2, slots, 2) * 40
    boxes = torch.cat((corner, corner + 8 + torch.rand(2, slots, 2) * 40), -1)
    present = torch.arange(slots) < slots - 1
    sizes = torch.tensor([[64, 96], [96, 96]])
    batch = Batch(
        images=torch.randint(0, 255, (2, 3, 96, 96), dtype=torch.uint8),
        sizes=sizes,
        original_sizes=sizes,
        image_ids=torch.arange(2),
        instances=Instances(
            boxes, torch.randint(0, 3, (2, slots)), present.expand(2, -1), ~present.expand(2, -1), sizes
        ),
    )
    instances = turned(batch.instances, model)
    instances = Instances(*(x if x is None else x.to(device) for x in instances))
    return batch._replace(
        images=batch.images.to(device),
        sizes=sizes.to(device),
        original_sizes=sizes.to(device),
        image_ids=batch.image_ids.to(device),
        instances=instances,
    )


class Run:
    """A training run on the device, up to its step."""

    def __init__(self, objective: Objective, student: Detector, teacher: FrozenTeacher, device: str) -> None:
        settings = EngineSettings()
        self.module = TrainingModule(student, objective, teacher, settings, watch=agreement)
        self.module.to(device)
        teacher.to(torch.device(device))
        self.teacher, self.student, self.model = teacher, student, student.settings.model
        groups = parameter_groups(student, settings, 1e-3, self.module.learned)
        self.optimizer = build_optimizer(groups, settings)
        self.meter, self.ratios, self.device = Meter(), Ratios(), device

    def step(self, batch: Batch) -> None:
        """Forward passes, loss, what is logged of it, backward pass, update, and what the teacher makes of that."""
        out = self.module(batch)
        out.total.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.teacher.after_step(self.student)
        self.meter.add(out.names, out.terms, step=0, image_ids=batch.image_ids)
        self.ratios.add(out.watched)
        self.meter.any_broken()


def check(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step may make what all others use; the second must not wait."""
    if run.device == "meta":  # which has no autocast to switch off
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    batch = batch_on(run.device, model=run.model)
    run.step(batch)
    with no_waits(run.device):
        run.step(batch)


def objective_of(model: str, *methods: str, ignoring: bool = False) -> Objective:
    assigner = ASSIGNERS[(ASSIGNER_OF | ROTATED_ASSIGNER_OF)[model]]()
    terms = {name: term for method in methods for name, term in METHODS[method](model).items()}
    coding, bins = meaning_of(model)
    return Objective(
        terms=supervised(model) | terms,
        assigner=assigner.ignoring() if ignoring else assigner,
        coding=coding,
        bins=bins,
    )


@devices
@pytest.mark.parametrize("model", MODELS)
def test_no_method_waits(model: str, device: str, monkeypatch: pytest.MonkeyPatch):
    """All of them at once, of unequal widths, so that adapters are there; ignored regions are left out of training."""
    objective = objective_of(model, *METHODS, ignoring=True)
    check(Run(objective, detector(model), LiveTeacher(detector(model, width=4)), device), monkeypatch)


@devices
@pytest.mark.parametrize("model", ["gflv2", "retinanet"])
def test_plain_training_does_not_wait(model: str, device: str, monkeypatch: pytest.MonkeyPatch):
    check(Run(objective_of(model), detector(model), LiveTeacher(detector(model)), device), monkeypatch)


def rebinned(student: Detector) -> FrozenTeacher:
    other = Rebin(own=Bins(8), bins=student.bins, shift=0.5)
    return AdaptedTeacher(LiveTeacher(detector("gfl", reg_max=8)), other)


def of_other_classes(student: Detector) -> FrozenTeacher:
    return AdaptedTeacher(LiveTeacher(detector("gfl", classes=("c", "x", "a"))), MapClasses(sources=(2, None, 0)))


def with_boxes_alone(student: Detector) -> FrozenTeacher:
    def boxes(dense: Dense) -> Dense:
        return dense._replace(edge_logits=Bins().expect(dense.edge_logits)[..., None])

    return AdaptedTeacher(LiveTeacher(detector("gfl")), boxes, Soften(shift=0.5, bins=student.bins, kind="gaussian"))


def several(student: Detector) -> FrozenTeacher:
    return SeveralTeachers(
        [rebinned(student), of_other_classes(student), LiveTeacher(detector("gfl"))], (1.0, 2.0, 1.0)
    )


def enlarging(student: Detector) -> FrozenTeacher:
    return LiveTeacher(detector("gfl", levels=(3, 4, 5, 6)), levels=(4, 5, 6), scale=2)


def its_own_average(student: Detector) -> FrozenTeacher:
    return AverageTeacher(student, 0.99)


TEACHERS = (rebinned, of_other_classes, with_boxes_alone, several, its_own_average)


@devices
@pytest.mark.parametrize("teacher", TEACHERS)
def test_no_teacher_waits(teacher: Callable[[Detector], FrozenTeacher], device: str, monkeypatch: pytest.MonkeyPatch):
    student = detector("gfl")
    check(Run(objective_of("gfl", "ld", "kd", "bckd", "dist"), student, teacher(student), device), monkeypatch)


@devices
def test_a_teacher_of_some_levels_does_not_wait(device: str, monkeypatch: pytest.MonkeyPatch):
    student = detector("gfl", levels=(3, 4, 5))
    check(Run(objective_of("gfl", "ld"), student, enlarging(student), device), monkeypatch)


@devices
@pytest.mark.parametrize("per", ["image", "batch"])
def test_schedules_and_balances_do_not_wait(per: str, device: str, monkeypatch: pytest.MonkeyPatch):
    objective = objective_of("gfl", "ld")
    gi = METHODS["gi"]("gfl")["gi"]
    terms = {name: replace(term, balance=0.5, schedule=Cosine()) for name, term in METHODS["ld"]("gfl").items()}
    objective = replace(
        objective,
        terms=dict(objective.terms) | terms | {"gi": replace(gi, on=GeneralInstances(per=per), norm=GatedLevelMean())},
    )
    check(Run(objective, detector("gfl"), LiveTeacher(detector("gfl")), device), monkeypatch)
