"""A summand of the loss: divergence times region, over a normaliser, times a weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, cast, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from locdistill.errors import RecipeError
from locdistill.objective.balance import Balancing
from locdistill.objective.normalisers import Normaliser, WeightSum
from locdistill.objective.scene import Scene
from locdistill.objective.schedules import Schedule
from locdistill.types import Dense


class Need(StrEnum):
    """Input of a divergence or a region beside the student's predictions and the labels."""

    TEACHER = "teacher"
    """A teacher."""
    FEATURES = "features"
    """The maps of the pyramids."""
    TOWERS = "towers"
    """The maps inside the heads."""
    CROSS = "cross"
    """The predictions of the teacher's head on the student's features."""
    DISTRIBUTIONS = "distributions"
    """The teacher's distributions over the positions of edges, not only its boxes."""
    LOCAL = "local"
    """The teacher's predictions at the region's own locations only: a cache may leave out all others."""
    PADDING = "padding"
    """The teacher's predictions in the padding that a batch adds to an image."""
    QUALITY = "quality"
    """The quality that the student's head predicts beside the class score, such as centerness."""
    THRESHOLDS = "thresholds"
    """The assigner's threshold of each object, which only some assigners have."""
    DISTANCES = "distances"
    """Distances to four edges, which only some detectors predict."""
    WEIGHTS = "weights"
    """Weights of the divergence, which the run trains (see :class:`Learner`)."""


@runtime_checkable
class Divergence(Protocol):
    """Error of the student at every location, finite everywhere, whether or not the location counts."""

    __slots__ = ()

    @property
    def needs(self) -> frozenset[Need]:
        """Inputs it needs; may be empty."""

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Compute a value per location, with gradient to the student."""


@runtime_checkable
class Learner(Divergence, Protocol):
    """Divergence that needs trained weights, which it describes and the run holds.

    The divergence itself stays plain data, which can be compared and serialised.
    """

    __slots__ = ()

    def parts(self, student: Dense, teacher: Dense) -> nn.Module | None:
        """Build the weights it needs; None if it needs none.

        Args:
            student: Predictions for an image, of which only the shapes are used.
            teacher: Likewise.
        """

    def __call__(self, scene: Scene, own: nn.Module | None = None) -> Float[Tensor, "b l"]:
        """Compute a value per location, with gradient to the student and to ``own``, the result of ``parts``."""


@runtime_checkable
class Region(Protocol):
    """Weight of a divergence at each location."""

    __slots__ = ()

    @property
    def needs(self) -> frozenset[Need]:
        """Inputs it needs; may be empty."""

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Compute a weight per location, without gradient; zero outside the region."""


@runtime_checkable
class Bounded(Protocol):
    """Region that depends on the ground truth alone, except for its weights."""

    def reach(self, scene: Scene) -> Bool[Tensor, "b l"]:
        """Return the locations outside which the weight is zero, whatever student and teacher predict."""


NOTHING: frozenset[Need] = frozenset()
MAPS = frozenset({Need.FEATURES, Need.TOWERS})


def stated_needs(part: Divergence | Region) -> frozenset[Need]:
    """Return the needs of a divergence or region.

    Raises:
        RecipeError: ``needs`` is no set of :class:`Need`, so a run would not provide its inputs.
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
    """Term ``weight * sum(of * on / norm)`` over the batch, times a factor that may follow the run.

    A loss of whole maps is a divergence whose values sum to it or average to it, depending on the normaliser.

    Attributes:
        of: Divergence.
        on: Region where it counts.
        norm: Denominator of the sum.
        weight: Factor of the whole.
        schedule: A further factor, by the share of the run that is done; constant without one.
        balance: If given, the norm of the term's gradient on the student's predictions, in multiples of the supervised
            terms'; it replaces the weight, which cancels. Or ``pareto``: weighted with the others of its group (see
            `Balance`). The schedule still acts.
    """

    of: Divergence
    on: Region
    norm: Normaliser = field(default_factory=WeightSum)
    weight: float = 1.0
    schedule: Schedule | None = None
    balance: Balancing | None = None

    needs: frozenset[Need] = field(init=False, repr=False, compare=False)
    """Needs of divergence and region together."""
    needs_predictions: bool = field(init=False, repr=False, compare=False)
    """Whether divergence or region uses a teacher's predictions, not only its maps."""
    needs_teacher: bool = field(init=False, repr=False, compare=False)
    """Whether divergence or region uses a teacher."""
    learns: bool = field(init=False, repr=False, compare=False)
    """Whether the divergence may have weights."""
    on_maps: bool = field(init=False, repr=False, compare=False)
    """Whether the gradient is on maps, not on the student's own predictions."""
    bounded: bool = field(init=False, repr=False, compare=False)
    """Whether the ground truth alone determines which locations of a teacher's predictions are used."""
    sees_padding: bool = field(init=False, repr=False, compare=False)
    """Whether a teacher's predictions in the padding, which a batch adds to an image, may count."""

    def __post_init__(self) -> None:
        """Collect the needs once: compiled code reads them, but cannot unite sets.

        Raises:
            RecipeError: ``needs`` of the divergence or the region is no set of :class:`Need`.
        """
        of, on = stated_needs(self.of), stated_needs(self.on)
        needs = of | on
        derived = {
            "needs": needs,
            "needs_predictions": any(Need.TEACHER in own and not own & MAPS for own in (of, on)),
            "needs_teacher": Need.TEACHER in needs,
            "learns": Need.WEIGHTS in of,
            "on_maps": not needs.isdisjoint(MAPS | {Need.CROSS}),
            "bounded": isinstance(self.on, Bounded) and Need.LOCAL in of,
            "sees_padding": {Need.TEACHER, Need.PADDING} <= needs,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def reach(self, scene: Scene) -> Bool[Tensor, "b l"]:
        """Return the locations outside which a teacher's predictions do not matter; all locations if not bounded."""
        if not self.bounded:
            return scene.assignment.inside
        assert isinstance(self.on, Bounded), "ensured by bounded"
        return self.on.reach(scene.taught if self.needs_predictions else scene)

    def per_location(
        self, scene: Scene, own: nn.Module | None = None, values: Float[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l"]:
        """Compute each location's share of the term, before the schedule.

        Args:
            scene: The batch.
            own: The divergence's weights, if it has any.
            values: The divergence, if already computed.
        """
        # If the term uses a teacher's predictions, it is limited to objects of classes that the teacher knows.
        seen = scene.taught if self.needs_predictions else scene
        weights = self.on(seen)
        if values is None and own is None:
            values = self.of(scene)
        elif values is None:
            values = cast(Learner, self.of)(scene, own)
        return self.weight * values * weights / self.norm(weights, seen)

    def __call__(
        self, scene: Scene, own: nn.Module | None = None, values: Float[Tensor, "b l"] | None = None
    ) -> Float[Tensor, ""]:
        """Compute the term's value; 0, with gradients defined, where the region is empty."""
        value = self.per_location(scene, own, values).sum()
        return value if self.schedule is None else value * self.schedule(scene.progress.done)
