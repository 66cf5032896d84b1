"""A user's request: the keywords shared by the command line and the Python functions, and their descriptions."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, ParamSpec, TypedDict, TypeVar, get_type_hints

from locdistill.recipe.load import Override
from locdistill.recipe.overrides import parse_override

P = ParamSpec("P")
R = TypeVar("R")


class Sets(NamedTuple):
    """The field of the recipe that a keyword sets."""

    field: str


class TrainWords(TypedDict, total=False):
    """The keywords of `train` besides the data."""

    model: Annotated[str | None, Sets("detector.model")]
    backbone: Annotated[str | None, Sets("detector.backbone")]
    size: str | None
    epochs: int | None
    minutes: float | None
    pretrained: str | bool | None
    start: Annotated[str | Path | None, Sets("start")]
    recipe: str | Path | None
    overrides: Sequence[Override]


class DistillWords(TrainWords, total=False):
    """The keywords of `distill` besides teacher and data."""

    methods: Sequence[str]


class Request(DistillWords, total=False):
    """A user's request; everything left out has a default.

    Attributes:
        data: Folder of a COCO, VOC, YOLO, DOTA or HRSC2016 data set.
        teacher: Weights file or run folder of a trained detector; ``ema`` for the running average of the student.
        model: Kind of detector: ``gfl``, ``gflv2``, ``atss``, ``fcos``, ``retinanet``, or with rotated boxes
            ``rotated_gfl`` or ``rotated_retinanet``; by default the teacher's, or GFL, rotated if the objects are.
        backbone: A timm name; by default that of the size.
        size: Size of the detector: ``n``, ``s``, ``m`` or ``l`` (:data:`locdistill.recipe.fitted.SIZES`); by default
            ``n`` on a CPU and ``s`` elsewhere.
        epochs: Passes over the data. Milestones of a named recipe move in proportion.
        minutes: Duration of the training, evaluations included: the number of steps follows from the time of the first
            few. For one process.
        pretrained: Weights of the backbone: ``hub``, ``none`` or a file.
        start: Initial weights: weights file or run folder of a trained detector of the same classes; ``teacher`` for
            the teacher's. Without a named recipe, its architecture and input size are used too.
        recipe: Name or file of a recipe to start from instead of the defaults for the data.
        overrides: ``"key.path=value"`` for any field of the recipe, applied last, in order.
        methods: Names of distillation methods (see :mod:`locdistill.distillation.methods`), whose terms replace those
            that compare with a teacher; by default ``ld``.
    """

    data: Annotated[str | Path | None, Sets("data.path")]
    teacher: Annotated[str | Path | None, Sets("teacher.weights")]


def takes(words: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Expand ``**words`` in a function's signature and help to the keywords of a request."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[:-1]
        defaults = {"overrides": (), "methods": ()}
        given = {name: kind for name, kind in get_type_hints(words).items() if name not in {p.name for p in own}}
        keywords = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=kind)
            for name, kind in given.items()
        ]
        signature = inspect.signature(function, eval_str=True).replace(parameters=[*own, *keywords])

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            signature.bind(*args, **kwargs)  # a TypeError for an unknown keyword
            return function(*args, **kwargs)

        lines = re.findall(r"^        \w+: .*(?:\n {12}.*)*", Request.__doc__ or "", re.MULTILINE)
        described = "\n".join(line for line in lines if line.split(":")[0].strip() in given)
        checked.__doc__ = re.sub(r"^        words: .*", lambda _: described, function.__doc__ or "", flags=re.MULTILINE)
        checked.__signature__ = signature  # type: ignore[attr-defined]
        return checked

    return decorate


def fields_of(request: Request) -> list[Override]:
    """Return the keywords that set a single field of the recipe, as overrides."""
    kinds = get_type_hints(Request, include_extras=True)
    return [
        (tuple(sets.field.split(".")), str(value))
        for word, value in request.items()
        if value is not None
        for sets in getattr(kinds[word], "__metadata__", ())
    ]


def override_of(request: Request, key: str) -> Any:
    """Return the value that a request's overrides give to a field; None if none does."""
    found = [value for path, value in map(parse_override, request.get("overrides", ())) if ".".join(path) == key]
    return found[-1] if found else None
