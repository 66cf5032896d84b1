"""A detector, an objective and data of a few hundred numbers, with the interfaces that the engine asks for."""
# ruff: noqa: ARG002 (the interfaces have more arguments than the fakes need)

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from locdistill.geometry.grid import Grid
from locdistill.models.detector import Detector
from locdistill.objective.objective import Objective
from locdistill.types import Batch, Dense, Detections, Instances

SIDE = 16


class FakeDetector(Detector):
    """One level of stride 8, with batch normalisation, dropout and a frozen stem."""

    def __init__(self, seed: int = 0, dropout: float = 0.2, norm_eval: bool = False) -> None:
        nn.Module.__init__(self)
        self.norm_eval = norm_eval
        torch.manual_seed(seed)
        self.backbone = nn.ModuleDict({"stem": nn.Conv2d(3, 4, 3, 2, 1), "body": nn.Conv2d(4, 6, 3, 2, 1, bias=False)})
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Conv2d(6, 2 + 4 * 3, 3, 2, 1)
        self.backbone["stem"].requires_grad_(False)

    def forward(self, images: Tensor, *, features: bool = False, towers: bool = False) -> Dense:
        level = self.backbone["body"](self.backbone["stem"](images).relu())
        x = self.head(self.drop(self.norm(level).relu())).flatten(2).transpose(1, 2)
        return Dense(x[..., :2], x[..., 2:].unflatten(-1, (4, 3)), features=(level,) if features else ())

    def train(self, mode: bool = True) -> FakeDetector:
        nn.Module.train(self, mode)
        if self.norm_eval:
            self.norm.eval()
        return self

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        return images.float() / 128 - 1

    def see(self, images: Tensor, sizes: Tensor) -> tuple[Dense, Grid]:
        return self(self.normalise(images, sizes)), self.grid_for(images.shape[-2:])

    def grid_for(self, images_hw: tuple[int, int]) -> Grid:
        return Grid.build(((images_hw[0] // 8, images_hw[1] // 8),), (8,))

    def candidates(
        self, dense: Dense, grid: Grid, sizes: Tensor, original_sizes: Tensor, *, flipped: bool = False
    ) -> list[Detections]:
        scores = dense.cls_logits.sigmoid().amax(-1)
        return [Detections(torch.zeros(len(s), 4), s.float(), torch.zeros(len(s), dtype=torch.long)) for s in scores]

    def suppress(self, views: Sequence[list[Detections]]) -> list[Detections]:
        return views[0]

    def save(self, path: Path) -> Path:
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, path)
        return Path(path)


class FakeTeacher:
    """Composed, as the real one; counts its calls."""

    def __init__(self) -> None:
        self.detector = FakeDetector(seed=7).eval().requires_grad_(False)
        self.calls = 0
        self.gradients: set[bool] = set()
        self.dtypes: set[torch.dtype] = set()

    def to(self, device: torch.device) -> FakeTeacher:
        self.detector.to(device)
        return self

    def __call__(self, batch: Batch, *, features: bool = False, towers: bool = False) -> Dense:
        self.calls += 1
        self.gradients.add(torch.is_grad_enabled())
        dense = self.detector(self.detector.normalise(batch.images, batch.sizes), features=features)
        self.dtypes.add(dense.cls_logits.dtype)
        return dense

    def cross(self, student: Dense, teacher: Dense) -> Dense:
        raise AssertionError("no term asks for it")

    def optimise(self, how: Any) -> None:
        pass

    def after_step(self, student: nn.Module) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("a frozen teacher has nothing to load")


class FakePupil(FakeTeacher):
    """Learns from the student: the half of its own weights and of the student's."""

    def after_step(self, student: nn.Module) -> None:
        ours = self.detector.state_dict()
        for name, value in student.state_dict().items():
            if value.is_floating_point():
                ours[name].lerp_(value, 0.5)

    def state_dict(self) -> dict[str, Any]:
        return self.detector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state)


class FakeObjective(Objective):
    """Means over images, so that a mean over batches or ranks of equal size is the mean over all images."""

    def __init__(
        self, *, needs_teacher: bool = False, needs_features: bool = False, breaks_on: int | None = None
    ) -> None:
        self.needs_teacher = needs_teacher
        self.needs_features = needs_features
        self.breaks_on = breaks_on
        self.dtypes: set[torch.dtype] = set()

    learns = False
    needs_teacher = False
    needs_features = False
    needs_towers = False
    needs_cross = False
    __setattr__ = object.__setattr__

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def learned(self, example: Any) -> Any:
        raise AssertionError("its terms own nothing")

    def scene(
        self,
        student: Dense,
        teacher: Dense | None = None,
        *,
        grid: Grid,
        instances: Instances,
        progress: Any = None,
        cross: Any = None,
    ) -> Any:
        return SimpleNamespace(student=student, teacher=teacher, grid=grid, instances=instances)

    def losses(self, scene: Any) -> dict[str, Tensor]:
        student, teacher, instances = scene.student, scene.teacher, scene.instances
        self.dtypes.add(student.cls_logits.dtype)
        target = instances.boxes.mean((1, 2))[:, None, None]
        terms = {
            "cls": (student.cls_logits - target).square().mean(),
            "edge": student.edge_logits.square().mean(),
        }
        if self.needs_teacher:
            assert teacher is not None
            terms["ld"] = 0.5 * (student.edge_logits - teacher.edge_logits).square().mean()
        if self.needs_features:
            assert teacher is not None
            terms["imitation"] = (student.features[0] - teacher.features[0]).square().mean()
        else:
            assert student.features == ()
        if self.breaks_on is not None and (instances.labels == self.breaks_on).any():
            terms["edge"] = terms["edge"] * float("nan")
        return terms


def watch(scene: Any) -> dict[str, Tensor]:
    """Two ratios: one of every image, one that has nothing to say of images with an even number."""
    ids = scene.instances.labels[:, 0].double()
    odd = ids % 2
    return {
        "agree/mean_id": torch.stack((ids.sum(), torch.ones_like(ids).sum())),
        "agree/odd_id": torch.stack(((ids * odd).sum(), odd.sum())),
    }


class FakeImages(Dataset):
    """Image ``i`` of epoch ``e`` is always the same picture, whoever asks."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        return torch.randint(0, 256, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8), index


class FakeSampler:
    """Batches of ``(epoch, index)``: an order per epoch, dealt to the ranks in turn."""

    def __init__(self, count: int, batch_size: int, seed: int, rank: int, world: int, shuffle: bool = True) -> None:
        self.count, self.batch_size, self.seed, self.rank, self.world = count, batch_size, seed, rank, world
        self.shuffle = shuffle
        self.epoch, self.skipped = 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def skip(self, batches: int) -> None:
        self.skipped = batches

    def __len__(self) -> int:
        return self.count // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 999 + self.epoch)
        order = (torch.randperm(self.count, generator=generator) if self.shuffle else torch.arange(self.count)).tolist()
        skipped, self.skipped = self.skipped, 0
        for i in range(skipped, len(self)):
            together = order[i * self.batch_size * self.world : (i + 1) * self.batch_size * self.world]
            yield [(self.epoch, index) for index in together[self.rank :: self.world]]


def collate(items: list[tuple[Tensor, int]]) -> Batch:
    images = torch.stack([image for image, _ in items])
    ids = torch.tensor([index for _, index in items])
    b = len(items)
    sizes = torch.full((b, 2), SIDE)
    boxes = ids.float()[:, None, None].expand(b, 1, 4) / 10
    return Batch(
        images=images,
        sizes=sizes,
        original_sizes=sizes,
        image_ids=ids,
        instances=Instances(
            boxes=boxes.contiguous(),
            labels=ids[:, None],
            present=torch.ones(b, 1, dtype=torch.bool),
            ignored=torch.zeros(b, 1, dtype=torch.bool),
            extents=sizes,
        ),
    )


class Loaders:
    """``make_train_loader`` and ``make_val_loader``; picklable."""

    def __init__(self, count: int = 16, batch: int = 4, seed: int = 0, shuffle: bool = True) -> None:
        self.count, self.batch, self.seed, self.shuffle = count, batch, seed, shuffle

    def __call__(self, rank: int, world: int) -> DataLoader:
        sampler = FakeSampler(self.count, self.batch, self.seed, rank, world, self.shuffle)
        return DataLoader(FakeImages(self.count), batch_sampler=sampler, collate_fn=collate)


class Judge:
    """An AP that follows a given course over the evaluations, and a record of what was handed over."""

    def __init__(self, course: tuple[float, ...] = ()) -> None:
        self.course = course
        self.seen: list[dict[int, Detections]] = []

    def __call__(self, detections: dict[int, Detections]) -> dict[str, float]:
        self.seen.append(detections)
        mean = torch.cat([d.scores for d in detections.values()]).mean().item()
        return {"AP": self.course[len(self.seen) - 1] if self.course else mean, "score": mean}


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())
