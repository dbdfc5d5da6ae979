"""Methods without public weights against an independent implementation of their definition.

Token by token and image by image, in float64 NumPy, with nothing of the package but the weights.
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
from svit_deploy.loading.layout import to_official
from svit_deploy.loading.random import random_weights
from svit_deploy.methods.families import FAMILIES
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import TokenMode
from svit_deploy.model.model import Model
from svit_deploy.tasks import TASKS
from svit_deploy.verify.expected import LiveReference
from svit_deploy.verify.run import verify_against
from svit_deploy.verify.settings import VerifySettings
from tests.told import build_told

HEADS, PATCH, SIZE, DEPTH = 3, 8, 64, 7


def small(family: str, overrides: dict[str, str], **settings: int) -> Model:
    arch = Arch(family, HEADS, 24, DEPTH, PATCH, (SIZE, SIZE), num_classes=5, settings=settings)
    dims, task = FAMILIES[family].dims_from_arch(arch), TASKS["classify"]
    weights = to_official(random_weights(dims, task, np.random.default_rng(3)), dims.family, task)
    return build_told(weights, {"family": family, "num_heads": "3", **overrides})


class Plain:
    """One image through a Vision Transformer, written down once more."""

    eps, share = 1e-6, 1.0

    def __init__(self, model: Model) -> None:
        self.w = {name: array.astype(np.float64) for name, array in model.weights.items()}

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + self.eps)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def patches(self, image: np.ndarray) -> np.ndarray:
        side = SIZE // PATCH
        cut = image.astype(np.float64).reshape(3, side, PATCH, side, PATCH)
        rows = cut.transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
        kernel = self.w["patch_embed.proj.weight"].reshape(24, -1)
        return rows @ kernel.T + self.w["patch_embed.proj.bias"]

    def attention(self, x: np.ndarray, y: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Of rows x to rows y: the projected result, and the weights of each head."""
        return self.look(*(self.norm(rows, f"{name}.norm1") for rows in (x, y)), name)

    def look(self, x: np.ndarray, y: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The same of normed rows."""
        q = np.split(self.linear(x, f"{name}.attn.qkv"), 3, 1)[0]
        k, v = np.split(self.linear(y, f"{name}.attn.qkv"), 3, 1)[1:]
        mixed, weights = [], []
        for q_h, k_h, v_h in zip(*(np.split(t, HEADS, 1) for t in (q, k, v)), strict=True):
            score = np.exp(q_h @ k_h.T / math.sqrt(q_h.shape[1]))
            weights.append(score / score.sum(1, keepdims=True))
            mixed.append(weights[-1] @ v_h)
        return self.linear(np.concatenate(mixed, 1), f"{name}.attn.proj"), np.stack(weights)

    def mlp(self, x: np.ndarray, name: str) -> np.ndarray:
        h = self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        gelu = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        return x + self.share * self.linear(gelu, f"{name}.mlp.fc2")

    def logits(self, x: np.ndarray) -> np.ndarray:
        return self.linear(self.norm(x[:1], "norm"), "head")[0]

    def evit(
        self, image: np.ndarray, rate: float, blocks: tuple[int, ...], inside: bool, fused: bool
    ) -> np.ndarray:
        """With the fused token; `inside` the block, or behind it; `fused` in the head's view."""
        x = np.concatenate([self.w["cls_token"][0], self.patches(image)]) + self.w["pos_embed"][0]
        for block in range(DEPTH):
            name = f"blocks.{block}"
            mixed, weights = self.attention(x, x, name)
            x = x + self.share * mixed
            if not inside:
                x = self.mlp(x, name)
            if block in blocks:
                score = weights[:, 0, 1:].mean(0)
                order = sorted(range(len(score)), key=lambda j: -score[j])
                count = math.ceil(rate * len(score))
                rest = sum(score[j] * x[1 + j] for j in order[count:])
                x = np.stack([x[0], *(x[1 + j] for j in order[:count]), rest])
            if inside:
                x = self.mlp(x, name)
        return self.logits(x if fused else x[:-1])

    def mergence(self, image: np.ndarray, rate: float, blocks: tuple[int, ...]) -> np.ndarray:
        x = np.concatenate([self.w["cls_token"][0], self.patches(image)]) + self.w["pos_embed"][0]
        return self.merged(x, rate, blocks, 0)

    def merged(self, x: np.ndarray, rate: float, blocks: tuple[int, ...], start: int) -> np.ndarray:
        for block in range(start, DEPTH):
            name = f"blocks.{block}"
            mixed, weights = self.attention(x, x, name)
            x = x + self.share * mixed
            if block in blocks:
                score = weights[:, 0, 1:].mean(0)
                order = sorted(range(len(score)), key=lambda j: -score[j])
                kept = order[: math.ceil(rate * len(score))]
                sums = {i: score[i] * x[1 + i] for i in kept}
                totals = {i: score[i] for i in kept}
                for u in set(order) - set(kept):
                    cosines = [
                        x[1 + u] @ x[1 + i] / np.linalg.norm(x[1 + u]) / np.linalg.norm(x[1 + i])
                        for i in kept
                    ]
                    nearest = kept[int(np.argmax(cosines))]
                    sums[nearest] = sums[nearest] + score[u] * x[1 + u]
                    totals[nearest] += score[u]
                x = np.stack([x[0], *(sums[i] / totals[i] for i in kept)])
            x = self.mlp(x, name)
        return self.logits(x)

    def multiscale(
        self,
        image: np.ndarray,
        rate: float,
        blocks: tuple[int, ...],
        cheap: int,
        normed: bool,
        shares: tuple[float, ...],
    ) -> np.ndarray:
        """The start on two groups of tokens, then `mergence` from the first of `blocks` on."""
        side = SIZE // PATCH

        def shrink(x: np.ndarray) -> np.ndarray:
            cells = x[1:].reshape(side // 2, 2, side // 2, 2, -1).mean((1, 3))
            return np.concatenate([x[:1], cells.reshape(side**2 // 4, -1)])

        def widen(x: np.ndarray) -> np.ndarray:
            cells = x[1:].reshape(side // 2, side // 2, -1).repeat(2, 0).repeat(2, 1)
            return np.concatenate([x[:1], cells.reshape(side**2, -1)])

        patches = self.patches(image)
        high = np.concatenate([self.w["cls_token"][0], patches])
        low = np.concatenate([self.w["low_cls_token"][0], shrink(high)[1:]])
        high, low = high + self.w["pos_embed"][0], low + self.w["low_pos_embed"][0]
        for block in range(blocks[0]):
            name = f"blocks.{block}"
            if block < cheap:
                if normed:
                    small = shrink(self.norm(high, f"{name}.norm1"))
                else:
                    small = self.norm(shrink(high), f"{name}.norm1")
                high = high + self.share * widen(self.look(small, small, name)[0])
            else:
                high = high + self.share * self.attention(high, high, name)[0]
            high = self.mlp(high, name)
            low = self.mlp(low + self.share * self.attention(low, low, name)[0], name)
        x = widen(low)[1:].T.reshape(-1, side, side)
        gain = self.depthwise(self.depthwise(x, "lka.conv0"), "lka.conv_spatial", 3)
        gain = np.tensordot(self.w["lka.conv1.weight"][..., 0, 0], gain, 1)
        gain += self.w["lka.conv1.bias"][:, None, None]
        x = high[1:].T.reshape(x.shape) + x * gain
        x = x + self.depthwise(x, "peg.proj")
        token = shares[0] * high[:1] + shares[1] * low[:1]
        x = np.concatenate([token, x.reshape(len(x), -1).T])
        return self.merged(x, rate, blocks, blocks[0])

    def depthwise(self, x: np.ndarray, name: str, dilation: int = 1) -> np.ndarray:
        kernel, side = self.w[f"{name}.weight"][:, 0], x.shape[1]
        pad = kernel.shape[1] // 2 * dilation
        x, y = np.pad(x, ((0, 0), (pad, pad), (pad, pad))), np.zeros_like(x)
        for i, j in np.ndindex(*kernel.shape[1:]):
            a, b = i * dilation, j * dilation
            y += kernel[:, i, j, None, None] * x[:, a : a + side, b : b + side]
        return y + self.w[f"{name}.bias"][:, None, None]

    def stvit(
        self, image: np.ndarray, start: int, shortcut: bool, pooled_keys: bool, keep_learnt: bool
    ) -> np.ndarray:
        def added(s: np.ndarray, query: np.ndarray, keys: np.ndarray, block: int) -> np.ndarray:
            name = f"blocks.{block}"
            return self.mlp(s + self.share * self.attention(query, keys, name)[0], name)

        x = self.patches(image) + self.w["pos_embed"][0]
        for block in range(start):
            x = added(x, x, x, block)
        learnt = self.w["semantic_tokens"][0]
        side, grid = math.isqrt(len(learnt)), SIZE // PATCH
        raster = x.reshape(grid, grid, -1)
        spans = [(i * grid // side, math.ceil((i + 1) * grid / side)) for i in range(side)]
        pooled = np.stack([raster[a:b, c:d].max((0, 1)) for a, b in spans for c, d in spans])
        keys = np.concatenate([pooled, x]) if pooled_keys else x
        s = added(pooled if shortcut else 0 * pooled, pooled, keys, start)
        t = s + learnt
        s = added(t if keep_learnt else s, t, np.concatenate([s, x]), start + 1)
        for block in range(start + 2, DEPTH):
            s = added(s, s, s, block)
        return self.linear(self.norm(s, "norm").mean(0, keepdims=True), "head")[0]


class PlainLvVit(Plain):
    """The same with a stem, damped blocks and a second head."""

    eps, share = 1e-5, 1 / 2

    def convolve(self, x: np.ndarray, number: int, stride: int) -> np.ndarray:
        name, bn = f"patch_embed.conv{number}.weight", f"patch_embed.bn{number}"
        kernel, side = self.w[name], x.shape[1] // stride
        pad = kernel.shape[2] // 2
        x, y = np.pad(x, ((0, 0), (pad, pad), (pad, pad))), np.zeros((len(kernel), side, side))
        for i, j in np.ndindex(*kernel.shape[2:]):
            part = x[:, i : i + stride * side : stride, j : j + stride * side : stride]
            y += np.tensordot(kernel[:, :, i, j], part, 1)
        mean, var, weight, bias = (
            self.w[f"{bn}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return np.maximum((y - mean) / np.sqrt(var + 1e-5) * weight + bias, 0)

    def patches(self, image: np.ndarray) -> np.ndarray:
        x = image.astype(np.float64)
        for number, stride in ((1, 2), (2, 1), (3, 1)):
            x = self.convolve(x, number, stride)
        side, half = SIZE // PATCH, PATCH // 2
        cut = x.reshape(len(x), side, half, side, half)
        rows = cut.transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
        kernel = self.w["patch_embed.proj.weight"].reshape(24, -1)
        return rows @ kernel.T + self.w["patch_embed.proj.bias"]

    def logits(self, x: np.ndarray) -> np.ndarray:
        best = self.linear(self.norm(x[1:], "norm"), "aux_head").max(0)
        return super().logits(x) + best / 2


def check(model: Model, tmp_path, compute) -> None:
    """The graph, verified against the reference, and both against the definition."""
    images = synthetic_images(4, (SIZE, SIZE))
    settings = ExportSettings(tokens=TokenMode.STATIC, calibration=images)
    bundle = export_model(model, tmp_path / "bundle", settings)
    report = verify_against(bundle, LiveReference(bundle, model), VerifySettings(threads=1))
    assert report.passed, report.verdict
    inputs = images.inputs(model.config.preprocess, model.config.image_size)
    with OnnxRuntimeEngine(bundle.model_path, threads=1) as engine:
        logits = engine.run({"images": inputs})["logits"]
    for image, actual in zip(inputs, logits, strict=True):
        plain = (PlainLvVit if "patch_embed.bn1.bias" in model.weights else Plain)(model)
        np.testing.assert_allclose(actual, compute(plain, image), rtol=0, atol=2e-5)


@pytest.mark.parametrize("rate", [0.5, 0.7, 1.0])
def test_mergence(tmp_path, rate):
    model = small("mergence", {"keep_rate": str(rate), "prune_blocks": "1,3,5"})
    check(model, tmp_path, lambda plain, image: plain.mergence(image, rate, (1, 3, 5)))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["multiscale", "multiscale_lvvit"])
@pytest.mark.parametrize(
    ("cheap", "normed", "shares"), [(2, True, (1, 1)), (1, False, (0.5, 0.5)), (0, True, (1, 0))]
)
def test_multiscale(tmp_path, family, cheap, normed, shares):
    """What is open of it, one way and another."""
    given = {"keep_rate": "0.7", "prune_blocks": "2,4", "cheap_blocks": str(cheap)}
    given |= {"mean_of_normed": str(normed), "class_shares": ",".join(map(str, shares))}
    model = small(family, given | ({"skip_lam": "2"} if family.endswith("lvvit") else {}))
    options = cheap, normed, shares
    check(model, tmp_path, lambda plain, image: plain.multiscale(image, 0.7, (2, 4), *options))


@pytest.mark.slow
def test_mergence_on_lvvit(tmp_path):
    given = {"keep_rate": "0.7", "prune_blocks": "1,3,5", "skip_lam": "2"}
    model = small("mergence_lvvit", given)
    check(model, tmp_path, lambda plain, image: plain.mergence(image, 0.7, (1, 3, 5)))


@pytest.mark.slow
@pytest.mark.parametrize(("inside", "fused"), [(True, True), (True, False), (False, True)])
def test_evit_on_lvvit(tmp_path, inside, fused):
    """What is open of it, each way."""
    open_points = {"before_mlp": str(inside), "fused_in_max": str(fused)}
    given = {"keep_rate": "0.7", "fuse": "true", "prune_blocks": "1,3,5", "skip_lam": "2"}
    model, blocks = small("evit_lvvit", given | open_points), (1, 3, 5)
    check(model, tmp_path, lambda plain, image: plain.evit(image, 0.7, blocks, inside, fused))


@pytest.mark.parametrize("family", ["stvit", "stvit_lvvit"])
@pytest.mark.parametrize(
    ("semantic", "start", "choices"),
    [
        (16, 3, (True, False, False)),
        (9, 0, (False, False, False)),
        (25, 5, (True, True, False)),
        (64, 2, (True, False, True)),
    ],
)
def test_stvit(tmp_path, family, semantic, start, choices):
    """What is open of it, one way and another."""
    names = "shortcut", "pooled_keys", "keep_learnt"
    given = {"generate_at": str(start)} | dict(zip(names, map(str, choices), strict=True))
    given |= {"skip_lam": "2"} if family == "stvit_lvvit" else {}
    model = small(family, given, semantic=semantic)
    check(model, tmp_path, lambda plain, image: plain.stvit(image, start, *choices))
