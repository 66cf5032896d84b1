"""What unit tests share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _no_curves(no_curves: None) -> None:
    """No unit test looks at the curves of a run."""
