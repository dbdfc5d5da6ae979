"""SViT's variants inside a ViT-Adapter, against an implementation token by token."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.errors import InputError
from svit_deploy.loading.random import init_checkpoint
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.model import Model
from tests.backbones.adapter.running import STRIDES, assert_same_maps, engine_of, reference
from tests.backbones.adapter.test_removal import PlainTokens, changed

EPS = 1e-5  # of blocks and gates


class PlainGates(PlainTokens):
    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.kept: set[int] | None = None
        self.found: list[set[int]] = []

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPS)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def inject(self, rows) -> None:
        self.there = dict(enumerate(rows[0].double().numpy()))

    def svit_adapter_variant(self, block: int) -> None:
        kept = set(self.there)
        if block in self.config.gate_blocks:
            gate = self.config.gate_blocks.index(block)
            if self.settings.inherit_mask and self.kept is not None:
                kept = self.kept
            margin = {place: self.margin(gate, self.there[place]) for place in kept}
            if self.settings.fixed_ratio != (1.0,):
                count = int(self.patches * self.settings.fixed_ratio[gate])
                kept = set(sorted(kept, key=lambda place: -margin[place])[:count])
            else:
                kept = {place for place in kept if margin[place] > 0}
            self.kept = kept
            self.found.append(kept)
        elif self.settings.merge_gates and self.kept is not None:
            kept = self.kept
        everyone = self.there
        self.there = {place: row for place, row in everyone.items() if place in kept}
        self.attend(block, list(self.there))
        self.feed_forward(block)
        self.there = everyone | self.there

    def margin(self, gate: int, row: np.ndarray) -> float:
        name = f"gates.{gate}"
        hidden = self.linear(self.norm(row, f"{name}.norm"), f"{name}.mlp.fc1")
        hidden = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        keep, prune = self.linear(hidden, f"{name}.mlp.fc2")
        return keep - prune


CASES = [
    ("dynamic", {}),
    ("masked", {"fixed_ratio": (1.0,)}),
    ("dynamic", {"fixed_ratio": (1.0,), "merge_gates": False}),
    ("budget", {"inherit_mask": False}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "settings"), CASES)
def test_equals_the_implementation_token_by_token(mode, settings):
    model = changed("svit_adapter_variant", **settings)
    images = np.random.default_rng(2).standard_normal((2, 3, 96, 64), np.float32)
    expected = {name: [] for name in STRIDES}
    masks = np.zeros((2, 2, 24), bool)
    for i, image in enumerate(images):
        plain = PlainGates(model)
        for name, feature in plain.run(image).items():
            expected[name].append(feature[0])
        for gate, kept in enumerate(plain.found):
            masks[i, gate, sorted(kept)] = True
    assert 0 < masks.sum() < masks.size
    with engine_of(model, mode) as engine:
        outputs = engine.run({"images": images})
    assert (outputs["keep_mask"] == masks).all()
    if model.config.settings.inherit_mask:
        assert not (masks[:, 1] & ~masks[:, 0]).any()
    found = reference(model, images)
    assert (found.selected.keep_mask == masks).all()
    for maps in (outputs, found.stages):
        assert_same_maps(maps, {n: np.stack(v) for n, v in expected.items()}, atol=3e-5)


@pytest.mark.slow
def test_gates_that_inherit_are_set_to_their_targets(tmp_path):
    """Of all tokens, though a gate decides only on those that the one before kept."""
    arch = tmp_path / "tiny.yaml"
    arch.write_text(
        "family: svit_adapter_variant\nnum_heads: 3\nembed_dim: 24\ndepth: 4\ndeform_heads: 2\n"
        "gate_blocks: [1, 3]\nnum_classes: 5\ninteraction_blocks: [2, 2]\n"
        "inherit_mask: true\nmerge_gates: true\n"
    )
    made = init_checkpoint(str(arch), tmp_path / "tiny.safetensors", keep_ratio=(0.7, 0.4))
    assert made.keep_ratios == pytest.approx((0.7, 0.4), abs=0.01)


@pytest.mark.parametrize(
    ("ratios", "message"),
    [((0.5,) * 3, "3 values for 2 gates"), ((0.01, 0.5), "gate 0 .* keeps none of 24")],
)
def test_ratios_that_cannot_be(ratios, message):
    config = changed("svit_adapter_variant", fixed_ratio=ratios).config
    with pytest.raises(InputError, match=message):
        FAMILIES[config.family].check(replace(config, image_size=(96, 64)))
