"""Conversion of loss terms between YAML and objects.

In a recipe a term is ``of`` (a divergence), ``on`` (a region), ``norm`` (a normaliser) and ``weight``. Each of the
first three is a name, or a name with options::

    ld:
      of: {edge_kl: {temperature: 10}}
      on: {positives: {by: student_confidence}}
      norm: {per_image: {reference_batch: 3, divisor: 1}}
      weight: 0.25

The weight may change during the run by a ``schedule`` of the same form (``cosine``, or ``{linear: {first: 1, last: 0,
start: 0.5}}``). ``balance``, the term's gradient norm in multiples of the supervised terms', replaces the weight.

The names are the keys of :mod:`locdistill.recipe.vocabulary`, or dotted paths of the user's own classes (see
:mod:`locdistill.recipe.own`); the options are the fields of these classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, PydanticUserError, TypeAdapter, ValidationError, field_validator

from locdistill.distillation.methods import METHODS
from locdistill.errors import RecipeError
from locdistill.objective.term import Divergence, Region, Term, stated_needs
from locdistill.recipe import vocabulary
from locdistill.recipe.own import check_plain, own_class, own_fields
from locdistill.settings import NumbersAreNoFlags, Positive, Settings, suggestion

Slot = Literal["of", "on", "norm", "schedule", "assigner"]
Component = str | dict[str, Any]
"""A component in YAML: a name, or ``{name: {option: value}}``."""

_WHAT = {"of": "divergence", "on": "region", "norm": "normaliser", "schedule": "schedule", "assigner": "assigner"}


NAMES: dict[Slot, dict[str, type]] = {
    "of": vocabulary.DIVERGENCES,
    "on": vocabulary.REGIONS,
    "norm": vocabulary.NORMALISERS,
    "schedule": vocabulary.SCHEDULES,
    "assigner": vocabulary.ASSIGNERS,
}
"""The package's classes allowed under each key of a recipe, by name."""


def split_component(spec: Any) -> tuple[str, dict[str, Any]]:
    """Split a component in YAML into name and options.

    Raises:
        ValueError: The component is neither a name nor ``{name: options}``.
    """
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, dict) and len(spec) == 1:
        ((name, options),) = spec.items()
        if isinstance(name, str) and (options is None or isinstance(options, dict)):
            return name, options or {}
    raise ValueError(f"expected a name or {{name: {{option: value}}}} with one name, came {spec!r}")


def build_component(kind: Slot, spec: Any) -> Any:
    """Build the divergence, region, normaliser, schedule or assigner of a component.

    Raises:
        ValueError: The name or an option does not exist, or a value is invalid; all problems in one message.
    """
    name, options = split_component(spec)
    component = class_of(kind, name)
    fields = [field.name for field in own_fields(component)]
    wrong = [f"{name} has no option {key!r}; {suggestion(str(key), fields)}" for key in options if key not in fields]
    wrong += [
        f"{name}.{key}: expected a finite number, came {value}"
        for key, value in options.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if wrong:
        raise ValueError("; ".join(wrong))
    try:
        return _own(name, component, options) if "." in name else _checked(component)(options)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            at = ".".join((name, *(str(part) for part in problem["loc"][:1])))
            message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            came = f"{message[0].lower()}{message[1:]}, came {problem['input']!r}"
            lines.append(f"{at}: {'is required' if problem['type'] == 'missing' else came}")
        raise ValueError("; ".join(dict.fromkeys(lines))) from None


def class_of(kind: Slot, name: str) -> type:
    """Return the class of a name of the vocabulary or a dotted path.

    Raises:
        ValueError: There is no such class, or it is not allowed under this key.
    """
    table = NAMES[kind]
    if "." in name:
        return own_class(kind, name, table)
    if name not in table:
        raise ValueError(
            f"no {_WHAT[kind]} is called {name!r}; {suggestion(name, table)} (for your own class: its dotted "
            "path, such as my_module.MyClass)"
        )
    return table[name]


def _own(name: str, component: type, options: dict[str, Any]) -> Any:
    """Build a component of a user's own class, with checks that the package's classes do not need.

    Raises:
        ValidationError: A value is invalid.
        ValueError: The type of a field is not supported, construction fails, or the component does not declare its
            needs.
    """
    try:
        built = _checked(component)(options)
        if {Divergence, Region}.intersection(component.__mro__):
            stated_needs(built)
    except ValueError:
        raise
    except RecipeError as error:
        raise ValueError(str(error)) from error
    except (PydanticUserError, NameError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} has a field of an unsupported type: {reason}") from error
    except Exception as error:
        raise ValueError(f"making {name} raised {type(error).__name__}: {error}") from error
    check_plain(name, options_of(built))
    return built


def options_of(component: Any) -> dict[str, Any]:
    """Return all options of a component as plain data."""
    options = {field.name: getattr(component, field.name) for field in own_fields(type(component))}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}


@functools.cache
def _checked(component: type) -> Callable[[dict[str, Any]], Any]:
    """Return a function that builds the component from options; cached, because it is slow to make."""
    options: Any = Annotated[component, NumbersAreNoFlags]
    check: Callable[[dict[str, Any]], Any] = TypeAdapter(options).validate_python
    return check


def plain_component(kind: Slot, component: Any) -> dict[str, Any]:
    """Describe a component with all its options: the reverse of :func:`build_component`.

    Raises:
        ValueError: Its class is neither in the vocabulary nor a user's class that a recipe could name.
    """
    found = type(component)
    for name, kind_class in NAMES[kind].items():
        if found is kind_class:
            return {name: options_of(component)}
    path = f"{found.__module__}.{found.__qualname__}"
    if found.__module__ == "__main__" or "<locals>" in path:
        raise ValueError(f"{path} cannot be imported again; put the class at the top of a module of its own")
    own_class(kind, path, NAMES[kind])
    check_plain(path, options_of(component))
    return {path: options_of(component)}


def spelled_out(kind: Slot, spec: Any) -> dict[str, Any]:
    """Return a component with all its options, under the given name.

    Raises:
        ValueError: As :func:`build_component`.
    """
    return {split_component(spec)[0]: options_of(build_component(kind, spec))}


class TermSettings(Settings):
    """One term of the objective; stored with all options, so that equal terms compare equal."""

    of: Component
    """Divergence: the loss at each location."""
    on: Component
    """Region: the weight of each location."""
    norm: Component = Field(default="weight_sum", validate_default=True)
    """Normaliser: the divisor of the weighted sum."""
    weight: float = 1.0
    schedule: Component | None = None
    """Schedule of the weight during the run; None for a constant weight."""
    balance: Positive | Literal["pareto"] | None = None
    """Norm of the term's gradient in multiples of the supervised terms', in place of the weight; or ``pareto``."""

    @field_validator("of", "on", "norm", "schedule", mode="before")
    @classmethod
    def _spell_out(cls, spec: Any, info: Any) -> Component | None:
        if info.field_name == "schedule" and (spec is None or spec == "constant"):
            return None
        return spelled_out(info.field_name, spec)

    def build(self) -> Term:
        """Build the term."""
        return Term(
            of=build_component("of", self.of),
            on=build_component("on", self.on),
            norm=build_component("norm", self.norm),
            weight=self.weight,
            schedule=None if self.schedule is None else build_component("schedule", self.schedule),
            balance=self.balance,
        )

    @property
    def needs_teacher(self) -> bool:
        """True if the term compares with a teacher."""
        return self.build().needs_teacher

    @classmethod
    def of_term(cls, term: Term) -> TermSettings:
        """Describe a term that was composed in Python."""
        return cls(
            of=plain_component("of", term.of),
            on=plain_component("on", term.on),
            norm=plain_component("norm", term.norm),
            weight=term.weight,
            schedule=None if term.schedule is None else plain_component("schedule", term.schedule),
            balance=term.balance,
        )


def method_terms(methods: Iterable[str], model: str) -> dict[str, TermSettings]:
    """Combine the terms of one or several methods; names shared by several get the method's name as a prefix.

    Args:
        methods: Names of the methods; duplicates count once.
        model: Kind of the student.

    Raises:
        RecipeError: There is no such method.
    """
    chosen = list(dict.fromkeys(methods))
    if unknown := [name for name in chosen if name not in METHODS]:
        raise RecipeError(
            f"no method is called {', '.join(map(repr, unknown))}; {suggestion(unknown[0], METHODS)} "
            "('locdistill methods' lists them)"
        )
    found = {method: METHODS[method](model) for method in chosen}
    names = [name for terms in found.values() for name in terms]
    return {
        f"{method}_{name}" if names.count(name) > 1 else name: TermSettings.of_term(term)
        for method, terms in found.items()
        for name, term in terms.items()
    }
