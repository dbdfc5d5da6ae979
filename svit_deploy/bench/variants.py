"""What-if engines of a bundle: all tokens kept, or a given share of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from svit_deploy import names
from svit_deploy.bench.settings import KEEP, WORST_CASE
from svit_deploy.bundle import Bundle
from svit_deploy.engines.base import Engine, TensorSpec, Wrapped
from svit_deploy.graph.edit import add_outputs, force_values, set_scalars

SWEEP = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)


def variants(
    bundle: Bundle, load: Callable[[Path | bytes], Engine], tokens: int
) -> Mapping[str, Callable[[], Engine]]:
    """A bundle's graph with all tokens kept, and with forced shares of them.

    Args:
        load: makes an engine of an ONNX file, or of its bytes.
        tokens: of each image.
    """
    gates = range(bundle.config.num_gates)

    def worst_case() -> Engine:
        lowest = float(np.finfo(np.float32).min)
        thresholds = {names.threshold_name(gate): lowest for gate in gates}
        return load(set_scalars(bundle.load_model(), thresholds).SerializeToString())

    def kept(share: float) -> Callable[[], Engine]:
        def make() -> Engine:
            decisions = [names.decision_name(gate) for gate in gates]
            shape: tuple[int | str, ...] = ("batch", tokens)
            model = force_values(bundle.load_model(), dict.fromkeys(decisions, shape))
            # The margins as outputs, so that the gates are still computed and timed.
            model = add_outputs(model, [names.margin_name(gate) for gate in gates])
            return ForcedKeep(load(model.SerializeToString()), decisions, tokens, share)

        return make

    return {WORST_CASE: worst_case} | {f"{KEEP}{share}": kept(share) for share in SWEEP}


class ForcedKeep(Wrapped):
    """An engine whose gates keep a given share of tokens, evenly spread, in every image."""

    def __init__(self, engine: Engine, decisions: Sequence[str], tokens: int, share: float) -> None:
        super().__init__(engine)
        self.decisions = tuple(decisions)
        kept = np.linspace(0, tokens - 1, max(1, round(share * tokens))).round().astype(int)
        self.mask = np.zeros(tokens, bool)
        self.mask[kept] = True

    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for spec in self.engine.inputs() if spec.name not in self.decisions)

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        batch = len(next(iter(feeds.values())))
        mask = np.tile(self.mask, (batch, 1))
        return self.engine.run({**feeds, **dict.fromkeys(self.decisions, mask)}, outputs)
