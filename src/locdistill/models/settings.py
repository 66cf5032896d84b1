"""Settings of a detector, as data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from locdistill.geometry.rotated import AngleRange
from locdistill.images import ScaledView
from locdistill.models.kinds import KINDS, Model
from locdistill.settings import Settings
from locdistill.types import Triple

# Arguments of timm's that name weights or the outputs, which have settings of their own.
NOT_ARCHITECTURE = frozenset(
    (
        *("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"),
        *("features_only", "out_indices", "feature_cls", "scriptable", "exportable", "no_jit"),
    )
)
WEIGHTS = "weights of a backbone go into 'pretrained'"


class InputSettings(Settings):
    """Resizing of an image for the detector.

    Attributes:
        short: Maximum of the shorter side, in pixels.
        long: Maximum of the longer side, in pixels.
        pad_to: Height and width are padded to a multiple of this; 32 for a backbone of stride 32.
        bits: Number of bits that the values of 16-bit grayscale images use; None: 16.
    """

    short: int = Field(default=800, ge=1)
    long: int = Field(default=1333, ge=1)
    pad_to: int = Field(default=32, ge=1)
    bits: int | None = Field(default=None, ge=8, le=16)


def _positive(std: Triple) -> Triple:
    if min(std) <= 0:
        raise ValueError(f"expected positive numbers, came {std}")
    return std


Deviation = Annotated[Triple, AfterValidator(_positive)]
"""Standard deviation of the channels of images."""


class NormalisationSettings(Settings):
    """Normalisation of a detector's images; settings that are None are taken from its weights file.

    Attributes:
        mean: Mean of the input channels, in the network's order, 0 to 255.
        std: Standard deviation of the input channels, likewise.
        bgr: Whether the network takes blue, green, red.
    """

    mean: Triple | None = None
    std: Deviation | None = None
    bgr: bool | None = None


class AugmentSettings(Settings):
    """Test-time augmentation: detection on several views of an image, whose candidates are merged.

    Each view costs a forward pass; there are as many views as scales, or twice as many with ``flip``.

    Attributes:
        scales: Factors of the limits of the input size.
        flip: Whether to add a view mirrored left and right for each size.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @field_validator("scales")
    @classmethod
    def _sensible(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if not scales or min(scales) <= 0 or len(set(scales)) != len(scales):
            raise ValueError(f"scales are positive numbers that all differ, such as [0.8, 1, 1.2]; got {list(scales)}")
        return scales

    @property
    def views(self) -> tuple[ScaledView, ...]:
        """Views of each image."""
        return tuple(ScaledView(scale, flipped) for scale in self.scales for flipped in (False, True)[: 1 + self.flip])


class DetectionSettings(Settings):
    """Conversion of dense predictions to detections (the published test settings of GFL).

    Attributes:
        score_threshold: Class score above which a pair of location and class is kept.
        candidates: Number of locations kept per level, by their best class score.
        nms: ``plain`` suppresses boxes by their IoU with better ones. ``voting_cluster_diou`` takes the distance of the
            centres into account as well, and moves each box that is kept to the mean of those close to it
            (`locdistill.geometry.nms.voting_nms`).
        nms_iou: IoU with a better box of its class above which a box is suppressed.
        max_detections: Number of detections kept per image.
        augment: Views of each image.
    """

    score_threshold: float = Field(default=0.05, ge=0, lt=1)
    candidates: int = Field(default=1000, ge=1)
    nms: Literal["plain", "voting_cluster_diou"] = "plain"
    nms_iou: float = Field(default=0.6, ge=0, le=1)
    max_detections: int = Field(default=100, ge=1)
    augment: AugmentSettings = AugmentSettings()


class DetectorSettings(Settings):
    """Dense detector: backbone, pyramid, head, input and output.

    With ``pretrained=False`` the defaults of ``frozen_stages`` and ``norm_eval`` become -1 and False: freezing random
    weights, or normalising by statistics that were never collected, is rarely intended.

    Attributes:
        model: Kind of detector.
        backbone: A timm model name that supports ``features_only``, with or without a tag of pretrained weights.
        backbone_args: Properties of the architecture, passed on to ``timm.create_model``. ``norm_layer`` may be
            ``groupnorm:G`` for G groups. Arguments that make timm read a file or a hub are refused: these settings also
            come from weight files, and reading one must not open another.
        deformable: Stages (1 to 4) of a ResNet, ResNeXt or Res2Net whose 3x3 convolutions are deformable.
        style: Convolution of a bottleneck that halves the resolution: the 3x3 one (``pytorch``) or the first 1x1 one
            (``caffe``, as in the weights of Detectron).
        pretrained: True for timm's own weights, False for random ones, or the path of a file (.pth or .safetensors)
            with the state dict of the timm classifier.
        classes: Names of the classes; empty until they are taken from the data.
        background_channel: Whether the class scores have one more channel, for background, which is ignored. The
            published GFL v2 has it by accident; its checkpoints need it.
        channels: Width of pyramid and head.
        depth: Number of convolutions in each of the two towers of the head.
        norm_groups: Groups of the group normalisation in the head; 0 for none (RetinaNet).
        levels: Pyramid levels; level k has stride ``2 ** k``. Those above 5 come from further stride-2 convolutions.
        reg_max: Largest distance of an edge, in strides.
        anchor_scale: Side of the smallest square anchor of a location, in strides.
        angles: Range of the angles of rotated boxes: ``oc`` (OpenCV's, in which the first side may be the shorter one),
            or ``le90`` and ``le135``, with the longer side first.
        angle_bins: Whether the bins of the angle lie on a circle, where the last is next to the first (``circular``),
            or on a line (``linear``, as published).
        angle_unit: Unit of the angle of ``rotated_retinanet``, in radians; pi in JDet.
        predictor: Side of the kernels of the two predictors behind the towers of RetinaNet: 3, or 1 in JDet.
        frozen_stages: -1 trains the whole backbone, 0 freezes its stem, k > 0 all parameters that the map of stride
            ``2 ** (k + 1)`` depends on.
        norm_eval: Whether batch normalisation in the backbone keeps its statistics while training.
        norm_frozen: Whether its scale and shift are not trained either.
        bgr: Whether the network takes blue, green, red (weights of Detectron); images are RGB everywhere else.
        mean: Mean of the input channels, in the network's order, 0 to 255; None takes that of the backbone's
            pretraining.
        std: Standard deviation of the input channels, likewise.
        input: Size of the input outside training.
        detections: Conversion of predictions to detections.
    """

    model: Model = "gfl"
    backbone: str = "resnet18"
    backbone_args: dict[str, Any] = Field(default_factory=dict)
    deformable: tuple[int, ...] = ()
    style: Literal["pytorch", "caffe"] = "pytorch"
    pretrained: bool | str = True
    classes: tuple[str, ...] = ()
    background_channel: bool = False
    channels: int = Field(default=256, ge=1)
    depth: int = Field(default=4, ge=0)
    norm_groups: int = Field(default=32, ge=0)
    levels: tuple[int, ...] = (3, 4, 5, 6, 7)
    reg_max: int = Field(default=16, ge=1)
    anchor_scale: float = Field(default=8.0, gt=0)
    angles: AngleRange = "le135"
    angle_bins: Literal["circular", "linear"] = "circular"
    angle_unit: float = Field(default=1.0, gt=0)
    predictor: Literal[1, 3] = 3
    frozen_stages: int = Field(default=1, ge=-1, le=4)
    norm_eval: bool = True
    norm_frozen: bool = False
    bgr: bool = False
    mean: Triple | None = None
    std: Deviation | None = None
    input: InputSettings = InputSettings()
    detections: DetectionSettings = DetectionSettings()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Fill in defaults that depend on other settings."""
        if isinstance(values, dict) and values.get("pretrained") is False:
            values = {"frozen_stages": -1, "norm_eval": False} | values
        if isinstance(values, dict) and isinstance(model := values.get("model"), str) and model in KINDS:
            values = {**KINDS[model].defaults, **values}
            if KINDS[model].rotated:
                given = values.get("detections", {})
                few_overlap = {"nms_iou": 0.1, "candidates": 2000, "max_detections": 2000}
                values["detections"] = few_overlap | given if isinstance(given, dict) else given
        return values

    @model_validator(mode="after")
    def _consistent(self) -> DetectorSettings:
        levels = self.levels
        if foreign := sorted(NOT_ARCHITECTURE.intersection(self.backbone_args)):
            raise ValueError(f"backbone_args are properties of the architecture, not {', '.join(foreign)}; {WEIGHTS}")
        if not levels or levels != tuple(range(levels[0], levels[0] + len(levels))) or not 2 <= levels[0] <= 5:
            raise ValueError(f"levels must be consecutive and start between 2 and 5, such as [3, 4, 5]; got {levels}")
        if self.norm_groups and self.channels % self.norm_groups:
            raise ValueError(f"channels ({self.channels}) must be a multiple of norm_groups ({self.norm_groups})")
        if set(self.deformable) - {1, 2, 3, 4}:
            raise ValueError(f"deformable stages must be among 1, 2, 3, 4; got {self.deformable}")
        if self.background_channel and self.model != "gflv2":
            raise ValueError(f"only gflv2 has a background_channel, not {self.model}")
        if self.model == "gflv2" and self.reg_max < 3:
            raise ValueError(f"gflv2 uses the 4 largest bins: reg_max must be at least 3; got {self.reg_max}")
        if self.rotated and self.detections.nms != "plain":
            raise ValueError(f"detections.nms {self.detections.nms} is for axis-aligned boxes; set it to plain")
        if self.rotated and self.reg_max < 2:
            raise ValueError(f"the angle needs at least 3 bins: reg_max must be at least 2; got {self.reg_max}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"class names must differ; got {self.classes}")
        return self

    @property
    def rotated(self) -> bool:
        """Whether the detector has rotated boxes."""
        return KINDS[self.model].rotated

    @property
    def edges(self) -> int:
        """Number of numbers a location predicts: the angle of a rotated box counts as one more edge."""
        return 5 if self.rotated else 4

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each level in pixels."""
        return tuple(2**level for level in self.levels)
