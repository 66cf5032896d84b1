"""Feature pyramid network (Lin et al. 2017) as GFL uses it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class FPN(nn.Module):
    """A pyramid of equally wide maps from the stages of a backbone.

    One 1x1 convolution per stage, added to the nearest-neighbour enlargement of the coarser level, then one 3x3
    convolution per level. Further levels are 3x3 convolutions of stride 2 on the coarsest *output* (in RetinaNet: on
    the input), without activation between. No normalisation; all convolutions have a bias.

    Attributes:
        laterals: The 1x1 convolutions, finest level first.
        outputs: The 3x3 convolutions, finest level first; those of the further levels last.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, *, extra_levels: int = 0) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.outputs = nn.ModuleList(
            [nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels]
            + [nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(extra_levels)]
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the pyramid, finest first, from maps of the backbone, finest first."""
        merged = [lateral(stage) for lateral, stage in zip(self.laterals, stages, strict=True)]
        for finer in range(len(merged) - 2, -1, -1):
            size = merged[finer].shape[-2:]
            merged[finer] = merged[finer] + F.interpolate(merged[finer + 1], size=size, mode="nearest")
        own = len(merged)
        levels = [convolution(level) for convolution, level in zip(self.outputs[:own], merged, strict=True)]
        for convolution in self.outputs[own:]:
            levels += [convolution(levels[-1])]
        return levels
