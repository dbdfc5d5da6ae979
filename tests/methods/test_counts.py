"""What a published size costs, counted on shapes alone: no weight is made and nothing computed."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from numpy.lib.stride_tricks import as_strided
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from svit_deploy.backbones.tokens import GatedForward
from svit_deploy.loading.layout import expected_shapes, to_official
from svit_deploy.loading.load import build_model
from svit_deploy.loading.presets import PRESETS
from svit_deploy.methods.families import FAMILIES, family_of
from svit_deploy.tasks import TASKS

ATEN = torch.ops.aten


def norm_cost(x: Any, *_: Any, **__: Any) -> int:
    """Of a LayerNorm, five for each element; twice, as the counter counts multiply-adds."""
    return 2 * 5 * prod(x)


def batch_norm_cost(x: Any, *_: Any, **__: Any) -> int:
    return 2 * 2 * prod(x)


def multiply_adds(preset: str, **settings: Any) -> float:
    """Of one image, in 1e9, with norms, as the papers count them."""
    found = PRESETS[preset]
    arch, task = replace(found, settings={**found.settings, **settings}), TASKS["classify"]
    dims = FAMILIES[arch.family].dims_from_arch(arch)
    shapes, one = expected_shapes(dims, task), np.zeros(1, np.float32)
    weights = {name: as_strided(one, shape, [0] * len(shape)) for name, shape in shapes.items()}
    told = {"family": arch.family, "num_heads": str(arch.num_heads)}
    told |= {k: str(v) for k, v in arch.settings.items() if not isinstance(v, tuple)}
    model = build_model(to_official(weights, dims.family, task), overrides=told)
    config, family = model.config, family_of(model.config)
    reference = family.backbone.reference()(model, family.method, family.eps)
    counter = FlopCounterMode(
        display=False,
        custom_mapping={ATEN.native_layer_norm: norm_cost, ATEN.native_batch_norm: batch_norm_cost},
    )
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), counter:
        steps: GatedForward = reference.forward(
            torch.empty(1, 3, *config.image_size), lambda _, x: x
        )
        with pytest.raises(StopIteration) as ended:
            next(steps)
        family.head.reference(reference, ended.value.value[0])
    return counter.get_total_flops() / 2e9


SWIN = {
    "stvit_swin_t_4": 2.99,
    "stvit_swin_t": 3.43,
    "stvit_swin_t_16": 4.05,
    "stvit_swin_t_moved": 3.14,
    "stvit_swin_s_4": 5.94,
    "stvit_swin_s": 6.53,
    "stvit_swin_s_16": 7.36,
    "stvit_swin_s_moved": 5.95,
    "stvit_swin_b_4": 10.47,
    "stvit_swin_b": 11.51,
    "stvit_swin_b_16": 12.97,
    "stvit_swin_b_moved": 10.48,
}
"""The paper's table 2, but for 0.01 here and there."""
DEIT = {
    "stvit_t": {16: 0.53, 36: 0.60, 64: 0.71, 100: 0.86},
    "stvit_s": {16: 1.91, 36: 2.20, 64: 2.61, 100: 3.16},
    "stvit_b": {16: 7.27, 36: 8.41, 64: 10.01, 100: 12.09},
}
"""Its table 1, but that its B are those of a model with a class token in the first blocks."""
EACH = [(name, 0, count) for name, count in SWIN.items()]
EACH += [(name, tokens, count) for name, row in DEIT.items() for tokens, count in row.items()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(("name", "tokens", "count"), EACH)
def test_stvit_costs_what_its_paper_says(name, tokens, count):
    told = {"semantic": tokens} if tokens else {}
    assert multiply_adds(name, **told) == pytest.approx(count, abs=0.01)
