"""pyproject.toml, as far as the pages tell of it."""

from __future__ import annotations

import sys

from tests.docs.pages import text_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads(text_of("pyproject.toml"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
