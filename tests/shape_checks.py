"""Checks of types and shapes at every call of the package, in a fraction of the time of jaxtyping's own decorator.

That one binds the arguments of each call and checks them twice, which was half the time of the tests. Here a function
is checked once, by the same type checker; sizes of the same name are compared within a call of it where its annotations
hold shapes. Functions within functions are made anew at each call: of them only those with shapes are checked.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any, get_args, get_type_hints

import jaxtyping
import torch

_SIZES = jaxtyping.jaxtyped("context")
"""Within it, sizes of the same name are the same."""


def install() -> None:
    """Have the import hook of jaxtyping (``--jaxtyping-packages``) use these checks."""
    jaxtyping.jaxtyped = _decorator


def _decorator(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return functools.partial(_checked, typechecker)


def _checked(typechecker: Callable[[Any], Any], thing: Any) -> Any:
    """Check the calls of a function; of a class, those of the ``__init__`` that a dataclass has been given."""
    if inspect.isclass(thing):
        if dataclasses.is_dataclass(thing) and isinstance(thing.__init__, FunctionType):
            thing.__init__ = _checked(typechecker, thing.__init__)
        return thing
    hints = {name: _resolved(hint, thing.__globals__) for name, hint in thing.__annotations__.items()}
    shaped = any(map(_has_shape, hints.values()))
    if hasattr(thing, "__wrapped__") or ("<locals>" in thing.__qualname__ and not shaped):
        return thing
    written, thing.__annotations__ = thing.__annotations__, hints
    checked = typechecker(thing)
    thing.__annotations__ = checked.__annotations__ = written
    return _with_sizes(checked, thing) if shaped else checked


def _with_sizes(function: Callable[..., Any], unchecked: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_exporting():  # sizes that are compared become constants
            return unchecked(*args, **kwargs)
        with _SIZES:
            return function(*args, **kwargs)

    return call


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    """An annotation that may be text; what cannot be known yet is anything."""
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"hint": hint}), names, include_extras=True)["hint"]
    except Exception:
        return Any


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, list):  # the arguments of a callable
        return any(map(_has_shape, hint))
    is_array = inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(_has_shape, get_args(hint)))
