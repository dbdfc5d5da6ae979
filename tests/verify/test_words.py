"""Counts of things, in one number and in the other."""

from __future__ import annotations

import pytest

from svit_deploy.verify.decisions import GateFlips
from svit_deploy.verify.words import decisions_in_words, number_of


def test_one_and_several():
    assert [number_of(count, "image") for count in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


@pytest.mark.parametrize(
    ("ties", "later", "words"),
    [
        (0, 0, "identical"),
        (1, 0, "identical but for 1 near-tie flip"),
        (1, 1, "identical but for 1 near-tie flip and 1 decision after it"),
        (2, 1, "identical but for 2 near-tie flips and 1 decision after them"),
        (3, 7, "identical but for 3 near-tie flips and 7 decisions after them"),
    ],
)
def test_near_tie_flips_of_all_gates_together(ties, later, words):
    first, rest = GateFlips(9, ties and 1, ties and 1, 0, 0.1), max(ties - 1, 0)
    assert decisions_in_words([first, GateFlips(9, rest, rest, later, 0.1)]) == words
