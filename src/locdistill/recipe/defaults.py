"""Resolution of a request to a whole recipe, with defaults for a user's own data.

The defaults without a named recipe are:

- kind of detector: GFL, with rotated boxes if the data have them; with a teacher, the teacher's kind;
- classes: those of the data; with a teacher of the same classes, in its order (others are matched by name);
- size of the network: ``n`` on a CPU, ``s`` on other devices (:data:`locdistill.recipe.fitted.SIZES`);
- input size, number of epochs, optimiser and schedule: fitted to images, objects and machine
  (:mod:`locdistill.recipe.fitted`); with a teacher, the input size that it was trained at;
- with weights to start from, their detector's architecture, order of classes and input size;
- with a teacher, localization distillation on the main and the valuable region with the best settings measured on the
  data sets of ``docs/results.md`` (temperature 1, weight 4, no class distillation). The recipes have the published
  settings, tuned on COCO.
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from locdistill.annotations.formats import locate
from locdistill.data.open import class_names, open_dataset
from locdistill.data.records import Dataset
from locdistill.data.settings import DataSettings
from locdistill.distillation import presets
from locdistill.distillation.settings import EMA, OnnxSettings
from locdistill.engine.devices import device_kind
from locdistill.engine.settings import EngineSettings
from locdistill.errors import RecipeError
from locdistill.models.foreign import detector_settings
from locdistill.models.hub import find
from locdistill.models.kinds import KINDS
from locdistill.models.settings import DetectorSettings, InputSettings
from locdistill.models.weights import is_exported
from locdistill.recipe.fitted import (
    SIZES,
    DataFacts,
    anchor_for,
    data_for,
    described,
    detections_for,
    engine_for,
    epochs_for,
    levels_for,
)
from locdistill.recipe.load import Override, laid_over, named_recipe, recipe_data, validate
from locdistill.recipe.overrides import apply_overrides, parse_override
from locdistill.recipe.own import import_own
from locdistill.recipe.recipe import OF_TEACHER, Recipe, kind_of_detector, known_kind, supervised_terms
from locdistill.recipe.request import Request, fields_of, override_of
from locdistill.recipe.terms import TermSettings, method_terms
from locdistill.settings import group

log = logging.getLogger("locdistill")
MANY_EPOCHS = 1e9
_PRETRAINED: dict[str | bool, bool] = {"hub": True, "none": False, True: True, False: False}


def resolve(request: Request, passes: float | None = None, *, taught_by: DetectorSettings | None = None) -> Recipe:
    """Resolve a request to a recipe.

    Args:
        request: The request.
        passes: Passes over the images for which there is time, if it is limited; without a recipe the settings fit it.
        taught_by: Settings of the teacher, if its weights are not there yet.

    Raises:
        RecipeError: Something is unknown, wrong or missing.
        DataError: The data cannot be read; only if settings depend on its images.
        WeightsError: The teacher's weights cannot be read.
    """
    named = request.get("recipe")
    if named is not None:
        data, where = recipe_data(named), str(named)
    elif request.get("data") is not None:
        data, where = _for_data(request, passes, taught_by), "the settings"
    else:
        raise RecipeError(
            "no data and no recipe given; pass --data FOLDER, --recipe NAME ('locdistill recipes' lists the names), "
            "or both"
        )
    import_own(data, where)  # the terms that a method replaces are determined by their classes
    return named_recipe(laid_over(data, [*request_words(request, data), *request.get("overrides", ())]), where)


def request_words(request: Request, data: dict[str, Any]) -> list[Override]:
    """Return the request's own words as overrides.

    Raises:
        RecipeError: There is no such size or method.
    """
    words = fields_of(request)
    if (pretrained := request.get("pretrained")) is not None:
        words.append((("detector", "pretrained"), _PRETRAINED.get(pretrained, pretrained)))
    if (named := request.get("size")) is not None:
        if named not in SIZES:
            raise RecipeError(f"--size {named}: expected one of {', '.join(SIZES)}")
        size = SIZES[named]
        backbone = {} if request.get("backbone") else {"backbone": size.backbone}  # one that the request names stays
        chosen: dict[str, Any] = {**backbone, "channels": size.channels, "depth": size.depth}
        words += [(("detector", key), value) for key, value in chosen.items()]
    if (epochs := request.get("epochs")) is not None:
        words.append((("engine", "epochs"), epochs))
        engine = group(data, "engine")
        before, milestones = engine.get("epochs"), engine.get("milestones")
        if (isinstance(milestones, list) and milestones and epochs != before) and all(
            isinstance(n, int | float) and 1 <= n <= MANY_EPOCHS for n in (epochs, before, *milestones)
        ):
            moved = [round(m * epochs / before, 3) for m in milestones]  # the same fractions of the run
            shares = [m / before for m in milestones]
            words.append((("engine", "milestones"), moved if all(m >= 1 for m in moved) else shares))
    return words + (_methods(request, data) if request.get("methods") else [])


def _methods(request: Request, data: dict[str, Any]) -> list[Override]:
    """Return overrides that replace all terms that compare with a teacher by the terms of the methods."""
    asked = override_of(request, "detector.model") or request.get("model")
    model = kind_of_detector(data) if asked is None else known_kind(asked)
    if model is None:  # reported when the recipe is checked
        return []
    methods = request["methods"]
    new = method_terms((methods,) if isinstance(methods, str) else methods, model)
    words: list[Override] = []
    for name, term in group(data, "terms").items():
        with suppress(ValidationError):  # reported when the recipe is checked
            if name not in new and TermSettings.model_validate(term).needs_teacher:
                words.append((("terms", name), None))
    return [*words, *((("terms", name), term.model_dump()) for name, term in new.items())]


def _for_data(request: Request, passes: float | None, taught_by: DetectorSettings | None) -> dict[str, Any]:
    """Build the plain data of the default recipe for the request's data."""
    teacher, start = _known_settings(request, taught_by)
    first = start or teacher  # the student takes its kind, classes and input size from this
    own = {"path": str(request["data"]), "filter_empty": False}  # images without objects are trained on
    # the data settings needed to open the training images: the request's path and its own data settings
    settings = validate(DataSettings, _overridden(request, "data", own), "data")
    if first is not None and settings.classes is None and set(class_names(settings, "train")) == set(first.classes):
        settings = settings.model_copy(update={"classes": first.classes})  # the same classes, in its order
    dataset = open_dataset(settings, "train")
    facts = _facts(request, dataset, passes)
    wanted = override_of(request, "engine.epochs") or request.get("epochs")  # no number: reported when it is checked
    epochs = wanted if isinstance(wanted, int) and wanted > 0 else passes or epochs_for(facts)
    size = SIZES.get(request.get("size") or "", SIZES["n" if facts.cpu else "s"])  # another is reported with the words
    backbone = (
        override_of(request, "detector.backbone")
        or request.get("backbone")
        or (start.backbone if start else size.backbone)
    )
    asked = override_of(request, "detector.model") or request.get("model")
    model = asked or (first.model if first is not None else "rotated_gfl" if dataset.oriented else "gfl")
    if not asked and first is None and dataset.oriented:
        log.info("the objects are rotated: using rotated_gfl; pass detector.model=gfl for axis-aligned boxes")
    known = known_kind(model) or "gfl"  # reported when the recipe is checked
    of_data_and_use = {"classes", "pretrained", "input", "detections"}
    cached = bool(_overridden(request, "teacher", {}).get("cache"))
    data = data_for(facts, epochs, cached=cached)
    given = settings.sizes[0] if "sizes" in settings.model_fields_set else None
    if given is None and first is not None:
        given = first.input.long, first.input.short
    if given is not None:
        data["sizes"] = [list(given)]
    architecture: dict[str, Any] = {"channels": size.channels, "depth": size.depth}
    if start is not None:
        architecture = start.model_dump(mode="json", exclude=of_data_and_use)
    elif KINDS[known].assigner == "atss":
        architecture["levels"] = levels_for(data["sizes"][0])
        architecture["anchor_scale"] = anchor_for(facts, data["sizes"][0])
    if not KINDS[known].rotated and (more := detections_for(dataset)):
        architecture["detections"] = more
    if passes is not None or request.get("minutes") is None:  # else this is not the last word on the size
        log.info("%s", described(facts, data["sizes"][0], chosen=given is None))
    recipe: dict[str, Any] = {
        "name": f"{model}_{backbone}",
        "detector": architecture | {"model": model, "backbone": backbone},
        "data": {"path": settings.path, **data},
        "engine": engine_for(facts, epochs, evaluated=override_of(request, "engine.eval_every") != 0),
        "terms": {name: term.model_dump() for name, term in supervised_terms(known).items()},
    }
    if request.get("teacher") is not None:
        recipe["name"] = f"ld_{backbone}_from_{teacher.backbone if teacher else EMA}"
        recipe["teacher"] = {"name": f"{teacher.model} {teacher.backbone}" if teacher else "the student's average"}
        recipe["terms"] |= {name: TermSettings.of_term(t).model_dump() for name, t in presets.ld_sharp(known).items()}
    if teacher is not None:
        recipe["detector"] |= {
            name: value
            for name, value in teacher.model_dump(mode="json").items()
            if name in ("levels", "reg_max", "anchor_scale", "angles", "angle_bins", "angle_unit")
        }
    if KINDS[known].rotated or locate(settings).kind == "dota":
        recipe["data"]["crowd"] = "ignore"  # cut and difficult objects are visible: they are not background
    if first is not None and settings.classes is not None:
        recipe["data"]["classes"] = list(settings.classes)
    return recipe | {"name": re.sub(r"[^A-Za-z0-9._+-]+", "_", recipe["name"])}


def _known_settings(
    request: Request, teacher: DetectorSettings | None
) -> tuple[DetectorSettings | None, DetectorSettings | None]:
    """Return the detector settings of the teacher and of the student's initial weights; None without a file."""
    start, named = None, request.get("teacher")
    if teacher is None and named is not None and str(named) != EMA:
        teacher = _settings_of(named, _overridden(request, "teacher", {}).get("onnx"))
    asked = override_of(request, "start") or request.get("start")
    if isinstance(asked, str | Path):  # anything else is reported when the recipe is checked
        start = teacher if str(asked) == OF_TEACHER else _settings_of(asked)
    return teacher, start


def _settings_of(weights: str | Path, onnx: Any = None) -> DetectorSettings:
    """Return the settings of a detector; of another program's, those of a student without bridges but its kind."""
    file = find(weights)
    if not is_exported(file):
        return detector_settings(file)
    from locdistill.distillation.onnx_teacher import (  # noqa: PLC0415 - brings networks; few have one
        ExportedTeacher,
        onnx_teacher,
    )

    teacher = onnx_teacher(file, None if onnx is None else validate(OnnxSettings, onnx, "teacher.onnx"))
    if isinstance(teacher, ExportedTeacher):
        return teacher.detector.settings
    facts, size = teacher.facts, teacher.size
    settings = DetectorSettings(
        backbone=file.stem, classes=facts.classes, levels=tuple(stride.bit_length() - 1 for stride in facts.strides)
    )
    known: dict[str, Any] = {"reg_max": facts.bins.reg_max} if facts.bins else {}
    if size is not None:
        known["input"] = InputSettings(short=min(size), long=max(size))
    return settings.model_copy(update=known)


def _overridden(request: Request, key: str, group: dict[str, Any]) -> dict[str, Any]:
    """Apply the request's own overrides to a group of settings."""
    parsed = map(parse_override, request.get("overrides", ()))
    mine = [(path, value) for path, value in parsed if path[0] == key and len(path) > 1]
    changed: dict[str, Any] = apply_overrides({key: group}, mine)[key]
    return changed


def _facts(request: Request, dataset: Dataset, passes: float | None) -> DataFacts:
    """Measure the training set, for the request's device and weights."""
    accelerator = override_of(request, "engine.accelerator")
    known = accelerator in get_args(EngineSettings.model_fields["accelerator"].annotation)
    device = device_kind(EngineSettings.model_validate({"accelerator": accelerator} if known else {}))
    given = override_of(request, "detector.pretrained")
    if given is None:
        word = request.get("pretrained")
        given = True if word is None else _PRETRAINED.get(word, word)
    pretrained = given is not False or request.get("start") is not None  # weights to start from count as such
    return DataFacts.of(dataset, cpu=device == "cpu", pretrained=pretrained, passes=passes)
