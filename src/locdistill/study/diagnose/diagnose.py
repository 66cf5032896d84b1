"""Diagnosis of a finished distillation run: effects of distillation beyond AP.

On images of the validation split: agreement of student and teacher, by region and by edge, and the correlation of the
spread of the edge distributions with the error. On a few training batches, with the weights at the start and at the end
of the run: the gradient of each term of the loss. Both need only the run folder, the data and the teacher.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch import Tensor

from locdistill.data.loader import evaluation_loader, training_loader
from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset, evenly
from locdistill.engine.devices import default_device, existing_device
from locdistill.engine.module import TrainingModule
from locdistill.evaluation.agreement import OTHERS, Agreement, Reliability, agreement_sums, edge_errors, reliability
from locdistill.evaluation.gradients import Pull, pulls
from locdistill.files import make_folder, write_text
from locdistill.inference.evaluate import evaluation_batch
from locdistill.models.hub import find
from locdistill.objective.learned import TrainingProgress
from locdistill.objective.scene import Scene
from locdistill.settings import finite
from locdistill.study.diagnose import page
from locdistill.study.diagnose.reopen import Reopened, reopen
from locdistill.study.diagnose.result import ALONE, MAIN, OTHER, REGIONS, START, STUDENT, TEACHER, VALUABLE, Diagnosis
from locdistill.types import Batch, Progress

DEFAULT_FOLDER, JSON = "diagnosis", "diagnose.json"
_BATCH = 8  # batch size
_Pulls = dict[str, dict[str, Pull]]


def diagnose(  # noqa: PLR0913 - the words of the command line
    run: str | Path,
    *,
    images: int = 200,
    against: str | Path | None = None,
    teacher: str | Path | None = None,
    data: str | Path | None = None,
    batches: int = 3,
    out: str | Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Analyse a finished distillation run, and write a page, pictures and ``diagnose.json``.

    Args:
        run: Run folder of the student, for its best weights, or ``run/last``.
        images: Number of validation images, spread evenly over the split.
        against: Run folder or weights of the same student, trained alone.
        teacher: Present path of the teacher's weights, if it differs from the recipe's.
        data: Present path of the data set, likewise.
        batches: Number of training batches for the gradients, of at most 8 images each.
        out: Folder for the results. Default: ``<run>/diagnosis``. Files of an earlier diagnosis there are replaced.
        device: Device, such as ``cuda:0``. Default: a GPU if there is one.
        progress: Progress display.

    Raises:
        LocdistillError: Run, teacher, data or device are not available, or do not match; a subclass for each cause.
    """
    found = reopen(run, against=against, teacher=teacher, data=data, device=existing_device(device or default_device()))
    splits = {split: open_dataset(found.recipe.data, split, boxes=found.recipe.detector) for split in ("train", "val")}
    looked = evenly(splits["val"], images)
    limits = found.student.settings.input
    loader = evaluation_loader(
        looked, limits, batch=evaluation_batch(looked, limits, _BATCH), workers=found.recipe.data.workers
    )
    validation = progress(loader, len(loader)) if progress else loader
    agreement, reliable, objects = _compare(found, validation)
    settings = found.recipe.teacher
    assert settings is not None, "a run without a teacher is not reopened"
    # A teacher that is the student's running average equals the student at first: its terms have no gradient.
    moments = [name for name in (START, STUDENT) if name in found.students and not (settings.follows and name == START)]
    # note for terms whose weight changes during the run
    names = [name for name, term in found.objective.terms.items() if term.schedule is not None]
    note = f"The weights of {', '.join(names)} change during the run; gradients are for its first and last step."
    scheduled = (note,) if names else ()
    diagnosis = Diagnosis(
        run=found.weights,
        teacher="the running average of the student" if settings.follows else str(settings.weights),
        against=None if against is None else find(against),
        out=found.folder / DEFAULT_FOLDER if out is None else Path(out),
        images=len(looked),
        objects=objects,
        agreement=agreement,
        reliability=reliable,
        gradients={name: _gradients(found, name, splits["train"], batches) for name in moments},
        taught=tuple(name for name, term in found.objective.terms.items() if term.needs_teacher),
        batches=batches,
        edges=found.student.coding.names,
        notes=(*found.notes, *found.teacher.notes, *scheduled),
    )
    make_folder(diagnosis.out)
    write_text(diagnosis.out / JSON, json.dumps(finite(diagnosis.as_dict()), indent=1) + "\n")
    page.write_page(diagnosis, page.look(found, splits["val"]))
    return diagnosis


def regions_of(scene: Scene, valuable: Float[Tensor, "b l"]) -> dict[str, Bool[Tensor, "b l"]]:
    """Partition the locations of the images: main region, valuable region without it, and the others."""
    assignment = scene.assignment
    main = assignment.positive
    near = (valuable > 0) & ~main
    return {MAIN: main, VALUABLE: near, OTHER: assignment.inside & ~main & ~near}


@torch.no_grad()
def _compare(
    found: Reopened, batches: Iterable[Batch]
) -> tuple[dict[str, dict[str, Agreement]], dict[str, Reliability], int]:
    """Compute agreement by student and region, reliability by detector, and the number of objects."""
    who = [name for name in (STUDENT, ALONE) if name in found.students]
    count = 2 * found.student.settings.edges + OTHERS
    nothing = torch.zeros(count, dtype=torch.float64, device=found.device)
    sums = {name: dict.fromkeys(REGIONS, nothing) for name in who}
    errors: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in (TEACHER, *who)}
    objects = 0
    for received in batches:
        batch = move_data_to_device(received, found.device)
        objects += int(batch.instances.present.sum())
        taught = found.teacher(batch)
        for name in who:
            scene = found.scene(name, batch, taught)
            for region, where in regions_of(scene, found.valuable(scene)).items():
                sums[name][region] = sums[name][region] + agreement_sums(scene, where)
            errors[name].append(edge_errors(scene, scene.student.edge_logits))
        errors[TEACHER].append(edge_errors(scene, taught.edge_logits.float()))
    reliable = {}
    for name, pairs in errors.items():
        columns = [torch.cat([torch.zeros(0), *(part.cpu() for part in column)]) for column in zip(*pairs, strict=True)]
        reliable[name] = reliability(*(column.numpy() for column in columns))
    agreement = {name: {region: Agreement.of(s) for region, s in of.items()} for name, of in sums.items()}
    return agreement, reliable, objects


def _gradients(found: Reopened, moment: str, dataset: Dataset, batches: int) -> _Pulls:
    """Measure the gradient of each term at logits and feature maps, by target and term: the mean over training batches.

    Losses are computed as in a training step, at the start or the end of the run.
    """
    settings = found.recipe.data
    few = settings.model_copy(update={"workers": 0, "batch_per_device": min(_BATCH, settings.batch_per_device)})
    student = copy.deepcopy(found.students[moment])  # a copy, because its batch normalisation statistics change
    labels = [name for name, term in found.objective.terms.items() if not term.needs_teacher]
    maps: list[Tensor] = []
    measured: list[_Pulls] = []

    def measure(scene: Scene) -> dict[str, Tensor]:
        now = TrainingProgress(float(moment == STUDENT), scene.progress.learned)
        targets = {"edge logits": [scene.student.edge_logits], "class logits": [scene.student.cls_logits]}
        if scene.student.quality_logits is not None:
            targets["quality logits"] = [scene.student.quality_logits]
        targets["features"] = maps
        measured.append(pulls(found.objective.losses(replace(scene, progress=now)), targets, labels=labels))
        return {}

    module = TrainingModule(student, found.objective, found.teacher, found.recipe.engine, watch=measure)
    module.to(found.device).train()
    if module.learned is not None and moment == STUDENT:
        module.learned.load_state_dict(found.learned())
    student.fpn.register_forward_hook(lambda _module, _given, levels: maps.__setitem__(slice(None), levels))
    with torch.random.fork_rng():
        torch.manual_seed(found.recipe.engine.seed)
        for batch in islice(training_loader(dataset, few, seed=found.recipe.engine.seed), batches):
            module(move_data_to_device(batch, found.device))
    # means over batches; for a cosine, over the batches in which it is defined
    means: _Pulls = {}
    for target, terms in measured[0].items() if measured else ():
        means[target] = {}
        for term in terms:
            columns = zip(*((one[target][term].norm, one[target][term].cosine) for one in measured), strict=True)
            defined = [[value for value in column if not math.isnan(value)] for column in columns]
            means[target][term] = Pull(*(math.fsum(column) / len(column) if column else math.nan for column in defined))
    return means
