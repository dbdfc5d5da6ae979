"""The detector's graph finds what the official code finds, in every token mode."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from svit_deploy.engines.base import Engine
from svit_deploy.model.model import Model, without_gates
from svit_deploy.model.sizes import SizeRange
from svit_deploy.tasks import TASKS
from svit_deploy.tasks.detect.detections import Detections, split_images
from tests.backbones.adapter.running import FREE, engine_of, sizes_of
from tests.shortened import shortened
from tests.tasks.detect.official import image_of, kept_of, order_of

pytestmark = pytest.mark.slow

DETECT = TASKS["detect"]
NO_GATES = np.zeros((1, 0, 0), bool)


def detector_engine(
    model: Model, mode: str, sizes: SizeRange = FREE, task: str = "detect"
) -> Engine:
    return engine_of(model, mode, sizes, task=task)


@pytest.fixture(scope="module")
def found(detection_golden: Any) -> Any:
    return detection_golden("svit_mask_rcnn")


@pytest.fixture(scope="module")
def free_engine(found: Any) -> Any:
    """The detector with free height and width, by token mode."""
    return cache(lambda mode: detector_engine(found.detector, mode))


def detections_of(engine: Engine, found: Any, image: int) -> tuple[Detections, dict[str, Any]]:
    outputs = engine.run(DETECT.feeds([image_of(found, image)]))
    return split_images(outputs, 1)[0], outputs


@pytest.mark.parametrize("mode", ["dynamic", "budget", "masked"])
def test_equals_the_official_code(found: Any, free_engine: Any, mode: str) -> None:
    """Both orientations and several sizes in one graph."""
    check_all(found, free_engine(mode))


@pytest.mark.parametrize(
    ("name", "mode", "task"),
    [
        ("evovit_mask_rcnn", "static", "detect"),
        ("swin_cascade", "dense", "cascade"),
        ("stvitr_cascade", "static", "cascade"),
    ],
)
def test_others_equal_the_official_code(
    detection_golden: Any, name: str, mode: str, task: str
) -> None:
    found = detection_golden(name)
    with detector_engine(found.detector, mode, task=task) as engine:
        check_all(found, engine)
    size = "x".join(map(str, found.arrays["input_0"].shape[2:]))
    with detector_engine(found.detector, mode, sizes_of(size), task) as engine:
        order_of(found, 0, detections_of(engine, found, 0)[0])


def check_all(found: Any, engine: Engine) -> None:
    """Each image of a golden."""
    for image in range(len(found.meta["per_image"])):
        mine, outputs = detections_of(engine, found, image)
        assert kept_of(found, image, outputs.get("keep_mask", NO_GATES))
        order_of(found, image, mine)


def test_a_baked_size_gives_the_same(found: Any) -> None:
    with detector_engine(found.detector, "dynamic", sizes_of("224x256")) as engine:
        order_of(found, 2, detections_of(engine, found, 2)[0])


def test_images_of_a_batch_do_not_meet(found: Any, free_engine: Any) -> None:
    """An image with its own detections, one without any, and a mirrored one."""
    one, engine = image_of(found, 2), free_engine("dynamic")
    mirrored = replace(one, pixels=one.pixels[..., ::-1].copy())
    images = [one, replace(one, image_size=(1, 1)), mirrored]
    together = split_images(engine.run(DETECT.feeds(images)), 3)
    order_of(found, 2, together[0])
    for image, mine in zip(images, together, strict=True):
        alone = split_images(engine.run(DETECT.feeds([image])), 1)[0]
        assert (mine.labels == alone.labels).all()
        np.testing.assert_allclose(mine.boxes, alone.boxes, rtol=0, atol=1e-3)
        np.testing.assert_allclose(mine.masks, alone.masks, rtol=0, atol=1e-4)
    assert [len(mine) > 0 for mine in together] == [True, False, True]


def test_nothing_found_is_no_failure(found: Any) -> None:
    model = shortened(found.detector)
    config = replace(model.config, task=replace(model.config.task, min_score=0.999))
    with detector_engine(replace(model, config=config), "dynamic") as engine:
        for batch in (1, 2):
            outputs = engine.run(DETECT.feeds([image_of(found, 0)] * batch))
            assert outputs["boxes"].shape == (0, 4) and outputs["masks"].shape == (0, 28, 28)
            assert [len(mine) for mine in split_images(outputs, batch)] == [0] * batch


def test_dense_twin_equals_its_reference(found: Any) -> None:
    pytest.importorskip("torchvision")
    from svit_deploy.tasks.reference import Reference

    twin = without_gates(shortened(found.detector))
    with detector_engine(twin, "dense") as engine:
        mine, _ = detections_of(engine, found, 0)
    result = Reference(twin, DETECT).run([image_of(found, 0)])
    expected = Detections.of(result.outputs[0])
    assert len(mine) == len(expected) > 0
    np.testing.assert_allclose(np.sort(mine.scores), np.sort(expected.scores), rtol=0, atol=2e-5)
    nearest = np.abs(mine.boxes[:, None] - expected.boxes[None]).max(2).min(1)
    assert nearest.max() < 1e-3
