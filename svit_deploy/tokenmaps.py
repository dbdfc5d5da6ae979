"""Token maps of an exported model: its own keep masks, drawn over the pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from svit_deploy.bundle import Bundle
from svit_deploy.config import TokenMode
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from svit_deploy.errors import InputError
from svit_deploy.export import names
from svit_deploy.images import ImageSet
from svit_deploy.progress import SILENT, Progress
from svit_deploy.visualize import check_output, write_token_maps

BATCH = 8


def draw_token_maps(
    bundle: Bundle,
    images: ImageSet,
    output: Path,
    provider: str = "cpu",
    threads: int = 0,
    progress: Progress = SILENT,
) -> list[Path]:
    """Runs the images and writes a folder of maps (see `write_token_maps`).

    Raises:
        InputError: the graph has no keep masks, or `output` cannot be used.
    """
    config = bundle.config
    if not config.num_gates and bundle.mode is not TokenMode.DENSE:
        raise InputError(
            f"{bundle.method.title} selects no tokens: it computes the same of every image",
            "give a bundle of another method",
        )
    if not bundle.has_gate_outputs:
        raise InputError(
            f"{bundle.name} does not tell which tokens it keeps",
            "use a bundle of another token mode than dense, exported with gate outputs",
        )
    check_output(output)
    inputs = images.inputs(config.preprocess, config.image_size)
    masks = []
    with OnnxRuntimeEngine(bundle.model_path, provider=provider, threads=threads) as engine:
        for start in range(0, len(inputs), BATCH):
            progress.update("running the model", start / len(inputs))
            feeds = {names.INPUT: inputs[start : start + BATCH]}
            masks.append(engine.run(feeds, [names.KEEP_MASK])[names.KEEP_MASK])
    return write_token_maps(
        output,
        images.names,
        images.pictures(config.preprocess, config.image_size),
        np.concatenate(masks)[:, :, : config.num_tokens],  # not those that the method adds
        config.prefix_tokens,
        config.grid,
    )
