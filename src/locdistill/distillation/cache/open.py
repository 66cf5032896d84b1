"""Opening of a recipe's cache of teacher predictions, with checks of its owner and its contents."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from locdistill.data.digest import object_digests
from locdistill.data.loader import training_plan
from locdistill.data.records import Dataset
from locdistill.data.samplers import Draw
from locdistill.data.settings import DataSettings
from locdistill.data.transforms import View
from locdistill.data.views import ViewPlan
from locdistill.distillation.cache.record import Layout
from locdistill.distillation.cache.store import Store
from locdistill.distillation.cache.teacher import DIGEST, CachedTeacher, Keeping, Recall
from locdistill.distillation.settings import TeacherSettings
from locdistill.distillation.teacher import FrozenTeacher
from locdistill.errors import CacheError, ImageError
from locdistill.models.detector import Detector
from locdistill.models.meaning import meaning_of
from locdistill.objective.objective import Objective
from locdistill.types import Progress

CONTRACT = "contract"
VERSION = 2
READERS = 8
log = logging.getLogger("locdistill")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """Settings and objects that decide what a cache holds, and what is read from it.

    Attributes:
        settings: The teachers and the cache.
        teacher: The teacher, not cached yet.
        student: The student.
        objective: The student's loss.
        dataset: The training images.
        data: Settings of augmentation, batches and padding.
        precision: Precision of the teacher's multiplications.
        seed: Seed of the order and the views of the images.
    """

    settings: TeacherSettings
    teacher: FrozenTeacher
    student: Detector
    objective: Objective
    dataset: Dataset
    data: DataSettings
    precision: str
    seed: int


def open_cache(use: CacheUse, *, progress: Progress | None = None) -> tuple[CachedTeacher, Recall]:
    """Open a run's cache: a teacher that runs only where records are missing, and the lookup of its records.

    Args:
        use: The run's settings and objects.
        progress: Reports how many of the images with unknown content are read.

    Raises:
        CacheError: The cache belongs to another teacher or student, is incomplete and cannot be added to, or cannot be
            read or written.
        ImageError: An image cannot be read.
    """
    teacher, dataset, settings = use.teacher, use.dataset, use.settings.cache
    assert settings is not None
    grid = use.student.grid_for((64, 64))
    layout = Layout(strides=grid.level_strides, per_cell=grid.per_cell, pad_to=use.data.pad_to)
    keeping = Keeping.of(use.objective, layout, comparable=teacher.comparable, numbers=settings.numbers)
    plan = training_plan(use.data, use.seed, len(use.dataset))
    _check_padding(use, plan, layout)
    store = store_in(settings.path)
    wanted = contract_of(use, keeping)
    there = store.about(CONTRACT)
    plain = json.loads(json.dumps(wanted))
    same = there is None or plain == there
    if not same:
        _check_contract(store.path, there, wanted)
    recall = Recall(store, contents(dataset, store, keep_ignored=use.data.hands_on_ignored, progress=progress), layout)
    missing, views = len(missing_draws(recall, dataset, plan)), len(dataset) * (plan.ways or 0)
    if missing and not same:
        raise CacheError(
            f"{store.path} lacks {missing} of this run's {views} views, and its records hold more than this run would "
            "add; complete it with the recipe that it was built for ('locdistill cache build'), or name another folder"
        )
    if there is None and store.claim(CONTRACT, wanted) != plain:
        return open_cache(use, progress=progress)  # another process was faster, and built another cache
    how = f"the teacher runs on the other {missing} when they come up" if missing else "the teacher does not run"
    cached = CachedTeacher(teacher, store, keeping, use.student.grid_for)
    cached.notes = (*teacher.notes, f"cache {store.path}: {views - missing} of {views} views are there; {how}")
    return cached, recall


def store_in(path: str | Path) -> Store:
    """Return the store in a folder, which may be new.

    Raises:
        CacheError: The path is a file, or a folder with other contents.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise CacheError(f"{folder} is a file; expected the folder of a cache, or a new one")
    store = Store(folder)
    if folder.is_dir() and not store.exists and any(not file.name.endswith(".mdb") for file in folder.iterdir()):
        raise CacheError(f"{folder} has other contents; expected the folder of a cache, or a new or empty one")
    return store


def contract_of(use: CacheUse, keeping: Keeping) -> dict[str, Any]:
    """Return as plain data all that determines a teacher's predictions of an image, and which of them are kept."""
    teacher, student = use.settings, use.student.settings
    own = ("sha256", "share", "classes", "input", "onnx")
    return {
        "version": VERSION,
        "teachers": [each.model_dump(mode="json", include=set(own)) for each in (teacher, *teacher.more)],
        "scale": teacher.scale,
        "soft_target": teacher.soft_target,
        "soft_width": teacher.soft_width,
        "student": {
            "model": student.model,
            "classes": list(student.classes),
            "strides": list(student.strides),
            "reg_max": student.reg_max,
            "meaning": repr(meaning_of(student)),
        },
        "pad_to": use.data.pad_to,
        "bits": use.data.bits,
        "precision": use.precision,
        "numbers": keeping.numbers,
        "assigner": repr(keeping.objective.assigner),
        "regions": list(keeping.regions) if keeping.predictions else ["nowhere"],
        "maps": list(keeping.maps),
    }


def _check_contract(path: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise an error if a cache has another contract; one that holds more is accepted.

    Raises:
        CacheError: It belongs to another teacher or student, or lacks something.
    """
    differs = [
        f"{name} {_brief(there.get(name))} there, {_brief(value)} here"
        for name, value in wanted.items()
        if name not in ("regions", "maps") and there.get(name) != value
    ]
    for name in ("regions", "maps"):
        lacks = [each for each in wanted[name] if each not in there[name] and "everywhere" not in there[name]]
        if lacks and lacks != ["nowhere"]:
            differs.append(f"{name} {', '.join(there[name]) or 'none'} there, {', '.join(lacks)} needed")
    if differs:
        raise CacheError(
            f"{path} is the cache of another run, with other predictions: {'; '.join(differs)}. Name another folder "
            "(--cache DIR), remove this one, or use the settings that it was built with"
        )


def _brief(value: Any) -> str:
    """Format plain data briefly; digests are shortened."""
    if isinstance(value, list):
        return "[" + ", ".join(_brief(each) for each in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_brief(v)}" for k, v in value.items() if v is not None) + "}"
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


def _check_padding(use: CacheUse, plan: ViewPlan, layout: Layout) -> None:
    """Raise an error if a term uses the padding of a batch and batches have any.

    Raises:
        CacheError: A term uses the padding that a batch adds, which the records cannot hold.
    """
    terms = [name for name, term in use.objective.terms.items() if term.sees_padding]
    if not terms:
        return
    shapes: dict[bool, set[tuple[int, int]]] = {}
    for draw, _, size in _sized(use.dataset, plan):
        record = use.dataset.records[draw.image]
        shapes.setdefault(record.width > record.height, set()).add(layout.extents(size))
    if any(len(each) > 1 for each in shapes.values()):
        raise CacheError(
            f"the terms {', '.join(terms)} use the padding of a batch, but a cache holds each image without it; set "
            f"terms.{terms[0]}.on.padding=false (or per=image), or use no cache"
        )


def missing_draws(recall: Recall, dataset: Dataset, plan: ViewPlan, part: tuple[int, int] = (1, 1)) -> list[Draw]:
    """Return the views of the images without a record yet; each once.

    Args:
        recall: The lookup of records.
        dataset: The images.
        plan: The plan of their views.
        part: ``(k, n)``: only those of the ``k``-th of ``n`` shares, counted from 1. A share does not depend on the
            existing records, so that all shares together are complete, whenever each begins.
    """
    keys: dict[bytes, Draw] = {}
    for draw, view, size in _sized(dataset, plan):
        keys.setdefault(recall.key(draw.image, size, view), draw)
    share, shares = part
    own = list(keys.items())[share - 1 :: shares]
    there = recall.store.has(key for key, _ in own)
    return [draw for (_, draw), known in zip(own, there, strict=True) if not known]


def _sized(dataset: Dataset, plan: ViewPlan) -> Iterator[tuple[Draw, View, tuple[int, int]]]:
    """Yield all views of all images, with the resulting height and width."""
    assert plan.ways is not None, "the recipe's checks refuse what cannot be counted"
    for image, record in enumerate(dataset.records):
        for way, view in enumerate(plan.all_views(image)):
            yield Draw(image, way=way), view, view.size(record.height, record.width)


def contents(dataset: Dataset, store: Store, *, keep_ignored: bool, progress: Progress | None = None) -> np.ndarray:
    """Return a digest of each image's file and objects, ``(n, 16)`` uint8.

    A file is not read again if its size and modification time match the notes in the store.

    Raises:
        ImageError: A file cannot be read.
        CacheError: The store cannot be read or written.
    """
    names = [
        hashlib.blake2b(os.fsencode(record.path.absolute()), digest_size=DIGEST).digest() for record in dataset.records
    ]
    stamps = []
    for record in dataset.records:
        try:
            facts = record.path.stat()
        except OSError as error:
            raise ImageError(f"{record.path}: cannot be read ({error.strerror}); check the data set") from error
        stamps.append(struct.pack("<QQ", facts.st_size, facts.st_mtime_ns))
    noted = store.notes(names)
    files = [
        note[len(stamp) :] if note and note.startswith(stamp) else b""
        for note, stamp in zip(noted, stamps, strict=True)
    ]
    unread = [i for i, digest in enumerate(files) if not digest]
    with ThreadPoolExecutor(READERS) as readers:
        found: Iterable[bytes] = readers.map(
            lambda i: hashlib.blake2b(dataset.records[i].path.read_bytes(), digest_size=DIGEST).digest(), unread
        )
        for i, digest in zip(unread, found if progress is None else progress(found, len(unread)), strict=True):
            files[i] = digest
    if unread:
        store.note({names[i]: stamps[i] + files[i] for i in unread})
    seen = dataset.records if keep_ignored else [record.of(~record.ignored) for record in dataset.records]
    digests = [
        hashlib.blake2b(file + objects, digest_size=DIGEST).digest()
        for file, objects in zip(files, object_digests(dataset, records=seen), strict=True)
    ]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST)
