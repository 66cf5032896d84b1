"""Classes of a user's own, by dotted path: what is imported, from where, for whom, and what is refused."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from locdistill.errors import RecipeError
from locdistill.inference.evaluate import data_of
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.objective.regions import Positives
from locdistill.objective.term import Divergence, Need, Term
from locdistill.publishing.publish import publish
from locdistill.recipe.defaults import Request, resolve
from locdistill.recipe.load import build_recipe, dump_recipe, load_recipe
from locdistill.recipe.own import ROLES, imports_of
from locdistill.recipe.terms import NAMES, TermSettings, class_of
from locdistill.recipe.yaml_io import write_yaml
from locdistill.study.diagnose import reopen
from locdistill.training.resume import resumed_recipe
from tests.conftest import Answer

MODULE = '''
from dataclasses import dataclass
from typing import ClassVar, Literal

from locdistill.assign.atss import ATSS
from locdistill.distillation.logits import EdgeKL
from locdistill.objective.normalisers import Normaliser
from locdistill.objective.schedules import Schedule
from locdistill.objective.term import Divergence, Need, Region
from locdistill.settings import Positive


@dataclass(frozen=True, kw_only=True)
class Mine(Divergence):
    """A divergence."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.TEACHER})
    power: Positive = 1.0
    of: Literal["edges", "boxes"] = "edges"
    sides: tuple[int, ...] = (1, 2)

    def __call__(self, scene):
        return scene.confidence * self.power


@dataclass(frozen=True)
class Where(Region):
    """A region."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, scene):
        return scene.confidence


@dataclass(frozen=True)
class By(Normaliser):
    """A normaliser."""

    def __call__(self, weights, scene):
        return weights.new_ones(1, 1)


@dataclass(frozen=True)
class Late(Schedule):
    """A schedule."""

    def __call__(self, progress):
        return progress


@dataclass(frozen=True, kw_only=True)
class Fewer(ATSS):
    """An assigner."""

    topk: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Softer(EdgeKL):
    """One of the package's divergences, with another default."""

    temperature: float = 20.0
'''
TERM = {"of": {"ours.terms.Mine": {"power": 2}}, "on": "ours.terms.Where", "norm": "ours.terms.By"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a package, which is forgotten afterwards."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "__init__.py").write_text("")
    (tmp_path / "ours" / "terms.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def recipe_file(folder: Path, **changes: Any) -> Path:
    term = TERM | {"schedule": "ours.terms.Late"} | changes
    (folder / "mine.yaml").write_text(write_yaml({"base": "ld_r50_from_r101", "terms": {"mine": term}}))
    return folder / "mine.yaml"


def test_a_recipe_names_its_own_classes(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "locdistill"):
        recipe = load_recipe(recipe_file(here), ["assigner=ours.terms.Fewer"])
    terms = sys.modules["ours.terms"]
    assert f"the recipe imports ours.terms.Mine, from {here / 'ours' / '__init__.py'}" in caplog.messages
    assert recipe.terms["mine"].build() == Term(
        of=terms.Mine(power=2.0), on=terms.Where(), norm=terms.By(), schedule=terms.Late()
    )
    assert recipe.terms["mine"].of == {"ours.terms.Mine": {"power": 2.0, "of": "edges", "sides": [1, 2]}}
    assert recipe.assigner == {"ours.terms.Fewer": {"ignore_iof": None, "topk": 4}}
    assert imports_of(recipe.model_dump())[0] == (
        f"terms.mine.of is ours.terms.Mine, imported from {here / 'ours' / 'terms.py'}"
    )
    (here / "saved.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(here / "saved.yaml") == recipe
    softer = load_recipe(recipe_file(here), ["terms.ld.of=ours.terms.Softer"]).terms["ld"].build()
    assert softer.needs >= {Need.TEACHER, Need.DISTRIBUTIONS}


def test_the_name_that_is_given_is_the_one_that_is_kept(here: Path) -> None:
    (here / "short.py").write_text("from ours.terms import Mine\n")
    recipe = load_recipe(recipe_file(here, of="short.Mine"))
    assert list(recipe.terms["mine"].of) == ["short.Mine"]


def test_settings_of_a_dotted_name_from_the_command_line(here: Path) -> None:
    own = ["terms.mine.of.ours.terms.Mine.power=3", "assigner={ours.terms.Fewer: {topk: 5}}"]
    recipe = load_recipe(
        recipe_file(here), [*own, "assigner.ours.terms.Fewer.topk=6", "terms.ld.of.edge_kl.joint=true"]
    )
    assert recipe.terms["mine"].of["ours.terms.Mine"]["power"] == 3
    assert recipe.assigner["ours.terms.Fewer"]["topk"] == 6
    assert recipe.terms["ld"].of["edge_kl"]["joint"] is True


def test_config_says_what_is_imported(here: Path, cli: Callable[..., Answer]) -> None:
    code, out, err = cli("config", recipe_file(here))
    assert code == 0, err
    assert out.splitlines()[0] == f"# terms.mine.of is ours.terms.Mine, imported from {here / 'ours' / 'terms.py'}"
    (here / "printed.yaml").write_text(out)
    assert load_recipe(here / "printed.yaml") == load_recipe(here / "mine.yaml")


def test_a_method_replaces_terms_of_ones_own_too(here: Path) -> None:
    words = {"teacher": "ema", "methods": ("kd",)}
    recipe = resolve(Request(recipe=recipe_file(here), **words))
    assert set(recipe.terms) == {"cls", "bbox", "dfl", "kd"}


def test_a_run_folder_that_is_resumed_may_import(here: Path) -> None:
    recipe = load_recipe(recipe_file(here))
    (here / "run").mkdir()
    (here / "run" / "recipe.yaml").write_text(dump_recipe(recipe))
    del sys.modules["ours.terms"]
    assert resumed_recipe(Request(), here / "run").model_dump() == recipe.model_dump()
    assert resumed_recipe(Request(recipe=here / "mine.yaml"), here / "run").model_dump() == recipe.model_dump()


WRONG = {
    "absent": ("nowhere.at.Hand", "no module nowhere in"),
    "no class": ("ours.terms.Min", "ours.terms has no class Min; did you mean 'Mine'"),
    "no path": ("ours.terms.", "'ours.terms.' is not the dotted path of a class"),
    "a region": (
        "ours.terms.Where",
        "ours.terms.Where is a Region, not a Divergence; expected class Where(Div",
    ),
    "no role": ("other.Plain", "other.Plain does not derive from Divergence; expected class Plain(Divergence)"),
    "no dataclass": ("other.Bare", "other.Bare is not a frozen dataclass; put @dataclass(frozen=True, kw_only=True)"),
    "not frozen": ("other.Soft", "other.Soft is not a frozen dataclass"),
    "unfinished": ("other.Half", "other.Half has no needs and no __call__; define it as"),
    "misspelt": ("other.Misspelt", "Misspelt.needs is frozenset({'techer'}); expected a frozenset of Need"),
    "types": ("other.Odd", "other.Odd has a field of an unsupported type"),
    "values": ("other.Held", "other.Held.place is PosixPath('a'); expected a number, a flag, a word"),
    "refuses": ("other.Picky", "two is not 2, came"),
    "breaks": ("other.Broken", "making other.Broken raised KeyError: 'x'"),
    "raises": ("raises.Mine", "importing raises raised RuntimeError: no luck; fix the module"),
    "leaves": ("leaves.Mine", "importing leaves raised SystemExit: 3; fix the module"),
    "wants": ("wants.Mine", "importing wants raised ModuleNotFoundError: No module named 'absent_library'"),
    "typo": ("typo.Mine", "importing typo raised SyntaxError"),
    "shadow": ("json.Mine", "two modules are called json: "),
    "shadowed library": ("yaml.Mine", "rename yours"),
    "builtin": ("time.Mine", "two modules are called time: "),
    "option": ({"ours.terms.Mine": {"powr": 1}}, "ours.terms.Mine has no option 'powr'; did you mean 'power'"),
    "value": ({"ours.terms.Mine": {"power": -1}}, "ours.terms.Mine.power: input should be greater than 0, came -1"),
    "flag": ({"ours.terms.Mine": {"power": True}}, "ours.terms.Mine.power: input should be a number, came True"),
}
OTHER = '''
import torch
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from locdistill.objective.term import Divergence, Need


class Base(Divergence):
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, scene):
        return scene.confidence


@dataclass(frozen=True)
class Plain:
    """Derives from nothing."""


class Bare(Base):
    """No dataclass."""


@dataclass
class Soft(Base):
    """Not frozen."""


@dataclass(frozen=True)
class Half(Divergence):
    """Without needs and call."""


@dataclass(frozen=True)
class Misspelt(Base):
    """A need that is none."""

    needs: ClassVar[frozenset[str]] = frozenset({"techer"})


@dataclass(frozen=True)
class Odd(Base):
    """A setting that no recipe can give."""

    weight: torch.Tensor | None = None


@dataclass(frozen=True)
class Held(Base):
    """A setting that no recipe can hold."""

    place: Path = Path("a")


@dataclass(frozen=True)
class Picky(Base):
    """Refuses its settings."""

    two: int = 3

    def __post_init__(self):
        if self.two != 2:
            raise ValueError("two is not 2")


@dataclass(frozen=True)
class Broken(Base):
    """Breaks while it is made."""

    def __post_init__(self):
        {}["x"]
'''


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_error_with_its_place(case: str, here: Path) -> None:
    (here / "other.py").write_text(OTHER)
    (here / "raises.py").write_text("raise RuntimeError('no luck')\n")
    (here / "leaves.py").write_text("raise SystemExit(3)\n")
    (here / "wants.py").write_text("import absent_library\n")
    (here / "typo.py").write_text("def f(:\n")
    for name in ("json", "yaml", "time"):
        (here / f"{name}.py").write_text(MODULE)
    spec, words = WRONG[case]
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe_file(here, of=spec))
    assert "1 problem:" in str(error.value)
    assert f"terms.mine.of: {words}" in str(error.value) or words in str(error.value).partition("terms.mine.of: ")[2]


@pytest.mark.parametrize("kind", ["on", "norm", "schedule"])
def test_a_divergence_in_another_place(kind: str, here: Path) -> None:
    with pytest.raises(RecipeError, match=rf"terms.mine.{kind}: ours.terms.Mine is a Divergence, not a"):
        load_recipe(recipe_file(here, **{kind: "ours.terms.Mine"}))
    with pytest.raises(RecipeError, match=r"assigner: ours.terms.Mine is a Divergence, not a Assigner"):
        load_recipe(recipe_file(here), ["assigner=ours.terms.Mine"])


def test_several_problems_are_one_message(here: Path) -> None:
    with pytest.raises(RecipeError, match="2 problems") as error:
        load_recipe(recipe_file(here, of="nowhere.A", on="nowhere.B"))
    assert "terms.mine.of: " in str(error.value)
    assert "terms.mine.on: " in str(error.value)


def test_the_package_itself_is_no_exception_to_the_roles() -> None:
    for kind, role in ROLES.items():
        for known in NAMES[kind].values():  # type: ignore[arg-type]
            assert role in known.__mro__
    assert class_of("of", "locdistill.distillation.logits.EdgeKL") is NAMES["of"]["edge_kl"]
    with pytest.raises(ValueError, match="Positives is a Region, not a Divergence"):
        class_of("of", "locdistill.objective.regions.Positives")


@dataclass(frozen=True)
class Composed(Divergence):
    """A divergence that is composed in Python."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    power: float = 1.0

    def __call__(self, scene: Any) -> Any:
        return scene.confidence


def test_a_term_that_is_composed_in_python() -> None:
    term = Term(of=Composed(power=2.0), on=Positives())
    described = TermSettings.of_term(term)
    assert described.of == {f"{__name__}.Composed": {"power": 2.0}}
    assert described.build() == term

    @dataclass(frozen=True)
    class Local(Composed):
        pass

    with pytest.raises(ValueError, match="cannot be imported again; put the class at the top of a module"):
        TermSettings.of_term(Term(of=Local(), on=Positives()))


def poisoned(here: Path) -> dict[str, Any]:
    """Plain data of a recipe whose class leaves a file behind when it is imported."""
    (here / "poison.py").write_text(f"open({str(here / 'ran')!r}, 'w').close()\n{MODULE}")
    plain = load_recipe("ld_r50_from_r101").model_dump(mode="json")
    return plain | {"terms": plain["terms"] | {"x": {"of": "poison.Mine", "on": "positives"}}}


def saved_weights(folder: Path, plain: dict[str, Any]) -> Path:
    """Weights whose metadata, and whose folder, hold a recipe."""
    folder.mkdir()
    torch.manual_seed(0)
    settings = DetectorSettings(
        backbone="test_resnet", classes=("a",), channels=8, depth=1, norm_groups=4, pretrained=False
    )
    weights = Detector(settings).save(folder / "best.safetensors", extra={"recipe": plain})
    (folder / "recipe.yaml").write_text(write_yaml(plain))
    return weights


def test_what_comes_with_weights_imports_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = poisoned(here)
    weights = saved_weights(here / "given", plain)
    (here / "alone").mkdir()
    weights.rename(here / "alone" / "model.safetensors")
    Detector.load(here / "alone" / "model.safetensors")
    refused = r"terms.x.of: poison.Mine is a class of a user, and weights files import no code"
    with pytest.raises(RecipeError, match=refused):
        publish(here / "alone" / "model.safetensors")  # the recipe in the metadata
    with pytest.raises(RecipeError, match=refused):
        build_recipe(plain)
    saved_weights(here / "hub", plain)
    assert data_of(here / "hub" / "best", None)["path"] == plain["data"]["path"]  # of 'evaluate': beside the weights
    monkeypatch.setattr(reopen, "find", lambda _: here / "hub" / "best.safetensors")
    with pytest.raises(RecipeError, match=refused):
        reopen.reopen("hf://some/body", device=torch.device("cpu"))
    assert not (here / "ran").exists()
    assert "poison" not in sys.modules
    with pytest.raises(RecipeError, match=r"terms.x.of: "):  # the trap works: a named recipe runs it
        load_recipe(here / "hub" / "recipe.yaml", ["terms.x.of=poison.Absent"])
    assert (here / "ran").exists()
