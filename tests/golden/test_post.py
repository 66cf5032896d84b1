"""Post-processing equals the executed reference, on its arrays and on the vectors that are written down here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from locdistill.geometry.bins import Bins
from locdistill.geometry.grid import Grid
from locdistill.geometry.nms import pairwise_closeness
from locdistill.models.postprocess import candidates, suppress
from locdistill.models.settings import DetectionSettings
from locdistill.types import Dense, Detections
from tests.voting import published_voting_nms

pytestmark = pytest.mark.golden

Arrays = dict[str, np.ndarray]
STRIDES = (8, 16, 32, 64, 128)
ENLARGED = (1.25, 0.8)  # scale of the first and the second image where boxes are scaled back
VOTING = DetectionSettings(nms="voting_cluster_diou")
CASES = {"typical2": 2, "padded2": 2, "multi1": 1}


def flat(maps: list[Tensor]) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    shapes = tuple((int(m.shape[-2]), int(m.shape[-1])) for m in maps)
    return torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in maps], 1), shapes


def candidates_of(inputs: Arrays, case: str, shift: float, rescale: bool) -> list[Detections]:
    classes, shapes = flat([torch.from_numpy(inputs[f"{case}/s_cls{level}"]) for level in range(5)])
    edges, _ = flat([torch.from_numpy(inputs[f"{case}/s_box{level}"]) for level in range(5)])
    count = CASES[case]
    return candidates(
        Dense(classes + shift, edges.unflatten(-1, (4, 17))),
        Grid.build(shapes, STRIDES),
        bins=Bins(),
        sizes=torch.stack([torch.from_numpy(inputs[f"{case}/img{i}/img_shape"]) for i in range(count)]),
        scales=torch.tensor(ENLARGED[:count])[:, None].expand(-1, 2) if rescale else torch.ones(count, 2),
        settings=DetectionSettings(),
    )


def report(inputs: Arrays, case: str, shift: float, rescale: bool) -> list[Detections]:
    return suppress([candidates_of(inputs, case, shift, rescale)], DetectionSettings())


def expect(arrays: Arrays, key: str) -> Detections:
    return Detections(*(torch.from_numpy(arrays[f"{key}/{part}"]) for part in ("bboxes", "scores", "labels")))


def assert_equal(actual: Detections, expected: Detections) -> None:
    assert len(actual.scores) == len(expected.scores)
    assert (actual.labels == expected.labels).all()
    torch.testing.assert_close(actual.scores, expected.scores, rtol=1e-5, atol=1e-6)
    # Boxes are means of 17 bins times strides of up to 128 pixels, clipped to some 200: 1e-4 px is their last digit.
    torch.testing.assert_close(actual.boxes, expected.boxes, rtol=1e-5, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("shift", ["0", "-2.5", "-9"])
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("version", ["mmdet33", "fork"])
def test_plain_nms(golden: Callable[[str], Arrays], version: str, case: str, shift: str, rescale: bool) -> None:
    arrays = golden(f"e_post_{version}")
    found = report(golden("c_inputs"), case, float(shift), rescale)
    for index, own in enumerate(found):
        mode = "nms_rescale" if rescale else "nms"
        expected = expect(arrays, f"{case}/shift{shift}/{mode}/{index}")
        if version == "mmdet33" and case == "padded2" and index == 1:
            # MMDetection 3 drops boxes without area (here: clipped to an edge); the code of the paper, which we follow,
            # keeps them. They suppress nothing, so without them ours are the first of theirs.
            solid = (own.boxes[:, 2:] > own.boxes[:, :2]).all(-1)
            own = Detections(*(part[solid] for part in own))  # noqa: PLW2901
            expected = Detections(*(part[: len(own.scores)] for part in expected))
        assert_equal(own, expected)
        assert shift != "-9" or len(own.scores) == 0


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("shift", ["-2.5", "-9"])
@pytest.mark.parametrize("case", list(CASES))
def test_voting_nms(golden: Callable[[str], Arrays], case: str, shift: str, rescale: bool) -> None:
    arrays, found = golden("e_post_fork"), candidates_of(golden("c_inputs"), case, float(shift), rescale)
    reported = suppress([found], VOTING)
    for index, (all_own, own) in enumerate(zip(found, reported, strict=True)):
        mode = "voting_cluster_diounms_rescale" if rescale else "voting_cluster_diounms"
        expected = expect(arrays, f"{case}/shift{shift}/{mode}/{index}")
        # The formula that the property test compares with is what the reference executed.
        voted, kept = published_voting_nms(*all_own, threshold=0.6, limit=100)
        assert_equal(Detections(voted, all_own.scores[kept], all_own.labels[kept]), expected)
        # Of the boxes without area (clipped to an edge) the reference finds the first alone, and makes it NaN.
        solid, defined = (own.boxes[:, 2:] > own.boxes[:, :2]).all(-1), ~expected.boxes.isnan().any(-1)
        assert int((~solid).sum()) == (3 if (case, shift, index) == ("padded2", "-2.5", 1) else 0)
        count = int(solid.sum())
        assert count >= int(defined.sum()) - 2
        assert torch.equal(own.labels[solid], expected.labels[defined][:count])
        torch.testing.assert_close(own.scores[solid], expected.scores[defined][:count], rtol=1e-5, atol=1e-6)
        # It compares boxes that are moved by 4000 pixels per class, the largest by 316 000: half a last digit of that.
        torch.testing.assert_close(own.boxes[solid], expected.boxes[defined][:count], rtol=0, atol=2**-6)
        assert shift != "-9" or len(own.scores) == 0


def test_closeness(golden: Callable[[str], Arrays]) -> None:
    arrays = golden("f_small_fork")
    matrix, small = torch.from_numpy(arrays["geom/nms_diou_beta0.8"]), golden("f_small_mmdet33")
    boxes = torch.from_numpy(small["geom/distance2bbox"]), torch.from_numpy(small["geom/boxes2"])
    torch.testing.assert_close(pairwise_closeness(*boxes), matrix)


def test_voting_vectors_written_down() -> None:
    boxes = [(10, 10, 110, 110), (12, 12, 112, 112), (15, 10, 115, 118), (200, 200, 260, 280), (204, 198, 262, 284)]
    boxes.append((10, 10, 60, 60))
    scores = torch.tensor([[0.9, 0.1], [0.8, 0], [0.6, 0.3], [0.5, 0], [0, 0.7], [0.55, 0]])
    location, labels = (scores > 0.05).nonzero(as_tuple=True)
    found = Detections(torch.tensor(boxes).float()[location], scores[location, labels], labels)
    (voted,), (plain,) = suppress([[found]], VOTING), suppress([[found]], DetectionSettings())
    expected = [
        [11.30542, 10.726103, 111.30542, 111.65301],
        [204, 198, 262, 284],
        [10, 10, 60, 60],
        [200, 200, 260, 280],
        [14.499741, 10, 114.49974, 117.19958],
    ]
    torch.testing.assert_close(voted.boxes, torch.tensor(expected), rtol=1e-6, atol=1e-5)
    assert voted.scores.tolist() == plain.scores.tolist() == pytest.approx([0.9, 0.7, 0.55, 0.5, 0.3])
    assert voted.labels.tolist() == plain.labels.tolist() == [0, 1, 0, 0, 1]
    assert plain.boxes[[0, 4]].tolist() == [[10, 10, 110, 110], [15, 10, 115, 118]]


def sequence(shape: tuple[int, ...], amplitude: float, frequency: float, phase: float) -> Tensor:
    n = np.arange(int(np.prod(shape)), dtype=np.float64)
    values = amplitude * np.sin(frequency * n + phase + 0.001 * (n % 97))
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def test_vectors_written_down() -> None:
    """Numbers that the reference gave for maps of sines; scores tie often, so beyond the first, sums are compared."""
    shapes = ((32, 40), (16, 20), (8, 10), (4, 5), (2, 3))
    classes, _ = flat([sequence((1, 4, *hw), 1.5, 0.37 + 0.01 * i, 0.1) - 1 for i, hw in enumerate(shapes)])
    edges, _ = flat([sequence((1, 68, *hw), 1.0, 0.37 + 0.01 * i, 0.2) for i, hw in enumerate(shapes)])
    found = candidates(
        Dense(classes, edges.unflatten(-1, (4, 17))),
        Grid.build(shapes, STRIDES),
        bins=Bins(),
        sizes=torch.tensor([[250, 310]]),
        scales=torch.tensor([[1.5, 1.6]]),
        settings=DetectionSettings(),
    )
    (plain,), (voted,) = suppress([found], DetectionSettings()), suppress([found], VOTING)
    assert len(plain.scores) == len(voted.scores) == 100
    assert float(plain.scores.sum()) == pytest.approx(62.2217102, rel=1e-5)
    assert float(plain.boxes.sum()) == pytest.approx(36242.605, rel=1e-5)
    torch.testing.assert_close(plain.boxes[0], torch.tensor([146.20705, 117.29826, 193.75, 166.66667]))
    assert int(plain.labels[0]) == 1
    assert float(plain.scores[0]) == pytest.approx(0.6224594, rel=1e-6)
    assert float(voted.scores.sum()) == pytest.approx(62.2265472, rel=1e-5)
    assert float(voted.boxes.sum()) == pytest.approx(35605.621, rel=1e-5)
