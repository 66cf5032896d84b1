"""Base of all settings: typed, frozen, and strict about names; and error messages for invalid plain data."""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Positive = Annotated[float, Field(gt=0)]
"""Number greater than 0; checked when plain data are read, not when a term is composed in Python."""
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


def _refuse_flags(schema: Any) -> Any:
    """Return a validation schema that rejects true and false (in Python 1 and 0) as numbers."""
    if isinstance(schema, list):
        return [_refuse_flags(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "function-before" and schema["function"]["function"] is _no_flag:
        return schema
    numbers = schema.get("type") == "literal" and int in map(type, schema["expected"])
    if numbers or schema.get("type") in ("int", "float"):
        return core_schema.no_info_before_validator_function(_no_flag, typing.cast(CoreSchema, schema))
    return {
        key: value if key in ("metadata", "default", "serialization") else _refuse_flags(value)
        for key, value in schema.items()
    }


def _with_checked_numbers(source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    schema = handler(source)
    real: Any = handler.resolve_ref_schema(schema)
    real.update(_refuse_flags(real))  # in place: a model is in a table of definitions, and this is its name
    return schema


class NumbersAreNoFlags:
    """Annotation of a type, as in ``Annotated[X, NumbersAreNoFlags]``, that rejects true and false as numbers."""

    __get_pydantic_core_schema__ = staticmethod(_with_checked_numbers)


class Settings(BaseModel):
    """Frozen group of settings; unknown keys are errors, and so is true or false for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Build the schema of the fields, with numbers checked first."""
        return _with_checked_numbers(source, handler)


def group(data: Any, key: str) -> dict[str, Any]:
    """Return the group of settings under a key of plain data that are not validated yet.

    The result is empty if the key is absent or holds something else, which validation reports with its path.
    """
    found = data.get(key) if isinstance(data, dict) else None
    return found if isinstance(found, dict) else {}


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name most similar to ``name``; None if none is close."""
    names = list(valid)
    lowered = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower().replace("-", "_"), lowered, n=1, cutoff=0.55)
    if close:
        return lowered[close[0]]
    parts = [candidate for candidate in names if name and name.lower() in candidate.lower()]
    return parts[0] if len(parts) == 1 else None


def suggestion(name: str, valid: Iterable[str]) -> str:
    """Return ``did you mean 'x'`` if a name is close, otherwise the list of valid names."""
    names = list(valid)
    close = nearest(name, names)
    if close:
        return f"did you mean {close!r}"
    return f"valid: {', '.join(names)}" if names else "none is valid here"


def finite(content: Any) -> Any:
    """Convert plain data to plain data with null for NaN and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {name: finite(item) for name, item in content.items()}
    if isinstance(content, list | tuple):
        return [finite(item) for item in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def problems(error: ValidationError, model: type[BaseModel], data: Any) -> list[str]:
    """Describe each error in plain data: dotted path, expected and given value, and the nearest key.

    Args:
        error: Error raised when building the settings.
        model: Type of the settings.
        data: Plain data they were built from.
    """
    found = error.errors(include_url=False)
    inside = {problem["loc"][:-1] for problem in found}
    # A list with a wrong item is reported as too short as well.
    own = [problem for problem in found if problem["type"] != "too_short" or problem["loc"] not in inside]
    return list(dict.fromkeys(_describe(model, data, problem) for problem in own))


def _describe(model: type[BaseModel], data: Any, problem: Any) -> str:
    # the parts of the validation path that exist in the data; others name branches of a union
    path: list[int | str] = []
    for part in problem["loc"]:
        if (isinstance(data, dict) and part in data) or (
            isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)
        ):
            data = data[part]
            path.append(part)
    if problem["type"] == "missing":
        path.append(problem["loc"][-1])
    at = ".".join(str(part) for part in path)
    begin = f"{at}: " if at else ""
    if problem["type"] == "extra_forbidden":
        return f"{at}: no such key; {suggestion(str(path[-1]), _keys_at(model, path[:-1]))}"
    if problem["type"] == "missing":
        return f"{at}: is required"
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "value_error":
        return begin + message
    message = re.sub("valid dictionary( or instance of .*)?", "group of keys", message.split(", unable")[0])
    message = message.replace("valid tuple", "list")
    came = "a group of keys" if isinstance(problem["input"], dict) else repr(problem["input"])
    return f"{begin}expected {message[0].lower()}{message[1:]}, came {came}"


def _keys_at(model: type[BaseModel], path: list[int | str]) -> list[str]:
    """Return the valid keys of the group of settings at a path."""
    here: Any = model
    for part in path:
        if isinstance(here, type) and issubclass(here, BaseModel):
            here = _settings_in(here.model_fields[str(part)].annotation) if str(part) in here.model_fields else None
        elif typing.get_origin(here) is dict:
            here = _settings_in(typing.get_args(here)[1])
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def _settings_in(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        groups = [arg for arg in typing.get_args(annotation) if isinstance(arg, type) and issubclass(arg, BaseModel)]
        return groups[0] if groups else None
    return annotation
