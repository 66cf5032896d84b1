"""The network equals the executed reference: heads on given weights, and whole networks on computed ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from locdistill.interop.mmdet import ANGLE_BINS, BINS, rename, to_mmdet, to_ours
from locdistill.models.detector import Detector
from locdistill.models.heads.gfl import GFLHead, GFLv2Head
from locdistill.models.settings import DetectorSettings
from locdistill.types import Dense
from tests.rounding import assert_rounded

pytestmark = pytest.mark.golden


class Network(NamedTuple):
    """A network, and what the reference computes with it from the weights of `fill`.

    Attributes:
        settings: Ours.
        keys: Number of tensors in a checkpoint of theirs.
        million: Parameters, where they are known.
        stages: Mean absolute value of the maps of the backbone, C2 to C5.
        pyramid: The same of the pyramid, P3 to P7.
        edges: The same of the edge logits by level.
        first: First class score (a logit for GFL, a probability for GFL v2) and first edge logit.
    """

    settings: dict[str, Any]
    keys: int
    million: float | None
    stages: tuple[float, ...]
    pyramid: tuple[float, ...]
    edges: tuple[float, ...]
    first: tuple[float, float]


V2 = {"model": "gflv2", "background_channel": True}
R50 = (0.3037649, 0.3468142, 0.6213297, 0.3993294)
NETWORKS = {
    "resnet18": Network(
        {"backbone": "resnet18"},
        170,
        19.421,
        (0.3460663, 0.2482169, 0.153725, 0.2540156),
        (0.2431624, 0.06770349, 0.05016528, 0.03228522, 0.03174287),
        (0.09742747, 0.1023128, 0.08069699, 0.03905373, 0.03385065),
        (0.01600766, 0.0394799),
    ),
    "resnet50": Network(
        {"backbone": "resnet50"},
        368,
        None,
        R50,
        (0.3212338, 0.3404842, 0.3556806, 0.04739018, 0.03222868),
        (0.07751075, 0.07617197, 0.05783528, 0.07389838, 0.03348958),
        (0.02446919, -0.02712643),
    ),
    "resnet101 deformable": Network(
        {"backbone": "resnet101", "deformable": (2, 3, 4)},
        734,
        52.719,
        (0.3037649, 0.3395502, 1.834065, 0.4080766),
        (0.2445346, 0.2045715, 0.2340198, 0.03226725, 0.03170605),
        (0.05189444, 0.05293078, 0.04537676, 0.1283549, 0.1174784),
        (0.01007802, 0.03115962),
    ),
    "resnext101 deformable": Network(
        {"backbone": "resnext101_32x4d", "deformable": (3, 4)},
        726,
        53.467,
        (0.2513399, 0.4259046, 2.256237, 0.4439532),
        (0.1397168, 0.1768871, 0.1714775, 0.03442065, 0.03189125),
        (0.09712053, 0.06403013, 0.04418509, 0.05150333, 0.0396007),
        (-0.005833393, -0.02876073),
    ),
    "res2net101 deformable v2": Network(
        {"backbone": "res2net101d", "deformable": (3, 4), **V2},
        1242,
        53.580,
        (0.164936, 0.3370245, 2.073397, 0.3287016),
        (0.03728405, 0.0431665, 0.07192868, 0.03323795, 0.03190137),
        (0.1067596, 0.1050938, 0.04633801, 0.06073476, 0.03836749),
        (0.2609171, 0.02408501),
    ),
    "resnet50 v2": Network(
        {"backbone": "resnet50", **V2},
        372,
        32.444,
        R50,
        (0.1788729, 0.2056169, 0.2488006, 0.04377778, 0.03196652),
        (0.06909125, 0.06965427, 0.06404474, 0.03872266, 0.06196283),
        (0.2538929, -0.04828402),
    ),
}


def sequence(shape: tuple[int, ...], amplitude: float, frequency: float, phase: float) -> Tensor:
    n = np.arange(int(np.prod(shape)), dtype=np.float64)
    values = amplitude * np.sin(frequency * n + phase + 0.001 * (n % 97))
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def from_mmdet(theirs: dict[str, Tensor], model: str) -> dict[str, Tensor]:
    own, unknown = rename(
        {name: value for name, value in theirs.items() if name not in (BINS, ANGLE_BINS)}, to_ours(model)
    )
    assert not unknown
    return own


def fill(detector: Detector) -> None:
    """Weights that are a function of the order of the reference's sorted names, so that a swapped pair would show."""
    model = detector.settings.model
    theirs, j = to_mmdet(detector.state_dict(), model), 0
    for name in sorted(theirs):
        shape = tuple(theirs[name].shape)
        if name.endswith(("num_batches_tracked", "integral.project", ".scale")):
            continue
        if name.endswith(("running_mean", "running_var")):
            theirs[name] = torch.full(shape, float(name.endswith("var")))
            continue
        if len(shape) >= 2:
            theirs[name] = sequence(shape, 1.2 / float(np.sqrt(np.prod(shape[1:]))), 0.37, 0.1 * j)
        elif name.endswith("weight"):
            theirs[name] = torch.ones(shape)
        else:
            theirs[name] = sequence(shape, 0.05, 0.37, 0.1 * j)
        j += 1
    detector.load_state_dict(from_mmdet(theirs, model))


def close(actual: Tensor, expected: float, rtol: float) -> bool:
    return float(actual) == pytest.approx(expected, rel=rtol, abs=1e-7)


def double(detector: Detector) -> None:
    """Let the network compute in float64, so that only the reference rounds: to the same numbers on every machine.

    Edge logits are float32 all the same, and so is what a head of GFL v2 reads off them.
    """
    detector.double()
    if isinstance(detector.head, GFLv2Head):
        detector.head.quality.float()


LONG = ("resnet101 deformable", "resnext101 deformable")
"""Left to 'make test-all': one deformable network stands for all."""


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in NETWORKS]
)
def network(request: pytest.FixtureRequest, zero_weights: None) -> tuple[Network, Detector]:
    expected = NETWORKS[request.param]
    values = {"pretrained": False, "classes": tuple(str(index) for index in range(80)), "frozen_stages": 1}
    return expected, Detector(DetectorSettings.model_validate(values | expected.settings)).eval()


def test_whole_network(network: tuple[Network, Detector]) -> None:
    expected, detector = network
    fill(detector)
    double(detector)
    images = sequence((1, 3, 128, 160), 1.0, 0.05, 0.3).double()
    with torch.no_grad():
        # C2 is among the outputs of the backbone too, for the frozen part ends there.
        maps = [*detector.backbone(images), *detector.pyramid(images)]
        dense = detector(images)
    for map_, value in zip(maps, (*expected.stages, *expected.pyramid), strict=True):
        assert close(map_.abs().mean(), value, rtol=5e-6)
    # The maps of the coarse levels are small and even, so that normalisation by group in the towers enlarges what the
    # reference rounds: disturbing the result of every convolution by 3e-7 moves the mean of P5 by up to 1.3e-3
    # (deformable ResNet-101) or 6e-5 (ResNet-50); single elements are small sums of large terms. The heads are compared
    # more closely below, on ordinary values.
    rtol = 2e-3 if expected.settings.get("deformable") else 2e-4
    by_level = dense.edge_logits.split(detector.grid_for((128, 160)).level_sizes, 1)
    for level, value in zip(by_level, expected.edges, strict=True):
        assert close(level.abs().mean(), value, rtol=rtol)
    scores = dense.score_logits.sigmoid() if dense.quality_in_score else dense.cls_logits
    assert close(scores[0, 0, 0], expected.first[0], rtol=5 * rtol)
    assert close(dense.edge_logits[0, 0, 0, 0], expected.first[1], rtol=5 * rtol)


def test_names_of_a_checkpoint(network: tuple[Network, Detector]) -> None:
    expected, detector = network
    model = detector.settings.model
    theirs = to_mmdet(detector.state_dict(), model)
    assert len(theirs) == expected.keys
    assert theirs["neck.fpn_convs.4.conv.weight"].shape == (256, 256, 3, 3)
    assert theirs["bbox_head.gfl_cls.bias"].shape == (81 if model == "gflv2" else 80,)
    assert theirs["bbox_head.gfl_reg.bias"].shape == (68,)
    assert theirs["bbox_head.scales.4.scale"].shape == ()
    assert theirs["bbox_head.integral.project"].tolist() == list(range(17))
    back = from_mmdet(theirs, model)
    assert back.keys() == detector.state_dict().keys()


def test_names_of_deformable_convolutions(network: tuple[Network, Detector]) -> None:
    """Those of the named stages, and no others, with the offsets below the convolution."""
    expected, detector = network
    theirs = to_mmdet(detector.state_dict(), detector.settings.model)
    stages = {name.split(".")[1] for name in theirs if ".conv_offset." in name}
    assert stages == {f"layer{stage}" for stage in expected.settings.get("deformable", ())}
    for stage in stages:
        inner = "convs.2" if expected.settings["backbone"] == "res2net101d" else "conv2"
        weight = theirs[f"backbone.{stage}.0.{inner}.weight"]
        groups = 32 if expected.settings["backbone"] == "resnext101_32x4d" else 1
        assert theirs[f"backbone.{stage}.0.{inner}.conv_offset.weight"].shape == (18, weight.shape[1] * groups, 3, 3)
        assert theirs[f"backbone.{stage}.0.{inner}.conv_offset.bias"].shape == (18,)


def test_number_of_parameters(network: tuple[Network, Detector]) -> None:
    expected, detector = network
    million = sum(parameter.numel() for parameter in detector.parameters()) / 1e6
    assert expected.million is None or round(million, 3) == expected.million


def head_of(arrays: dict[str, np.ndarray], prefix: str, **settings: Any) -> tuple[Dense, dict[str, Tensor]]:
    """What a head of ours says with the weights and of the maps in ``arrays``, and these."""
    own = {key.removeprefix(prefix): torch.from_numpy(value) for key, value in arrays.items() if prefix in key}
    names = tuple(str(index) for index in range(20))
    values = DetectorSettings(channels=32, depth=2, norm_groups=32, classes=names, **settings)
    head = GFLv2Head(values) if values.model == "gflv2" else GFLHead(values)
    theirs = {key.replace("sd/", "bbox_head."): value for key, value in own.items() if key.startswith("sd/")}
    ours = from_mmdet(theirs, values.model)
    head.load_state_dict({key.removeprefix("head."): value for key, value in ours.items()})
    with torch.no_grad():
        return head([own[f"feat{level}"] for level in range(5)]), own


def flat(arrays: dict[str, Tensor], name: str, *shape: int) -> Tensor:
    return torch.cat([arrays[f"{name}{level}"].permute(0, 2, 3, 1).reshape(2, -1, *shape) for level in range(5)], 1)


TERMS = 3 * 32 * 9
"""Terms of a logit of that head: two convolutions of a tower and the last one, of 32 channels and 3x3 each."""


def test_head_on_given_weights(golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    dense, own = head_of(golden("f_small_mmdet33"), "gflhead/")
    assert_rounded(dense.cls_logits, flat(own, "cls", 20), terms=TERMS)
    assert_rounded(dense.edge_logits, flat(own, "box", 4, 17), terms=TERMS)


def test_v2_head_on_given_weights(golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    """The reference's head hands out probabilities, which ours says as two factors, and the logits of the first."""
    dense, own = head_of(golden("f_small_fork"), "gflv2head/", model="gflv2", background_channel=True)
    assert_rounded(dense.cls_logits, flat(own, "out2", 21), terms=TERMS)
    assert_rounded(dense.edge_logits, flat(own, "box", 4, 17), terms=TERMS)
    assert_rounded(dense.score_logits.sigmoid(), flat(own, "cls", 21), terms=TERMS)


def test_quality_read_off_distributions() -> None:
    """Weights and logits computed as in `fill`, for two rows of three locations; eight digits of the reference's."""
    head = GFLv2Head(DetectorSettings(model="gflv2", channels=8, norm_groups=8, classes=("a",))).double()
    with torch.no_grad():
        for index, parameter in enumerate(head.quality.parameters()):
            parameter.copy_(sequence(tuple(parameter.shape), 0.5, 0.37, 0.1 * index))
        logits = sequence((1, 68, 2, 3), 2.0, 0.37, 0.2).flatten(2).transpose(1, 2).reshape(1, 6, 4, 17)
        quality = head.read(logits.double())
    expected = [[0.98706555, 0.98706985, 0.98706669, 0.98706645, 0.98706228, 0.98705882]]
    assert_rounded(quality.sigmoid(), expected, terms=4)  # the last sigmoid of the reference
