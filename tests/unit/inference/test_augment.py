"""Test-time augmentation: each picture is looked at several times, in memory, from files, and by several processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from locdistill.cli import main
from locdistill.data.loader import evaluation_loader
from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset, Record
from locdistill.data.settings import DataSettings
from locdistill.errors import RecipeError
from locdistill.evaluation.evaluator import Evaluator
from locdistill.images import ScaledView, read_image
from locdistill.inference.evaluate import evaluate, evaluation_batch
from locdistill.inference.predict import predict
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings, InputSettings
from locdistill.training.train import train
from locdistill.types import Detections

ALL_VIEWS = "detections.augment={scales: [0.75, 1, 1.5], flip: true}"
QUICK = ("data.workers=0",)


def detector_of(**detections: Any) -> Detector:
    """A detector with random weights that sees something small everywhere."""
    torch.manual_seed(0)
    settings = DetectorSettings(
        backbone="resnet18",
        backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]},
        pretrained=False,
        classes=("disc", "box", "bar"),
        channels=8,
        depth=1,
        norm_groups=4,
        levels=(3, 4),
        input=InputSettings(short=64, long=96),
    )
    built = Detector(settings.model_copy(update={"detections": with_views(settings, **detections)})).eval()
    nn.init.normal_(built.head.cls.weight, std=0.5)
    nn.init.constant_(built.head.cls.bias, -2)
    nn.init.normal_(built.head.reg.weight, std=0.1)
    built.head.reg.bias.data = -(torch.arange(17.0) - 1.5).abs().repeat(4)
    return built


def with_views(settings: DetectorSettings, **values: Any) -> Any:
    return type(settings.detections).model_validate(values)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mirrored(found: Detections, width: int) -> Detections:
    left, top, right, bottom = found.boxes.unbind(-1)
    return found._replace(boxes=torch.stack((width - right, top, width - left, bottom), -1))


def assert_same(found: Detections, expected: Detections) -> None:
    assert found.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-3)


def same_but_for_order(found: Detections, expected: Detections) -> bool:
    """Whether each detection of either has its like, in pixels and in hundredths of scores, in the other."""
    ours, theirs = (
        torch.cat((one.boxes, one.scores[:, None] * 100, one.labels[:, None] * 100), 1) for one in (found, expected)
    )
    if len(ours) != len(theirs):
        return False
    difference = (ours[:, None] - theirs).abs().amax(-1)
    return bool(difference.amin(0).max() < 0.01) and bool(difference.amin(1).max() < 0.01)


# In memory.


def test_one_view_is_no_augmentation() -> None:
    (plain,) = detector_of().detect(picture(50, 90))
    (same,) = detector_of(augment={"scales": [1.0], "flip": False}).detect(picture(50, 90))
    assert len(plain.scores) > 10
    for ours, theirs in zip(same, plain, strict=True):
        assert torch.equal(ours, theirs)


def test_a_scale_is_another_input_size() -> None:
    (found,) = detector_of(augment={"scales": [0.5]}).detect(picture(50, 90))
    half = detector_of()
    half.settings = half.settings.model_copy(update={"input": InputSettings(short=32, long=48)})
    assert_same(found, half.detect(picture(50, 90))[0])


def test_all_views_undergo_one_suppression() -> None:
    """With nothing suppressed, what is reported is all that each view alone reports."""
    free: dict[str, Any] = {"nms_iou": 1, "max_detections": 100_000}
    image = picture(50, 90)
    (found,) = detector_of(**free, augment={"scales": [1.0, 0.5], "flip": True}).detect(image)
    alone = []
    for scale in (1.0, 0.5):
        one = detector_of(**free, augment={"scales": [scale]})
        alone += [one.detect(image)[0], mirrored(one.detect(np.ascontiguousarray(image[:, ::-1]))[0], 90)]
    together = Detections(*(torch.cat(parts) for parts in zip(*alone, strict=True)))
    assert len(found.scores) > 100
    assert same_but_for_order(found, together)
    assert not same_but_for_order(found, Detections(*(torch.cat((part, part)) for part in alone[0])))


def test_a_mirrored_picture_gives_mirrored_detections() -> None:
    """Not so without the mirrored view: convolutions of stride 2 know left from right."""
    image = picture(50, 90)
    mirror_image = np.ascontiguousarray(image[:, ::-1])
    for flip in (True, False):
        detector = detector_of(augment={"flip": flip}, nms_iou=1, max_detections=100_000)
        (found,), (other,) = detector.detect(image), detector.detect(mirror_image)
        assert len(found.scores) > 50
        assert same_but_for_order(found, mirrored(other, 90)) == flip


def test_pictures_of_many_sizes_are_looked_at_together() -> None:
    detector = detector_of(augment={"scales": [0.75, 1.5], "flip": True}, nms="voting_cluster_diou")
    pictures = [picture(*size, seed=index) for index, size in enumerate([(30, 60), (31, 60), (200, 90)] * 2)]
    for array, found in zip(pictures, detector.detect(pictures, batch=2), strict=True):
        (alone,) = detector.detect(array)
        torch.testing.assert_close(found.scores, alone.scores, rtol=1e-4, atol=1e-5)


# From files.


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detector_of().save(tmp_path_factory.mktemp("weights") / "best")


def test_views_come_from_the_loader(tiny_coco: Path) -> None:
    data = open_dataset(DataSettings(path=str(tiny_coco)), "val", training=False)
    limits, views = InputSettings(short=48, long=64), (ScaledView(), ScaledView(flipped=True), ScaledView(0.5))
    loader = evaluation_loader(data, limits, batch=3, workers=0, views=views)
    batches = list(loader)
    assert len(loader) == len(batches) == 6
    plain, flipped, small, *others = batches
    assert [batch.flipped for batch in batches] == [False, True, False] * 2
    assert [batch.image_ids.tolist() for batch in batches] == [[1001, 1002, 1003]] * 3 + [[1004]] * 3
    assert len(others) == 3
    assert torch.equal(flipped.images, plain.images.flip(-1))
    (once, _) = evaluation_loader(data, limits, batch=3, workers=0)
    assert torch.equal(plain.images, once.images)
    assert small.sizes.tolist() == [[24, 32]] * 3
    shares = [
        [
            batch.image_ids.tolist()
            for batch in evaluation_loader(data, limits, workers=0, views=views, rank=r, world_size=2)
        ]
        for r in range(2)
    ]
    assert shares == [[[1001]] * 3 + [[1003]] * 3, [[1002]] * 3 + [[1004]] * 3]


def test_evaluation_finds_what_the_detector_finds(tiny_coco: Path, weights: Path) -> None:
    overrides = [*QUICK, ALL_VIEWS, "detections.nms=voting_cluster_diou"]
    result = evaluate(weights, tiny_coco, overrides=overrides, batch=3)
    detector = Detector.load(weights)
    augment = {"scales": [0.75, 1, 1.5], "flip": True}
    detector.settings = detector.settings.model_copy(
        update={"detections": with_views(detector.settings, nms="voting_cluster_diou", augment=augment)}
    )
    assert len(result.detections) == 4
    for record in result.dataset.records:
        assert_same(result.detections[record.image_id], detector.detect(record.path)[0])
    plain = evaluate(weights, tiny_coco, overrides=QUICK, batch=3)
    assert plain.metrics != result.metrics


def test_pictures_must_be_padded_alike_in_every_view() -> None:
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    records = tuple(Record(Path(f"{i}.png"), i, w, 64, *empty) for i, w in enumerate((128, 100)))
    data, limits = Dataset("d", ("a",), records, "coco", (1,)), InputSettings(short=64, long=128)
    assert evaluation_batch(data, limits, 8) == 8  # both are padded to 128
    assert evaluation_batch(data, limits, 8, (ScaledView(), ScaledView(0.75))) == 8  # 96 and 75
    assert evaluation_batch(data, limits, 8, (ScaledView(), ScaledView(0.6))) == 1  # 77 and 60


def test_prediction_follows_the_overrides_and_forgets_them(tiny_coco: Path) -> None:
    detector, image = detector_of(), tiny_coco / "images" / "val_000.png"
    before = detector.settings
    (found,) = predict(detector, image, threshold=0.05, overrides=[ALL_VIEWS, "detections.max_detections=7"])
    assert len(found.detections.scores) == 7
    assert detector.settings is before
    other = detector_of(augment={"scales": [0.75, 1, 1.5], "flip": True}, max_detections=7)
    assert_same(found.detections, other.detect(image)[0])
    with pytest.raises(RecipeError, match="data: trained weights can be adjusted in input, detections only"):
        predict(detector, image, overrides=["data.workers=0"])
    with pytest.raises(RecipeError, match=r"augment.scales: expected a list, came 2"):
        predict(detector, image, overrides=["detections.augment.scales=2"])
    with pytest.raises(RecipeError, match=r"nms: expected 'plain' or 'voting_cluster_diou', came 'soft'"):
        predict(detector, image, overrides=["detections.nms=soft"])
    assert detector.settings is before


def test_the_switch_on_the_command_line(tiny_coco: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(*words: object) -> Any:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        assert not stop.value.code
        return json.loads(capsys.readouterr().out)

    six = "detections.augment={scales: [0.8, 1.0, 1.2], flip: true}"
    words = ("evaluate", weights, "--data", tiny_coco, *QUICK, "--json")
    found = answer(*words, "--tta")
    assert found["metrics"] == evaluate(weights, tiny_coco, overrides=[*QUICK, six]).metrics
    # What is said beside it counts more.
    once = answer(*words, "--tta", "detections.augment.scales=[1]", "detections.augment.flip=false")
    assert once["metrics"] == answer(*words)["metrics"] != found["metrics"]
    image = tiny_coco / "images" / "val_000.png"
    words = ("predict", weights, image, "--threshold", 0.1, "--json")
    expected = predict(weights, image, threshold=0.1, overrides=[six, "detections.nms=voting_cluster_diou"])
    assert answer(*words, "--tta", "--set", "detections.nms=voting_cluster_diou") == [expected[0].as_dict()]


def test_a_run_is_evaluated_as_its_weights_will_be(
    tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings of a recipe hold in training, and go with the weights."""
    judged: list[dict[int, Detections]] = []

    class Watched(Evaluator):
        def __call__(self, detections: dict[int, Detections]) -> dict[str, float]:
            judged.append(detections)
            return super().__call__(detections)

    monkeypatch.setattr("locdistill.training.fit.Evaluator", Watched)
    views = "detector.detections.augment={scales: [0.5, 1], flip: true}"
    threshold = "detector.detections.score_threshold=0.001"
    small = ["detector.channels=8", "detector.depth=1", "detector.norm_groups=4", "detector.levels=[3, 4]"]
    run = train(
        tiny_coco,
        backbone="mobilenetv3_small_050",
        pretrained="none",
        epochs=1,
        out=tmp_path / "run",
        overrides=[
            *(views, "detector.detections.nms=voting_cluster_diou", threshold, *small),
            *(*QUICK, "engine.progress=false"),
        ],
    )
    saved = Detector.load(run.last).settings.detections
    assert (saved.nms, len(saved.augment.views)) == ("voting_cluster_diou", 4)
    found = evaluate(run.last, tiny_coco, overrides=QUICK).detections
    once = evaluate(run.last, tiny_coco, overrides=[*QUICK, "detections.augment={scales: [1], flip: false}"]).detections
    for image_id, expected in judged[-1].items():
        assert_same(found[image_id], expected)
        assert len(expected.scores) > 10
        assert not same_but_for_order(once[image_id], expected)


def test_a_view_is_made_from_the_original() -> None:
    """Enlarging what was shrunk would lose what the shrunk picture has lost."""
    detector = detector_of(augment={"scales": [1.0, 4.0]})
    fine = read_image(picture(300, 300))
    small, large = detector.prepare(fine).images
    assert small.shape[-1] == 64
    assert large.shape[-1] == 256
    assert float(large.float().std()) > 1.5 * float(small.float().std())
