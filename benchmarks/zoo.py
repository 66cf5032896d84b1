"""The table of ``docs/zoo.md``: every detector and every recipe of the package.

    python -m benchmarks.zoo
    python -m benchmarks.zoo --check     (exit status 1 if the page is not what this command would write)

Parameters and GFLOPs are counted, nothing is trained or downloaded. The last column of a detector is a check that is
made here and now: where the reference's own numbers for a whole network are known (``tests/golden/test_network.py``),
the largest relative difference from them, over the mean absolute values of all maps; and for every detector whether its
weights, written under MMDetection's names and recognised from that file alone, give the same detector and the same
outputs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tests.golden.test_network import NETWORKS, Network, fill, sequence

from locdistill.interop.mmdet import NAMES, to_mmdet
from locdistill.models.count import multiply_adds, parameters
from locdistill.models.detector import Detector
from locdistill.models.kinds import KINDS
from locdistill.models.mmdet import load_mmdet
from locdistill.models.settings import DetectorSettings
from locdistill.recipe.catalogue import published_aps, recipe_summary
from locdistill.recipe.load import load_recipe, recipe_names
from locdistill.recipe.recipe import Recipe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "zoo.md"
SIZE = (800, 1280)
CLASSES = tuple(str(index) for index in range(80))
OF_DOTA = 15
# What makes detectors differ; the last ones are of rotated boxes.
ARCHITECTURE = ("model", "backbone", "deformable", "predictor", "angles", "angle_bins", "angle_unit")
BACKBONES = {
    **{f"resnet{depth}": f"ResNet-{depth}" for depth in (18, 34, 50, 101)},
    "resnext101_32x4d": "ResNeXt-101 32x4d",
    "resnext101_64x4d": "ResNeXt-101 64x4d",
    "res2net101d": "Res2Net-101 v1d 26w 4s",
}
INTRODUCTION = f"""# The zoo

Written by `make zoo`; edit [`benchmarks/zoo.py`](../benchmarks/zoo.py) instead of this page.

Published AP are the literature's, for the detector as its authors trained it; none has been reproduced here yet.
Parameters and GFLOPs are those of {len(CLASSES)} classes, of rotated boxes of {OF_DOTA}; GFLOPs are multiply-adds at
{SIZE[1]} x {SIZE[0]}, without post-processing, as MMDetection counts them.

*Parity*: **equal** means that the whole network gives the numbers of the executed reference. In brackets: the largest
relative difference of the mean absolute value of any map of backbone and pyramid, and of the edge logits of any level.
(Group normalisation of a map of few values enlarges rounding errors; a deformable backbone adds its own.)
*Round trip* means that its weights, written under MMDetection's names and recognised from that file alone, give the
same detector and bit-equal outputs. Tests compare its parts with the reference one by one (heads, losses, assignment,
deformable convolutions), and the rotated RetinaNet with a forward pass written from its description. *Own*: neither
MMDetection nor Rotated-LD has a detector of this kind.
"""
BOX_LOSSES = """*Box losses.* The numbers of VOC from 51.8 to 58.4 were published in February 2021, when every
configuration of the reference had GIoU. CIoU came in November 2021, into three configurations: GFL ResNet-18 on VOC, LD
ResNet-101 to ResNet-18 on VOC, and GFL ResNet-50 on COCO. 54.0 and 54.4 followed in December, so their recipes have
CIoU; their student alone (51.8) had GIoU. All recipes of COCO have GIoU: 40.1 is older than the change, and the
configurations of LD on COCO never had another. `terms.bbox.of.overlap.kind=ciou` changes it.
"""


def key_of(settings: DetectorSettings) -> tuple[Any, ...]:
    """What makes two detectors the same architecture: of the backbone, not the tag of its pretrained weights."""
    values = settings.model_dump() | {"backbone": settings.backbone.split(".", maxsplit=1)[0]}
    return tuple(values[name] for name in ARCHITECTURE)


def settings_of(key: tuple[Any, ...], *, published: bool = False) -> DetectorSettings:
    """A detector of 80 classes, or of those of DOTA; as ``published``, GFL v2 has the channel for background."""
    values = dict(zip(ARCHITECTURE, key, strict=True))
    values |= {"classes": CLASSES[:OF_DOTA] if KINDS[values["model"]].rotated else CLASSES, "pretrained": False}
    background = published and values["model"] == "gflv2"
    return DetectorSettings.model_validate(values | {"background_channel": background, "frozen_stages": 1})


def differences(expected: Network) -> tuple[float, float]:
    """Largest relative difference of maps, and of edge logits, from the executed reference."""
    values = {"pretrained": False, "classes": CLASSES, "frozen_stages": 1}
    detector = Detector(DetectorSettings.model_validate(values | expected.settings)).eval()
    fill(detector)
    images = sequence((1, 3, 128, 160), 1.0, 0.05, 0.3)
    with torch.no_grad():
        maps = [*detector.backbone(images), *detector.pyramid(images)]
        edges = detector(images).edge_logits.split(detector.grid_for((128, 160)).level_sizes, 1)
    both = (maps, (*expected.stages, *expected.pyramid)), (edges, expected.edges)
    of_maps, of_edges = (
        max(abs(float(values.abs().mean()) - mean) / mean for values, mean in zip(actual, wanted, strict=True))
        for actual, wanted in both
    )
    return of_maps, of_edges


@torch.no_grad()
def stir(detector: Detector) -> None:
    """Give every tensor values of its own: a branch that begins at 0 would hide what is wrong with it."""
    for module in detector.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in (
                (module.weight, 0.5, 1.0),
                (module.bias, -0.1, 0.1),
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 2.0),
            ):
                torch.nn.init.uniform_(values, low, high)
    for name, parameter in detector.named_parameters():
        if "conv_offset" in name:
            torch.nn.init.normal_(parameter, std=0.01)


@torch.no_grad()
def survives(settings: DetectorSettings) -> bool:
    """Whether a detector comes back from a file of MMDetection's names."""
    torch.manual_seed(0)
    detector = Detector(settings).eval()
    stir(detector)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "theirs.pth"
        meta = {"CLASSES": settings.classes}
        torch.save({"meta": meta, "state_dict": to_mmdet(detector.state_dict(), settings.model)}, file)
        back = load_mmdet(file, settings={"style": settings.style})  # which no file shows
    images = torch.rand(1, 3, 64, 96)
    return all(torch.equal(a, b) for a, b in zip(detector(images)[:2], back(images)[:2], strict=True))


def parity(key: tuple[Any, ...]) -> str:
    """The checks of an architecture."""
    known = {key_of(DetectorSettings.model_validate(n.settings | {"classes": CLASSES})): n for n in NETWORKS.values()}
    settings, parts = settings_of(key, published=True), []
    if key in known:
        of_maps, of_edges = differences(known[key])
        parts = [f"**equal** (maps {of_maps:.0e}, edges {of_edges:.0e})"]
    if settings.model not in NAMES or settings.angle_unit != 1:
        return "own"
    return ", ".join([*parts, "round trip" if survives(settings) else "ROUND TRIP FAILS"])


def name_of(key: tuple[Any, ...]) -> str:
    """An architecture in words."""
    settings = settings_of(key)
    deformable = settings.deformable
    stages = f", deformable in C{deformable[0] + 1} to C{deformable[-1] + 1}" if deformable else ""
    whose = " of JDet," if settings.angle_unit != 1 else ""
    return f"{KINDS[settings.model].title}{whose} {BACKBONES[settings.backbone]}{stages}"


def aps(recipe: Recipe) -> tuple[str, str]:
    """AP without a teacher and AP, as published, and where the latter is not of the usual images."""
    published = recipe_summary(recipe)["published"]
    own, alone = published_aps(published)
    return alone or "-", (own or "-") + (" test-dev" if "test-dev" in (published or {}).get("source", "") else "")


def detectors(recipes: list[Recipe]) -> Iterable[tuple[str, ...]]:
    """One row for each architecture that a recipe trains."""
    order = list(KINDS), list(BACKBONES)
    keys = {key_of(recipe.detector) for recipe in recipes}
    for key in sorted(keys, key=lambda k: (order[0].index(k[0]), order[1].index(k[1]), k[2], k[-1])):
        print(name_of(key), flush=True)
        with torch.device("meta"):
            count = parameters(Detector(settings_of(key)))
        own = [recipe for recipe in recipes if key_of(recipe.detector) == key and recipe.teacher is None]
        alone = [f"`{recipe.name}` ({aps(recipe)[1]})" for recipe in own]
        flops = multiply_adds(settings_of(key), SIZE)
        yield name_of(key), f"{count / 1e6:.1f}", f"{flops / 1e9:.0f}", ", ".join(alone) or "-", parity(key)


def distillations(recipes: list[Recipe]) -> Iterable[tuple[str, ...]]:
    """One row for each recipe with a teacher."""
    for recipe in recipes:
        if recipe.teacher is not None:
            terms = ", ".join(name for name, term in recipe.terms.items() if term.needs_teacher)
            data = "DOTA" if recipe.detector.rotated else "VOC" if recipe.data.format == "voc" else "COCO"
            words = (name_of(key_of(recipe.detector)), recipe.teacher.name, f"{data}, {recipe.engine.epochs} epochs")
            yield f"`{recipe.name}`", *words, terms, *aps(recipe)


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table of the page."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page() -> str:
    """The whole page."""
    recipes = [load_recipe(name) for name in recipe_names()]
    parts = [
        INTRODUCTION,
        "## Detectors\n",
        table(("detector", "parameters (M)", "GFLOPs", "recipe (published AP)", "parity"), detectors(recipes)),
        "\n## Distillation\n",
        "AP of COCO val2017 (or test-dev, both columns), VOC2007 test or DOTA-v1.0 val, there with the",
        "[corrected number](rotated.md#published-rows) in parentheses; `-` where the literature has no number for the",
        "recipe. `locdistill distill --recipe NAME` without `--teacher` prints where to get the teacher.",
        "`locdistill recipes --json` has AP50, AP75, AP by size, and AP and AR100 of test-dev, where published.\n",
        BOX_LOSSES,
        table(
            ("recipe", "student", "teacher", "data", "terms with the teacher", "AP alone", "AP distilled"),
            distillations(recipes),
        ),
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--check", action="store_true", help="compare with the page that is there")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the differences are then the same on every machine of a kind
    text = page()
    if options.check:
        sys.exit(0 if PAGE.read_text() == text else f"{PAGE} is not what this command writes; run 'make zoo'")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
