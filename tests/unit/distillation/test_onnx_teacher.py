"""Teachers in ONNX files: what their outputs are, by shapes; with a made-up runtime, and with the real one if there."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from locdistill.data.settings import DataSettings
from locdistill.distillation.bridges import AdaptedTeacher
from locdistill.distillation.compatible import check_teacher
from locdistill.distillation.needs import Needs
from locdistill.distillation.onnx_teacher import OnnxTeacher, OutputLayout, recognise
from locdistill.distillation.settings import TeacherSettings
from locdistill.errors import RecipeError, TeacherError
from locdistill.geometry.bins import Bins
from locdistill.interop.classes import COCO
from locdistill.models.settings import DetectorSettings
from locdistill.recipe.defaults import resolve
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.request import Request
from locdistill.recipe.terms import TermSettings
from locdistill.training.prepare import with_teacher
from locdistill.types import Batch, Instances

NANODET = [(1, 2704, 80), (1, 676, 80), (1, 169, 80), (1, 2704, 32), (1, 676, 32), (1, 169, 32)]


@pytest.mark.parametrize(
    ("shapes", "classes", "scores", "edges", "bins"),
    [
        (NANODET, None, (0, 1, 2), (3, 4, 5), 8),
        ([NANODET[i] for i in (5, 2, 3, 0, 4, 1)], 80, (3, 5, 1), (2, 4, 0), 8),
        ([(1, 80, 52, 52), (1, 32, 52, 52), (1, 80, 26, 26), (1, 32, 26, 26)], None, (0, 2), (1, 3), 8),
        ([(1, 3549, 3), (1, 3549, 68)], 3, (0,), (1,), 17),
        ([(2, 3549, 112)], None, (0,), (0,), 8),
        ([(1, 3549, 20), (1, 3549, 4)], None, (0,), (1,), 1),
    ],
)
def test_outputs_are_told_by_their_shapes(shapes, classes, scores, edges, bins) -> None:
    layout = recognise(shapes, (416, 416), classes)
    assert (layout.scores, layout.edges, layout.bins) == (scores, edges, bins)
    assert layout.strides == (8, 16, 32)[: 2 if len(shapes) == 4 else 3]
    assert layout.shapes[0] == (52, 52)


@pytest.mark.parametrize(
    ("shapes", "classes", "words"),
    [
        ([(1, 100)], None, "outputs must be"),
        ([(1, 2704, 7), (1, 2704, 32)], None, r"\[7, 32\] numbers per location.*teacher.onnx.classes"),
        ([(1, 2704, 80), (1, 2704, 30)], None, "which is not the 80 classes of COCO"),
        ([(1, 2704, 80), (1, 676, 32)], 80, r"scores are given at \[2704\] locations, edges at \[676\]"),
        ([(1, 300, 80), (1, 300, 32)], 80, "300. locations are not those of levels"),
    ],
)
def test_other_outputs_are_refused_with_the_reason(shapes, classes, words) -> None:
    with pytest.raises(ValueError, match=words):
        recognise(shapes, (416, 416), classes)


class Session:
    """A file whose score of class 0 at a location is the mean red of its cell, and whose left edges are 1 stride."""

    shape: tuple[Any, ...] = (1, 3, 64, 64)
    bins = 4

    def __init__(self, path: str, options: Any, providers: list[Any]) -> None:  # noqa: ARG002
        if "broken" in path:
            raise RuntimeError("no protobuf")

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="x", shape=list(self.shape), type="tensor(float)")]

    def run(self, names: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:  # noqa: ARG002
        images = torch.from_numpy(feeds["x"])
        assert not isinstance(self.shape[0], int) or len(images) == self.shape[0]
        outputs = []
        for stride in (8, 16):
            red = torch.nn.functional.avg_pool2d(images[:, 2:], stride).flatten(1)[..., None]
            outputs.append(torch.cat((red, torch.full_like(red, 5.0)), -1).numpy())
            edges = torch.zeros(len(images), red.shape[1], 4, self.bins)
            edges[:, :, 0, 1 % self.bins] = 20
            outputs.append(edges.flatten(2).numpy())
        return outputs


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(**attributes: Any) -> None:
        kind = type("Made", (Session,), attributes)
        made = SimpleNamespace(SessionOptions=SimpleNamespace, InferenceSession=kind)
        monkeypatch.setitem(sys.modules, "onnxruntime", made)

    return install


def teacher(**changes: Any) -> OnnxTeacher:
    settings = {"classes": ("a", "b"), "mean": (0.0, 0.0, 10.0), "std": (1.0, 1.0, 2.0)} | changes
    return OnnxTeacher("made.onnx", **settings)


def batch(height: int, width: int, images: int = 2) -> Batch:
    """Red grows to the right, one grey value per column of 8 pixels; the last image ends after half its width."""
    pictures = torch.zeros(images, 3, height, width, dtype=torch.uint8)
    pictures[:, 0] = (torch.arange(width) // 8 * 8).to(torch.uint8)
    sizes = torch.tensor([[height, width]] * (images - 1) + [[height, width // 2]])
    nothing = torch.zeros(images, 0)
    truth = Instances(torch.zeros(images, 0, 4), nothing.long(), nothing.bool(), nothing.bool(), sizes)
    return Batch(images=pictures, sizes=sizes, original_sizes=sizes, image_ids=torch.arange(images), instances=truth)


def test_a_batch_is_padded_to_the_files_size_and_cut_out_again(runtime: Callable[..., None]) -> None:
    runtime()
    made = teacher()
    assert (made.facts.strides, made.facts.offset, made.facts.classes) == ((8, 16), 0.5, ("a", "b"))
    assert made.facts.bins == Bins(3)
    assert (made.size, made.images, made.probabilities) == ((64, 64), 1, False)
    said = made(batch(32, 48))
    assert said.cls_logits.shape == (2, 4 * 6 + 2 * 3, 2)
    red = (torch.arange(6) * 8.0 - 10) / 2
    torch.testing.assert_close(said.cls_logits[0, :24, 0].view(4, 6), red.expand(4, 6))
    torch.testing.assert_close(said.cls_logits[0, 24:, 0].view(2, 3), (red.view(3, 2).mean(-1)).expand(2, 3))
    ended = said.cls_logits[1, :24, 0].view(4, 6)
    torch.testing.assert_close(ended[:, :3], red[:3].expand(4, 3))
    assert (ended[:, 3:] == 0).all()  # padding is 0 after normalisation
    assert (Bins(3).expect(said.edge_logits)[..., 0] - 1).abs().max() < 1e-3
    finest = teacher().looking((8,))(batch(32, 48))
    assert torch.equal(finest.edge_logits, said.edge_logits[:, :24])
    assert teacher().looking((16,), scale=2)(batch(32, 32)).cls_logits.shape == (2, 4 * 4, 2)


def test_images_that_are_too_large(runtime: Callable[..., None]) -> None:
    runtime()
    with pytest.raises(TeacherError, match=r"at most 64x64 .*, but a batch has 32x96; set data.sizes=\[\[64, 64\]\]"):
        teacher()(batch(32, 96))
    runtime(shape=(None, 3, None, None))
    assert teacher()(batch(32, 96)).cls_logits.shape == (2, 4 * 12 + 2 * 6, 2)


def test_a_file_for_several_images_gets_several(runtime: Callable[..., None]) -> None:
    runtime()
    one = teacher()(batch(32, 32, images=3))
    runtime(shape=("n", 3, 64, 64))
    assert torch.equal(teacher()(batch(32, 32, images=3)).cls_logits, one.cls_logits)


@pytest.mark.parametrize("boxes", ["strides", "pixels", "corners"])
def test_boxes_become_distances_in_strides(boxes: str, runtime: Callable[..., None]) -> None:
    def run(self: Any, names: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        outputs = []
        for stride in (8, 16):
            side = 64 // stride
            centre = (torch.arange(side) + 0.5) * stride
            y, x = (m.flatten() for m in torch.meshgrid(centre, centre, indexing="ij"))
            away = torch.tensor([1.0, 2.0, 3.0, 0.5]) * stride
            values = {
                "strides": (away / stride).expand(side * side, 4),
                "pixels": away.expand(side * side, 4),
                "corners": torch.stack((x - away[0], y - away[1], x + away[2], y + away[3]), -1),
            }[boxes]
            outputs += [torch.full((1, side * side, 2), 0.25).numpy(), values[None].numpy()]
        return outputs

    runtime(run=run)
    made = teacher(boxes=boxes)
    assert made.facts.bins is None
    assert made.probabilities
    one = batch(32, 48, images=1)
    said = made(one)
    torch.testing.assert_close(said.edge_logits[..., 0], torch.tensor([1.0, 2.0, 3.0, 0.5]).expand(1, 30, 4))
    assert float(said.cls_logits[0, 0, 0]) == pytest.approx(math.log(0.25 / 0.75), rel=1e-4)
    student = DetectorSettings(classes=("b",), levels=(3, 4), reg_max=7)  # GFL looks at the corners of cells
    bridge = check_teacher(student, made.facts, "t", needs=Needs(distributions=True), soft="two_hot")
    adapted = AdaptedTeacher(made, *bridge.steps)(one)
    want = torch.tensor([0.5, 1.5, 3.5, 1.0])
    torch.testing.assert_close(Bins(7).expect(adapted.edge_logits), want.expand(1, 30, 4))
    assert adapted.cls_logits.shape == (1, 30, 1)


def test_classes_that_are_named_count_where_the_student_is_chosen(
    runtime: Callable[..., None], tiny_coco: Path, tmp_path: Path
) -> None:
    runtime()
    file = tmp_path / "made.onnx"
    file.write_bytes(b"")
    named = Request(data=tiny_coco, teacher=file, overrides=("teacher.onnx.classes=[disc, bar]",))
    recipe = resolve(named)
    assert (recipe.detector.levels, recipe.detector.reg_max, recipe.data.sizes) == ((3, 4), 3, ((64, 64),))
    assert recipe.teacher is not None
    assert recipe.teacher.onnx is not None
    assert recipe.teacher.onnx.classes == ("disc", "bar")
    with pytest.raises(RecipeError, match=r"classess: no such key; did you mean 'classes'"):
        resolve(Request(data=tiny_coco, teacher=file, overrides=("teacher.onnx.classess=[disc, bar]",)))


def test_files_that_are_no_teachers(runtime: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    runtime(shape=(1, 1, 64, 64))
    with pytest.raises(
        TeacherError, match=r"expected one input \(images, 3, height, width\) of floats, found x \[1, 1"
    ):
        teacher()
    runtime()
    with pytest.raises(TeacherError, match=r"not the outputs of a dense detector, \(1, 64, 2\).*teacher.onnx.classes"):
        teacher(classes=None)
    with pytest.raises(TeacherError, match="ONNX Runtime cannot read it: no protobuf"):
        OnnxTeacher("broken.onnx", mean=(0, 0, 0), std=(1, 1, 1))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TeacherError, match=r"pip install 'locdistill\[onnx\]'"):
        teacher()


def test_the_real_file(shared: Path, tiny_coco: Path) -> None:
    """Eight bins, eighty classes and centres of cells to a student of 17 bins, three classes and corners."""
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("ONNX Runtime is not installed: pip install 'locdistill[onnx]'")
    terms = {"ld": TermSettings.model_validate({"of": "edge_kl", "on": "everywhere"})}
    recipe = Recipe(
        name="x",
        detector=DetectorSettings(classes=("dog", "person", "unicorn"), levels=(3, 4, 5)),
        teacher=TeacherSettings(weights="nanodet"),
        terms=terms,
        data=DataSettings(sizes=((416, 416),)),
    )
    file = shared / "weights" / "nanodet_m.onnx"
    known, made = with_teacher(recipe, (file,))
    assert known.teacher is not None
    assert len(known.teacher.sha256 or "") == 64
    assert isinstance(made, AdaptedTeacher)
    assert isinstance(made.teacher, OnnxTeacher)
    assert made.teacher.layout == OutputLayout(
        strides=(8, 16, 32),
        shapes=((52, 52), (26, 26), (13, 13)),
        scores=(0, 1, 2),
        edges=(3, 4, 5),
        classes=80,
        bins=8,
    )
    said = made(batch(320, 256))
    assert said.known == (0, 1)
    assert said.edge_logits.shape == (2, 40 * 32 + 20 * 16 + 10 * 8, 4, 17)
    raw = made.teacher(batch(320, 256))
    torch.testing.assert_close(said.cls_logits[..., 0], raw.cls_logits[..., COCO.index("dog")])
    kept, own = Bins(16).expect(said.edge_logits), Bins(7).expect(raw.edge_logits)
    torch.testing.assert_close(kept[..., 2:] - own[..., 2:], torch.full_like(own[..., 2:], 0.5), atol=1e-4, rtol=0)
    assert torch.isfinite(said.edge_logits).all()
    large = recipe.model_copy(update={"data": DataSettings(sizes=((1333, 800),))})
    with pytest.raises(TeacherError, match=r"may be 1344 long; set data.sizes=\[\[416, 416\]\]"):
        with_teacher(large, (file,))
    with pytest.raises(TeacherError, match=r"set data.sizes=\[\[400, 400\]\]"):  # what is padded to hundreds and fits
        with_teacher(recipe.model_copy(update={"data": DataSettings(sizes=((416, 416),), pad_to=100)}), (file,))
    chosen = resolve(Request(data=tiny_coco, teacher=file, methods=("bckd",)))
    assert (chosen.detector.levels, chosen.detector.reg_max, chosen.data.sizes) == ((3, 4, 5), 7, ((416, 416),))
