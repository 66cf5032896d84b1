"""Exported files: equal to their detector, refused where they differ, and used as any other model."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from locdistill.distillation.onnx_teacher import ExportedTeacher, onnx_teacher
from locdistill.distillation.teacher import LiveTeacher
from locdistill.engine.module import blank_batch
from locdistill.errors import LocdistillError, RecipeError, RunError, WeightsError
from locdistill.export import export as module
from locdistill.export.export import ExportPlan, export
from locdistill.export.parity import Check, batches, compare, wrongly_kept
from locdistill.inference.evaluate import evaluate
from locdistill.inference.predict import predict
from locdistill.models.detector import Detector
from locdistill.models.exported import BOXES, RAW, ExportedDetector, open_detector, open_file, stored_scores
from locdistill.types import Detections
from tests.conftest import Answer
from tests.small import small_detector

ODD = ((64, 96), (96, 64), (50, 130), (31, 33))
"""Heights and widths of pictures of several aspect ratios."""


def busy_detector(**changes: Any) -> Detector:
    """A detector with random weights that sees something everywhere, with some candidates left out."""
    torch.manual_seed(0)
    usual: dict[str, Any] = {"detections": {"candidates": 40}}
    built = Detector(small_detector(**usual | changes)).eval()
    nn.init.normal_(built.head.cls.weight, std=0.1 if "retina" in built.kind.head else 0.5)  # no score is 1
    nn.init.constant_(built.head.cls.bias, -1)
    nn.init.normal_(built.head.reg.weight, std=0.1)
    return built


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for height, width in ODD:
        small = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{height}x{width}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busy_detector().save(tmp_path_factory.mktemp("weights") / "own")


@pytest.fixture(scope="module")
def dynamic(weights: Path, pictures: Path) -> Path:
    """A file of any size with both outputs."""
    return export(weights, weights.with_name("dynamic.onnx"), ExportPlan(dynamic=True), images=[pictures]).file


@pytest.fixture(scope="module")
def fixed(weights: Path, pictures: Path) -> Path:
    """A file of one size, and of two images."""
    return export(weights, weights.with_name("fixed.onnx"), ExportPlan(batch=2), images=[pictures]).file


# -------------------------------------------------------------------------------------------------------- the writing


@pytest.mark.parametrize(
    ("model", "dynamic"),
    [
        ("atss", False),
        pytest.param("atss", True, marks=pytest.mark.long),
        pytest.param("gflv2", True, marks=pytest.mark.long),
        pytest.param("fcos", True, marks=pytest.mark.long),
        ("retinanet", False),
        pytest.param("retinanet", True, marks=pytest.mark.long),
        ("rotated_gfl", False),
        pytest.param("rotated_gfl", True, marks=pytest.mark.long),
        pytest.param("rotated_retinanet", True, marks=pytest.mark.long),
    ],
)
def test_every_kind_of_detector(model: str, dynamic: bool, pictures: Path, tmp_path: Path) -> None:
    source = busy_detector(model=model).save(tmp_path / "own")
    result = export(source, plan=ExportPlan(dynamic=dynamic), images=[pictures])
    assert result.file == tmp_path / "own.onnx"
    assert result.facts.outputs == ("raw" if model.startswith("rotated") else "both")
    assert len(result.checks) == (6 if dynamic else 1) + len(ODD)
    assert all(check.equal for check in result.checks)
    assert all(check.detections > 0 for check in result.checks)
    assert {check.size for check in result.checks[: -len(ODD)]} >= ({(96, 128), (128, 96)} if dynamic else {(96, 128)})


def test_checks_are_at_three_sizes_and_two_numbers_of_images(dynamic: Path) -> None:
    facts = open_file(dynamic)[1]
    assert facts is not None
    sizes = ((96, 128), 2), ((128, 96), 3), ((48, 128), 3)
    assert list(batches(facts)) == [(batch, size) for size, several in sizes for batch in (1, several)]


def test_metadata_for_other_programs(fixed: Path, dynamic: Path) -> None:
    for file, rule in ((fixed, {"fit": [96, 128]}), (dynamic, {"short": 96, "long": 128, "pad_to": 32})):
        model = onnx.load(str(file))
        facts = {each.key: json.loads(each.value) for each in model.metadata_props}
        assert facts["classes"] == ["disc", "box", "bar"]
        assert facts["strides"] == [8, 16]
        assert facts["bins"] == 17
        assert facts["resize"] == rule
        assert facts["thresholds"] == {"score": 0.05, "iou": 0.6, "detections": 100, "show": {}}
        assert len(facts["weights_sha256"]) == 64
        assert [each.name for each in model.graph.input] == ["images", "sizes"]
        assert {each.name for each in model.graph.output} == {*RAW[:2], *BOXES}


@pytest.mark.parametrize("outputs", ["raw", "boxes"])
def test_outputs_can_be_chosen(weights: Path, pictures: Path, tmp_path: Path, outputs: str) -> None:
    file = export(weights, tmp_path / "x.onnx", ExportPlan(outputs=outputs)).file
    names = {each.name for each in onnx.load(str(file)).graph.output}
    assert names == set(RAW[:2] if outputs == "raw" else BOXES)
    shown, own = predict(file, pictures, threshold=0.3), predict(weights, pictures, threshold=0.3)
    if outputs == "boxes":  # of images in the shape of the file they are those of the weights
        ((a, b),) = [(a, b) for a, b in zip(shown, own, strict=True) if (a.height, a.width) == (64, 96)]
        torch.testing.assert_close(a.detections.boxes, b.detections.boxes, rtol=1e-3, atol=1e-2)
        assert a.detections.labels.tolist() == b.detections.labels.tolist()
        with pytest.raises(WeightsError, match=r"computed with detections\.nms_iou=0\.6, not 0\.5; export it with"):
            predict(file, pictures, overrides=["detections.nms_iou=0.5"])
        with pytest.raises(WeightsError, match="has boxes alone; export it with --outputs raw or both"):
            onnx_teacher(file, None)(blank_batch(torch.device("cpu")))


def test_a_program_of_torch(weights: Path, pictures: Path, tmp_path: Path) -> None:
    result = export(weights, tmp_path / "x.pt2", ExportPlan(kind="torch", dynamic=True), images=[pictures])
    assert all(check.raw < 1e-5 for check in result.checks)
    assert isinstance(open_detector(result.file), ExportedDetector)


def test_a_file_of_openvino(weights: Path, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'locdistill[openvino]'")
    result = export(weights, tmp_path / "x.xml", ExportPlan(kind="openvino", dynamic=True), images=[pictures])
    assert all(check.equal for check in result.checks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.xml"]
    assert len(predict(result.file, pictures, threshold=0.3)) == len(ODD)


# ----------------------------------------------------------------------------------------------------- the comparison


def test_a_file_that_differs_is_not_left_behind(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def differently(*words: Any) -> list[Check]:
        return [check.__class__(**{**vars_of(check), "raw": 0.1}) for check in compare(*words)]

    monkeypatch.setattr(module, "compare", differently)
    with pytest.raises(RunError, match=r"differs from the detector and was not written: noise, 1 of \(96, 128\), raw"):
        export(weights, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def vars_of(check: Check) -> dict[str, Any]:
    return {name: getattr(check, name) for name in check.__dataclass_fields__}


def test_the_comparison_finds_every_difference(weights: Path) -> None:
    """Against other weights, raw outputs differ; with boxes moved, or of another class, boxes do."""
    detector = Detector.load(weights)
    facts = ExportPlan().facts(detector, "0" * 64)

    def answer(change: Callable[[dict[str, np.ndarray]], None]) -> list[Check]:
        def run(images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
            given = torch.from_numpy(sizes)
            with torch.no_grad():
                dense, grid = detector.see(torch.from_numpy(images), given)
            found = detector.detections(dense, grid, given, given)
            index = torch.cat([torch.full_like(each.labels, k) for k, each in enumerate(found)])
            joined = [torch.cat([each[i] for each in found]) for i in range(3)]
            values = dict(zip(BOXES, [*joined, index], strict=True)) | dict(zip(RAW[:2], dense[:2], strict=True))
            plain = {name: value.numpy().copy() for name, value in values.items()}
            change(plain)
            return plain

        return compare(detector, run, facts, [])

    def lose(values: dict[str, np.ndarray]) -> None:
        for name in BOXES:
            values[name] = values[name][::2]

    assert all(check.equal for check in answer(lambda _: None))
    assert all(check.raw == 0 and check.pixels == 0 for check in answer(lambda _: None))
    assert not any(check.equal for check in answer(lambda values: values["boxes"].__iadd__(9)))
    assert not any(check.equal for check in answer(lambda values: values["labels"].__iadd__(1)))
    assert not any(check.equal for check in answer(lambda values: values["edge_logits"].__iadd__(0.5)))
    assert not any(check.equal for check in answer(lambda values: values["scores"].__imul__(0.9)))
    assert not any(check.equal for check in answer(lose))


def test_any_decision_between_equal_scores_is_right() -> None:
    """Of two candidates of one score, which suppress each other, either may stay; only one of them hides a third."""
    detector = busy_detector()  # suppresses above 0.6
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 13], [0, 0, 10, 17], [50, 50, 60, 60]])
    all_of_them = Detections(boxes, torch.tensor([0.9, 0.9, 0.5, 0.3]), torch.tensor([0, 0, 0, 0]))

    def kept(*which: int, **changes: torch.Tensor) -> int:
        found = Detections(*(part[list(which)] for part in all_of_them))._replace(**changes)
        return wrongly_kept(found, all_of_them, detector)

    assert kept(0, 2, 3) == 0  # 10 / 17 overlap: the third stays
    assert kept(1, 3) == 0  # 13 / 17: it goes
    assert kept(0, 3) == 1  # nothing suppresses the third
    assert kept(0, 1, 3) == 1  # 10 / 13
    assert kept(0, 2) == 1  # the last is missing
    assert kept(0, 2, 3, labels=torch.tensor([0, 0, 1])) == 2  # of another class: a strange one, and one is missing
    assert kept(0, 2, 3, scores=torch.tensor([0.9, 0.5, 0.2])) == 2
    detector.settings = detector.settings.model_copy(
        update={"detections": detector.settings.detections.model_copy(update={"max_detections": 2})}
    )
    assert kept(0, 2) == 0  # two are enough
    assert kept(0, 3) == 1  # but they are the best two
    none = Detections(*(part[:0] for part in all_of_them))
    assert wrongly_kept(none, all_of_them, detector) == 4
    assert wrongly_kept(none, none, detector) == 0


@pytest.mark.parametrize(
    ("plan", "changes", "message"),
    [
        ({"kind": "coreml"}, {}, "--format coreml: expected one of onnx, openvino, torch"),
        ({"outputs": "masks"}, {}, "--outputs masks: expected one of raw, boxes, both"),
        ({"kind": "torch", "outputs": "boxes"}, {}, "torch has raw outputs alone"),
        ({"size": (100, 128)}, {}, r"multiples of 32, got \(100, 128\); try \(128, 128\)"),
        ({"size": (96, 128), "dynamic": True}, {}, "exclude each other"),
        ({"int8": True}, {}, "pass --data FOLDER"),
        ({"outputs": "boxes"}, {"model": "rotated_gfl"}, "export the raw outputs with --outputs raw"),
        ({"outputs": "both"}, {"detections": {"nms": "voting_cluster_diou"}}, "or set detections.nms=plain"),
    ],
)
def test_forms_that_are_not_possible(
    tmp_path: Path, plan: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    source = busy_detector(**changes).save(tmp_path / "own")
    with pytest.raises(LocdistillError, match=message):
        export(source, plan=ExportPlan(**plan))
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_pictures_of_the_run_are_compared(weights: Path, tiny_coco: Path, tmp_path: Path) -> None:
    """Where none are named; without them the command says that noise alone was compared."""
    source = Detector.load(weights).save(tmp_path / "best")
    told: list[str] = []
    plan = ExportPlan(outputs="raw")
    alone = export(source, tmp_path / "x.onnx", plan, tell=told.append)
    assert [check.what for check in alone.checks] == ["noise"]
    assert told[0] == "no pictures to compare on, noise alone; pass --images or --data"
    (tmp_path / "recipe.yaml").write_text(f"data: {{path: {tiny_coco}}}\n")
    result = export(source, tmp_path / "x.onnx", plan, tell=told.append)
    assert len([check for check in result.checks if check.what.startswith("picture of ")]) > 0
    (tmp_path / "recipe.yaml").write_text(f"data: {{path: {tmp_path / 'gone'}}}\n")
    assert export(source, tmp_path / "x.onnx", plan).metrics == {}


def test_names_of_files(weights: Path, dynamic: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"ends in \.onnx"):
        export(weights, tmp_path / "x.pth")
    with pytest.raises(RecipeError, match="is an exported file already"):
        export(dynamic, tmp_path / "x.onnx")
    (tmp_path / "damaged.onnx").write_bytes(dynamic.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot be read"):
        predict(tmp_path / "damaged.onnx", pictures)


def test_without_the_packages(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RunError, match=r"need onnx, onnxscript, onnxruntime, .*pip install 'locdistill\[onnx\]'"):
        export(weights, tmp_path / "x.onnx")


# ------------------------------------------------------------------------------------------------ the file as a model


def test_predictions_are_those_of_the_weights(weights: Path, dynamic: Path, pictures: Path) -> None:
    own, exported = (predict(which, pictures, threshold=0.3) for which in (weights, dynamic))
    assert sum(len(each.detections.scores) for each in own) > 20
    for a, b in zip(own, exported, strict=True):
        torch.testing.assert_close(a.detections.boxes, b.detections.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(a.detections.scores, b.detections.scores, rtol=1e-4, atol=1e-5)
        assert torch.equal(a.detections.labels, b.detections.labels)


def test_a_file_for_one_size_takes_all_pictures(fixed: Path, pictures: Path) -> None:
    """Also those in portrait, and an odd number of them."""
    found = predict(fixed, pictures, threshold=0.3)
    sizes = sorted((each.height, each.width) for each in found)
    assert sizes == sorted(ODD)
    for each in found:
        assert len(each.detections.boxes)
        assert float(each.detections.boxes.max()) <= max(each.height, each.width) + 1e-3
    with pytest.raises(WeightsError, match=r"detections\.augment needs --dynamic"):
        predict(fixed, pictures, overrides=["detections.augment.flip=true"])


def test_evaluation_gives_the_same_numbers(weights: Path, dynamic: Path, fixed: Path, tiny_coco: Path) -> None:
    own = evaluate(weights, tiny_coco).metrics
    for file in (dynamic, fixed):
        assert evaluate(file, tiny_coco).metrics == pytest.approx(own, abs=1e-6, nan_ok=True)
    with pytest.raises(WeightsError, match=r"is for one size of images; settings of input need --dynamic"):
        evaluate(fixed, tiny_coco, overrides=["input.short=200", "input.long=200"])


def test_images_in_portrait_are_evaluated_by_a_file_for_landscape(fixed: Path, dynamic: Path, tmp_path: Path) -> None:
    """Each image is resized to fit the file, as `predict` does; detections are in pixels of the image."""
    folder = tmp_path / "portrait"
    (folder / "images").mkdir(parents=True)
    rng, images = np.random.default_rng(1), []
    for number, (width, height) in enumerate(((60, 120), (120, 60), (90, 90))):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"images/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
    names = ["disc", "box", "bar"]
    content = {
        "images": images,
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 0, "bbox": [5, 5, 20, 40], "area": 800, "iscrowd": 0}],
    }
    (folder / "val.json").write_text(json.dumps(content))
    found = evaluate(fixed, folder).detections
    shown = predict(fixed, sorted((folder / "images").iterdir()), threshold=0.05)
    for number, each in enumerate(shown):
        torch.testing.assert_close(found[number].boxes, each.detections.boxes)
        torch.testing.assert_close(found[number].scores, each.detections.scores)
    assert all(len(each.detections.scores) for each in shown)


def test_the_scores_to_show_are_in_the_file(tmp_path: Path, pictures: Path) -> None:
    source = busy_detector().save(tmp_path / "own", extra={"thresholds": {"disc": 0.6, "box": 0.35, "bar": 0.45}})
    file = export(source, tmp_path / "own.onnx").file
    own, exported = (predict(which, pictures / "64x96.png") for which in (source, file))
    assert [each.detections.labels.tolist() for each in own] == [each.detections.labels.tolist() for each in exported]
    for each in exported:
        least = torch.tensor([0.6, 0.35, 0.45])[each.detections.labels]
        assert bool((each.detections.scores >= least).all())
    assert stored_scores(file) == {"disc": 0.6, "box": 0.35, "bar": 0.45}


def test_a_file_teaches_as_its_weights_do(weights: Path, dynamic: Path, fixed: Path) -> None:
    batch = blank_batch(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[64, 96], [50, 90], [64, 80]])
    batch = batch._replace(images=images, sizes=sizes)
    for levels in ((3, 4), (4,)):
        own = LiveTeacher(Detector.load(weights), levels=levels)(batch)
        for file in (dynamic, fixed):
            teacher = onnx_teacher(file, None)
            assert isinstance(teacher, ExportedTeacher)
            said = teacher.looking([2**level for level in levels])(batch)
            if file == dynamic:
                torch.testing.assert_close(said.edge_logits, own.edge_logits, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(said.cls_logits, own.cls_logits, rtol=1e-4, atol=1e-4)
            assert said.edge_logits.shape == own.edge_logits.shape
    with pytest.raises(LocdistillError, match=r"teacher\.scale=2 needs a teacher's weights"):
        onnx_teacher(dynamic, None).looking([8], scale=2)


def test_the_example_without_torch_gives_the_same_boxes(
    weights: Path, dynamic: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the resizing, which rounds in another place: by less than one grey level."""
    script = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "detect_without_torch.py"))
    files = sorted(pictures.iterdir())
    for exported in (dynamic, export(weights, tmp_path / "single.onnx").file):
        capsys.readouterr()
        script["main"](str(exported), *map(str, files))
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        expected = predict(exported, files)
        for line, own in zip(lines, expected, strict=True):
            kept = line["detections"]
            assert abs(len(kept) - len(own.detections.scores)) <= 2  # a score may lie on either side
            best, their = kept[0], own.detections
            assert best["class"] == own.classes[int(their.labels[0])]
            np.testing.assert_allclose(best["box"], their.boxes[0].numpy(), atol=0.05 * max(own.height, own.width))
            np.testing.assert_allclose(best["score"], float(their.scores[0]), atol=0.02)


def test_convolutions_in_8_bits(weights: Path, tiny_coco: Path, tmp_path: Path, cli: Callable[..., Answer]) -> None:
    out = tmp_path / "small.onnx"
    code, text, _ = cli("export", weights, "--int8", "--data", tiny_coco, "--out", out, "--json")
    assert code == 0
    result = json.loads(text)
    assert result["facts"]["quantised"]
    assert set(result["metrics"]) == {"detector", "file"}
    kinds = [node.op_type for node in onnx.load(str(out)).graph.node]
    convolutions = kinds.count("Conv")
    assert kinds.count("QuantizeLinear") >= convolutions
    assert kinds.count("DequantizeLinear") >= 2 * convolutions
    worst = max(check["raw"] for check in result["checks"])
    assert 1e-5 < worst < 0.3
    assert len(predict(out, tiny_coco / "images", threshold=0.3)) > 0


def test_the_command_line(weights: Path, tiny_coco: Path, tmp_path: Path, cli: Callable[..., Answer]) -> None:
    out = tmp_path / "x.onnx"
    code, text, _ = cli("export", weights, "--data", tiny_coco, "--size", "128x96", "--out", out)
    assert code == 0
    assert f"{out}: " in text
    assert "128x96 (width x height), one image" in text
    assert text.count("AP ") >= 2
    code, text, _ = cli("benchmark", out, "--steps", 2, "--batch", 1)
    assert code == 0
    assert "file" in text
    code, _, err = cli("benchmark", out, "--engine", "compiled")
    assert code == 2
    assert "has file alone" in err
