"""What unit tests share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _no_pictures(no_pictures_of_runs: None) -> None:
    """No unit test looks at the pictures of a run."""
