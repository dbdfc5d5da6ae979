"""Shapes that an engine serves: their spellings, and which profile serves a shape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svit_deploy.errors import UsageError
from svit_deploy.model.config import BatchRange
from svit_deploy.model.profiles import (
    Profile,
    choose_profile,
    parse_batches,
    shape_profiles,
    whole_range,
)
from svit_deploy.model.sizes import SizeRange

sizes = st.integers(1, 4096)


def test_batch_buckets():
    buckets = parse_batches("1,2:4:8,9:32:32")
    assert buckets == (BatchRange(1, 1, 1), BatchRange(2, 4, 8), BatchRange(9, 32, 32))
    assert whole_range(buckets) == BatchRange(1, 1, 32)
    assert SizeRange.single((224, 320)).profile(buckets[1]) == Profile(
        (2, 3, 224, 320), (4, 3, 224, 320), (8, 3, 224, 320)
    )


def test_the_shapes_of_trtexec():
    low, typical, high = ["images:1x3x224x224"] * 2, ["images:1x3x224x224", "8x3x224x224"], None
    high = ["images:4x3x224x224", "images:32x3x224x224"]
    first, second = shape_profiles(low, typical, high)
    assert first == Profile((1, 3, 224, 224), (1, 3, 224, 224), (4, 3, 224, 224))
    assert second.opt == (8, 3, 224, 224)
    assert shape_profiles([], [], []) == ()


@given(st.tuples(sizes, sizes, sizes))
def test_any_shape_is_read_as_written(shape):
    batch, height, width = shape
    text = [f"images:{batch}x3x{height}x{width}"]
    (profile,) = shape_profiles(text, text, text)
    assert profile.min == profile.max == (batch, 3, height, width)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        ("input:1x3x224x224", "images:1x3x224x224", "an input 'input', the model's is 'images'"),
        ("images:1x3x224", "images:1x3x224x224", "not a shape of four sizes"),
        ("images:1x3x224x-1", "images:1x3x224x224", "not a shape of four sizes"),
        ("images:0x3x224x224", "images:1x3x224x224", "out of range"),
        ("images:1x1x224x224", "images:1x1x224x224", "has 1 channels"),
        ("images:8x3x224x224", "images:4x3x224x224", "out of order"),
        ("images:1x3x9999x224", "images:1x3x9999x224", "out of range"),
        ("images:999999999x3x1x1", "images:999999999x3x1x1", "out of range"),
    ],
)
def test_shapes_that_make_no_profile(low, high, words):
    with pytest.raises(UsageError, match=words):
        shape_profiles([low], [low], [high])


def test_options_given_unequally_often():
    with pytest.raises(UsageError, match="1 --min-shapes, 0 --opt-shapes and 1 --max-shapes"):
        shape_profiles(["1x3x8x8"], [], ["1x3x8x8"])


def test_the_profile_of_nearest_typical_shape_is_chosen():
    wide = Profile((1, 3, 8, 8), (1, 3, 8, 8), (32, 3, 8, 8))
    large = Profile((8, 3, 8, 8), (32, 3, 8, 8), (32, 3, 8, 8))
    assert choose_profile([wide, large], (1, 3, 8, 8)) == 0
    assert choose_profile([wide, large], (10, 3, 8, 8)) == 0
    assert choose_profile([wide, large], (30, 3, 8, 8)) == 1
    assert choose_profile([wide, large], (33, 3, 8, 8)) is None
    assert choose_profile([wide, large], (1, 3, 8, 9)) is None
    assert choose_profile([wide, large], (1, 3, 8)) is None
