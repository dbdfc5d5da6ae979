"""Pictures of token maps: counts and colours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from svit_deploy.images import overlay as pictures
from svit_deploy.images.overlay import overlay, survival_map, with_legend

DARKEST, BRIGHTEST = (0x44, 0x01, 0x54), (0xFD, 0xE7, 0x25)  # viridis(0), viridis(1)


@given(
    st.integers(1, 3), st.integers(0, 5), st.integers(0, 2), st.integers(1, 4), st.integers(1, 4)
)
def test_survival_map_counts_each_patch(n: int, gates: int, prefix: int, h: int, w: int) -> None:
    keep_mask = np.random.default_rng(n).random((n, gates, prefix + h * w)) < 0.5
    counts = survival_map(keep_mask, prefix, (h, w))
    assert counts.shape == (n, h, w)
    for i in range(n):
        for row in range(h):
            for column in range(w):
                token = prefix + row * w + column
                assert counts[i, row, column] == sum(keep_mask[i, g, token] for g in range(gates))


@pytest.mark.parametrize("shape", [(2, 3, 6), (2, 3, 8), (3, 7)])
def test_survival_map_refuses_another_number_of_tokens(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not fit 1 prefix tokens and 2x3 patches"):
        survival_map(np.ones(shape, bool), 1, (2, 3))


def test_overlay_is_half_picture_half_map() -> None:
    picture = np.full((224, 226, 3), 100, np.uint8)  # 226 is not a multiple of 3 patches
    result = overlay(picture, np.array([[0, 9, 0], [0, 0, 9]]), num_gates=9)
    assert result.dtype == np.uint8
    assert result.shape == (224, 226, 3)
    dark, bright = (np.add(100, colour) // 2 for colour in (DARKEST, BRIGHTEST))
    assert (result[0, 0] == dark).all()
    assert (result[111, 113] == bright).all()  # the middle of the upper row
    assert (result[112, 113] == dark).all()
    assert (result[223, 225] == bright).all()


def test_overlay_shows_the_picture_in_grey() -> None:
    picture = np.zeros((224, 224, 3), np.uint8)
    picture[:, :112] = (255, 0, 0)
    result = overlay(picture, np.zeros((1, 1)), num_gates=4).astype(int)
    difference = result[0, 0] - result[0, -1]
    assert difference.max() - difference.min() <= 1
    assert difference.min() > 30


@pytest.mark.parametrize(
    ("size", "shown"), [((32, 32), (224, 224)), ((30, 60), (240, 480)), ((224, 300), (224, 300))]
)
def test_overlay_enlarges_small_pictures(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert overlay(np.zeros((*size, 3), np.uint8), np.ones((2, 2)), 3).shape[:2] == shown


def test_colours_are_viridis() -> None:
    viridis = pytest.importorskip("matplotlib").colormaps["viridis"]
    anchors, values = np.linspace(0, 1, 11), np.linspace(0, 1, 256)
    assert np.abs(pictures._colours(anchors) - viridis(anchors)[:, :3] * 255).max() <= 1
    assert np.abs(pictures._colours(values) - viridis(values)[:, :3] * 255).max() < 15


def test_a_legend_has_room_beside_a_picture_of_one_pixel():
    drawn = with_legend(Image.new("RGB", (1, 1)), 9)
    assert drawn.width >= 200
    swatches = np.asarray(drawn)[22]  # through the row of swatches, above their numbers
    assert len(np.unique(swatches, axis=0)) >= 10
