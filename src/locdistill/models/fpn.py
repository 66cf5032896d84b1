"""Feature pyramid network (Lin et al. 2017), with the further levels that dense detectors add."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from locdistill.models.kinds import ExtraLevels


class FPN(nn.Module):
    """Pyramid of equally wide maps from the stages of a backbone.

    One 1x1 convolution per stage, added to the nearest-neighbour enlargement of the coarser level, then one 3x3
    convolution per level. Further levels are 3x3 convolutions of stride 2, each on the one before. No normalisation;
    all convolutions have a bias.

    Args:
        in_channels: Width of each stage, finest first.
        channels: Width of the pyramid.
        extra_levels: Number of further levels.
        extra: Input of the first further level: the coarsest ``output`` of the pyramid (GFL, ATSS, and FCOS with
            ``output_relu``, where a ReLU precedes all further levels but the first) or its ``input``, the coarsest
            stage (RetinaNet).

    Attributes:
        laterals: The 1x1 convolutions, finest level first.
        outputs: The 3x3 convolutions, finest level first; those of the further levels last.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, *, extra_levels: int = 0, extra: ExtraLevels = "output"
    ) -> None:
        super().__init__()
        self.extra = extra
        source = in_channels[-1] if extra == "input" else channels
        widths = [source] + [channels] * (extra_levels - 1) if extra_levels else []
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.outputs = nn.ModuleList(
            [nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels]
            + [nn.Conv2d(width, channels, 3, stride=2, padding=1) for width in widths]
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Compute the maps of the pyramid, finest first, from maps of the backbone, finest first."""
        merged = [lateral(stage) for lateral, stage in zip(self.laterals, stages, strict=True)]
        for finer in range(len(merged) - 2, -1, -1):
            size = merged[finer].shape[-2:]
            merged[finer] = merged[finer] + F.interpolate(merged[finer + 1], size=size, mode="nearest")
        own = len(merged)
        levels = [convolution(level) for convolution, level in zip(self.outputs[:own], merged, strict=True)]
        for step, convolution in enumerate(self.outputs[own:]):
            below = stages[-1] if self.extra == "input" and step == 0 else levels[-1]
            below = below.relu() if self.extra == "output_relu" and step else below
            # A map of one column gets another of zeros, which avoids an error in oneDNN (seen in 3.12.0, of PyTorch
            # 2.14.1). Its bf16 convolution for AVX-512 reads memory that it never wrote when it computes the gradient
            # of the weight for a map narrower than the stride: the gradient is wrong, and sometimes NaN. The column is
            # what the padding is there anyway, and the width of the output remains one.
            narrow = below.shape[-1] == 1 and below.device.type == "cpu" and torch.is_grad_enabled()
            levels += [convolution(F.pad(below, (0, 1)) if narrow else below)]
        return levels
