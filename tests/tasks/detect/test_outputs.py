"""A run's outputs, taken apart image by image and put together again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from svit_deploy.bundle import Bundle
from svit_deploy.engines.settings import RunSettings
from svit_deploy.images import read_picture
from svit_deploy.inference.engine import open_bundle_engine
from svit_deploy.tasks.detect.detections import IMAGE_INDEX, OUTPUTS, SCORES


def test_outputs_are_split_image_by_image_and_joined_again(
    export: Callable[..., Bundle], photos: Path
) -> None:
    bundle = export("detect", "dynamic")
    task, config, sizes = bundle.task, bundle.config, bundle.sizes
    picture = read_picture(photos / "across.png")
    images = [task.prepare(one, config, sizes) for one in (picture, picture[::-1], picture)]
    feeds = task.feeds(images)
    for image, again in zip(images, task.fed(feeds), strict=True):
        assert np.array_equal(image.pixels, again.pixels)
        assert (image.image_size, image.original_size) == (again.image_size, again.original_size)
        assert again.scale == pytest.approx(image.scale)
    with open_bundle_engine(bundle, RunSettings()) as engine:
        outputs = engine.run(feeds)
        parts = task.split(outputs, 3)
        for image, part in zip(images, parts, strict=True):
            alone = engine.run(task.feeds([image]))
            assert {n: a.shape for n, a in part.items()} == {n: a.shape for n, a in alone.items()}
            np.testing.assert_allclose(part[SCORES], alone[SCORES], atol=1e-4)
            assert not part[IMAGE_INDEX].any()
    joined = task.join(parts)
    order = np.argsort(outputs[IMAGE_INDEX], kind="stable")
    for name, array in outputs.items():
        assert np.array_equal(joined[name], array[order] if name in OUTPUTS else array), name
