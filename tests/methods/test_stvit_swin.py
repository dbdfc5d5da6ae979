"""STViT on Swin against an independent implementation of its definition.

Window by window and head by head, in float64 NumPy, with nothing of the package but the weights.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.export.pipeline import export_model
from svit_deploy.export.settings import ExportSettings
from svit_deploy.images.sets import synthetic_images
from svit_deploy.model.arch import Arch
from svit_deploy.model.model import Model
from svit_deploy.verify.expected import LiveReference
from svit_deploy.verify.run import verify_against
from svit_deploy.verify.settings import VerifySettings
from tests.methods.conftest import random_tensors
from tests.methods.test_definitions import Plain
from tests.told import build_told

DEPTHS, WIDTH, HEADS, START = (2, 1, 6, 2), 12, 3, 4
"""Of the third stage, one block stands in front of the two that make semantic tokens."""


class PlainSwin(Plain):
    eps = 1e-5

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.settings = model.config.settings

    def convolve(self, x: np.ndarray, name: str) -> np.ndarray:
        """3x3, stride 2, a batch norm and Hardswish, of `[C, side, side]`."""
        kernel, side = self.w[f"{name}.c.weight"], x.shape[1] // 2
        padded, y = np.pad(x, ((0, 0), (1, 1), (1, 1))), np.zeros((len(kernel), side, side))
        for i, j in np.ndindex(3, 3):
            part = padded[:, i : i + 2 * side : 2, j : j + 2 * side : 2]
            y += np.tensordot(kernel[:, :, i, j], part, 1)
        mean, var, weight, bias = (
            self.w[f"{name}.bn.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        y = (y - mean) / np.sqrt(var + 1e-5) * weight + bias
        return y * np.clip(y + 3, 0, 6) / 6

    def attend(
        self, parts: tuple[np.ndarray, ...], name: str, heads: int, bias: np.ndarray | None = None
    ) -> np.ndarray:
        """Of queries, keys and values; a bias `[H, T, K]`."""
        mixed = []
        for head, (q, k, v) in enumerate(zip(*(np.split(t, heads, 1) for t in parts), strict=True)):
            score = q @ k.T / math.sqrt(q.shape[1]) + (0 if bias is None else bias[head])
            score = np.exp(score)
            mixed.append(score / score.sum(1, keepdims=True) @ v)
        return self.linear(np.concatenate(mixed, 1), f"{name}.attn.proj")

    def bias(self, name: str, places: np.ndarray) -> np.ndarray | None:
        """Of rows and columns `[T, 2]`, by how far tokens are apart."""
        table = self.w.get(f"{name}.attn.relative_position_bias_table")
        if table is None:
            return None
        side = math.isqrt(len(table))
        found = np.zeros((table.shape[1], len(places), len(places)))
        for i, j in np.ndindex(len(places), len(places)):
            down, across = places[i] - places[j] + side // 2
            found[:, i, j] = table[down * side + across]
        return found

    def swin(self, x: np.ndarray, name: str, heads: int, shift: int) -> np.ndarray:
        side, mixed = len(x), np.zeros_like(x)
        normed = self.norm(x, f"{name}.norm1")
        places = np.stack(np.divmod(np.arange(49), 7), 1)
        bias = self.bias(name, places)
        for top, left in np.ndindex(side // 7, side // 7):
            moved = places + np.array([7 * top + shift, 7 * left + shift])
            apart = (moved >= side) @ (2, 1)
            rows, columns = (moved % side).T
            hidden = np.where(apart[:, None] == apart, 0, -100)
            qkv = np.split(self.linear(normed[rows, columns], f"{name}.attn.qkv"), 3, 1)
            mixed[rows, columns] = self.attend(tuple(qkv), name, heads, bias + hidden)
        return self.mlp(x + mixed, name)

    def mlp(self, x: np.ndarray, name: str) -> np.ndarray:
        return x + self.w.get(f"{name}.layer_scale_2", 1) * (super().mlp(x, name) - x)

    def cross(
        self, x: np.ndarray, at: np.ndarray, name: str, heads: int, places: np.ndarray | None = None
    ) -> np.ndarray:
        """What rows see of others."""
        query = self.linear(self.norm(x, f"{name}.norm1"), f"{name}.attn.q")
        keys = np.split(self.linear(self.norm(at, f"{name}.norm1"), f"{name}.attn.kv"), 2, 1)
        bias = None if places is None else self.bias(name, places)
        found = self.attend((query, *keys), name, heads, bias)
        return self.w.get(f"{name}.layer_scale_1", 1) * found

    def first(self, x: np.ndarray, name: str, heads: int, sample: int) -> np.ndarray:
        """Semantic tokens `[2 * sample, 2 * sample, C]` of the map `[14, 14, C]`."""
        s = np.zeros((2 * sample, 2 * sample, x.shape[2]))
        spans = [(i * 7 // sample, math.ceil((i + 1) * 7 / sample)) for i in range(sample)]
        for a, b in np.ndindex(2, 2):
            window = x[7 * a : 7 * a + 7, 7 * b : 7 * b + 7]
            cells = [window[i:j, k:m] for i, j in spans for k, m in spans]
            pooled = np.stack([cell.max((0, 1)) for cell in cells])
            if self.settings.pool_places:
                pooled = self.learnt(cells, sample)
            keys = x[4 * a : 4 * a + 10, 4 * b : 4 * b + 10].reshape(100, -1)
            if self.settings.pooled_keys:
                keys = np.concatenate([keys, pooled])
            found = self.cross(pooled, keys, name, heads)
            found = found + pooled if self.settings.shortcut else found
            own = found.reshape(sample, sample, -1)
            s[sample * a : sample * (a + 1), sample * b : sample * (b + 1)] = own
        return self.mlp(s, name)

    def learnt(self, cells: list[np.ndarray], sample: int) -> np.ndarray:
        """Means of cells `[h, w, C]` of a window, weighted by what two networks make of them."""

        def network(x: np.ndarray, name: str) -> np.ndarray:
            name = f"semantic_pool.{name}"
            rows = self.depthwise(x.transpose(2, 0, 1), f"{name}.conv").transpose(1, 2, 0)
            h = self.norm(rows.reshape(-1, x.shape[2]), f"{name}.norm")
            return self.linear(0.5 * h * (1 + np.vectorize(math.erf)(h / 2**0.5)), f"{name}.linear")

        def mean(cell: np.ndarray, scores: np.ndarray) -> np.ndarray:
            shares = np.exp(scores) / np.exp(scores).sum()
            return shares @ cell.reshape(len(shares), -1)

        scores = [network(cell, "intra")[:, 0] for cell in cells]
        first = np.stack([mean(*pair) for pair in zip(cells, scores, strict=True)])
        offsets = network(first.reshape(sample, sample, -1), "inter")
        moved = zip(cells, np.stack(scores) + offsets, strict=True)
        return np.stack([mean(*pair) for pair in moved])

    def inside(self, s: np.ndarray, name: str, heads: int, side: int) -> np.ndarray:
        """Semantic tokens look at those of their square."""
        s, (rows, columns) = s.copy(), np.divmod(np.arange(side**2), side)
        before = s.copy()
        for top in range(0, len(s), side):
            for left in range(0, len(s), side):
                own = before[rows + top, columns + left]
                places = np.stack([rows, columns], 1)
                s[rows + top, columns + left] += self.cross(own, own, name, heads, places)
        return self.mlp(s, name)

    def merge(self, x: np.ndarray, name: str) -> np.ndarray:
        corners = [x[i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
        normed = self.norm(np.concatenate(corners, 2), f"{name}.norm")
        return normed @ self.w[f"{name}.reduction.weight"].T

    def widen(self, s: np.ndarray) -> np.ndarray:
        if self.settings.widen_norm:
            s = self.norm(s, "layers.2.widen_norm")
        return self.linear(s, "layers.2.widen")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        x = image.astype(np.float64)
        for part in (0, 2):
            x = self.convolve(x, f"patch_embed.proj.{part}")
        x, number = x.transpose(1, 2, 0), 0
        learnt = self.w["semantic_tokens"][0]
        sample = math.isqrt(len(learnt)) // 2
        turn = self.settings.local_first
        for stage, depth in enumerate(DEPTHS):
            if stage in (1, 2):
                x = self.merge(x, f"layers.{stage - 1}.downsample")
            if stage == 3:
                x, turn = self.widen(x), self.settings.local_first
            heads = HEADS << stage
            for block in range(depth):
                name = f"layers.{stage}.blocks.{block}"
                if number < START:
                    shift = 3 if block % 2 and len(x) > 7 else 0
                    x = self.swin(x, name, heads, shift)
                elif number == START:
                    image, x = x.reshape(196, -1), self.first(x, name, heads, sample)
                elif number == START + 1:
                    s = x.reshape(len(learnt), -1)
                    t = s + learnt
                    keys = np.concatenate([s, image])
                    found = self.cross(t, keys, name, heads)
                    s = (t if self.settings.keep_learnt else s) + found
                    x = self.mlp(s, name).reshape(x.shape)
                else:
                    local = turn and (stage == 2 or self.settings.last_local)
                    x, turn = self.inside(x, name, heads, sample if local else 2 * sample), not turn
                number += 1
        mean = self.norm(x, "norm").mean((0, 1))
        return self.linear(mean, "head")


NAMES = ("shortcut", "pooled_keys", "keep_learnt", "local_first", "last_local")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("semantic", "choices", "weights"),
    [
        (36, (True, True, False, True, False), {}),
        (16, (False, True, True, False, True), {"widen_bias": False, "relative_pos": True}),
        (36, (False, False, False, False, False), {"pool_places": 9}),
        (64, (True, False, False, True, True), {"layer_scale": False, "widen_norm": True}),
    ],
)
def test_it_is_as_defined(tmp_path, semantic, choices, weights):
    """What is open of it, one way and another."""
    settings = {"depths": DEPTHS, "semantic": semantic, "generate_at": START, **weights}
    size = (224, 224)
    arch = Arch("stvit_swin", HEADS, WIDTH, sum(DEPTHS), 4, size, num_classes=5, settings=settings)
    told = dict(zip(NAMES, map(str, choices), strict=True))
    model = build_told(random_tensors(arch, seed=3), told)
    found = {name: getattr(model.config.settings, name) for name in settings}
    assert found == settings
    images = synthetic_images(2, size)
    bundle = export_model(model, tmp_path / "bundle", ExportSettings(calibration=images))
    report = verify_against(bundle, LiveReference(bundle, model), VerifySettings(threads=1))
    assert report.passed, report.verdict
    inputs = images.inputs(model.config.preprocess, size)
    with OnnxRuntimeEngine(bundle.model_path, threads=1) as engine:
        logits = engine.run({"images": inputs})["logits"]
    plain = PlainSwin(model)
    for image, actual in zip(inputs, logits, strict=True):
        np.testing.assert_allclose(actual, plain(image), rtol=0, atol=2e-5)
