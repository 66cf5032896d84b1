"""Feature imitation against the numbers of the executed reference."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from locdistill.assign.atss import ATSS
from locdistill.distillation.imitation import FeatureL2, FineGrained, GatedLevelMean, GeneralInstances, OutsideBoxes
from locdistill.geometry.bins import Bins
from locdistill.geometry.grid import Grid
from locdistill.objective.regions import InsideBoxes
from locdistill.objective.scene import Scene
from locdistill.objective.term import Region, Term
from locdistill.types import Dense
from tests.scenes import dense_of, flatten, grid_of, instances_of, per_level, wave_maps

pytestmark = pytest.mark.golden
RTOL, ATOL = 1e-5, 1e-6
CASES = ("typical2", "padded2", "huge1", "tiny1", "nopos1", "ignore2", "multi1")
INSIDE = InsideBoxes(positives=True)
PUBLISHED_GI = GeneralInstances(per="batch")


def _published(region: Region, weight: float = 2.0) -> Term:
    return Term(of=FeatureL2(), on=region, norm=GatedLevelMean(), weight=weight)


# ``decouple_fixed`` is the reference with the teacher's background in place of its foreground.
METHODS = {
    "gibox": [_published(PUBLISHED_GI)],
    "finegrained": [_published(FineGrained())],
    "fitnet": [_published(INSIDE)],
    "decouple_fixed": [_published(INSIDE), _published(OutsideBoxes(padding=True), 4.0)],
}


@pytest.fixture(scope="module")
def recipes_of_inputs(shared: Path) -> ModuleType:
    """The seeded inputs that are too large to be stored."""
    spec = importlib.util.spec_from_file_location("golden_inputs", shared / "golden" / "golden_inputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _scene(arrays: dict[str, np.ndarray], recipes: ModuleType, case: str) -> tuple[Scene, list[Tensor]]:
    """The scene of a case and the student's feature maps, which ask for gradients."""
    student_cls, student_box, teacher_cls, teacher_box = (
        [torch.from_numpy(arrays[f"{case}/{kind}{level}"]) for level in range(5)]
        for kind in ("s_cls", "s_box", "t_cls", "t_box")
    )
    grid, images = grid_of(student_cls), range(len(student_cls[0]))
    drawn = recipes.logits(case, len(images), grid.shapes)
    np.testing.assert_array_equal(drawn["t_box"][2], arrays[f"{case}/t_box2"])  # the seeds are those of the arrays
    student_maps, teacher_maps = ([torch.from_numpy(m).float() / 32 for m in drawn[kind]] for kind in ("s_x", "t_x"))
    for m in student_maps:
        m.requires_grad_()
    instances = instances_of(
        [arrays[f"{case}/img{i}/gt"] for i in images],
        [arrays[f"{case}/img{i}/lab"] for i in images],
        [tuple(int(v) for v in arrays[f"{case}/img{i}/pad_shape"]) for i in images],
    )
    scene = Scene.build(
        dense_of(student_cls, student_box)._replace(features=tuple(student_maps)),
        dense_of(teacher_cls, teacher_box)._replace(features=tuple(teacher_maps)),
        grid=grid,
        instances=instances,
        assigner=ATSS(),
        bins=Bins(),
    )
    return scene, student_maps


def _chosen(region: Tensor, grid: Grid) -> list[list[int]]:
    """Places of the region on each level, counted through all images of the batch."""
    return [part.flatten().nonzero()[:, 0].tolist() for part in torch.split(region, list(grid.level_sizes), 1)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_losses_and_gradients(golden, recipes_of_inputs, case, method):
    want = golden("c_loss_fork")
    scene, maps = _scene(golden("c_inputs"), recipes_of_inputs, case)
    values = sum(term.per_location(scene) for term in METHODS[method])
    got = per_level(values, scene.grid)
    np.testing.assert_allclose(got.detach().numpy(), want[f"{case}/{method}/loss_im"], rtol=RTOL, atol=ATOL)
    for level, grad in enumerate(torch.autograd.grad(got.sum(), maps)):
        sums = want[f"{case}/{method}/grad_x{level}_abs_sum_over_c"]
        atol = ATOL * max(1.0, float(sums.max()))
        np.testing.assert_allclose(grad.abs().sum(1).numpy(), sums, rtol=RTOL, atol=atol)
        if (whole := f"{case}/{method}/grad_x{level}") in want:
            np.testing.assert_allclose(grad.numpy(), want[whole], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("case", CASES)
def test_regions_of_batches(golden, recipes_of_inputs, case):
    want = golden("c_loss_fork")
    scene, _ = _scene(golden("c_inputs"), recipes_of_inputs, case)
    np.testing.assert_array_equal(FineGrained()(scene).numpy(), want[f"{case}/targets/im_finegrained"])
    for level, chosen in enumerate(_chosen(PUBLISHED_GI(scene), scene.grid)):
        assert chosen == sorted(want[f"{case}/gibox/gi_idx{level}"].tolist())


def test_padding_is_what_the_published_regions_have_more(golden, recipes_of_inputs):
    """Of two images of different size: without padding the losses differ, so the comparison above means something."""
    want = golden("c_loss_fork")
    scene, _ = _scene(golden("c_inputs"), recipes_of_inputs, "padded2")
    inside = scene.assignment.inside
    assert float((PUBLISHED_GI(scene) * ~inside).sum()) > 0
    assert float((GeneralInstances()(scene) * ~inside).sum()) == 0
    background = per_level(_published(OutsideBoxes(), 4.0).per_location(scene), scene.grid)
    foreground = per_level(_published(INSIDE).per_location(scene), scene.grid)
    published = want["padded2/decouple_fixed/loss_im"]
    assert abs(float((background + foreground)[0].detach()) - published[0]) > 100 * RTOL * published[0]


@pytest.mark.parametrize(
    "case",
    [
        "typical",
        "many",
        "one_small",
        "huge",
        "tiny",
        "nopos",
        "nested",
        "outside",
        "crowd",
        "crowd_all",
        "ties",
        "empty",
        "empty_ign",
    ],
)
def test_regions_of_the_ground_truth(golden, case):
    arrays, want = golden("b_assign"), golden("b_regions_fork")
    boxes = arrays[f"{case}/gt_bboxes"]
    instances = instances_of([boxes], [np.zeros(len(boxes))], [(320, 416)])
    grid = Grid.build(((40, 52), (20, 26), (10, 13), (5, 7), (3, 4)), (8, 16, 32, 64, 128))
    empty = Dense(torch.zeros(1, 2777, 1), torch.zeros(1, 2777, 4, 17))
    scene = Scene.build(empty, None, grid=grid, instances=instances, assigner=ATSS(), bins=Bins())
    np.testing.assert_array_equal(FineGrained()(scene)[0].numpy(), want[f"{case}/im_finegrained"])
    for name in ("fitnet", "gibox", "decouple"):
        np.testing.assert_array_equal(INSIDE(scene)[0].numpy(), want[f"{case}/im_{name}"])
    np.testing.assert_array_equal(1 - OutsideBoxes()(scene)[0].numpy(), want[f"{case}/im_decouple"])


@pytest.mark.parametrize("method", ["gibox", "finegrained", "fitnet"])
def test_imitation_of_a_gfl_v2_student(golden, method):
    """The reference compares the teacher's class logits with the student's probabilities."""
    arrays = golden("f_small_fork")
    levels = range(5)

    def maps(key: str) -> list[Tensor]:
        return [torch.from_numpy(arrays[key.format(level)]).float() for level in levels]

    logits, edges = maps("gflv2head/out2{}"), maps("gflv2head/box{}")
    # The stored scores are products of class and quality; the quality is the same for every class.
    quality = [(p / z.sigmoid()).mean(1).logit() for p, z in zip(maps("gflv2head/cls{}"), logits, strict=True)]
    student = dense_of(logits, edges)._replace(
        quality_logits=torch.cat([q.flatten(1) for q in quality], 1),
        quality_in_score=True,
        features=tuple(m / 32 for m in maps("ldv2/s_x{}_i8")),
    )
    torch.testing.assert_close(student.score_logits.sigmoid(), flatten(maps("gflv2head/cls{}")), rtol=1e-5, atol=1e-6)
    teacher = dense_of(maps("ldv2/t_logit{}"), maps("ldv2/t_box{}"))
    teacher = teacher._replace(features=tuple(m / 32 for m in maps("ldv2/t_x{}_i8")))
    gts, labels = ([arrays[f"gflv2head/{kind}{i}"] for i in (0, 1)] for kind in ("gt", "lab"))
    scene = Scene.build(
        student,
        teacher,
        grid=grid_of(logits),
        instances=instances_of(gts, labels, [(64, 96)] * 2),
        assigner=ATSS(),
        bins=Bins(),
    )
    regions = {
        "gibox": GeneralInstances(per="batch", score="mixed"),
        "finegrained": FineGrained(),
        "fitnet": INSIDE,
    }
    got = per_level(_published(regions[method]).per_location(scene), scene.grid)
    np.testing.assert_allclose(got.numpy(), arrays[f"ldv2/{method}/loss_im"], rtol=RTOL, atol=ATOL)


GTS = [(30, 40, 150, 200), (160, 60, 300, 140), (20, 20, 60, 50)]


def _waves(images: int, *, gfl_v2: bool = False) -> Scene:
    """One or two images of 256 x 320 with the generator of the reference vectors."""

    def maps(phase: float, channels: int, amplitude: float, shift: float = 0.0) -> list[Tensor]:
        pages = [wave_maps(phase, channels, amplitude, image=i) for i in range(images)]
        return [torch.cat(levels) + shift for levels in zip(*pages, strict=True)]

    classes = 5 if gfl_v2 else 4
    student = dense_of(maps(0.1, classes, 1.5, -2), maps(0.2, 68, 1.0))._replace(features=tuple(maps(1.1, 256, 0.5)))
    teacher = dense_of(maps(0.5, classes, 1.5, -2), maps(0.7, 68, 1.2))._replace(features=tuple(maps(1.7, 256, 0.5)))
    if gfl_v2:
        student = student._replace(quality_logits=flatten(maps(0.3, 1, 1.0))[..., 0], quality_in_score=True)
    boxes, labels = [GTS, [(50, 30, 120, 110)]][:images], [[1, 3, 0], [2]][:images]
    return Scene.build(
        student,
        teacher,
        grid=grid_of(maps(0.1, 1, 1.0)),
        instances=instances_of(boxes, labels, [(256, 320), (224, 288)][:images]),
        assigner=ATSS(),
        bins=Bins(),
    )


@pytest.mark.parametrize(
    ("region", "want"),
    [
        (PUBLISHED_GI, (0.087254182, 0.08741574)),
        (FineGrained(), (0.0873306, 0.0873472)),
        (INSIDE, (0.087336496, 0.087331653)),
    ],
    ids=["general instances", "fine-grained", "inside"],
)
def test_published_losses_per_level(region, want):
    scene = _waves(1)
    got = per_level(_published(region).per_location(scene), scene.grid)
    torch.testing.assert_close(got, torch.tensor([*want, 0, 0, 0]), rtol=1e-5, atol=1e-7)


def test_general_instances_of_one_image():
    """With one image the published region is ours."""
    scene = _waves(1)
    want = [
        [476, 854, 526, 458, 836, 786, 923, 1251, 129, 1233],
        [160, 66, 303, 94, 276],
        [54, 49, 13, 61],
        [17],
        [4],
    ]
    for region in (PUBLISHED_GI, GeneralInstances()):
        assert _chosen(region(scene), scene.grid) == [sorted(level) for level in want]


def test_published_general_instances_of_two_images_share_a_level():
    scene = _waves(2)
    region = PUBLISHED_GI(scene)
    got = per_level(_published(PUBLISHED_GI).per_location(scene), scene.grid)
    torch.testing.assert_close(got, torch.tensor([0.087045543, 0.087591477, 0, 0, 0]), rtol=1e-5, atol=1e-7)
    counts = [part.sum(1).tolist() for part in torch.split(region, list(scene.grid.level_sizes), 1)]
    assert counts[:3] == [[5, 5], [5, 1], [4, 0]]
    own = GeneralInstances()(scene)
    assert own[0].tolist() == GeneralInstances()(_waves(1))[0].tolist()
    assert int(own[1, : scene.grid.level_sizes[0]].sum()) == 10


def test_published_general_instances_of_a_gfl_v2_student():
    scene = _waves(1, gfl_v2=True)
    got = per_level(_published(GeneralInstances(per="batch", score="mixed")).per_location(scene), scene.grid)
    torch.testing.assert_close(got, torch.tensor([0.087202922, 0.087670296, 0, 0, 0]), rtol=1e-5, atol=1e-7)
