"""What to say about a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that looks most like ``name``; None if none is close."""
    names = list(valid)
    lowered = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower().replace("-", "_"), lowered, n=1, cutoff=0.55)
    if close:
        return lowered[close[0]]
    parts = [candidate for candidate in names if name and name.lower() in candidate.lower()]
    return parts[0] if len(parts) == 1 else None


def suggestion(name: str, valid: Iterable[str]) -> str:
    """``did you mean 'x'`` where a name is close; otherwise the list of valid names."""
    names = list(valid)
    close = nearest(name, names)
    if close:
        return f"did you mean {close!r}"
    return f"valid: {', '.join(names)}" if names else "none is valid here"
