"""One summand of the loss: divergence times region, over a normaliser, times a weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, cast, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from locdistill.errors import RecipeError
from locdistill.objective.normalisers import Normaliser, WeightSum
from locdistill.objective.scene import Scene
from locdistill.objective.schedules import Schedule
from locdistill.types import Dense


class Need(StrEnum):
    """A thing that a divergence or a region looks at, beside the student's predictions and the labels."""

    TEACHER = "teacher"
    """A teacher."""
    FEATURES = "features"
    """The maps of the pyramids."""
    TOWERS = "towers"
    """The maps inside the heads."""
    CROSS = "cross"
    """The predictions that the teacher's head makes of the student's features."""
    DISTRIBUTIONS = "distributions"
    """The teacher's distributions over the positions of edges, and not only its boxes."""
    LOCAL = "local"
    """Of the teacher's predictions those of the location itself, and no others: a cache may leave those out."""
    PADDING = "padding"
    """The teacher's predictions in the padding that a batch adds to an image."""
    QUALITY = "quality"
    """The quality that the student's head predicts beside the class score, such as centerness."""
    THRESHOLDS = "thresholds"
    """The assigner's threshold of each object, which only some assigners have."""
    DISTANCES = "distances"
    """Distances to four edges, of which only some boxes are made."""
    WEIGHTS = "weights"
    """Weights of its own, which the run trains (see :class:`Learner`)."""


@runtime_checkable
class Divergence(Protocol):
    """How wrong the student is at every location, finite everywhere, whether or not the location counts."""

    __slots__ = ()

    @property
    def needs(self) -> frozenset[Need]:
        """What it looks at; nothing where it is empty."""

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """A value per location, with gradient to the student."""


@runtime_checkable
class Learner(Divergence, Protocol):
    """A divergence that needs weights of its own, which it describes and the run owns.

    So the divergence itself stays plain data, that can be compared and written down.
    """

    __slots__ = ()

    def parts(self, student: Dense, teacher: Dense) -> nn.Module | None:
        """The weights that it needs, new; None if it can do without.

        Args:
            student: Predictions of an image, of which only the shapes count.
            teacher: Likewise.
        """

    def __call__(self, scene: Scene, own: nn.Module | None = None) -> Float[Tensor, "b l"]:
        """A value per location, with gradient to the student and to ``own``, what ``parts`` made."""


@runtime_checkable
class Region(Protocol):
    """Where, and how much, a divergence counts."""

    __slots__ = ()

    @property
    def needs(self) -> frozenset[Need]:
        """What it looks at; nothing where it is empty."""

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """A weight per location, without gradient; zero outside the region."""


@runtime_checkable
class Bounded(Protocol):
    """A region that follows from the ground truth alone, but for its weights."""

    def reach(self, scene: Scene) -> Bool[Tensor, "b l"]:
        """The locations outside which the weight is zero, whatever student and teacher say."""


NOTHING: frozenset[Need] = frozenset()
MAPS = frozenset({Need.FEATURES, Need.TOWERS})


def stated_needs(part: Divergence | Region) -> frozenset[Need]:
    """Return what a divergence or region needs.

    Raises:
        RecipeError: What it states is no set of :class:`Need`: a run would not hand it what it looks at.
    """
    needs = getattr(part, "needs", None)
    if isinstance(needs, frozenset) and all(isinstance(need, Need) for need in needs):
        return needs
    raise RecipeError(
        f"{type(part).__name__}.needs is {needs!r}; expected a frozenset of Need, such as frozenset({{Need.TEACHER}}), "
        "or frozenset() where labels and student are enough"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """``weight * sum(of * on / norm)`` over the batch, times a factor that may follow the run.

    A loss of whole maps is a divergence whose values sum, or average, to it: the normaliser says which.

    Attributes:
        of: What is measured.
        on: Where it counts.
        norm: What the sum is divided by.
        weight: Factor of the whole.
        schedule: A further factor, by the share of the run that is done; none is constant.
        balance: Where given, the norm of the term's gradient on what the student says, in multiples of the supervised
            terms'. It takes the place of the weight, which cancels; the schedule still acts.
    """

    of: Divergence
    on: Region
    norm: Normaliser = field(default_factory=WeightSum)
    weight: float = 1.0
    schedule: Schedule | None = None
    balance: float | None = None

    needs: frozenset[Need] = field(init=False, repr=False, compare=False)
    """What divergence and region look at together."""
    needs_predictions: bool = field(init=False, repr=False, compare=False)
    """Whether divergence or region looks at a teacher's predictions, and not at its maps alone."""

    def __post_init__(self) -> None:
        """Collect the needs once: compiled code reads them, and cannot put sets together.

        Raises:
            RecipeError: ``needs`` of the divergence or the region is no set of :class:`Need`.
        """
        both = stated_needs(self.of), stated_needs(self.on)
        predictions = any(Need.TEACHER in needs and not needs & MAPS for needs in both)
        object.__setattr__(self, "needs", both[0] | both[1])
        object.__setattr__(self, "needs_predictions", predictions)

    @property
    def needs_teacher(self) -> bool:
        """Whether divergence or region looks at a teacher."""
        return Need.TEACHER in self.needs

    @property
    def learns(self) -> bool:
        """Whether the divergence may have weights of its own."""
        return Need.WEIGHTS in self.of.needs

    @property
    def bounded(self) -> bool:
        """Whether the ground truth alone says which locations of a teacher's predictions are looked at."""
        return isinstance(self.on, Bounded) and Need.LOCAL in self.of.needs

    @property
    def sees_padding(self) -> bool:
        """Whether what a teacher says of the padding, which a batch adds to an image, may count."""
        return {Need.TEACHER, Need.PADDING} <= self.needs

    def reach(self, scene: Scene) -> Bool[Tensor, "b l"]:
        """Outside of these locations it does not matter what a teacher predicts; all of the images if not bounded."""
        if not self.bounded:
            return scene.assignment.inside
        assert isinstance(self.on, Bounded), "that is what bounded says"
        return self.on.reach(self._seen(scene))

    def _seen(self, scene: Scene) -> Scene:
        """What compares with a teacher's predictions counts at objects of the classes that the teacher knows."""
        return scene.taught if self.needs_predictions else scene

    def parts(self, student: Dense, teacher: Dense) -> nn.Module | None:
        """New weights of the divergence, from the shapes of predictions; None if it has none."""
        return cast(Learner, self.of).parts(student, teacher) if self.learns else None

    def factor(self, scene: Scene) -> float:
        """What the schedule says now."""
        return 1.0 if self.schedule is None else self.schedule(scene.moment.progress)

    def per_location(
        self, scene: Scene, own: nn.Module | None = None, values: Float[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l"]:
        """Each location's share of the term, before the schedule.

        Args:
            scene: The batch.
            own: The divergence's weights, if it has some.
            values: The divergence, where it is known already.
        """
        seen = self._seen(scene)
        weights = self.on(seen)
        if values is None and own is None:
            values = self.of(scene)
        elif values is None:
            values = cast(Learner, self.of)(scene, own)
        return self.weight * values * weights / self.norm(weights, seen)

    def unscheduled(
        self, scene: Scene, own: nn.Module | None = None, values: Float[Tensor, "b l"] | None = None
    ) -> Float[Tensor, ""]:
        """The term's value, were its weight constant."""
        return self.per_location(scene, own, values).sum()

    def __call__(
        self, scene: Scene, own: nn.Module | None = None, values: Float[Tensor, "b l"] | None = None
    ) -> Float[Tensor, ""]:
        """The term's value; 0, with gradients defined, where the region is empty."""
        value = self.unscheduled(scene, own, values)
        return value if self.schedule is None else value * self.factor(scene)
