"""The data settings of a run."""

from __future__ import annotations

import re
from math import inf
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from locdistill.settings import Positive, Settings, Share

STRENGTHS: dict[str, dict[str, Any]] = {
    "light": {
        "colour": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.4, "hue": 0.015},
        "scale": (0.75, 1.33),
    },
    "strong": {
        "colour": {"brightness": 0.4, "contrast": 0.2, "saturation": 0.7, "hue": 0.015},
        "scale": (0.5, 1.5),
        "translate": 0.1,
        "mosaic": 0.5,
    },
}
"""Settings that each strength of ``data.augment`` fills in."""
PARTS = ("colour", "scale", "translate", "mosaic", "erase")
"""Settings that ``data.augment`` is in charge of."""


class ColourSettings(Settings):
    """Largest random changes of colours; 0 leaves them as they are.

    Attributes:
        brightness: Of all values: 0.4 is a factor between 0.6 and 1.4.
        contrast: Of the distance from the image's mean grey, likewise.
        saturation: Of the distance from each pixel's grey, likewise.
        hue: Turn of the colour circle: 0.015 is up to 1.5 % of it either way.
        grey: Probability of a grey image.
    """

    brightness: float = Field(default=0, ge=0, le=1)
    contrast: float = Field(default=0, ge=0, le=1)
    saturation: float = Field(default=0, ge=0, le=1)
    hue: float = Field(default=0, ge=0, le=0.5)
    grey: float = Field(default=0, ge=0, le=1)

    @property
    def on(self) -> bool:
        """True if any colour may change."""
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.grey))


class DataSettings(Settings):
    """Location of the data set, augmentation, and batching.

    Attributes:
        path: A folder or file; the format is recognised from it. Empty in recipes that leave it to the command line.
        format: The format, if the path is ambiguous.
        root: Another folder below which the images of YOLO list files may be; empty: only below the data set's folder.
        train: Splits to train on; several are concatenated. ``None`` is the format's usual: ``train.json``,
            ``annotations/instances_train2017.json`` or ``train/_annotations.coco.json`` of COCO, ``trainval`` of all
            years of VOC (``train`` if there is no ``test``), likewise of HRSC2016, ``train`` of a YOLO ``data.yaml``,
            the folder ``train`` or the list ``train.txt`` of DOTA.
        val: Splits to evaluate on, likewise.
        one_based: Whether corners in VOC's XML files count pixels from 1, so that boxes are moved by one pixel.
            ``None`` decides from the whole data set: they do, unless one of them is below 1 or has a fraction.
        bits: Number of bits that the values of 16-bit grayscale images use, such as 12 of many cameras; ``None``: 16.
        holdout: Fraction of the training images, chosen by a hash of their file names, that is not trained on and
            replaces ``val``. Use it to choose settings, so that ``val`` stays unseen. ``None``: none, but a tenth for
            runs on data without a split to evaluate on.
        holdout_by: Regular expression for the part of a file name that images of one group have in common, such as
            ``video[0-9]+``; all images of a group are held out, or none.
        classes: Names of the classes to use, in this order; boxes of others are left out. ``None``: all, in the order
            of the file.
        ignore_classes: Names of classes whose regions are ignored: they count neither as object nor as background.
            ``crowd`` then defaults to ``ignore``.
        sizes: ``(long, short)`` limits of the two sides in pixels, from which training chooses per image.
        size_mode: ``value`` picks one of ``sizes``; ``range`` draws both limits uniformly between the smallest and the
            largest of them.
        augment: Strength of augmentation, which fills in what is not set of ``colour``, ``scale``, ``translate``,
            ``mosaic`` and ``erase``. ``none`` sets none of them; ``light`` changes colours and scale a little;
            ``strong`` changes both more, and adds translation and mosaics.
        flip: Probability of a horizontal flip.
        flip_vertical: Probability of a vertical flip.
        turns: Whether to turn each image by 0, 1, 2 or 3 right angles, with equal probability.
        rotate: Largest rotation in degrees: the angle of each image is drawn uniformly between minus and plus this. The
            area outside the image is filled with ImageNet's mean colour.
        scale: Smallest and largest scale factor on top of ``sizes``, drawn log-uniformly for each image. An enlarged
            image is cropped to a random window, a shrunk one gets a margin. ``None``: 1.
        translate: Largest shift of the content to each side, as a share of the image; the margin is filled.
        mosaic: Probability of a mosaic: four images in a frame of the first one's size, divided at a random point.
            The three others are drawn from all training images.
        mosaic_scale: Smallest and largest scale factor of the images of a mosaic, in place of ``scale``.
        mosaic_off: Share of the run at its end without mosaics. With ``views``, the same share of the views has none.
        colour: Random changes of colours.
        erase: Probability of erasing one to three rectangles with noise. None hides more than half of an object.
        min_visible: Minimum fraction of an object's area that a rotation, ``scale``, ``translate`` or ``mosaic`` must
            leave in the image; objects below it are treated as difficult. Others keep their whole extent, but
            axis-aligned boxes are clipped to the image.
        views: Number of views of each image in the whole training: that many sizes, flips and so on are drawn for it
            once, the same in all runs, and one of them is chosen each time. ``None`` draws a new view each time. A
            cache of a teacher's predictions needs a number if anything is drawn from a range.
        batch_per_device: Images per process and micro-batch.
        workers: Reader processes for each training process; ``None``: its share of the cores less one, at least 1 and
            at most 16.
        crowd: Treatment of crowd regions and difficult objects. ``background`` trains them as background, like the
            reference; ``ignore`` keeps them in the batches, so that locations on them can be left out; ``objects``
            trains them as any other object, as published for DOTA. Evaluation always ignores them.
        repeat: Passes over the images in one epoch (3 in the published VOC schedules).
        pad_to: Multiple to which the sides of a batch are padded.
        cache: Memory for decoded images: a number in GB per machine; True is a quarter of the machine's memory. Images
            that do not fit are read each time.
        filter_empty: Whether to leave out training images without any annotated object.
        min_side: Minimum shorter side of training images, in pixels; others are left out.
        min_box_side: Minimum shorter side of training objects, in pixels of the image file (2 in Rotated-LD); others
            are left out.
    """

    path: str = ""
    format: Literal["auto", "coco", "voc", "yolo", "dota", "hrsc", "labelme"] = "auto"
    root: str = ""
    train: str | tuple[str, ...] | None = None
    val: str | tuple[str, ...] | None = None
    one_based: bool | None = None
    bits: int | None = Field(default=None, ge=8, le=16)
    holdout: float | None = Field(default=None, ge=0, lt=1)
    holdout_by: str | None = None
    classes: tuple[str, ...] | None = None
    ignore_classes: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ((1333, 800),)
    size_mode: Literal["value", "range"] = "value"
    augment: Literal["none", "light", "strong"] = "none"
    flip: float = Field(default=0.5, ge=0, le=1)
    flip_vertical: float = Field(default=0, ge=0, le=1)
    turns: bool = False
    rotate: float = Field(default=0, ge=0, le=180)
    scale: tuple[float, float] | None = None
    translate: Share = 0
    mosaic: float = Field(default=0, ge=0, le=1)
    mosaic_scale: tuple[float, float] = (0.5, 1.25)
    mosaic_off: float = Field(default=0.2, ge=0, le=1)
    colour: ColourSettings = ColourSettings()
    erase: float = Field(default=0, ge=0, le=1)
    min_visible: float = Field(default=0.5, ge=0, le=1)
    views: int | None = Field(default=None, ge=1)
    batch_per_device: int = Field(default=16, ge=1)
    workers: int | None = Field(default=None, ge=0)
    crowd: Literal["background", "ignore", "objects"] = "background"
    repeat: int = Field(default=1, ge=1)
    pad_to: int = Field(default=32, ge=1)
    cache: bool | float = False
    filter_empty: bool = True
    min_side: int = Field(default=32, ge=1)
    min_box_side: Positive = 1.0

    @property
    def hands_on_ignored(self) -> bool:
        """True if batches include ignored objects, so that locations on them take no part in training."""
        cut = self.rotate > 0 or self.scale is not None or self.translate > 0 or self.mosaic > 0
        some = bool(self.ignore_classes) or cut
        return self.crowd == "ignore" or (self.crowd == "objects" and some)

    @property
    def ranges(self) -> tuple[str, ...]:
        """Names of the settings that are drawn from a range, which gives too many views to enumerate."""
        drawn = {
            "size_mode=range": self.size_mode == "range" and len(self.sizes) > 1,
            "rotate": self.rotate > 0,
            "scale": self.scale is not None,
            "translate": self.translate > 0,
            "mosaic": self.mosaic > 0,
            "colour": self.colour.on,
            "erase": self.erase > 0,
        }
        return tuple(name for name, is_drawn in drawn.items() if is_drawn)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if values.get("ignore_classes"):
            values = {"crowd": "ignore", **values}
        strength = values.get("augment")
        parts = STRENGTHS.get(strength) if isinstance(strength, str) else None
        if parts is None:
            return values
        colour = values.get("colour", {})
        own = {"colour": parts["colour"] | colour} if isinstance(colour, dict) else {}
        return {**parts, **values, **own}

    @field_validator("sizes")
    @classmethod
    def _long_before_short(cls, sizes: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        if not sizes:
            raise ValueError("expected at least one pair (long, short)")
        for long, short in sizes:
            if not long >= short >= 1:
                raise ValueError(f"expected (long, short) with long >= short >= 1, got ({long}, {short})")
        return sizes

    @field_validator("scale", "mosaic_scale")
    @classmethod
    def _small_before_large(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and not 0 < scale[0] <= scale[1]:
            raise ValueError(f"expected the smallest and the largest factor, such as [0.5, 2], got {list(scale)}")
        return scale

    @field_validator("cache", mode="before")
    @classmethod
    def _memory_is_some(cls, cache: Any) -> Any:
        if not isinstance(cache, bool | int | float) or not 0 <= cache < inf:
            raise ValueError(f"expected true, false, or a number of GB, such as 8; came {cache!r}")
        return cache if isinstance(cache, bool) or cache > 0 else False

    @field_validator("holdout_by")
    @classmethod
    def _valid_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(
                f"{pattern!r} is no regular expression ({error}); write one such as 'video[0-9]+'"
            ) from error
        return pattern

    @field_validator("classes")
    @classmethod
    def _classes_once(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if classes is not None and (not classes or len(set(classes)) < len(classes)):
            raise ValueError(f"expected at least one class name, each once, got {list(classes)}")
        return classes

    @model_validator(mode="after")
    def _agree(self) -> DataSettings:
        both = [name for name in self.classes or () if name in self.ignore_classes]
        if both:
            raise ValueError(f"classes and ignore_classes both name {', '.join(both)}; leave it in one of them")
        if self.ignore_classes and self.crowd == "background":
            raise ValueError(
                "ignore_classes has no effect with crowd 'background', which trains ignored objects as background; set "
                "crowd to ignore, or leave the objects out with classes"
            )
        if self.size_mode == "range" and len(self.sizes) < 2:
            raise ValueError("size_mode 'range' needs two pairs in sizes, for example [[1333, 480], [1333, 800]]")
        return self
