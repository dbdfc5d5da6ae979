"""YAML of strangers: plain values, each said once, and never more of them than were written."""

from __future__ import annotations

import pytest

from svit_deploy.io.strict_yaml import MAX_CHARACTERS, parse_yaml

COPIES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60)
)
"""2 ** 59 copies of `x`."""
SHARED = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 1\nb: [x, 2.5, true, null]", {"a": 1, "b": ["x", 2.5, True, None]}),
        ("a: &a [1]\nb: *a", {"a": [1], "b": [1]}),
        ("a: {b: 1, c: 2}\nb: {b: 1}", {"a": {"b": 1, "c": 2}, "b": {"b": 1}}),
    ],
)
def test_plain_values(text: str, value: object) -> None:
    assert parse_yaml(text) == value


def test_values_that_are_shared_take_no_room() -> None:
    assert len(parse_yaml(SHARED)) == 60


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "a stands there twice"),
        ("b: {a: 1, a: 2}", "a stands there twice"),
        (COPIES, "merge keys"),
        ("b: {<<: {a: 1}}", "merge keys"),
        ("".join(f"k{i}: 1\n" for i in range(8000)) + "k1: 1", "k1 stands there twice"),
        ("x" * (MAX_CHARACTERS + 1), "characters"),
        ("[" * 5000, "recursion"),
        ("a: !!bool x", "x"),
        ("a: !!int ''", "index"),
        ("a: !!timestamp x", "group"),
        ("a: !!python/object/apply:os.system [x]", "constructor"),
        ("? [a]\n: 1", "unhashable"),
        ("a: *b", "alias"),
        ("a: 2001-99-99", "month"),
        ("a: " + "9" * 5000, "digits"),
        ("\x00", "special characters"),
    ],
    ids=lambda value: value[:20],
)
def test_anything_else_is_a_value_error(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
