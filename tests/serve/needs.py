"""What tests of a server need."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

needs_kserve = pytest.mark.skipif(
    # Not imported: its gRPC messages and tritonclient's have the same names.
    find_spec("kserve") is None,
    reason="the extra `serve` is not installed",
)
