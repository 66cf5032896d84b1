"""The objective compiles: in one graph whatever its terms, and not anew for every size of image and number of objects.

In processes of their own, where no type checker wraps the functions.
"""

from __future__ import annotations

import pytest

from tests.processes import printed_by

COMMON = """
import torch
from torch._dynamo.utils import counters
from locdistill.engine.compiled import bucketed
from locdistill.recipe.vocabulary import ASSIGNERS
from locdistill.distillation.methods import METHODS
from locdistill.distillation.presets import supervised
from locdistill.objective.learned import TrainingProgress
from locdistill.objective.objective import Objective
from locdistill.types import Dense
from tests.scenes import ASSIGNER_OF, grid_of_kind, instances_of

LEVELS = (8, 16)

def batch(model, size, objects):
    shapes = tuple((-(-size[0] // s), -(-size[1] // s)) for s in LEVELS)
    grid, rng = grid_of_kind(model, shapes), torch.Generator().manual_seed(sum(size) + objects)
    def dense():
        logits, edges = (torch.randn(2, len(grid.points), *x, generator=rng) for x in ((3,), (4, 17)))
        maps = tuple(torch.randn(2, 4, h, w, generator=rng) for h, w in shapes for _ in range(2))
        quality = torch.randn(logits.shape[:2], generator=rng) if model in ("gflv2", "atss", "fcos") else None
        return Dense(logits, edges, quality, maps[::2], model == "gflv2", (0, 2) if objects % 2 else None, maps)
    corner = torch.rand(objects, 2, generator=rng) * 40
    boxes = torch.cat((corner, corner + 10 + torch.rand(objects, 2, generator=rng) * 40), -1)
    instances = instances_of([boxes.tolist(), [[1, 1, 20, 60]]], [[0] * objects, [1]], [size, (64, 64)])
    return grid, dense(), dense(), bucketed(instances)

def objective_of(model, methods):
    terms = {name: term for method in methods for name, term in METHODS[method](model).items()}
    return Objective(terms=supervised(model) | terms, assigner=ASSIGNERS[ASSIGNER_OF[model]]().ignoring())

def losses_of(objective, learned):
    def losses(student, teacher, grid, instances):
        progress = TrainingProgress(0.5, learned)
        # In the place of what the teacher's head makes of the student's maps, which is the teacher's affair.
        return objective.losses(
            objective.scene(student, teacher, grid=grid, instances=instances, cross=student, progress=progress)
        )
    return losses

def agree(model, objective, *, fullgraph=True, batches):
    grid, student, teacher, _ = batch(model, *batches[0])
    torch.manual_seed(0)
    losses = losses_of(objective, objective.learned(lambda: (student, teacher)))
    compiled = torch.compile(losses, fullgraph=fullgraph, backend="eager")
    for size, objects in batches:
        grid, student, teacher, instances = batch(model, size, objects)
        found = []
        for run in (losses, compiled):
            torch.manual_seed(1)  # MGD hides places at random
            found.append(run(student, teacher, grid, instances))
        for name, value in found[0].items():
            torch.testing.assert_close(found[1][name], value, msg=lambda m: f"{name} {size} {objects}: {m}")
    return counters["stats"]["unique_graphs"]
"""
ALL = """
print(agree(MODEL, objective_of(MODEL, METHODS), batches=[((64, 96), 5)]))
"""
SIZES = """
sizes = [(64, 96), (96, 160), (128, 64), (160, 192), (64, 192), (192, 128)]
print(agree("gfl", objective_of("gfl", ["ld"]), batches=[(size, n) for size in sizes for n in (2, 6, 14, 30)]))
"""


def graphs(script: str) -> int:
    return int(printed_by(COMMON + script).splitlines()[-1])


@pytest.mark.parametrize("model", ["gfl", pytest.param("retinanet", marks=pytest.mark.long)])
def test_the_terms_of_all_methods_compile_into_one_graph(model: str):
    """All at once, with what they learn, with a teacher that knows only some of the classes, and ignored regions."""
    assert graphs(f"MODEL = {model!r}" + ALL) == 1


def test_other_sizes_and_numbers_of_objects_are_not_compiled_anew():
    """A few graphs serve: the first is for its own sizes, the next for any; a dimension that has not changed until
    then is found to change later. Whether a teacher knows all classes is another graph of its own, and not asked here.
    """
    assert graphs(SIZES) <= 5
