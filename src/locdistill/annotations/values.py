"""Numbers as annotation files write them: plain, with a fraction of zero, or as text."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

WHOLE = re.compile(r"([+-]?[0-9]{1,18})(?:\.0*)?")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
EXACT = 2**53  # above it, floats skip whole numbers
LARGEST = 2**63
IDS = "ids written as text or with a fraction of zero, read as whole numbers"
NUMBERS = "numbers written as text, read as numbers"


def whole(value: object, notes: Counter[str], note: str = IDS) -> int | None:
    """Convert a whole number of 64 bits, also one written as a float or as text; return None for anything else.

    A conversion is counted in the notes.
    """
    if type(value) is int:  # a bool is none
        return value if -LARGEST < value < LARGEST else None
    number = None
    if type(value) is float and value.is_integer() and abs(value) <= EXACT:
        number = int(value)
    elif type(value) is str and (found := WHOLE.fullmatch(value.strip())):
        number = int(found[1])
    notes[note] += number is not None
    return number


def number(value: Any, notes: Counter[str]) -> Any:
    """Convert the text of a number, and count it in the notes; return any other value as it is."""
    if type(value) is str and NUMBER.fullmatch(value.strip()):
        notes[NUMBERS] += 1
        return float(value)
    return value
