"""Options that several verbs share, and their conversion to a request."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from locdistill.errors import RecipeError

KEYWORD = inspect.Parameter.KEYWORD_ONLY


class Field(NamedTuple):
    """The field of the recipe that an option sets."""

    field: str


KeyValues = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings such as data.val=test.", show_default=False),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        metavar="PATH",
        help="A COCO, VOC, YOLO, DOTA, HRSC2016 or labelme data set; the format is recognised.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Any field of the recipe; can be given several times."),
]
Tta = Annotated[
    bool,
    typer.Option(
        "--tta",
        help="Detect at 0.8, 1 and 1.2 times the size, each also mirrored, and merge the detections; takes six times "
        "as long. Other choices: detections.augment.scales=[1] detections.augment.flip=true.",
    ),
]
ElevenPoint = Annotated[
    bool | None,
    typer.Option(
        "--eleven-point/--area",
        help="Averaging of AP by the rules of VOC and DOTA. Default: as usual for the data.",
        show_default=False,
    ),
]
PublishedSum = Annotated[
    bool,
    typer.Option(
        "--published-sum",
        help="Show, besides AP of rotated boxes, the running sum that the published evaluator prints instead.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...")]


class RunOptions:
    """The options of a run in the order of the help: keywords of a request, and single fields of the recipe."""

    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            help="A recipe's name or file, and settings such as engine.lr=0.02 or terms.ld_vlr=null.",
            show_default=False,
        ),
    ] = None
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            "-t",
            metavar="RUN|FILE|https://ADDRESS|hf://OWNER/NAME|ema",
            help="A trained detector, such as runs/teacher/best or a checkpoint of MMDetection; ema: the running "
            "average of the student itself.",
        ),
    ] = None
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME",
            help="Distillation method ('locdistill methods'), in place of the recipe's; can be given several times. "
            "Default: ld.",
        ),
    ] = None
    balance: Annotated[
        str | None,
        typer.Option(
            "--balance",
            metavar="RATIO|pareto",
            help="Instead of weights: keep the gradient norm of each distillation term at this multiple of the "
            "supervised terms'; 1 needs no tuning. For a single term: terms.ld.balance=0.5. 'pareto' weights teacher "
            "and labels by the angle between their gradients.",
        ),
        Field("balance"),
    ] = None
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache",
            metavar="DIR",
            help="Folder for the teacher's predictions: it runs once per image (and size, flip), during training or in "
            "'locdistill cache build', for all runs that share the folder.",
        ),
        Field("teacher.cache.path"),
    ] = None
    data: Data = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME", help="gfl, gflv2, atss, fcos, retinanet, rotated_gfl or rotated_retinanet."
        ),
    ] = None
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            "-b",
            metavar="NAME",
            help="Any timm backbone with features_only; Default: that of the size.",
        ),
    ] = None
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="n|s|m|l", help="Size of the detector; n on a CPU, s elsewhere unless given."),
    ] = None
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Passes over the data; milestones move in proportion."),
    ] = None
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            min=0.1,
            metavar="M",
            help="Train for about M minutes: the first steps are timed, then fewer or more are taken.",
        ),
    ] = None
    pretrained: Annotated[
        str | None,
        typer.Option(
            "--pretrained",
            metavar="hub|none|FILE",
            help="ImageNet weights of the backbone: timm's hub, none, or a file.",
        ),
    ] = None
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            metavar="RUN|FILE",
            help="Start from the weights of a trained detector of the same classes, and with its architecture unless a "
            "recipe is named; 'teacher' for those of the teacher.",
        ),
    ] = None
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", metavar="NAME|FILE", help="Start from this recipe ('locdistill recipes')."),
    ] = None
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="DIR", help="Run folder, which must be new. Default: a folder in runs/."),
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out from its last checkpoint.")] = (
        False
    )
    devices: Annotated[
        str | None,
        typer.Option("--devices", metavar="N|LIST", help="Number of GPUs (or CPU processes), or a list: [0,2]."),
        Field("engine.devices"),
    ] = None
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Images per device and micro-batch."),
        Field("data.batch_per_device"),
    ] = None
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of everything random."), Field("engine.seed")
    ] = None
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Print at the end whether steps waited for the loader, and write the time of each part to profile.txt "
            "and profile.json in the run folder.",
        ),
        Field("engine.profile"),
    ] = False
    overfit: Annotated[
        int | None,
        typer.Option(
            "--overfit",
            min=1,
            metavar="N",
            help="A first look: learn N training images by heart in about a minute, and say whether data, labels and "
            "loss fit together, or where it stops; the exit code is 1 where it does. 4 is a good number.",
        ),
    ] = None
    preflight: Annotated[
        bool,
        typer.Option(help="Check teacher, data and regions before the first step, and stop if the run cannot work."),
    ] = True
    images: Annotated[
        int | None,
        typer.Option(
            "--preflight-images",
            min=0,
            metavar="N",
            help="Number of validation images on which the teacher is evaluated, without a time limit; 0 for none. "
            "Default: up to 200, within 45 seconds.",
        ),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only run the preflight check; the exit code is 1 if the run would stop.")
    ] = False
    settings: Set = None


def test_time_augmentation(tta: bool) -> list[str]:
    """Return the settings for ``--tta``."""
    return ["detections.augment={scales: [0.8, 1.0, 1.2], flip: true}"] if tta else []


def request_words(
    words: list[str] | None, recipe: str | None, settings: list[str] | None
) -> tuple[str | None, list[str]]:
    """Separate recipe and settings in the trailing words.

    Raises:
        RecipeError: More than one recipe is named.
    """
    named = [word for word in words or () if "=" not in word]
    if len(named) + (recipe is not None) > 1:
        everything = ", ".join([*([recipe] if recipe else []), *named])
        raise RecipeError(f"expected one recipe, came {everything}; write settings as key.path=value")
    return (named[0] if named else recipe), [*(settings or ()), *(word for word in words or () if "=" in word)]


def spelled(*words: str, **given: Any) -> str:
    """Spell a command with its options, those that are None, False or empty left out; a list gives one for each."""
    parts = [*words]
    for name, value in given.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is not None and each is not False:
                parts += [f"--{name.replace('_', '-')}", *([] if each is True else [str(each)])]
    return shlex.join(parts)


_KINDS = get_type_hints(RunOptions, include_extras=True)


def of_a_run(*only: str, without: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add options of a run to those of a verb: all, only these, or all but some.

    The verb receives them as keywords of a request, except for those in its own signature. A new option is a line of
    `RunOptions`, and one of `Request` if Python functions take it too.
    """
    names = ({*(only or _KINDS)} | {"words", "settings"}) - {*without}

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(verb, eval_str=True).parameters
        shared = {
            name: inspect.Parameter(name, KEYWORD, default=getattr(RunOptions, name), annotation=kind)
            for name, kind in _KINDS.items()
            if name in names
        }
        last = {"settings": shared.pop("settings")} | {name: own[name] for name in own if name == "as_json"}
        all_of_them = shared | {name: own[name] for name in own if name not in ("request", *shared, *last)} | last

        @functools.wraps(verb)
        def parsed(**given: Any) -> None:
            verb(
                _request(given, {name: _KINDS[name] for name in shared}),
                **{name: value for name, value in given.items() if name in own},
            )

        parsed.__signature__ = inspect.Signature(list(all_of_them.values()))  # type: ignore[attr-defined]
        parsed.__annotations__ = {name: parameter.annotation for name, parameter in all_of_them.items()}
        return parsed

    return decorate


def _request(given: dict[str, Any], kinds: dict[str, Any]) -> dict[str, Any]:
    """Convert the options of a run to keywords of a request."""
    from locdistill.recipe.request import Request  # noqa: PLC0415 - heavy

    recipe, settings = request_words(given["words"], given.get("recipe"), given["settings"])
    fields = [
        f"{mark.field}={given[name]}"
        for name, kind in kinds.items()
        for mark in kind.__metadata__
        if isinstance(mark, Field) and given.get(name) is not None and given[name] is not False
    ]
    words = {name: given[name] for name in kinds if name in Request.__annotations__ and given[name] is not None}
    return words | {"recipe": recipe, "overrides": [*fields, *settings]}
