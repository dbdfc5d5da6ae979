"""Reading YAML that nobody vouches for: plain values, each said once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from svit_deploy.errors import InputError
from svit_deploy.io.files import reading
from svit_deploy.io.text import shown

MAX_CHARACTERS = 100_000


def read_yaml(path: Path, *, as_text: bool = False) -> Any:
    """The values of a YAML file; see `parse_yaml`.

    Raises:
        InputError: it cannot be read, or is no such YAML.
    """
    try:
        with reading(path), path.open(encoding="utf-8") as file:
            return parse_yaml(file.read(MAX_CHARACTERS + 1), as_text=as_text)
    except ValueError as error:
        reason = shown(error, 300)
        raise InputError(f"{path} is not readable YAML ({reason})", "correct the file") from None


def parse_yaml(text: str, *, as_text: bool = False) -> Any:
    """The values of a YAML document.

    Aliases share a value and cost nothing; merge keys (`<<`) would copy it, again and again.

    Args:
        as_text: leave every value as it is written: `1:8:32` and `off` are words, and no number
            and no switch.

    Raises:
        ValueError: too long, no YAML, with a key said twice, with merge keys, or with anything
            but plain values.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has more than {MAX_CHARACTERS} characters")
    try:
        return yaml.load(text, _TextLoader if as_text else _PlainLoader)
    except Exception as error:  # its constructors fail in many ways on what has another form
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


class _PlainLoader(yaml.SafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := next((key for key, count in counts.items() if count > 1), None):
            raise yaml.YAMLError(f"{twice:.80} stands there twice")  # YAML would take the last
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("merge keys (<<) are not taken")


class _TextLoader(_PlainLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012, as in its base
