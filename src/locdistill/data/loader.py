"""Batches from a data set; equal seeds give equal batches for any number of workers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from locdistill.data.cache import PictureCache
from locdistill.data.records import Dataset
from locdistill.data.resources import picture_memory, worker_count
from locdistill.data.samplers import Draw, GroupedSampler, share
from locdistill.data.settings import DataSettings
from locdistill.data.transforms import Sample, View, assembled, look_at, pieces_of
from locdistill.data.views import ViewPlan
from locdistill.errors import ImageError
from locdistill.geometry.rotated import AngleRange, fit, hull
from locdistill.images import ScaledView, keep_ratio_size, pad_together, read_image, resize_to
from locdistill.types import Batch, Instances

OPEN_FILES = 65536
T = TypeVar("T")


@runtime_checkable
class InputSize(Protocol):
    """The settings of the detector's input that evaluation needs.

    Attributes:
        short: Limit of the shorter side in pixels.
        long: Limit of the longer side in pixels.
        pad_to: Multiple to which the sides are padded.
        bits: Number of bits that the values of 16-bit images use; None: 16.
    """

    short: int
    long: int
    pad_to: int
    bits: int | None


def training_loader(
    dataset: Dataset,
    settings: DataSettings,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    memory: Memory | None = None,
) -> DataLoader[Batch]:
    """Build the loader of training batches: ``settings.batch_per_device`` images, shuffled and augmented.

    ``loader.sampler`` is a `GroupedSampler`: call its ``set_epoch`` before each epoch, ``skip`` to start in the middle
    of one, and ``ends_at`` with the run's length, of which the last part has no mosaics. Each random choice derives
    from seed, epoch and image, so neither workers nor a restart change it. Every process gets the same number
    of batches; do not let an engine replace the sampler.
    """
    plan = training_plan(settings, seed, len(dataset))
    workers = worker_count(settings.workers, world_size)
    cache = None
    if settings.cache:
        shapes = [(record.height, record.width) for record in dataset.records]
        if plan.fixed_size:  # images are cached after resizing
            long, short = plan.sizes[0]
            shapes = [keep_ratio_size(height, width, short=short, long=long) for height, width in shapes]
        limit = picture_memory(None if settings.cache is True else settings.cache, world_size)
        cache = PictureCache(shapes, limit=limit, workers=workers)
    wide = [record.width > record.height for record in dataset.records]
    sampler = GroupedSampler(
        wide,
        batch=settings.batch_per_device,
        seed=seed,
        rank=rank,
        world_size=world_size,
        repeat=settings.repeat,
        late=settings.mosaic_off if settings.mosaic else 0,
    )
    return _loader(Pictures(dataset, plan, cache, memory), sampler, workers=workers, seed=seed)


def every_view_loader(
    dataset: Dataset,
    settings: DataSettings,
    *,
    seed: int,
    draws: Sequence[Draw],
    memory: Memory,
) -> DataLoader[Batch]:
    """Build the loader of given views of training images; the images of a batch have one shape.

    Args:
        dataset: The images.
        settings: Data settings of the training run, which define the views.
        seed: Seed of the training run.
        draws: The images to load, each with its ``way``, the index of its view (see `training_plan`).
        memory: Source of the cached entries of each batch.
    """
    plan = training_plan(settings, seed, len(dataset))
    shapes: dict[tuple[int, int], list[Draw]] = {}
    batches: list[list[Draw]] = []
    for draw in draws:
        record, view = dataset.records[draw.image], plan.view(draw)
        sides = view.size(record.height, record.width)
        same = shapes.setdefault((-(-sides[0] // plan.pad_to), -(-sides[1] // plan.pad_to)), [])
        same.append(draw)
        if len(same) == settings.batch_per_device:
            batches.append(list(same))
            same.clear()
    batches += [same for same in shapes.values() if same]
    pictures = Pictures(dataset, plan, memory=memory)
    return _loader(pictures, batches, workers=worker_count(settings.workers, 1), seed=seed)


def training_plan(settings: DataSettings, seed: int, images: int) -> ViewPlan:
    """Return the plan of the views of a number of training images."""
    return ViewPlan(
        sizes=settings.sizes,
        mode=settings.size_mode,
        flip=settings.flip,
        flip_vertical=settings.flip_vertical,
        turns=settings.turns,
        rotate=settings.rotate,
        scale=settings.scale,
        translate=settings.translate,
        mosaic=settings.mosaic,
        mosaic_scale=settings.mosaic_scale,
        mosaic_off=settings.mosaic_off,
        colour=settings.colour,
        erase=settings.erase,
        images=images,
        min_visible=settings.min_visible,
        pad_to=settings.pad_to,
        bits=settings.bits,
        seed=seed,
        keep_ignored=settings.hands_on_ignored,
        per_image=settings.views,
    )


def evaluation_loader(
    dataset: Dataset,
    input_settings: InputSize,
    *,
    batch: int = 1,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    views: tuple[ScaledView, ...] = (ScaledView(),),
) -> DataLoader[Batch]:
    """Build the loader of every image once, in order, not flipped; each process gets every ``world_size``-th image.

    Shares may differ by one image, and so may the numbers of batches. Batches include ignored objects. With several
    views (test-time augmentation) the batches of the same images are consecutive; each view is made from the files.
    """
    plan = ViewPlan(
        sizes=((input_settings.long, input_settings.short),),
        pad_to=input_settings.pad_to,
        bits=input_settings.bits,
        views=views,
    )
    batches = share(len(dataset), batch=batch, rank=rank, world_size=world_size, views=len(views))
    return _loader(Pictures(dataset, plan), batches, workers=worker_count(workers, world_size), seed=0)


@runtime_checkable
class Memory(Protocol):
    """Interface of a cache of teacher predictions, looked up by image and view."""

    def recall(
        self, images: Sequence[int], sizes: Sequence[tuple[int, int]], views: Sequence[View]
    ) -> Mapping[str, Tensor]:
        """Return the cached entries of the images of a batch, which become its ``Batch.from_cache``.

        Args:
            images: Positions of the images in the data set.
            sizes: Height and width of each transformed image before padding.
            views: View of each image.
        """


class Pictures(TorchDataset[Batch]):
    """A data set whose items are whole batches, indexed by a list of draws.

    Annotations are kept in a few flat arrays, because the memory of many small objects would gradually be copied into
    each worker.
    """

    def __init__(
        self, dataset: Dataset, plan: ViewPlan, cache: PictureCache | None = None, memory: Memory | None = None
    ) -> None:
        records = dataset.records
        self._plan, self._cache, self._memory, self._angles = plan, cache, memory, dataset.angles
        self._paths = np.array([str(record.path) for record in records])
        self._sizes = np.array([(r.height, r.width) for r in records], dtype=np.int64).reshape(-1, 2)
        self._ids = np.array([record.image_id for record in records], dtype=np.int64)
        ignored = _joined([record.ignored for record in records], np.bool_, (0,))
        keep = np.full_like(ignored, True) if plan.keep_ignored else ~ignored
        ends = np.cumsum([len(record.ignored) for record in records], dtype=np.int64)
        self._ends = np.concatenate(([0], np.cumsum(keep, dtype=np.int64)))[ends]
        self._ignored = ignored[keep]
        self._boxes = _joined([record.boxes for record in records], np.float32, (0, 4))[keep]
        self._labels = _joined([record.labels for record in records], np.int64, (0,))[keep]
        quads = [record.quads for record in records if record.quads is not None]
        self._quads = _joined(quads, np.float32, (0, 4, 2))[keep] if dataset.oriented else None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._paths)

    def __getitem__(self, draws: Sequence[Draw]) -> Batch:
        """Read, transform and collate the images of one batch.

        Raises:
            ImageError: An image cannot be read.
        """
        views = [self._plan.view(draw) for draw in draws]
        samples = [self._sample(draw.image, view) for draw, view in zip(draws, views, strict=True)]
        batch = collate(samples, pad_to=self._plan.pad_to, angles=self._angles)
        if self._memory is not None:
            sizes = [(int(h), int(w)) for h, w in batch.sizes.tolist()]
            batch = batch._replace(from_cache=self._memory.recall([draw.image for draw in draws], sizes, views))
        return batch._replace(flipped=views[0].flipped) if self._plan.views else batch

    def _sample(self, image: int, view: View) -> Sample:
        height, width = self._sizes[image].tolist()
        if view.mosaic is not None:
            frame = view.size(height, width)
            pieces = [(piece, self._sample(piece.image, piece.view)) for piece in pieces_of(image, view, frame)]
            return assembled(pieces, frame)._replace(original_size=(height, width), image_id=int(self._ids[image]))
        start, end = (int(self._ends[image - 1]) if image else 0), int(self._ends[image])
        sample = Sample(  # with its boxes in original pixels; the image may have its final size already
            image=self._picture(image, keep_ratio_size(height, width, short=view.short, long=view.long)),
            boxes=torch.from_numpy(self._boxes[start:end]),
            labels=torch.from_numpy(self._labels[start:end]),
            ignored=torch.from_numpy(self._ignored[start:end]),
            original_size=(height, width),
            image_id=int(self._ids[image]),
            quads=None if self._quads is None else torch.from_numpy(self._quads[start:end]),
        )
        return look_at(sample, view, keep_ignored=self._plan.keep_ignored)

    def _picture(self, index: int, target: tuple[int, int]) -> Tensor:
        kept = None if self._cache is None else self._cache.get(index)
        if kept is not None:
            return kept
        path = str(self._paths[index])
        image = read_image(path, bits=self._plan.bits)
        size = tuple(self._sizes[index].tolist())
        if tuple(image.shape[-2:]) != size:
            now = tuple(image.shape[-2:])
            raise ImageError(
                f"{path}: height and width were {size} when training began, and are {now} now; restore the file, or "
                "start again"
            )
        if self._cache is not None:
            image = resize_to(image, target) if self._plan.fixed_size else image
            self._cache.put(index, image)
        return image


def collate(samples: Sequence[Sample], *, pad_to: int, angles: AngleRange = "le135") -> Batch:
    """Stack samples: images padded with zeros right and bottom, objects with empty slots (at least one per image).

    The padded sides are the largest of the batch, rounded up to ``pad_to``. Each image's extents are its own sides
    rounded up in the same way.

    Rotated boxes are fitted here, after all transforms: a rotated object is the smallest rectangle around its corners,
    with its angle in the given range. Its axis-aligned box circumscribes that rectangle.
    """
    sizes = torch.tensor([sample.image.shape[-2:] for sample in samples], dtype=torch.int64)
    extents = (sizes + pad_to - 1) // pad_to * pad_to
    height, width = extents.amax(0).tolist()
    fitted = [fit(sample.quads, angles) for sample in samples if sample.quads is not None]
    boxes = [hull(found) for found in fitted] or [sample.boxes for sample in samples]
    return Batch(
        images=pad_together([sample.image for sample in samples], height=height, width=width),
        sizes=sizes,
        original_sizes=torch.tensor([sample.original_size for sample in samples], dtype=torch.int64),
        image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        instances=Instances(
            boxes=_slots(boxes),
            labels=_slots([sample.labels for sample in samples]),
            present=_slots([~sample.ignored for sample in samples]),
            ignored=_slots([sample.ignored for sample in samples]),
            extents=extents,
            oriented=_slots(fitted) if fitted else None,
        ),
    )


def _slots(parts: Sequence[Tensor]) -> Tensor:
    """Stack per-object tensors of images, padded with zeros to the largest number of objects, at least one."""
    one = parts[0].new_zeros((1, *parts[0].shape[1:]))
    return pad_sequence([*parts, one], batch_first=True)[:-1]


def _joined(parts: Sequence[np.ndarray], kind: type, empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.zeros(empty, kind), *parts]).astype(kind)


def _loader(pictures: Pictures, sampler: Iterable[list[Draw]], *, workers: int, seed: int) -> DataLoader[Batch]:
    if workers:
        # Every tensor from a worker holds a file open until it is dropped: raise the soft limit of open files.
        with suppress(ImportError):  # on Windows, where there is no such limit
            import resource  # noqa: PLC0415

            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
            if soft != resource.RLIM_INFINITY and soft < wanted:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return DataLoader(
        pictures,
        sampler=sampler,
        batch_size=None,  # items are batches already
        collate_fn=_as_it_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_leave_signals_to_the_parent if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # else each epoch would draw from the global random state
    )


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Ignore signals sent to the whole process group, as a terminal, ``timeout`` and SLURM send them.

    The parent finishes its step, saves, and ends the workers itself: a worker ends only on the parent's SIGTERM. On
    systems other than Linux the sender of a signal is unknown, and SIGTERM keeps its effect.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_on_signal_from, args=(os.getppid(),), daemon=True).start()


def _end_on_signal_from(process: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(0)


def _as_it_is(item: T) -> T:
    return item
