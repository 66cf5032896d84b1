"""The divergences of the newer methods and what they stand on, worked out by hand."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from locdistill.assign.atss import ATSS
from locdistill.distillation.adapters import paired, shares
from locdistill.distillation.fgd import (
    Attention,
    AttentionL1,
    AttentiveL2,
    BackgroundCells,
    Context,
    ContextL2,
    ObjectCells,
)
from locdistill.distillation.imitation import Everywhere, FeatureL2
from locdistill.distillation.methods import METHODS
from locdistill.distillation.mgd import Generator, MaskedGeneration
from locdistill.distillation.patterns import ChannelKL, Correlation
from locdistill.errors import TeacherError
from locdistill.geometry.bins import Bins
from locdistill.geometry.grid import Grid
from locdistill.models.kinds import KINDS
from locdistill.objective.normalisers import ImageLevelMean, PerImage
from locdistill.objective.scene import Scene
from locdistill.objective.term import Need, Term
from locdistill.recipe.terms import TermSettings
from locdistill.types import Dense, Instances
from tests.scenes import grid_of_kind, instances_of

SUM = PerImage(reference_batch=1.0)


def scene_of(
    student: list[Tensor],
    teacher: list[Tensor],
    *,
    extents: list[tuple[int, int]] | None = None,
    boxes: list[list[list[float]]] | None = None,
    model: str = "gfl",
    classes: tuple[Tensor, Tensor] | None = None,
) -> Scene:
    """Maps of levels from stride 8, and objects."""
    grid = grid_of_kind(model, tuple((m.shape[-2], m.shape[-1]) for m in student))
    images, locations = len(student[0]), len(grid.points)
    empty = [torch.zeros(images, locations, 3)] * 2
    mine, its = (
        Dense(cls, torch.zeros(images, locations, 4, 17), features=tuple(maps))
        for cls, maps in zip(classes or empty, (student, teacher), strict=True)
    )
    size = (8 * student[0].shape[-2], 8 * student[0].shape[-1])
    boxes = boxes or [[]] * images
    instances = instances_of(boxes, [[0] * len(b) for b in boxes], extents or [size] * images, slots=1)
    return Scene.build(mine, its, grid=grid, instances=instances, assigner=ATSS(), bins=Bins())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mean_of(divergence: object, scene: Scene) -> float:
    return float(Term(of=divergence, on=Everywhere(), norm=ImageLevelMean())(scene))


def sum_of(divergence: object, scene: Scene) -> float:
    return float(Term(of=divergence, on=Everywhere(), norm=SUM)(scene))


# --------------------------------------------------------------------------------------------------- widths and levels


def test_levels_are_paired_by_stride_and_else_with_the_nearest():
    def pyramid(*sizes: int) -> list[Tensor]:
        return [torch.zeros(1, 1, size, size) for size in sizes]

    def sizes(student: list[Tensor], teacher: list[Tensor]) -> list[int]:
        return [its.shape[-1] for _, its in paired(student, teacher)]

    full = pyramid(32, 16, 8, 4, 2)
    assert sizes(full, full) == [32, 16, 8, 4, 2]
    assert sizes(full[:3], full) == [32, 16, 8]
    assert sizes(full[1:], full) == [16, 8, 4, 2]
    assert sizes(full, full[1:4]) == [16, 16, 8, 4, 4]
    # A padded size that does not halve evenly, and maps of one cell at the end.
    assert sizes(pyramid(13, 7, 4, 2, 1), pyramid(7, 4, 2, 1, 1)) == [7, 7, 4, 2, 1]
    with pytest.raises(TeacherError, match="teacher have none"):
        paired(full, [])


def test_a_teacher_s_level_of_another_stride_is_averaged_or_interpolated():
    fine = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    coarse = torch.tensor([[[[4.0]]]])
    # The student's stride is twice the teacher's: the only level of the teacher's is averaged to its size.
    assert mean_of(FeatureL2(), scene_of([coarse + 2], [fine])) == pytest.approx(4.0)
    assert mean_of(FeatureL2(), scene_of([fine], [coarse])) == pytest.approx((9 + 1 + 1 + 9) / 4)


def test_an_adapter_stands_where_widths_differ_or_where_it_is_asked_for():
    narrow, wide = [noise(1, 2, 4, 4), noise(1, 2, 2, 2)], [noise(1, 3, 4, 4), noise(1, 3, 2, 2)]
    scene = scene_of(narrow, wide)
    student, teacher = scene.student, scene.teacher
    assert teacher is not None
    assert FeatureL2().parts(teacher, teacher) is None
    assert len(list(FeatureL2(adapt=True).parts(teacher, teacher).parameters())) == 4
    own = FeatureL2().parts(student, teacher)
    assert [tuple(m.weight.shape) for m in own] == [(3, 2, 1, 1)] * 2
    with torch.no_grad():
        for convolution in own:
            convolution.weight.copy_(torch.tensor([[1.0, 0], [0, 2], [0, 0]])[..., None, None])
            convolution.bias.copy_(torch.tensor([0.0, 0, 5]))
    got = FeatureL2()(scene, own)
    first = narrow[0][0]
    adapted = torch.stack((first[0], 2 * first[1], torch.full((4, 4), 5.0)))
    torch.testing.assert_close(got[0, :16], (adapted - wide[0][0]).square().mean(0).flatten())
    with pytest.raises(TeacherError, match=r"\[2, 2\] channels, the teacher's \[3, 3\]"):
        FeatureL2()(scene)


def test_maps_inside_the_head_are_imitated_instead():
    scene = scene_of([noise(1, 1, 2, 2)], [noise(1, 1, 2, 2)])
    assert scene.teacher is not None
    towers = [(noise(1, 2, 2, 2, seed=i), noise(1, 2, 2, 2, seed=i + 1)) for i in (1, 5)]
    student, teacher = scene.student._replace(towers=towers[0]), scene.teacher._replace(towers=towers[1])
    scene = Scene.build(student, teacher, grid=scene.grid, instances=scene.instances, assigner=ATSS(), bins=Bins())
    for index, maps in enumerate(("cls_tower", "reg_tower")):
        divergence = FeatureL2(maps=maps)
        want = (towers[0][index] - towers[1][index]).square().mean(1).flatten(1)
        torch.testing.assert_close(divergence(scene), want)
        term = Term(of=divergence, on=Everywhere())
        assert term.needs == {Need.TEACHER, Need.TOWERS, Need.WEIGHTS}


def test_shares_of_a_cell_s_locations_add_up_to_its_value_or_mean_value():
    grid = Grid.build(((1, 2),), (8,), octaves=3)
    assert shares([torch.tensor([[[[3.0, 6.0]]]])], grid).tolist() == [[1, 1, 1, 2, 2, 2]]
    own = torch.arange(6.0).view(1, 2, 3).permute(0, 2, 1)[..., None, :]
    assert shares([own * 3], grid).tolist() == [[0, 1, 2, 3, 4, 5]]


# ------------------------------------------------------------------------------------------------------------ patterns


def test_correlation_is_one_minus_pearson_of_each_channel():
    student, teacher = noise(2, 3, 4, 5) * 7 + 3, noise(2, 3, 4, 5, seed=1)
    wanted = [
        1 - torch.corrcoef(torch.stack((student[i, c].flatten(), teacher[i, c].flatten())))[0, 1]
        for i in range(2)
        for c in range(3)
    ]
    assert mean_of(Correlation(), scene_of([student], [teacher])) == pytest.approx(float(sum(wanted)) / 6, abs=1e-5)
    assert mean_of(Correlation(), scene_of([student], [student * 4 - 9])) == pytest.approx(0, abs=1e-5)
    assert mean_of(Correlation(), scene_of([student], [-student])) == pytest.approx(2, abs=1e-5)


def test_correlation_by_hand():
    """(1, 3) and (5, 1) become (-1, 1) and (1, -1): half of 4 at both places; a constant has no direction: 1/2."""
    student, teacher = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[5.0, 1.0]]]])
    values = Correlation()(scene_of([student], [teacher]))
    torch.testing.assert_close(values, torch.tensor([[2.0, 2.0]]), rtol=1e-4, atol=0)
    flat = torch.full((1, 1, 1, 2), 3.0)
    torch.testing.assert_close(
        Correlation()(scene_of([student], [flat])), torch.tensor([[0.5, 0.5]]), rtol=1e-4, atol=0
    )
    assert Correlation()(scene_of([flat], [flat + 1])).tolist() == [[0.0, 0.0]]


def test_published_correlation_is_of_the_batch_with_its_padding():
    student, teacher = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
    scene = scene_of([student], [teacher], extents=[(32, 32), (16, 32)])

    def normal(x: Tensor) -> Tensor:
        return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), correction=0, keepdim=True)

    term = Term(of=Correlation(per="batch"), on=Everywhere(padding=True), norm=ImageLevelMean())
    assert float(term(scene)) == pytest.approx(float((normal(student) - normal(teacher)).square().mean() / 2), abs=1e-5)
    # By default what lies in the padding does not matter.
    other = student.clone()
    other[1, :, 2:] = 100
    again = scene_of([other], [teacher], extents=[(32, 32), (16, 32)])
    assert mean_of(Correlation(), again) == pytest.approx(mean_of(Correlation(), scene), rel=1e-5)
    assert float(term(again)) != pytest.approx(float(term(scene)), rel=1e-2)


def test_relations_between_classes_at_a_location():
    logits = noise(1, 4, 3), noise(1, 4, 3, seed=1)
    scene = scene_of([torch.zeros(1, 1, 2, 2)], [torch.zeros(1, 1, 2, 2)], classes=logits)
    for scores, score in (("sigmoid", torch.sigmoid), ("softmax", lambda x: x.softmax(-1))):
        mine, its = (score(x / 2) for x in logits)
        wanted = [1 - float(torch.corrcoef(torch.stack((mine[0, i], its[0, i])))[0, 1]) for i in range(4)]
        got = Correlation(what="classes", across="channels", scores=scores, temperature=2.0)(scene)
        assert got[0].tolist() == pytest.approx(wanted, rel=1e-3)


def test_relations_within_a_class_are_those_of_each_anchor():
    """RetinaNet's nine anchors of a cell each have their own map."""
    logits = noise(1, 36, 2), noise(1, 36, 2, seed=1)
    maps = torch.zeros(1, 1, 2, 2)
    scene = scene_of([maps], [maps], model="retinanet", classes=logits)
    got = Correlation(what="classes")(scene).view(1, 4, 9).mean(1)
    mine, its = (x.sigmoid().view(4, 9, 2) for x in logits)
    for anchor in range(9):
        wanted = [
            1 - float(torch.corrcoef(torch.stack((mine[:, anchor, c], its[:, anchor, c])))[0, 1]) for c in range(2)
        ]
        assert float(got[0, anchor]) == pytest.approx(sum(wanted) / 2, rel=1e-2)


def test_classes_that_the_teacher_does_not_know_are_no_pattern():
    logits = noise(1, 4, 3), noise(1, 4, 3, seed=1)
    maps = torch.zeros(1, 1, 2, 2)
    scene = scene_of([maps], [maps], classes=logits)
    assert scene.teacher is not None
    less = scene.teacher._replace(known=(0, 2))
    partly = Scene.build(scene.student, less, grid=scene.grid, instances=scene.instances, assigner=ATSS(), bins=Bins())
    both = scene_of([maps], [maps], classes=(logits[0][..., [0, 2]], logits[1][..., [0, 2]]))
    for divergence in (ChannelKL(what="classes"), Correlation(what="classes")):
        assert torch.equal(divergence(partly), divergence(both))


def test_channel_kl_sums_to_the_divergence_of_the_maps():
    student, teacher = noise(2, 3, 4, 5), noise(2, 3, 4, 5, seed=1)
    mine, its = ((x / 2).flatten(2).log_softmax(-1) for x in (student, teacher))
    wanted = 4 / (3 * 2) * kl_div(mine, its, reduction="sum", log_target=True)
    assert sum_of(ChannelKL(temperature=2.0), scene_of([student], [teacher])) == pytest.approx(float(wanted), rel=1e-5)
    assert sum_of(ChannelKL(), scene_of([student], [student + 5])) == pytest.approx(0, abs=1e-5)


def test_channel_kl_by_hand_without_the_padding():
    """Softmax of (0, log 3) is (1/4, 3/4), of (0, 0) it is (1/2, 1/2); the third column lies in the padding."""
    student, teacher = torch.tensor([[[[0.0, 0, 9]]]]), torch.tensor([[[[0.0, math.log(3), -9]]]])
    values = ChannelKL()(scene_of([student], [teacher], extents=[(8, 16)]))
    assert values[0].tolist() == pytest.approx([math.log(0.5) / 4, 0.75 * math.log(1.5), 0])


def test_channel_kl_of_classes_divides_by_all_maps_of_a_cell():
    logits = noise(1, 36, 2), noise(1, 36, 2, seed=1)
    maps = torch.zeros(1, 1, 2, 2)
    scene = scene_of([maps], [maps], model="retinanet", classes=logits)
    mine, its = (x.view(1, 4, 18).transpose(1, 2).log_softmax(-1) for x in logits)
    wanted = kl_div(mine, its, reduction="sum", log_target=True) / 18
    assert sum_of(ChannelKL(what="classes"), scene) == pytest.approx(float(wanted), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------- generation


def test_generation_hides_places_of_all_channels():
    generator = Generator(2, 2, adapt=False)
    for convolution in (generator.generation[0], generator.generation[2]):
        with torch.no_grad():
            convolution.weight.zero_()
            convolution.weight[[0, 1], [0, 1], 1, 1] = 1
            convolution.bias.zero_()
    student, teacher = torch.ones(1, 2, 30, 30), torch.full((1, 2, 30, 30), 3.0)
    scene, own = scene_of([student], [teacher]), nn.ModuleList([generator])
    values = MaskedGeneration(hidden=0.65)(scene, own)
    # Seen places give (3 - 1)^2, hidden ones 3^2, in both channels.
    assert set(values.unique().tolist()) == {4.0, 9.0}
    assert float((values == 9).float().mean()) == pytest.approx(0.65, abs=0.06)
    assert set(MaskedGeneration(hidden=0.0)(scene, own).unique().tolist()) == {4.0}


# --------------------------------------------------------------------------------------------------- focal and global


def test_attention_has_mean_one_and_leaves_the_padding_out():
    x = torch.tensor([[[[1.0, -3.0, 50.0]], [[1.0, 1.0, 50.0]]]])
    inside = torch.tensor([[[[True, True, False]]]])
    attention = Attention.of(x, inside, 0.5)
    # Mean strengths: 1 and 2 at the places, 2 and 1 in the channels; softmax(2, 4) = (0.1192, 0.8808).
    assert attention.places.flatten().tolist() == pytest.approx([0.2384, 1.7616, 0], abs=1e-4)
    assert attention.channels.flatten().tolist() == pytest.approx([1.7616, 0.2384], abs=1e-4)


def test_attentive_l2_by_hand():
    teacher = torch.tensor([[[[1.0, -3.0]], [[1.0, 1.0]]]])
    student = teacher + torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])
    got = AttentiveL2()(scene_of([student], [teacher]))
    assert got[0].tolist() == pytest.approx([0.2384 * 1.7616 * 1 / 2, 1.7616 * 0.2384 * 4 / 2], abs=1e-4)


def test_attention_l1_by_hand():
    teacher = torch.tensor([[[[1.0, -3.0]], [[1.0, 1.0]]]])
    flat = torch.ones(1, 2, 1, 2)  # attention 1 everywhere
    got = AttentionL1()(scene_of([flat], [teacher]))
    # Places differ by 0.7616 each, channels by 0.7616 each: 1.5232, divided among two places.
    assert got[0].tolist() == pytest.approx([0.7616 * 2] * 2, abs=1e-4)


def test_a_context_begins_as_the_identity_and_adds_one_vector():
    block, x = Context(4), noise(1, 4, 2, 3)
    inside = torch.tensor([[[[True, True, False]] * 2]]).view(1, 1, 2, 3)
    assert torch.equal(block(x, inside), x)
    nn.init.normal_(block.add[-1].weight)
    added = block(x, inside) - x
    torch.testing.assert_close(added, added[..., :1, :1].expand_as(added))
    changed = x.clone()
    changed[..., 2] = 9
    torch.testing.assert_close((block(changed, inside) - changed)[..., :2], added[..., :2])


def test_context_l2_is_zero_at_the_start_for_equal_maps():
    maps = [noise(2, 4, 3, 3)]
    scene = scene_of(maps, [m + 2 for m in maps])
    assert scene.teacher is not None
    own = ContextL2().parts(scene.student, scene.teacher)
    assert sum_of_own(ContextL2(), scene, own) == pytest.approx(4 * 9)
    assert sum_of_own(ContextL2(), scene_of(maps, maps), own) == 0


def sum_of_own(divergence: object, scene: Scene, own: nn.Module) -> float:
    return float(Term(of=divergence, on=Everywhere(), norm=SUM)(scene, own).detach())


def test_objects_share_one_each_and_the_smallest_wins():
    """On 4 x 4 cells of 8 pixels: one box over all of the upper half, one within the second cell of the first row."""
    maps = [torch.zeros(1, 1, 4, 4)]
    boxes = [[[0.0, 0, 32, 16], [9.0, 1, 15, 7]]]
    scene = scene_of(maps, maps, boxes=boxes)
    assert ObjectCells()(scene).view(4, 4).tolist() == [
        [1 / 8, 1, 1 / 8, 1 / 8],
        [1 / 8] * 4,
        [0] * 4,
        [0] * 4,
    ]
    assert BackgroundCells()(scene).view(4, 4).tolist() == [[0] * 4] * 2 + [[1 / 8] * 4] * 2


def test_a_batch_without_a_slot_for_objects_is_ordinary():
    maps = [torch.zeros(1, 1, 2, 2)]
    scene = scene_of(maps, maps)
    none = Instances(
        torch.zeros(1, 0, 4),
        *(torch.zeros(1, 0).to(t) for t in (torch.long, torch.bool, torch.bool)),
        scene.instances.extents,
    )
    scene = replace(scene, instances=none)
    assert ObjectCells()(scene).tolist() == [[0.0] * 4]
    assert BackgroundCells()(scene).tolist() == [[0.25] * 4]


def test_cells_are_those_of_the_image_and_of_every_level():
    maps = [torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 1, 2)]
    scene = scene_of(maps, maps, boxes=[[[7.0, 0, 9, 8]]], extents=[(16, 24)])
    assert ObjectCells()(scene).tolist() == [[0.5, 0.5, 0, 0, 0, 0, 0, 0, 1, 0]]
    third, one = 1 / 4, 1.0
    assert BackgroundCells()(scene)[0].tolist() == [0, 0, third, 0, third, third, third, 0, 0, one]
    nothing = scene_of(maps, maps)
    assert float(ObjectCells()(nothing).sum()) == 0
    assert float(BackgroundCells()(nothing).sum()) == pytest.approx(2)


@pytest.mark.parametrize(
    "divergence", [AttentiveL2(), AttentionL1(), ContextL2(), ChannelKL(), MaskedGeneration(hidden=0.0)]
)
def test_a_sum_over_places_does_not_count_the_anchors_of_a_cell(divergence: object):
    student, teacher = [noise(1, 2, 4, 4)], [noise(1, 2, 4, 4, seed=1)]
    scenes = [scene_of(student, teacher, model=model) for model in ("gfl", "retinanet")]
    own = None
    if Term(of=divergence, on=Everywhere()).learns:
        own = divergence.parts(scenes[0].student, scenes[0].teacher)
    one, nine = (float(Term(of=divergence, on=Everywhere(), norm=SUM)(scene, own).detach()) for scene in scenes)
    assert one == pytest.approx(nine, rel=1e-5)
    assert one > 0.01


# ------------------------------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize("model", ["gfl", "gflv2", "atss", "fcos", "retinanet"])
def test_methods_are_plain_data(model: str):
    seen: set[str] = set()
    for name, method in METHODS.items():
        terms = method(model)
        assert terms, name
        assert terms == method(model) == pickle.loads(pickle.dumps(terms))
        assert not seen & set(terms), "methods are combined by taking the terms of both"
        seen |= set(terms)
        for term in terms.values():
            assert term.needs_teacher
            assert TermSettings.of_term(term).build() == term


def test_an_image_without_objects_has_a_weight_of_zero_for_objects():
    maps = [noise(1, 2, 4, 4)]
    scene = scene_of(maps, [noise(1, 2, 4, 4, seed=1)])
    assert float(METHODS["fgd"]("gfl")["fgd_objects"](scene)) == 0
    assert float(METHODS["fgd"]("gfl")["fgd_background"](scene)) > 0


def test_published_weights():
    """Of MMRazor (PKD, CWD) and of the authors (FGD, MGD: there a sum over 256 channels, here a mean)."""
    weights = {kind: {n: t.weight for m in METHODS for n, t in METHODS[m](kind).items()} for kind in KINDS}
    assert {kind: found["pkd"] for kind, found in weights.items()} == dict.fromkeys(KINDS, 6.0) | dict.fromkeys(
        ("retinanet", "rotated_retinanet"), 10.0
    )
    for kind, found in weights.items():
        part = 1.6 if kind == "fcos" else 1.0
        focal = [found[name] / 256 for name in ("fgd_objects", "fgd_background", "fgd_context")]
        assert [*focal, found["fgd_attention"]] == pytest.approx([x * part for x in (1e-3, 5e-4, 5e-6, 5e-4)])
        assert (found["cwd"], found["mgd"]) == (5.0, pytest.approx(2e-5 * 256))
        assert METHODS["fgd"](kind)["fgd_attention"].of == AttentionL1(temperature=0.8 if kind == "fcos" else 0.5)
