"""Backbones of detectors compute what the official code computes: graphs, and the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.backbones.adapter.running import (
    FREE,
    assert_same_maps,
    engine_of,
    reference,
    sizes_of,
)

pytestmark = pytest.mark.slow

SIZES = {
    "svit_adapter": ("96x128", "160x96"),
    "vit_adapter_dense": ("64x96",),
    "evovit_adapter": ("96x128", "160x64"),
    "vit_window_adapter": ("192x256", "256x64"),
    "swin_cascade": ("128x192", "224x96"),
    "stvitr_cascade": ("128x192", "224x96"),
}
MODES = [
    ("svit_adapter", "dynamic"),
    ("svit_adapter", "budget"),
    ("svit_adapter", "masked"),
    ("vit_adapter_dense", "dense"),
    ("vit_window_adapter", "dense"),
    ("swin_cascade", "dense"),
    ("stvitr_cascade", "static"),
    ("evovit_adapter", "static"),
]


def check(found: Any, size: str, outputs: dict[str, np.ndarray], images: slice) -> None:
    """Feature maps, and the decisions before them."""
    maps = found.features(size)
    assert len(maps) >= 3
    assert_same_maps(outputs, {name: value[images] for name, value in maps.items()})
    arrays, first = found.arrays, int(found.name == "evovit_adapter")
    if f"keep_masks_{size}" not in arrays:
        assert outputs.get("keep_mask", np.zeros((1, 0))).shape[1] == 0
        return
    keep = arrays[f"keep_masks_{size}"].transpose(1, 0, 2)[images]
    assert (outputs["keep_mask"][:, :, first:] == keep).all()
    assert outputs["keep_mask"][:, :, :first].all()
    if first:  # ranked by attention: margins are its logarithm
        margin = np.log(arrays[f"scores_{size}"])
        count = keep.sum(axis=2)[0, 0]
        order = arrays[f"order_{size}"].transpose(1, 0, 2)[images, :, :count]
        assert (np.sort(order) == np.nonzero(keep)[2].reshape(order.shape)).all()
    else:
        margin = arrays[f"gate_logits_{size}"]
    margin = margin.transpose(1, 0, 2)[images]
    np.testing.assert_allclose(outputs["margin"][:, :, first:], margin, rtol=0, atol=5e-5)


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_one_graph_runs_both_orientations(detection_golden, name, mode):
    """In batches, and an image alone."""
    found = detection_golden(name)
    with engine_of(found.backbone, mode, FREE) as engine:
        for size in reversed(SIZES[name]):
            images = found.arrays[f"input_{size}"]
            check(found, size, engine.run({"images": images}), slice(None))
        check(found, size, engine.run({"images": images[-1:]}), slice(-1, None))


@pytest.mark.parametrize(("name", "mode"), [case for case in MODES if case[1] != "masked"])
def test_a_baked_size_gives_the_same(detection_golden, name, mode):
    found, size = detection_golden(name), SIZES[name][0]
    images = found.arrays[f"input_{size}"]
    with engine_of(found.backbone, mode, sizes_of(size)) as engine:
        check(found, size, engine.run({"images": images}), slice(None))
        check(found, size, engine.run({"images": images[-1:]}), slice(-1, None))


@pytest.mark.parametrize(("name", "size"), [(n, size) for n, of in SIZES.items() for size in of])
def test_the_reference(detection_golden, name, size):
    found = detection_golden(name)
    result = reference(found.backbone, found.arrays[f"input_{size}"])
    selected = {"keep_mask": result.selected.keep_mask, "margin": result.selected.margin}
    check(found, size, result.stages | selected, slice(None))


def test_semantic_tokens_where_nothing_is_padded(detection_golden):
    """The official table hides all of the map then, which costs its scores three digits."""
    found = detection_golden("stvitr_cascade")
    image = found.arrays["input_224x224"]
    with engine_of(found.backbone, "static", FREE) as engine:
        outputs = engine.run({"images": image})
    stages = reference(found.backbone, image).stages
    for name, key in (("stride_16", "f3_224x224"), ("stride_32", "f4_224x224")):
        for maps in (outputs, stages):
            np.testing.assert_allclose(maps[name], found.arrays[key], rtol=0, atol=5e-5)


@pytest.mark.parametrize("size", ["128x192", "224x96"])
def test_semantic_tokens(detection_golden, size):
    """Of the unit's first and last blocks that have them."""
    found = detection_golden("stvitr_cascade")
    stages = reference(found.backbone, found.arrays[f"input_{size}"]).stages
    for name, key in (("block_5.out", "semantic_init"), ("block_8.out", "semantic_end")):
        expected = found.arrays[f"{key}_{size}"]
        actual = stages[name].reshape(expected.shape)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)
