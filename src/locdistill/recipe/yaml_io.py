"""Safe YAML without duplicate keys, with the scalars of YAML 1.2.

PyYAML follows YAML 1.1, in which ``on``, ``off``, ``yes`` and ``no`` are booleans (a term has a key ``on``), ``1e-4``
is a string and ``1:30`` is ninety. Here scalars follow the core schema of YAML 1.2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from locdistill.errors import RecipeError

_CORE = ("null", "bool", "int", "float", "str", "seq", "map")
_STR, _MAP = "tag:yaml.org,2002:str", "tag:yaml.org,2002:map"
_DEEP = 1000
"""Nesting depth above which the loader in C is not used, as its stack would overflow at some multiple of it."""
_SCALARS = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("tag:yaml.org,2002:merge", r"<<", ["<"]),
)


def _construct_int(loader: yaml.constructor.SafeConstructor, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


class _Core(yaml.constructor.SafeConstructor):
    """The core schema: unique string keys; no dates, sets or recursive content."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own protocol
    yaml_constructors = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix("tag:yaml.org,2002:") in _CORE
    } | {"tag:yaml.org,2002:int": _construct_int}

    def construct_document(self, node: yaml.Node) -> Any:
        """Construct the whole content at once, which fails if a list or mapping contains itself."""
        return self.construct_object(node, deep=True)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; a scalar that does not match its tag (``!!int three``) is an error of the text."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, KeyError) as error:
            problem = f"{node.value!r:.40} is not of type {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping; its keys must be words and all different."""
        seen: dict[Any, yaml.Mark] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = f"expected a word as key, came {key!r:.40}"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice (first in line {seen[key].line + 1})", key_node.start_mark
                )
            seen[key] = key_node.start_mark
        return super().construct_mapping(node, deep=deep)


class _Loader(_Core, yaml.SafeLoader):
    """The loader in Python: texts of any depth, detailed errors."""


class _FastLoader(_Core, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The loader in C if available, five times as fast."""


class Inline(dict[str, Any]):
    """A mapping to write in one line."""


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """The safe dumper: lists of plain values in one line, keys in the order given."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own protocol

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """Represent a list in one line if it contains no mapping."""
        flat = not any(isinstance(item, dict) for item in sequence)
        node: yaml.SequenceNode = super().represent_sequence(tag, sequence, True if flat else flow_style)
        return node


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar(_STR, text, style=">" if len(text) > 100 else None)
)
_Dumper.add_representer(Inline, lambda dumper, mapping: dumper.represent_mapping(_MAP, mapping, flow_style=True))
for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _FastLoader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML; ``where`` is named in errors.

    Raises:
        RecipeError: The text is no YAML, has a duplicate key, or contains a Python object.
    """
    deepest = text.count("[") + text.count("{") + max(map(len, text.splitlines()), default=0)
    if deepest < _DEEP:
        with suppress(yaml.YAMLError, RecursionError):
            return yaml.load(text, Loader=_FastLoader)  # noqa: S506 - a SafeLoader
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise RecipeError(f"{where}: groups and lists are nested too deeply.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{where}{place}: not readable as YAML: {what}.") from None


def typed(value: Any) -> str:
    """Format a plain value as typed after ``key=``; :func:`read_yaml` gives it back."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(typed, value)) + "]"
    if isinstance(value, str):
        with suppress(RecipeError):  # without quotes where it is read back unchanged, also within a list
            if read_yaml(f"[{value}]", "a value") == [value]:
                return value
    return json.dumps(value, ensure_ascii=False) if value is None or isinstance(value, bool | str) else str(value)


def read_yaml_file(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
        RecipeError: The file is absent, not text, or not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: expected YAML text in UTF-8; the file has other content.") from None
    return read_yaml(text, str(path))


def write_yaml(data: Any) -> str:
    """Write plain data (mappings, lists, scalars) as YAML that :func:`read_yaml` gives back unchanged."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=110)
