"""The loss of a run: named terms over one scene."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from locdistill.assign.atss import ATSS
from locdistill.errors import RecipeError, TeacherError
from locdistill.geometry.bins import Bins
from locdistill.geometry.grid import Grid
from locdistill.objective.scene import Assigner, Scene
from locdistill.objective.term import Term
from locdistill.types import Dense, Instances


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Named terms; supervised training is the same objective without a teacher.

    Attributes:
        terms: Summands of the loss by the name under which they are logged.
        bins: Support of the student's edge distributions.
        assigner: Which location answers for which object.
    """

    terms: Mapping[str, Term]
    bins: Bins = field(default_factory=Bins)
    assigner: Assigner = field(default_factory=ATSS)

    def __post_init__(self) -> None:
        """Refuse terms that the assigner would silently leave without a region.

        Raises:
            RecipeError: A term takes thresholds from an assigner that has none.
        """
        if getattr(self.assigner, "has_thresholds", True):
            return
        if names := self._that("needs_thresholds"):
            raise RecipeError(
                f"the terms {names} take each object's threshold from the assigner, and {type(self.assigner).__name__} "
                "has none; set threshold: adaptive in their region"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether any term looks at a teacher; without one the teacher need not even be loaded."""
        return any(term.needs_teacher for term in self.terms.values())

    @property
    def needs_features(self) -> bool:
        """Whether any term looks at the maps of the pyramids; without one they need not be handed out."""
        return any(term.needs_features for term in self.terms.values())

    def scene(self, student: Dense, teacher: Dense | None = None, *, grid: Grid, instances: Instances) -> Scene:
        """The batch as the terms see it.

        Raises:
            TeacherError: A term needs a teacher and none is given.
            RecipeError: A term needs a quality beside the class score and the student has none.
        """
        if teacher is None and self.needs_teacher:
            raise TeacherError(f"the terms {self._that('needs_teacher')} compare with a teacher, and none was given")
        if student.quality_logits is None and (names := self._that("needs_quality")):
            raise RecipeError(
                f"the terms {names} train a quality beside the class score, which the student does not predict; leave "
                "them out, or take a detector that does (atss, fcos)"
            )
        return Scene.build(student, teacher, grid=grid, instances=instances, assigner=self.assigner, bins=self.bins)

    def losses(self, scene: Scene) -> dict[str, Float[Tensor, ""]]:
        """Each term's value, weights included; the loss is their sum."""
        return {name: term(scene) for name, term in self.terms.items()}

    def __call__(
        self, student: Dense, teacher: Dense | None = None, *, grid: Grid, instances: Instances
    ) -> dict[str, Float[Tensor, ""]]:
        """The losses of the scene.

        Raises:
            TeacherError: A term needs a teacher and none is given.
            RecipeError: A term needs a quality beside the class score and the student has none.
        """
        return self.losses(self.scene(student, teacher, grid=grid, instances=instances))

    def _that(self, need: str) -> str:
        """Names of the terms that have a need."""
        return ", ".join(name for name, term in self.terms.items() if getattr(term, need))
