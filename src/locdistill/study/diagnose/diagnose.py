"""Did the student listen? A look into a finished distillation run, beside its AP.

Measured on images of the validation split: how far student and teacher agree, by region and by edge, and whether the
spread of the edge distributions predicts the error. Measured on a few training batches, with the weights at the
beginning and at the end of the run: which term of the loss pulls how hard. Neither needs more than the run folder, the
data and the teacher.
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
from locdistill.evaluation.agreement import Agreement, Reliability, agreement_sums, edge_errors, no_sums, reliability
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
_BATCH = 8  # images at once
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
    """Look into a finished distillation run, and write a page, pictures and ``diagnose.json``.

    Args:
        run: Run folder of the student, or ``run/last``; its best weights unless said otherwise.
        images: Validation images to look at, spread evenly over the split.
        against: Run folder or weights of the same student, trained alone.
        teacher: The teacher's weights, where they are no longer what the recipe says.
        data: The data set, likewise.
        batches: Training batches for the gradients, of at most 8 images.
        out: Folder; ``<run>/diagnosis`` unless given. What an earlier diagnosis wrote there is replaced.
        device: Such as ``cuda:0``; a GPU if there is one unless given.
        progress: Shows how far one is.

    Raises:
        LocdistillError: One of its kinds, where run, teacher, data or device are not to be had, or do not fit.
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
    # A teacher that follows the student was the student itself at first: nothing pulled.
    moments = [name for name in (START, STUDENT) if name in found.students and not (settings.follows and name == START)]
    # what is to be known where weights are others at the end of the run than at its beginning
    names = [name for name, term in found.objective.terms.items() if term.schedule is not None]
    note = f"The weights of {', '.join(names)} follow the run: gradients are those of its first and its last step."
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
    """Main region, valuable region without it, and the other locations of the images; each location is in one."""
    assignment = scene.assignment
    main = assignment.positive
    near = (valuable > 0) & ~main
    return {MAIN: main, VALUABLE: near, OTHER: assignment.inside & ~main & ~near}


@torch.no_grad()
def _compare(
    found: Reopened, batches: Iterable[Batch]
) -> tuple[dict[str, dict[str, Agreement]], dict[str, Reliability], int]:
    """Agreement by student and region, reliability by detector, and the number of objects."""
    who = [name for name in (STUDENT, ALONE) if name in found.students]
    nothing, edges = found.student.mean, found.student.settings.edges
    sums = {name: {region: no_sums(nothing, edges) for region in REGIONS} for name in who}
    errors: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in (TEACHER, *who)}
    objects = 0
    for received in batches:
        batch = move_data_to_device(received, found.device)
        objects += int(batch.instances.present.sum())
        taught = found.teacher(batch)
        for name in who:
            scene = found.scene(name, batch, taught)
            for region, where in regions_of(scene, found.valuable(scene)).items():
                sums[name][region] += agreement_sums(scene, where)
            errors[name].append(edge_errors(scene, scene.student.edge_logits))
        errors[TEACHER].append(edge_errors(scene, taught.edge_logits.float()))
    return (
        {name: {region: Agreement.of(s) for region, s in of.items()} for name, of in sums.items()},
        {name: _reliability(pairs) for name, pairs in errors.items()},
        objects,
    )


def _reliability(pairs: list[tuple[Tensor, Tensor]]) -> Reliability:
    deviations, errors = (
        torch.cat([torch.zeros(0), *(part.cpu() for part in column)]) for column in zip(*pairs, strict=True)
    )
    return reliability(deviations.numpy(), errors.numpy())


def _gradients(found: Reopened, moment: str, dataset: Dataset, batches: int) -> _Pulls:
    """The gradient of each term at logits and feature maps, by target and term: the mean over training batches.

    The scene is that of a training step, with all that the terms need, at the beginning or the end of the run.
    """
    settings = found.recipe.data
    few = settings.model_copy(update={"workers": 0, "batch_per_device": min(_BATCH, settings.batch_per_device)})
    student = copy.deepcopy(found.students[moment])  # whose statistics of batch normalisation will change
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
    # means over batches; of a cosine over those in which it is defined
    if not measured:
        return {}
    return {
        target: {
            term: Pull(
                _average([one[target][term].norm for one in measured]),
                _average([one[target][term].cosine for one in measured]),
            )
            for term in terms
        }
        for target, terms in measured[0].items()
    }


def _average(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan
