"""Options that several verbs share, and what is made of them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from locdistill.errors import RecipeError

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE]...",
        help="A recipe's name or file, and settings such as engine.lr=0.02 or terms.ld_vlr=null.",
        show_default=False,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings such as data.val=test.", show_default=False),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", "-d", metavar="PATH", help="A COCO, VOC, YOLO, DOTA or HRSC2016 data set; the format is recognised."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="gfl, gflv2, atss, fcos, retinanet, rotated_gfl or rotated_retinanet."
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone", "-b", metavar="NAME", help="Any timm backbone with features_only; resnet18 unless given."
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", min=1, help="Passes over the data; milestones move in proportion. 12 unless given."),
]
Pretrained = Annotated[
    str | None,
    typer.Option(
        "--pretrained", metavar="hub|none|FILE", help="ImageNet weights of the backbone: timm's hub, none, or a file."
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option("--recipe", "-r", metavar="NAME|FILE", help="Start from this recipe ('locdistill recipes')."),
]
Teacher = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        "-t",
        metavar="RUN|FILE|hf://OWNER/NAME|ema",
        help="A trained detector, such as runs/teacher/best or a checkpoint of MMDetection; ema: the running average "
        "of the student itself.",
    ),
]
Method = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        "-m",
        metavar="NAME",
        help="What to learn from the teacher ('locdistill methods'); several are put together. In place of what the "
        "recipe has; ld unless given.",
    ),
]
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Where the teacher's predictions are kept: it looks at each image (size, flip) once, now or in "
        "'locdistill cache build', and runs that share the folder do without it.",
    ),
]
Balance = Annotated[
    float | None,
    typer.Option(
        "--balance",
        metavar="RATIO",
        help="In place of weights: hold the gradient of each distillation term on the student at this multiple of the "
        "supervised terms'; 1 needs no tuning. Of single terms: terms.ld.balance=0.5.",
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        "--start",
        metavar="RUN|FILE",
        help="Begin with the weights of a trained detector of the same classes and, unless a recipe is named, with its "
        "architecture; teacher: those of the teacher.",
    ),
]
Out = Annotated[
    str | None, typer.Option("--out", "-o", metavar="DIR", help="The run's folder; must be new. In runs/ unless given.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out from its last checkpoint.")]
Devices = Annotated[
    str | None, typer.Option("--devices", metavar="N|LIST", help="Number of GPUs (or CPU processes), or a list: [0,2].")
]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="Images per device and micro-batch.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random.")]
Profile = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="Say at the end whether the loader made the step wait, and write where the time goes to profile.txt and "
        "profile.json in the run's folder.",
    ),
]
Preflight = Annotated[
    bool, typer.Option(help="Look at teacher, data and regions before the first step, and stop on what cannot work.")
]
PreflightImages = Annotated[
    int | None,
    typer.Option(
        "--preflight-images",
        min=0,
        metavar="N",
        help="Validation images on which the teacher is measured, however long it takes; 0 leaves that out. Up to "
        "200, as many as 45 seconds allow, unless given.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only look: print what was found; the exit code is 1 where it would stop.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Any field of the recipe; can be given several times."),
]
Tta = Annotated[
    bool,
    typer.Option(
        "--tta",
        help="Look at each image six times (0.8, 1 and 1.2 times the size, and mirrored) and join what is found; "
        "takes six times as long. Others: detections.augment.scales=[1] detections.augment.flip=true.",
    ),
]
ElevenPoint = Annotated[
    bool | None,
    typer.Option(
        "--eleven-point/--area",
        help="How AP is averaged by the rules of VOC and DOTA; as is usual for the data unless given.",
        show_default=False,
    ),
]
PublishedSum = Annotated[
    bool,
    typer.Option(
        "--published-sum",
        help="Show beside AP of rotated boxes the running sum that the published evaluator prints in its place.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...")]


def test_time_augmentation(tta: bool) -> list[str]:
    """What ``--tta`` stands for, as settings."""
    return ["detections.augment={scales: [0.8, 1.0, 1.2], flip: true}"] if tta else []


def request_words(
    words: list[str] | None, recipe: str | None, settings: list[str] | None
) -> tuple[str | None, list[str]]:
    """Tell the recipe from the settings among the trailing words.

    Raises:
        RecipeError: More than one recipe is named.
    """
    named = [word for word in words or () if "=" not in word]
    if len(named) + (recipe is not None) > 1:
        everything = ", ".join([*([recipe] if recipe else []), *named])
        raise RecipeError(
            f"one recipe is expected, these were given: {everything}. Settings are written key.path=value."
        )
    return (named[0] if named else recipe), [*(settings or ()), *(word for word in words or () if "=" in word)]


def short_cuts(
    *,
    devices: str | None = None,
    batch: int | None = None,
    seed: int | None = None,
    balance: float | None = None,
    cache: str | None = None,
    profile: bool = False,
) -> list[str]:
    """Options that stand for one field of the recipe, as settings."""
    pairs: dict[str, Any] = {
        "engine.devices": devices,
        "data.batch_per_device": batch,
        "engine.seed": seed,
        "balance": balance,
        "teacher.cache.path": cache,
        "engine.profile": profile or None,
    }
    return [f"{key}={value}" for key, value in pairs.items() if value is not None]
