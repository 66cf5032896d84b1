"""Masked generation: reconstruction of the teacher's map from a masked map of the student."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locdistill.distillation.adapters import OfMaps, shares
from locdistill.objective.scene import Scene
from locdistill.settings import Share


class Generator(nn.Module):
    """Network from a student's map to a teacher's: a 1x1 convolution where widths differ, then two 3x3 convolutions.

    Args:
        student: Width of the student's map.
        teacher: Width of the teacher's.
        adapt: Whether to use the 1x1 convolution for equal widths too.
    """

    def __init__(self, student: int, teacher: int, *, adapt: bool) -> None:
        super().__init__()
        self.adapter = nn.Conv2d(student, teacher, 1) if adapt or student != teacher else nn.Identity()
        self.generation = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(teacher, teacher, 3, padding=1)
        )

    def forward(self, level: Float[Tensor, "b c h w"], keep: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b d h w"]:
        """Return the generated map; ``keep`` is 0 where the student's is hidden."""
        generated: Tensor = self.generation(self.adapter(level) * keep)
        return generated


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedGeneration(OfMaps):
    """Squared difference of the teacher's map and the one generated from the student's, averaged over channels.

    MGD (Yang et al. 2022): positions of the student's map are hidden at random, the same for all channels, and a small
    network, discarded after training, rebuilds the teacher's map from the rest. The loss is the sum over the positions;
    the published loss also sums over channels. It is not zero for equal maps, since the network has to learn to rebuild
    them. Each batch on each process has its own mask.

    Attributes:
        hidden: Fraction of the positions that are hidden (0.65 published for one-stage detectors, 0.45 for two-stage
            ones).
    """

    block = Generator
    hidden: Share = 0.65

    def __call__(self, scene: Scene, own: nn.Module | None = None) -> Float[Tensor, "b l"]:
        """Return the loss of each location; zero where the teacher's map is rebuilt exactly."""
        assert isinstance(own, nn.ModuleList), (
            "generation needs its networks: Objective.learned, in TrainingProgress.learned"
        )
        pairs = self.pairs(scene, nn.ModuleList([nn.Identity()] * len(own)))
        levels = []
        for pair, generator in zip(pairs, own, strict=True):
            chance = torch.rand(pair.inside.shape, device=pair.inside.device)
            generated: Tensor = generator(pair.student, (chance >= self.hidden).to(pair.student.dtype))
            levels.append((generated - pair.teacher).square().mean(1, keepdim=True))
        return shares(levels, scene.grid)
