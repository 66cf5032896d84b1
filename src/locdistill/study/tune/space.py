"""The search space of ``tune``: settings of a recipe, each over a range or a list of choices.

A searched setting is an override with a range or choices in place of a value::

    terms.ld.weight=0.25..16:log                                     a range, here of the logarithm
    terms.ld.of.edge_kl.temperature,terms.ld_vlr.of.edge_kl.temperature=1..10    one number for both
    terms.ld_vlr.on.valuable_locations.metric=iof_diou|diou          choices
    terms.ld_vlr=on|off                                              with the term, or without it

A trial without a term has no values for the settings below that term.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from locdistill.errors import RecipeError
from locdistill.recipe.load import Override, named_recipe
from locdistill.recipe.overrides import apply_overrides
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.terms import split_component
from locdistill.recipe.yaml_io import read_yaml

Value = float | int | str
"""A number of a range, or a choice as written."""
Values = dict[str, Value]
"""Values by name of the searched setting."""
FACTOR = 10.0
"""Factor by which the default search of a weight extends above and below the recipe's."""
TEMPERATURES = (1.0, 10.0)
"""Temperature with the best results on small data, and temperature of the published recipes."""
_RANGE = re.compile(r"(?P<low>[^|:]+?)\.\.(?P<high>[^|:]+?)(?P<log>:log)?")
_OFF, _ON = "off", "on"


@dataclass(frozen=True)
class Searched:
    """A setting, or several that take the same value.

    Attributes:
        keys: Dotted paths.
        low: Lower end of a range.
        high: Upper end of a range.
        log: Whether the range is searched on a logarithmic scale.
        integer: Whether the range has whole numbers only.
        choices: Choices as written in YAML, in place of a range.
    """

    keys: tuple[str, ...]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    choices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name: the keys, with commas."""
        return ",".join(self.keys)

    @property
    def label(self) -> str:
        """Short name for tables: the common end of several keys, without the parts that every term has."""
        ends = [key.split(".") for key in self.keys]
        while len({tuple(parts) for parts in ends}) > 1 and all(len(parts) > 1 for parts in ends):
            ends = [parts[1:] for parts in ends]
        names = {".".join(part for part in parts if part not in ("terms", "of", "on", "norm")) for parts in ends}
        return ", ".join(sorted(names))

    @property
    def switch(self) -> bool:
        """True if the setting switches terms on and off."""
        return set(self.choices) == {_ON, _OFF} and all(re.fullmatch(r"terms\.\w+", key) for key in self.keys)

    def rounded(self, value: float) -> Value:
        """Round a number to four significant digits within the range, which can be read and written without loss."""
        if self.integer:
            return round(value)
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    def overrides(self, value: Value, off: set[str]) -> list[Override]:
        """Return the overrides for a value; none below the terms that are off."""
        if self.switch:
            return [f"{key}=null" for key in self.keys] if value == _OFF else []
        keys = [key for key in self.keys if _term(key) not in off]
        return [f"{key}={value}" if self.choices else (tuple(key.split(".")), value) for key in keys]

    def __str__(self) -> str:
        """Format as on the command line."""
        value = "|".join(self.choices) or f"{self.low:g}..{self.high:g}{':log' if self.log else ''}"
        return f"{self.name}={value}"


def parse_search(text: str, recipe: Recipe) -> Searched:
    """Parse ``KEY[,KEY...]=LOW..HIGH[:log]`` or ``KEY=A|B``; a whole-number setting gets a range of whole numbers.

    Raises:
        RecipeError: The text has neither form.
    """
    key, sign, value = text.partition("=")
    keys, choices = tuple(part.strip() for part in key.split(",")), tuple(part.strip() for part in value.split("|"))
    found = _RANGE.fullmatch(value.strip())
    if not sign or not all(keys) or (found is None and (len(choices) < 2 or len(set(choices)) < len(choices))):
        raise RecipeError(
            f"{text!r} cannot be searched; expected KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A|B, for example "
            "terms.ld.weight=0.25..16:log or terms.ld_vlr=on|off"
        )
    if found is None:
        return Searched(keys, choices=choices)
    plain = recipe.model_dump(mode="json")
    integer = all(type(_at(plain, key)) is int for key in keys)
    low, high = (read_yaml(found[end], f"the {end} end of {key}") for end in ("low", "high"))
    fits = all(isinstance(end, int if integer else int | float) and not isinstance(end, bool) for end in (low, high))
    if not fits or not low < high or (found["log"] and low <= 0):
        what = "whole numbers" if integer else "numbers"
        above = ", LOW above 0" if found["log"] else ""
        raise RecipeError(f"{text!r} cannot be searched; expected {what} LOW..HIGH, LOW below HIGH{above}")
    return Searched(keys, low=low, high=high, log=bool(found["log"]), integer=integer)


def check_space(space: Sequence[Searched], recipe: Recipe) -> None:
    """Check that every end of a range and every choice gives a valid recipe.

    Raises:
        RecipeError: One does not, or a setting is searched twice.
    """
    plain = recipe.model_dump(mode="json")
    keys = [key for searched in space for key in searched.keys]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise RecipeError(f"{twice[0]} is searched twice; give each setting once")
    for searched in space:
        for value in searched.choices or (searched.rounded(searched.low), searched.rounded(searched.high)):
            named_recipe(apply_overrides(plain, searched.overrides(value, set())), f"{searched.name}={value}")


def default_space(recipe: Recipe) -> tuple[Searched, ...]:
    """Return the default search space of a recipe with distillation.

    It covers three kinds of settings of the terms that need a teacher. Temperature: one for all terms with the same
    divergence and the same temperature. Weight, or the balance in its place: a factor of ten above and below the
    recipe's. Presence of each term after the first: for LD, the choice between the main region and both.

    Raises:
        RecipeError: The recipe has no such term.
    """
    taught = {name: term for name, term in recipe.terms.items() if term.needs_teacher}
    if not taught:
        raise RecipeError(
            f"{recipe.name} has no term that compares with a teacher, so there is nothing to search by default; pass "
            "--teacher, or the settings to search with --search KEY=LOW..HIGH"
        )
    together: dict[tuple[str, float], list[str]] = {}
    strengths: dict[str, float] = {}
    for name, term in taught.items():
        divergence, options = split_component(term.of)
        if "temperature" in options:
            key = f"terms.{name}.of.{divergence}.temperature"
            together.setdefault((divergence, options["temperature"]), []).append(key)
        if isinstance(term.balance, float):
            strengths[f"terms.{name}.balance"] = term.balance
        elif term.balance is None and isinstance(recipe.balance, float):
            strengths["balance"] = recipe.balance
        else:
            strengths[f"terms.{name}.weight"] = term.weight
    temperatures = [
        Searched(tuple(keys), low=min(own, TEMPERATURES[0]), high=max(own, TEMPERATURES[1]), log=True)
        for (_, own), keys in together.items()
    ]
    ranges = [
        Searched((key,), low=own / FACTOR, high=own * FACTOR, log=True) for key, own in strengths.items() if own > 0
    ]
    switches = [Searched((f"terms.{name}",), choices=(_ON, _OFF)) for name in list(taught)[1:]]
    return (*temperatures, *ranges, *switches)


def draw(space: Sequence[Searched], pick: Callable[[Searched], Value]) -> Values:
    """Pick a value for each setting, switches of terms first; none below a term that is off."""
    values: Values = {}
    for searched in sorted(space, key=lambda one: not one.switch):
        off = switched_off(space, values)
        if searched.switch or not all(_term(key) in off for key in searched.keys):
            values[searched.name] = pick(searched)
    return values


def switched_off(space: Sequence[Searched], values: Values) -> set[str]:
    """Return the terms that these values switch off."""
    switches = [searched for searched in space if searched.switch and values.get(searched.name) == _OFF]
    return {key for searched in switches for key in searched.keys}


def with_values(recipe: Recipe, space: Sequence[Searched], values: Values) -> Recipe:
    """Return the recipe with these values.

    Raises:
        RecipeError: The values do not give a valid recipe together.
    """
    off = switched_off(space, values)
    words = [w for one in space if one.name in values for w in one.overrides(values[one.name], off)]
    return named_recipe(apply_overrides(recipe.model_dump(mode="json"), words), recipe.name)


def own_values(recipe: Recipe, space: Sequence[Searched]) -> Values | None:
    """Return the recipe's own values as a point of the space; None if it is outside."""
    plain = recipe.model_dump(mode="json")

    def own(searched: Searched) -> Value:
        if searched.switch:
            return _ON
        here = _at(plain, searched.keys[0])
        if any(_at(plain, key) != here for key in searched.keys):
            raise LookupError
        if searched.choices:
            return next(c for c in searched.choices if read_yaml(c, searched.name) == here)
        if not isinstance(here, int | float) or not searched.low <= here <= searched.high:
            raise LookupError
        return here

    try:
        return draw(space, own)
    except (LookupError, StopIteration):
        return None


def _term(key: str) -> str:
    """Return ``terms.NAME`` for a key below a term."""
    return ".".join(key.split(".")[:2])


def _at(plain: Any, key: str) -> Any:
    for part in key.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return plain
