"""The model card of published weights: text for readers, front matter for a model hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from locdistill.distillation.settings import EMA, EMA_DECAY
from locdistill.evaluation.tables import percent
from locdistill.inference.evaluate import EvaluationResult
from locdistill.models.settings import DetectorSettings
from locdistill.recipe.catalogue import spelled
from locdistill.recipe.yaml_io import write_yaml

_MAIN = ("AP", "AP50", "AP75", "AP90")
_EDGES = "edge_kl"
NOT_RECORDED = "not recorded"


@dataclass(frozen=True, kw_only=True)
class Card:
    """Content of a model card.

    Attributes:
        file: Name of the weights file.
        sha256: SHA-256 of the weights file.
        settings: Settings of the detector.
        parameters: Number of parameters of the detector.
        record: The file's record of the training (see :mod:`locdistill.publishing.publish`); parts may be missing.
        license: The hub's identifier of the license; None if the publisher states none.
        evaluation: Evaluation made for the card.
        notes: Warnings shown at the top of the card.
    """

    file: str
    sha256: str
    settings: DetectorSettings
    parameters: int
    record: Mapping[str, Any]
    license: str | None = None
    evaluation: EvaluationResult | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the model: the file name without its suffix."""
        return self.file.removesuffix(".safetensors")

    def text(self) -> str:
        """Render the card as Markdown."""
        taught = f", trained with {self._methods[0].replace('-', ' ')}" if self._methods else ""
        what = f"{self.settings.model} with the backbone {self.settings.backbone}"
        headline = f"An object detector, {what}{taught}. The weights are for the Python package locdistill."
        names = ", ".join(map(_plain, self.settings.classes))
        classes = f"## Classes\n\n{len(self.settings.classes)}, in the order of the labels: {names}"
        parts = [
            f"---\n{write_yaml(self._front_matter())}---",
            f"# {self.name}\n\n{headline}",
            *(f"> {note}" for note in self.notes),
            _table(("", ""), self._facts()),
            classes,
            *self._results(),
            *self._training(),
            (
                "## Use\n\n```python\nimport locdistill\n\n"
                f'detector = locdistill.Detector.load("{self.file}")\n'
                '(found,) = detector.detect("image.jpg")  # boxes, scores, labels\n```\n\n'
                f"```sh\nlocdistill predict {self.file} image.jpg --save out/\n"
                f"locdistill evaluate {self.file} --data path/to/data\n"
                "```\n\nFrom a model hub, `locdistill pull OWNER/NAME` fetches and checks the file, and "
                "`hf://OWNER/NAME` stands for it wherever weights are named."
            ),
        ]
        return "\n\n".join(parts) + "\n"

    @property
    def _recipe(self) -> dict[str, Any]:
        return dict(self.record.get("recipe") or {})

    @property
    def _methods(self) -> list[str]:
        """Tags of the kinds of distillation used in training."""
        if not self._recipe.get("teacher"):
            return []
        edges = any(_EDGES in term["of"] for term in self._recipe["terms"].values())
        return [*(["localization-distillation"] if edges else []), "knowledge-distillation"]

    def _front_matter(self) -> dict[str, Any]:
        front: dict[str, Any] = {} if self.license is None else {"license": self.license}
        front |= {
            "library_name": "locdistill",
            "pipeline_tag": "object-detection",
            "tags": ["object-detection", self.settings.model, *self._methods],
            "metrics": ["mean_average_precision"],
        }
        data, metrics = self._data_name("val"), self.record.get("metrics") or {}
        if self.evaluation is not None:  # the card's own evaluation takes precedence
            data, metrics = self.evaluation.dataset.name, self.evaluation.metrics
        numbers = [(name, v) for name in _MAIN if (v := metrics.get(name)) is not None]
        if numbers:
            kind = re.sub(r"[^\w-]+", "-", data.split("/")[0]).strip("-").lower() or "own"
            result = {
                "task": {"type": "object-detection"},
                "dataset": {"name": data, "type": kind},
                "metrics": [{"type": name, "name": name, "value": round(100 * v, 2)} for name, v in numbers],
            }
            front["model-index"] = [{"name": self.name, "results": [result]}]
        return front

    def _data_name(self, split: str) -> str:
        return str(self.record.get("data", {}).get(split, {}).get("name", "unknown data"))

    def _facts(self) -> list[tuple[str, str]]:
        s = self.settings
        versions = self.record.get("versions", {})
        with_what = ", ".join(f"{name} {versions[name]}" for name in ("locdistill", "torch") if name in versions)
        started = self.record.get("started")
        date = str(started)[:10] if started else NOT_RECORDED
        when = ", ".join(part for part in (date, with_what) if part)
        start, weights = self.record.get("start"), NOT_RECORDED
        if self._recipe:
            ema = self._recipe["engine"].get("ema")
            weights = "as trained, without averaging"
            if ema is not None:
                weights = "running average (EMA)" + ("" if ema == "auto" else f" with decay {ema:g}")
        rows = [
            ("architecture", f"{s.model}, {s.backbone}, levels {_numbers(s.levels)}, {s.channels} channels"),
            ("boxes", f"rotated: centre, sides and angle, in the range {s.angles}" if s.rotated else ""),
            ("edge distributions", f"{s.reg_max + 1} bins per edge"),
            ("parameters", f"{self.parameters:,}"),
            ("input", f"resized to fit {s.input.long} x {s.input.short}, padded to multiples of {s.input.pad_to}"),
            (
                "normalisation",
                f"(x - mean) / std of {'BGR' if s.bgr else 'RGB'} values 0 to 255, mean {_numbers(s.mean or ())}, "
                f"std {_numbers(s.std or ())}; done by the detector",
            ),
            ("weights", weights),
            ("recipe", str(self._recipe.get("name", NOT_RECORDED))),
            ("teacher", self._teacher() if self._methods else ""),
            ("begun with", f"the weights of SHA-256 {start['sha256']}" if start else ""),
            ("date", when),
            ("SHA-256", self.sha256),
            ("license", self.license or "not stated by the publisher"),
        ]
        return [(name, value) for name, value in rows if value]

    def _teacher(self) -> str:
        teacher = self._recipe["teacher"]
        if teacher.get("weights") == EMA:
            return f"the running average of the student, with decay {teacher.get('decay') or EMA_DECAY:g}"
        several = [teacher, *teacher.get("more", ())]
        total = sum(each.get("share", 1) for each in several)
        named = []
        for each in several:
            digest = f"SHA-256 {each['sha256']}" if each.get("sha256") else ""
            share = f"a share of {each.get('share', 1) / total:.0%}" if len(several) > 1 else ""
            named.append(", ".join(filter(None, (each.get("name"), digest, share))))
        return "; ".join(named).strip() or NOT_RECORDED

    def _results(self) -> list[str]:
        """Render the sections of evaluation results."""
        sections = []
        metrics = self.record.get("metrics")
        again = self.evaluation is not None and self.evaluation.dataset.name == self._data_name("val")
        if metrics and not again:
            shown = {name: value for name, value in metrics.items() if name not in ("step", "epoch")}
            which = f"the {self.record['which']} evaluation of the run" if "which" in self.record else "in training"
            when = which + (f", at epoch {metrics['epoch']:.4g}" if "epoch" in metrics else "")
            table = _table(tuple(shown), [tuple(percent(value) for value in shown.values())])
            sections.append(f"## Results\n\nIn percent, on {self._data_name('val')} ({when}):\n\n{table}")
        if self.evaluation is not None:
            tables = [f"{_plain(t.title)}:\n\n{_table(t.header, t.rows)}" for t in self.evaluation.tables]
            sections.append("\n\n".join([f"## Evaluation on {self.evaluation.dataset.name}", *tables]))
        return sections or ["## Results\n\nNo evaluation is recorded with these weights."]

    def _training(self) -> list[str]:
        """Render the section of recipe, data and loss terms."""
        recipe = self._recipe
        if not recipe:
            return []
        engine, data = recipe["engine"], self.record.get("data", {})
        steps = f"{engine['steps']} steps" if engine.get("steps") else f"{engine['epochs']} epochs"
        facts = data.get("train")
        seen = f"{facts['name']} ({facts['images']} images)" if facts else "unknown data"
        head = (
            f"{steps} of {seen}, {engine['optimizer']}, learning rate {engine['lr']:g} for 16 images. The loss is the "
            "sum of:"
        )
        rows = [
            (name, spelled(term["of"]), spelled(term["on"]), spelled(term["norm"]), f"{term['weight']:g}")
            for name, term in recipe["terms"].items()
        ]
        table = _table(("term", "divergence", "region", "normaliser", "weight"), rows)
        return [f"## Training\n\n{head}\n\n{table}\n\nThe whole recipe is beside the weights, without paths."]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a Markdown table."""
    lines = ["| " + " | ".join(map(_plain, row)) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def _plain(text: str) -> str:
    """Escape the special characters of Markdown."""
    return re.sub(r"([|\\`*<>\[\]])", r"\\\1", text).replace("\n", " ")
