"""One summand of the loss: divergence times region, over a normaliser, times a weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from locdistill.objective.normalisers import Normaliser, WeightSum
from locdistill.objective.scene import Scene
from locdistill.objective.schedules import Schedule
from locdistill.types import Dense


@runtime_checkable
class Divergence(Protocol):
    """How wrong the student is at every location, finite everywhere, whether or not the location counts."""

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """A value per location, with gradient to the student."""


@runtime_checkable
class Learner(Protocol):
    """A divergence with weights of its own, which it describes (``learns`` says so); the run owns them.

    So the divergence itself stays plain data, that can be compared and written down.
    """

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

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """A weight per location, without gradient; zero outside the region."""


@runtime_checkable
class Bounded(Protocol):
    """A region that follows from the ground truth alone, but for its weights."""

    def reach(self, scene: Scene) -> Bool[Tensor, "b l"]:
        """The locations outside which the weight is zero, whatever student and teacher say."""


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

    @property
    def learns(self) -> bool:
        """Whether the divergence may have weights of its own."""
        return getattr(self.of, "learns", False)

    @property
    def needs_teacher(self) -> bool:
        """Whether divergence or region looks at a teacher."""
        return self._any("needs_teacher")

    @property
    def needs_predictions(self) -> bool:
        """Whether divergence or region looks at what a teacher says at each location, and not at its maps alone."""
        return any(
            getattr(part, "needs_teacher", False)
            and not (getattr(part, "needs_features", False) or getattr(part, "needs_towers", False))
            for part in (self.of, self.on, self.norm)
        )

    @property
    def needs_quality(self) -> bool:
        """Whether divergence or region looks at the quality that a head predicts beside the class score."""
        return self._any("needs_quality")

    @property
    def needs_thresholds(self) -> bool:
        """Whether divergence or region looks at the assigner's thresholds, which only some assigners have."""
        return self._any("needs_thresholds")

    @property
    def needs_distances(self) -> bool:
        """Whether divergence or region looks at distances to four edges, of which only some boxes are made."""
        return self._any("needs_distances")

    @property
    def needs_towers(self) -> bool:
        """Whether divergence or region looks at maps inside the heads."""
        return self._any("needs_towers")

    @property
    def needs_features(self) -> bool:
        """Whether divergence or region looks at the maps of the pyramids."""
        return self._any("needs_features")

    @property
    def needs_cross(self) -> bool:
        """Whether divergence or region looks at what the teacher's head makes of the student's features."""
        return self._any("needs_cross")

    @property
    def needs_distributions(self) -> bool:
        """Whether the teacher must have distributions over the positions of edges, and not only boxes."""
        return self._any("needs_distributions")

    @property
    def bounded(self) -> bool:
        """Whether the ground truth alone says which locations of a teacher's predictions are looked at."""
        return isinstance(self.on, Bounded) and getattr(self.of, "local", False)

    @property
    def sees_padding(self) -> bool:
        """Whether what a teacher says of the padding, which a batch adds to an image, may count."""
        return self.needs_teacher and self._any("sees_padding")

    def reach(self, scene: Scene) -> Bool[Tensor, "b l"]:
        """Outside of these locations it does not matter what a teacher predicts; all of the images if not bounded."""
        if not self.bounded:
            return scene.assignment.inside
        assert isinstance(self.on, Bounded), "that is what bounded says"
        return self.on.reach(self._seen(scene))

    def _seen(self, scene: Scene) -> Scene:
        """What compares with a teacher's predictions counts at objects of the classes that the teacher knows."""
        return scene.taught if self.needs_predictions else scene

    def _any(self, need: str) -> bool:
        return any(getattr(part, need, False) for part in (self.of, self.on, self.norm))

    def parts(self, student: Dense, teacher: Dense) -> nn.Module | None:
        """New weights of the divergence, from the shapes of predictions; None if it has none."""
        return self.of.parts(student, teacher) if self.learns and isinstance(self.of, Learner) else None

    def factor(self, scene: Scene) -> float:
        """What the schedule says now."""
        return 1.0 if self.schedule is None else self.schedule(scene.progress.done)

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
            assert isinstance(self.of, Learner), "only what describes weights is given some"
            values = self.of(scene, own)
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
