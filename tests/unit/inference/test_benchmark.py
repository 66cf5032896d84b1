"""`locdistill benchmark`: what is counted and told, without measuring long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from locdistill.errors import ImageError, RunError, WeightsError
from locdistill.inference.benchmark import engines
from locdistill.inference.benchmark.benchmark import benchmark, parse_size
from locdistill.inference.benchmark.measure import Difference, ImagesInMemory, Times, difference, look
from locdistill.inference.benchmark.result import BenchmarkResult, EngineResult, notes
from locdistill.models.count import multiply_adds, multiply_adds_of, parameters
from locdistill.types import Detections
from tests.unit.models.test_postprocess import detector_of

FACTS = {
    "device": "cpu",
    "batch": 4,
    "warm_up": 5,
    "candidates": 12.0,
    "detections": 3.0,
    "weights": "as trained",
    "images": "photos",
}


def test_multiply_adds_of_a_convolution() -> None:
    """3 x 3 from 4 to 8 channels, stride 2: 16 x 10 becomes 8 x 5 places of 8 channels, each a sum of 4 x 9."""
    with torch.device("meta"):
        conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        image = torch.zeros(1, 4, 16, 10)
    assert multiply_adds_of(conv, image) == 8 * 8 * 5 * 4 * 9
    assert parameters(conv) == 8 * 4 * 9 + 8


def test_multiply_adds_of_a_detector_grow_with_the_image() -> None:
    settings = detector_of("gfl").settings
    one, four = multiply_adds(settings, (128, 256)), multiply_adds(settings, (256, 512))
    assert one > 0
    assert four == 4 * one  # sizes are multiples of the largest stride


def test_percentiles_and_rate() -> None:
    times = Times(images=2, seconds=tuple(0.001 * n for n in range(1, 102)))
    assert times.percentiles == pytest.approx({"p50": 51.0, "p90": 91.0, "p99": 100.0})
    assert times.per_second == pytest.approx(2 * 101 / (0.001 * 101 * 102 / 2))
    data = times.as_dict()
    assert (data["batch"], data["calls"]) == (2, 101)
    assert data["milliseconds"]["mean"] == pytest.approx(51.0)


def result_of(**engines: EngineResult) -> BenchmarkResult:
    return BenchmarkResult(
        model="m",
        size=(800, 1344),
        facts=FACTS,
        parameters=2_500_000,
        multiply_adds=3_000_000_000,
        engines=engines,
        missing={"onnxruntime": "not installed"},
        notes=notes(FACTS, engines),
    )


def engine(apart: Difference | None = None, memory: float | None = None) -> EngineResult:
    single, batched = Times(images=1, seconds=(0.5, 0.5)), Times(images=4, seconds=(1.0,))
    return EngineResult(precision="32", single=single, batched=batched, memory_mb=memory, difference=apart)


def test_tables_and_json() -> None:
    apart = Difference(score=1e-6, edge_px=2e-3, detections=10, unmatched=0)
    result = result_of(eager=engine(memory=100.4), compiled=engine(apart))
    cost, speed, same = result.tables()
    assert cost.title == "m, 1344x800 (padded), cpu"
    assert cost.rows == (("2.50", "3.00", "6.00", "12.0", "3.0"),)
    assert speed.rows[0] == ("eager", "32", "2.00", "500.0", "500.0", "500.0", "4.00", "100")
    assert speed.rows[1][-1] == "-"
    assert len(speed.header) == len(speed.rows[0])
    assert same.rows == (("compiled", "1.0e-06", "2.0e-03", "10", "0"),)
    assert len(result_of(eager=engine()).tables()) == 2
    data = result.as_dict()
    assert data["gflops"] == {"multiply_adds": 3.0, "flops": 6.0}
    assert data["engines"]["eager"]["fps"] == 2.0
    assert data["missing"] == {"onnxruntime": "not installed"}
    assert not any("have no partner" in note for note in data["notes"])


def test_notes_say_what_is_not_real_and_who_disagrees() -> None:
    apart = Difference(score=0.2, edge_px=1.0, detections=10, unmatched=3)
    told = notes(FACTS | {"weights": "random", "images": "noise"}, {"eager": engine(), "compiled": engine(apart)})
    assert any("random weights and noise" in note for note in told)
    assert any("3 of 10 detections have no partner" in note for note in told)


def test_differences_between_answers() -> None:
    """The same predictions but for one score; of three detections the second is moved and the last is dropped."""
    detector = detector_of("gfl")
    pictures = ImagesInMemory(torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8), *[torch.tensor([[64, 96]])] * 2)
    boxes = torch.tensor([[0.0, 0, 20, 20], [30, 0, 50, 20], [60, 0, 80, 20]])
    found = Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0]))
    answer = look(detector, detector.see, pictures)._replace(detections=[found])
    zero = difference(detector, [answer], [answer])
    assert zero == Difference(score=0, edge_px=0, detections=6, unmatched=0)
    scores = answer.dense.cls_logits.sigmoid()
    scores[0, 5, 1] += 0.25
    moved = boxes[:2] + torch.tensor([[0.5], [5.0]])
    other = answer._replace(
        dense=answer.dense._replace(cls_logits=scores.logit()),
        detections=[Detections(moved, found.scores[:2], found.labels[:2])],
    )
    apart = difference(detector, [answer], [other])
    assert apart.score == pytest.approx(0.25, abs=1e-5)
    assert apart.unmatched == 3  # both places of the second, and the last
    assert apart.detections == 5


def test_sizes() -> None:
    assert parse_size("1333x800") == (800, 1333)
    for wrong in ("1333", "1333*800", "0x800", "x", "-1x5"):
        with pytest.raises(RunError, match="such as 1333x800"):
            parse_size(wrong)


def test_what_cannot_be_measured_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = detector_of("gfl").save(tmp_path / "w")
    with pytest.raises(RunError, match="expected one of eager, compiled, onnxruntime"):
        benchmark(weights, engines=["tensorrt"])
    with pytest.raises(RunError, match="fp16 needs a GPU"):
        benchmark(weights, precision="fp16", device="cpu")
    with pytest.raises(RunError, match="expected one of 32, bf16, fp16"):
        benchmark(weights, precision="64")
    with pytest.raises(WeightsError, match="such as gfl_r18_1x"):
        benchmark("gfl_r18_1")
    with pytest.raises(ImageError, match="no image in this folder"):
        benchmark(weights, data=tmp_path, device="cpu")

    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RunError, match=r"engine 'onnxruntime' cannot be used.*onnx.*pip install 'locdistill\[onnx\]'"):
        benchmark(weights, engines=["onnxruntime"], device="cpu", input="96x64", batch=1, steps=1)


def test_pictures_are_made_to_fit(tmp_path: Path) -> None:
    for name, size in (("wide", (200, 50)), ("tall", (50, 200))):
        Image.fromarray(np.full((size[1], size[0], 3), 200, np.uint8)).save(tmp_path / f"{name}.png")
    weights = detector_of("gfl", detections={"score_threshold": 0.001}).save(tmp_path / "w")
    looked: list[torch.Tensor] = []
    told: list[str] = []
    find = engines.eager

    def spy(detector, precision, tell):
        network = find(detector, precision, tell)
        return lambda images, sizes: (looked.append(images), network(images, sizes))[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engines.ENGINES, "eager", spy)
        result = benchmark(
            weights, input="100x60", engines=["eager"], data=tmp_path, batch=1, steps=2, device="cpu", tell=told.append
        )
    assert result.size == (64, 128)
    assert result.facts["images"] == str(tmp_path)
    assert result.engines["eager"].batched is None
    assert result.facts["candidates"] > 0
    assert told == ["eager: 2 calls with one image"]
    # The first, in the order of names, is the tall one: 15 x 60 pixels.
    tall, wide = looked[0], looked[1]
    assert (tall != 0).any(1)[0].nonzero().amax(0).tolist() == [59, 14]
    assert (wide != 0).any(1)[0].nonzero().amax(0).tolist() == [24, 99]
