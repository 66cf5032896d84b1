"""Boxes stay on their objects: resizing and flipping agree with independent computations."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from locdistill.annotations.files import stays_inside
from locdistill.data.samplers import GroupedSampler
from locdistill.data.transforms import Sample, View, look_at
from locdistill.images import keep_ratio_size

SIDES = st.integers(8, 90)
POINTS = st.lists(st.tuples(*[st.floats(-20, 110, width=32)] * 4), max_size=5)


def sample_of(height: int, width: int, points: list[tuple[float, ...]]) -> Sample:
    raw = np.array(points, dtype=np.float32).reshape(-1, 2, 2)
    boxes = torch.from_numpy(np.concatenate((raw.min(1), raw.max(1)), axis=1).astype(np.float32).reshape(-1, 4))
    pixels = np.random.default_rng(0).integers(0, 255, (3, height, width), dtype=np.uint8)
    count = len(points)
    return Sample(
        torch.from_numpy(pixels), boxes, torch.zeros(count).long(), torch.zeros(count).bool(), (height, width), 1
    )


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, POINTS, st.integers(8, 120), st.integers(0, 80))
def test_boxes_follow_the_image(
    height: int, width: int, points: list[tuple[float, ...]], short: int, more: int
) -> None:
    sample = sample_of(height, width, points)
    resized = look_at(sample, View(short + more, short))
    new_h, new_w = resized.image.shape[-2:]
    assert (new_h, new_w) == keep_ratio_size(height, width, short=short, long=short + more)
    mirrored = look_at(sample, View(short + more, short, flipped=True))
    # Also where it was mirrored before: then a grey level's half is rounded up or down, if sums are of floating point.
    assert int((mirrored.image.int() - resized.image.flip(-1).int()).abs().max()) <= 1
    for before, after, turned in zip(
        sample.boxes.tolist(), resized.boxes.tolist(), mirrored.boxes.tolist(), strict=True
    ):
        x1, x2 = (min(max(x * new_w / width, 0), new_w) for x in before[::2])
        y1, y2 = (min(max(y * new_h / height, 0), new_h) for y in before[1::2])
        np.testing.assert_allclose(after, (x1, y1, x2, y2), atol=1e-3)
        np.testing.assert_allclose(turned, (new_w - x2, y1, new_w - x1, y2), atol=1e-3)
        assert turned[0] <= turned[2]


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, POINTS)
def test_two_flips_are_none(height: int, width: int, points: list[tuple[float, ...]]) -> None:
    sample = sample_of(height, width, points)
    limits = max(height, width), min(height, width)
    twice = look_at(look_at(sample, View(*limits, flipped=True)), View(*limits, flipped=True))
    assert torch.equal(twice.image, sample.image)
    assert torch.allclose(twice.boxes, look_at(sample, View(*limits)).boxes, atol=1e-4)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(16, 1000), st.integers(0, 1000))
def test_keep_ratio_size_stays_within_the_limits(height: int, width: int, short: int, more: int) -> None:
    new = keep_ratio_size(height, width, short=short, long=short + more)
    assert min(new) <= short
    assert max(new) <= short + more
    assert min(new) == short or max(new) == short + more  # as large as allowed
    scale = min(short / min(height, width), (short + more) / max(height, width))
    assert abs(new[0] - max(height * scale, 1)) <= 0.5 + 1e-6
    assert new[::-1] == keep_ratio_size(width, height, short=short, long=short + more)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=40),
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_every_image_is_seen_and_ranks_stay_in_step(
    wide: list[bool], batch: int, world: int, repeat: int, epoch: int
) -> None:
    shares = []
    for rank in range(world):
        sampler = GroupedSampler(wide, batch=batch, rank=rank, world_size=world, repeat=repeat)
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    draws = [draw for share in shares for group in share for draw in group]
    counts = np.bincount([draw.image for draw in draws], minlength=len(wide))
    assert counts.min() >= repeat
    assert len(set(draws)) == len(draws)
    for share in shares:
        for group in share:
            assert len(group) == batch
            assert len({wide[draw.image] for draw in group}) == 1


@given(st.lists(st.sampled_from(["..", ".", "a", "b c", "..."]), min_size=1, max_size=5))
def test_names_stay_inside_exactly_if_no_part_goes_up(parts: list[str]) -> None:
    assert stays_inside("/".join(parts)) == (".." not in parts)
    assert not stays_inside("/" + "/".join(parts))
