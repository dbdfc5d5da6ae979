"""OpenVINO where it is installed, its cache in a folder of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from svit_deploy.engines.openvino.library import able_in, import_openvino
from tests.conftest import skip_without


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    skip_without("openvino")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVIT_DEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def skip_unless_computed_in(half: str) -> None:
    """Skips where this processor does not compute in a half precision."""
    if half not in able_in(import_openvino().Core(), "CPU"):
        pytest.skip(f"this processor does not compute in {half}")


@pytest.fixture(params=["fp16", "bf16"])
def half(request: pytest.FixtureRequest) -> str:
    """A half precision that this processor computes in."""
    skip_unless_computed_in(request.param)
    return str(request.param)
