"""Here a golden is one for detection."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def golden(detection_golden: Any) -> Any:
    """A detection golden by name."""
    return detection_golden
