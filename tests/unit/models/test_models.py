"""The detector: settings, layout of the predictions, input, modes, detections."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from PIL import Image
from torch import nn

from locdistill.errors import ImageError, RecipeError
from locdistill.geometry.bins import Bins
from locdistill.geometry.grid import Grid
from locdistill.models import postprocess
from locdistill.models.detector import CACHED_GRIDS, Detector
from locdistill.models.fpn import FPN
from locdistill.models.heads.gfl import GFLHead
from locdistill.models.kinds import ExtraLevels
from locdistill.models.settings import DetectionSettings, DetectorSettings
from locdistill.types import Dense, Detections

SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "backbone_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]},
    "pretrained": False,
    "classes": ("disc", "box", "bar"),
    "channels": 8,
    "depth": 1,
    "norm_groups": 4,
    "input": {"short": 64, "long": 96},
}


def settings(**values: Any) -> DetectorSettings:
    return DetectorSettings.model_validate(SMALL | values)


@pytest.fixture(scope="module")
def detector() -> Detector:
    """A detector with random weights that sees something everywhere."""
    torch.manual_seed(0)
    built = Detector(settings()).eval()
    nn.init.normal_(built.head.cls.weight, std=0.5)
    nn.init.zeros_(built.head.cls.bias)
    return built


# Settings.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"levels": (3, 5)}, "levels must be consecutive"),
        ({"levels": ()}, "levels must be consecutive"),
        ({"levels": (6, 7)}, "start between 2 and 5"),
        ({"channels": 10}, r"channels \(10\) must be a multiple of norm_groups \(4\)"),
        ({"std": (1, 0, 1)}, "expected positive numbers"),
        ({"classes": ("a", "a")}, "class names must differ"),
        ({"clases": ("a",)}, "clases"),
        ({"detections": {"nms_iou": 2}}, "nms_iou"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        settings(**values)


def test_a_random_backbone_is_trained_whole_unless_told() -> None:
    assert (DetectorSettings().frozen_stages, DetectorSettings().norm_eval) == (1, True)
    values = DetectorSettings(pretrained=False)
    assert (values.frozen_stages, values.norm_eval) == (-1, False)
    values = DetectorSettings(pretrained=False, frozen_stages=1, norm_eval=True)
    assert (values.frozen_stages, values.norm_eval) == (1, True)
    assert DetectorSettings.model_validate(values.model_dump(mode="json")) == values


def test_settings_of_the_paper() -> None:
    values = DetectorSettings()
    assert values.strides == (8, 16, 32, 64, 128)
    assert (values.channels, values.depth, values.norm_groups, values.reg_max) == (256, 4, 32, 16)
    assert values.detections == DetectionSettings(
        score_threshold=0.05, candidates=1000, nms_iou=0.6, max_detections=100
    )


def test_classes_must_be_known() -> None:
    with pytest.raises(RecipeError, match=r"names of its classes: set 'detector.classes'"):
        Detector(settings(classes=()))


# Pyramid and head.


def test_pyramid_of_known_weights() -> None:
    """All weights the identity: each level is its own map plus the enlarged coarser ones."""
    fpn = FPN((1, 1), 1, extra_levels=1)
    for convolution in fpn.laterals:
        nn.init.ones_(convolution.weight)
    for convolution in fpn.outputs:
        nn.init.zeros_(convolution.weight)
        convolution.weight.data[0, 0, 1, 1] = 1
    fine, coarse = torch.arange(12.0).reshape(1, 1, 3, 4), torch.tensor([[[[10.0, 20.0], [30.0, 40.0]]]])
    levels = fpn([fine, coarse])
    enlarged = torch.tensor([[10.0, 10, 20, 20], [10, 10, 20, 20], [30, 30, 40, 40]])
    torch.testing.assert_close(levels[0][0, 0], fine[0, 0] + enlarged)
    torch.testing.assert_close(levels[1], coarse)
    assert levels[2].tolist() == [[[[10.0]]]]  # stride 2 on the output of the level before


def test_no_activation_between_the_further_levels() -> None:
    fpn = FPN((1,), 1, extra_levels=2)
    with torch.no_grad():
        levels = fpn([-torch.ones(1, 1, 8, 8)])
        torch.testing.assert_close(levels[2], fpn.outputs[2](fpn.outputs[1](levels[0])))


def leave_nan_in_free_memory() -> None:
    """Memory that is allocated afterwards and not written shows as NaN."""
    kept = [torch.full((size,), torch.nan) for size in range(16, 8000, 16) for _ in range(2)]
    del kept


@pytest.mark.parametrize("extra", ["output", "output_relu", "input"])
@pytest.mark.parametrize("height", [1, 2, 3])
def test_gradients_of_a_map_of_one_column_are_those_of_float32(height: int, extra: ExtraLevels) -> None:
    """In bf16, with AVX-512, oneDNN adds to the weight's gradient what it finds in free memory."""
    torch.manual_seed(0)
    fpn, stage = FPN((16,), 16, extra_levels=2, extra=extra), torch.randn(2, 16, height, 1)
    for _ in range(5):
        gradients = []
        for half in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                levels = fpn([stage])
            assert [level.shape[-2:] for level in levels[1:]] == [(-(-height // 2), 1), (1, 1)]
            leave_nan_in_free_memory()
            further = [convolution.weight for convolution in fpn.outputs[1:]]
            gradients.append(torch.autograd.grad(sum(level.float().square().sum() for level in levels), further))
        for exact, rough in zip(*gradients, strict=True):
            torch.testing.assert_close(rough, exact, rtol=0, atol=0.05 * float(exact.abs().max()))
            assert (rough[..., 0] == 0).all()  # this column of the kernel sees nothing but padding
            assert (rough[..., 2] == 0).all()


@pytest.mark.parametrize("height", [1, 2])
def test_a_map_of_one_column_gives_the_same_with_and_without_gradients(height: int) -> None:
    torch.manual_seed(0)
    fpn, stage = FPN((16,), 16, extra_levels=2), torch.randn(2, 16, height, 1)
    with torch.no_grad():
        plain = fpn([stage])
    torch.testing.assert_close(fpn([stage]), plain)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    head = GFLHead(DetectorSettings(classes=("a", "b")))
    assert head.cls.bias.tolist() == pytest.approx([-4.59511985] * 2)
    assert (head.reg.bias == 0).all()
    assert float(head.reg.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert float(head.cls_tower[3].conv.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert head.cls_tower[0].conv.bias is None
    assert [scale.item() for scale in head.scales] == [1.0] * 5
    fpn = FPN((16,), 32)
    assert fpn.outputs[0].weight.abs().max() <= math.sqrt(6 / (2 * 32 * 9))
    assert (fpn.outputs[0].bias == 0).all()


def test_predictions_are_ordered_by_level_then_row() -> None:
    """The prediction of a location is that of the map at its place; edges are left, top, right, bottom."""
    torch.manual_seed(0)
    head = GFLHead(settings(levels=(3, 4), depth=0)).eval()
    levels = [torch.randn(2, 8, 3, 5), torch.randn(2, 8, 2, 3)]
    head.scales[1].data.fill_(2.0)
    with torch.no_grad():
        cls_logits, edge_logits = head(levels)[:2]
        classes, edges = head.cls(levels[1]), head.reg(levels[1]) * 2
    grid = Grid.build(((3, 5), (2, 3)), (8, 16))
    assert cls_logits.shape == (2, len(grid.points), 3)
    assert edge_logits.shape == (2, len(grid.points), 4, 17)
    at = ((grid.points == torch.tensor([2.0 * 16, 1.0 * 16])).all(-1) & (grid.levels == 1)).nonzero()
    assert at.tolist() == [[15 + 1 * 3 + 2]]
    torch.testing.assert_close(cls_logits[:, int(at)], classes[:, :, 1, 2])
    torch.testing.assert_close(edge_logits[:, int(at), 3], edges[:, 51:68, 1, 2])


def test_one_image_with_a_level_of_one_location_and_a_channel_per_group() -> None:
    head = GFLHead(settings(channels=4, levels=(3,))).eval()
    level = torch.randn(1, 4, 1, 1)
    with torch.no_grad():
        alone = head([level]).cls_logits
        together = head([level.expand(2, -1, -1, -1)]).cls_logits
    torch.testing.assert_close(alone, together[:1])


def test_edge_logits_are_float32_under_autocast(detector: Detector) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        dense = detector(torch.randn(1, 3, 64, 64))
    assert dense.edge_logits.dtype == torch.float32
    assert dense.cls_logits.dtype == torch.bfloat16


@pytest.mark.parametrize("levels", [(3, 4, 5, 6, 7), (3, 4, 5), (2, 3, 4, 5), (4, 5, 6), (3, 4)])
def test_grid_fits_the_predictions(levels: tuple[int, ...]) -> None:
    built = Detector(settings(levels=levels)).eval()
    for size in ((64, 96), (160, 32), (224, 288)):
        with torch.no_grad():
            dense = built(torch.zeros(1, 3, *size))
        grid = built.grid_for(size)
        assert dense.cls_logits.shape == (1, len(grid.points), 3)
        assert grid.level_strides == tuple(2**level for level in levels)
    used = [name for name, parameter in built.named_parameters() if parameter.requires_grad]
    (
        built.train()(torch.randn(2, 3, 64, 64)).cls_logits.sum() + built(torch.randn(2, 3, 64, 64)).edge_logits.sum()
    ).backward()
    assert [name for name in used if built.get_parameter(name).grad is None] == []


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_100", "regnetx_002"])
def test_other_backbones(name: str) -> None:
    built = Detector(settings(backbone=name, backbone_args={})).eval()
    with torch.no_grad():
        dense = built(torch.zeros(1, 3, 64, 96))
    assert dense.edge_logits.shape == (1, len(built.grid_for((64, 96)).points), 4, 17)


def test_maps_with_channels_last() -> None:
    """Swin transformers give their maps as height, width, channels."""
    arguments = {"strict_img_size": False, "embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    built = Detector(settings(backbone="swin_tiny_patch4_window7_224", backbone_args=arguments)).eval()
    with torch.no_grad():
        maps = built(torch.zeros(1, 3, 64, 96), features=True).features
    assert [lateral.in_channels for lateral in built.fpn.laterals] == [24, 48, 96]
    assert [tuple(map_.shape[2:]) for map_ in maps[:3]] == [(8, 12), (4, 6), (2, 3)]


# Input, grids, modes.


def test_normalised_images(detector: Detector) -> None:
    images = torch.full((2, 3, 4, 6), 255, dtype=torch.uint8)
    images[1, :, 2:] = images[1, :, :, 3:] = 0
    ready = detector.normalise(images, torch.tensor([[4, 6], [2, 3]]))
    white = (255 - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    torch.testing.assert_close(ready[0], white[:, None, None].expand(3, 4, 6))
    torch.testing.assert_close(ready[1, :, :2, :3], white[:, None, None].expand(3, 2, 3))
    assert (ready[1, :, 2:] == 0).all()  # exactly: as if padded after normalisation
    assert (ready[1, :, :, 3:] == 0).all()
    assert ready.dtype == torch.float32


def test_grids_are_made_once() -> None:
    built = Detector(settings())
    assert built.grid_for((64, 96)) is built.grid_for((64, 96))
    assert built.grid_for((64, 96)).anchor_shapes.tolist() == [[8.0, 8.0]]
    assert built.grid_for((64, 96)).shapes == ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))
    for step in range(1, CACHED_GRIDS + 10):
        built.grid_for((32, 32 * step))
    assert len(built._grids) == CACHED_GRIDS
    with pytest.raises(ValueError, match=r"multiples of 32, got \(64, 90\)"):
        built.grid_for((64, 90))


def test_modes() -> None:
    built = Detector(settings(frozen_stages=1, norm_eval=True))
    assert built.training
    assert built.train() is built
    assert built.head.training
    assert not built.backbone.bn1.training
    assert not built.backbone.layer1.training
    assert built.backbone.layer3.training
    assert not built.backbone.layer3[0].bn1.training
    assert built.backbone.layer3[0].bn1.weight.requires_grad
    built.requires_grad_(True).train()
    assert not built.backbone.conv1.weight.requires_grad
    assert not any(module.training for module in built.eval().modules())
    free = Detector(settings()).train()
    assert all(module.training for module in free.modules())
    assert all(parameter.requires_grad for parameter in free.parameters())


def test_a_detector_can_be_copied(detector: Detector) -> None:
    images = torch.randn(1, 3, 64, 64)
    detector.grid_for((64, 64))
    for twin in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert torch.equal(twin(images).cls_logits, detector(images).cls_logits)


# From predictions to detections.


def dense_of(boxes: list[tuple[int, int, list[int], float]], grid: Grid, images: int = 1) -> Dense:
    """Predictions with certain edges: (image, location, distances in strides, logit of class 1)."""
    cls_logits = torch.full((images, len(grid.points), 2), -20.0)
    edge_logits = torch.zeros(images, len(grid.points), 4, 17)
    for image, location, distances, logit in boxes:
        cls_logits[image, location, 1] = logit
        for edge, distance in enumerate(distances):
            edge_logits[image, location, edge, distance] = 100.0
    return Dense(cls_logits, edge_logits)


def detect(
    dense: Dense, grid: Grid, sizes: list[list[int]], scales: list[list[float]], **values: Any
) -> list[Detections]:
    settings = DetectionSettings(**values)
    found = postprocess.candidates(
        dense, grid, bins=Bins(), sizes=torch.tensor(sizes), scales=torch.tensor(scales), settings=settings
    )
    return postprocess.suppress([found], settings)


def test_boxes_are_decoded_clipped_and_scaled_back() -> None:
    grid = Grid.build(((4, 6), (2, 3)), (8, 16))
    # Location 9 of the first level is at x 24, y 8; location 24 + 4 is at x 16, y 16 of the second.
    dense = dense_of([(0, 9, [1, 1, 2, 3], 3.0), (1, 28, [2, 0, 1, 1], 1.0)], grid, images=2)
    first, second = detect(dense, grid, [[30, 44], [24, 30]], [[2.0, 4.0], [1.0, 0.5]])
    torch.testing.assert_close(first.boxes, torch.tensor([[16 / 4, 0.0, 40 / 4, 30 / 2]]))  # y2 32 clipped to 30
    torch.testing.assert_close(first.scores, torch.tensor([3.0]).sigmoid())
    assert first.labels.tolist() == [1]
    torch.testing.assert_close(second.boxes, torch.tensor([[0.0, 16.0, 30 / 0.5, 24.0]]))  # clipped to 30 x 24


def test_candidates_are_counted_per_level() -> None:
    """Two locations of the first level may go on; the second level keeps its own."""
    grid = Grid.build(((4, 6), (1, 1)), (8, 64))
    far = [(0, index, [0, 0, 1, 1], 0.1 * index) for index in range(24)]
    dense = dense_of([*far, (0, 24, [0, 0, 1, 1], -1.0)], grid)
    (found,) = detect(dense, grid, [[64, 64]], [[1.0, 1.0]], candidates=2)
    torch.testing.assert_close(found.scores, torch.tensor([2.3, 2.2, -1.0]).sigmoid())
    (found,) = detect(dense, grid, [[64, 64]], [[1.0, 1.0]], candidates=24)
    assert len(found.scores) == 25


@pytest.mark.parametrize("images", [1, 3])
def test_images_without_detections(images: int) -> None:
    grid = Grid.build(((4, 6),), (8,))
    found = detect(dense_of([], grid, images), grid, [[32, 48]] * images, [[1.0, 1.0]] * images)
    assert len(found) == images
    for one in found:
        assert (one.boxes.shape, one.scores.shape, one.labels.shape) == ((0, 4), (0,), (0,))
        assert (one.boxes.dtype, one.labels.dtype) == (torch.float32, torch.long)


# Pictures.


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_same_picture_in_every_form(detector: Detector, tmp_path: Path) -> None:
    array = picture(48, 80)
    Image.fromarray(array).save(tmp_path / "p.png")
    forms = [
        str(tmp_path / "p.png"),
        tmp_path / "p.png",
        Image.fromarray(array),
        array,
        torch.from_numpy(array).permute(2, 0, 1),
    ]
    together = detector.detect(forms)
    assert len(together) == 5
    assert len(together[0].scores) > 0
    for form, one in zip(forms, together, strict=True):
        (alone,) = detector.detect(form)
        assert len(alone.scores) == len(one.scores)
        torch.testing.assert_close(alone.boxes, together[0].boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(one.boxes, together[0].boxes, rtol=1e-4, atol=1e-3)


def test_pictures_of_many_sizes_keep_their_order_and_pixels(detector: Detector) -> None:
    pictures = [picture(*size, seed=index) for index, size in enumerate([(30, 60), (31, 60), (200, 90), (64, 64)] * 2)]
    found = detector.detect(iter(pictures), batch=3)
    assert len(found) == len(pictures)
    for one, array in zip(found, pictures, strict=True):
        limits = torch.tensor([array.shape[1], array.shape[0]] * 2)
        assert (one.boxes >= 0).all()
        assert (one.boxes <= limits + 1e-3).all()
        assert one.boxes.amax(0)[2:].gt(limits[2:] * 0.9).all()  # something reaches the far sides
        (alone,) = detector.detect(array)
        torch.testing.assert_close(alone.scores, one.scores, rtol=1e-4, atol=1e-5)


def test_several_pictures_in_one_array(detector: Detector) -> None:
    assert len(detector.detect(np.zeros((2, 32, 32, 3), np.uint8))) == 2
    assert len(detector.detect(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))) == 2
    assert detector.detect([]) == []


def test_detection_leaves_the_mode_and_no_graph(detector: Detector) -> None:
    twin = copy.deepcopy(detector).train()
    statistics = twin.backbone.bn1.running_mean.clone()
    (found,) = twin.detect(picture(32, 32))
    assert twin.training
    assert not found.scores.requires_grad
    assert torch.equal(twin.backbone.bn1.running_mean, statistics)


def test_a_picture_that_cannot_be_read(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"absent\.png"):
        detector.detect([picture(32, 32), tmp_path / "absent.png"])
    assert not detector.training
