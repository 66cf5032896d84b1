"""What divergences and regions need is said by each of them, with words that exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from locdistill.distillation.fgd import ObjectCells
from locdistill.distillation.imitation import Everywhere, FeatureL2, GeneralInstances, OutsideBoxes
from locdistill.distillation.logits import ClassBinary, ClassKL, EdgeKL, TeacherOverlap
from locdistill.distillation.patterns import ChannelKL, Correlation
from locdistill.distillation.regions import ScoreGap, TeacherConfidence, ValuableLocations
from locdistill.errors import RecipeError
from locdistill.objective.regions import Counted, Positives
from locdistill.objective.supervised import Centerness, Focal
from locdistill.objective.term import Divergence, Need, Region, Term
from locdistill.recipe.vocabulary import DIVERGENCES, REGIONS

NEEDS: dict[Any, set[str]] = {
    Focal(): set(),
    Centerness(): {"quality", "distances"},
    EdgeKL(): {"teacher", "local", "distributions"},
    EdgeKL(head="teacher"): {"teacher", "local", "distributions", "cross"},
    ClassKL(): {"teacher", "local"},
    ClassBinary(head="teacher"): {"teacher", "local", "cross"},
    TeacherOverlap(): {"teacher", "local"},
    FeatureL2(): {"teacher", "features", "weights"},
    FeatureL2(maps="cls_tower"): {"teacher", "towers", "weights"},
    Correlation(): {"teacher", "features", "weights"},
    Correlation(maps="reg_tower"): {"teacher", "towers", "weights"},
    ChannelKL(what="classes"): {"teacher"},
    Counted(): set(),
    Positives(): set(),
    Positives(by="centerness"): {"distances"},
    ValuableLocations(): {"thresholds"},
    ValuableLocations(threshold="adaptive"): set(),
    ScoreGap(): {"teacher"},
    TeacherConfidence(): {"teacher"},
    Everywhere(): set(),
    Everywhere(padding=True): {"padding"},
    OutsideBoxes(padding=True): {"padding"},
    GeneralInstances(): {"teacher"},
    GeneralInstances(per="batch"): {"teacher", "padding"},
    ObjectCells(): set(),
}


@pytest.mark.parametrize("part", NEEDS, ids=repr)
def test_needs_of_a_part(part: Any) -> None:
    assert part.needs == NEEDS[part]


@pytest.mark.parametrize("part", [*DIVERGENCES.values(), *REGIONS.values()])
def test_every_part_says_what_it_needs(part: type) -> None:
    assert all(isinstance(need, Need) for need in part().needs)
    role = Divergence if part in DIVERGENCES.values() else Region
    assert role in part.__mro__


def test_a_term_needs_what_its_parts_need() -> None:
    term = Term(of=FeatureL2(), on=GeneralInstances(per="batch"))
    assert term.needs == {"teacher", "features", "weights", "padding"}
    assert term.needs_predictions  # the region's, though the divergence looks at maps alone
    assert term.sees_padding
    assert not Term(of=FeatureL2(), on=Everywhere()).needs_predictions
    assert not Term(of=Focal(), on=Everywhere(padding=True)).sees_padding  # no teacher is looked at
    assert Term(of=EdgeKL(), on=ValuableLocations()).bounded
    assert not Term(of=EdgeKL(), on=ScoreGap()).bounded
    assert not Term(of=ChannelKL(what="classes"), on=Positives()).bounded


@dataclass(frozen=True)
class Typo(Divergence):
    """A divergence whose need is misspelt."""

    needs: ClassVar[Any] = frozenset({"techer"})

    def __call__(self, scene: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Word(Typo):
    """A divergence that needs the letters of a word."""

    needs: ClassVar[Any] = "teacher"


@pytest.mark.parametrize(("part", "came"), [(Typo(), "frozenset({'techer'})"), (Word(), "'teacher'")])
def test_a_need_that_is_none_is_an_error_and_no_quiet_no(part: Any, came: str) -> None:
    with pytest.raises(RecipeError) as error:
        Term(of=part, on=Positives())
    assert f"{type(part).__name__}.needs is {came}; expected a frozenset of Need" in str(error.value)
