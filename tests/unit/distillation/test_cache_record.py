"""What is kept of a teacher's predictions, and how a batch is put together of it again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from locdistill.distillation.cache.record import (
    Layout,
    decoded,
    dense_of,
    encoded,
    joined,
    moments,
    record_errors,
    record_of,
)
from locdistill.distillation.teacher import like
from locdistill.geometry.grid import Grid
from locdistill.types import Dense

STRIDES = (8, 16, 32)


def dense(images: int, locations: int, *, seed: int = 0, quality: bool = False) -> Dense:
    generator = torch.Generator().manual_seed(seed)
    return Dense(
        cls_logits=torch.randn(images, locations, 5, generator=generator) * 4,
        edge_logits=torch.randn(images, locations, 4, 17, generator=generator) * 3,
        quality_logits=torch.randn(images, locations, generator=generator) if quality else None,
    )


@pytest.mark.parametrize("per_cell", [1, 3])
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    more=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_locations_keep_their_place_in_a_larger_padding(
    per_cell: int, rows: int, columns: int, more: tuple[int, int]
) -> None:
    layout = Layout(strides=STRIDES, per_cell=per_cell, pad_to=32)
    own = (32 * rows, 32 * columns)
    padded = (own[0] + 32 * more[0], own[1] + 32 * more[1])
    small, large = (Grid.build(tuple(layout.shapes(size)), STRIDES, octaves=per_cell) for size in (own, padded))
    assert layout.locations(own) == len(small.points)
    moved = layout.moved(torch.arange(len(small.points)), own, padded)
    assert torch.equal(large.points[moved], small.points)
    assert torch.equal(large.levels[moved], small.levels)
    anchors = torch.arange(len(large.points)) % per_cell
    assert torch.equal(anchors[moved], torch.arange(len(small.points)) % per_cell)


@pytest.mark.parametrize(("numbers", "bound"), [("half", 2**-10), ("8bit", 1 / 400)])
def test_numbers_are_kept_within_their_error(numbers: str, bound: float) -> None:
    values = torch.randn(50, 4, 17) * 10
    record = encoded("edge", values, numbers)
    spread = values.abs().amax() if numbers == "half" else (values.flatten(1).amax(1) - values.flatten(1).amin(1)).max()
    assert (decoded(record, "edge") - values).abs().max() <= bound * spread
    size = sum(v.numel() * v.element_size() for v in record.values())
    assert size <= values.numel() * (2 if numbers == "half" else 1.2)


@pytest.mark.parametrize("numbers", ["half", "8bit"])
def test_equal_and_huge_numbers(numbers: str) -> None:
    for values in (torch.full((3, 5), 2.0), torch.zeros(0, 5), torch.tensor([[1e9, -1e9]])):
        back = decoded(encoded("cls", values, numbers), "cls")
        assert back.shape == values.shape
        assert back.isfinite().all()
    assert torch.equal(decoded(encoded("cls", torch.full((3, 5), 2.0), numbers), "cls"), torch.full((3, 5), 2.0))


@pytest.mark.parametrize("quality", [False, True])
def test_a_batch_of_two_sizes(quality: bool) -> None:
    layout = Layout(strides=STRIDES, per_cell=1, pad_to=32)
    sizes = [(60, 90), (64, 50)]  # padded to (64, 96) and (64, 64); together to (64, 96)
    said = [dense(1, layout.locations(layout.extents(size)), seed=i, quality=quality) for i, size in enumerate(sizes)]
    where = [torch.tensor([0, 5, 96]), None]
    records = [
        record_of(d, 0, torch.arange(d.cls_logits.shape[1]) if w is None else w, maps=(), numbers="half")
        for d, w in zip(said, where, strict=True)
    ]
    assert "index" in records[0]
    assert "index" not in records[1]
    locations = layout.locations((64, 96))
    together = dense_of(joined(records, sizes, layout), 2, locations)
    assert together.cls_logits.shape == (2, locations, 5)
    torch.testing.assert_close(
        together.edge_logits[0, [0, 5, 96]], said[0].edge_logits[0, [0, 5, 96]], atol=2e-2, rtol=0
    )
    kept = torch.zeros(locations, dtype=torch.bool)
    kept[[0, 5, 96]] = True
    assert (together.cls_logits[0][~kept] == 0).all()
    own = layout.moved(torch.arange(said[1].cls_logits.shape[1]), (64, 64), (64, 96))
    torch.testing.assert_close(together.cls_logits[1, own], said[1].cls_logits[0], atol=2e-2, rtol=0)
    assert (together.quality_logits is not None) == quality
    if together.quality_logits is not None:
        torch.testing.assert_close(together.quality_logits[1, own], said[1].quality_logits[0], atol=2e-3, rtol=0)


@pytest.mark.parametrize("numbers", ["half", "8bit"])
def test_maps_of_two_sizes_are_filled_up(numbers: str) -> None:
    layout = Layout(strides=(8,), per_cell=1, pad_to=32)
    sizes = [(32, 64), (64, 32)]
    maps = [torch.randn(1, 3, h // 8, w // 8) for h, w in sizes]
    records = [
        record_of(
            Dense(torch.zeros(1, 1, 1), torch.zeros(1, 1, 4, 1), features=(m,)),
            0,
            None,
            maps=("features",),
            numbers=numbers,
        )
        for m in maps
    ]
    together = dense_of(joined(records, sizes, layout), 2, layout.locations((64, 64)))
    (found,) = together.features
    assert found.shape == (2, 3, 8, 8)
    torch.testing.assert_close(found[0, :, :4, :], maps[0][0], atol=2e-2, rtol=0)
    assert together.cls_logits.shape == (2, 64, 1)


def test_moments_align_as_the_maps_themselves_do() -> None:
    maps, student = torch.randn(1, 6, 5, 7) * 3 + 1, torch.randn(1, 6, 5, 7)
    torch.testing.assert_close(like(student, moments(maps[0])[None]), like(student, maps))


def test_the_error_is_that_of_what_is_kept() -> None:
    said = dense(1, 40)
    record = record_of(said, 0, torch.arange(7), maps=(), numbers="8bit")
    errors = record_errors(record, said, 0, torch.arange(7))
    assert set(errors) == {"cls", "edge"}
    assert 0 < errors["edge"] == float((decoded(record, "edge") - said.edge_logits[0, :7]).abs().max())
