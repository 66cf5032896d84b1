"""The network equals the executed reference: the head on given weights, and whole networks on computed ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from locdistill.interop.mmdet import from_mmdet, to_mmdet
from locdistill.models.detector import Detector
from locdistill.models.heads.gfl import GFLHead
from locdistill.models.settings import DetectorSettings

pytestmark = pytest.mark.golden

# Mean absolute value of the maps of the backbone (C2..C5), of the pyramid (P3..P7), of the edge logits by level, and
# the first element of the class and edge logits, as the reference computes them from the weights of `fill`.
NETWORKS = {
    "resnet18": (
        (0.3460663, 0.2482169, 0.153725, 0.2540156),
        (0.2431624, 0.06770349, 0.05016528, 0.03228522, 0.03174287),
        (0.09742747, 0.1023128, 0.08069699, 0.03905373, 0.03385065),
        (0.01600766, 0.0394799),
    ),
    "resnet50": (
        (0.3037649, 0.3468142, 0.6213297, 0.3993294),
        (0.3212338, 0.3404842, 0.3556806, 0.04739018, 0.03222868),
        (0.07751075, 0.07617197, 0.05783528, 0.07389838, 0.03348958),
        (0.02446919, -0.02712643),
    ),
}
KEYS = {"resnet18": 170, "resnet50": 368}


def sequence(shape: tuple[int, ...], amplitude: float, frequency: float, phase: float) -> Tensor:
    n = np.arange(int(np.prod(shape)), dtype=np.float64)
    values = amplitude * np.sin(frequency * n + phase + 0.001 * (n % 97))
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def fill(detector: Detector) -> None:
    """Weights that are a function of the order of the reference's sorted names, so that a swapped pair would show."""
    theirs, j = to_mmdet(detector.state_dict()), 0
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
    detector.load_state_dict(from_mmdet(theirs))


def close(actual: Tensor, expected: float, rtol: float = 1e-5) -> bool:
    return bool(torch.isclose(actual, torch.tensor(expected), rtol=rtol, atol=1e-7))


@pytest.fixture(scope="module", params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> tuple[str, Detector]:
    names = tuple(str(index) for index in range(80))
    settings = DetectorSettings(backbone=request.param, pretrained=False, classes=names, frozen_stages=1)
    return request.param, Detector(settings).eval()


def test_whole_network(network: tuple[str, Detector]) -> None:
    name, detector = network
    fill(detector)
    stages, pyramid, edges, (first_class, first_edge) = NETWORKS[name]
    images = sequence((1, 3, 128, 160), 1.0, 0.05, 0.3)
    with torch.no_grad():
        # C2 is among the outputs of the backbone too, for the frozen part ends there.
        actual = [*detector.backbone(images), *detector.pyramid(images)]
        dense = detector(images)
    for map_, expected in zip(actual, (*stages, *pyramid), strict=True):
        assert close(map_.abs().mean(), expected)
    by_level = dense.edge_logits.split(detector.grid_for((128, 160)).level_sizes, 1)
    for level, expected in zip(by_level, edges, strict=True):
        assert close(level.abs().mean(), expected, rtol=1e-4)
    # Single elements are small sums of large terms: the number of threads alone moves them by 2.4e-4 (ResNet-50).
    assert close(dense.cls_logits[0, 0, 0], first_class, rtol=5e-4)
    assert close(dense.edge_logits[0, 0, 0, 0], first_edge, rtol=5e-4)


def test_names_of_a_checkpoint(network: tuple[str, Detector]) -> None:
    name, detector = network
    theirs = to_mmdet(detector.state_dict())
    assert len(theirs) == KEYS[name]
    assert theirs["neck.fpn_convs.4.conv.weight"].shape == (256, 256, 3, 3)
    assert theirs["bbox_head.gfl_reg.bias"].shape == (68,)
    assert theirs["bbox_head.scales.4.scale"].shape == ()
    assert theirs["bbox_head.integral.project"].tolist() == list(range(17))
    back = from_mmdet(theirs)
    assert back.keys() == detector.state_dict().keys()


def test_number_of_parameters() -> None:
    names = tuple(str(index) for index in range(80))
    detector = Detector(DetectorSettings(backbone="resnet18", pretrained=False, classes=names))
    assert round(sum(parameter.numel() for parameter in detector.parameters()) / 1e6, 3) == 19.421


def test_head_on_given_weights(golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    arrays = golden("f_small_mmdet33")
    own = {key.removeprefix("gflhead/"): torch.from_numpy(value) for key, value in arrays.items() if "gflhead/" in key}
    names = tuple(str(index) for index in range(20))
    head = GFLHead(DetectorSettings(channels=32, depth=2, norm_groups=32, classes=names))
    theirs = {key.replace("sd/", "bbox_head."): value for key, value in own.items() if key.startswith("sd/")}
    head.load_state_dict({key.removeprefix("head."): value for key, value in from_mmdet(theirs).items()})
    with torch.no_grad():
        dense = head([own[f"feat{level}"] for level in range(5)])
    classes = torch.cat([own[f"cls{level}"].permute(0, 2, 3, 1).reshape(2, -1, 20) for level in range(5)], 1)
    edges = torch.cat([own[f"box{level}"].permute(0, 2, 3, 1).reshape(2, -1, 4, 17) for level in range(5)], 1)
    torch.testing.assert_close(dense.cls_logits, classes, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dense.edge_logits, edges, rtol=1e-5, atol=1e-6)
