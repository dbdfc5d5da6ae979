"""Image sizes that one graph runs: what is inside a range, and its text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svit_deploy.errors import InputError, UsageError
from svit_deploy.model.config import BatchRange
from svit_deploy.model.profiles import Profile
from svit_deploy.model.sizes import SizeRange


@st.composite
def ranges(draw: st.DrawFn) -> SizeRange:
    """Any range that can be typed."""
    step = draw(st.integers(1, 32))
    sides = st.lists(st.integers(1, 4096 // step), min_size=3, max_size=3)
    heights, widths = (sorted(side * step for side in draw(sides)) for _ in range(2))
    return SizeRange(*zip(heights, widths, strict=True), step)


@given(ranges())
def test_a_range_survives_its_text(sizes: SizeRange) -> None:
    assert SizeRange.parse(str(sizes), sizes.step) == sizes
    assert sizes.fixed == (":" not in str(sizes))


@given(ranges())
def test_its_own_sizes_are_inside(sizes: SizeRange) -> None:
    for size in (sizes.min, sizes.opt, sizes.max):
        sizes.check(size)
    assert SizeRange.single(sizes.opt, sizes.step).fixed


@given(ranges(), st.integers(1, 5000), st.integers(1, 5000))
def test_a_size_is_inside_or_refused(sizes: SizeRange, height: int, width: int) -> None:
    sides = zip((height, width), sizes.min, sizes.max, strict=True)
    fits = all(low <= side <= high and side % sizes.step == 0 for side, low, high in sides)
    try:
        sizes.check((height, width))
    except InputError as error:
        assert not fits
        assert f"{height}x{width} pixels" in error.message and error.fix
    else:
        assert fits


@given(ranges(), st.integers(1, 4), st.integers(0, 4), st.integers(0, 4))
def test_a_profile_has_the_sizes_of_its_range(
    sizes: SizeRange, low: int, more: int, most: int
) -> None:
    batch = BatchRange(low, low + more, low + more + most)
    profile = sizes.profile(batch)
    assert [shape[2:] for shape in (profile.min, profile.opt, profile.max)] == [
        sizes.min,
        sizes.opt,
        sizes.max,
    ]
    assert profile.covers((batch.max, 3, *sizes.min))
    sizes.check_profiles([profile])


def test_one_size_is_a_range_of_itself() -> None:
    sizes = SizeRange.parse("96x128", 32)
    assert (
        sizes == SizeRange.single((96, 128), 32) == SizeRange((96, 128), (96, 128), (96, 128), 32)
    )
    assert SizeRange.parse("224") == SizeRange.single((224, 224))
    assert str(sizes) == "96x128"
    assert str(SizeRange.parse("64x96:96x128:160x128", 32)) == "64x96:96x128:160x128"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("800x1210", "multiple of 32; use, for example, 800x1216"),
        ("64x64:32x64:96x96", "out of order"),
        ("64x64:96x96:96x64", "out of order"),
        ("64:96", "not a size or a range"),
        ("64:big:96", "not a size"),
        ("5", "5x5 is not a multiple of 32; use, for example, 32x32"),
        ("0", "outside 1 to 4096"),
        ("", "not a size"),
    ],
)
def test_bad_sizes_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SizeRange.parse(text, 32)


def test_sizes_outside_the_range_are_refused() -> None:
    sizes = SizeRange.parse("64x96:96x128:160x128", 32)
    sizes.check((160, 96))
    with pytest.raises(InputError, match=r"90x128 pixels is not a multiple of 32"):
        sizes.check((90, 128))
    with pytest.raises(InputError, match=r"32 high.*exported for 64 to 160"):
        sizes.check((32, 96))
    with pytest.raises(InputError, match="160 wide"):
        sizes.check((96, 160))


def test_profiles_of_other_sizes_are_refused() -> None:
    fixed, free = SizeRange.single((224, 320)), SizeRange.parse("64x96:96x128:160x128", 32)
    other = Profile((1, 3, 224, 224), (1, 3, 224, 224), (4, 3, 224, 224))
    with pytest.raises(UsageError, match=r"another image size than the model's 224x320.*3x224x320"):
        fixed.check_profiles([fixed.profile(BatchRange(1, 1, 4)), other])
    with pytest.raises(UsageError, match=r"1x3x224x224 to 4x3x224x224: .* 224 high"):
        free.check_profiles([other])
    with pytest.raises(UsageError, match="is not a multiple of 32"):
        free.check_profiles([Profile((1, 3, 64, 100), (1, 3, 96, 128), (1, 3, 96, 128))])
