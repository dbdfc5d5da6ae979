"""Methods that remove tokens inside a ViT-Adapter, against an implementation token by token.

There is no public code of them. Here a token is an entry of a dictionary, and it leaves by being
taken out; blocks and selections are float64 NumPy with nothing of the package but the weights.
Injectors and extractors are those of the reference, which the official code's goldens hold.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from svit_deploy.backbones.adapter.reference import AdapterReference
from svit_deploy.errors import InputError, UsageError
from svit_deploy.methods.families import FAMILIES, family_of
from svit_deploy.model.model import Model
from tests.backbones.adapter.running import STRIDES, assert_same_maps, engine_of, reference
from tests.methods.test_definitions import Plain
from tests.small_models import small_model

Key = int | str
"""Of a token: its place in the map, or the name of one that has none."""


class PlainTokens(Plain):
    """One image through a ViT-Adapter."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.config, self.settings = model.config, model.config.settings
        family = family_of(model.config)
        self.adapter = AdapterReference(model, family.method, family.eps)

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        adapter, pixels = self.adapter, torch.from_numpy(image[None])
        grid = (image.shape[1] // 16, image.shape[2] // 16)
        finest, c = adapter.pyramid_tokens(pixels)
        rows = adapter.patch_tokens(pixels, grid)[0].double().numpy()
        first = [] if not self.config.class_token else ["class"]
        self.patches = len(rows) - len(first)
        self.there: dict[Key, np.ndarray] = dict(
            zip([*first, *range(self.patches)], rows, strict=True)
        )
        self.left_behind = np.zeros((self.patches, rows.shape[1]))
        first_block = 0
        for k, blocks in enumerate(self.settings.interaction_blocks):
            name = f"interactions.{k}"
            self.inject(adapter.inject(self.map(), c, grid, f"{name}.injector"))
            for block in range(first_block, first_block + blocks):
                getattr(self, self.config.family.removesuffix("_adapter"))(block)
            first_block += blocks
            c = adapter.extract(c, self.map(), grid, f"{name}.extractor")
        for e in range(self.config.backbone.extra_extractors):
            c = adapter.extract(c, self.map(), grid, f"{name}.extra_extractors.{e}")
        maps = adapter.feature_maps(finest, c, self.map(), grid)
        return {name: found.numpy() for name, found in zip(STRIDES, maps, strict=True)}

    def map(self) -> torch.Tensor:
        rows = [self.there.get(place, self.left_behind[place]) for place in range(self.patches)]
        return torch.from_numpy(np.stack(rows)[None]).float()

    def inject(self, rows: torch.Tensor) -> None:
        for place, row in enumerate(rows[0].double().numpy()):
            if place in self.there:
                self.there[place] = row
            elif self.settings.preserve or self.settings.inject_removed:
                self.left_behind[place] = row

    def remove(self, keys: set[Key]) -> None:
        for key in keys:
            row = self.there.pop(key)
            if not isinstance(key, str):
                self.left_behind[key] = row if self.settings.preserve else 0

    @property
    def ranked(self) -> list[Key]:
        return [key for key in self.there if key != "class"]

    def attend(self, block: int, keys: list[Key]) -> np.ndarray:
        """Adds what these tokens attend to, of all that are there; returns the weights."""
        everyone = np.stack(list(self.there.values()))
        x = np.stack([self.there[key] for key in keys])
        mixed, weights = self.attention(x, everyone, f"blocks.{block}")
        self.there |= zip(keys, x + mixed, strict=True)
        return weights

    def feed_forward(self, block: int) -> None:
        rows = self.mlp(np.stack(list(self.there.values())), f"blocks.{block}")
        self.there = dict(zip(self.there, rows, strict=True))

    def dynamicvit(self, block: int) -> None:
        if block in self.settings.prune_blocks:
            stage = self.settings.prune_blocks.index(block)
            score = self.predict(np.stack([self.there[key] for key in self.ranked]), stage)
            count = int(self.patches * self.settings.base_rate[stage])
            order = np.argsort(-score, kind="stable")
            self.remove({self.ranked[i] for i in order[count:]})
        self.attend(block, list(self.there))
        self.feed_forward(block)

    def predict(self, x: np.ndarray, stage: int) -> np.ndarray:
        name = f"predictors.{stage}"

        def gelu(h: np.ndarray) -> np.ndarray:
            return 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))

        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x * self.w[f"{name}.norm.weight"] + self.w[f"{name}.norm.bias"]
        x = gelu(self.linear(x, f"{name}.fc0"))
        own, shared = np.split(x, 2, 1)
        x = np.concatenate([own, np.broadcast_to(shared.mean(0), shared.shape)], 1)
        x = gelu(self.linear(gelu(self.linear(x, f"{name}.fc1")), f"{name}.fc2"))
        keep, prune = self.linear(x, f"{name}.fc3").T
        return keep - prune

    def evit(self, block: int) -> None:
        weights = self.attend(block, list(self.there))
        if block in self.settings.prune_blocks:
            ranked, score = self.ranked, weights[:, 0, 1:].mean(0)
            count = math.ceil(self.settings.keep_rate * len(ranked))
            gone = np.argsort(-score, kind="stable")[count:]
            fused = sum(score[i] * self.there[ranked[i]] for i in gone)
            self.remove({ranked[i] for i in gone})
            if self.settings.fuse:
                self.there[f"fused in block {block}"] = fused
        self.feed_forward(block)

    def ats(self, block: int) -> None:
        if block not in self.settings.ats_blocks:
            self.attend(block, list(self.there))
            self.feed_forward(block)
            return
        name, ranked = f"blocks.{block}", self.ranked
        everyone = np.stack(list(self.there.values()))
        _, weights = self.attention(everyone, everyone, name)
        value = self.linear(self.norm(everyone, f"{name}.norm1"), f"{name}.attn.qkv")
        length = np.linalg.norm(np.split(value, 3, 1)[2], axis=1)
        score = (weights[:, 0].sum(0) * length)[1:]
        order = np.argsort(score, kind="stable")
        cdf = np.cumsum(score[order] / score.sum())
        cdf = (cdf - cdf[0]) / (cdf[-1] - cdf[0])
        count = int(self.patches * self.settings.sample_share)
        samples = np.linspace(cdf[cdf > 0][0], 1, count)
        kept = {ranked[order[int(np.argmin(np.abs(sample - cdf)))]] for sample in samples}
        before = dict(self.there)
        self.attend(block, ["class", *(key for key in ranked if key in kept)])
        for key in set(ranked) - kept:
            self.there[key] = before[key]
        self.remove(set(ranked) - kept)
        self.feed_forward(block)


CASES = [
    ("dynamicvit_adapter", "static", {}),
    ("dynamicvit_adapter", "static", {"preserve": True}),
    ("dynamicvit_adapter", "static", {"inject_removed": True}),
    ("evit_adapter", "static", {}),
    ("evit_adapter", "static", {"preserve": True, "fuse": False}),
    ("ats_adapter", "dynamic", {"sample_share": 0.7}),
    ("ats_adapter", "dynamic", {"preserve": True}),
    ("ats_adapter", "masked", {"inject_removed": True}),
]


def changed(family: str, **settings: Any) -> Model:
    model = small_model(family, "backbone")
    config = replace(model.config, settings=replace(model.config.settings, **settings))
    return replace(model, config=config)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "mode", "settings"), CASES)
def test_equals_the_implementation_token_by_token(family, mode, settings):
    """The graph with free sizes, and the reference."""
    model = changed(family, **settings)
    images = np.random.default_rng(2).standard_normal((2, 3, 96, 64), np.float32)
    plain = PlainTokens(model)
    alone = [plain.run(image) for image in images]
    expected = {name: np.concatenate([one[name] for one in alone]) for name in STRIDES}
    assert_same_maps(reference(model, images).stages, expected, atol=3e-5)
    with engine_of(model, mode) as engine:
        assert_same_maps(engine.run({"images": images}), expected, atol=3e-5)


def test_settings_that_contradict_each_other_are_refused():
    for family in ("dynamicvit_adapter", "evit_adapter", "ats_adapter"):
        config = changed(family, preserve=True, inject_removed=True).config
        with pytest.raises(InputError, match="with preserve there are none; leave one"):
            FAMILIES[family].check(config)


def test_sizes_of_which_some_leave_nothing_to_fuse_are_refused():
    model = changed("evit_adapter", keep_rate=0.97)
    with pytest.raises(UsageError, match="64x64, selection 0 leaves nothing to fuse"):
        engine_of(model, "static")
