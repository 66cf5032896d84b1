"""How time and memory of a step grow: ``python -m benchmarks.growth [--json] [--markdown FILE]``.

A ResNet-18 student learns from a ResNet-101 teacher of its kind with the whole recipe's terms (``ld_full``). One step
is cut into its parts, over the number of images, over the number of objects in each image, and over the size of the
images, the last on random predictions: there the network's own part is left out, which on a processor takes minutes.

Weights, pictures and boxes are random; speed does not depend on the first two. In every round each case takes one step;
seconds are medians over the rounds, shares and ratios are taken within a round, then their medians. Memory is measured
in a step of its own: on a GPU what its allocator reports; on a processor the bytes of all tensors that live at once,
without what a convolution uses inside. Of both, what was there before the step (weights, batch) is taken off.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.machine import about
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from locdistill.distillation.presets import ld_full, supervised
from locdistill.distillation.teacher import LiveTeacher
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.objective.objective import Objective
from locdistill.recipe.vocabulary import ASSIGNERS
from locdistill.types import Batch, Dense, Instances

CLASSES = tuple(f"class {i}" for i in range(80))
ASSIGNER_OF = {"gfl": "atss", "gflv2": "atss", "atss": "atss", "fcos": "fcos", "retinanet": "max_iou"}
NETWORK = ("student forward", "teacher forward", "student backward")
OBJECTIVE = ("assignment", "regions and losses", "losses backward")
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A step: what is looked at, and whether the networks look at it or numbers are drawn in their place."""

    size: Size
    images: int
    boxes: int
    network: bool = True

    @property
    def words(self) -> str:
        """For a table."""
        return f"{self.images} x {self.size[0]} x {self.size[1]}, {self.boxes} boxes"


class Living(TorchDispatchMode):
    """Counts the bytes of tensors that live at once, from its beginning on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.seen.setdefault(tensor.untyped_storage(), 0)  # it was there before
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen[storage] = size = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, size)
        return out

    def _gone(self, size: int) -> None:
        self.now -= size


class Watch:
    """Takes the time, or the memory, of parts."""

    def __init__(self, device: torch.device, *, memory: bool = False) -> None:
        self.device, self.memory = device, memory
        self.found: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens inside: its seconds; with ``memory``, the bytes at its peak beyond those at its beginning."""
        gpu = self.device.type == "cuda"
        if gpu:
            torch.cuda.synchronize()
        if not self.memory:
            start = time.perf_counter()
            yield
            if gpu:
                torch.cuda.synchronize()
            self.found[name] = time.perf_counter() - start
        elif gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            yield
            self.found[name] = torch.cuda.max_memory_allocated() - before
        else:
            with Living() as living:
                yield
            self.found[name] = living.peak


class Bench:
    """Networks and objective of a kind of detector, and steps of them."""

    def __init__(self, model: str, device: torch.device) -> None:
        torch.manual_seed(0)
        settings = DetectorSettings(model=model, backbone="resnet18", pretrained=False, classes=CLASSES)
        self.student = Detector(settings).to(device)
        self.teacher = LiveTeacher(Detector(settings.model_copy(update={"backbone": "resnet101"}))).to(device)
        self.objective = Objective(
            terms=supervised(model) | ld_full(model), bins=self.student.bins, assigner=ASSIGNERS[ASSIGNER_OF[model]]()
        )
        self.device = device

    def step(self, case: Case, watch: Watch) -> None:
        """A step, its parts watched; the backward pass is cut at the predictions to tell losses from network."""
        batch = drawn(case, self.device)
        grid = self.student.grid_for(case.size)
        if case.network:
            with watch.part("student forward"):
                dense = self.student(self.student.normalise(batch.images, batch.sizes))
            with watch.part("teacher forward"):
                soft = self.teacher(batch)
        else:
            dense, soft = (self._predictions(case, len(grid.points)) for _ in range(2))
        with watch.part("assignment"):
            assignment = self.objective.assigner(grid, batch.instances)
        leaf = of_leaves(dense)
        objective = replace(self.objective, assigner=lambda *_: assignment)
        with watch.part("regions and losses"):
            loss = torch.stack([*objective(leaf, soft, grid=grid, instances=batch.instances).values()]).sum()
        with watch.part("losses backward"):
            loss.backward()
        if case.network:
            outputs = [(a, b.grad) for a, b in zip(tensors(dense), tensors(leaf), strict=True) if b.grad is not None]
            with watch.part("student backward"):
                torch.autograd.backward([a for a, _ in outputs], [b for _, b in outputs])
            self.student.zero_grad(set_to_none=True)

    def _predictions(self, case: Case, locations: int) -> Dense:
        shape, device = (case.images, locations), self.device
        quality = (
            torch.randn(shape, device=device) if self.student.settings.model in ("gflv2", "atss", "fcos") else None
        )
        return Dense(
            torch.randn(*shape, len(CLASSES), device=device) - 4,
            torch.randn(*shape, 4, self.student.bins.count, device=device),
            quality,
            quality_in_score=self.student.settings.model == "gflv2",
        )


def tensors(dense: Dense) -> list[Tensor]:
    """What the losses look at."""
    return [x for x in (dense.cls_logits, dense.edge_logits, dense.quality_logits) if x is not None]


def of_leaves(dense: Dense) -> Dense:
    """The same predictions, at which a backward pass ends."""
    quality = dense.quality_logits
    return dense._replace(
        cls_logits=dense.cls_logits.detach().requires_grad_(),
        edge_logits=dense.edge_logits.detach().requires_grad_(),
        quality_logits=None if quality is None else quality.detach().requires_grad_(),
    )


def drawn(case: Case, device: torch.device) -> Batch:
    """Noise, with boxes whose sides are between 16 pixels and the image's shorter side, evenly on a log scale."""
    rng = torch.Generator().manual_seed(case.boxes)
    height, width = case.size
    shape, extent = (case.images, case.boxes, 2), torch.tensor([float(width), float(height)])
    side = 16 * torch.exp(torch.rand(shape, generator=rng) * math.log(min(case.size) / 16))
    centre = torch.rand(shape, generator=rng) * extent
    boxes = torch.cat(((centre - side / 2).clamp(min=0), torch.minimum(centre + side / 2, extent)), -1)
    present = torch.ones(shape[:2], dtype=torch.bool)
    sizes = torch.tensor([case.size] * case.images)
    labels = torch.randint(0, len(CLASSES), shape[:2], generator=rng)
    images = torch.randint(0, 256, (case.images, 3, height, width), dtype=torch.uint8, generator=rng)
    instances = Instances(*(x.to(device) for x in (boxes, labels, present, ~present, sizes)))
    sizes = sizes.to(device)
    return Batch(images.to(device), sizes, sizes, torch.arange(case.images, device=device), instances)


def measure(bench: Bench, cases: Sequence[Case], rounds: int) -> list[dict[str, Any]]:
    """A row for each case, one step of each in every round, and one to warm up, whose memory is taken."""
    memory = []
    for case in cases:
        watch = Watch(bench.device, memory=True)
        bench.step(case, watch)
        memory.append(watch.found)
    seconds: list[dict[str, list[float]]] = [defaultdict(list) for _ in cases]
    for turn in range(rounds):
        for index in range(len(cases)):
            at = (index + turn) % len(cases)
            watch = Watch(bench.device)
            bench.step(cases[at], watch)
            for name, value in watch.found.items():
                seconds[at][name].append(value)
    return [row(*of_case) for of_case in zip(cases, seconds, memory, strict=True)]


def row(case: Case, seconds: Mapping[str, list[float]], memory: Mapping[str, float]) -> dict[str, Any]:
    """Medians of a case; shares of the whole step where the networks are part of it."""
    totals = [sum(round_) for round_ in zip(*seconds.values(), strict=True)]

    def share(parts: Sequence[str]) -> float:
        return statistics.median(
            sum(own) / total for *own, total in zip(*(seconds[part] for part in parts), totals, strict=True)
        )

    return {
        "case": case.words,
        "size": case.size,
        "images": case.images,
        "boxes": case.boxes,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "total": statistics.median(totals),
        "assignment_share": share(["assignment"]),
        "objective_share": share(OBJECTIVE),
        "peak_bytes": dict(memory),
    }


def cases_of(args: argparse.Namespace) -> dict[str, list[Case]]:
    """The three tables."""
    small, size, images, boxes = tuple(args.small), tuple(args.size), args.images, 10
    return {
        "images": [Case(size=small, images=n, boxes=boxes) for n in args.batch],
        "boxes": [Case(size=size, images=images, boxes=n) for n in args.boxes],
        "size": [
            Case(size=tuple(int(v) for v in s.split("x")), images=images, boxes=n, network=args.whole)
            for s in args.sizes
            for n in (boxes, max(args.boxes))
        ],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown: milliseconds of the parts, share of the objective, largest peak of a part in MB."""
    names = [name for name in (*NETWORK[:2], *OBJECTIVE, NETWORK[2]) if name in rows[0]["seconds"]]
    # Without the networks no share of the step is known.
    shares = ["assignment's share", "objective's share"] if NETWORK[0] in names else []
    heads = ["", *(f"{name}, ms" for name in names), "all, ms", *shares, "objective's peak, MB"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for found in rows:
        cells = [f"{found['seconds'][name] * 1e3:.1f}" for name in names] + [f"{found['total'] * 1e3:.1f}"]
        cells += [f"{found[f'{of}_share']:.1%}" for of in ("assignment", "objective")] if shares else []
        peak = max(found["peak_bytes"][name] for name in OBJECTIVE) / 1e6
        lines.append("| " + " | ".join([found["case"], *cells, f"{peak:.1f}"]) + " |")
    return lines


def markdown(report: Mapping[str, Any]) -> str:
    """All tables."""
    machine = ", ".join(f"{key} {value}" for key, value in report["about"].items())
    lines = [f"{report['model']}, {report['rounds']} rounds; {machine}", ""]
    for name, rows in report["tables"].items():
        lines += [f"Over {name}:", "", *table(rows), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(ASSIGNER_OF), default="gfl")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="images, at --small")
    parser.add_argument("--boxes", type=int, nargs="+", default=[1, 3, 10, 30, 100, 300], help="per image, at --size")
    parser.add_argument("--sizes", nargs="+", default=["320x416", "640x832", "800x1344"], help="of the last table")
    parser.add_argument("--small", type=int, nargs=2, default=(96, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--size", type=int, nargs=2, default=(320, 416), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--images", type=int, default=2, help="where the number of images does not grow")
    parser.add_argument("--whole", action="store_true", help="with the networks at all sizes too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    args = parser.parse_args()
    bench = Bench(args.model, torch.device(args.device))
    tables = {name: measure(bench, cases, args.rounds) for name, cases in cases_of(args).items()}
    report = {"about": about(), "model": args.model, "rounds": args.rounds, "tables": tables}
    if args.markdown:
        args.markdown.write_text(markdown(report), encoding="utf-8")
    print(json.dumps(report, indent=2) if args.json else markdown(report))


if __name__ == "__main__":
    main()
