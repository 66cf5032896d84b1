"""YAML in and out."""

from __future__ import annotations

from pathlib import Path

import pytest

from locdistill.errors import RecipeError
from locdistill.recipe.yaml_io import Inline, read_yaml, read_yaml_file, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("1e-4", 1e-4),
        ("012", 12),
        ("0x10", 16),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("~", None),
        ("null", None),
        ("", None),
        (".5", 0.5),
        ("-3", -3),
        ("[1, a, [2.5, null]]", [1, "a", [2.5, None]]),
        ("{a: 1, on: off}", {"a": 1, "on": "off"}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = read_yaml(text, "here")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: {c: 1, c: 2}", ["line 2", "'c' is given twice"]),
        ("a: !!python/object/apply:os.system [ls]", ["line 1", "python/object"]),
        ("a: [1", ["here", "line 1"]),
        ("{[1]: 2}", ["here"]),
        ("a: *b", ["undefined alias"]),
    ],
)
def test_what_cannot_be_read_names_the_place(text: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        read_yaml(text, "here")
    for word in ["here", *words]:
        assert word in str(caught.value)


def test_merge_keys_of_yaml_are_no_duplicates() -> None:
    assert read_yaml("a: &x {p: 1}\nb: {<<: *x, p: 2}", "here")["b"] == {"p": 2}


def test_a_file_that_is_no_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        read_yaml_file(tmp_path / "a.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_yaml_file(tmp_path / "absent.yaml")


def test_what_is_written_is_read_back() -> None:
    data = {
        "on": {"x": [1, 2.0, 1e-4, 1e-12, [3, 4]]},
        "words": ["no", "null", "1", "1e-4", "2020-01-01", "", " a ", "a: b", "x\ny", "é", "word " * 60],
        "none": None,
        "empty": {},
        "inline": Inline(a=1, b=Inline(c=2)),
        "list of groups": [{"a": 1}],
    }
    text = write_yaml(data)
    assert read_yaml(text, "here") == data
    assert "inline: {a: 1, b: {c: 2}}" in text
