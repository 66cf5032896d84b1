"""What terms own, how their weights follow the run, and how they are balanced."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.utils._python_dispatch import TorchDispatchMode

from locdistill.distillation.imitation import Everywhere, FeatureL2
from locdistill.distillation.logits import EdgeKL
from locdistill.distillation.mgd import MaskedGeneration
from locdistill.engine.log import read_metrics
from locdistill.engine.loop import fit
from locdistill.engine.module import TrainingModule
from locdistill.engine.optim import parameter_groups
from locdistill.engine.settings import EngineSettings
from locdistill.errors import RecipeError, TeacherError
from locdistill.geometry.bins import Bins
from locdistill.objective.balance import Balance
from locdistill.objective.learned import Learned, TrainingProgress
from locdistill.objective.normalisers import ImageLevelMean, ImageWeightSum, PerImage
from locdistill.objective.objective import Objective
from locdistill.objective.schedules import Cosine, Linear
from locdistill.objective.supervised import DistributionFocal
from locdistill.objective.term import Term
from locdistill.recipe.terms import TermSettings
from locdistill.types import Dense
from tests.unit.engine.fakes import FakeDetector, FakeTeacher, Loaders


class Mapped(FakeDetector):
    """Hands out a map of its grid's size, of which the first ``width`` channels."""

    width = 6

    def forward(self, images: Tensor, *, features: bool = False, towers: bool = False) -> Dense:
        dense = super().forward(images, features=True, towers=towers)
        return dense._replace(features=(avg_pool2d(dense.features[0], 2)[:, : self.width],) if features else ())


class MappedTeacher(FakeTeacher):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.detector = Mapped(seed=7).eval().requires_grad_(False)
        self.detector.width = width


def supervised() -> Term:
    return Term(of=DistributionFocal(), on=Everywhere(), norm=ImageLevelMean())


IMITATION = Term(of=FeatureL2(), on=Everywhere(), norm=ImageLevelMean())
GENERATION = Term(of=MaskedGeneration(), on=Everywhere(), norm=ImageLevelMean())
EDGES = Term(of=EdgeKL(temperature=1.0), on=Everywhere(), norm=ImageLevelMean())


def objective_of(**terms: Term) -> Objective:
    return Objective(terms={"dfl": supervised()} | terms, bins=Bins(2))


def settings_of(**changes: Any) -> EngineSettings:
    values = {"epochs": 3, "lr": 0.2, "log_every": 1, "accelerator": "cpu", "progress": False, "warmup_steps": 0}
    return EngineSettings(**(values | {"precision": "32"} | changes))


def module_of(objective: Any, settings: EngineSettings | None = None, width: int = 4) -> TrainingModule:
    return TrainingModule(Mapped(), objective, MappedTeacher(width), settings or settings_of())


# ------------------------------------------------------------------------------------------------------- learned parts


def test_what_terms_learn_is_trained_and_kept_but_not_published(tmp_path: Path):
    module = module_of(objective_of(im=IMITATION, mgd=GENERATION), settings_of(ema=0.5))
    detector = set(module.detector.state_dict())
    own = {name: value.clone() for name, value in module.state_dict().items() if name.startswith("learned.")}
    assert {name.split(".")[2] for name in own} == {"of_im", "of_mgd"}
    result = fit(module, make_train_loader=Loaders(), out=tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == {f"detector.{name}" for name in detector} | set(own)
    assert all(not torch.equal(saved["state_dict"][name], value) for name, value in own.items())
    assert set(load_file(result.last)) == detector
    count = sum(p.requires_grad for p in module.parameters())
    assert sum(len(g["params"]) for g in saved["optimizer"]["param_groups"]) == count
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert {"train/im", "train/mgd"} <= set(rows[0])
    assert rows[-1]["train/im"] < rows[0]["train/im"]


def test_terms_of_equal_width_own_nothing():
    module = module_of(objective_of(im=IMITATION), width=6)
    assert all(name.startswith("detector.") for name in module.state_dict())


def test_the_seed_draws_what_terms_learn_and_nothing_else_is_disturbed():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    detector = Mapped().train()
    modules = []
    for seed in (1, 1, 2):
        torch.set_rng_state(before)
        objective = objective_of(im=IMITATION)
        modules.append(TrainingModule(detector, objective, MappedTeacher(), settings_of(seed=seed)))
        assert detector.training
    first, again, other = (m.learned.of("im")[0].weight for m in modules)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    statistics = detector.norm.running_mean
    assert torch.equal(statistics, torch.zeros_like(statistics))  # the example image left no trace


def test_what_terms_learn_has_the_rate_of_the_head():
    module = module_of(objective_of(im=IMITATION))
    settings = settings_of(norm_bias_decay=False, backbone_lr_factor=0.1, bias_lr_factor=2.0)
    groups = parameter_groups(module.detector, settings, 1.0, module.learned)
    weight, bias = module.learned.of("im")[0].weight, module.learned.of("im")[0].bias
    place = {id(p): (g["name"], g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert place[id(weight)] == ("rest", 1.0, settings.weight_decay)
    assert place[id(bias)] == ("rest_bias_no_decay", 2.0, 0.0)


class Stops(Objective):
    """An objective that fails when it is called for the n-th time."""

    __setattr__ = object.__setattr__

    def __init__(self, objective: Objective, at: int | None) -> None:
        super().__init__(terms=objective.terms, bins=objective.bins)
        self.at, self.calls = at, 0

    def losses(self, scene: Any) -> dict[str, Tensor]:
        if self.calls == self.at:
            raise OSError("power cut")
        self.calls += 1
        return super().losses(scene)


def test_a_resumed_run_goes_on_to_the_bit(tmp_path: Path):
    """Adapters, generators with their holes, schedules and balances."""
    objective = objective_of(
        im=IMITATION,
        mgd=replace(GENERATION, schedule=Linear(first=1.0, last=0.0, start=0.2, end=0.9)),
        ld=replace(EDGES, balance=2.0, schedule=Cosine(first=1.0, last=0.1)),
    )
    settings = settings_of(checkpoint_every_steps=1, accumulate=2)
    whole = module_of(Stops(objective, None), settings)
    fit(whole, make_train_loader=Loaders(), out=tmp_path / "whole")
    with pytest.raises(OSError, match="power cut"):
        fit(module_of(Stops(objective, 7), settings), make_train_loader=Loaders(), out=tmp_path / "cut")
    saved = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)
    assert saved["run"]["state"]["step"] == 3
    torch.manual_seed(99)
    resumed = module_of(Stops(objective, None), settings)
    fit(resumed, make_train_loader=Loaders(), out=tmp_path / "cut", resume=True)
    theirs = resumed.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(theirs[name], value), name
    keys = [f"train/{name}" for name in ("dfl", "im", "mgd", "ld")]
    told = [[[row[k] for k in keys] for row in read_metrics(tmp_path / n / "metrics.csv")] for n in ("whole", "cut")]
    assert told[0] == told[1]
    assert len(told[0]) == 6
    assert float(whole.learned.balance.share) == pytest.approx(1 - 0.98**12)


def test_without_a_teacher_nothing_can_be_learned():
    with pytest.raises(TeacherError, match="im compare with a teacher"):
        objective_of(im=IMITATION).learned(lambda: (Dense(torch.zeros(1, 1, 1), torch.zeros(1, 1, 4, 3)), None))


def test_an_example_is_asked_for_only_if_shapes_matter():
    def example() -> Any:
        raise AssertionError("a balance needs no shapes")

    objective = objective_of(ld=replace(EDGES, balance=1.0))
    assert objective.learns
    assert objective.learned(example).balance is not None
    assert not objective_of(ld=EDGES).learns


# ----------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (Linear(), {0: 1, 0.25: 0.75, 1: 0}),
        (Linear(first=0.2, last=1.0, start=0.5, end=0.75), {0: 0.2, 0.5: 0.2, 0.625: 0.6, 0.75: 1, 1: 1}),
        (Linear(start=0.5, end=0.5), {0.49: 1, 0.5: 0, 0.51: 0}),
        (Cosine(), {0: 1, 0.5: 0.5, 1: 0, 1 / 3: 0.75}),
        (Cosine(last=0.01), {0: 1, 1: 0.01, 0.25: 0.01 + 0.99 * (1 + math.sqrt(0.5)) / 2}),
    ],
)
def test_schedules(schedule: Any, wanted: dict[float, float]):
    for progress, factor in wanted.items():
        assert schedule(progress) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("span", [{"start": -0.1}, {"end": 1.5}, {"start": 0.8, "end": 0.5}])
def test_a_span_lies_in_the_run(span: dict[str, float]):
    with pytest.raises(ValueError, match="shares of the run"):
        Cosine(**span)


def test_weights_follow_the_run(tmp_path: Path):
    """Nothing learns (a rate of 1e-30), so that only the schedule moves the term: steps 0 to 5 of 6."""
    logged = {}
    for name, schedule in (("steady", None), ("fades", Linear()), ("comes", Linear(first=0.0, last=1.0, end=0.5))):
        settings = settings_of(lr=1e-30, steps=6, momentum=0.0, weight_decay=0.0, norm_bias_decay=False)
        objective = objective_of(ld=replace(EDGES, schedule=schedule))
        module = TrainingModule(FakeDetector(dropout=0.0, norm_eval=True).eval(), objective, FakeTeacher(), settings)
        fit(module, make_train_loader=Loaders(count=4, shuffle=False), out=tmp_path / name)
        logged[name] = [row["train/ld"] for row in read_metrics(tmp_path / name / "metrics.csv")]
    steady = logged["steady"]
    assert logged["fades"] == pytest.approx([s * (1 - k / 6) for k, s in enumerate(steady)], rel=1e-4)
    assert logged["comes"] == pytest.approx([s * min(1, k / 3) for k, s in enumerate(steady)], rel=1e-4)


def test_schedule_and_balance_in_a_recipe():
    term = TermSettings.model_validate(
        {"of": "edge_kl", "on": "positives", "schedule": {"linear": {"last": 0.2, "end": 0.5}}, "balance": 0.5}
    )
    assert term.build().schedule == Linear(first=1.0, last=0.2, start=0.0, end=0.5)
    assert term.build().balance == 0.5
    assert TermSettings.of_term(term.build()) == term
    assert TermSettings.model_validate(term.model_dump()) == term
    assert TermSettings(of="edge_kl", on="positives", schedule="cosine").build().schedule == Cosine()
    for plain in (None, "constant"):
        assert TermSettings(of="edge_kl", on="positives", schedule=plain).build().schedule is None
    with pytest.raises(ValueError, match="no schedule is called 'cosin'"):
        TermSettings(of="edge_kl", on="positives", schedule="cosin")
    with pytest.raises(ValueError, match="shares of the run"):
        TermSettings(of="edge_kl", on="positives", schedule={"linear": {"start": 2}})
    with pytest.raises(ValueError, match="greater than 0"):
        TermSettings(of="edge_kl", on="positives", balance=0)


# ------------------------------------------------------------------------------------------------------------- balance


def two_losses() -> tuple[Dense, Tensor, Tensor]:
    """Supervised gradient (3, 4) on the classes and 1 on an edge; that of the term 0.1 on this edge."""
    dense = Dense(torch.zeros(1, 1, 2, requires_grad=True), torch.zeros(1, 1, 4, 3, requires_grad=True))
    supervised = (dense.cls_logits * torch.tensor([3.0, 4.0])).sum() + dense.edge_logits[0, 0, 0, 0]
    return dense, supervised, 0.1 * dense.edge_logits[0, 0, 0, 0] + 7


def test_a_balanced_term_has_its_share_of_the_gradient_where_it_acts():
    dense, supervised, term = two_losses()
    balance = Balance({"ld": 0.5})
    got = balance({"ld": term}, supervised, dense)["ld"]
    assert float(got.detach()) == pytest.approx(7 * 5)
    (gradient,) = torch.autograd.grad(got, dense.edge_logits)
    assert float(gradient.norm()) == pytest.approx(0.5)


def test_a_term_on_maps_is_measured_on_the_maps():
    level = torch.zeros(1, 1, 1, 2, requires_grad=True)
    dense = Dense(level.flatten()[None, None], torch.zeros(1, 1, 4, 3), features=(level,))
    supervised, term = 3 * dense.cls_logits.sum(), level.sum() / 6
    balance = Balance({"im": 1.0})
    assert float(balance({"im": term + 1}, supervised, dense, ["im"])["im"].detach()) == pytest.approx(18)


def test_balances_are_smoothed_from_the_first_step_on():
    dense, supervised, term = two_losses()
    balance = Balance({"ld": 1.0})
    balance({"ld": term}, supervised, dense)
    assert float(balance.factors()) == pytest.approx(10)
    balance({"ld": 3 * term}, supervised, dense)
    # Means of 0.01 and 0.09, weighted 0.98 and 1.
    assert float(balance.factors()) == pytest.approx(((0.98 * 0.01 + 0.09) / 1.98) ** -0.5, rel=1e-5)
    with torch.no_grad():  # nothing to measure: as it was
        balance({"ld": 100 * term}, supervised, dense)
    assert float(balance.factors()) == pytest.approx(((0.98 * 0.01 + 0.09) / 1.98) ** -0.5, rel=1e-5)


class FromData(TorchDispatchMode):
    """Counts tensors made of Python's numbers, each of which a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.lift_fresh.default
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_a_device() -> None:
    module = module_of(objective_of(), width=6)
    batch = next(iter(Loaders()(0, 1)))
    grid = module.detector.grid_for((16, 16))
    dense = module.detector(module.detector.normalise(batch.images, batch.sizes), features=True)
    teacher = MappedTeacher(6)(batch, features=True)
    norms = {"levels": ImageLevelMean(), "images": PerImage(), "weights": ImageWeightSum()}
    objective = objective_of(**{name: replace(EDGES, norm=norm, balance=0.5) for name, norm in norms.items()})
    progress = TrainingProgress(0.25, objective.learned(lambda: (dense, teacher)))
    scene = objective.scene(dense, teacher, grid=grid, instances=batch.instances, progress=progress)
    with FromData() as made:
        objective.losses(scene)
    assert made.count == 0


def test_a_term_without_gradient_does_not_break_its_balance():
    dense, supervised, term = two_losses()
    balance = Balance({"ld": 1.0})
    got = balance({"ld": 0 * term}, supervised, dense)["ld"]
    assert float(got.detach()) == 0
    assert float(balance.factors()) == pytest.approx(1e4)
    assert balance({"ld": term}, 0 * supervised, dense)["ld"].isfinite()


def test_balanced_terms_of_an_objective():
    """The weight cancels, the schedule acts, other terms are as they were."""
    module = module_of(objective_of(), width=6)
    batch = next(iter(Loaders()(0, 1)))
    grid = module.detector.grid_for((16, 16))
    dense = module.detector(module.detector.normalise(batch.images, batch.sizes), features=True)
    teacher = MappedTeacher(6)(batch, features=True)

    def losses(weight: float, schedule: Any) -> dict[str, Tensor]:
        term = replace(EDGES, balance=0.5, weight=weight, schedule=schedule)
        objective = objective_of(ld=term, kd=EDGES)
        learned = objective.learned(lambda: (dense, teacher))
        progress = TrainingProgress(0.25, learned)
        return objective.losses(
            objective.scene(dense, teacher, grid=grid, instances=batch.instances, progress=progress)
        )

    first, heavy, fading = losses(1.0, None), losses(100.0, None), losses(1.0, Linear())
    torch.testing.assert_close(first["ld"], heavy["ld"])
    torch.testing.assert_close(fading["ld"], 0.75 * first["ld"])
    assert torch.equal(first["kd"], fading["kd"])

    def norm(value: Tensor, at: Tensor) -> float:
        return float(torch.autograd.grad(value, at, retain_graph=True)[0].norm())

    assert norm(first["ld"], dense.edge_logits) == pytest.approx(0.5 * norm(first["dfl"], dense.edge_logits), rel=1e-4)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"dfl": replace(supervised(), balance=1.0), "ld": EDGES}, "dfl learn from labels"),
        ({"ld": replace(EDGES, balance=1.0)}, "there are none"),
    ],
)
def test_a_balance_needs_two_sides(terms: dict[str, Term], words: str):
    with pytest.raises(RecipeError, match=words):
        Objective(terms=terms)


def test_learned_is_empty_by_default():
    learned = Learned({})
    assert learned.of("im") is None
    assert not list(learned.parameters())


def test_a_term_may_be_called_anything_that_a_recipe_allows():
    """Also what attributes of a module container are called."""
    own = {name: nn.Linear(1, 1) for name in ("values", "type", "training", "im")}
    learned = Learned(own)
    assert all(learned.of(name) is weights for name, weights in own.items())
    assert learned.of("keys") is None
