"""From YAML to a checked recipe and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from locdistill.distillation.logits import EdgeKL
from locdistill.distillation.presets import ld_full, supervised
from locdistill.distillation.regions import ValuableLocations
from locdistill.errors import RecipeError
from locdistill.objective.normalisers import PerImage
from locdistill.objective.regions import Positives
from locdistill.objective.term import Term
from locdistill.recipe.load import build_recipe, dump_recipe, load_recipe, recipe_names
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.terms import NAMES, TermSettings


@pytest.mark.parametrize(
    "term", (supervised(overlap="ciou") | ld_full()).values(), ids=lambda term: type(term.of).__name__
)
def test_terms_there_and_back(term: Term) -> None:
    described = TermSettings.of_term(term)
    assert described.build() == term
    assert TermSettings.model_validate(described.model_dump(mode="json")) == described
    assert described.needs_teacher == term.needs_teacher


def test_every_name_of_the_vocabulary_builds_with_its_defaults() -> None:
    for name, kind in NAMES["of"].items():
        assert isinstance(TermSettings(of=name, on="positives").build().of, kind)
    for name, kind in NAMES["on"].items():
        assert isinstance(TermSettings(of="edge_kl", on=name).build().on, kind)
    for name, kind in NAMES["norm"].items():
        assert isinstance(TermSettings(of="edge_kl", on="positives", norm=name).build().norm, kind)


def test_short_and_long_spelling_are_equal() -> None:
    short = TermSettings(of="edge_kl", on="valuable_locations", norm="per_image")
    long = TermSettings(
        of={"edge_kl": {"temperature": 10}},
        on={"valuable_locations": None},
        norm={"per_image": {"divisor": 1.0, "reference_batch": 3}},
    )
    assert short == long
    assert long.build() == Term(of=EdgeKL(), on=ValuableLocations(), norm=PerImage())


def check(text: str, *words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("ld_r18_from_r101", [text])
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_unknown_keys_name_path_and_nearest() -> None:
    check("engine.epoch=3", "engine.epoch: no such key", "'epochs'")
    check("detectr.backbone=x", "detectr: no such key", "'detector'")
    check("detector.input.shrt=3", "detector.input.shrt", "'short'")
    check("teacher.weight=x", "teacher.weight:", "'weights'")
    check("terms.ld.wieght=2", "terms.ld.wieght", "'weight'")
    check("data.zzz=3", "data.zzz: no such key; valid: path, format")


def test_unknown_names_in_terms() -> None:
    check("terms.ld.of=edgekl", "terms.ld.of", "no divergence is called 'edgekl'", "'edge_kl'")
    check("terms.ld.on=postives", "terms.ld.on", "no region", "'positives'")
    check("terms.ld.norm=per_imag", "terms.ld.norm", "no normaliser", "'per_image'")
    check("terms.ld.of.edge_kl.temprature=3", "terms.ld.of", "no option 'temprature'", "'temperature'")
    check("terms.ld.on.positives.by=students", "terms.ld.on", "'student_confidence'", "'students'")
    check("terms.ld.of.edge_kl.temperature=hot", "temperature", "valid number", "'hot'")
    check("terms.ld.of=3", "terms.ld.of", "expected a name", "came 3")
    check("terms.ld.norm.per_image.divisor=.inf", "finite")


def test_types_say_what_was_expected_and_what_came() -> None:
    check("engine.lr=fast", "engine.lr: expected a valid number, came 'fast'")
    check("data.sizes=800", "data.sizes: expected a list, came 800")
    check("data.size_mode=rnage", "data.size_mode", "'value' or 'range'", "'rnage'")
    check("engine=3", "engine: expected a group of keys")
    check("name=a/b", "name:")


@pytest.mark.parametrize(
    ("kind", "name", "option", "value", "words"),
    [
        *(
            ("of", of, "temperature", 0, "greater than 0")
            for of in ("edge_kl", "class_kl", "channel_kl", "correlation")
        ),
        *(("of", of, "temperature", -1, "greater than 0") for of in ("attentive_l2", "attention_l1")),
        ("of", "masked_generation", "hidden", 1, "less than 1"),
        ("on", "fine_grained", "part", -0.1, "greater than or equal to 0"),
        ("on", "general_instances", "top", 0, "greater than or equal to 1"),
        ("on", "valuable_locations", "topk", 0, "greater than or equal to 1"),
        ("norm", "per_image", "reference_batch", 0, "greater than 0"),
        ("norm", "constant", "divisor", 0, "greater than 0"),
        ("norm", "image_positive_count", "at_least", 0, "greater than 0"),
    ],
)
def test_options_that_would_give_no_number_are_refused(
    kind: str, name: str, option: str, value: float, words: str
) -> None:
    term = {"of": "edge_kl", "on": "positives", "norm": "weight_sum"} | {kind: {name: {option: value}}}
    with pytest.raises(ValueError, match=rf"{name}.{option}: input should be {words}, came {value}"):
        TermSettings.model_validate(term)


def test_all_problems_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("gfl_r50_1x", ["engine.epoch=3", "engine.lr=x", "terms.cls.of=qfl", "oops=1"])
    message = str(caught.value)
    assert "4 problems" in message
    assert all(path in message for path in ("engine.epoch", "engine.lr", "terms.cls.of", "oops"))


def test_teacher_and_terms_must_agree() -> None:
    check("teacher=null", "ld", "need a teacher")
    with pytest.raises(RecipeError, match="no term uses it"):
        load_recipe("gfl_r50_1x", ["teacher.weights=x"])


def test_the_input_size_follows_the_training_size_unless_given() -> None:
    assert load_recipe("gfl_r50_2x").detector.input.model_dump() == {
        "short": 800,
        "long": 1333,
        "pad_to": 32,
        "bits": None,
    }
    small = load_recipe("gfl_r50_1x", ["data.sizes=[[128, 96], [160, 120]]", "data.pad_to=64"])
    assert small.detector.input.model_dump() == {"short": 120, "long": 160, "pad_to": 64, "bits": None}
    own = load_recipe("gfl_r50_1x", ["data.sizes=[[128, 96]]", "detector.input.short=64"])
    assert (own.detector.input.short, own.detector.input.long) == (64, 128)


def test_precision_may_be_written_as_a_number() -> None:
    assert load_recipe("gfl_r50_1x", ["engine.precision=32"]).engine.precision == "32"


@pytest.mark.parametrize("name", recipe_names())
def test_the_resolved_recipe_loads_to_an_equal_one(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["data.path=/some/where", "engine.lr=1e-5", "detector.backbone_args.a=[1, 2]"])
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again == recipe
    assert load_recipe(tmp_path) == recipe  # the folder of a run stands for its recipe
    assert dump_recipe(again) == dump_recipe(recipe)


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("base: gfl_r18_1x\ndescription: mine\nengine: {epochs: 3}\n")
    (tmp_path / "mine.yaml").write_text(
        "base: base.yaml\nteacher: {weights: a}\n"
        "terms:\n  bbox: null\n  ld: {of: edge_kl, on: {positives: {by: iou}}, weight: 3}\n"
    )
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.name == "mine"
    assert recipe.description == ""
    assert recipe.published is None
    assert recipe.engine.epochs == 3
    assert recipe.detector.backbone == "resnet18.tv_in1k"
    assert set(recipe.terms) == {"cls", "dfl", "ld"}
    assert recipe.terms["ld"].build() == Term(of=EdgeKL(), on=Positives(by="iou"), weight=3.0)


def test_terms_are_added_to_the_published_loss_of_a_recipe_without_terms(tmp_path: Path) -> None:
    """They do not take its place, be they in a file above it or on the command line."""
    (tmp_path / "plain.yaml").write_text("detector: {backbone: resnet18}\n")
    (tmp_path / "mine.yaml").write_text(
        "base: plain.yaml\nteacher: {weights: a}\nterms: {ld: {of: edge_kl, on: positives}}\n"
    )
    assert set(load_recipe(tmp_path / "mine.yaml").terms) == {"cls", "bbox", "dfl", "ld"}
    words = ["terms.ld={of: edge_kl, on: positives}", "teacher.weights=a", "terms.bbox.weight=3", "detector.model=atss"]
    recipe = load_recipe(tmp_path / "plain.yaml", words)
    assert set(recipe.terms) == {*supervised("atss"), "ld"}
    assert recipe.terms["bbox"].weight == 3
    (tmp_path / "whole.yaml").write_text("teacher: {weights: a}\nterms: {ld: {of: edge_kl, on: positives}}\n")
    assert set(load_recipe(tmp_path / "whole.yaml").terms) == {"ld"}  # without a base, what is written is all


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    with pytest.raises(RecipeError, match="expected a mapping"):
        load_recipe(tmp_path / "list.yaml")
    with pytest.raises(RecipeError, match="circular"):
        load_recipe(tmp_path / "a.yaml")
    with pytest.raises(RecipeError, match="no such recipe file"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="Did you mean 'gfl_r50_1x'"):
        load_recipe("gfl_r5_1x")


def test_a_recipe_composed_in_python() -> None:
    recipe = Recipe(name="mine", terms={"cls": TermSettings(of="quality_focal", on="counted", norm="positive_count")})
    assert recipe.terms["cls"].build() == supervised()["cls"]
    assert build_recipe(recipe.model_dump(mode="json")) == recipe
    assert Recipe(name="mine").terms == {name: TermSettings.of_term(term) for name, term in supervised().items()}
