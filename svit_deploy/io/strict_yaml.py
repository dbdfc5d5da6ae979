"""Reading YAML that nobody vouches for: plain values, each said once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml

MAX_CHARACTERS = 100_000


def parse_yaml(text: str) -> Any:
    """The values of a YAML document.

    Aliases share a value and cost nothing; merge keys (`<<`) would copy it, again and again.

    Raises:
        ValueError: too long, no YAML, with a key said twice, with merge keys, or with anything
            but plain values.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has more than {MAX_CHARACTERS} characters")
    try:
        return yaml.load(text, _PlainLoader)
    except Exception as error:  # its constructors fail in many ways on what has another form
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


class _PlainLoader(yaml.SafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := next((key for key, count in counts.items() if count > 1), None):
            raise yaml.YAMLError(f"{twice:.80} stands there twice")  # YAML would take the last
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("merge keys (<<) are not taken")
