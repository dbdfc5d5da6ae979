"""A detector cut down to its last interaction, for tests that need any detector at all.

What a session of ONNX Runtime costs grows with the square of a graph's length, and of most things
four equal interactions show no more than one.
"""

from __future__ import annotations

import re
from dataclasses import replace

from svit_deploy.model.model import Model
from svit_deploy.tasks.numbers import FeatureNumbers

SETTINGS = {
    "num_heads": "6",
    "deform_heads": "6",
    "interaction_blocks": "3",
    "gate_blocks": "0,1,2",
}
"""What the weights of the golden detector do not tell, cut down."""


def shortened(model: Model) -> Model:
    """A ViT-Adapter's last interaction with its blocks, their gates and all that is behind it."""
    config = model.config
    blocks = config.settings.interaction_blocks[-1]
    first = config.depth - blocks
    kept = [gate for gate, block in enumerate(config.gate_blocks) if block >= first]
    dropped = {
        "blocks": first,
        "gates": config.num_gates - len(kept),
        "interactions": len(config.settings.interaction_blocks) - 1,
    }
    weights = {}
    for name, array in model.weights.items():
        if found := re.match(r"(blocks|gates|interactions)\.(\d+)\.", name):
            part, number = found[1], int(found[2]) - dropped[found[1]]
            if number < 0:
                continue
            name = f"{part}.{number}.{name[found.end() :]}"
        weights[name] = array
    per_gate = {
        name: tuple(values[gate] for gate in kept)
        for name in ("gate_blocks", "gate_class_token", "target_keep", "thresholds")
        if (values := getattr(config, name))
    }
    per_gate["gate_blocks"] = tuple(config.gate_blocks[gate] - first for gate in kept)
    settings = replace(config.settings, interaction_blocks=(blocks,))
    config = replace(config, depth=blocks, settings=settings, **per_gate)
    return replace(model, config=config, weights=weights)


def backbone_of(model: Model) -> Model:
    """A detector's backbone alone."""
    heads = ("neck.", "rpn_head.", "roi_head.")
    weights = {name: w for name, w in model.weights.items() if not name.startswith(heads)}
    config = replace(model.config, num_classes=0, task=FeatureNumbers())
    return replace(model, config=config, weights=weights)
