"""Batches: the same for the same seed, whatever the workers, the restart, the number of processes."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from locdistill.data.cache import PictureCache
from locdistill.data.loader import collate, evaluation_loader, training_loader
from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset, Record
from locdistill.data.samplers import Draw, GroupedSampler, share
from locdistill.data.settings import DataSettings
from locdistill.data.transforms import Sample, choose_limits
from locdistill.errors import ImageError
from locdistill.types import Batch


class Size(NamedTuple):
    short: int
    long: int
    pad_to: int
    bits: int | None = None


def settings_of(folder: Path, **changes: Any) -> DataSettings:
    values = {"path": str(folder), "sizes": ((80, 60),), "batch_per_device": 2, "workers": 0, "filter_empty": False}
    return DataSettings(**{**values, **changes})


def batches_of(folder: Path, epoch: int = 0, *, skip: int = 0, seed: int = 5, **changes: Any) -> list[Batch]:
    settings = settings_of(folder, **changes)
    loader = training_loader(open_dataset(settings, "train"), settings, seed=seed)
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    loader.sampler.skip(skip)  # type: ignore[attr-defined]
    return list(loader)


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for a, b in zip((*one[:4], *one.instances), (*other[:4], *other.instances), strict=True):
            assert a is b is None or torch.equal(a, b)


# --- batches -------------------------------------------------------------------------------------------------------


def test_batch_by_hand() -> None:
    first = Sample(
        torch.full((3, 20, 33), 9, dtype=torch.uint8),
        torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]),
        torch.tensor([2, 1]),
        torch.tensor([False, True]),
        (40, 66),
        17,
    )
    second = Sample(
        torch.full((3, 40, 10), 8, dtype=torch.uint8),
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, dtype=torch.bool),
        (80, 20),
        18,
    )
    batch = collate([first, second], pad_to=32)
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    assert int(batch.images[0].sum()) == 9 * 3 * 20 * 33
    assert bool((batch.images[0, :, :20, :33] == 9).all())
    assert batch.sizes.tolist() == [[20, 33], [40, 10]]
    assert batch.original_sizes.tolist() == [[40, 66], [80, 20]]
    assert batch.image_ids.tolist() == [17, 18]
    instances = batch.instances
    assert instances.extents.tolist() == [[32, 64], [64, 32]]
    assert instances.boxes[0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert instances.labels.tolist() == [[2, 1], [0, 0]]
    assert instances.present.tolist() == [[True, False], [False, False]]
    assert instances.ignored.tolist() == [[False, True], [False, False]]
    assert collate([second], pad_to=1).instances.boxes.shape == (1, 1, 4)
    assert collate([second], pad_to=1).images.shape == (1, 3, 40, 10)


def test_training_is_deterministic_in_seed_and_epoch(tiny_coco: Path) -> None:
    reference = batches_of(tiny_coco, 3)
    assert len(reference) == 4
    assert_equal(reference, batches_of(tiny_coco, 3))
    for other in (batches_of(tiny_coco, 4), batches_of(tiny_coco, 3, seed=6)):
        assert any(not torch.equal(a.images, b.images) for a, b in zip(reference, other, strict=True))


def test_the_global_random_state_plays_no_role_and_is_left_alone(tiny_coco: Path) -> None:
    torch.manual_seed(0)
    reference, state = batches_of(tiny_coco), torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert_equal(reference, batches_of(tiny_coco))


def test_workers_change_nothing(tiny_coco: Path) -> None:
    sizes = ((80, 40), (80, 60))
    settings = settings_of(tiny_coco, workers=2, sizes=sizes, size_mode="range")
    loader = training_loader(open_dataset(settings, "train"), settings, seed=5)
    for epoch in (0, 1):  # the same workers serve both epochs
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        assert_equal(list(loader), batches_of(tiny_coco, epoch, sizes=sizes, size_mode="range"))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_lie_row_by_row(workers: int, tiny_coco: Path) -> None:
    assert all(b.images.permute(0, 2, 3, 1).is_contiguous() for b in batches_of(tiny_coco, workers=workers))


def test_workers_may_be_spawned(tiny_coco: Path) -> None:
    settings = settings_of(tiny_coco, cache=True)
    loader = training_loader(open_dataset(settings, "train"), settings, seed=5)
    copy = pickle.loads(pickle.dumps(loader.dataset))
    for draws in loader.sampler:
        assert_equal([loader.dataset[draws]], [copy[draws]])


def test_an_epoch_entered_in_the_middle_goes_on_as_if_uninterrupted(tiny_coco: Path) -> None:
    whole = batches_of(tiny_coco, 2, repeat=2)
    assert len(whole) == 8
    assert_equal(whole[3:], batches_of(tiny_coco, 2, skip=3, repeat=2))


def test_skipping_holds_for_one_epoch() -> None:
    sampler = GroupedSampler([True] * 10, batch=2)
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.skip(2)
    assert list(sampler) == whole[2:] == list(sampler)
    assert len(sampler) == 5
    sampler.set_epoch(5)
    assert len(list(sampler)) == 5
    sampler.set_epoch(0)
    sampler.skip(3, epoch=4)  # said before the epoch is set
    assert len(list(sampler)) == 5
    sampler.set_epoch(4)
    assert list(sampler) == whole[3:]
    sampler.skip(0)
    assert list(sampler) == whole


def test_flips_happen_as_often_as_asked(tiny_coco: Path) -> None:
    straight = batches_of(tiny_coco, flip=0.0)
    mirrored = batches_of(tiny_coco, flip=1.0)
    for one, other in zip(straight, mirrored, strict=True):
        assert torch.equal(one.image_ids, other.image_ids)
        for i, (height, width) in enumerate(one.sizes.tolist()):
            assert torch.equal(one.images[i, :, :height, :width].flip(-1), other.images[i, :, :height, :width])
            here = one.instances.boxes[i][one.instances.present[i]]
            there = other.instances.boxes[i][other.instances.present[i]]
            assert torch.allclose(there[:, 0], width - here[:, 2], atol=1e-4)
            assert torch.equal(there[:, 1::2], here[:, 1::2])
    half = batches_of(tiny_coco, flip=0.5, repeat=25)
    flipped = sum(
        torch.equal(batch.images[i], mirrored_image)
        for batch in half
        for i, image_id in enumerate(batch.image_ids.tolist())
        for mirrored_image in [_image_of(mirrored, image_id)]
    )
    assert 70 < flipped < 130  # of 200; 100 +- 4 standard deviations


def _image_of(batches: list[Batch], image_id: int) -> torch.Tensor:
    return next(b.images[i] for b in batches for i, found in enumerate(b.image_ids.tolist()) if found == image_id)


def test_boxes_are_where_the_objects_are(tiny_coco: Path) -> None:
    """The drawn rectangles are found at the boxes after resizing and flipping: colour inside, background outside."""
    hits = total = 0
    for batch in batches_of(tiny_coco, 1, sizes=((256, 192),), repeat=4):
        for i in range(len(batch.images)):
            present = batch.instances.present[i] & (batch.instances.labels[i] == 1)  # green rectangles
            for x1, y1, x2, y2 in batch.instances.boxes[i][present].round().int().tolist():
                red, green, blue = batch.images[i, :, (y1 + y2) // 2, (x1 + x2) // 2].int().tolist()
                hits += green > 150 > max(red, blue)
                total += 1
    assert total >= 8
    assert hits >= 0.75 * total  # others are covered by an object drawn later


def test_scales_vary_per_image_within_their_limits(tiny_coco: Path) -> None:
    shorts = {
        min(size)
        for batch in batches_of(tiny_coco, sizes=((1000, 50), (1000, 53)), size_mode="range", repeat=8)
        for size in batch.sizes.tolist()
    }
    assert shorts == {50, 51, 52, 53}
    values = {
        tuple(size)
        for batch in batches_of(tiny_coco, sizes=((80, 30), (64, 60)), repeat=4)
        for size in batch.sizes.tolist()
    }
    assert values == {(30, 40), (48, 64)}


def test_choose_limits() -> None:
    random = np.random.default_rng(0)
    drawn = Counter(choose_limits(((100, 60), (200, 62)), "range", random) for _ in range(4000))
    assert {short for _, short in drawn} == {60, 61, 62}
    assert {long for long, _ in drawn} == set(range(100, 201))
    assert set(Counter(choose_limits(((100, 60), (200, 62)), "value", random) for _ in range(50))) == {
        (100, 60),
        (200, 62),
    }


def test_crowds_are_background_or_handed_on(tiny_coco: Path) -> None:
    settings = settings_of(tiny_coco, batch_per_device=8)
    dataset = open_dataset(settings, "train")
    records = tuple(
        Record(r.path, r.image_id, r.width, r.height, r.boxes, r.labels, np.arange(len(r.labels)) == 0)
        for r in dataset.records
    )
    marked = Dataset(dataset.name, dataset.classes, records, dataset.kind, dataset.category_ids)
    total = sum(len(record.labels) for record in records)
    crowds = sum(int(record.ignored.sum()) for record in records)
    for crowd, expected in (("background", 0), ("ignore", crowds)):
        chosen = settings.model_copy(update={"crowd": crowd})
        (batch,) = training_loader(marked, chosen, seed=0)
        assert int(batch.instances.ignored.sum()) == expected
        assert int(batch.instances.present.sum()) == total - crowds
        assert not bool((batch.instances.present & batch.instances.ignored).any())
    (batch,) = evaluation_loader(marked, Size(60, 80, 32), batch=8, workers=0)
    assert int(batch.instances.ignored.sum()) == crowds


def test_more_images_per_step_than_there_are(tiny_coco: Path) -> None:
    batches = batches_of(tiny_coco, batch_per_device=20)
    assert len(batches) == 1
    counts = Counter(batches[0].image_ids.tolist())
    assert set(counts) == set(range(1, 9))
    assert set(counts.values()) == {2, 3}


def test_the_cache_changes_nothing(tiny_coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for sizes in (((80, 60),), ((80, 40), (80, 60))):
        settings = settings_of(tiny_coco, cache=True, sizes=sizes)
        loader = training_loader(open_dataset(settings, "train"), settings, seed=5)
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            assert_equal(list(loader), batches_of(tiny_coco, epoch, sizes=sizes))
        with monkeypatch.context() as patch:  # the second and later readings touch no file
            patch.setattr("locdistill.data.loader.read_image", lambda path, **_: pytest.fail(f"read {path} again"))
            list(loader)


def test_the_cache_keeps_what_fits() -> None:
    cache = PictureCache([(2, 2), (1, 2), (4, 4)], limit=3 * 6)
    pictures = [torch.full((3, h, w), 1 + h, dtype=torch.uint8) for h, w in ((2, 2), (1, 2), (4, 4))]
    for index, picture in enumerate(pictures):
        assert cache.get(index) is None
        cache.put(index, picture)
    assert cache.places == 2
    for index in (0, 1):
        kept = cache.get(index)
        assert kept is not None
        assert torch.equal(kept, pictures[index])
    assert cache.get(2) is None
    assert pickle.loads(pickle.dumps(cache)).get(0) is None


def test_a_file_that_changed_after_the_check_is_an_error(tiny_coco: Path) -> None:
    settings = settings_of(tiny_coco)
    dataset = open_dataset(settings, "train")
    first = dataset.records[0]
    changed = Record(first.path, 1, first.width + 1, first.height, first.boxes, first.labels, first.ignored)
    other = Dataset("x", dataset.classes, (changed,), "coco", dataset.category_ids)
    with pytest.raises(ImageError, match="when training began"):
        list(training_loader(other, settings, seed=0))


def test_an_unreadable_image_in_a_worker_is_an_image_error(tiny_coco: Path, tmp_path: Path) -> None:
    settings = settings_of(tiny_coco, workers=1)
    record = Record(
        tmp_path / "gone.png", 1, 9, 9, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_)
    )
    loader = training_loader(Dataset("x", ("a",), (record,), "coco", (1,)), settings, seed=0)
    with pytest.raises(ImageError, match=r"gone\.png"):
        list(loader)


# --- samplers ------------------------------------------------------------------------------------------------------

WIDE = [i % 3 == 0 for i in range(23)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("repeat", [1, 3])
def test_processes_share_an_epoch(world: int, repeat: int) -> None:
    shares = []
    for rank in range(world):
        sampler = GroupedSampler(WIDE, batch=4, seed=1, rank=rank, world_size=world, repeat=repeat)
        sampler.set_epoch(2)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    assert all(len(batch) == 4 for batch in batches)
    assert all(len({WIDE[draw.image] for draw in batch}) == 1 for batch in batches)
    draws = [draw for batch in batches for draw in batch]
    assert len(set(draws)) == len(draws)  # no random choice is made twice
    counts = Counter(draw.image for draw in draws)
    assert set(counts) == set(range(23))
    assert min(counts.values()) >= repeat
    # filled up by less than one step per group
    assert sum(counts.values()) - 23 * repeat < 2 * 4 * world


def test_groups_and_order_change_with_the_epoch() -> None:
    sampler = GroupedSampler(WIDE, batch=4)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert [[d.image for d in batch] for batch in first] != [[d.image for d in batch] for batch in second]
    assert {draw.epoch for batch in second for draw in batch} == {1}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_shares_are_disjoint_covering_and_ordered(world: int) -> None:
    shares = [[d for b in share(10, batch=2, rank=r, world_size=world) for d in b] for r in range(world)]
    images = [[draw.image for draw in share] for share in shares]
    assert sorted(image for share in images for image in share) == list(range(10))
    assert all(share == sorted(share) for share in images)
    assert max(map(len, images)) - min(map(len, images)) <= 1
    assert share(1, batch=2, rank=3, world_size=4) == []


def test_evaluation_loader(tiny_coco: Path) -> None:
    dataset = open_dataset(settings_of(tiny_coco), "val")
    loader = evaluation_loader(dataset, Size(short=48, long=200, pad_to=16), batch=3, workers=0)
    batches = list(loader)
    assert len(batches) == len(loader) == 2
    assert [i for batch in batches for i in batch.image_ids.tolist()] == [1001, 1002, 1003, 1004]
    assert batches[0].images.shape == (3, 3, 48, 64)
    assert batches[0].original_sizes.tolist() == [[96, 128]] * 3
    record = dataset.records[0]
    found = batches[0].instances.boxes[0][batches[0].instances.present[0]]
    assert torch.allclose(found, torch.from_numpy(record.boxes) / 2)
    shares = [
        [i for b in evaluation_loader(dataset, Size(48, 64, 32), workers=0, rank=r, world_size=2) for i in b.image_ids]
        for r in (0, 1)
    ]
    assert shares == [[1001, 1003], [1002, 1004]]


def test_draws_are_plain_values() -> None:
    assert Draw(3) == (3, 0, 0, None, False)
