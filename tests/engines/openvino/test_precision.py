"""What decides is computed in float32 when the rest is not."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy import names
from svit_deploy.engines.openvino.library import import_openvino
from svit_deploy.engines.openvino.precision import what_stays
from svit_deploy.engines.openvino.runner import OpenVinoEngine
from svit_deploy.graph.edit import FED, feed_values
from svit_deploy.graph.half_precision import view_in_float32

pytestmark = pytest.mark.slow


def products(bundle) -> dict[str, bool]:
    """The matrix products of a bundle's graph, and whether each decides."""
    model = import_openvino().Core().read_model(str(bundle.model_path))
    deciding = {op.get_friendly_name() for op in what_stays(model)}
    kinds = ("MatMul", "Convolution")
    ops = [op for op in model.get_ordered_ops() if op.get_type_name() in kinds]
    return {op.get_friendly_name(): op.get_friendly_name() in deciding for op in ops}


@pytest.mark.parametrize("mode", ["dynamic", "budget", "masked"])
def test_gates_and_head_decide_and_blocks_do_not(export, mode):
    found = products(export("svit_cls", mode))
    assert sum(found.values()) == 2 * 9 + 1
    for name, decides in found.items():
        assert decides == ("/gate/" in name or name.startswith("head/")), name


def test_of_a_dense_graph_the_head_decides(export):
    decides = [name for name, decides in products(export("deit", "dense")).items() if decides]
    assert len(decides) == 1 and decides[0].startswith("head/")


@pytest.mark.parametrize("exported", ["fp32", "half"])
def test_margins_are_those_of_float32(export, half, exported):
    """On the same tokens; the blocks beside them are rounded."""
    bundle = export("svit_cls", "masked", precision=half if exported == "half" else "fp32")
    config, stages, rng = bundle.config, bundle.stages, np.random.default_rng(0)
    model = view_in_float32(bundle.load_model(), stages)
    fed = feed_values(model, dict.fromkeys(stages, ("rows", "width"))).SerializeToString()

    def noise(*shape: int) -> np.ndarray:
        """Numbers that every precision has."""
        return np.round(rng.standard_normal(shape, np.float32) * 32) / 32

    feeds = {name + FED: noise(config.num_tokens, config.embed_dim) for name in stages}
    feeds[names.INPUT] = noise(1, 3, *config.image_size)
    found = []
    for precision in ("fp32", half):
        with OpenVinoEngine(fed, precision=precision, threads=1) as engine:
            found.append(engine.run(feeds))
    exact, rounded = found
    assert np.isposinf(exact["margin"]).any()
    for name in ("margin", "logits"):
        np.testing.assert_allclose(rounded[name], exact[name], rtol=1e-5, atol=1e-5)
    block = names.block_name(2)
    assert np.abs(rounded[block] - exact[block]).max() > 1e-4 or exported == "half"
