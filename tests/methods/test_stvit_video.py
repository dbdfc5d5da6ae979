"""STViT on Video Swin: what of each frame, and what of several, its blocks see."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from svit_deploy.backbones.rules import drive, keep_all
from svit_deploy.errors import InputError
from svit_deploy.loading.layout import to_official
from svit_deploy.loading.load import build_model
from svit_deploy.methods.families import FAMILIES
from svit_deploy.methods.semantic.graph import raster_order
from svit_deploy.methods.semantic.reference import by_window
from svit_deploy.methods.semantic.sampling import in_windows
from svit_deploy.methods.stvit import reference as module
from svit_deploy.tasks import TASKS
from tests.methods.test_stvit_swin import PlainSwin
from tests.small_models import small_model
from tests.told import build_told

VIDEO = TASKS["video"]
STAGES = ("block_2.out", "block_3.out", "block_4.out", "block_5.out", "block_6.out")
"""The last of image tokens, the two that make semantic ones, one of windows, one of frames."""


def seen(video, **settings):
    """What the blocks of a small model give of a clip, frame by frame `[D, tokens, C]`."""
    model = small_model("stvit_video", "video")
    config = replace(model.config, settings=replace(model.config.settings, **settings))
    family, found = FAMILIES["stvit_video"], {}

    def see(name, value):
        found[name] = value.reshape(2, -1, value.shape[-1]).numpy()
        return value

    reference = family.backbone.reference()(
        replace(model, config=config), family.method, family.eps
    )
    with torch.no_grad():
        drive(reference.forward(torch.from_numpy(video)[None], see), keep_all)
    return {name: found[name] for name in STAGES}


def test_frames_see_each_other_in_windows_of_time_alone(monkeypatch):
    """Image tokens of one frame are changed behind the last block of image tokens."""
    video = np.random.default_rng(0).standard_normal((3, 4, 224, 224), np.float32)
    begin = module.begin

    def other_frame(backbone, image, *rest, **how):
        return begin(backbone, torch.cat([image[:1], image[1:].roll(1, -1)]), *rest, **how)

    for span, apart in ((1, False), (2, True)):
        plain = seen(video, time_window=span)
        monkeypatch.setattr(module, "begin", other_frame)
        moved = seen(video, time_window=span)
        monkeypatch.undo()
        changed = [np.abs(moved[name] - plain[name]).max(axis=(1, 2)) > 1e-6 for name in STAGES]
        assert [frames.tolist() for frames in changed] == [
            [False, False],
            [False, True],
            [False, True],
            [apart, True],
            [apart, True],
        ]


@pytest.mark.parametrize("span", [1, 2])
def test_blocks_of_semantic_tokens_are_as_defined(span):
    """Those of Swin's own definition, of each frame; those inside a window of frames together."""
    video = np.random.default_rng(0).standard_normal((3, 4, 224, 224), np.float32)
    stages = seen(video, time_window=span)
    plain, learnt = PlainSwin(small_model("stvit_video", "video")), 36
    heads, names = 12, [f"layers.2.blocks.{block}" for block in (1, 2, 3)]
    images = [x.astype(np.float64) for x in stages["block_2.out"]]
    s = [plain.first(x.reshape(14, 14, -1), names[0], heads, 3) for x in images]
    maps = [np.stack(s)]
    added = plain.w["semantic_tokens"][0]
    for d, image in enumerate(images):
        own = s[d].reshape(learnt, -1)
        found = plain.cross(own + added, np.concatenate([own, image]), names[1], heads)
        s[d] = plain.mlp(own + found, names[1]).reshape(6, 6, -1)
    maps.append(np.stack(s))
    for first, top, left in itertools.product(range(0, 2, span), (0, 3), (0, 3)):
        place = (slice(first, first + span), slice(top, top + 3), slice(left, left + 3))
        own = maps[-1][place].reshape(span * 9, -1)
        moved = plain.mlp(own + plain.cross(own, own, names[2], heads), names[2])
        for d, rows in zip(range(first, first + span), np.split(moved, span), strict=True):
            s[d] = s[d].copy()
            s[d][place[1:]] = rows.reshape(3, 3, -1)
    maps.append(np.stack(s))
    last = [plain.inside(plain.widen(x), "layers.3.blocks.0", 2 * heads, 6) for x in s]
    maps.append(np.stack(last))
    for name, wanted in zip(STAGES[1:], maps, strict=True):
        wanted = wanted.reshape(2, learnt, -1)
        np.testing.assert_allclose(stages[name], wanted, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("maps", [1, 2, 8])
def test_windows_of_several_maps(maps):
    sampling = in_windows(3)
    places = [
        [
            36 * m + 6 * (3 * top + row) + 3 * left + column
            for m, row, column in itertools.product(range(maps), range(3), range(3))
        ]
        for top, left in itertools.product(range(2), range(2))
    ]
    assert raster_order(sampling, maps).reshape(4, -1).tolist() == places
    s = torch.arange(2 * maps * 36 * 5.0).reshape(2 * maps, 36, 5)
    found = by_window(s, sampling, maps=maps)
    first = s[:maps].reshape(-1, 5)
    assert all(torch.equal(found[i], first[place]) for i, place in enumerate(places))
    assert torch.equal(by_window(found, sampling, back=True, maps=maps), s)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"time_window": "0"}, "time_window is 0, and 4 frames have 2 in patches"),
        ({"frames": "6", "time_window": "2"}, "time_window is 2, and 6 frames have 3 in patches"),
        ({"image_size": "256"}, "is defined for images of 224x224, not 256x256"),
        ({"generate_at": "2"}, "generate_at is 2, and the weights tell 3"),
    ],
)
def test_what_it_cannot_have(settings, words):
    weights = to_official(small_model("stvit_video", "video").weights, "stvit_video", VIDEO)
    told = {"frames": "4", "image_size": "224", **settings}
    with pytest.raises(InputError, match=words):
        build_told(weights, told, "video")


def test_a_missing_tensor_is_named():
    weights = to_official(small_model("stvit_video", "video").weights, "stvit_video", VIDEO)
    del weights["backbone.layers.2.widen.weight"]
    with pytest.raises(InputError, match=r"1 missing \(layers\.2\.widen\.weight\)"):
        build_model(weights, task="video", overrides={"frames": "4"})
