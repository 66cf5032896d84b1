"""Detector: images in, dense predictions or detections out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from locdistill.errors import RecipeError
from locdistill.geometry.grid import Grid
from locdistill.images import ImageSource, normalised, pad_together, read_image, resize_keep_ratio
from locdistill.models import foreign, postprocess, weights
from locdistill.models.backbones import Freezing, build_backbone
from locdistill.models.fpn import FPN
from locdistill.models.heads.centerness import CenternessHead
from locdistill.models.heads.gfl import GFLHead, GFLv2Head
from locdistill.models.heads.retina import RetinaHead
from locdistill.models.kinds import KINDS, HeadName
from locdistill.models.meaning import meaning_of
from locdistill.models.settings import DetectorSettings, NormalisationSettings
from locdistill.types import Dense, Detections

# Grids are small, but multi-scale training meets hundreds of shapes.
CACHED_GRIDS = 64
log = logging.getLogger("locdistill")


class Prepared(NamedTuple):
    """Image resized for the network, once for each view, with its heights and widths before and after.

    Attributes:
        images: The image in each view.
        original: Height and width before resizing.
        padded: Height and width of each view after padding.
    """

    images: tuple[Tensor, ...]
    original: tuple[int, int]
    padded: tuple[tuple[int, int], ...]


HEADS: dict[HeadName, type[nn.Module]] = {
    "gfl": GFLHead,
    "gflv2": GFLv2Head,
    "centerness": CenternessHead,
    "retina": RetinaHead,
}
"""Networks behind the pyramid, by the names that detector kinds use for them."""


class Detector(nn.Module):
    """Backbone, feature pyramid, and a head shared by the levels of the pyramid.

    Calling it computes `Dense` predictions of normalised images, in training, evaluation and export alike; losses are
    separate. `detect` does everything from image files to boxes.

    Args:
        settings: Settings of the detector. The classes must be named.
        pretrained: Whether to load what ``settings.pretrained`` names; `load` does not, as it has the weights already.

    Attributes:
        settings: As given, with ``mean`` and ``std`` filled in from the backbone where they were None.
        coding: Meaning of the predicted numbers.
        bins: Support of the edge distributions.

    Raises:
        RecipeError: The settings cannot be built.
        WeightsError: The pretrained weights are not available or do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: DetectorSettings, *, pretrained: bool = True) -> None:
        super().__init__()
        if not settings.classes:
            raise RecipeError("a detector needs the names of its classes: set 'detector.classes', or give data")
        self.backbone, info = build_backbone(settings, weights=pretrained)
        self.freezing = Freezing.of(self.backbone, settings)
        self._outputs = info.outputs
        extra = sum(level > 5 for level in settings.levels)
        self.describe(settings.model_copy(update={"mean": settings.mean or info.mean, "std": settings.std or info.std}))
        self.fpn = FPN(info.channels, settings.channels, extra_levels=extra, extra=self.kind.extra)
        self.head = HEADS[self.kind.head](settings)
        self.train()

    def describe(self, settings: DetectorSettings) -> None:
        """Set what follows from complete settings: the kind, the meaning of its numbers, and the normalisation."""
        self.settings = settings
        self.kind = KINDS[settings.model]
        self.coding, self.bins = meaning_of(settings)
        self.register_buffer("mean", torch.tensor(settings.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(settings.std)[:, None, None], persistent=False)
        self._grids: dict[tuple[tuple[tuple[int, int], ...], torch.device], Grid] = {}

    def forward(self, images: Float[Tensor, "b 3 h w"], *, features: bool = False, towers: bool = False) -> Dense:
        """Compute dense predictions of normalised images whose height and width are multiples of 32.

        Args:
            images: Normalised images, in the network's order of channels.
            features: Whether to return the maps of the pyramid too.
            towers: Whether to return the maps inside the towers of the head too, before their last convolution.
        """
        levels = self.pyramid(images)
        head: Any = self.head
        maps = head.begin(levels)
        kept = tuple(m.clone() for m in maps) if towers else ()  # the head goes on in place
        dense: Dense = head.finish(maps)
        return dense._replace(features=tuple(levels) if features else (), towers=kept)

    def pyramid(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Compute the maps of the feature pyramid, finest first."""
        maps = self.backbone(images)
        stages = [maps[index] for index in self._outputs]
        if str(getattr(self.backbone, "output_fmt", "NCHW")).endswith("NHWC"):
            stages = [stage.permute(0, 3, 1, 2) for stage in stages]
        levels: list[Tensor] = self.fpn(stages)
        return levels

    def train(self, mode: bool = True) -> Detector:
        """Change the mode; the frozen part of the backbone and its batch normalisation stay as the settings require."""
        super().train(mode)
        self.freezing.apply(self.backbone)
        return self

    @property
    def device(self) -> torch.device:
        """Device of the detector."""
        return self.mean.device

    def normalise(self, images: UInt8[Tensor, "b 3 h w"], sizes: Int[Tensor, "b 2"]) -> Float[Tensor, "b 3 h w"]:
        """Normalise images for the network; the padding beyond each image's height and width becomes exactly 0."""
        return normalised(images, sizes, mean=self.mean, std=self.std, bgr=self.settings.bgr)

    def normalise_as(self, how: NormalisationSettings) -> None:
        """Change the normalisation of images; settings that are None stay unchanged."""
        self.settings = self.settings.model_copy(update=how.model_dump(exclude_none=True))
        for buffer, values in ((self.mean, self.settings.mean), (self.std, self.settings.std)):
            buffer.copy_(torch.tensor(values)[:, None, None])

    def see(
        self, images: UInt8[Tensor, "b 3 h w"], sizes: Int[Tensor, "b 2"], network: Callable[..., Dense] | None = None
    ) -> tuple[Dense, Grid]:
        """Predict from padded images of these heights and widths, through another form of the network if given.

        Returns:
            The predictions and their locations.
        """
        dense: Dense = (network or self)(self.normalise(images, sizes))
        return dense, self.grid_for(images.shape[-2:])

    def look(
        self,
        images: UInt8[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"],
        original_sizes: Int[Tensor, "b 2"],
        *,
        flipped: bool = False,
    ) -> list[Detections]:
        """Return the candidates in padded images; see `see` and `candidates` for the arguments."""
        dense, grid = self.see(images, sizes)
        return self.candidates(dense, grid, sizes, original_sizes, flipped=flipped)

    def grid_for(self, size: Sequence[int]) -> Grid:
        """Return the locations of the predictions for images of this padded height and width.

        Raises:
            ValueError: They are not multiples of the largest backbone stride in use.
        """
        levels = self.settings.levels
        stride = 2 ** min(5, levels[-1])
        height, width = map(int, size)
        if height % stride or width % stride:
            raise ValueError(f"height and width must be multiples of {stride}, got {height, width}; pad the images")
        # Beyond the backbone each convolution of stride 2 halves, rounding up, which amounts to one rounding.
        shapes = tuple((-(-height // 2**level), -(-width // 2**level)) for level in levels)
        key = (shapes, self.device)
        if key not in self._grids:
            if len(self._grids) >= CACHED_GRIDS:
                self._grids.pop(next(iter(self._grids)))
            self._grids[key] = Grid.build(
                shapes,
                self.settings.strides,
                anchor_scale=self.settings.anchor_scale,
                offset=self.kind.offset,
                octaves=self.kind.octaves,
                ratios=self.kind.ratios,
                device=self.device,
            )
        return self._grids[key]

    def candidates(
        self,
        dense: Dense,
        grid: Grid,
        sizes: Int[Tensor, "b 2"],
        original_sizes: Int[Tensor, "b 2"],
        *,
        flipped: bool = False,
    ) -> list[Detections]:
        """Return candidates in pixels of the original images, before suppression; see `postprocess.candidates`.

        The background channel of the published GFL v2 is left out from the beginning. The reference drops its
        detections at the very end, after it took part in the choice of locations and counted as detections.

        Args:
            dense: Predictions.
            grid: Locations of the predictions.
            sizes: Height and width of each image as input of the network, without padding.
            original_sizes: Height and width of each image before resizing.
            flipped: Whether the input of the network was mirrored left and right.
        """
        device = dense.cls_logits.device
        sizes, original_sizes = sizes.to(device), original_sizes.to(device)
        return postprocess.candidates(
            dense._replace(cls_logits=dense.cls_logits[..., : len(self.settings.classes)]),
            grid,
            bins=self.bins,
            coding=self.coding,
            sizes=sizes,
            scales=sizes.float() / original_sizes.float(),
            settings=self.settings.detections,
            flipped=flipped,
        )

    def suppress(self, views: Sequence[list[Detections]]) -> list[Detections]:
        """Return detections of each image from the candidates of one or more views; see `postprocess.suppress`."""
        return postprocess.suppress(views, self.settings.detections, self.coding.kind)

    def detections(
        self, dense: Dense, grid: Grid, sizes: Int[Tensor, "b 2"], original_sizes: Int[Tensor, "b 2"]
    ) -> list[Detections]:
        """Return detections in pixels of the original images, from one view; arguments are those of `candidates`."""
        return self.suppress([self.candidates(dense, grid, sizes, original_sizes)])

    @torch.no_grad()
    def detect(self, images: ImageSource | Iterable[ImageSource], *, batch: int = 8) -> list[Detections]:
        """Detect objects in images, with boxes in pixels of the images as given.

        Images are read and resized as set in ``settings.input``, and only those that are padded to the same size share
        a batch: the detections of one do not depend on the others. The mode of the detector is unchanged afterwards.

        With ``settings.detections.augment`` the detector is run on several views of each image, resized anew from the
        original and mirrored; the candidates of all views, in pixels of the original image, undergo one suppression.
        The time is proportional to the number of views.

        Args:
            images: One image or several: paths, PIL images, uint8 arrays ``(h, w, 3)`` or tensors ``(3, h, w)``, RGB.
            batch: Maximum number of images at once.

        Returns:
            One `Detections` per image, in their order, on the detector's device.

        Raises:
            ImageError: An image cannot be read.
        """
        # A tensor or an array with four axes is several images.
        one = isinstance(images, Tensor | np.ndarray) and images.ndim < 4
        sources: Any = [images] if one or isinstance(images, str | Path | Image.Image) else images
        training = self.training
        found: list[Detections] = []
        self.eval()
        try:
            for group in self._groups(sources, batch):
                originals = torch.tensor([prepared.original for prepared in group], device=self.device)
                views = []
                for index, view in enumerate(self.settings.detections.augment.views):
                    own = [prepared.images[index] for prepared in group]
                    height, width = group[0].padded[index]
                    padded = pad_together(own, height=height, width=width).to(self.device)
                    sizes = torch.tensor([image.shape[-2:] for image in own], device=self.device)
                    views.append(self.look(padded, sizes, originals, flipped=view.flipped))
                found += self.suppress(views)
        finally:
            self.train(training)
        return found

    def _groups(self, sources: Iterable[ImageSource], batch: int) -> Iterator[list[Prepared]]:
        """Yield consecutive images that are padded to the same size, at most ``batch`` of them, read when needed."""
        group: list[Prepared] = []
        for source in sources:
            prepared = self.prepare(source)
            if group and (len(group) == batch or prepared.padded != group[0].padded):
                yield group
                group = []
            group.append(prepared)
        if group:
            yield group

    def prepare(self, source: ImageSource) -> Prepared:
        """Read an image and resize it for each view."""
        limits = self.settings.input
        original = read_image(source, bits=limits.bits)
        images, padded = [], []
        for view in self.settings.detections.augment.views:
            short, long = view.limits(short=limits.short, long=limits.long)
            image = resize_keep_ratio(original, short=short, long=long)
            images.append(image.flip(-1) if view.flipped else image)
            height, width = (-(-side // limits.pad_to) * limits.pad_to for side in image.shape[-2:])
            padded.append((height, width))
        return Prepared(tuple(images), (original.shape[-2], original.shape[-1]), tuple(padded))

    def save(self, path: str | Path, *, extra: Mapping[str, Any] | None = None) -> Path:
        """Write weights and settings to one safetensors file, atomically.

        Args:
            path: Path of the file; ``.safetensors`` is added if missing.
            extra: Plain data to store with them, such as metrics; `weights.read_metadata` returns it.

        Returns:
            The path written to.

        Raises:
            WeightsError: It cannot be written.
        """
        settings = self.settings.model_dump(mode="json")
        return weights.write(path, self.state_dict(), settings=settings, extra=extra)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Detector:
        """Build a detector from a file, in evaluation mode; nothing is downloaded, and no code in the file is run.

        Args:
            path: A file written by `save`, with or without ``.safetensors``; or the folder of a run (its
                ``best.safetensors``); or a checkpoint of MMDetection, the reference, Rotated-LD or GFocal v2
                (``.pth``), for which `locdistill.load_mmdet` has further options. For exported files see
                :func:`locdistill.models.exported.open_detector`.
            device: Device of the detector.

        Raises:
            WeightsError: The file is absent, damaged, of an unsupported architecture, or does not fit its settings.
        """
        file = weights.locate(path)
        if foreign.is_foreign(file):
            found = foreign.read(file)
            with weights.building(file):
                detector = cls(found.report.settings, pretrained=False)
            log.info("%s", found.fill(detector))
        else:
            settings = foreign.detector_settings(file)
            with weights.building(file):
                detector = cls(settings, pretrained=False)
            weights.load_strict(detector, weights.read_tensors(file), str(file))
        return detector.to(device).eval()
